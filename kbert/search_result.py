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
            "winner": {**_trial(outcome.winner), **_spreads(self.winner)},
            "default": {**_trial(outcome.default), **_spreads(self.default)},
            "exported_seed": self.exported.seed,
        }

    def table(self) -> Table:
        """The winner beside the default: the trials' own scores, and the spread over seeds."""
        outcome, figure = self.outcome, self.figure
        splits = list(self.winner[0].figures)
        columns = (
            "", f"{outcome.objective.title} of the trial", "seeds",
            *(f"{split} {figure}" for split in splits),
        )  # fmt: skip
        rows = [
            ("winner", outcome.winner, self.winner),
            ("default", outcome.default, self.default),
        ]
        shown = [(f"{name} (trial {trial.name})", *self._cells(trial, runs, splits))
                 for name, trial, runs in rows]  # fmt: skip
        if outcome.winner is not outcome.default and self.default:
            shown.append(("difference", *self._differences(splits)))
        return Table("the winner and the default, trained again with other seeds", columns, shown)

    def _cells(self, trial: Trial, runs: Sequence[SeedRun], splits: Sequence[str]) -> list[str]:
        score = trial.status if trial.score is None else f"{trial.score:.4f}"
        found = spreads(runs)
        again = [_cell(found[split][self.figure]) if runs else "" for split in splits]
        return [score, str(len(runs)), *again]

    def _differences(self, splits: Sequence[str]) -> list[str]:
        ours, theirs = self.outcome.winner.score, self.outcome.default.score
        found = ["" if ours is None or theirs is None else f"{ours - theirs:+.4f}", ""]
        winner, default = spreads(self.winner), spreads(self.default)
        for split in splits:
            difference = winner[split][self.figure].mean - default[split][self.figure].mean
            found.append(f"{difference:+.4f}")
        return found


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
        "seeds": [run.seed for run in runs],
        "retrained": {
            split: {name: dataclasses.asdict(spread) for name, spread in figures.items()}
            for split, figures in spreads(runs).items()
        },
    }


def _cell(spread: Spread) -> str:
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.4f}"
    return f"{spread.mean:.4f}{deviation}"
