"""The texts that are trained on and answered."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from quality import DATA, OUT, checkpoint
from rounds import read_lines

ROWS = 60 * 32
MAX_LENGTHS = {"sst2": 64, "clinc150": 64, "spamassassin": 128}
"""The data sets, and the most word pieces of their texts."""


@functools.cache
def texts(name: str, count: int = ROWS) -> Path:
    """So many rows of its training data, evenly spaced, as texts and labels."""
    path = OUT / f"bench-{name}-{count}.jsonl"
    rows = list(READERS[name](DATA / name))
    kept = [rows[row * len(rows) // count] for row in range(count)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in kept]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_sst2(folder: Path) -> list[tuple[str, str]]:
    """A TSV file without quoting."""
    lines = (folder / "train.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [tuple(line.split("\t")) for line in lines[1:]]


def read_clinc150(folder: Path) -> list[tuple[str, str]]:
    """A text and its intent a line."""
    return [(row["text"], row["intent"]) for row in read_lines(folder / "train.jsonl")]


def read_spamassassin(folder: Path) -> list[tuple[str, str]]:
    """Subject and body as one text."""
    rows = read_lines(folder / "train.jsonl")
    return [(f"{row['subject']} {row['body']}", row["label"]) for row in rows]


READERS = {"sst2": read_sst2, "clinc150": read_clinc150, "spamassassin": read_spamassassin}


def word_pieces(name: str) -> list[int]:
    """Those of each text, with [CLS] and [SEP], cut as it is trained."""
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(checkpoint())
    kept = [row["text"] for row in read_lines(texts(name))]
    ids = tokenizer(kept, truncation=True, max_length=MAX_LENGTHS[name])["input_ids"]
    return [len(row) for row in ids]
