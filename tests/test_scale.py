"""The parts of benchmarks/scale that need no measuring: its texts, its theory, its tables."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCALE = Path(__file__).resolve().parents[1] / "benchmarks" / "scale"
MACHINE = {"cpus": 2, "cpu": "a CPU", "load_before": [0.1, 0, 0]}


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCALE.parent))
    monkeypatch.syspath_prepend(str(SCALE))
    import made_texts
    import tables
    import theory

    module = ModuleType("scale")
    module.__dict__.update(made_texts=made_texts, tables=tables, theory=theory)
    return module


def test_made_texts(scale: ModuleType, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    letters = "bcdfghklmn"
    words = [f"{a}{b}{c}" for a in letters for b in "aeiou" for c in letters]
    vocabulary.write_text("\n".join(["[PAD]", "##s", "a", *words]) + "\n", encoding="utf-8")
    paths = [tmp_path / f"{name}.csv" for name in ("first", "second")]
    for path in paths:
        scale.made_texts.write_texts(path, vocabulary, rows=3000, classes=4)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with paths[0].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lengths = np.array([len(row["text"].split()) for row in rows])
    assert len(rows) == 3000
    assert set(Counter(row["label"] for row in rows)) == {f"class 0000{n}" for n in range(4)}
    assert 10 <= np.median(lengths) <= 12
    assert 35 <= np.percentile(lengths, 99) <= 55
    assert {word for row in rows for word in row["text"].split()} <= {*words, "déjà"}
    accented = sum("déjà" in row["text"] for row in rows) / len(rows)
    assert 0.01 < accented < 0.03


def test_operations_are_those_of_the_products(scale: ModuleType) -> None:
    sizes = scale.theory.Sizes(batch=3, length=5, layers=2, hidden=8, classes=7)
    products = [
        *[(3 * 5, 8, 8)] * 4,  # query, key, value, output
        *[(5, 8, 5), (5, 5, 8)] * 3,  # scores and contexts of three texts
        (3 * 5, 8, 32),
        (3 * 5, 32, 8),
    ] * 2 + [(3, 8, 8), (3, 8, 7)]
    forwards = sum(2 * rows * inner * columns for rows, inner, columns in products)
    assert scale.theory.operations(sizes) == 3 * forwards


def test_exponent(scale: ModuleType) -> None:
    assert scale.theory.exponent([2, 5, 20], [3, 7, 300]) == pytest.approx(2)


def test_tables_go_into_the_page(
    scale: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables = scale.tables
    page = tmp_path / "growth.md"
    page.write_text(f"above\n{tables.BEGIN}\nold\n{tables.END}\nbelow\n", encoding="utf-8")
    monkeypatch.setattr(tables, "PAGE", page)
    sizes = {"batch": 32, "length": 32, "hidden": 384, "classes": 10}
    started = {"seconds": 1.25, "peak_memory": 3 * tables.GIB // 2}
    results = {
        "machine": MACHINE,
        "rows": [
            {"rows": 1000, "first": started, "again": started, "steps": started, "end": started}
        ],
        "steps": {
            "layers": [
                {**sizes, "layers": 2, "milliseconds": 10.0},
                {**sizes, "layers": 4, "milliseconds": 15.0},
            ]
        },
        "cores": [{"cores": 1, "milliseconds": 9.0}, {"cores": 2, "milliseconds": 6.0}],
    }
    for _ in range(2):  # a second time it is replaced
        tables.write_tables(results)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    assert text.count("| 1,000 | 1.2 | 1.2 | 1.50 | 1.50 |") == 1
    assert "| 4 | 15.0 | 1.50 | 2.00 |" in text
    assert "| 2 | 6.0 | 1.50 | 2.00 |" in text
    assert "with the power 0.58 of layers; in theory with 1.00." in text
