"""Figures of classification: over whole arrays, in numpy, and as sums during training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import ops
from scipy import sparse

from kbert.calibration import BINS, confidence_bins, log_softmax

CELLS = 500_000
"""Weights (rows times resamples) that a bootstrap holds at once: 4 MB, near the caches."""


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
        guess = ops.cast(self.guesses(y_pred), self.dtype)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
            y_true, guess = y_true * weight, guess * weight
        hit = ops.cast(guess > 0, self.dtype)
        self.right.assign_add(ops.sum(y_true * hit, axis=0))
        self.labelled.assign_add(ops.sum(y_true, axis=0))
        self.predicted.assign_add(ops.sum(guess, axis=0))

    def guesses(self, y_pred):
        """1 for the class that is predicted, (batch, classes)."""
        return ops.one_hot(ops.argmax(y_pred, axis=-1), self.num_classes)

    def result(self):
        """The mean F1, 0 before any row."""
        total = self.labelled + self.predicted
        f1 = ops.divide_no_nan(2 * self.right, total)
        return ops.divide_no_nan(ops.sum(f1), ops.sum(ops.cast(total > 0, self.dtype)))

    def get_config(self) -> dict:
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable(package="kbert")
class MultiLabelF1(MacroF1):
    """F1 of any number of classes a row: a class is predicted where its logit is over 0.

    Args:
        num_classes: Number of classes.
        average: "macro": the mean over the classes that have been seen; "micro": of all decisions.
        name: Name of the metric, by default f1_macro or f1_micro.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        average: Literal["macro", "micro"] = "micro",
        name: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(num_classes, name=name or f"f1_{average}", **kwargs)
        self.average = average

    def guesses(self, y_pred):
        """1 for each class that is predicted, (batch, classes)."""
        return ops.convert_to_tensor(y_pred) > 0

    def result(self):
        """The F1, 0 before any row."""
        if self.average == "macro":
            return super().result()
        total = ops.sum(self.labelled + self.predicted)
        return ops.divide_no_nan(2 * ops.sum(self.right), total)

    def get_config(self) -> dict:
        return {**super().get_config(), "average": self.average}


@keras.saving.register_keras_serializable(package="kbert")
class Pearson(keras.metrics.Metric):
    """Pearson's correlation of labels and predictions, over all rows so far.

    keras.metrics.PearsonCorrelation is a mean over rows, of the correlation within each. This one
    is of sums, in float64: it is the difference of two that are nearly the same.

    Args:
        name: Name of the metric.

    Example:

    ```python
    metric = Pearson()
    metric.update_state([[1.0], [2.0], [4.0]], [[3.0], [5.0], [9.0]])
    metric.result()  # 1.0
    ```
    """

    def __init__(self, *, name: str = "pearson", dtype: str = "float64", **kwargs) -> None:
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.sums = self.add_variable((6,), "zeros", dtype=self.dtype, name="sums")

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Add a batch: labels and predictions of the same shape, a weight for each."""
        ours = ops.reshape(ops.cast(y_pred, self.dtype), (-1,))
        theirs = ops.reshape(ops.cast(y_true, self.dtype), (-1,))
        parts = (ops.ones_like(ours), ours, theirs, ours * ours, theirs * theirs, ours * theirs)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1,))
            parts = tuple(part * weight for part in parts)
        self.sums.assign_add(ops.stack([ops.sum(part) for part in parts]))

    def result(self):
        """The correlation; 0 where labels or predictions are all the same."""
        rows, ours, theirs, our_squares, their_squares, products = ops.unstack(self.sums)
        shared = rows * products - ours * theirs
        spread = (rows * our_squares - ours * ours) * (rows * their_squares - theirs * theirs)
        return ops.divide_no_nan(shared, ops.sqrt(ops.maximum(spread, 0)))


@keras.saving.register_keras_serializable(package="kbert")
class TagAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """Accuracy of tags, with labels and logits as of `kbert.losses.TagLoss`."""

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Count a batch."""
        super().update_state(ops.maximum(y_true[..., 0], 0), y_pred, sample_weight=sample_weight)


