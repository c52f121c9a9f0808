"""Preprocessing: examples by hand, then identity with HuggingFace's BertTokenizerFast."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kbert.errors import InputError
from kbert.preprocessing import (
    BertPacker,
    TokenMasker,
    WordPieceTokenizer,
    tokenizer_from_files,
    tokenizer_from_vocabulary_file,
)

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "day", "##s", "!", "人"]
FIRST_CODE_POINTS = (0, 0, 0, 0, 0x80, 0x100, 0x300, 0x370, 0x400, 0x5D0, 0x620, 0x8D0, 0x900)
FIRST_CODE_POINTS += (0xE00, 0x1100, 0x1B40, 0x1E00, 0x1F00, 0x2000, 0x2100, 0x3000, 0x3040)
FIRST_CODE_POINTS += (0x4E00, 0xA9C0, 0xAC00, 0xE000, 0xF900, 0xFB00, 0xFE00, 0xFF00, 0xFFF0)
FIRST_CODE_POINTS += (0x11440, 0x1D150, 0x1D400, 0x1E000, 0x1E940, 0x1F600, 0x20000, 0x2F800)
FRAGMENTS = ["[MASK]", "[SEP]", "[mask]", "[MA\0SK]", "\0", "\n", " ", "\u200b", "\ufffd", "é" * 60]
FRAGMENTS += [
    "x" * 100,
    "x" * 101,
    "人" * 101,
    "\u1d15e",
    "\U0001d15e\u1baa",
    "\U0001e944\U0001e94a",
]
SETTINGS = {
    "lower-cased": {},
    "cased": {"lowercase": False},
    "cased, no accents": {"lowercase": False, "strip_accents": True},
    "lower-cased, accents": {"strip_accents": False},
    "Chinese in words": {"tokenize_chinese_chars": False},
}


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def tokenize(tokenizer) -> Callable:
    """The same, traced once."""
    return traced(tokenizer)


@pytest.fixture
def packer() -> BertPacker:
    return BertPacker(max_length=8, cls_token_id=2, sep_token_id=3, pad_token_id=0)


@pytest.fixture(scope="module")
def minilm_vocabulary(minilm: Path) -> Path:
    return minilm / "vocab.txt"


def reference(path: Path, lowercase: bool = True, **options):
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizerFast(str(path), do_lower_case=lowercase, **options)


def traced(tokenizer: WordPieceTokenizer) -> Callable:
    return tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])


def assert_same_ids(ours: Callable, theirs, texts: list[str]) -> None:
    ids = ours(tf.constant(texts)).to_list()
    expected = theirs(texts, add_special_tokens=False, verbose=False)["input_ids"]
    differing = [text for text, a, b in zip(texts, ids, expected, strict=True) if a != b]
    assert not differing, f"{len(differing)} of {len(texts)} differ, first {differing[0]!r}"


def random_text(generator: random.Random) -> str:
    parts = []
    for _ in range(generator.randint(0, 12)):
        if generator.random() < 0.2:
            parts.append(generator.choice(FRAGMENTS))
        first = generator.choice(FIRST_CODE_POINTS)
        codes = [first + generator.randrange(128) for _ in range(generator.randint(1, 6))]
        parts.append("".join(map(chr, codes)) + generator.choice(["", "", " "]))
    return "".join(parts)


# WordPieceTokenizer


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=20), st.binary(max_size=20)), max_size=4))
def test_tokenizer_takes_any_bytes(tokenize, texts):
    encoded = [text.encode(errors="replace") if isinstance(text, str) else text for text in texts]
    together = tokenize(tf.constant(encoded, tf.string)).to_list()
    assert together == [tokenize(tf.constant([text])).to_list()[0] for text in encoded]
    assert all(0 <= number < 10 for row in together for number in row)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["good", "days", "人", "[MASK]", "!", "gÖod"]), max_size=9))
def test_tokenizer_concatenates_words(tokenize, words):
    apart = [number for row in tokenize(tf.constant(words, tf.string)).to_list() for number in row]
    assert tokenize(tf.constant([" ".join(words)])).to_list() == [apart]


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_same_ids_as_huggingface_on_random_texts(minilm_vocabulary, options):
    generator = random.Random(0)
    texts = [random_text(generator) for _ in range(700)]
    ours = tokenizer_from_vocabulary_file(minilm_vocabulary)
    ours = WordPieceTokenizer(ours.vocabulary, **options)
    assert_same_ids(traced(ours), reference(minilm_vocabulary, **options), texts)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_same_words_as_huggingface_around_each_character(options):
    """Ids hide much behind [UNK]; here the normalised words themselves are compared."""
    tokenizers = pytest.importorskip("tokenizers")
    lowercase, strip = options.get("lowercase", True), options.get("strip_accents")
    normalize = tokenizers.normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    ).normalize_str
    split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    ours = WordPieceTokenizer(VOCABULARY, **options)

    # NUL and surrogates do not get as far as here. 7 shows every script, and some of each block.
    codes = [*range(1, 0x3400), *range(0xF900, 0x10000), *range(0x10000, 0x20000, 7)]
    texts = [f"a{chr(code)}b" for code in [*codes, *range(0x3400, 0xD800, 7), 0x10FFFF]]
    generator = random.Random(0)
    marks = [
        "\u302e",
        "\u1b44",
        "\U0001e944",
        "\U0001e94a",
        "\U0001d15e",
        "\u0301",
        "a",
        "!",
        "\x01",
    ]
    texts += ["".join(generator.choices(marks, k=6)) for _ in range(500)]
    words, before = ours._split_into_words(tf.constant(texts), tf.fill([len(texts)], False))
    rows = tf.RaggedTensor.from_row_splits(words, before).to_list()
    for text, row in zip(texts, rows, strict=True):
        assert [word.decode() for word in row] == [word for word, _ in split(normalize(text))], text


def test_same_ids_as_huggingface_on_odd_vocabularies(tmp_path):
    """Tokens with white space or punctuation inside, which no text can reach."""
    generator = random.Random(0)
    for alphabet in ("ab'.", "aB. $", "ab#", "abé。人-"):
        pieces = {"".join(generator.choices(alphabet, k=length)) for length in (1, 2, 2, 3) * 4}
        vocabulary = [*VOCABULARY[:5], *sorted(pieces), *sorted(f"##{piece}" for piece in pieces)]
        path = tmp_path / "vocab.txt"
        path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        texts = ["".join(generator.choices(alphabet + " ", k=10)) for _ in range(200)]
        ours = tokenizer_from_vocabulary_file(path, lowercase=False)
        assert_same_ids(ours, reference(path, lowercase=False), texts)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_same_ids_as_huggingface_on_public_data(shared_data, request, language, lowercase):
    """A sample of each data set; the whole was compared by hand, without a difference."""
    if language == "zh":
        path = shared_data.parent / "vocab" / "bert-base-chinese" / "vocab.txt"
    else:
        path = request.getfixturevalue("minilm_vocabulary")
    texts = []
    for file in sorted(shared_data.glob("*/*")):
        if file.suffix in (".tsv", ".csv", ".jsonl"):
            texts += public_texts(file)[:: 300 if file.stat().st_size > 1e6 else 60]
    assert len(texts) > 500
    ours = traced(tokenizer_from_vocabulary_file(path, lowercase=lowercase))
    assert_same_ids(ours, reference(path, lowercase=lowercase), texts)


def public_texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [str(value) for line in file for value in json.loads(line).values()]
        csv.field_size_limit(10**9)
        quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return [
            text for row in csv.reader(file, delimiter=delimiter, quoting=quoting) for text in row
        ]


# tokenizer_from_files, tokenizer_from_vocabulary_file


def write_files(folder: Path, **contents) -> Path:
    """Writes name=content; "__" in a name is a dot, what is not a string becomes JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def definition(vocabulary=VOCABULARY, **changes) -> dict:
    """A tokenizer.json; changes replace its parts."""
    special = [
        {"id": number, "content": token, "special": True, "normalized": False}
        for number, token in enumerate(VOCABULARY[:5])
    ]
    model = {"type": "WordPiece", "unk_token": "[UNK]"}
    model["vocab"] = {token: number for number, token in enumerate(vocabulary)}
    parts = {
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": model,
    }
    return parts | changes


