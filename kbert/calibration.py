"""How far probabilities can be believed: reliability, and the temperature that mends it.

Numpy and scipy alone, neither TensorFlow nor Keras.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import root_scalar

BINS = 15
"""Bins of confidence, as in Guo et al. 2017."""
TEMPERATURES = (0.05, 20.0)
"""The lowest and the highest temperature that is fitted."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in bins of equal width over (0, 1].

    Confidence is the probability of the predicted class. An empty bin has count, confidence and
    accuracy 0.

    Source: Naeini, Cooper and Hauskrecht 2015, "Obtaining well calibrated probabilities using
    Bayesian binning"; for more than two classes Guo, Pleiss, Sun and Weinberger 2017, "On
    calibration of modern neural networks".
    """

    edges: np.ndarray
    """Ascending from 0 to 1, (bins + 1,); bin i holds edges[i] < confidence <= edges[i + 1]."""
    confidence: np.ndarray
    """Mean confidence of each bin, (bins,)."""
    accuracy: np.ndarray
    """Share of each bin's rows that are right, (bins,)."""
    counts: np.ndarray
    """Rows of each bin, int (bins,)."""

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| of the bins, by their rows."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(gaps @ self.counts / max(1, self.counts.sum()))

    def as_dict(self) -> dict[str, list[float] | list[int] | float]:
        """The bins and the error, for JSON."""
        return {
            "edges": self.edges.tolist(),
            "confidence": self.confidence.tolist(),
            "accuracy": self.accuracy.tolist(),
            "counts": self.counts.tolist(),
            "ece": self.ece,
        }


def reliability(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = BINS) -> Reliability:
    """Count how often the predicted class is right, by the probability it was given.

    Args:
        labels: Class index of each row, int (rows,).
        probabilities: (rows, classes); of equal ones the first is the prediction.
        bins: Number of bins.
    """
    probabilities = np.asarray(probabilities, np.float64)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    places = confidence_bins(confidence, bins=bins)
    counts = np.bincount(places, minlength=bins)
    rows = np.maximum(counts, 1)
    return Reliability(
        edges=np.linspace(0.0, 1.0, bins + 1),
        confidence=np.bincount(places, weights=confidence, minlength=bins) / rows,
        accuracy=np.bincount(places, weights=right, minlength=bins) / rows,
        counts=counts,
    )


def confidence_bins(confidence: np.ndarray, *, bins: int = BINS) -> np.ndarray:
    """The bin of each probability, int (rows,): its upper edge belongs to a bin, its lower not."""
    return np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, float64 (rows, classes)."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float64 (rows, classes).

    Args:
        logits: (rows, classes).
        temperature: What the logits are divided by: above 1 flattens, below 1 sharpens; the
            order of the classes stays.
    """
    return np.exp(log_softmax(np.asarray(logits, np.float64) / temperature))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least log loss, within [0.05, 20].

    Fit it on rows that the model was not trained on. It is never worse than 1 on these rows, and
    is 1 without rows or where no temperature is better. Where all rows are right the loss falls
    with the temperature, and the least that is allowed is the answer.

    Source: Guo et al. 2017 (see `Reliability`).

    Args:
        logits: (rows, classes), finite.
        labels: Class index of each row, int (rows,).

    Raises:
        ValueError: A logit is infinite or not a number.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite; Received: an infinite one, or not a number")
    if not len(labels):
        return 1.0
    of_label = _at(logits, labels)

    def loss(temperature: float) -> float:
        return float(-_at(log_softmax(logits / temperature), labels).mean())

    def slope(log_temperature: float) -> float:
        # by 1 / temperature, in which the loss is convex: the slope rises, through 0 at most once
        expected = (softmax(logits, np.exp(log_temperature)) * logits).sum(axis=1)
        return float((expected - of_label).mean())

    lowest, highest = np.log(TEMPERATURES)
    if slope(lowest) <= 0:
        best = TEMPERATURES[0]
    elif slope(highest) >= 0:
        best = TEMPERATURES[1]
    else:
        root = root_scalar(slope, bracket=(lowest, highest), xtol=1e-10).root
        best = float(np.exp(root))
    return min((1.0, best), key=loss)


def _at(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The value of each row in the column of its label, (rows,)."""
    return np.take_along_axis(values, labels[:, None], axis=1)[:, 0]