@dataclass(frozen=True)
class ClassificationFigures:
    """Accuracy, precision, recall, F1 and Matthews' correlation of a single-label classifier.

    As scikit-learn's with zero_division=0: a class without a prediction has precision 0, one
    without a row recall 0; macro averages run over the classes that are among the labels or the
    predictions, weighted ones over the rows; the correlation is 0 where all labels, or all
    predictions, are of one class.
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
        right, predicted = np.diag(self.confusion), self.confusion.sum(axis=0)
        averages = _averages(right[:, None], self.support[:, None], predicted[:, None])
        return {name: float(values[0]) for name, values in averages.items()}

    def per_class(self, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
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
    return float(-np.mean(log_softmax(logits)[np.arange(len(labels)), labels]))


def probability_figures(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """The figures that need probabilities; None where a figure is not defined.

    - roc_auc: area under the ROC curve; of class 1 where there are two classes, else the mean of
      each class against the rest. scikit-learn refuses a mean where a class has no rows; ours
      runs over the classes that have rows and lack others. None where there is no such class.
    - pr_auc: average precision, likewise; its mean runs over the classes that have rows.
    - log_loss: mean negative log-likelihood in nats, of probabilities clipped to what float64
      tells from 0 and 1 (2.2e-16).
    - brier: mean squared difference of probabilities and one-hot labels, summed over the
      classes (0 to 2); half of that for two classes (0 to 1), which is the mean squared error of
      the probability of class 1. These are scikit-learn's conventions.
    - ece: expected calibration error in 15 bins (see `kbert.calibration.Reliability`).

    Args:
        labels: Class index of each row, int (rows,).
        probabilities: (rows, classes), taken as they are, in float64.

    Raises:
        ValueError: There are no rows, the shapes or the labels do not fit, or a probability is
            not a finite number.
    """
    figures = _Sample(labels, probabilities).probability_figures(np.ones((len(labels), 1)))
    return {name: _defined(values[0]) for name, values in figures.items()}


def classes_report(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """All figures of a split for metrics.json, the prediction being the most probable class.

    What `ClassificationFigures.summary` and `probability_figures` give, then rows, per_class by
    name (precision, recall, f1, roc_auc, pr_auc, rows), confusion_matrix (a list of rows, by
    label, of counts, by prediction) and labels. A figure that is not defined is None, never nan.

    Args:
        labels: Class index of each row, int (rows,).
        probabilities: (rows, classes); of equal ones the first is the prediction.
        names: Name of each class.

    Raises:
        ValueError: As `probability_figures`; or there is another number of names.
    """
    sample = _Sample(labels, probabilities)
    ones = np.ones((len(labels), 1))
    overall = {name: _defined(values[0]) for name, values in sample.figures(ones).items()}
    figures = classification_figures(
        sample.labels, sample.predictions, num_classes=sample.num_classes
    )
    roc, pr = sample.areas(ones)
    per_class = figures.per_class(tuple(names))
    for index, row in enumerate(per_class.values()):
        areas = {"roc_auc": _defined(roc[index, 0]), "pr_auc": _defined(pr[index, 0])}
        row |= {**areas, "rows": row.pop("rows")}  # rows stay last
    return {
        **overall,
        "rows": len(sample.labels),
        "per_class": per_class,
        "confusion_matrix": figures.confusion.tolist(),
        "labels": list(names),
    }


def intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, list[float]]:
    """Percentile bootstrap intervals [low, high] of all overall figures of `classes_report`.

    Rows are drawn with replacement, as many as there are, by
    `numpy.random.default_rng(seed).integers(rows, size=rows)` once a resample, and each figure
    is that of the drawn rows, with all its conventions. A figure counts in the resamples where it
    is defined, and is left out where it is in none. The ece of few rows is too high, and that of
    their resamples higher still: its interval lies above the truth for a well calibrated model.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.

    Args:
        labels: Class index of each row, int (rows,).
        probabilities: (rows, classes).
        seed: Of the draws.
        resamples: Number of resamples.
        level: Share of the resamples that lie within.

    Raises:
        ValueError: As `probability_figures`; or there are no resamples, or the level is not
            between 0 and 1.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            "resamples must be positive and level between 0 and 1; "
            f"Received: resamples={resamples}, level={level}"
        )
    sample, generator = _Sample(labels, probabilities), np.random.default_rng(seed)
    parts, size = [], max(1, CELLS // len(labels))
    for first in range(0, resamples, size):
        count = min(size, resamples - first)
        parts.append(sample.figures(_resample_weights(len(labels), count, generator)))
    found = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        if len(values):
            found[name] = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return found


def _resample_weights(rows: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each row is drawn, float64 (rows, resamples)."""
    weights = np.empty((rows, resamples))
    for column in range(resamples):
        drawn = generator.integers(rows, size=rows)
        weights[:, column] = np.bincount(drawn, minlength=rows)
    return weights


class _Sample:
    """Labels and probabilities, prepared so that a figure of weighted rows is a few sums.

    A resample is how often each row is drawn, and all figures are of sums of such weights, so
    many resamples are one product of a sparse matrix with weights (rows, resamples).
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        self.labels, self.probabilities = _checked(labels, probabilities)
        self.num_classes = self.probabilities.shape[1]
        self.predictions = self.probabilities.argmax(axis=1)
        right = (self.predictions == self.labels).astype(np.float64)
        self._labelled = _sums_by(self.labels, self.num_classes)
        self._predicted = _sums_by(self.predictions, self.num_classes)
        self._right = _sums_by(self.labels, self.num_classes, right)
        confidence = self.probabilities.max(axis=1)
        self._gaps = _sums_by(confidence_bins(confidence), BINS, right - confidence)
        self._losses = np.stack([self._log_losses(), self._brier_scores()])  # (2, rows)
        self._rankings = [
            _Ranking(self.labels == index, self.probabilities[:, index])
            for index in range(self.num_classes)
        ]

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """All overall figures, each (resamples,), nan where not defined.

        Args:
            weights: How often each row counts, float64 (rows, resamples).
        """
        counts = (self._right, self._labelled, self._predicted)
        averages = _averages(*(matrix @ weights for matrix in counts))
        return {**averages, **self.probability_figures(weights)}

    def probability_figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Those of the module's `probability_figures`, as `figures`."""
        rows = weights.sum(axis=0)
        roc, pr = self.areas(weights)
        log_loss, brier = self._losses @ weights / rows
        return {
            "roc_auc": roc[1] if self.num_classes == 2 else _mean_of_defined(roc),
            "pr_auc": pr[1] if self.num_classes == 2 else _mean_of_defined(pr),
            "log_loss": log_loss,
            "brier": brier,
            "ece": np.abs(self._gaps @ weights).sum(axis=0) / rows,
        }

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Areas under the ROC and precision-recall curves of each class, (classes, resamples)."""
        areas = np.array([ranking.areas(weights) for ranking in self._rankings])
        return areas[:, 0], areas[:, 1]

    def _log_losses(self) -> np.ndarray:
        of_label = self.probabilities[np.arange(len(self.labels)), self.labels]
        epsilon = np.finfo(np.float64).eps
        return -np.log(np.clip(of_label, epsilon, 1 - epsilon))

    def _brier_scores(self) -> np.ndarray:
        errors = self.probabilities.copy()
        errors[np.arange(len(self.labels)), self.labels] -= 1
        return np.square(errors).sum(axis=1) * (1.0 if self.num_classes > 2 else 0.5)


class _Ranking:
    """The rows by falling probability of one class: what its two curves are made of.

    Both areas are sums over the rows of the class (positives), of how many rows are above them
    and how many of these are positives. So the rows are cut where a group of equally probable
    ones begins or ends that holds a positive, and only the sums of those cuts are taken.
    """

    def __init__(self, positive: np.ndarray, probability: np.ndarray) -> None:
        order = np.argsort(-probability, kind="stable")
        ranked, positive = probability[order], positive[order]
        begins = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        group = np.searchsorted(begins, np.flatnonzero(positive), side="right") - 1
        held, sizes = np.unique(group, return_counts=True)
        ends = np.r_[begins[1:], len(order)][held]
        cuts = np.ravel([begins[held], ends], order="F")  # begin, end, begin, end ...
        # above the first group, it, between it and the next, the next ..., below the last
        self._pieces = _sums_of_slices(order, np.r_[0, cuts, len(order)])
        self._positives = _sums_of_slices(order[positive], np.r_[0, sizes.cumsum()], len(order))

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Area under the ROC curve and average precision, each (resamples,), nan if undefined."""
        pieces = self._pieces @ weights  # (2 groups + 1, resamples)
        positives = self._positives @ weights  # (groups, resamples)
        through = pieces.cumsum(axis=0)
        rows, all_positives = through[-1], positives.sum(axis=0)
        all_negatives = rows - all_positives
        found = positives.cumsum(axis=0)
        negatives = pieces[1::2] - positives
        below = all_negatives - (through[1::2] - found)
        pairs = (positives * (below + negatives / 2)).sum(axis=0)
        precision = _ratio(found, through[1::2])
        return (
            _ratio(pairs, all_positives * all_negatives, otherwise=np.nan),
            _ratio((positives * precision).sum(axis=0), all_positives, otherwise=np.nan),
        )


def _averages(
    right: np.ndarray, labelled: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
    """The averages over classes of counts (classes, resamples), each (resamples,), by name."""
    labelled, predicted = labelled.astype(np.float64), predicted.astype(np.float64)
    rows = labelled.sum(axis=0)
    by_class = {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, labelled),
        "f1": _ratio(2 * right, labelled + predicted),
    }
    present = (labelled + predicted > 0).sum(axis=0)
    all_right = right.sum(axis=0)
    accuracy = all_right / rows
    chance = (labelled * predicted).sum(axis=0)
    spread = (rows**2 - (predicted**2).sum(axis=0)) * (rows**2 - (labelled**2).sum(axis=0))
    return {
        "accuracy": accuracy,
        # a class that is absent has 0 everywhere, and so adds nothing
        **{f"{name}_macro": values.sum(axis=0) / present for name, values in by_class.items()},
        **{f"{name}_micro": accuracy for name in by_class},
        **{
            f"{name}_weighted": (values * labelled).sum(axis=0) / rows
            for name, values in by_class.items()
        },
        "matthews": _ratio(all_right * rows - chance, np.sqrt(spread)),
    }


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays that fit each other, the probabilities in float64."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not labels.size:
        raise ValueError(
            "labels must be (rows,) and probabilities (rows, classes), with a row at least; "
            f"Received: {labels.shape} and {probabilities.shape}"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"labels must be from 0 to {probabilities.shape[1] - 1}; "
            f"Received: {labels.min()} to {labels.max()}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite; Received: an infinite one, or not a number")
    return labels, probabilities


def _sums_by(
    group: np.ndarray, num_groups: int, values: np.ndarray | None = None
) -> sparse.csr_array:
    """What sums values (rows,), ones by default, by the group of each row: (groups, rows)."""
    values = np.ones(len(group)) if values is None else values
    place = (group, np.arange(len(group)))
    return sparse.csr_array((values, place), shape=(num_groups, len(group)))


def _sums_of_slices(
    order: np.ndarray, bounds: np.ndarray, rows: int | None = None
) -> sparse.csr_array:
    """What sums rows by slices of an order: slice i is order[bounds[i] : bounds[i + 1]]."""
    shape = (len(bounds) - 1, len(order) if rows is None else rows)
    return sparse.csr_array((np.ones(len(order)), order, bounds), shape=shape)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not nan; nan where all is."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return _ratio(total, defined.sum(axis=0), otherwise=np.nan)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, *, otherwise: float = 0.0) -> np.ndarray:
    out = np.full(np.shape(numerator), otherwise)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)