VOCABULARY_TEXT = "\n".join(VOCABULARY) + "\n"


@pytest.mark.parametrize("config", [None, "", "{}", '{"do_lower_case": true}'])
def test_files_with_vocabulary(tmp_path, config):
    write_files(tmp_path, vocab__txt=VOCABULARY_TEXT)
    if config is not None:
        write_files(tmp_path, tokenizer_config__json=config)
    tokenizer = tokenizer_from_files(tmp_path)
    assert tokenizer.vocabulary == tuple(VOCABULARY)
    assert tokenizer(tf.constant(["Gööd day"])).to_list() == [[5, 6]]


def test_files_with_settings(tmp_path):
    config = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    write_files(tmp_path, vocab__txt=VOCABULARY_TEXT, tokenizer_config__json=config)
    tokenizer = tokenizer_from_files(str(tmp_path))
    assert not tokenizer.lowercase
    assert tokenizer.strip_accents
    assert not tokenizer.tokenize_chinese_chars


def test_files_with_tokenizer_json(tmp_path):
    write_files(tmp_path, tokenizer__json=definition())
    assert tokenizer_from_files(tmp_path).vocabulary == tuple(VOCABULARY)
    write_files(tmp_path, vocab__txt=VOCABULARY_TEXT)
    assert tokenizer_from_files(tmp_path).vocabulary == tuple(VOCABULARY)


