"""The table of serve/CONTRACT.md: every item that is held names a test, and the test is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "serve" / "CONTRACT.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [
        [cell.strip() for cell in row]
        for row in cells
        if not set(row[0].strip()) <= set("-:") and row[-1].strip() != "test"
    ]


@cache
def tests_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_is_a_table():
    assert len(rows()) > 150
    assert {len(row) for row in rows()} == {3}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_an_item_is_held_and_tested_or_says_why_not(row: list[str]):
    item, held, test = row
    assert item
    named = TEST.findall(test)
    if held == "held":
        assert named, "no test is named"
    else:
        assert held.startswith("not held: "), held
    for path, name in named:
        assert name in tests_of(path), f"{path} has no {name}"
