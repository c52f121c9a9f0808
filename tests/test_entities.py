"""Entities of BIO tags: their words, and the figures of those found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.entities import Entity, entities, entity_figures, is_tag, tag_inside

TAGS = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b-c", "I-b-c"]), max_size=7)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-a I-a O B-b", [("a", 0, 2), ("b", 3, 4)]),
        ("B-a B-a", [("a", 0, 1), ("a", 1, 2)]),
        ("O I-a I-a", [("a", 1, 3)]),
        ("B-a I-b", [("a", 0, 1), ("b", 1, 2)]),
        ("B-to.city-name I-to.city-name", [("to.city-name", 0, 2)]),
    ],
)
def test_entities_of_a_sentence(tags: str, found: list[tuple]) -> None:
    assert entities(tags.split()) == [Entity(*each) for each in found]


@given(TAGS)
def test_entities_are_apart_and_hold_every_tag_but_o(tags: list[str]) -> None:
    words = [word for entity in entities(tags) for word in range(entity.start, entity.end)]
    assert words == [word for word, tag in enumerate(tags) if tag != "O"]


def test_what_is_a_tag() -> None:
    assert all(map(is_tag, ("O", "B-x", "I-to.city", "B--")))
    assert not any(map(is_tag, ("", "o", "B", "B-", "I-", "X-x", "S-x", "BI-x", " O")))


def test_tag_of_further_words() -> None:
    assert [tag_inside(tag) for tag in ("O", "B-x", "I-x", "B-I-x")] == ["O", "I-x", "I-x", "I-I-x"]


def test_figures_of_a_hand_counted_example() -> None:
    gold = [["B-a", "I-a", "O"], ["B-b", "O", "B-a"], ["O"]]
    predicted = [["B-a", "I-a", "O"], ["B-b", "I-b", "O"], ["I-c"]]
    figures = entity_figures(gold, predicted)
    # 3 predicted, 3 to be found, 1 right
    assert figures["precision"] == figures["recall"] == figures["f1"] == pytest.approx(1 / 3)
    assert figures["entities"] == 3
    # I-c is none: 2 predicted
    assert figures["f1_strict"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert figures["per_type"] == {
        "a": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "b": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
        "c": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    }


@pytest.mark.filterwarnings("error")
def test_figures_without_any_entity() -> None:
    figures = entity_figures([["O", "O"], []], [["O", "O"], []])
    assert figures["f1"] == figures["f1_strict"] == figures["entities"] == 0
    assert figures["per_type"] == {}
    assert entity_figures([["B-a"]], [["O"]])["recall"] == 0


@given(st.lists(st.tuples(TAGS, TAGS), max_size=5))
def test_figures_are_those_of_sets_of_entities(pairs: list[tuple[list[str], list[str]]]) -> None:
    pairs = [(gold, (predicted + ["O"] * 9)[: len(gold)]) for gold, predicted in pairs]
    sides = [
        {(row, entity) for row, pair in enumerate(pairs) for entity in entities(pair[side])}
        for side in (0, 1)
    ]
    right, (gold, predicted) = len(sides[0] & sides[1]), map(len, sides)
    figures = entity_figures(*([pair[side] for pair in pairs] for side in (0, 1)))
    assert figures["precision"] == pytest.approx(right / predicted if predicted else 0)
    assert figures["recall"] == pytest.approx(right / gold if gold else 0)
    assert figures["f1"] == pytest.approx(2 * right / (gold + predicted) if right else 0)
