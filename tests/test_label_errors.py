"""Likely label errors: by hand, and of labels that were flipped on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from kbert.calibration import softmax
from kbert.label_errors import Suspect, likely_label_errors


def test_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.85])
    # class 0 needs (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.8 + 0.7 + 0.15) / 3 = 0.55
    found = likely_label_errors(labels, np.stack([first, 1 - first], axis=1))
    assert [suspect[:2] for suspect in found] == [(2, 1), (5, 0)]  # by 0.8 and by 0.7
    assert [suspect.probability for suspect in found] == pytest.approx([0.9, 0.85])
    assert isinstance(found[0], Suspect) and type(found[0].position) is int


def test_a_doubtful_row_is_no_suspect() -> None:
    labels = np.array([0, 0, 1, 1])
    first = np.array([0.9, 0.4, 0.1, 0.1])  # class 1 needs 0.9 and has 0.6 of the second row
    assert likely_label_errors(labels, np.stack([first, 1 - first], axis=1)) == []


def test_a_row_that_is_predicted_as_labelled_is_no_suspect() -> None:
    labels = np.array([0, 0, 1, 1])
    first = np.array([0.99, 0.6, 0.65, 0.65])  # class 1 needs 0.35 alone; class 0 needs 0.795
    found = likely_label_errors(labels, np.stack([first, 1 - first], axis=1))
    assert found == []


def test_equal_probabilities_reach_their_mean() -> None:
    labels = np.array([1, 1, 1, 0])  # the mean of three times 0.8 is above 0.8 in float64
    second = np.array([0.8, 0.8, 0.8, 0.8])
    found = likely_label_errors(labels, np.stack([1 - second, second], axis=1))
    assert [suspect[:2] for suspect in found] == [(3, 1)]


def test_a_class_without_rows_is_never_suggested() -> None:
    probabilities = np.array([[0.3, 0.1, 0.6], [0.1, 0.3, 0.6], [0.05, 0.35, 0.6]])
    found = likely_label_errors(np.array([0, 1, 0]), probabilities)
    assert [suspect[:2] for suspect in found] == [(2, 1)]


@pytest.mark.parametrize("num_classes", [1, 4])
def test_no_rows(num_classes: int) -> None:
    assert likely_label_errors(np.zeros(0, int), np.zeros((0, num_classes))) == []


def test_one_class() -> None:
    assert likely_label_errors(np.zeros(3, int), np.ones((3, 1))) == []


def test_flipped_labels_are_found() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(4, size=2000)
    probabilities = softmax(generator.normal(size=(2000, 4)) + 4 * np.eye(4)[truth])
    flipped = generator.random(2000) < 0.05
    labels = np.where(flipped, (truth + generator.integers(1, 4, size=2000)) % 4, truth)
    found = likely_label_errors(labels, probabilities)
    positions = [suspect.position for suspect in found]
    assert len(set(positions)) == len(positions)
    assert flipped[positions].mean() > 0.9
    assert flipped[positions].sum() / flipped.sum() > 0.6
    assert flipped[positions[:40]].mean() > 0.97  # the most likely come first
    suggested = np.array([suspect.suggested for suspect in found])
    assert (suggested == truth[positions]).mean() > 0.95
