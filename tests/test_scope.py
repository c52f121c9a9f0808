"""The threshold of out-of-scope answers: by hand, and against every other threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.scope import fit_threshold, is_in_scope, scope_report


def _two_classes(confidence: list[float]) -> np.ndarray:
    """Probabilities whose first class has these, from a half on."""
    first = np.array(confidence, np.float32).reshape(-1)
    return np.stack([first, 1 - first], axis=1)


def test_threshold_stands_between_the_rows() -> None:
    inside, outside = _two_classes([0.9, 0.8, 0.75]), _two_classes([0.5, 0.625])
    assert fit_threshold(np.zeros(3, int), inside, outside) == pytest.approx((0.625 + 0.75) / 2)


def test_of_equally_good_thresholds_the_lowest() -> None:
    # the row at 0.75 is wrong: to reject it wins nothing
    inside, outside = _two_classes([0.9, 0.75]), _two_classes([0.5])
    assert fit_threshold(np.array([0, 1]), inside, outside) == pytest.approx((0.5 + 0.75) / 2)
    assert fit_threshold(np.array([0, 0]), _two_classes([0.5, 0.6]), _two_classes([0.9])) == 0
    assert fit_threshold(np.array([0, 0]), _two_classes([0.5, 0.6]), _two_classes([])) == 0


def test_neighbours_of_float32_are_told_apart() -> None:
    low = np.float32(0.75)
    inside = np.array([[np.nextafter(low, np.float32(1)), 0.25]], np.float32)
    outside = np.array([[low, 0.25]], np.float32)
    threshold = fit_threshold(np.array([0]), inside, outside)
    assert is_in_scope(inside, threshold).all()
    assert not is_in_scope(outside, threshold).any()


CONFIDENCES = st.lists(st.integers(8, 16).map(lambda n: n / 16), min_size=1, max_size=8)


@given(CONFIDENCES, CONFIDENCES, st.data())
def test_no_threshold_is_better(inside: list, outside: list, data: st.DataObject) -> None:
    labels = np.array([data.draw(st.integers(0, 1)) for _ in inside])
    ours, theirs = _two_classes(inside), _two_classes(outside)
    best = fit_threshold(labels, ours, theirs)

    def accuracy(threshold: float) -> float:
        return scope_report(labels, ours, theirs, threshold=threshold)["accuracy"]

    # as a threshold, a row's own probability keeps the row and rejects all below it
    tried = [0.0, *inside, *outside]
    assert accuracy(best) == max(map(accuracy, tried))
    assert all(accuracy(lower) < accuracy(best) for lower in tried if lower < best)


def test_report_by_hand() -> None:
    inside, outside = _two_classes([0.9, 0.8, 0.6, 0.55]), _two_classes([0.5, 0.7, 0.95, 0.55])
    report = scope_report(np.array([0, 1, 0, 0]), inside, outside, threshold=0.58)
    assert report == {
        "threshold": 0.58,
        "accuracy": (2 + 2) / 8,
        "in_scope_accuracy": 2 / 4,
        "in_scope_accuracy_without": 3 / 4,
        "recall": 2 / 4,
        "precision": 2 / 3,
        # of 16 pairs those where the row out of scope is less sure: 4 + 2 + 0 + 3.5
        "roc_auc": 9.5 / 16,
        "rows": 4,
    }


def test_nothing_out_of_scope() -> None:
    report = scope_report(np.array([0]), _two_classes([0.9]), _two_classes([]), threshold=0.0)
    assert report["in_scope_accuracy"] == report["accuracy"] == 1
    assert report["recall"] is report["precision"] is report["roc_auc"] is None
