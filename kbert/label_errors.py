"""Rows whose label is likely wrong, by what a model says of them; numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDING = 1e-6
"""What a mean of equal probabilities may be above each of them."""


class Suspect(NamedTuple):
    """A row whose label is likely wrong."""

    position: int
    """Place of the row among those that were given, from 0."""
    suggested: int
    """Index of the class that the row likely is of."""
    probability: float
    """What the model gives to that class."""


def likely_label_errors(labels: np.ndarray, probabilities: np.ndarray) -> list[Suspect]:
    """Rows that are likely of another class than their label says, the most likely first.

    Confident learning in its simple form: a class is confident of a row if it has at least the
    mean probability that the class has on the rows labelled with it. A row whose most probable
    confident class is not its label, and is more probable than it, is a suspect; suspects are
    ranked by how much more. A class without rows is never suggested.

    Source: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in
    dataset labels" (the off-diagonal of the confident joint; no pruning by noise rate).

    Args:
        labels: Class index of each row, int (rows,).
        probabilities: (rows, classes), from a model that was not trained on these rows: one
            that was has learnt the wrong labels too.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if not len(labels):
        return []
    rows = np.arange(len(labels))
    of_label = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=of_label, minlength=probabilities.shape[1])
    needed = np.divide(sums, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    confident = np.where(probabilities >= needed - ROUNDING, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    margins = confident[rows, suggested] - of_label  # 0 for the label itself, below 0 for none
    suspects = np.flatnonzero(margins > 0)
    return [
        Suspect(int(row), int(suggested[row]), float(probabilities[row, suggested[row]]))
        for row in suspects[np.argsort(-margins[suspects], kind="stable")]
    ]
