"""What a figure is worth: spreads, the median run, the table of winner and default."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbert.config import parse
from kbert.retraining import SeedRun, Spread, median_run, seeds_of, spreads
from kbert.search import Outcome
from kbert.search_result import SearchResult
from kbert.training import Progress
from kbert.trials import Objective, Trial

ACCURACY = Objective("val_accuracy", larger_is_better=True)
LOSS = Objective("val_loss", larger_is_better=False)
WORDS = ["--data.train", "t", "--output", "o", "--model.checkpoint", "c"]


def run(seed: int, score: float) -> SeedRun:
    figures = {"validation": {"accuracy": score}, "test": {"accuracy": score / 2}}
    return SeedRun(seed, Progress(), score, figures, Path("weights"))


def trial(name: str, score: float | None) -> Trial:
    status = "failed" if score is None else "completed"
    reason = "diverged" if score is None else None
    return Trial(name, status, {"batch_size": 16}, score, {}, 1, 2.0, reason)


def result_of(default: float | None, again: list[SeedRun]) -> SearchResult:
    trials = [trial("0", default), trial("1", 0.9)]
    outcome = Outcome(trials, ACCURACY, (), trials[1], trials[0], parse(WORDS))
    return SearchResult(outcome, [run(1, 0.8), run(2, 0.9), run(3, 0.7)], again)


def test_seeds_are_not_the_one_that_chose() -> None:
    config = parse([*WORDS, "--train.seed", "5", "--search.seeds", "3"])
    assert seeds_of(config) == [6, 7, 8]
    last = parse([*WORDS, "--train.seed", str(2**31 - 1), "--search.seeds", "1"])
    assert seeds_of(last) == [0]


def test_spread_of_a_sample() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)
    assert Spread.of([0.5]) == Spread(0.5, None)
    assert spreads([run(1, 0.8), run(2, 0.6)])["test"]["accuracy"].mean == pytest.approx(0.35)
    assert spreads([]) == {}


@pytest.mark.parametrize(
    ("objective", "scores", "median"),
    [
        (ACCURACY, [0.9, 0.7, 0.8], 0.8),
        (LOSS, [0.9, 0.7, 0.8], 0.8),
        (ACCURACY, [0.9, 0.7, 0.8, 0.6], 0.7),  # the worse of the two in the middle
        (LOSS, [0.9, 0.7, 0.8, 0.6], 0.8),
        (ACCURACY, [0.4], 0.4),
    ],
)
def test_the_median_run(objective: Objective, scores: list[float], median: float) -> None:
    runs = [run(seed, score) for seed, score in enumerate(scores)]
    assert median_run(runs, objective).score == median


def test_the_table_of_winner_and_default() -> None:
    result = result_of(0.6, [run(1, 0.6), run(2, 0.5)])
    assert result.exported.seed == 1
    table = result.table()
    assert table.columns == (
        "", "accuracy of the trial", "seeds", "validation accuracy", "test accuracy",
    )  # fmt: skip
    assert table.rows == [
        ("winner (trial 1)", "0.9000", "3", "0.8000 ± 0.1000", "0.4000 ± 0.0500"),
        ("default (trial 0)", "0.6000", "2", "0.5500 ± 0.0707", "0.2750 ± 0.0354"),
        ("difference", "+0.3000", "", "+0.2500", "+0.1250"),
    ]
    found = result.as_dict()
    assert found["default"]["seeds"] == [1, 2]
    assert found["winner"]["retrained"]["test"]["accuracy"]["mean"] == pytest.approx(0.4)
    assert found["exported_seed"] == 1


def test_a_default_that_failed_has_no_figures() -> None:
    table = result_of(None, []).table()
    assert table.rows[1:] == [("default (trial 0)", "failed", "0", "", "")]


def test_one_seed_has_no_deviation() -> None:
    result = result_of(0.6, [run(1, 0.6)])
    assert result.table().rows[1][3] == "0.6000"
    assert result.as_dict()["default"]["retrained"]["test"]["accuracy"]["deviation"] is None
