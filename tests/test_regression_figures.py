"""Predicted numbers: correlations and errors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from kbert.regression import regression_report


def test_figures_are_those_of_scipy_and_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(1, 6, 40).astype(np.float32)
    predictions = (numbers + generator.normal(0, 1, 40)).astype(np.float32)
    report = regression_report(numbers, predictions)
    assert report["pearson"] == pytest.approx(stats.pearsonr(numbers, predictions).statistic)
    assert report["spearman"] == pytest.approx(stats.spearmanr(numbers, predictions).statistic)
    assert report["mse"] == pytest.approx(metrics.mean_squared_error(numbers, predictions))
    assert report["mae"] == pytest.approx(metrics.mean_absolute_error(numbers, predictions))
    assert report["rows"] == 40


@pytest.mark.parametrize("numbers", [[2.0], [2.0, 2.0, 2.0]])
def test_what_is_all_the_same_has_no_correlation(numbers: list[float]) -> None:
    for report in (
        regression_report(np.array(numbers), np.arange(len(numbers))),
        regression_report(np.arange(len(numbers)), np.array(numbers)),
    ):
        assert report["pearson"] is None and report["spearman"] is None
        assert report["mae"] >= 0
