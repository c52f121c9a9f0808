"""Tests of two models on the same rows, against scipy's and numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from kbert.paired_tests import mcnemar, paired_bootstrap


def outcomes(both: int, only_ours: int, only_theirs: int, neither: int) -> tuple:
    """Whether each of two models is right, about rows of the four kinds."""
    ours = np.repeat([True, True, False, False], [both, only_ours, only_theirs, neither])
    theirs = np.repeat([True, False, True, False], [both, only_ours, only_theirs, neither])
    return ours, theirs


@pytest.mark.parametrize(("ours", "theirs"), [(3, 9), (9, 3), (0, 6), (12, 12), (1, 0), (0, 24)])
def test_few_discordant_rows_are_exact(ours: int, theirs: int) -> None:
    found = mcnemar(*outcomes(40, ours, theirs, 5))
    assert (found.only_ours, found.only_theirs) == (ours, theirs)
    assert found.p_value == pytest.approx(binomtest(ours, ours + theirs).pvalue, abs=1e-12)


def test_exact_by_hand() -> None:
    # 0 of 3 discordant rows: 2 * 0.5**3
    assert mcnemar(*outcomes(1, 0, 3, 1)).p_value == pytest.approx(0.25)


def test_many_discordant_rows_by_chi_squared() -> None:
    # (|20 - 41| - 1)**2 / 61 = 6.5574
    found = mcnemar(*outcomes(100, 20, 41, 7))
    assert found.p_value == pytest.approx(chi2.sf(400 / 61, 1), rel=1e-12)
    assert found.p_value == pytest.approx(0.010445, abs=1e-6)
    # at 25 the chi-squared begins: (|5 - 20| - 1)**2 / 25
    assert mcnemar(*outcomes(0, 5, 20, 0)).p_value == pytest.approx(chi2.sf(196 / 25, 1))
    assert mcnemar(*outcomes(0, 5, 19, 0)).p_value == pytest.approx(binomtest(5, 24).pvalue)


def test_models_that_are_equally_often_right() -> None:
    assert mcnemar(*outcomes(7, 0, 0, 2)).p_value == 1
    assert mcnemar(*outcomes(7, 13, 13, 2)).p_value == 1


def test_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="must be the same"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match="must be the same"):
        paired_bootstrap(np.mean, np.ones(3), np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="and some"):
        paired_bootstrap(np.mean, np.ones(0), np.ones(0))


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(0, 10, 500)  # of the rows: it widens no paired interval
    gains = generator.normal(0.3, 1, 500)
    found = paired_bootstrap(lambda of: float(of.mean()), hard + gains, hard, resamples=4000)
    assert found.value == pytest.approx(gains.mean())
    half = 1.96 * gains.std() / np.sqrt(500)
    assert found.low == pytest.approx(gains.mean() - half, abs=0.01)
    assert found.high == pytest.approx(gains.mean() + half, abs=0.01)


def test_bootstrap_gets_the_labels_of_its_rows() -> None:
    labels = np.arange(60) % 3
    theirs = np.where(np.arange(60) < 20, (labels + 1) % 3, labels)

    def accuracy(predictions: np.ndarray, of: np.ndarray) -> float:
        return float((predictions == of).mean())

    found = paired_bootstrap(accuracy, labels, theirs, labels)
    assert found.value == pytest.approx(1 / 3)
    assert 0.2 < found.low < 1 / 3 < found.high < 0.47
    turned = paired_bootstrap(accuracy, theirs, labels, labels)
    assert (turned.value, turned.low, turned.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )


def test_bootstrap_by_seed_and_level() -> None:
    ours, theirs = outcomes(30, 12, 5, 3)
    first, again, other = (
        paired_bootstrap(np.mean, ours, theirs, seed=seed, resamples=200) for seed in (0, 0, 1)
    )
    assert first == again != other
    narrow = paired_bootstrap(np.mean, ours, theirs, level=0.5)
    wide = paired_bootstrap(np.mean, ours, theirs, level=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
