"""keras-tuner's search over learning rate and batch size; a trial is the training code."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import keras
import keras_tuner
import numpy as np

from kbert.batches import EncodedSplit
from kbert.config import SearchOptions, TrainOptions
from kbert.errors import InputError
from kbert.tasks.task import Table, Task
from kbert.training import fit

TUNERS = {
    "random": keras_tuner.RandomSearch,
    "grid": keras_tuner.GridSearch,
    "bayesian": keras_tuner.BayesianOptimization,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search found."""

    options: TrainOptions
    """Training options with the winner's hyper-parameters."""
    trials: Table
    """Every trial with its figures, the best first."""


class TaskHyperModel(keras_tuner.HyperModel):
    """A task's model for keras-tuner: `build` makes it, `fit` trains it as any run does.

    keras-tuner's own callbacks keep weights of every trial on disk; they are not used.

    Args:
        new_model: A new model for some training options.
        task: The task.
        train: Rows that a trial learns from.
        validation: Rows that it is measured on.
        options: Training options of the run.
        search: The space.
    """

    def __init__(
        self,
        new_model: Callable[[TrainOptions], keras.Model],
        task: Task,
        train: EncodedSplit,
        validation: EncodedSplit,
        options: TrainOptions,
        search: SearchOptions,
    ) -> None:
        super().__init__()
        self.new_model = new_model
        self.task = task
        self.train = train
        self.validation = validation
        self.options = options
        self.search = search

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A new model with the checkpoint's weights."""
        return self.new_model(self.train_options(hp))

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, **kwargs) -> dict:
        """Train it; the figures of the last epoch are the trial's."""
        options = self.train_options(hp)
        began = time.monotonic()
        progress = fit(
            model, self.task, self.train, self.validation, options, folder=None, callbacks=[]
        )
        figures = progress.history[-1]
        print(
            f"trial: learning_rate {options.learning_rate:g}, batch_size {options.batch_size}: "
            f"{self.task.default_metric} {figures[self.task.default_metric]:.4f} "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        return figures

    def train_options(self, hp: keras_tuner.HyperParameters) -> TrainOptions:
        """The run's training options with a trial's hyper-parameters."""
        return dataclasses.replace(
            self.options,
            learning_rate=hp.Choice("learning_rate", self.search.learning_rate),
            batch_size=hp.Choice("batch_size", self.search.batch_size),
            epochs=self.search.epochs or self.options.epochs,
            best_metric=None,
            patience=0,
        )


def search(
    new_model: Callable[[TrainOptions], keras.Model],
    task: Task,
    train: EncodedSplit,
    validation: EncodedSplit | None,
    options: TrainOptions,
    search_options: SearchOptions,
    *,
    folder: Path,
) -> Outcome:
    """Run the trials that the folder does not have yet; name the best.

    Args:
        new_model: A new model for some training options.
        task: The task; its `default_metric` decides.
        train: Training rows; a trial sees `search.fraction` of them.
        validation: Rows that decide.
        options: Training options of the run.
        search_options: Tuner and space.
        folder: Where keras-tuner keeps its trials.

    Raises:
        InputError: there is no validation split.
    """
    if validation is None:
        raise InputError("search.tuner needs a validation split: data.validation or a fraction.")
    part = np.random.default_rng(options.seed).permutation(len(train))
    part = np.sort(part[: max(1, round(len(train) * search_options.fraction))])
    hypermodel = TaskHyperModel(
        new_model, task, train.take(part), validation, options, search_options
    )
    direction = "min" if task.default_metric.endswith("loss") else "max"
    tuner = TUNERS[search_options.tuner](
        hypermodel,
        objective=keras_tuner.Objective(task.default_metric, direction),
        max_trials=search_options.trials,
        seed=options.seed + 1,  # keras-tuner takes 0 for none, and draws one
        directory=str(folder.parent),
        project_name=folder.name,
        overwrite=False,
    )
    tuner.search(verbose=0)
    best = tuner.oracle.get_best_trials(1)
    if not best:
        raise InputError(f"no trial of the search succeeded; their reasons are in {folder}.")
    hp = best[0].hyperparameters
    winner = dataclasses.replace(
        options, learning_rate=hp.get("learning_rate"), batch_size=hp.get("batch_size")
    )
    return Outcome(winner, _table(tuner, task.default_metric, search_options.trials))


def _table(tuner: keras_tuner.Tuner, metric: str, trials: int) -> Table:
    rows = [
        (
            trial.trial_id,
            f"{trial.hyperparameters.get('learning_rate'):g}",
            trial.hyperparameters.get("batch_size"),
            trial.score,
        )
        for trial in tuner.oracle.get_best_trials(trials)
    ]
    return Table("trials", ("trial", "learning_rate", "batch_size", metric), rows)
