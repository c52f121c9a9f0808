"""BertTokenizerFast as the reference of the tokenizer, and the texts that both are given."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from kbert.preprocessing import WordPieceTokenizer

# BertTokenizerFast calls the first do_lower_case
SETTINGS = [
    {"lowercase": lowercase, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    for lowercase, strip, chinese in product((True, False), (None, True, False), (True, False))
]
# Where scripts start that have something to normalise
FIRST_CODE_POINTS = (0, 0, 0, 0, 0x80, 0x100, 0x300, 0x370, 0x400, 0x5D0, 0x620, 0x8D0, 0x900)
FIRST_CODE_POINTS += (0xE00, 0x1100, 0x1B40, 0x1E00, 0x1F00, 0x2000, 0x2100, 0x3000, 0x3040)
FIRST_CODE_POINTS += (0x4E00, 0xA9C0, 0xAC00, 0xD780, 0xE000, 0xF900, 0xFB00, 0xFE00, 0xFF00)
FIRST_CODE_POINTS += (0xFFF0, 0x11440, 0x1D150, 0x1D400, 0x1E000, 0x1E940, 0x1F600, 0x20000)
FIRST_CODE_POINTS += (0x2F800, 0x50000, 0xE0000, 0xF0000, 0x10FF80)
BLOCKS = (*range(0, 0x3400, 0x80), *range(0xA000, 0xAC00, 0x80), *range(0x10000, 0x20000, 0x80))
# Of all kinds of canonical ordering: decomposing, kept, stripped, cleaned away, and not at all
MARKS = "\u0301\u0327\u0344\u0345\u0cbf\u0cc0\u0f73\u0f81\u1b44\u1baa\u302e\ufe0f\u200d\x01\u00ad"
MARKS += "\U0001d15e\U0001d165\U0001e944\U0001e94a"
WORDS = ["[MASK]", "[SEP]", "[mask]", "[MA\0SK]", "\0", "\n", " ", "\u200b", "\ufffd", "é" * 60]
WORDS += ["x" * 100, "x" * 101, "人" * 101, "中", "豈", "각", "\u1100\u1161\u11a8", "é", "a", "!"]
WORDS += ["İ", "ß", "ﬁ", "\ud7ff\ue000", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "#️⃣", *MARKS]


def reference(path: Path, *, lowercase: bool = True, **options: Any):
    """The reference with our names for its options."""
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizerFast(str(path), do_lower_case=lowercase, **options)


def traced(function: Callable) -> Callable:
    """A function of a batch of strings as a graph."""
    return tf.function(function, input_signature=[tf.TensorSpec([None], tf.string)])


def random_text(generator: random.Random) -> str:
    """A text of up to a few dozen characters over all scripts."""
    parts = []
    for _ in range(generator.randint(0, 12)):
        if generator.random() < 0.3:
            parts += generator.choices(WORDS, k=generator.randint(1, 3))
        first = generator.choice(FIRST_CODE_POINTS if generator.random() < 0.7 else BLOCKS)
        codes = [first + generator.randrange(128) for _ in range(generator.randint(1, 6))]
        codes = [code for code in codes if not 0xD800 <= code < 0xE000]
        parts.append("".join(map(chr, codes)) + generator.choice(["", "", " "]))
    return "".join(parts)


def random_bytes(generator: random.Random) -> bytes:
    """Bytes of which most are not UTF-8: parts of characters, surrogates, overlong forms."""
    parts = [b"[MASK]", b"good", b" ", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\0"]
    parts += ["é".encode(), "人".encode(), "😀".encode(), b"\xe4\xba", b"\xf0\x9f\x98", b"\xf0\x9f"]
    parts += [bytes([generator.randrange(256)]) for _ in range(5)]
    return b"".join(generator.choices(parts, k=generator.randint(0, 9)))


def random_marks(generator: random.Random) -> str:
    """A text that is all combining marks, and what they combine with."""
    letters = [*MARKS, "a", "é", "!", " ", "中", "각", "[SEP]"]
    return "".join(generator.choices(letters, k=generator.randint(1, 12)))


def differing_texts(
    ours: WordPieceTokenizer, theirs: Any, texts: list[str] | list[bytes], *, batch_size: int = 1024
) -> Iterator[str | bytes]:
    """Texts of which ids or offsets differ; the reference is given bytes decoded."""
    tokenize, with_offsets = traced(ours), traced(ours.tokenize_with_offsets)
    for first in range(0, len(texts), batch_size):
        batch = texts[first : first + batch_size]
        strings = tf.constant(batch)
        columns = [tokenize(strings), *with_offsets(strings)]
        decoded = [
            text.decode(errors="replace") if isinstance(text, bytes) else text for text in batch
        ]
        # What the reference's own call calls; it only puts the rows into lists.
        expected = theirs.backend_tokenizer.encode_batch(decoded, add_special_tokens=False)
        splits = np.cumsum([0, *(len(row) for row in expected)])
        ids = np.fromiter(chain.from_iterable(row.ids for row in expected), np.int32)
        offsets = chain.from_iterable(chain.from_iterable(row.offsets for row in expected))
        starts, ends = np.fromiter(offsets, np.int32).reshape(-1, 2).T
        if all(
            np.array_equal(column.row_splits, splits) and np.array_equal(column.values, values)
            for column, values in zip(columns, (ids, ids, starts, ends), strict=True)
        ):
            continue
        rows = zip(batch, expected, *(column.to_list() for column in columns), strict=True)
        for text, row, alone, ids, starts, ends in rows:
            spans = list(zip(starts, ends, strict=True))
            if not (alone == ids == row.ids and spans == row.offsets):
                yield text


def assert_same_tokens(
    ours: WordPieceTokenizer, theirs: Any, texts: list[str] | list[bytes]
) -> None:
    """Ids and offsets of all texts are the same."""
    differing = list(differing_texts(ours, theirs, texts))
    assert not differing, f"{len(differing)} of {len(texts)} differ, {differing[0]!r:.200}"


def texts_of_other_words(ours: WordPieceTokenizer, texts: list[str]) -> Iterator[str]:
    """Texts of which the normalised words differ; no vocabulary plays a part."""
    tokenizers = pytest.importorskip("tokenizers")
    normalize = tokenizers.normalizers.BertNormalizer(
        lowercase=ours.lowercase,
        strip_accents=ours.strip_accents,
        handle_chinese_chars=ours.tokenize_chinese_chars,
    ).normalize_str
    split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    # What `call` does before: a NUL does not get as far as the words.
    pieces = tf.constant([text.replace("\0", "\x01") for text in texts])
    words = ours._split_into_words(pieces, tf.fill([len(texts)], False))
    rows = tf.RaggedTensor.from_row_splits(words.texts, words.splits).to_list()
    for text, row in zip(texts, rows, strict=True):
        if [word.decode() for word in row] != [word for word, _ in split(normalize(text))]:
            yield text


def special_token_ids(tokenizer: WordPieceTokenizer) -> dict[str, int]:
    """What the packers need of a tokenizer."""
    names = ("cls_token_id", "sep_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def pairs_of_all_lengths(longest: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of texts of 0 to `longest` words, which are one or two tokens each."""
    generator = random.Random(seed)
    words = ["good", "day", "tokenizers", "!"]
    lengths = range(longest + 1)
    return [
        (" ".join(generator.choices(words, k=a)), " ".join(generator.choices(words, k=b)))
        for a in lengths
        for b in lengths
    ]


