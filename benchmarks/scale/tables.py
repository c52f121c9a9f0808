"""The tables of docs/growth.md, from the figures of growth.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from theory import Sizes, exponent, operations

PAGE = Path(__file__).resolve().parents[2] / "docs" / "growth.md"
BEGIN, END = "<!-- tables: make bench-scale -->", "<!-- end of tables -->"
GIB = 1 << 30


def write_tables(results: Mapping[str, Any]) -> None:
    """Print the tables, and put them into the page."""
    text = "\n\n".join(tables(results))
    print(text, flush=True)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def tables(results: Mapping[str, Any]) -> list[str]:
    """All of them, in Markdown."""
    found = [_machine(results["machine"])]
    if results.get("rows"):
        found += ["### Rows", _rows_table(results["rows"])]
    for name, measured in results.get("steps", {}).items():
        found += [f"### {name.capitalize()}", _steps_table(name, measured)]
    if results.get("cores"):
        found += ["### Cores", _cores_table(results["cores"])]
    return found


def _machine(machine: Mapping[str, Any]) -> str:
    load = machine["load_before"][0]
    return (
        f"Measured on {machine['cpus']} cores of {machine['cpu']}; load average before: {load:.1f}"
        f"{' (others were at work: read the shape, not the seconds)' if load > 1 else ''}."
    )


def _rows_table(measured: Sequence[Mapping[str, Any]]) -> str:
    head = ("rows", "seconds to the first step", "again, from the cache", "peak memory, GiB",
            "of the whole run")  # fmt: skip
    rows = [
        (
            f"{of['rows']:,}",
            f"{of['first']['seconds']:.1f}",
            f"{of['again']['seconds']:.1f}",
            f"{of['steps']['peak_memory'] / GIB:.2f}",
            f"{of['end']['peak_memory'] / GIB:.2f}" if "end" in of else "",
        )
        for of in measured
    ]
    return markdown(head, rows)


def _steps_table(name: str, measured: Sequence[Mapping[str, Any]]) -> str:
    head = (name, "ms a step", "times the one before", "in theory", "GFLOP/s")
    sizes = [Sizes(**{field: of[field] for field in Sizes.__dataclass_fields__}) for of in measured]
    costs = [operations(of) for of in sizes]
    times = [of["milliseconds"] for of in measured]
    rows = [
        (
            f"{of[name]:,}",
            f"{time:.1f}",
            f"{time / times[at - 1]:.2f}" if at else "",
            f"{costs[at] / costs[at - 1]:.2f}" if at else "",
            f"{costs[at] / time / 1e6:.0f}",
        )
        for at, (of, time) in enumerate(zip(measured, times, strict=True))
    ]
    values = [of[name] for of in measured]
    slope = (
        f"From first to last a step's time grows with the power {exponent(values, times):.2f} of "
        f"{name}; in theory with {exponent(values, costs):.2f}."
    )
    return f"{markdown(head, rows)}\n\n{slope}"


def _cores_table(measured: Sequence[Mapping[str, Any]]) -> str:
    head = ("cores", "ms a step", "times as fast", "in theory")
    first = measured[0]
    rows = [
        (
            str(of["cores"]),
            f"{of['milliseconds']:.1f}",
            f"{first['milliseconds'] / of['milliseconds']:.2f}",
            f"{of['cores'] / first['cores']:.2f}",
        )
        for of in measured
    ]
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