def test_files_with_cased_tokenizer_json(tmp_path):
    cased = {"type": "BertNormalizer", "lowercase": False, "strip_accents": None}
    write_files(tmp_path, tokenizer__json=definition(normalizer=cased))
    # transformers would lower-case here, against tokenizer.json.
    with pytest.raises(InputError, match=r"disagree about lowercase \(False, True\)"):
        tokenizer_from_files(tmp_path)
    for config in ({"do_lower_case": False}, {"tokenizer_class": "PreTrainedTokenizerFast"}):
        write_files(tmp_path, tokenizer_config__json=config)
        assert not tokenizer_from_files(tmp_path).lowercase


def test_files_with_added_tokens(tmp_path):
    entity = {"id": 10, "content": "[E1]", "special": True, "normalized": False}
    parts = definition()
    parts["added_tokens"].append(entity)
    tokenizer = tokenizer_from_files(write_files(tmp_path / "a", tokenizer__json=parts))
    assert tokenizer(tf.constant(["good[E1]"])).to_list() == [[5, 10]]

    config = {"added_tokens_decoder": {"10": {"content": "[E1]", "special": True}}}
    folder = write_files(tmp_path / "b", vocab__txt=VOCABULARY_TEXT, tokenizer_config__json=config)
    assert tokenizer_from_files(folder).additional_special_tokens == ("[E1]",)

    entity["normalized"] = True
    with pytest.raises(InputError, match=r"'\[E1\]' is matched in normalised text"):
        tokenizer_from_files(write_files(tmp_path / "a", tokenizer__json=parts))
    entity |= {"normalized": False, "id": 12}
    with pytest.raises(InputError, match="has the id 12"):
        tokenizer_from_files(write_files(tmp_path / "a", tokenizer__json=parts))


