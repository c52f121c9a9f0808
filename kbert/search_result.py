"""What a search and the trainings after it have found, as numbers and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kbert.retraining import SeedRun, Spread, median_run, spreads
from kbert.search import Outcome
from kbert.tasks.task import Table
from kbert.trials import Trial, ranked


@dataclass(frozen=True)
class SearchResult:
    """A search with the trainings of its winner and of the default configuration."""

    outcome: Outcome
    winner: Sequence[SeedRun]
    default: Sequence[SeedRun]
    """The winner's where the default configuration won; none where it failed."""

    @property
    def exported(self) -> SeedRun:
        """The winner's median run."""
        return median_run(self.winner, self.outcome.objective)

    @property
    def figure(self) -> str:
        """Name of the objective among the figures of a split."""
        name = self.outcome.objective.metric.removeprefix("val_")
        return name if name in self.winner[0].figures["validation"] else "loss"

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        outcome = self.outcome
        return {
            "objective": outcome.objective.metric,
            "trials": [_trial(trial) for trial in ranked(outcome.trials, outcome.objective)],
            "winner": {**_trial(outcome.winner), "retrained": _spreads(self.winner)},
            "default": {**_trial(outcome.default), "retrained": _spreads(self.default)},
            "seeds": [run.seed for run in self.winner],
            "exported_seed": self.exported.seed,
        }

    def table(self) -> Table:
        """The winner beside the default: the trials' own scores, and the spread over seeds."""
        outcome, name = self.outcome, self.figure
        splits = list(self.winner[0].figures)
        columns = (
            "", f"{name} of the trial",
            *(f"{split} {name}, {len(self.winner)} seeds" for split in splits),
        )  # fmt: skip
        rows: list[tuple] = [
            (f"winner ({_label(outcome.winner)})", *_cells(outcome.winner, self.winner, name)),
            (f"default ({_label(outcome.default)})", *_cells(outcome.default, self.default, name)),
        ]
        rows[1] += ("",) * (len(columns) - len(rows[1]))
        if outcome.winner is not outcome.default and self.default:
            rows.append(("gain", *self._gains(splits)))
        return Table("the winner and the default, trained again with other seeds", columns, rows)

    def _gains(self, splits: Sequence[str]) -> list[str]:
        ours, theirs = self.outcome.winner.score, self.outcome.default.score
        gains = ["" if ours is None or theirs is None else f"{ours - theirs:+.4f}"]
        winner, default = spreads(self.winner), spreads(self.default)
        for split in splits:
            difference = winner[split][self.figure].mean - default[split][self.figure].mean
            gains.append(f"{difference:+.4f}")
        return gains


def _trial(trial: Trial) -> dict[str, Any]:
    found = {
        "trial": trial.name,
        "status": trial.status,
        "score": trial.score,
        "hyperparameters": trial.values,
    }
    return found if trial.reason is None else {**found, "reason": trial.reason}


def _spreads(runs: Sequence[SeedRun]) -> dict[str, Any]:
    return {
        split: {name: dataclasses.asdict(spread) for name, spread in figures.items()}
        for split, figures in spreads(runs).items()
    }


def _label(trial: Trial) -> str:
    return f"trial {trial.name}"


def _cells(trial: Trial, runs: Sequence[SeedRun], name: str) -> list[str]:
    score = trial.status if trial.score is None else f"{trial.score:.4f}"
    return [score, *(_cell(figures[name]) for figures in spreads(runs).values())]


def _cell(spread: Spread) -> str:
    return f"{spread.mean:.4f} ± {spread.deviation:.4f}"
