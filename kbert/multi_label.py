"""Figures of any number of labels a text, and the thresholds that choose them.

Numpy and scikit-learn alone, neither TensorFlow nor Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn import metrics

DEFAULT_THRESHOLD = 0.5
FIGURES = ("precision", "recall", "f1")


def fit_thresholds(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The threshold of each class: the best one, or 0.5 where that has not proved itself.

    Two rows of a class are enough for any threshold to look good. So `best_thresholds` of every
    other row are tried on the rows between, and the other way round: where a class's choices gain
    nothing over those by 0.5 there, it keeps 0.5; else it has the best threshold of all rows.

    Args:
        labels: 1 where a row is of the class, else 0, (rows, classes); of rows that the model was
            not trained on.
        logits: (rows, classes), finite.

    Returns:
        float64 (classes,), each in (0, 1): a class is chosen where its probability is not below.
    """
    positive, probabilities = np.asarray(labels, bool), expit(np.asarray(logits, np.float64))
    best = best_thresholds(labels, logits)
    chosen = (probabilities >= best, probabilities >= DEFAULT_THRESHOLD)
    ratio = max(_micro_f1(positive, found) for found in chosen)
    gains = np.zeros(len(best))
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - half.start, None, 2)
        tried = best_thresholds(labels[half], logits[half])
        gains += _worth(positive[other], probabilities[other] >= tried, ratio)
        gains -= _worth(positive[other], probabilities[other] >= DEFAULT_THRESHOLD, ratio)
    return np.where(gains > 0, best, DEFAULT_THRESHOLD)