def test_files_with_named_special_tokens(tmp_path):
    text = VOCABULARY_TEXT.replace("[MASK]", "<mask>")
    write_files(tmp_path, vocab__txt=text, special_tokens_map__json={"mask_token": "<mask>"})
    assert tokenizer_from_files(tmp_path).mask_token == "<mask>"
    write_files(tmp_path, tokenizer_config__json={"mask_token": {"content": "<mask>"}})
    (tmp_path / "special_tokens_map.json").unlink()
    assert tokenizer_from_files(tmp_path).mask_token_id == 4


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "neither vocab.txt nor tokenizer.json"),
        ({"vocab__txt": ""}, "vocab.txt: holds no tokens"),
        ({"vocab__txt": "[PAD]\n[UNK]\n"}, r"vocab.txt: lacks the special tokens \[CLS\], \[SEP\]"),
        ({"vocab__txt": VOCABULARY_TEXT + "day\n"}, r"'day' \(lines 7, 11\)"),
        ({"vocab__txt": VOCABULARY_TEXT, "tokenizer_config__json": "{"}, "not a JSON file"),
        ({"vocab__txt": VOCABULARY_TEXT, "tokenizer_config__json": "[]"}, "a JSON object"),
        (
            {
                "vocab__txt": VOCABULARY_TEXT.replace("day", "night"),
                "tokenizer__json": definition(),
            },
            "disagree, first about id 6: 'day' and 'night'",
        ),
        (
            {"vocab__txt": VOCABULARY_TEXT + "night\n", "tokenizer__json": definition()},
            "disagree, first about id 10: none and 'night'",
        ),
        (
            {"tokenizer__json": definition(), "tokenizer_config__json": {"do_lower_case": False}},
            r"disagree about lowercase \(True, False\), strip_accents \(True, False\)",
        ),
        ({"tokenizer__json": definition(model={"type": "BPE"})}, "model is 'BPE'"),
        ({"tokenizer__json": definition(normalizer={"type": "NFC"})}, "normalizer is 'NFC'"),
        ({"tokenizer__json": definition(pre_tokenizer=None)}, "pre_tokenizer is None"),
        ({"tokenizer__json": definition(model={"vocab": {"a": 1}})}, "ids must be 0 to 0"),
    ],
)
def test_files_refused(tmp_path, contents, message):
    with pytest.raises(InputError, match=message) as caught:
        tokenizer_from_files(write_files(tmp_path, **contents))
    assert "\n" not in str(caught.value)


def test_vocabulary_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\r\n".join([*VOCABULARY, "\u2028", "Day"]).encode())
    tokenizer = tokenizer_from_vocabulary_file(path, lowercase=False)
    assert tokenizer.vocabulary == (*VOCABULARY, "\u2028", "Day")
    assert tokenizer(tf.constant(["Day day"])).to_list() == [[11, 6]]
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        tokenizer_from_vocabulary_file(path)
    with pytest.raises(InputError, match="no such file"):
        tokenizer_from_vocabulary_file(tmp_path / "absent.txt")


# BertPacker


def test_packer_with_one_text(packer):
    packed = packer((tf.ragged.constant([[5, 6], [], [5] * 9], dtype=tf.int32),))
    rows = [[2, 5, 6, 3, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0], [2, 5, 5, 5, 5, 5, 5, 3]]
    assert packed["token_ids"].numpy().tolist() == rows
    assert packed["segment_ids"].numpy().tolist() == [[0] * 8] * 3
    mask = [[1] * 4 + [0] * 4, [1] * 2 + [0] * 6, [1] * 8]
    assert packed["padding_mask"].numpy().tolist() == mask
    assert all(value.dtype == tf.int32 for value in packed.values())


