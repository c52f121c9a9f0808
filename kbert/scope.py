"""Texts that are of no class: the threshold on the largest probability, and what it does.

A text is in scope if its largest probability is at least the threshold. Numpy and scikit-learn
alone, neither TensorFlow nor Keras.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def is_in_scope(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Whether the texts of some rows are of a class at all, bool (rows,).

    Args:
        probabilities: As they are served, float32 (rows, classes).
        threshold: What `fit_threshold` gave; 0 for none.
    """
    return probabilities.max(axis=1) >= np.float32(threshold)


def fit_threshold(labels: np.ndarray, probabilities: np.ndarray, outside: np.ndarray) -> float:
    """The threshold with the most right answers over all rows, in scope and out of scope.

    Fit it on rows that the model was not trained on, mixed as they will come. Of equally good
    thresholds it is the lowest; 0, which rejects nothing, is among them. It stands in the middle
    between two of the rows' largest probabilities, so that rounding changes no answer to them.

    Source: the threshold of Larson et al. 2019, "An evaluation dataset for intent classification
    and out-of-scope prediction".

    Args:
        labels: Class index of each row that is in scope, int (rows,).
        probabilities: Of these rows, float32 (rows, classes).
        outside: Of rows that are out of scope, float32 (rows, classes).

    Returns:
        A number that float32 holds exactly, in [0, 1].
    """
    confidence = probabilities.max(axis=1)
    right = np.sort(confidence[probabilities.argmax(axis=1) == labels])
    rejected = np.sort(outside.max(axis=1))
    values = np.unique(np.concatenate([confidence, rejected]).astype(np.float32))
    middles = values[:-1] + (values[1:] - values[:-1]) / 2
    # between neighbouring numbers of float32 there is none: then the upper one
    middles = np.where(middles > values[:-1], middles, values[1:])
    thresholds = np.concatenate([np.zeros(1, np.float32), middles])
    kept = len(right) - np.searchsorted(right, thresholds)
    hits = kept + np.searchsorted(rejected, thresholds)
    return float(thresholds[hits.argmax()])


def scope_report(
    labels: np.ndarray, probabilities: np.ndarray, outside: np.ndarray, *, threshold: float
) -> dict[str, Any]:
    """What the threshold does to a split, for metrics.json.

    Out of scope is the positive class of recall, precision and roc_auc. A figure that is not
    defined is None.

    Args:
        labels, probabilities, outside: As of `fit_threshold`.
        threshold: What it gave.

    Returns:
        threshold; accuracy over all rows; in_scope_accuracy with the threshold and
        in_scope_accuracy_without; recall and precision; roc_auc of the largest probability, which
        needs no threshold; and rows, those out of scope.
    """
    right = probabilities.argmax(axis=1) == labels
    kept, missed = is_in_scope(probabilities, threshold), is_in_scope(outside, threshold)
    found = int((~missed).sum())
    rejected = found + int((~kept).sum())
    return {
        "threshold": threshold,
        "accuracy": ((right & kept).sum() + found) / (len(labels) + len(outside)),
        "in_scope_accuracy": float((right & kept).mean()),
        "in_scope_accuracy_without": float(right.mean()),
        "recall": found / len(outside) if len(outside) else None,
        "precision": found / rejected if rejected else None,
        "roc_auc": _roc_auc(probabilities, outside) if len(outside) else None,
        "rows": len(outside),
    }


def _roc_auc(probabilities: np.ndarray, outside: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    is_outside = np.repeat([False, True], [len(probabilities), len(outside)])
    confidence = np.concatenate([probabilities, outside]).max(axis=1)
    return float(roc_auc_score(is_outside, -confidence))