def pack(ours: WordPieceTokenizer, packer: Callable, texts: list[tuple[str, ...]]) -> dict:
    """What a packer makes of texts or pairs."""
    return packer(tuple(ours(tf.constant(column)) for column in zip(*texts, strict=True)))


def packed_rows(packed: dict[str, tf.Tensor]) -> list[tuple[list[int], list[int]]]:
    """token_ids and segment_ids of each row of a packer; the rest must be padding."""
    ids, segments, mask = (
        packed[name].numpy() for name in ("token_ids", "segment_ids", "padding_mask")
    )
    lengths = mask.sum(1)
    assert (mask == (np.arange(mask.shape[1]) < lengths[:, np.newaxis])).all()
    assert not segments[mask == 0].any() and len(set(ids[mask == 0])) <= 1
    assert mask.shape[1] == max(lengths, default=mask.shape[1])
    return [
        (row[:length].tolist(), numbers[:length].tolist())
        for row, numbers, length in zip(ids, segments, lengths, strict=True)
    ]


def reference_row(theirs: Any, texts: tuple[str, ...], **options: Any) -> tuple | None:
    """The reference's ids and segment ids; None where it raises an error."""
    try:
        # In a list, because a second text that is "" is else taken as none.
        encoding = theirs(*([text] for text in texts), **options)
    except Exception as error:
        if str(error).startswith("Truncation error"):
            return None
        raise
    return encoding["input_ids"][0], encoding["token_type_ids"][0]


