"""The order of trials, and trials.csv read back."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from kbert.trials import (
    Objective,
    Trial,
    Value,
    best_trial,
    ranked,
    short_texts,
    time_unit,
    write_trials_csv,
)

ACCURACY = Objective("val_accuracy", larger_is_better=True)
LOSS = Objective("val_loss", larger_is_better=False)


def completed(name: str, score: float, **values: Value) -> Trial:
    return Trial(name, "completed", values, score, {"val_accuracy": score}, 3, 60.0, None)


def running(name: str) -> Trial:
    return Trial(name, "running", {}, None, {}, 1, 20.0, None)


def failed(name: str, reason: str = "training diverged") -> Trial:
    return Trial(name, "failed", {}, None, {}, 0, 5.0, reason)


def test_the_best_come_first_and_of_ties_the_earlier() -> None:
    trials = [
        failed("06"),
        completed("05", 0.8),
        completed("04", 0.7),
        running("03"),
        completed("02", 0.8),
        failed("01"),
        completed("00", math.nan),
    ]
    names = [trial.name for trial in ranked(trials, ACCURACY)]
    assert names == ["02", "05", "04", "00", "03", "01", "06"]
    names = [trial.name for trial in ranked(trials, LOSS)]
    assert names == ["04", "02", "05", "00", "03", "01", "06"]


def test_trial_100_comes_after_99() -> None:
    trials = [completed("100", 0.5), completed("99", 0.5), completed("09", 0.5)]
    assert [trial.name for trial in ranked(trials, ACCURACY)] == ["09", "99", "100"]


def test_the_best_has_a_score_that_is_a_number() -> None:
    assert best_trial([completed("00", 0.6), completed("01", 0.5)], LOSS).name == "01"
    assert best_trial([completed("00", math.nan), running("01"), failed("02")], LOSS) is None
    assert best_trial([], ACCURACY) is None


def test_trial_0_is_the_default() -> None:
    assert completed("00", 0.5).title == "00 (default)"
    assert completed("10", 0.5).title == "10"
    assert not completed("01", 0.5).is_default


def test_objective_title() -> None:
    assert (ACCURACY.title, Objective("f1", True).title) == ("accuracy", "f1")


@pytest.mark.parametrize(
    ("seconds", "unit"), [(0, "s"), (119, "s"), (120, "min"), (7199, "min"), (7200, "h")]
)
def test_time_unit(seconds: float, unit: str) -> None:
    assert time_unit(seconds) == (unit, {"s": 1, "min": 60, "h": 3600}[unit])


def test_paths_are_shortened_where_that_tells_them_apart() -> None:
    texts = [
        "/models/tiny",
        "/models/模型/",
        "/a/base",
        "/b/base",
        "D:\\models\\large",
        "plain",
        "/",
    ]
    assert list(short_texts(texts).values()) == [
        "tiny", "模型", "/a/base", "/b/base", "large", "plain", "/"
    ]  # fmt: skip


def test_trials_csv_reads_back(tmp_path: Path) -> None:
    reason = 'bad "shape", 形状不对'
    third = 1 / 3
    trials = [
        failed("02", reason),
        Trial("01", "running", {"learning_rate": 2e-5}, None, {}, 1, 7.25, None),
        Trial(
            "00",
            "completed",
            {"learning_rate": third * 1e-4, "epochs": 3, "checkpoint": "/模型/中文"},
            third,
            {"val_loss": 0.1 + 0.2, "val_accuracy": third},
            3,
            61.123456789,
            None,
        ),
    ]
    path = tmp_path / "trials.csv"
    write_trials_csv(path, trials, ("learning_rate", "epochs", "checkpoint"))
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "trial", "status", "score", "val_loss", "val_accuracy",
        "hp.learning_rate", "hp.epochs", "hp.checkpoint", "epochs", "seconds", "reason",
    ]  # fmt: skip
    assert [row["trial"] for row in rows] == ["00", "01", "02"]
    first, second, last = rows
    assert float(first["score"]) == third
    assert float(first["val_loss"]) == 0.1 + 0.2
    assert float(first["hp.learning_rate"]) == third * 1e-4
    assert float(first["seconds"]) == 61.123456789
    assert (first["hp.epochs"], first["hp.checkpoint"]) == ("3", "/模型/中文")
    assert (second["score"], second["val_loss"], second["hp.epochs"]) == ("", "", "")
    assert (last["status"], last["reason"]) == ("failed", reason)
    assert [entry.name for entry in tmp_path.iterdir()] == ["trials.csv"]
