"""Reliability against scikit-learn and by hand, temperatures against a grid."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from kbert.calibration import confidence_bins, fit_temperature, log_softmax, reliability, softmax
from kbert.metrics import cross_entropy


def test_reliability_by_hand() -> None:
    labels = np.array([0, 1, 0, 1, 1])
    first = np.array([0.5, 0.4, 0.25, 1.0, 0.05])  # confidence 0.5, 0.6, 0.75, 1, 0.95
    found = reliability(labels, np.stack([first, 1 - first], axis=1), bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.counts.tolist() == [0, 1, 2, 2]  # an upper edge belongs to its bin
    assert found.confidence == pytest.approx([0, 0.5, 0.675, 0.975])
    assert found.accuracy == pytest.approx([0, 1, 0.5, 0.5])
    assert found.ece == pytest.approx((0.5 + 2 * 0.175 + 2 * 0.475) / 5)


def test_reliability_as_json() -> None:
    found = reliability(np.array([1]), np.array([[0.2, 0.5, 0.3]]), bins=2)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == {
        "edges": [0, 0.5, 1],
        "confidence": [0.5, 0],
        "accuracy": [1, 0],
        "counts": [1, 0],
        "ece": 0.5,
    }


def test_a_calibrated_model_has_no_error() -> None:
    probabilities = np.tile([0.75, 0.25], (4, 1))
    assert reliability(np.array([0, 0, 0, 1]), probabilities).ece == pytest.approx(0, abs=1e-15)


def test_reliability_without_rows() -> None:
    found = reliability(np.zeros(0, int), np.zeros((0, 3)))
    assert found.counts.tolist() == [0] * 15
    assert found.ece == 0


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=40),
    st.integers(1, 20),
)
def test_reliability_is_scikit_learns_curve(rows: list[tuple[int, int]], bins: int) -> None:
    thirtieths, labels = np.array(rows).T
    second = thirtieths / 30  # on many edges
    probabilities = np.stack([1 - second, second], axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(int)
    accuracy, confidence = calibration_curve(
        right, probabilities.max(axis=1), n_bins=bins, pos_label=1
    )
    found = reliability(labels, probabilities, bins=bins)
    assert found.accuracy[found.counts > 0] == pytest.approx(accuracy, abs=1e-12)
    assert found.confidence[found.counts > 0] == pytest.approx(confidence, abs=1e-12)
    assert found.counts.sum() == len(rows)


def test_confidence_bins() -> None:
    confidence = np.array([0.0, 0.5, 0.50001, 1.0, 1.0000001])  # a rounded sum may be above 1
    assert confidence_bins(confidence, bins=2).tolist() == [0, 0, 1, 1, 1]


def test_softmax() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [800.0, -800.0, 0.0]], np.float32)
    for temperature in (1.0, 0.3, 4.0):
        expected = scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)
        assert softmax(logits, temperature) == pytest.approx(expected, abs=1e-15)
    expected = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    assert log_softmax(logits) == pytest.approx(expected, abs=1e-12)


# Temperature


def drawn(logits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A label of each row, drawn from the probabilities."""
    cumulative = softmax(logits).cumsum(axis=1)
    return (generator.random((len(logits), 1)) > cumulative).sum(axis=1)


@pytest.mark.parametrize("truth", [0.2, 0.7, 1.0, 3.0, 12.0])
def test_temperature_is_the_best_of_a_grid(truth: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 5)) * 2
    labels = drawn(logits, generator)
    found = fit_temperature(logits * truth, labels)
    assert found == pytest.approx(truth, rel=0.1)
    grid = np.geomspace(0.05, 20, 600)
    losses = [cross_entropy(logits * truth / temperature, labels) for temperature in grid]
    best = int(np.argmin(losses))
    assert grid[best - 1] < found < grid[best + 1]
    assert cross_entropy(logits * truth / found, labels) <= min(losses) + 1e-12


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=8),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.01, 1.0, 100.0]),
)
def test_temperature_is_never_worse_than_none(labels: list[int], seed: int, scale: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3)).astype(np.float32) * scale
    temperature = fit_temperature(logits, np.array(labels))
    assert 0.05 <= temperature <= 20
    scaled = logits.astype(np.float64) / temperature
    assert cross_entropy(scaled, np.array(labels)) <= cross_entropy(logits, np.array(labels))


@pytest.mark.parametrize(
    ("labels", "temperature"),
    [([0, 1], 0.05), ([1, 0], 20.0), ([], 1.0)],
    ids=["all right", "all wrong", "no rows"],
)
def test_temperature_at_its_bounds(labels: list[int], temperature: float) -> None:
    logits = np.array([[2.0, -1.0], [0.0, 1.0]])[: len(labels)]
    assert fit_temperature(logits, np.array(labels, int)) == temperature


def test_temperature_of_equal_logits() -> None:
    assert fit_temperature(np.zeros((3, 4)), np.array([0, 1, 3])) == 1.0


def test_temperature_refuses_infinite_logits() -> None:
    with pytest.raises(ValueError, match="logits must be finite"):
        fit_temperature(np.array([[np.inf, 0.0]]), np.array([0]))
