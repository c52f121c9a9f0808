"""Ids and offsets: examples by hand, then identity with HuggingFace's BertTokenizerFast."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_reference import (
    MARKS,
    SETTINGS,
    assert_same_tokens,
    data_files,
    file_texts,
    random_bytes,
    random_marks,
    random_text,
    reference,
    texts_of_other_words,
    traced,
)

from kbert.errors import InputError
from kbert.preprocessing import WordPieceTokenizer, tokenizer_from_vocabulary_file

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day", "##s", "!", "人"]


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def tokenize(tokenizer) -> Callable:
    """The same, traced once."""
    return traced(tokenizer)


@pytest.fixture(scope="module")
def minilm_vocabulary(minilm: Path) -> Path:
    return minilm / "vocab.txt"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (" \t\n", []),
        ("good", [5]),
        ("Good  days!", [5, 6, 7, 8]),
        ("gööd däys", [5, 6, 7]),
        ("good人day", [5, 9, 6]),
        ("a [MASK] day", [1, 4, 6]),
        ("[CLS]good[SEP][SEP]", [2, 5, 3, 3]),
        ("[mask]", [1, 1, 1]),
        ("x" * 101, [1]),
        ("good" + "s" * 96, [5] + [7] * 96),
        ("good" + "s" * 97, [1]),
        ("gööd" + "s" * 96, [5] + [7] * 96),
        ("gööd" + "s" * 97, [1]),
        ("go\0od", [5]),
        ("[MA\0SK]", [1, 1, 1]),
        ("go\u200bod\u00a0day", [5, 6]),
        (b"go\xffod \xe4\xba", [5]),
    ],
)
def test_tokenizer_by_hand(tokenizer, tokenize, text, ids):
    assert tokenizer(tf.constant([text])).to_list() == [ids]
    assert tokenize(tf.constant(["day", text, "", "人"])).to_list() == [[6], ids, [], [9]]


def test_tokenizer_attributes(tokenizer):
    assert tokenizer.vocabulary == tuple(VOCABULARY)
    assert tokenizer.vocabulary_size == 10
    assert tokenizer.pad_token_id == 0
    assert tokenizer.unknown_token_id == 1
    assert tokenizer.cls_token_id == 2
    assert tokenizer.sep_token_id == 3
    assert tokenizer.mask_token_id == 4
    assert sorted(tokenizer.special_token_ids) == [0, 1, 2, 3, 4]
    assert tokenizer.id_to_token(tf.constant([[5, 7]])).numpy().tolist() == [[b"good", b"##s"]]


def test_tokenizer_without_texts(tokenizer):
    ids = tokenizer(tf.constant([], tf.string))
    assert ids.to_list() == []
    assert ids.dtype == tf.int32


def test_tokenizer_keeps_case_and_accents():
    vocabulary = [*VOCABULARY, "Good", "gööd", "good人"]
    cased = WordPieceTokenizer(vocabulary, lowercase=False)
    assert cased(tf.constant(["Good gööd good"])).to_list() == [[10, 11, 5]]
    accents = WordPieceTokenizer(vocabulary, strip_accents=False, tokenize_chinese_chars=False)
    assert accents(tf.constant(["Good Gööd good人"])).to_list() == [[5, 11, 12]]


def test_tokenizer_with_other_special_tokens():
    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "[E1]", "[E1]x", "good"]
    tokenizer = WordPieceTokenizer(
        vocabulary,
        unknown_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        additional_special_tokens=["[E1]", "[E1]x"],
    )
    # The longest one is cut out, as the reference does.
    assert tokenizer(tf.constant(["good[E1]xgood<mask>", "[UNK]"])).to_list() == [
        [7, 6, 7, 4],
        [1, 1, 1],
    ]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ([], "holds no tokens"),
        ([*VOCABULARY, "day", "##s"], r"'day' \(lines 7, 11\), '##s' \(lines 8, 12\)"),
        (VOCABULARY[:4], r"lacks the special tokens \[MASK\]"),
    ],
)
def test_tokenizer_refuses_vocabulary(vocabulary, message):
    with pytest.raises(InputError, match=message):
        WordPieceTokenizer(vocabulary)


def test_tokenizer_refuses_other_ranks(tokenizer):
    with pytest.raises(ValueError, match="shape"):
        tokenizer(tf.constant([["good"]]))


@settings(max_examples=60)
@given(st.lists(st.one_of(st.text(max_size=20), st.binary(max_size=20)), max_size=4))
def test_tokenizer_takes_any_bytes(tokenize, texts):
    encoded = [text.encode(errors="replace") if isinstance(text, str) else text for text in texts]
    together = tokenize(tf.constant(encoded, tf.string)).to_list()
    assert together == [tokenize(tf.constant([text])).to_list()[0] for text in encoded]
    assert all(0 <= number < 10 for row in together for number in row)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["good", "days", "人", "[MASK]", "!", "gÖod"]), max_size=9))
def test_tokenizer_concatenates_words(tokenize, words):
    apart = [number for row in tokenize(tf.constant(words, tf.string)).to_list() for number in row]
    assert tokenize(tf.constant([" ".join(words)])).to_list() == [apart]


# Offsets, then identity of ids and offsets


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("Good  days!", ["Good", "day", "s", "!"]),
        ("a [MASK]day", ["a", "[MASK]", "day"]),
        ("go\u0301od\u0301 day", ["go\u0301od", "day"]),  # a mark at the end is no part of a word
        ("人\x01人\0good", ["人", "人", "good"]),
        ("g\x01ood", ["g\x01ood"]),
        ("x" * 101 + " day", ["x" * 101, "day"]),
        ("é" * 101 + " day", ["é" * 101, "day"]),
        ("😀 gööds [SEP]", ["😀", "gööd", "s", "[SEP]"]),
    ],
)
def test_offsets_by_hand(tokenizer, text, pieces):
    texts = ["day", text, "人"]
    ids, starts, ends = tokenizer.tokenize_with_offsets(tf.constant(texts))
    assert ids.to_list() == tokenizer(tf.constant(texts)).to_list()
    assert starts.dtype == ends.dtype == tf.int32
    spans = zip(starts.to_list()[1], ends.to_list()[1], strict=True)
    assert [text[start:end] for start, end in spans] == pieces
    assert ends.to_list()[::2] == [[3], [1]]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: str(tuple(options.values())))
def test_same_as_huggingface_on_random_texts(minilm_vocabulary, options):
    generator = random.Random(0)
    texts = [random_text(generator) for _ in range(300)]
    texts += [random_marks(generator) for _ in range(300)]
    vocabulary = tokenizer_from_vocabulary_file(minilm_vocabulary).vocabulary
    ours = WordPieceTokenizer(vocabulary, **options)
    assert_same_tokens(ours, reference(minilm_vocabulary, **options), texts)


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: str(tuple(options.values())))
def test_same_words_as_huggingface_around_each_character(options):
    """Ids hide much behind [UNK]; here the normalised words themselves are compared."""
    # 7 shows every script, and some of each block.
    codes = [*range(0x3400), *range(0xF900, 0x10000), *range(0x10000, 0x20000, 7), 0x10FFFF]
    codes += range(0x3400, 0xD800, 7)
    texts = [" ".join(f"a{chr(c)}b {chr(c)}" for c in codes[i : i + 9]) for i in range(0, 9000, 9)]
    generator = random.Random(0)
    texts += ["".join(generator.choices([*MARKS, "a", "!"], k=6)) for _ in range(300)]
    ours = WordPieceTokenizer(VOCABULARY, **options)
    assert not list(texts_of_other_words(ours, texts))


def test_same_as_huggingface_on_bytes_that_are_not_utf_8(minilm_vocabulary):
    ours, theirs = tokenizer_from_vocabulary_file(minilm_vocabulary), reference(minilm_vocabulary)
    generator = random.Random(0)
    assert_same_tokens(ours, theirs, [random_bytes(generator) for _ in range(2000)])


def test_same_as_huggingface_on_long_texts(minilm_vocabulary):
    ours, theirs = tokenizer_from_vocabulary_file(minilm_vocabulary), reference(minilm_vocabulary)
    parts = ["good day, ", "gööd 人", "x", "é", "[MASK]", "[", "!", "\u0301", "😀"]
    texts = [part * (2**18 // len(part.encode())) for part in parts]
    assert_same_tokens(ours, theirs, texts)


def test_same_as_huggingface_on_odd_vocabularies(tmp_path):
    """Tokens with white space or punctuation inside, which no text can reach."""
    generator = random.Random(0)
    for alphabet in ("ab'.", "aB. $", "ab#", "abé。人-"):
        pieces = {"".join(generator.choices(alphabet, k=length)) for length in (1, 2, 2, 3) * 4}
        vocabulary = [*VOCABULARY[:5], *sorted(pieces), *sorted(f"##{piece}" for piece in pieces)]
        vocabulary += ["", "\0", "##\0", "##", "\x01", "##\x01", "a\0b"]
        path = tmp_path / "vocab.txt"
        path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        texts = ["".join(generator.choices(alphabet + " ", k=10)) for _ in range(200)]
        ours = tokenizer_from_vocabulary_file(path, lowercase=False)
        assert_same_tokens(ours, reference(path, lowercase=False), texts)


def test_same_as_huggingface_with_odd_special_tokens(tmp_path):
    path = tmp_path / "vocab.txt"
    added = ["[E 1]", "[e 1]x", "É", "人人", "-"]
    path.write_text("\n".join([*VOCABULARY, *added, "e", "1", "é"]) + "\n", encoding="utf-8")
    generator = random.Random(0)
    texts = [
        "".join(generator.choices([*added, "[E", " ", "1", "]", "é", "人"], k=8))
        for _ in range(300)
    ]
    vocabulary = tokenizer_from_vocabulary_file(path).vocabulary
    ours = WordPieceTokenizer(vocabulary, additional_special_tokens=added)
    theirs = reference(path, additional_special_tokens=added)
    assert_same_tokens(ours, theirs, texts)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_same_as_huggingface_on_public_data(shared_data, request, language, lowercase):
    if language == "zh":
        path = shared_data.parent / "vocab" / "bert-base-chinese" / "vocab.txt"
    else:
        path = request.getfixturevalue("minilm_vocabulary")
    texts = []
    for file in data_files(shared_data):
        texts += file_texts(file)[:: 300 if file.stat().st_size > 1e6 else 60]
    assert len(texts) > 500
    ours = tokenizer_from_vocabulary_file(path, lowercase=lowercase)
    assert_same_tokens(ours, reference(path, lowercase=lowercase), texts)


def test_two_tokenisers_of_one_vocabulary_are_the_same(vocabulary: tuple[str, ...]) -> None:
    first, second = WordPieceTokenizer(vocabulary), WordPieceTokenizer(vocabulary)
    assert first.get_config() == second.get_config()  # by which what is cached is found
    assert WordPieceTokenizer(vocabulary, name="other").name == "other"
