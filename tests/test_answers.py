"""Two models' answers compared: differences, other values, ties, ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.answers import Answers, compare, without_padding

IDS = {"token_ids": [[2, 7, 3], [2, 3]], "segment_ids": [[0, 0, 0], [0, 0]]}
LABELS = np.array(["no", "yes"], object)
RANKED_BY = {"label": "logits", "piece": "score"}


def answers(**outputs: np.ndarray) -> Answers:
    return Answers(IDS, outputs)


def of(ours: Answers, reference: Answers, bound: float = 1e-5):
    return compare(ours, reference, ranked_by=RANKED_BY, bound=bound)


@given(st.floats(-1e3, 1e3), st.floats(0, 1), st.integers(0, 1))
def test_a_difference_counts_in_units_of_the_reference(
    largest: float, off: float, row: int
) -> None:
    reference = np.array([[largest, 0.25], [0.5, -0.25]])
    ours = reference.copy()
    ours[row, 1] += off
    found = of(answers(x=ours), answers(x=reference))
    expected = abs(ours[row, 1] - reference[row, 1]) / max(1, abs(largest))
    assert found.rows[row] == pytest.approx(expected)
    assert found.rows[1 - row] == 0
    assert bool(found.problem(1e-5)) == (expected > 1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_a_problem(wrong: float) -> None:
    right = answers(x=np.zeros((2, 3), np.float32))
    ours = answers(x=np.array([[0, 0, 0], [0, wrong, 0]], np.float32))
    assert "x is off by" in of(ours, right).problem(1e-5)
    assert "x is off by" in of(right, ours).problem(1e-5)


def test_another_shape_or_no_output_is_a_problem() -> None:
    reference = answers(x=np.zeros((2, 3)), label=LABELS)
    assert "x is off by inf" in of(answers(x=np.zeros((2, 4)), label=LABELS), reference).problem(1)
    assert "x is off by inf" in of(answers(label=LABELS), reference).problem(1)
    assert "label has 2 other values" in of(answers(x=np.zeros((2, 3))), reference).problem(1)
    assert of(reference, answers(label=LABELS)).problem(0) == ""  # more outputs are no problem


@pytest.mark.parametrize(("gap", "problem"), [(1e-5, ""), (1e-4, "label has 1 other values")])
def test_another_label_is_right_at_a_tie_alone(gap: float, problem: str) -> None:
    logits = np.array([[3.0, 0.0], [0.5, 0.5 + 3 * gap]])  # the bound is thrice as wide at 3.0
    reference = answers(logits=logits, label=LABELS)
    ours = answers(logits=logits, label=np.array(["no", "no"], object))
    assert of(ours, reference).problem(1e-5) == problem
    assert of(ours, reference).same_values.tolist() == [True, not problem]
    swapped = answers(logits=logits, label=np.array(["yes", "yes"], object))
    assert "label has 1 other values" in of(swapped, reference).problem(1e-5)


def test_a_single_class_has_no_ties() -> None:
    logits = np.zeros((2, 1))
    ours = answers(logits=logits, label=LABELS)
    reference = answers(logits=logits, label=np.array(["no", "no"], object))
    assert "label has 1 other values" in of(ours, reference).problem(1e-5)


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        ([7, 8, 9], 0),
        ([8, 7, 9], 1),  # the first does not tie
        ([7, 9, 8], 0),  # the second and the third tie
        ([7, 8, 6], 0),  # the third ties with the second, so perhaps with the fourth
        ([6, 8, 9], 1),
    ],
)
def test_chosen_values_may_change_places_at_a_tie(ours: list[int], others: int) -> None:
    score = np.array([[[0.5, 0.2, 0.2 - 1e-6]], [[0.0, 0.0, 0.0]]])
    reference = answers(score=score, piece=np.array([[[7, 8, 9]], [[-1, -1, -1]]]))
    changed = of(answers(score=score, piece=np.array([[ours], [[-1, -1, -1]]])), reference)
    assert changed.changed["piece"].tolist() == [others, 0]
    filled = answers(score=score, piece=np.array([[[7, 8, 9]], [[-1, 3, -1]]]))
    assert of(filled, reference).changed["piece"].tolist() == [0, 1]


def test_without_a_ranking_values_are_equal_or_not() -> None:
    reference = answers(count=np.array([1, 2]), logits=np.zeros((2, 2)))
    ours = answers(count=np.array([1, 3]), logits=np.zeros((2, 2)))
    assert "count has 1 other values" in of(ours, reference).problem(1e-5)


@pytest.mark.parametrize("key", ["token_ids", "segment_ids"])
def test_other_ids_are_a_problem(key: str) -> None:
    reference = answers(x=np.zeros(2))
    ours = Answers({**IDS, key: [IDS[key][0], [0, 9]]}, reference.outputs)
    found = of(ours, reference)
    assert found.same_ids.tolist() == [True, False]
    assert found.problem(1) == "the ids of 1 of 2 probes differ"


def test_padding_is_left_out() -> None:
    found = without_padding(
        {
            "token_ids": np.array([[2, 0, 3], [2, 3, 0]]),
            "segment_ids": np.array([[0, 1, 1], [0, 0, 0]]),
            "padding_mask": np.array([[1, 1, 1], [1, 1, 0]]),
        }
    )
    assert found == {"token_ids": [[2, 0, 3], [2, 3]], "segment_ids": [[0, 1, 1], [0, 0]]}
