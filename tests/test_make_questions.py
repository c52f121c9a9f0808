"""The questions made for recipes/question_answering.yaml."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from make_questions import ask, expressions, paragraphs, split_questions, split_sentences

ARTICLES = [
    f"Title {number}\n\nThe firm Alpha{letter} sold 1,{number}00 shares to Mr Smith last week. "
    f"In 19{number} a manager of Beta{letter} paid $3.5bn for it, he said. It was short.\n\n"
    f"Jane Doe{letter} said that many people of London had not liked the new plan."
    for number, letter in enumerate("abcdefghij", start=50)
]


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("Yesterday Mr Smith said so.", [("Smith", "who")]),
        ("Jane Doe said it.", [("Jane Doe", "who")]),
        ("It paid $3.5bn in 1999.", [("$3.5bn", "how much"), ("1999", "which year")]),
        ("It cut 1,500 jobs by 20%.", [("1,500", "how many"), ("20%", "how much")]),
        ("It is in New York, not York.", [("New York", "what")]),
        ("It saw London and London.", []),  # which of them?
    ],
)
def test_what_is_asked_for(sentence: str, found: list[tuple[str, str]]) -> None:
    spans = list(expressions(sentence))
    assert [(sentence[start:end], word) for start, end, word in spans] == found


def test_a_question() -> None:
    assert ask('"Mr Smith left.', 4, 9, "who") == "Mr who left?"
    assert ask("Smith left!", 0, 5, "who") == "Who left?"


def test_sentences() -> None:
    assert split_sentences('He ran 3.5 miles. "So?" she said. No.') == [
        "He ran 3.5 miles.",
        '"So?" she said.',
        "No.",
    ]
    assert paragraphs("Title\n\n one  two\n three") == ["one two", "three"]


def test_answers_stand_where_they_should_and_articles_in_one_split() -> None:
    splits = split_questions([*ARTICLES, ARTICLES[0]], (12, 3, 4), sentences=2, seed=1)
    assert [len(rows) for rows in splits] == [12, 3, 4]
    for row in (row for rows in splits for row in rows):
        assert row["context"].startswith(row["answer"], row["start"])
        assert len(split_sentences(row["context"])) == 2
    of_split = [
        {letter for row in rows for letter in "abcdefghij" if f"{letter} " in row["context"]}
        for rows in splits
    ]
    named = [
        {ARTICLES.index(text) for text in ARTICLES for row in rows if row["context"][:40] in text}
        for rows in splits
    ]
    assert all(of_split) and all(named)
    assert not named[0] & named[1] and not named[0] & named[2] and not named[1] & named[2]
    assert split_questions(ARTICLES, (12, 3, 4), sentences=2, seed=1) == splits
    assert split_questions(ARTICLES, (12, 3, 4), sentences=2, seed=2) != splits
