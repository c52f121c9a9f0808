"""How a search stands: its trials as records, on the terminal, in trials.csv, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kbert.config import Config
from kbert.monitor import write_image
from kbert.oracles import DEFAULT, HyperbandOracle, KeptOracle
from kbert.plots import save_figure
from kbert.search_plots import plot_search
from kbert.search_space import Dimension, shown_values, values_of
from kbert.terminal import TrialsReport
from kbert.trial_folder import trial_folder
from kbert.trials import Objective, Trial, ranked, write_trials_csv

STATUS: dict[str, Literal["running", "completed", "failed"]] = {
    "RUNNING": "running",
    "COMPLETED": "completed",
    "FAILED": "failed",
}


class SearchView:
    """Looks at an oracle whenever it changes, and keeps the disk to what is needed.

    Args:
        oracle: Knows the trials.
        objective: The figure that decides.
        space: What is tried.
        config: Options of trial 0.
        folder: Folder of the search.
        tensorboard: Where TensorBoard looks, None where it does not.
        report: The terminal.
    """

    def __init__(
        self,
        oracle: KeptOracle,
        objective: Objective,
        space: Sequence[Dimension],
        config: Config,
        *,
        folder: Path,
        tensorboard: Path | None,
        report: TrialsReport,
    ) -> None:
        self.oracle = oracle
        self.objective = objective
        self.space = tuple(space)
        self.names = [dimension.name for dimension in space]
        self.default = values_of(config, self.space)
        self.keep = config.search.keep
        self.folder = folder
        self.tensorboard = tensorboard
        self.report = report
        self.ended = -1

    def trials(self) -> list[Trial]:
        """Those that ended in the order of their ends, then those that run."""
        ended = list(self.oracle.end_order)
        running = [name for name in self.oracle.start_order if name not in set(ended)]
        return [self._record(self.oracle.trials[name]) for name in (*ended, *running)]

    def update(self) -> None:
        """Show and write how it stands; drop the weights of trials that are not the best."""
        trials = self.trials()
        self.report.update(trials)
        ended = len(self.oracle.end_order)
        if ended == self.ended:
            return
        self.ended = ended
        write_trials_csv(self.folder / "trials.csv", trials, self.names)
        picture = self.folder / "search.png"
        save_figure(plot_search(trials, self.objective, self.names), picture)
        if self.tensorboard is not None:
            write_image(self.tensorboard, "search", picture.read_bytes(), step=ended)
        self._prune(trials)

    def drop_checkpoints(self) -> None:
        """When the search is over, and no trial goes on."""
        for name in self.oracle.start_order:
            trial_folder(self.folder, name).drop_checkpoints()

    def _record(self, trial: Any) -> Trial:
        result = trial_folder(self.folder, trial.trial_id).result() or {}
        status = STATUS[trial.status]
        values = trial.hyperparameters.values
        metrics = result.get("metrics", {})
        return Trial(
            name=trial.trial_id,
            status=status,
            values=shown_values(self.default if DEFAULT in values else values, self.space),
            score=metrics.get(self.objective.metric) if status == "completed" else None,
            metrics=metrics,
            epochs=result.get("epochs", 0),
            seconds=result.get("seconds", 0.0),
            reason=result.get("reason"),
        )

    def _prune(self, trials: list[Trial]) -> None:
        best = {
            trial.name
            for trial in ranked(trials, self.objective)[: self.keep]
            if trial.status == "completed"
        }
        promotable = self.oracle.promotable() if isinstance(self.oracle, HyperbandOracle) else set()
        for trial in trials:
            folder = trial_folder(self.folder, trial.name)
            if trial.status == "running":
                continue
            if trial.name not in best:
                folder.drop_weights()
            if trial.name not in promotable:
                folder.drop_checkpoints()
