"""The trials of a search, as tables, plots and trials.csv take them; light to import."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kbert.whole_files import written_whole

Value = int | float | str


@dataclass(frozen=True)
class Trial:
    """One trial of a search."""

    name: str
    """00, 01, ...; trial 0 is the configuration as it stands, the default."""
    status: Literal["running", "completed", "failed"]
    """How far it is."""
    values: dict[str, Value]
    """Hyper-parameters that are active in it."""
    score: float | None
    """Value of the objective; None unless it is completed."""
    metrics: dict[str, float]
    """Validation figures of the model that it ends with, such as val_loss and val_accuracy."""
    epochs: int
    """Epochs that it was trained, 0 before the first is finished."""
    seconds: float
    """Time that it took, all attempts together."""
    reason: str | None
    """Why it failed, one line."""

    @property
    def is_default(self) -> bool:
        """Whether this is trial 0."""
        return not self.name.strip("0")

    @property
    def scored(self) -> bool:
        """Whether it is completed with a score that can be compared, not NaN or infinite."""
        return self.status == "completed" and self.score is not None and math.isfinite(self.score)

    @property
    def title(self) -> str:
        """The name, with a mark on the default."""
        return f"{self.name} (default)" if self.is_default else self.name


@dataclass(frozen=True)
class Objective:
    """What a search looks at."""

    metric: str
    """Such as val_accuracy."""
    larger_is_better: bool
    """Whether the best trial is the one with the largest value."""

    @property
    def title(self) -> str:
        """The metric without "val_"."""
        return self.metric.removeprefix("val_")


def ranked(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """The best first, of ties the earlier name; then those that run, then the failed by name.

    Completed trials whose score is not finite come last of the completed ones.
    """
    sign = -1 if objective.larger_is_better else 1
    status = ("completed", "running", "failed")

    def place(trial: Trial) -> tuple:
        score = sign * trial.score if trial.scored and trial.score is not None else math.inf
        return status.index(trial.status), score, _by_name(trial)

    return sorted(trials, key=place)


def best_trial(trials: Iterable[Trial], objective: Objective) -> Trial | None:
    """The trial with the best score; None where no trial has one."""
    return next(iter(ranked((trial for trial in trials if trial.scored), objective)), None)


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit to tell a time in and its seconds: ("s", 1), ("min", 60) or ("h", 3600)."""
    if seconds < 2 * 60:
        return "s", 1.0
    return ("min", 60.0) if seconds < 2 * 3600 else ("h", 3600.0)


def short_texts(texts: Iterable[str]) -> dict[str, str]:
    """Each text, paths shortened to their last part where that still tells them apart."""
    distinct = list(dict.fromkeys(texts))
    last = [text.replace("\\", "/").rstrip("/").rpartition("/")[2] or text for text in distinct]
    return {
        text: short if last.count(short) == 1 else text
        for text, short in zip(distinct, last, strict=True)
    }


def write_trials_csv(path: Path, trials: Iterable[Trial], hyperparameters: Sequence[str]) -> None:
    """All trials in the order of their names, with all digits of their numbers, in UTF-8.

    The columns are trial, status, score, each metric, hp.NAME for each hyper-parameter, epochs,
    seconds and reason. What a trial does not have is empty.
    """
    rows = sorted(trials, key=_by_name)
    metrics = list(dict.fromkeys(name for trial in rows for name in trial.metrics))
    settings = [f"hp.{name}" for name in hyperparameters]
    with written_whole(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["trial", "status", "score", *metrics, *settings, "epochs", "seconds", "reason"]
        )
        for trial in rows:
            figures = [trial.metrics.get(name) for name in metrics]
            values = [trial.values.get(name) for name in hyperparameters]
            head = [trial.name, trial.status, trial.score]
            writer.writerow([*head, *figures, *values, trial.epochs, trial.seconds, trial.reason])


def _by_name(trial: Trial) -> tuple[int, str]:
    return len(trial.name), trial.name  # 99 comes before 100
