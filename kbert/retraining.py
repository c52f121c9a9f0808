"""Train one configuration with several seeds: what a figure is worth, and which run to keep."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from kbert.config import Config
from kbert.distribution import from_chief
from kbert.evaluation import measure
from kbert.experiment import Experiment, Materials
from kbert.memory import released
from kbert.terminal import ProgressReport
from kbert.trained_part import trained_part
from kbert.training import Diverged, Progress, save_weights
from kbert.training_view import TrainingView
from kbert.trials import Objective
from kbert.whole_files import written_whole

RESULT = "result.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class SeedRun:
    """One training with one seed."""

    seed: int
    progress: Progress
    score: float
    """The search's objective, of the weights it ended with."""
    figures: dict[str, dict[str, float]]
    """Figures of validation and test, in float32."""
    weights: Path


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float | None
    """Of the sample (n - 1); None for one seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of some values."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation)


def retrain(
    materials: Materials,
    config: Config,
    objective: Objective,
    *,
    name: str,
    folder: Path,
    tensorboard: Path | None,
) -> list[SeedRun]:
    """Train and measure with the seeds after the run's own; finished ones are not repeated.

    The run's own seed is left out: it is the one that the best trial was chosen for. A training
    that diverges is told of and left out too.

    Args:
        materials: Data of the run.
        config: What to train, on all training rows.
        objective: The search's.
        name: What is trained, for the terminal.
        folder: Where each seed has its folder.
        tensorboard: Where the curves go, a run for each seed; None for nowhere.
    """
    runs = []
    for seed in seeds_of(config):
        train = dataclasses.replace(config.train, seed=seed)
        experiment = materials.experiment(dataclasses.replace(config, train=train))
        place = folder / f"seed-{seed}"
        curves = None if tensorboard is None else tensorboard / f"seed-{seed}"
        try:
            if not (place / RESULT).exists():
                with released():
                    _train(
                        experiment, objective,
                        name=f"{name}, seed {seed}", folder=place, tensorboard=curves,
                    )  # fmt: skip
        except Diverged as error:
            print(f"{name}, seed {seed}: {error}", flush=True)
        else:
            runs.append(_read(place, seed))
    return runs


def train_watched(
    experiment: Experiment, *, name: str, folder: Path, tensorboard: Path | None
) -> tuple[keras.Model, Progress]:
    """Train a new model with a progress bar and curves, from where it was stopped.

    Args:
        experiment: What to train.
        name: Its name on the terminal.
        folder: Where checkpoints are.
        tensorboard: Where the curves go; None for nowhere.

    Returns:
        What was trained, for `Experiment.exact_model`, and how it went.
    """
    experiment = trained_part(experiment)
    from_chief(experiment.config.train)  # other processes of the training may look at it now
    report = ProgressReport(name, total_steps=experiment.total_steps)
    view = None if tensorboard is None else TrainingView(experiment, tensorboard)
    model = experiment.new_model()
    try:
        callbacks = [report, *(view.callbacks if view is not None else ())]
        progress = experiment.train(model, folder=folder, callbacks=callbacks)
        if view is not None:
            view.finish(model)
    finally:
        report.close()
        if view is not None:
            view.close()
    return model, progress


def seeds_of(config: Config) -> list[int]:
    """Seeds of the runs after a search."""
    return [(config.train.seed + 1 + i) % 2**31 for i in range(config.search.seeds)]


def spreads(runs: Sequence[SeedRun]) -> dict[str, dict[str, Spread]]:
    """For each split and figure, the spread over the seeds."""
    return {
        split: {
            figure: Spread.of([run.figures[split][figure] for run in runs])
            for figure in runs[0].figures[split]
        }
        for split in (runs[0].figures if runs else ())
    }


def median_run(runs: Sequence[SeedRun], objective: Objective) -> SeedRun:
    """The run in the middle by the objective; of an even number the worse of the two."""
    ordered = sorted(runs, key=lambda run: run.score, reverse=not objective.larger_is_better)
    return ordered[(len(ordered) - 1) // 2]


def _read(folder: Path, seed: int) -> SeedRun:
    """What `_train` found; its checkpoints are needed no more."""
    found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    for state in (folder / "checkpoints").glob("*.safetensors"):
        state.unlink()
    progress = Progress(**found["progress"])
    return SeedRun(seed, progress, found["score"], found["figures"], folder / WEIGHTS)


def _train(
    experiment: Experiment,
    objective: Objective,
    *,
    name: str,
    folder: Path,
    tensorboard: Path | None,
) -> None:
    model, progress = train_watched(
        experiment, name=name, folder=folder / "checkpoints", tensorboard=tensorboard
    )
    exact = experiment.exact_model(model)
    figures = {
        split: _numbers(measure(exact, experiment.task, experiment.splits[split]))
        for split in ("validation", "test")
        if split in experiment.splits
    }
    save_weights(exact, folder / WEIGHTS)
    found = {
        "score": progress.figures(experiment.config.train)[objective.metric],
        "figures": figures,
        "progress": dataclasses.asdict(progress),
    }
    with written_whole(folder / RESULT) as beside:
        beside.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _numbers(metrics: dict) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, float)}
