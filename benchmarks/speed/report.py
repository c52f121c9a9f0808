"""The table of `make bench`, in the READMEs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import inference
import training
from texts import ROWS

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh.md")
BEGIN, END = "<!-- what make bench has measured -->", "<!-- end -->"
HEAD = ("work", "texts", "kbert, texts/s", "beside it, texts/s", "times (quartiles)", "goal")
SHARE = 0.6  # of the machine's products


def write_tables(results: dict[str, Any]) -> None:
    """Put the table between the two marks of each README."""
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows(results))
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        before, mark, rest = text.partition(f"{BEGIN}\n")
        _, end, after = rest.partition(END)
        (ROOT / name).write_text(f"{before}{mark}\n{table}\n\n{end}{after}", encoding="utf-8")


def rows(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The head and the lines of the table."""
    yield HEAD
    yield ("---",) * len(HEAD)
    for name, measured in results.get("training", {}).items():
        for tool, ratio in measured["ratios"].items():
            ours, theirs = (
                median(ROWS / of[who]["seconds"] for of in measured["epochs"])
                for who in ("kbert", tool)
            )
            said = measured["trainer"] if tool == "Trainer" else tool
            yield (
                "training", name, f"{ours:.0f}", f"{said} {theirs:.0f}", times(ratio),
                str(training.GOALS[tool]),
            )  # fmt: skip
    for name, measured in results.get("inference", {}).items():
        for work in inference.WORK:
            speeds = measured[work]["texts_per_second"]
            for ratio in measured[work]["ratios"].values():
                ours, theirs = ratio["compared"]
                yield (
                    f"answers, {work}{ours.removeprefix('kbert')}", name,
                    f"{speeds[ours]['median']:.0f}", f"{theirs} {speeds[theirs]['median']:.0f}",
                    times(ratio), str(inference.GOAL),
                )  # fmt: skip


def times(ratio: dict[str, Any]) -> str:
    """A median of paired ratios, with its quartiles."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def goals(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], float]]:
    """What is compared, its median and quartiles, and what they are to reach."""
    for name, measured in results.get("training", {}).items():
        for tool, ratio in measured["ratios"].items():
            yield f"training, {name}, kbert / {tool}", ratio, training.GOALS[tool]
        yield f"training, {name}, share of peak", measured["share_of_peak"], SHARE
    for name, measured in results.get("inference", {}).items():
        for work in inference.WORK:
            for ratio in measured[work]["ratios"].values():
                ours, theirs = ratio["compared"]
                yield f"answers, {name}, {work}, {ours} / {theirs}", ratio, inference.GOAL
        yield f"answers, {name}, share of peak", measured["share_of_peak"], SHARE
