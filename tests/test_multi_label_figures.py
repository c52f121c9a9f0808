"""Several labels a text: figures as scikit-learn's, thresholds that no other ones better."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics

from kbert.multi_label import best_thresholds, fit_thresholds, multi_label_report, threshold_logits

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
def test_no_thresholds_have_a_better_micro_f1(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = case
    thresholds = best_thresholds(labels, logits)
    assert ((thresholds > 0) & (thresholds < 1)).all()
    chosen = logits >= threshold_logits(thresholds)
    np.testing.assert_array_equal(chosen, expit(logits.astype(np.float64)) >= thresholds)
    cuts = np.array(list(itertools.product(np.arange(-3, 5), repeat=3)))
    others = logits >= cuts[:, None]  # (cuts, rows, classes)
    right, all_chosen = (others & (labels == 1)).sum((1, 2)), others.sum((1, 2))
    best = (2 * right / np.maximum(all_chosen + labels.sum(), 1)).max()
    assert metrics.f1_score(labels, chosen, average="micro", zero_division=0) == pytest.approx(best)


def test_a_threshold_is_a_half_where_none_is_better() -> None:
    labels = np.array([[1], [1], [0]])
    assert best_thresholds(labels, np.array([[3.0], [1.0], [-1.0]], np.float32)) == [0.5]
    # the first one alone is as good as all four: F1 2/3
    labels = np.array([[1], [0], [0], [1]])
    assert best_thresholds(labels, np.array([[1], [-1], [-2], [-3]], np.float32)) == [0.5]
    # nothing is of the second class, nothing is to be found
    labels = np.array([[1, 0], [0, 0]])
    assert best_thresholds(labels, np.array([[2, -1], [-2, -3]], np.float32)).tolist() == [0.5] * 2
    assert (
        best_thresholds(labels * 0, np.array([[2, -1], [-2, -3]], np.float32)).tolist() == [0.5] * 2
    )


def test_another_threshold_is_half_way() -> None:
    labels = np.array([[1], [1], [0], [0]])
    found = best_thresholds(labels, np.array([[4], [3], [2], [1]], np.float32))
    assert found[0] == pytest.approx((expit(3.0) + expit(2.0)) / 2)
    # wrong choices alone: above them all
    found = best_thresholds(np.array([[1, 0], [1, 0]]), np.array([[1, 1], [1, 3]], np.float32))
    assert found.tolist() == pytest.approx([0.5, (expit(3.0) + 1) / 2])


def test_a_rare_class_does_not_cost_the_others() -> None:
    """Its own best F1, 0.08 by a threshold under all rows, would halve that of all decisions."""
    labels = np.zeros((50, 2), int)
    labels[:25, 0], labels[[3, 40], 1] = 1, 1
    logits = np.where(labels, 2.0, -2.0).astype(np.float32)
    logits[:, 1] = -1.0
    assert best_thresholds(labels, logits).tolist() == [0.5, 0.5]


@given(cases(3))
def test_a_fitted_threshold_is_the_best_or_a_half(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, logits = case
    for fitted, best in zip(
        fit_thresholds(labels, logits), best_thresholds(labels, logits), strict=True
    ):
        assert fitted in (best, 0.5)


def test_a_threshold_must_prove_itself_on_other_rows() -> None:
    """Both classes have a better one than 0.5; that of the second is of a single row."""
    labels = np.zeros((40, 2), int)
    labels[::4, 0] = labels[1::4, 0] = 1  # of every half ten rows
    labels[[0, 3], 1] = 1
    logits = np.where(labels, -1.0, -3.0).astype(np.float32)
    logits[:, 1] = -5.0
    logits[0, 1] = -2.0
    best = best_thresholds(labels, logits)
    assert (best < 0.5).all()
    assert fit_thresholds(labels, logits).tolist() == [best[0], 0.5]


def test_thresholds_tell_logits_apart_that_are_the_same_probability_in_float32() -> None:
    logits = np.array([[25.0], [24.0]], np.float32)
    assert expit(logits[0]) == expit(logits[1]) == 1
    thresholds = best_thresholds(np.array([[1], [0]]), logits)
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
