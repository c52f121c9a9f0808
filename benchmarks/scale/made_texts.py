"""Files of made-up texts of any number of rows, of words of a vocabulary.

Lengths are those of titles and short messages: a log-normal distribution, half of the texts under
`MEDIAN_WORDS` words, one in a hundred over four times as many. Words are as frequent as Zipf's law
has it; each class has a few of its own. One text in fifty holds a letter that is no ASCII.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

ROWS_A_BATCH = 100_000
MEDIAN_WORDS = 11
SPREAD = 0.6  # of the logarithm of the number of words
MOST_WORDS = 200
OWN_WORDS = 20  # of a class
OWN_SHARE = 0.08  # of the words of a text
ACCENTED = "déjà"
ACCENTED_SHARE = 0.02  # of the texts


def write_texts(path: Path, vocabulary: Path, *, rows: int, classes: int, seed: int = 0) -> None:
    """A CSV file with the columns text and label; the same arguments give the same bytes.

    Args:
        path: The file.
        vocabulary: A vocab.txt, whose lower-case English words are taken.
        rows: How many.
        classes: How many labels, which are equally frequent.
        seed: Of all that is drawn.
    """
    words = _words(vocabulary)
    generator = np.random.default_rng(seed)
    schema = pa.schema([("text", pa.string()), ("label", pa.string())])
    beside = path.with_name(f"{path.name}.part")
    with pyarrow.csv.CSVWriter(beside, schema) as writer:
        for start in range(0, rows, ROWS_A_BATCH):
            size = min(ROWS_A_BATCH, rows - start)
            writer.write_batch(_batch(generator, words, size, classes, schema))
    beside.rename(path)


def _words(vocabulary: Path) -> pa.Array:
    """Words of three letters or more, then one with accents."""
    tokens = vocabulary.read_text(encoding="utf-8").split("\n")
    words = [token for token in tokens if token.isascii() and token.isalpha() and len(token) > 2]
    return pa.array([*words, ACCENTED], pa.string())


def _batch(
    generator: np.random.Generator, words: pa.Array, rows: int, classes: int, schema: pa.Schema
) -> pa.RecordBatch:
    plain = len(words) - 1
    logarithms = generator.normal(np.log(MEDIAN_WORDS), SPREAD, rows)
    lengths = np.clip(np.exp(logarithms), 1, MOST_WORDS).astype(np.int64)
    labels = generator.integers(classes, size=rows)
    total = int(lengths.sum())
    # Zipf's law: the logarithm of a word's rank is evenly spread
    ranks = np.floor(np.exp(generator.random(total) * np.log(plain))).astype(np.int64) - 1
    own = generator.random(total) < OWN_SHARE
    of_class = np.repeat(labels, lengths)[own] * OWN_WORDS
    ranks[own] = (plain // 2 + of_class + generator.integers(OWN_WORDS, size=own.sum())) % plain
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ranks[starts[:-1][generator.random(rows) < ACCENTED_SHARE]] = plain
    lists = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), words.take(pa.array(ranks)))
    texts = pc.binary_join(lists, " ")
    names = pa.array([f"class {number:05d}" for number in range(classes)], pa.string())
    return pa.RecordBatch.from_arrays([texts, names.take(pa.array(labels))], schema=schema)
