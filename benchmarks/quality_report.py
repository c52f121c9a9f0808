"""What quality.py prints: a line a run, a table of both tools, the goals."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

TOOLS = ("kbert", "trainer")
LARGEST_LOSS = 0.5  # points of mean test accuracy under the Trainer

Run = dict[str, Any]
"""settings, accuracies, seconds, source."""


def report(run: Run) -> None:
    """One line on a run."""
    settings = run["settings"]
    print(
        f"{settings['set']:9} {settings['tool']:8} {settings['precision']:9} seed "
        f"{settings['seed']}  accuracy {run['test_accuracy']:.4f}  "
        f"{run['seconds']:5.0f} s"
        f"{'  (of an earlier call)' if run.get('earlier') else ''}",
        flush=True,
    )


def summarise(runs: list[Run], machine: Run, path: Path) -> int:
    """Print table and goals, write them to the file; 1 when a goal is missed."""
    rows = [
        summary(name, [run for run in runs if run["settings"]["set"] == name])
        for name in dict.fromkeys(run["settings"]["set"] for run in runs)
    ]
    table = Table("data set", "kbert", "Trainer", "difference in points", box=box.SIMPLE_HEAD)
    table.title = "test accuracy in percent (mean ± sd over seeds)"
    for row in rows:
        table.add_row(
            row["set"], *(spread(row[tool]) for tool in TOOLS), f"{row['difference']:+.2f}"
        )
    Console(width=100).print(table)
    for tool in TOOLS:
        if len({run["source"] for run in runs if run["settings"]["tool"] == tool}) > 1:
            print(f"note: the code of {tool} changed between these runs: --fresh measures anew.")
    goals = [goal_of(row) for row in rows]
    for goal in goals:
        print(f"{'held' if goal['held'] else 'missed':6} {goal['goal']}: {goal['measured']}")
    results = {"machine": machine, "sets": rows, "goals": goals, "runs": runs}
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if all(goal["held"] for goal in goals) else 1


def summary(name: str, runs: list[Run]) -> dict[str, Any]:
    """Accuracies of a data set, of each tool seed by seed, and the difference of their means."""
    accuracies = {
        tool: [run["test_accuracy"] for run in runs if run["settings"]["tool"] == tool]
        for tool in TOOLS
    }
    ours, theirs = (mean(accuracies[tool]) for tool in TOOLS)
    return {"set": name, **accuracies, "difference": 100 * (ours - theirs)}


def goal_of(row: dict[str, Any]) -> dict[str, Any]:
    """What is promised of a data set, and whether it is so."""
    return {
        "goal": f"{row['set']}: accuracy at most {LARGEST_LOSS} points under the Trainer's",
        "measured": f"{row['difference']:+.2f} points",
        "held": row["difference"] >= -LARGEST_LOSS,
    }


def spread(accuracies: list[float]) -> str:
    """Mean ± sample standard deviation, in percent."""
    deviation = f"{100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else "-"
    return f"{100 * mean(accuracies):.2f} ± {deviation}"
