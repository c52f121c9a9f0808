"""Several labels a text: figures as scikit-learn's, thresholds that no other one betters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics

from kbert.multi_label import fit_thresholds, multi_label_report, threshold_logits

NAMES = ("bad", "good", "loud")


def cases(classes: int):
    """Labels (rows, classes) and logits that tie often."""
    row = st.tuples(
        st.lists(st.booleans(), min_size=classes, max_size=classes),
        st.lists(st.integers(-3, 3), min_size=classes, max_size=classes),
    )
    return st.lists(row, min_size=1, max_size=12).map(
        lambda rows: (
            np.array([labels for labels, _ in rows], np.int64),
            np.array([logits for _, logits in rows], np.float32),
        )
    )


@given(cases(3))
def test_no_threshold_has_a_better_f1(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = case
    thresholds = fit_thresholds(labels, logits)
    assert ((thresholds > 0) & (thresholds < 1)).all()
    chosen = logits >= threshold_logits(thresholds)
    np.testing.assert_array_equal(chosen, expit(logits.astype(np.float64)) >= thresholds)
    for index in range(3):
        if not labels[:, index].any():
            assert thresholds[index] == 0.5
            continue
        ours = metrics.f1_score(labels[:, index], chosen[:, index])
        for cut in range(-3, 4):
            other = metrics.f1_score(labels[:, index], logits[:, index] >= cut)
            assert ours >= other - 1e-12


def test_a_threshold_is_half_way_and_nearest_to_a_half() -> None:
    labels = np.array([[1], [1], [0]])
    logits = np.array([[3.0], [1.0], [-1.0]], np.float32)
    middle = (expit(1.0) + expit(-1.0)) / 2
    assert fit_thresholds(labels, logits)[0] == pytest.approx(middle)
    # the first one alone is as good as all four: F1 2/3
    labels = np.array([[1], [0], [0], [1]])
    for logits, best in (((1, -1, -2, -3), middle), ((4, 3, 2, 1), expit(1.0) / 2)):
        found = fit_thresholds(labels, np.array(logits, np.float32)[:, None])
        assert found[0] == pytest.approx(best)


def test_thresholds_tell_logits_apart_that_are_the_same_probability_in_float32() -> None:
    logits = np.array([[25.0], [24.0]], np.float32)
    assert expit(logits[0]) == expit(logits[1]) == 1
    thresholds = fit_thresholds(np.array([[1], [0]]), logits)
    chosen = logits >= threshold_logits(thresholds).astype(np.float32)
    assert chosen[:, 0].tolist() == [True, False]


@given(cases(3))
def test_figures_are_scikit_learns(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = case
    chosen = logits >= 0
    report = multi_label_report(labels, chosen, logits, NAMES)
    seen = np.flatnonzero(labels.any(axis=0) | chosen.any(axis=0))
    for average, classes in (("micro", [0, 1, 2]), ("macro", seen)):
        if not len(classes):
            continue
        values = metrics.precision_recall_fscore_support(
            labels, chosen, labels=classes, average=average, zero_division=0.0
        )
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            assert report[f"{name}_{average}"] == pytest.approx(value)
    assert report["subset_accuracy"] == pytest.approx(metrics.accuracy_score(labels, chosen))
    assert report["hamming_loss"] == pytest.approx(metrics.hamming_loss(labels, chosen))
    have_rows = labels.any(axis=0)
    if have_rows.any():
        area = metrics.average_precision_score(
            labels[:, have_rows], logits[:, have_rows], average="macro"
        )
        assert report["map"] == pytest.approx(area)
    else:
        assert report["map"] is None
    assert [row["rows"] for row in report["per_class"].values()] == labels.sum(axis=0).tolist()
    assert list(report["per_class"]) == report["labels"] == list(NAMES)


def test_a_class_without_rows_has_no_average_precision() -> None:
    report = multi_label_report(np.array([[0, 1]]), np.zeros((1, 2)), np.zeros((1, 2)), "ab")
    assert report["per_class"]["a"]["average_precision"] is None
    assert report["per_class"]["b"]["average_precision"] == 1
    assert (report["f1_macro"], report["map"]) == (0, 1)
