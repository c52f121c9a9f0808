"""Figures of classification against scikit-learn."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.metrics import MacroF1, classification_figures, cross_entropy

sklearn_metrics = pytest.importorskip("sklearn.metrics")
ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(ROWS)
def test_figures_are_those_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(rows).T
    figures = classification_figures(labels, predictions, num_classes=5)
    summary = figures.summary()
    arguments = {"y_true": labels, "y_pred": predictions, "zero_division": 0}
    for average in ("macro", "micro"):
        precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
            **arguments, average=average
        )
        assert summary[f"precision_{average}"] == pytest.approx(precision, abs=1e-12)
        assert summary[f"recall_{average}"] == pytest.approx(recall, abs=1e-12)
        assert summary[f"f1_{average}"] == pytest.approx(f1, abs=1e-12)
    assert summary["accuracy"] == pytest.approx((labels == predictions).mean(), abs=1e-12)
    expected = sklearn_metrics.confusion_matrix(labels, predictions, labels=range(5))
    assert figures.confusion.tolist() == expected.tolist()
    per_class = sklearn_metrics.precision_recall_fscore_support(
        **arguments, labels=range(5), average=None
    )
    ours = figures.per_class(tuple("abcde"))
    for column, name in enumerate(("precision", "recall", "f1", "rows")):
        theirs = per_class[column]
        assert [row[name] for row in ours.values()] == pytest.approx(list(theirs), abs=1e-12)


def test_cross_entropy() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [80.0, -80.0, 0.0], [0.1, 0.2, 0.3]], np.float32)
    labels = np.array([0, 1, 2])
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(3), labels]).mean()
    assert cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-12)


@given(ROWS)
def test_macro_f1_over_batches(rows: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(rows).T
    metric = MacroF1(5)
    for part in np.array_split(np.arange(len(rows)), 3):
        if len(part):
            metric.update_state(np.eye(5)[labels[part]], np.eye(5)[predictions[part]])
    expected = sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_macro_f1_round_trip() -> None:
    metric = keras.metrics.deserialize(keras.metrics.serialize(MacroF1(3)))
    assert metric.num_classes == 3
    assert float(metric.result()) == 0.0


def test_macro_f1_leaves_out_rows_of_weight_zero() -> None:
    metric = MacroF1(2)
    metric.update_state([[1, 0], [0, 1]], [[1.0, 0.0], [1.0, 0.0]], sample_weight=[1.0, 0.0])
    assert float(metric.result()) == 1.0
