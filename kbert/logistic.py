"""Logistic regressions of scikit-learn's as weights for every class of a task."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # scikit-learn's C; the validation rows choose among them
DEFAULT_STRENGTH = 1.0  # without validation rows
MOST_ITERATIONS = 1000


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    class_weights: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The logistic regression with the least log loss on validation rows.

    Args:
        features: float (rows, features).
        labels: Class index of each row, int (rows,).
        class_weights: What a row of each class weighs, (classes,).
        validation: Features and labels that choose how small weights are held.

    Returns:
        Kernel float32 (features, classes) and bias float32 (classes,).
    """
    from sklearn.linear_model import LogisticRegression

    counts = np.bincount(labels, minlength=len(class_weights))
    if np.count_nonzero(counts) < 2:  # then the frequencies are all that there is to know
        bias = np.log((counts + 1) / (counts.sum() + len(counts)))
        return np.zeros((features.shape[1], len(counts)), np.float32), bias.astype(np.float32)
    best, least = None, np.inf
    for strength in (DEFAULT_STRENGTH,) if validation is None else STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS)
        with warnings.catch_warnings():  # one that has not settled is as good, or not chosen
            warnings.simplefilter("ignore")
            model.fit(features, labels, sample_weight=class_weights[labels])
        found = weights_of(model, num_classes=len(counts), rows=len(labels))
        loss = 0.0 if validation is None else _log_loss(found, *validation)
        if best is None or loss < least:
            best, least = found, loss
    assert best is not None  # there are strengths
    return best


def weights_of(
    model: LogisticRegression, *, num_classes: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a softmax over all classes, of which a model has seen two or more.

    Args:
        model: It is fitted; its classes are indices.
        num_classes: Number of all classes.
        rows: Number of rows that it was fitted on.

    Returns:
        Kernel float32 (features, classes) and bias float32 (classes,).
    """
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # the weights of the second class; the first one's are 0
        coef = np.concatenate([np.zeros_like(coef), coef])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    kernel = np.zeros((coef.shape[1], num_classes), np.float32)
    kernel[:, model.classes_] = coef.T
    # a class without a row: well below the least likely one that has rows
    bias = np.full(num_classes, intercept.min() - np.log(rows), np.float32)
    bias[model.classes_] = intercept
    return kernel, bias


def _log_loss(
    weights: tuple[np.ndarray, np.ndarray], features: np.ndarray, labels: np.ndarray
) -> float:
    from kbert.calibration import log_softmax  # scipy, which the linear model does without

    kernel, bias = weights
    return float(-log_softmax(features @ kernel + bias)[np.arange(len(labels)), labels].mean())
