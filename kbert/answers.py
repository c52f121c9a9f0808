"""What a model answers to probe texts, and how the answers of two models compare.

Needs numpy alone, neither TensorFlow nor Keras.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

BOUND = 1e-5
"""Largest difference allowed, times the reference's largest absolute value where that is over 1."""
IDS = ("token_ids", "segment_ids")


@dataclass(frozen=True)
class Answers:
    """What a model answers to probe texts."""

    ids: dict[str, list[list[int]]]
    """token_ids and segment_ids of each probe, without padding; those of several windows after
    each other."""
    outputs: dict[str, np.ndarray]
    """The outputs by name, each (probes, ...); strings are `str` in object arrays."""


@dataclass(frozen=True)
class Comparison:
    """How the answers of a model compare with a reference's, probe by probe."""

    same_ids: np.ndarray
    """Whether token_ids and segment_ids are the same, bool (probes,)."""
    differences: dict[str, np.ndarray]
    """Of each float output (probes,): the largest, over max(1, largest absolute reference)."""
    changed: dict[str, np.ndarray]
    """Of each other output, int (probes,): how many values are others, ties left out."""

    @property
    def rows(self) -> np.ndarray:
        """The largest difference of each probe, (probes,)."""
        return np.max([np.zeros(len(self.same_ids)), *self.differences.values()], axis=0)

    @property
    def same_values(self) -> np.ndarray:
        """Whether all strings and whole numbers are the same, bool (probes,)."""
        return np.sum([np.zeros(len(self.same_ids)), *self.changed.values()], axis=0) == 0

    def problem(self, bound: float) -> str:
        """What is wrong first, in a few words; "" where the answers are the same."""
        if problem := self.numbers_problem(bound):
            return problem
        for name, counts in self.changed.items():
            if counts.any():
                return f"{name} has {counts.sum()} other values"
        return ""

    def numbers_problem(self, bound: float) -> str:
        """What is wrong first with ids and floats, whatever strings and whole numbers are."""
        if not self.same_ids.all():
            return f"the ids of {np.sum(~self.same_ids)} of {len(self.same_ids)} probes differ"
        for name, rows in self.differences.items():
            if not np.max(rows) <= bound:  # so that NaN is a problem
                return f"{name} is off by {np.max(rows):.2e} (over {bound:g})"
        return ""


def compare(
    ours: Answers, reference: Answers, *, ranked_by: Mapping[str, str], bound: float = BOUND
) -> Comparison:
    """Compare answers with a reference's, in the outputs that the reference has.

    An output that ours lack, or have in another shape, is off by infinity.

    Args:
        ours: The answers; they may have more outputs.
        reference: Answers to the same probes.
        ranked_by: Output of strings or whole numbers -> float output whose largest values chose
            it: where these are a tie within twice the bound, another value is no difference.
        bound: Largest difference that will be allowed.
    """
    same = [
        [left == right for left, right in zip(ours.ids[key], reference.ids[key], strict=True)]
        for key in IDS
    ]
    differences, changed = {}, {}
    for name, theirs in reference.outputs.items():
        values = ours.outputs.get(name, np.zeros(0))
        if np.issubdtype(theirs.dtype, np.floating):
            differences[name] = _row_differences(values, theirs)
        else:
            ranking = reference.outputs.get(ranked_by.get(name, ""))
            changed[name] = _row_changes(values, theirs, ranking, 2 * bound)
    return Comparison(np.all(same, axis=0), differences, changed)


def scale(array: np.ndarray) -> float:
    """What a difference from an array is divided by: its largest absolute value, at least 1."""
    return max(1.0, float(np.abs(array).max(initial=0.0)))


def without_padding(preprocessed: Mapping[str, np.ndarray]) -> dict[str, list[list[int]]]:
    """The ids of `Answers` from token_ids, segment_ids and padding_mask, int (probes, length).

    Where texts have windows these are (windows, length), and "rows" (windows,) tells whose each is.
    """
    lengths = np.sum(preprocessed["padding_mask"], axis=1)
    rows = preprocessed.get("rows", np.arange(len(lengths)))
    found = {}
    for key in IDS:
        ids: list[list[int]] = [[] for _ in range(rows.max(initial=-1) + 1)]
        for row, values, length in zip(rows, preprocessed[key], lengths, strict=True):
            ids[row] += values[:length].tolist()
        found[key] = ids
    return found


def _row_differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Largest difference of each row over the scale of theirs, (rows,)."""
    if ours.shape != theirs.shape:
        return np.full(len(theirs), math.inf)
    with np.errstate(invalid="ignore"):  # of infinities: NaN is what is wanted
        off = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) / scale(theirs)
    return off.reshape(len(theirs), -1).max(axis=1, initial=0.0)


def _row_changes(
    ours: np.ndarray, theirs: np.ndarray, ranking: np.ndarray | None, tolerance: float
) -> np.ndarray:
    """How many values of each row are others, where no tie explains it; int (rows,)."""
    if ours.shape != theirs.shape:
        return np.full(len(theirs), max(1, theirs[:1].size))
    changed = ours != theirs
    if ranking is not None:
        changed &= ~_tied(ranking, theirs.ndim, tolerance * scale(ranking))
    return changed.reshape(len(theirs), -1).sum(axis=1)


def _tied(ranking: np.ndarray, rank: int, tolerance: float) -> np.ndarray:
    """Where the value that a ranking chose could as well have been another one.

    Args:
        ranking: (..., n) of which the largest chose one value (...); or, falling, the (..., n) of
            n chosen values. What would follow the last is unknown and taken as 0; a 0 itself
            is no choice but filling up.
        rank: Number of axes of what was chosen.
        tolerance: Values that are no further apart are a tie.
    """
    if ranking.ndim > rank:
        rising = np.sort(np.insert(ranking, 0, -math.inf, axis=-1), axis=-1)
        return rising[..., -1] - rising[..., -2] <= tolerance
    close_to_next = -np.diff(ranking, axis=-1, append=0.0) <= tolerance
    close_to_last = np.insert(close_to_next[..., :-1], 0, False, axis=-1)
    return (close_to_next | close_to_last) & (ranking > 0)
