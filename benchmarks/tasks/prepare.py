"""Data that recipes want in another form than it lies in ../shared/data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "recipes"))

from demo import write_articles  # noqa: E402

SHARED = ROOT.parent / "shared"
DATA = SHARED / "data"
OUT = ROOT / "runs" / "tasks"
PREPARED = OUT / "data"
SPLITS = ("train", "valid", "test")


def prepare() -> None:
    """Write what is not there yet."""
    PREPARED.mkdir(parents=True, exist_ok=True)
    articles = PREPARED / "bbc.csv"
    if not articles.exists():
        write_articles(articles)
    for folder, rows_of in (("clinc150", clinc_rows), ("atis_intents", atis_rows)):
        for split in SPLITS:
            path = PREPARED / folder / f"{split}.jsonl"
            if not path.exists():
                write_json_lines(path, rows_of(split))
    if not (PREPARED / "questions" / "test.jsonl").exists():
        command = [sys.executable, str(ROOT / "recipes" / "make_questions.py")]
        subprocess.run([*command, str(PREPARED / "questions")], check=True)


def clinc_rows(split: str) -> list[dict[str, Any]]:
    """Intents, and in validation and test the rows that are out of scope."""
    rows = read_json_lines(DATA / "clinc150" / f"{split}.jsonl")
    if split == "train":
        return rows
    return rows + read_json_lines(DATA / "clinc150" / f"oos_{split}.jsonl")


def atis_rows(split: str) -> list[dict[str, Any]]:
    """Texts with their intents, of which some have two: airfare#flight."""
    return [
        {"text": " ".join(row["tokens"]), "intents": row["intent"]}
        for row in read_json_lines(DATA / "atis" / f"{split}.jsonl")
    ]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write objects, one a line; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    beside.rename(path)
