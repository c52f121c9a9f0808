"""What quality.py prints: a line a run, tables of both tools, the goals."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

TOOLS = ("kbert", "trainer")
LARGEST_LOSS = 0.5  # points of mean test accuracy under the Trainer
SMALLEST_RATIO = 1.0  # median of the paired ratios of rows a second, float32

Run = dict[str, Any]
"""settings, accuracies, examples_per_second, seconds, probe_gflops, source."""


def report(run: Run) -> None:
    """One line on a run."""
    settings = run["settings"]
    print(
        f"{settings['set']:9} {settings['tool']:8} {settings['precision']:9} seed "
        f"{settings['seed']}  accuracy {run['test_accuracy']:.4f}  "
        f"{run['examples_per_second']:6.1f} rows/s  {run['seconds']:5.0f} s"
        f"{'  (of an earlier call)' if run.get('earlier') else ''}",
        flush=True,
    )


def summarise(runs: list[Run], machine: Run, path: Path) -> int:
    """Print tables and goals, write them to the file; 1 when a goal is missed."""
    sets = list(dict.fromkeys(run["settings"]["set"] for run in runs))
    rows = [summary(name, pairs(runs, name, "float32")) for name in sets]
    half_sets = [name for name in sets if pairs(runs, name, "bfloat16")]
    halves = [summary(name, pairs(runs, name, "bfloat16")) for name in half_sets]
    accuracy = Table("data set", "kbert", "Trainer", "difference in points", box=box.SIMPLE_HEAD)
    accuracy.title = "test accuracy, float32 (mean ± sd over seeds)"
    speed = Table("data set", "kbert", "Trainer", "ratio, median (min..max)", box=box.SIMPLE_HEAD)
    speed.title = "training rows a second, float32 (mean ± sd over seeds)"
    for row in rows:
        both = [spread(row[tool]["accuracy"], 100, 2) for tool in TOOLS]
        accuracy.add_row(row["set"], *both, f"{row['difference']:+.2f}")
        both = [spread(row[tool]["rows_per_second"], 1, 1) for tool in TOOLS]
        ratios = row["ratios"]
        low, high = min(ratios), max(ratios)
        speed.add_row(row["set"], *both, f"{median(ratios):.2f} ({low:.2f}..{high:.2f})")
    Console(width=100).print(accuracy, speed)
    for row in halves:
        shown = [
            f"{tool} {row[tool]['accuracy'][0]:.4f}, {row[tool]['rows_per_second'][0]:.1f} rows/s"
            for tool in TOOLS
        ]
        print(f"bfloat16, {row['set']}, one run: {'; '.join(shown)}; ratio {row['ratios'][0]:.2f}")
    probes = [run["probe_gflops"] for run in runs]
    print(
        f"noise: numpy matmul before each run, GFLOP/s: min {min(probes):.0f}, median "
        f"{median(probes):.0f}, max {max(probes):.0f}"
    )
    for tool in TOOLS:
        if len({run["source"] for run in runs if run["settings"]["tool"] == tool}) > 1:
            print(f"note: the code of {tool} changed between these runs: --fresh measures anew.")
    goals = [goal for row in rows for goal in goals_of(row)]
    for goal in goals:
        print(f"{'held' if goal['held'] else 'missed':6} {goal['goal']}: {goal['measured']}")
    results = {
        "machine": machine,
        "float32": rows,
        "bfloat16": halves,
        "goals": goals,
        "runs": runs,
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if all(goal["held"] for goal in goals) else 1


def pairs(runs: list[Run], name: str, precision: str) -> list[dict[str, Run]]:
    """The runs of both tools, seed by seed."""
    found: dict[int, dict[str, Run]] = {}
    for run in runs:
        settings = run["settings"]
        if (settings["set"], settings["precision"]) == (name, precision):
            found.setdefault(settings["seed"], {})[settings["tool"]] = run
    return list(found.values())


def summary(name: str, both: list[dict[str, Run]]) -> dict[str, Any]:
    """Figures of a data set."""
    figures = {
        tool: {
            "accuracy": [pair[tool]["test_accuracy"] for pair in both],
            "rows_per_second": [pair[tool]["examples_per_second"] for pair in both],
        }
        for tool in TOOLS
    }
    ours, theirs = (figures[tool] for tool in TOOLS)
    speeds = zip(ours["rows_per_second"], theirs["rows_per_second"], strict=True)
    return {
        "set": name,
        **figures,
        "difference": 100 * (mean(ours["accuracy"]) - mean(theirs["accuracy"])),
        "ratios": [left / right for left, right in speeds],
    }


def goals_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What is promised of a data set, and whether it is so."""
    ratio = median(row["ratios"])
    return [
        {
            "goal": f"{row['set']}: accuracy at most {LARGEST_LOSS} points under the Trainer's",
            "measured": f"{row['difference']:+.2f} points",
            "held": row["difference"] >= -LARGEST_LOSS,
        },
        {
            "goal": f"{row['set']}: float32 rows a second at least {SMALLEST_RATIO} of its",
            "measured": f"{ratio:.2f}",
            "held": ratio >= SMALLEST_RATIO,
        },
    ]


def spread(values: list[float], scale: float, digits: int) -> str:
    """Mean ± sample standard deviation."""
    deviation = f"{scale * stdev(values):.{digits}f}" if len(values) > 1 else "-"
    return f"{scale * mean(values):.{digits}f} ± {deviation}"