def differing_windows(
    theirs: Any, packed: dict, texts: list[tuple[str, ...]], *, max_length: int, stride: int
) -> list[tuple[str, ...]]:
    """Texts or pairs of which the windows differ from the reference's."""
    rows, places = packed_rows(packed), {number: [] for number in range(len(texts))}
    for window, row in enumerate(packed["rows"].numpy()):
        places[row].append(window)
    assert packed["rows"].numpy().tolist() == sorted(packed["rows"].numpy())
    differing = []
    for text, windows in zip(texts, places.values(), strict=True):
        expected = reference_windows(theirs, text, max_length=max_length, stride=stride)
        starts = packed["starts"].numpy()[windows].tolist()
        if expected and [(*rows[n], start) for n, start in zip(windows, starts, strict=True)] != [
            *expected
        ]:
            differing.append(text)
    return differing


def reference_windows(
    theirs: Any, texts: tuple[str, ...], *, max_length: int, stride: int
) -> list[tuple[list[int], list[int], int]] | None:
    """Ids, segment ids and the first token's place of each window; None where it would panic."""
    lengths = [len(theirs.tokenize(text)) for text in texts]
    window = max_length - len(texts) - 1 - sum(lengths[:-1])
    if lengths[-1] > window and window <= stride:
        return None
    windows = theirs(
        *([text] for text in texts),
        truncation=("only_first", "only_second")[len(texts) - 1],
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    whole = theirs(texts[-1], add_special_tokens=False, return_offsets_mapping=True)
    first_places = {start: place for place, (start, _) in enumerate(whole["offset_mapping"])}
    starts = []
    for encoding in windows.encodings:
        spans = zip(encoding.offsets, encoding.sequence_ids, strict=True)
        own = [start for (start, _), text in spans if text == len(texts) - 1]
        starts.append(first_places[own[0]] if own else 0)
    return list(zip(windows["input_ids"], windows["token_type_ids"], starts, strict=True))


def data_files(folder: Path) -> list[Path]:
    """The files of the public data sets."""
    return [
        path for path in sorted(folder.glob("*/*")) if path.suffix in (".tsv", ".csv", ".jsonl")
    ]


def file_texts(path: Path) -> list[str]:
    """Every value of a file, of every row and column."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            values = [value for line in file for value in json.loads(line).values()]
            return [" ".join(value) if isinstance(value, list) else str(value) for value in values]
        csv.field_size_limit(10**9)
        quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
        delimiter = "\t" if path.suffix == ".tsv" else ","
        rows = csv.reader(file, delimiter=delimiter, quoting=quoting)
        return [text for row in rows for text in row]
