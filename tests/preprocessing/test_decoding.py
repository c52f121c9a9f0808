"""Ids back to text: by hand, then identity with HuggingFace's decode."""

import re

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_reference import file_texts, reference

from kbert.preprocessing import WordPieceTokenizer, tokenizer_from_vocabulary_file
from kbert.preprocessing.decoding import tighten

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day", "##s", "!", "人", "。"]
ODD_TOKENS = ["'", "n", "t", "m", "s", "ve", "re", "do", "not", ".", "!", "?", ",", "##s", "##'"]
ODD_TOKENS += ["[PAD]", "[CLS]", "[SEP]", "人", "。", "(", "…"]


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def tokenizers(minilm):
    """Ours and theirs."""
    path = minilm / "vocab.txt"
    return tokenizer_from_vocabulary_file(path), reference(path)


@pytest.mark.parametrize(
    ("ids", "text", "chinese"),
    [
        ([], "", ""),
        ([5], "good", "good"),
        ([5, 6, 7, 8], "good days!", "good days!"),
        ([7, 5], "##s good", "##s good"),
        ([9, 9, 10, 9], "人 人 。 人", "人人。人"),
        ([5, 9, 7, 6], "good 人s day", "good人s day"),
        ([2, 5, 3, 0, 0], "[CLS] good [SEP] [PAD] [PAD]", "[CLS] good [SEP] [PAD] [PAD]"),
        ([-1, 5, 11, 6, 10**9], "good day", "good day"),
    ],
)
def test_decode_by_hand(tokenizer, ids, text, chinese):
    ragged = tf.ragged.constant([[6], ids, []], dtype=tf.int32)
    assert tokenizer.decode(ragged).numpy().tolist() == [b"day", text.encode(), b""]
    assert tokenizer.decode_chinese(ragged).numpy().tolist() == [b"day", chinese.encode(), b""]


def test_decode_padded_ids(tokenizer):
    ids = tf.constant([[2, 5, 3, 0], [2, 9, 9, 3]])
    for numbers in (ids, tf.cast(ids, tf.int64)):
        texts = tokenizer.decode(numbers, skip_special_tokens=True)
        assert [text.decode() for text in texts.numpy()] == ["good", "人 人"]
        texts = tokenizer.decode_chinese(numbers, skip_special_tokens=True)
        assert [text.decode() for text in texts.numpy()] == ["good", "人人"]
    assert tokenizer.decode(ids[:0]).shape == (0,)
    assert tokenizer.decode(ids[:, :0]).numpy().tolist() == [b"", b""]


@settings(max_examples=60)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(ODD_TOKENS) | st.integers(0, 30_600), max_size=12), max_size=9
    ),
    skip=st.booleans(),
    clean=st.booleans(),
)
def test_decode_as_huggingface(tokenizers, texts, skip, clean):
    ours, theirs = tokenizers
    numbers = {token: ours.vocabulary.index(token) for token in ODD_TOKENS if token in VOCABULARY}
    numbers |= {token: theirs.convert_tokens_to_ids(token) for token in ODD_TOKENS}
    ids = [[numbers.get(token, token) for token in text] for text in texts]
    options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    decoded = ours.decode(tf.ragged.constant(ids, dtype=tf.int32, ragged_rank=1), **options)
    assert [text.decode() for text in decoded.numpy()] == theirs.batch_decode(ids, **options)


@pytest.mark.parametrize(
    "text",
    [
        "我在2008年去过北京（中国）。",
        "他说：「真的吗？！」……是！",
        "价格(很)好,便宜!",
        "good day, sir! it's 3 o'clock",
    ],
)
def test_decode_chinese_gives_the_text_back(shared_data, text):
    path = shared_data.parent / "vocab" / "bert-base-chinese" / "vocab.txt"
    tokenizer = tokenizer_from_vocabulary_file(path)
    texts = tokenizer.decode_chinese(tokenizer(tf.constant([text])))
    assert texts.numpy()[0].decode() == text


def test_decode_chinese_differs_in_spaces_only(shared_data):
    path = shared_data.parent / "vocab" / "bert-base-chinese" / "vocab.txt"
    tokenizer = tokenizer_from_vocabulary_file(path)
    texts = file_texts(shared_data / "chnsenticorp_hotel" / "valid.csv")[::7]
    ids = tokenizer(tf.constant(texts))
    spaced = [text.decode() for text in tokenizer.decode(ids).numpy()]
    joined = [text.decode() for text in tokenizer.decode_chinese(ids).numpy()]
    assert [text.replace(" ", "") for text in spaced] == [text.replace(" ", "") for text in joined]
    assert sum(len(re.findall("[一-龥] [一-龥]", text)) for text in spaced) > 1000
    assert not any(re.search("[一-龥，。！（）] | [一-龥，。！（）]", text) for text in joined)


@pytest.mark.parametrize(
    "text",
    [
        "Ein Mann im T-Shirt (rot) wartet auf die U-Bahn-Linie.",
        "Rot- und Weißwein; 10:30, 40%",
        "ein „Open“-Schild, „so“ und so",
        'the "new" 1,000-page book [sic]: a/b',
        "“quoted” text – a dash",
        "价格是$5（很好）。",
    ],
)
def test_tighten_gives_the_text_back(text):
    characters = sorted(set(text) - {" "})
    pieces = [*characters, *(f"##{character}" for character in characters)]
    tokenizer = WordPieceTokenizer([*VOCABULARY[:5], *pieces], lowercase=False)
    decoded = tokenizer.decode_chinese(tokenizer(tf.constant([text])))
    assert tighten(decoded).numpy()[0].decode() == text
