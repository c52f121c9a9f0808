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
    """For each class the threshold of its probability with the best F1.

    Fit them on rows that the model was not trained on. A threshold lies half-way between two
    probabilities that these rows have, so that no rounding decides; of equally good ones it is
    that nearest to 0.5. A class without a row has 0.5.

    Args:
        labels: 1 where a row is of the class, else 0, (rows, classes).
        logits: (rows, classes), finite.

    Returns:
        float64 (classes,), each in (0, 1): a class is chosen where its probability is not below.
    """
    probabilities = expit(np.asarray(logits, np.float64))
    pairs = zip(np.asarray(labels, bool).T, probabilities.T, strict=True)
    return np.array([_best_threshold(positive, column) for positive, column in pairs])


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


def _best_threshold(positive: np.ndarray, probabilities: np.ndarray) -> float:
    """Of one class: bool and float64 (rows,)."""
    if not positive.any():
        return DEFAULT_THRESHOLD
    precision, recall, values = metrics.precision_recall_curve(positive, probabilities)
    precision, recall = precision[:-1], recall[:-1]  # the last choose nothing
    found = precision + recall
    f1 = np.divide(2 * precision * recall, found, out=np.zeros_like(found), where=found > 0)
    middles = (values + np.r_[0.0, values[:-1]]) / 2
    best = middles[f1 >= f1.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - DEFAULT_THRESHOLD))])


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
