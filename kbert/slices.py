"""Slices of a split, by length, label or a column of the data, and how a model does on each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kbert.metrics import classification_figures

BUCKETS = 5
MOST_VALUES = 20
LONGEST_NAME = 60  # characters
DEVIATIONS = 1.959963984540054  # within which a normal variable is in 95% of the cases


@dataclass(frozen=True, eq=False)
class Slice:
    """Some rows of a split."""

    name: str
    """For people, such as "1-16 word pieces"."""
    positions: np.ndarray
    """Which rows of the split, ascending, int64 (rows,)."""


def by_length(lengths: np.ndarray) -> list[Slice]:
    """About five slices of about as many rows each, from short to long.

    Args:
        lengths: Word pieces of each row, int (rows,).
    """
    slices = []
    first = int(lengths.min()) if len(lengths) else 0
    for last, positions in _quantile_buckets(lengths):
        shown = f"{first}-{last:.0f}" if first < last else f"{last:.0f}"
        slices.append(Slice(f"{shown} word piece{'s' if last != 1 else ''}", positions))
        first = int(last) + 1
    return slices


def by_label(labels: np.ndarray, names: Sequence[str]) -> list[Slice]:
    """One slice a label that has rows, in the order of the names.

    Args:
        labels: Index of each row's label, int (rows,).
        names: Names of the labels.
    """
    places = [(name, np.flatnonzero(labels == index)) for index, name in enumerate(names)]
    return [Slice(name, positions) for name, positions in places if len(positions)]


def by_column(values: Sequence[str]) -> list[Slice]:
    """Slices by the value of a column.

    Numbers of more than twenty values become about five ranges of about as many rows. Of other
    values the twenty most frequent have a slice each, and all the rest have one together.
    Rows without a value are a slice as well.
    """
    whole = np.array(values, object)
    counts = Counter(value for value in values if value.strip())
    slices = _ranges(whole) if len(counts) > MOST_VALUES and all(map(_is_number, counts)) else []
    slices = slices or _frequent(whole, counts)
    empty = np.flatnonzero([not value.strip() for value in values])
    return [*slices, *([Slice("(empty)", empty)] if len(empty) else [])]


def slice_table(
    slices: Sequence[Slice],
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    num_classes: int,
    baseline: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """How a model does on each slice.

    Args:
        slices: Slices of the split.
        labels: Class index of each row, int (rows,).
        predictions: Predicted class index of each row, int (rows,).
        num_classes: Number of classes.
        baseline: The baseline's predictions, int (rows,); None where there is no baseline.

    Returns:
        For each slice: slice (its name), rows, accuracy, accuracy_interval ([low, high], 95%, as
        `wilson_interval`), f1_macro, and baseline_accuracy where there is a baseline. f1_macro is
        None where all rows have one label: every class predicted by mistake would count as 0.
    """
    table = []
    for part in slices:
        own, guesses = labels[part.positions], predictions[part.positions]
        summary = classification_figures(own, guesses, num_classes=num_classes).summary()
        row = {
            "slice": part.name,
            "rows": len(own),
            "accuracy": summary["accuracy"],
            "accuracy_interval": list(wilson_interval(int((own == guesses).sum()), len(own))),
            "f1_macro": summary["f1_macro"] if len(np.unique(own)) > 1 else None,
        }
        if baseline is not None:
            row["baseline_accuracy"] = float(np.mean(baseline[part.positions] == own))
        table.append(row)
    return table


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """The 95% interval of a share, after Wilson (1927); sound for few rows, for none and all right.

    Args:
        right: Rows that are right.
        rows: Rows, at least 1.
    """
    share, square = right / rows, DEVIATIONS**2
    centre = (share + square / (2 * rows)) / (1 + square / rows)
    spread = math.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    half = DEVIATIONS * spread / (1 + square / rows)
    low = 0.0 if right == 0 else centre - half  # exact where rounding would be seen
    return low, 1.0 if right == rows else centre + half


def _quantile_buckets(numbers: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """(largest number, positions) of each bucket, rising; equal numbers share one."""
    if not len(numbers):
        return []
    shares = np.arange(1, BUCKETS + 1) / BUCKETS
    ends = np.unique(np.quantile(numbers, shares, method="inverted_cdf"))
    buckets = np.searchsorted(ends, numbers)
    return [(float(end), np.flatnonzero(buckets == index)) for index, end in enumerate(ends)]


def _ranges(values: np.ndarray) -> list[Slice]:
    """About five slices of numbers; their names are the smallest and the largest in each."""
    there = np.flatnonzero([bool(value.strip()) for value in values])
    numbers = np.array([float(value) for value in values[there]])
    slices = []
    for last, positions in _quantile_buckets(numbers):
        first = numbers[positions].min()
        name = f"{first:.6g} to {last:.6g}" if first < last else f"{last:.6g}"
        slices.append(Slice(name, there[positions]))
    return slices


def _frequent(values: np.ndarray, counts: Counter[str]) -> list[Slice]:
    """The most frequent values first, numbers in their order, then the rest."""
    kept = sorted(counts, key=lambda value: (-counts[value], value))[:MOST_VALUES]
    if all(map(_is_number, counts)):
        kept.sort(key=float)
    slices = [Slice(_shortened(value), np.flatnonzero(values == value)) for value in kept]
    others = counts.keys() - set(kept)
    if others:
        rest = np.flatnonzero([value in others for value in values])
        slices.append(Slice(f"(the other {len(others):,} values)", rest))
    return slices


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _shortened(value: str) -> str:
    line = " ".join(value.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1]}…"
