"""Figures of classification: over whole arrays, in numpy, and as sums during training."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="kbert")
class MacroF1(keras.metrics.Metric):
    """Mean F1 over the classes that are among the labels or the predictions so far.

    keras.metrics.F1Score counts classes that have not been seen as 0, which makes the figure of
    a few batches with many classes meaningless; scikit-learn's macro average leaves them out.

    Args:
        num_classes: Number of classes.
        name: Name of the metric.

    Example:

    ```python
    metric = MacroF1(3)
    metric.update_state([[1, 0, 0], [0, 1, 0]], [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]])
    metric.result()  # 1.0: the third class has not been seen
    ```
    """

    def __init__(self, num_classes: int, *, name: str = "f1_macro", **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.right = self.add_variable((num_classes,), "zeros", name="right")
        self.labelled = self.add_variable((num_classes,), "zeros", name="labelled")
        self.predicted = self.add_variable((num_classes,), "zeros", name="predicted")

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Count a batch: one-hot labels and logits or probabilities, (batch, classes)."""
        y_true = ops.cast(y_true, self.dtype)
        guess = ops.one_hot(ops.argmax(y_pred, axis=-1), self.num_classes, dtype=self.dtype)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
            y_true, guess = y_true * weight, guess * weight
        hit = ops.cast(guess > 0, self.dtype)
        self.right.assign_add(ops.sum(y_true * hit, axis=0))
        self.labelled.assign_add(ops.sum(y_true, axis=0))
        self.predicted.assign_add(ops.sum(guess, axis=0))

    def result(self):
        """The mean F1, 0 before any row."""
        total = self.labelled + self.predicted
        f1 = ops.divide_no_nan(2 * self.right, total)
        return ops.divide_no_nan(ops.sum(f1), ops.sum(ops.cast(total > 0, self.dtype)))

    def get_config(self) -> dict:
        return {**super().get_config(), "num_classes": self.num_classes}


@dataclass(frozen=True)
class ClassificationFigures:
    """Accuracy, precision, recall and F1 of a single-label classifier.

    A class without a prediction has precision 0, one without a row recall 0; macro averages
    run over the classes that are among the labels or the predictions (as scikit-learn's do).
    """

    confusion: np.ndarray
    """Rows by (label, prediction), int64 (classes, classes)."""

    @property
    def support(self) -> np.ndarray:
        """Rows of each class."""
        return self.confusion.sum(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of the rows that are right; equal to micro precision, recall and F1."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def precision(self) -> np.ndarray:
        """Share of the predictions of each class that are right."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """Share of the rows of each class that are found."""
        return _ratio(np.diag(self.confusion), self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall of each class."""
        return _ratio(2 * np.diag(self.confusion), self.confusion.sum(axis=0) + self.support)

    def summary(self) -> dict[str, float]:
        """The averages, by their names in metrics.json."""
        present = (self.confusion.sum(axis=0) + self.support) > 0
        return {
            "accuracy": self.accuracy,
            "precision_macro": float(self.precision[present].mean()),
            "recall_macro": float(self.recall[present].mean()),
            "f1_macro": float(self.f1[present].mean()),
            "precision_micro": self.accuracy,
            "recall_micro": self.accuracy,
            "f1_micro": self.accuracy,
        }

    def per_class(self, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and rows of each class by its name."""
        columns = zip(names, self.precision, self.recall, self.f1, self.support, strict=True)
        return {
            name: {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "rows": int(rows),
            }
            for name, precision, recall, f1, rows in columns
        }


def classification_figures(
    labels: np.ndarray, predictions: np.ndarray, *, num_classes: int
) -> ClassificationFigures:
    """Count labels against predictions.

    Args:
        labels: Class index of each row, int (rows,).
        predictions: Predicted class index of each row, int (rows,).
        num_classes: Number of classes.
    """
    cells = labels.astype(np.int64) * num_classes + predictions
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return ClassificationFigures(counts.reshape(num_classes, num_classes))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats.

    Args:
        logits: (rows, classes).
        labels: Class index of each row, int (rows,).
    """
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_sum - shifted[np.arange(len(labels)), labels]))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(
        numerator, denominator, out=np.zeros(len(numerator)), where=np.asarray(denominator) > 0
    )
