"""The table of `make tasks`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from jobs import Job, jobs

RESULTS = Path(__file__).with_name("results.json")
TABLE = Path(__file__).with_name("table.md")
HEAD = ("task", "data", "figure", "kbert", "reference", "minutes")


def write_table(results: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    """Print the table; write it, and the results."""
    lines = [markdown_row(HEAD), markdown_row(["---"] * len(HEAD))]
    lines += [markdown_row(row) for job in jobs() for row in rows_of(job, results)]
    text = "\n".join(lines) + "\n"
    print(text, flush=True)
    content = {"machine": machine, "results": results}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(text, encoding="utf-8")


def results_before() -> list[dict[str, Any]]:
    """What the last table was made of."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["results"] if RESULTS.exists() else []


def rows_of(job: Job, results: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each figure of a job."""
    of_job = [result for result in results if result["job"] == job.name]
    if not of_job:
        return []
    minutes = f"{statistics.fmean(result['seconds'] for result in of_job) / 60:.1f}"
    return [
        [
            job.task if first else "",
            job.data if first else "",
            name.rpartition(".")[2].replace("_", " "),
            spread([result["figures"][name] for result in of_job]),
            reference_of(job, name, results),
            minutes if first else "",
        ]
        for name, first in zip(job.figures, [True, *[False] * len(job.figures)], strict=False)
    ]


def reference_of(job: Job, name: str, results: list[dict[str, Any]]) -> str:
    """The Trainer's figure, where it was asked, or that of the job beside it."""
    if job.beside is None:
        of_job = [result.get("peer", {}) for result in results if result["job"] == job.name]
        found, said = [figures[name] for figures in of_job if name in figures], "Trainer"
    else:
        beside, said = job.beside
        of_job = [result["figures"] for result in results if result["job"] == beside]
        found = [figures[name] for figures in of_job if name in figures]
    return f"{spread(found)} ({said})" if found else ""


def spread(values: list[float]) -> str:
    """A mean, with the standard deviation of several."""
    digits = 2 if max(map(abs, values)) > 1.5 else 4
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown_row(cells: list[str] | tuple[str, ...]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