def best_thresholds(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The thresholds of all classes with the best F1 of all decisions together (micro-F1).

    No other thresholds have a better one on these rows. (Each class's own best F1 would give rare
    classes more, and cost all others.) Of equally good thresholds it is that nearest to 0.5; else
    one lies half-way between two probabilities that these rows have, so that no rounding decides.

    The best ratio 2 TP / (positives + chosen) is that F for which the classes' largest
    2 TP - F chosen add up to F positives; each step of Dinkelbach's method comes nearer to it
    (On Nonlinear Fractional Programming, Management Science 13, 1967).

    Args:
        labels: 1 where a row is of the class, else 0, (rows, classes).
        logits: (rows, classes), finite.

    Returns:
        float64 (classes,), each in (0, 1): a class is chosen where its probability is not below.
    """
    positive = np.asarray(labels, bool)
    probabilities = expit(np.asarray(logits, np.float64))
    cuts = [_cuts(*columns) for columns in zip(positive.T, probabilities.T, strict=True)]
    best = [_best_cut(cut, 0.0) for cut in cuts]
    reached = 0.0
    while (found := _reached(best, int(positive.sum()))) > reached + 1e-12:
        reached = found
        best = [_best_cut(cut, reached) for cut in cuts]
    return np.array([threshold for threshold, _, _ in best])


def threshold_logits(thresholds: np.ndarray) -> np.ndarray:
    """The logits of thresholds, float64: near 0 and 1 float32 tells logits apart better."""
    return np.log(thresholds) - np.log1p(-thresholds)


def multi_label_report(
    labels: np.ndarray, chosen: np.ndarray, logits: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """All figures of a split for metrics.json, as scikit-learn has them.

    - precision, recall and f1, each _micro (over all decisions) and _macro (a mean over the
      classes that are among the labels or the choices, as for classification); 0 / 0 is 0.
    - subset_accuracy: share of the rows whose labels are all right.
    - hamming_loss: share of wrong decisions.
    - map: mean average precision, over the classes that have rows; None where none has.

    Then rows, per_class by name (precision, recall, f1, average_precision, rows) and labels.

    Args:
        labels: 1 where a row is of the class, else 0, (rows, classes), with a row at least.
        chosen: 1 where a class is chosen, else 0, (rows, classes).
        logits: (rows, classes).
        names: Name of each class.
    """
    labels, chosen = np.asarray(labels, np.int64), np.asarray(chosen, np.int64)
    per_class = _per_class(labels, chosen, logits)
    micro = _figures(labels.ravel(), chosen.ravel())
    seen = np.any([labels.any(axis=0), chosen.any(axis=0)], axis=0)
    areas = [row["average_precision"] for row in per_class if row["rows"]]
    return {
        **{f"{name}_micro": value for name, value in micro.items()},
        **{f"{name}_macro": _mean_of_seen(per_class, name, seen) for name in FIGURES},
        "subset_accuracy": float((labels == chosen).all(axis=1).mean()),
        "hamming_loss": float((labels != chosen).mean()),
        "map": float(np.mean(areas)) if areas else None,
        "rows": len(labels),
        "per_class": dict(zip(names, per_class, strict=True)),
        "labels": list(names),
    }


def _cuts(positive: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, ...]:
    """A class's thresholds that may be best, those nearest to 0.5 first.

    Beside 0.5 they are those just under a row of the class, and above all rows.

    Args:
        positive: bool (rows,).
        probabilities: float64 (rows,).

    Returns:
        Thresholds, float64; rows of the class that each of them chooses; all that it chooses.
    """
    values = np.r_[0.0, np.unique(probabilities), 1.0]  # ascending
    tops = np.r_[np.unique(probabilities[positive]), 1.0]
    middles = (tops + values[np.searchsorted(values, tops) - 1]) / 2
    thresholds = np.r_[DEFAULT_THRESHOLD, middles]
    thresholds = thresholds[np.argsort(np.abs(thresholds - DEFAULT_THRESHOLD), kind="stable")]
    right, chosen = (
        len(column) - np.searchsorted(np.sort(column), thresholds)
        for column in (probabilities[positive], probabilities)
    )
    return thresholds, right, chosen


def _best_cut(cuts: tuple[np.ndarray, ...], ratio: float) -> tuple[float, int, int]:
    """The cut with the largest 2 TP - ratio * chosen: threshold, TP and chosen."""
    thresholds, right, chosen = cuts
    gain = 2 * right - ratio * chosen
    first = int(np.argmax(gain >= gain.max() - 1e-9))
    return float(thresholds[first]), int(right[first]), int(chosen[first])


def _reached(cuts: list[tuple[float, int, int]], positives: int) -> float:
    """Micro-F1."""
    right, chosen = sum(cut[1] for cut in cuts), sum(cut[2] for cut in cuts)
    return 2 * right / (positives + chosen) if right else 0.0


def _micro_f1(positive: np.ndarray, chosen: np.ndarray) -> float:
    """Of decisions, bool (rows, classes); 0 without a right one."""
    right = (positive & chosen).sum()
    return float(2 * right / (positive.sum() + chosen.sum())) if right else 0.0


def _worth(positive: np.ndarray, chosen: np.ndarray, ratio: float) -> np.ndarray:
    """What each class's choices add to a micro-F1 of `ratio`: float64 (classes,)."""
    return 2 * (positive & chosen).sum(axis=0) - ratio * chosen.sum(axis=0)


def _mean_of_seen(per_class: list[dict[str, Any]], name: str, seen: np.ndarray) -> float:
    values = [row[name] for row, is_seen in zip(per_class, seen, strict=True) if is_seen]
    return float(np.mean(values)) if values else 0.0


def _per_class(labels: np.ndarray, chosen: np.ndarray, logits: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for ours, guesses, ranking in zip(labels.T, chosen.T, logits.T, strict=True):
        row: dict[str, Any] = {**_figures(ours, guesses), "average_precision": None}
        if ours.any():  # else it is not defined
            row["average_precision"] = float(metrics.average_precision_score(ours, ranking))
        found.append({**row, "rows": int(ours.sum())})
    return found


def _figures(labels: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of decisions, int (decisions,)."""
    zero: Any = 0.0  # scikit-learn's annotation knows "warn" alone
    values: Any = metrics.precision_recall_fscore_support(
        labels, chosen, average="binary", zero_division=zero
    )
    return {name: float(value) for name, value in zip(FIGURES, values, strict=False)}