def test_packer_with_two_texts(packer):
    first = tf.ragged.constant([[5], [], [5] * 4, [5] * 4], dtype=tf.int32)
    second = tf.ragged.constant([[6, 7], [], [6] * 4, [6]], dtype=tf.int32)
    packed = packer((first, second))
    assert packed["token_ids"].numpy().tolist() == [
        [2, 5, 3, 6, 7, 3, 0, 0],
        [2, 3, 3, 0, 0, 0, 0, 0],
        [2, 5, 5, 3, 6, 6, 6, 3],  # of 5 places the second text gets 3
        [2, 5, 5, 5, 5, 3, 6, 3],
    ]
    assert packed["segment_ids"].numpy().tolist() == [
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_packer_pads_to_the_longest_of_the_batch(packer):
    ids = tf.ragged.constant([[5], [5, 6]], dtype=tf.int32)
    assert packer((ids,))["token_ids"].shape == (2, 4)
    assert packer((ids[:0],))["token_ids"].shape == (0, 2)
    assert packer((ids[:0], ids[:0]))["padding_mask"].shape == (0, 3)


@pytest.mark.parametrize("max_length", [3, 4, 5, 8, 13])
def test_packer_truncates_as_huggingface(minilm_vocabulary, max_length):
    theirs = reference(minilm_vocabulary)
    ours = tokenizer_from_vocabulary_file(minilm_vocabulary)
    pack = BertPacker(
        max_length=max_length,
        cls_token_id=ours.cls_token_id,
        sep_token_id=ours.sep_token_id,
        pad_token_id=ours.pad_token_id,
    )
    generator = random.Random(max_length)
    words = ["good", "day", "tokenizers", "!"]
    lengths = range(max_length + 2)
    firsts, seconds = zip(
        *(
            [" ".join(generator.choices(words, k=length)) for length in pair]
            for pair in [(a, b) for a in lengths for b in lengths]
        ),
        strict=True,
    )
    for texts in ((firsts,), (firsts, seconds)):
        expected = theirs(
            *map(list, texts),
            truncation="longest_first",
            max_length=max_length,
            padding="longest",
            return_tensors="np",
        )
        packed = pack(tuple(ours(tf.constant(part)) for part in texts))
        np.testing.assert_array_equal(packed["token_ids"], expected["input_ids"])
        np.testing.assert_array_equal(packed["segment_ids"], expected["token_type_ids"])
        np.testing.assert_array_equal(packed["padding_mask"], expected["attention_mask"])


def test_packer_refuses_what_cannot_be_packed():
    ids = tf.ragged.constant([[5]], dtype=tf.int32)
    special = {"cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    with pytest.raises(InputError, match="Received: 1"):
        BertPacker(max_length=1, **special)
    with pytest.raises(InputError, match="3 special tokens of 2 texts"):
        BertPacker(max_length=2, **special)((ids, ids))
    with pytest.raises(ValueError, match="one or two ragged"):
        BertPacker(max_length=9, **special)((ids, ids, ids))


# TokenMasker


@pytest.fixture
def masker() -> TokenMasker:
    return TokenMasker(vocabulary_size=1000, mask_token_id=4, special_token_ids=range(5))


def packed_batch(rows: int = 200, length: int = 100) -> dict[str, tf.Tensor]:
    token_ids = np.random.default_rng(0).integers(5, 1000, (rows, length), dtype=np.int32)
    token_ids[:, 0], token_ids[:, -20], token_ids[:, -19:] = 2, 3, 0
    return {"token_ids": tf.constant(token_ids), "padding_mask": tf.cast(token_ids > 0, tf.int32)}


def test_masker_rates(masker):
    batch = packed_batch()
    masked = {
        name: value.numpy() for name, value in masker(batch, seed=tf.constant([1, 2])).items()
    }
    before = batch["token_ids"].numpy()
    np.testing.assert_array_equal(masked["labels"], before)
    selected = masked["weights"] == 1
    assert set(np.unique(masked["weights"])) == {0, 1}
    assert (before[selected] > 4).all()
    np.testing.assert_array_equal(masked["token_ids"][~selected], before[~selected])
    assert selected.sum() / (before > 4).sum() == pytest.approx(0.15, abs=0.01)
    after = masked["token_ids"][selected]
    assert (after == 4).mean() == pytest.approx(0.8, abs=0.03)
    assert (after == before[selected]).mean() == pytest.approx(0.1, abs=0.03)
    assert masked["token_ids"].dtype == masked["labels"].dtype == np.int32
    assert masked["weights"].dtype == np.float32


def test_masker_is_a_function_of_its_seed(masker):
    batch = packed_batch(7, 30)
    once = masker(batch, seed=tf.constant([3, 4]))
    again = tf.function(masker)(batch, seed=tf.constant([3, 4]))
    other = masker(batch, seed=tf.constant([3, 5]))
    for name, value in once.items():
        np.testing.assert_array_equal(value, again[name])
    assert (once["weights"].numpy() != other["weights"].numpy()).any()


def test_masker_refuses_rates():
    arguments = {"vocabulary_size": 9, "mask_token_id": 4, "special_token_ids": [0]}
    with pytest.raises(InputError, match="mask_rate"):
        TokenMasker(mask_rate=0.0, **arguments)
    with pytest.raises(InputError, match="sum up to at most 1"):
        TokenMasker(mask_token_rate=0.8, random_token_rate=0.3, **arguments)


# All of them, where they will run


def test_layers_inside_a_data_pipeline(tokenizer, packer, masker):
    def preprocess(first, second):
        packed = packer((tokenizer(first), tokenizer(second)))
        return masker(packed, seed=tf.constant([0, 1])) | packed

    texts = ["good days!", "", "人 good"], ["day", "gööd", "[MASK]"]
    batches = list(tf.data.Dataset.from_tensor_slices(texts).batch(2).map(preprocess))
    assert [batch["token_ids"].shape[0] for batch in batches] == [2, 1]
    expected = packer(tuple(tokenizer(tf.constant(part[:2])) for part in texts))
    np.testing.assert_array_equal(batches[0]["token_ids"], expected["token_ids"])


def test_graph_holds_no_op_that_old_servers_lack(tokenizer, packer):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def preprocess(first, second):
        return packer((tokenizer(first), tokenizer(second)))

    graph = preprocess.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    core = {name for name in dir(tf.raw_ops) if not name.startswith("_")}
    others = {node.op for node in nodes} - core - {f.signature.name for f in graph.library.function}
    assert others == {"RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets"}


@pytest.mark.parametrize(
    "layer",
    [
        WordPieceTokenizer([*VOCABULARY, "[E1]"], additional_special_tokens=["[E1]"], name="words"),
        WordPieceTokenizer(VOCABULARY, lowercase=False, strip_accents=True),
        BertPacker(max_length=9, cls_token_id=2, sep_token_id=3, pad_token_id=0),
        TokenMasker(vocabulary_size=9, mask_token_id=4, special_token_ids=range(5), mask_rate=0.3),
    ],
    ids=lambda layer: layer.name,
)
def test_config_round_trip(layer):
    config = json.loads(json.dumps(layer.get_config()))
    assert type(layer).from_config(config).get_config() == layer.get_config()


def test_keras_file_round_trip(tokenizer, packer, tmp_path):
    inputs = [keras.Input((), dtype="string") for _ in range(2)]
    model = keras.Model(inputs, packer(tuple(tokenizer(text) for text in inputs)))
    model.save(tmp_path / "preprocessor.keras")
    loaded = keras.models.load_model(tmp_path / "preprocessor.keras")
    texts = [tf.constant(["good days", "人"]), tf.constant(["", "gööd!"])]
    for name, value in model(texts).items():
        np.testing.assert_array_equal(loaded(texts)[name], value)


def test_export(tokenizer, packer, tmp_path):
    archive = keras.export.ExportArchive()
    archive.track(tokenizer)
    archive.add_endpoint(
        "serve", lambda text: packer((tokenizer(text),)), [tf.TensorSpec([None], tf.string)]
    )
    archive.write_out(str(tmp_path / "1"), verbose=False)
    # The loader that TF Serving uses.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(tmp_path / "1"))
        signature = loaded.signature_def["serve"]
        (text,) = signature.inputs.values()
        ids = session.run(signature.outputs["token_ids"].name, {text.name: ["good 人", "dÄys"]})
    assert ids.tolist() == [[2, 5, 9, 3], [2, 6, 7, 3]]
