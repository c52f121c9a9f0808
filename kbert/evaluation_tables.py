"""What is measured of a split as tables for the terminal, from the blocks of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kbert.paired_tests import McNemar, verdict
from kbert.tasks.task import Table

MOST_CLASSES = 20  # of a confusion matrix that is printed
CALIBRATION = ("ece", "log_loss")


def classes_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Overall figures, figures of each class, the confusion matrix of up to twenty classes.

    Args:
        metrics: A split's block of metrics.json; intervals and baseline are shown where they are.
    """
    tables = [overall_table(metrics), class_table(metrics)]
    labels = metrics["labels"]
    if len(labels) <= MOST_CLASSES:
        counts = zip(labels, metrics["confusion_matrix"], strict=True)
        title = "confusion matrix (rows: label, columns: prediction)"
        tables.append(Table(title, ("", *labels), [(label, *row) for label, row in counts]))
    return tables


def overall_table(metrics: Mapping[str, Any]) -> Table:
    """One row a figure: its value, its interval, the same of the baseline."""
    sides = {"BERT": metrics}
    if metrics.get("baseline"):
        sides["linear model"] = metrics["baseline"]
    columns = [""]
    for name, block in sides.items():
        columns += [name, *(["95% interval"] if block.get("intervals") else [])]
    rows = []
    for figure in _figures(metrics):
        row: list[Any] = [figure]
        for block in sides.values():
            row.append(_cell(block.get(figure)))
            if block.get("intervals"):
                row.append(interval_cell(block["intervals"].get(figure)))
        rows.append(tuple(row))
    return Table(f"overall, {metrics['rows']:,} rows", tuple(columns), rows)


def verdict_line(metrics: Mapping[str, Any], split: str) -> str | None:
    """Whether BERT beats the linear model beside it; None where there is none.

    Args:
        metrics: The split's block of metrics.json.
        split: Its name.
    """
    paired = metrics.get("paired")
    if not paired:
        return None
    test = McNemar(paired["only_ours"], paired["only_baseline"], paired["p_value"])
    said = verdict(test, rows=metrics["rows"], split=split)
    return f"{said.title} {said.text}"


def scope_table(block: Mapping[str, Any]) -> Table:
    """What `kbert.scope.scope_report` gives."""
    rows = [
        (name.replace("_", " "), _cell(value))
        for name, value in block.items()
        if name not in ("threshold", "rows")
    ]
    title = f"out of scope: no probability of {block['threshold']:.4f}, {block['rows']:,} rows"
    return Table(title, ("", "BERT"), rows)


def slices_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `kbert.slices.slice_table` gives."""
    columns: tuple[str, ...] = ("", "rows", "accuracy", "95% interval", "f1_macro")
    if any("baseline_accuracy" in row for row in rows):
        columns += ("accuracy of the linear model",)
    shown = [
        (
            row["slice"],
            row["rows"],
            row["accuracy"],
            interval_cell(row["accuracy_interval"]),
            _cell(row["f1_macro"]),
            _cell(row.get("baseline_accuracy")),
        )[: len(columns)]
        for row in rows
    ]
    return Table(f"by {name}", columns, shown)


def calibration_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Confidence against accuracy, and the errors before and after the temperature if any."""
    found = metrics["reliability"]
    edges = zip(found["edges"], found["edges"][1:], strict=False)
    bins = zip(edges, found["counts"], found["confidence"], found["accuracy"], strict=True)
    rows = [
        (f"{low:.2f}-{high:.2f}", count, confidence, accuracy)
        for (low, high), count, confidence, accuracy in bins
        if count
    ]
    title = f"calibration: expected calibration error {found['ece']:.4f}"
    columns = ("", "rows", "mean confidence", "accuracy")
    tables = [Table(title, columns, rows)]
    block = metrics.get("calibration")
    if block:
        used = "applied" if block["applied"] else "not applied: task.calibrate"
        title = f"temperature {block['temperature']:.4f} ({used})"
        changes = [(name, block[f"{name}_before"], block[f"{name}_after"]) for name in CALIBRATION]
        tables.append(Table(title, ("", "before", "after"), changes))
    return tables


def interval_cell(interval: Sequence[float] | None) -> str:
    """Both ends, "" where there is none."""
    return "" if interval is None else f"{interval[0]:.4f} - {interval[1]:.4f}"


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the overall figures, which are all numbers but the number of rows."""
    return [
        name
        for name, value in metrics.items()
        if (value is None or isinstance(value, float)) and name != "rows"
    ]


def class_table(metrics: Mapping[str, Any]) -> Table:
    """One row a class, with the baseline's F1 where there is one."""
    per_class = metrics["per_class"]
    names = list(next(iter(per_class.values())))
    theirs = (metrics.get("baseline") or {}).get("per_class")
    columns = ("class", *names, *(["f1 of the linear model"] if theirs else []))
    rows = [
        (
            label,
            *(_cell(figures[name]) for name in names),
            *([theirs[label]["f1"]] if theirs else []),
        )
        for label, figures in per_class.items()
    ]
    return Table("per class", columns, rows)


def _cell(value: Any) -> Any:
    return "" if value is None else value
