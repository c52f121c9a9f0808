"""keras-tuner's search for hyper-parameters; a trial is the training code."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import keras
import keras_tuner
import numpy as np
import tensorflow as tf

from kbert import oracles
from kbert.config import Config, as_yaml
from kbert.errors import InputError
from kbert.experiment import Experiment, Materials
from kbert.memory import released
from kbert.monitor import (
    HyperparameterDescription,
    TensorBoardMonitor,
    describe_search,
    end_trial,
    start_trial,
)
from kbert.oracles import BEAT_SECONDS, DEFAULT, KeptOracle
from kbert.search_space import (
    Dimension,
    as_value,
    combinations,
    values_of,
    with_values,
)
from kbert.search_view import SearchView, trial_folder
from kbert.terminal import TrialsReport
from kbert.training import Interrupted, save_weights
from kbert.trial_folder import TrialFolder
from kbert.trials import Objective, Trial, Value, ranked
from kbert.workers import is_chief, is_worker

logger = logging.getLogger(__name__)
keras_tuner.src.config.DEBUG = False  # prints the traceback of every trial that failed

TRIALS = 10  # of a search that does not say
OWNED_SECONDS = 2  # how often a running trial looks whether it was given to another worker
IDLE_SECONDS = 0.25  # how often a worker without a trial asks for one
SMALLER_IS_BETTER = ("loss", "perplexity")
ATTEMPTS_KILLED = 2  # for want of memory, after which a trial has failed
ESTIMATE_BATCHES = 6  # that are trained to tell the time of a grid


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search found."""

    trials: list[Trial]
    """In the order of their ends."""
    objective: Objective
    space: tuple[Dimension, ...]
    winner: Trial
    default: Trial
    """Trial 0, which may have failed."""
    config: Config
    """The options with the winner's hyper-parameters."""


class TrialTaken(Exception):
    """The trial was given to another worker, which took this one for dead."""


class TaskHyperModel(keras_tuner.HyperModel):
    """For keras-tuner: `build` makes the model of a trial, `fit` trains it as any run is trained.

    Args:
        materials: Data, tokenised once for all trials.
        config: Options of the run.
        space: What to try.
        objective: The figure that decides.
        folder: Where trials have their folders.
        tensorboard: Where their curves go, None for nowhere.
        report: What shows how far a trial is.
    """

    def __init__(
        self,
        materials: Materials,
        config: Config,
        space: tuple[Dimension, ...],
        objective: Objective,
        *,
        folder: Path,
        tensorboard: Path | None,
        report: TrialsReport,
    ) -> None:
        super().__init__()
        self.materials = materials
        self.space = space
        self.config = trial_config(config)
        self.objective = objective
        self.folder = folder
        self.tensorboard = tensorboard
        self.report = report
        count = len(materials.experiment(self.config).splits["train"])
        rows = np.random.default_rng(config.train.seed).permutation(count)
        rows = rows[: max(1, round(count * config.search.fraction))]
        self.rows = np.sort(rows) if len(rows) < count else None

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A new model with the checkpoint's weights."""
        return self.experiment(hp.values).new_model()

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *, trial: str
    ) -> dict[str, float]:
        """Train it, from where the trial was cut off; validation figures of what it ends with."""
        experiment = self.experiment(hp.values)
        folder = self.trial_folder(trial)
        killed = folder.attempts_killed()
        token = folder.claim()
        if killed >= ATTEMPTS_KILLED:
            raise MemoryError(f"the system ended the process in {killed} attempts.")
        before = 0.0
        if "tuner/trial_id" in hp.values:  # Hyperband: the best of the round before go on
            earlier = self.trial_folder(hp.values["tuner/trial_id"])
            folder.go_on_from(earlier)
            before = earlier.result()["elapsed"]
        until = hp.values.get("tuner/epochs")
        callbacks: list[Any] = [_Owned(folder, token), _Shown(self.report, trial, experiment)]
        curves = self.curves(trial)
        if curves is not None:
            every = self.config.monitor.every_steps
            callbacks.append(
                TensorBoardMonitor(curves, every_steps=every, options=as_yaml(experiment.config))
            )
        try:
            progress = experiment.train(
                model, folder=folder.checkpoints, callbacks=callbacks, until_epoch=until
            )
        finally:
            for callback in callbacks[2:]:
                callback.close()
        figures = progress.figures(experiment.config.train)
        metrics = {name: value for name, value in figures.items() if name.startswith("val_")}
        if not math.isfinite(metrics[self.objective.metric]):
            value = metrics[self.objective.metric]
            raise InputError(f"{self.objective.metric} is {value}.")
        save_weights(model, folder.weights)
        folder.finish(
            {
                "status": "completed",
                "metrics": metrics,
                "epochs": progress.epoch,
                "seconds": progress.elapsed - before,
                "elapsed": progress.elapsed,
            }
        )
        if until is None or until == self.config.train.epochs:
            folder.drop_checkpoints()
        return metrics

    def experiment(self, values: Mapping[str, Value]) -> Experiment:
        """What a trial with these hyper-parameters trains."""
        config = self.config if DEFAULT in values else with_values(self.config, values)
        experiment = self.materials.experiment(config)
        return experiment if self.rows is None else experiment.take(self.rows)

    def shown_values(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The hyper-parameters of a trial as tables show them."""
        chosen = values_of(self.config, self.space) if DEFAULT in values else values
        return {d.name: as_value(d.name, chosen[d.name]) for d in self.space if d.name in chosen}

    def curves(self, trial: str) -> Path | None:
        """Where TensorBoard looks for a trial."""
        return None if self.tensorboard is None else self.tensorboard / "trials" / trial

    def trial_folder(self, trial: str) -> TrialFolder:
        """Where a trial keeps what it needs."""
        return trial_folder(self.folder, trial)


class SearchTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs trials one after the other, or asks the chief for them.

    Args:
        oracle: Chooses hyper-parameters.
        hypermodel: Builds and trains.
        folder: Where the oracle keeps its state.
    """

    def __init__(self, oracle: KeptOracle, hypermodel: TaskHyperModel, *, folder: Path) -> None:
        # the hyper-model is given afterwards: keras-tuner would build models to learn of the space
        super().__init__(oracle, directory=str(folder.parent), project_name=folder.name)
        self.hypermodel = hypermodel
        self.waiting = False
        if not is_worker():
            oracle.reload()

    def pre_create_trial(self) -> None:
        """Ask again after a moment when there was no trial to have."""
        if self.waiting:
            time.sleep(IDLE_SECONDS)
        self.waiting = True

    def on_trial_begin(self, trial: Any) -> None:
        """Say in TensorBoard that it runs."""
        self.waiting = False
        self.taken = False

    def on_trial_end(self, trial: Any) -> None:
        """Tell the oracle, unless another worker has the trial now."""
        if not self.taken:
            self.oracle.end_trial(trial)
            self.save()

    def save(self) -> None:
        """The oracle's state is all that there is."""
        if not is_worker():
            self.oracle.save()

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Figures of the trial; they are recorded before the oracle hears of them."""
        folder = self.hypermodel.trial_folder(trial.trial_id)
        result = folder.result()
        if result is None:
            with _beating(self.oracle, trial.trial_id):
                self._train(trial, folder)
            result = folder.result()
        if result["status"] == "failed":
            raise keras_tuner.errors.FailedTrialError(result["reason"])
        return result["metrics"]

    def _train(self, trial: Any, folder: TrialFolder) -> None:
        hypermodel, hp = self.hypermodel, trial.hyperparameters
        curves = hypermodel.curves(trial.trial_id)
        if curves is not None:
            start_trial(curves, f"trial {trial.trial_id}", hypermodel.shown_values(hp.values))
        began = time.monotonic()
        try:
            with released():
                figures = hypermodel.fit(hp, hypermodel.build(hp), trial=trial.trial_id)
        except Interrupted as error:
            raise keras_tuner.errors.FatalError() from error
        except TrialTaken:
            self.taken = True
            raise
        except OSError as error:  # a full disk is no fault of the trial
            reason = error.strerror or str(error)
            raise keras_tuner.errors.FatalError() from InputError(f"{folder.path}: {reason}.")
        except Exception as error:
            logger.debug("%s", traceback.format_exc())
            seconds = time.monotonic() - began
            folder.finish(
                {"status": "failed", "reason": _reason(error), "epochs": 0, "seconds": seconds}
            )
            folder.drop_checkpoints()
            if curves is not None:
                end_trial(curves, "failed")
        else:
            if curves is not None:
                end_trial(curves, "completed", figures=_without_prefix(figures))


def search(
    materials: Materials,
    config: Config,
    space: tuple[Dimension, ...],
    *,
    folder: Path,
    tensorboard: Path | None,
) -> Outcome | None:
    """Run the trials that the folder does not have yet; name the best.

    A process that keras-tuner's environment variables make a worker runs what the chief gives it.

    Args:
        materials: Data of the run.
        config: Options of the run.
        space: What to try.
        folder: Where the search keeps its trials; all its processes share it.
        tensorboard: Where curves and the HParams tab's data go; None for nowhere.

    Returns:
        What was found; None in a worker.

    Raises:
        InputError: there is no validation split, or no trial succeeded.
        Interrupted: SIGINT came, and the running trial's checkpoint is written.
    """
    experiment = materials.experiment(config)
    if "validation" not in experiment.splits:
        raise InputError("search.tuner needs a validation split: data.validation or a fraction.")
    objective = objective_of(experiment)
    report = TrialsReport(objective, [dimension.name for dimension in space])
    hypermodel = TaskHyperModel(
        materials, config, space, objective,
        folder=folder, tensorboard=tensorboard, report=report,
    )  # fmt: skip
    oracle = _new_oracle(config, space, objective)
    tuner = SearchTuner(oracle, hypermodel, folder=folder)
    view = SearchView(
        oracle, objective, space, hypermodel.config,
        folder=folder, tensorboard=tensorboard, report=report,
    )  # fmt: skip
    if not is_worker():
        if config.search.tuner == "grid" and not oracle.trials:
            _tell_time_of_grid(hypermodel, oracle.combinations)
        if tensorboard is not None:
            metrics = [objective.metric.removeprefix("val_")]
            describe_search(tensorboard, [_description(d) for d in space], metrics)
        oracle.on_change = view.update
        view.update()
    try:
        with _looking_for_lost_workers(oracle):
            tuner.search(verbose=0)
    except keras_tuner.errors.FatalError as error:
        raise (error.__cause__ or error) from None
    finally:
        report.close()
    return None if is_worker() else _outcome(view.trials(), objective, space, config, folder)


def objective_of(experiment: Experiment) -> Objective:
    """What a search maximises or minimises: train.best_metric, by default the task's."""
    chosen = experiment.config.train.best_metric
    metric = f"val_{chosen.removeprefix('val_')}" if chosen else experiment.task.default_metric
    return Objective(metric, larger_is_better=not metric.endswith(SMALLER_IS_BETTER))


def trial_config(config: Config) -> Config:
    """The options of trial 0: the run's, with the epochs of a trial."""
    epochs = config.search.epochs or config.train.epochs
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))


class _Owned(keras.callbacks.Callback):
    """Leaves a trial that was given to another worker."""

    def __init__(self, folder: TrialFolder, token: str) -> None:
        super().__init__()
        self.folder = folder
        self.token = token
        self.looked = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if time.monotonic() - self.looked < OWNED_SECONDS:
            return
        self.looked = time.monotonic()
        if not self.folder.belongs_to(self.token):
            raise TrialTaken(str(self.folder.path))


class _Shown(keras.callbacks.Callback):
    """Tells the terminal how far a trial is."""

    def __init__(self, report: TrialsReport, trial: str, experiment: Experiment) -> None:
        super().__init__()
        self.report = report
        self.trial = trial
        self.epochs = experiment.config.train.epochs
        self.steps = experiment.total_steps // self.epochs

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = int(self.model.optimizer.iterations)
        epoch = (step - 1) // self.steps + 1
        within = step - (epoch - 1) * self.steps
        self.report.progress(self.trial, f"epoch {epoch}/{self.epochs}, step {within}/{self.steps}")


@contextlib.contextmanager
def _beating(oracle: Any, trial: str) -> Iterator[None]:
    """A worker's word to the chief, every few seconds, that it lives."""
    if not is_worker():
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(grpc.RpcError):  # the chief may be on its way back
                oracle.get_trial(trial)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextlib.contextmanager
def _looking_for_lost_workers(oracle: KeptOracle) -> Iterator[None]:
    """Also while no worker asks the chief for a trial: it ends when none is left."""
    if not is_chief():
        yield
        return
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(BEAT_SECONDS):
            oracle.take_back_lost_trials()

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _new_oracle(config: Config, space: tuple[Dimension, ...], objective: Objective) -> KeptOracle:
    options = config.search
    default = values_of(trial_config(config), space)
    common: dict[str, Any] = {
        "default": default,
        "objective": keras_tuner.Objective(
            objective.metric, "max" if objective.larger_is_better else "min"
        ),
        "hyperparameters": oracles.hyperparameters(space),
        "seed": config.train.seed + 1,  # keras-tuner takes 0 for none, and draws one
    }
    count = options.trials or TRIALS
    if options.tuner == "grid":
        every = [values for values in combinations(space) if values != default]
        count = min(len(every), options.trials or len(every))
        return oracles.GridOracle(combinations=every, max_trials=count + 1, **common)
    if options.tuner == "hyperband":
        return oracles.HyperbandOracle(
            max_epochs=trial_config(config).train.epochs, factor=options.factor, **common
        )
    if options.tuner == "bayesian":
        # a third of the trials at random first; keras-tuner's own, three for each
        # hyper-parameter, would be all of them
        first = max(3, min(3 * len(space), count // 3))
        return oracles.BayesianOracle(max_trials=count + 1, num_initial_points=first, **common)
    return oracles.RandomOracle(max_trials=count + 1, **common)


def _tell_time_of_grid(hypermodel: TaskHyperModel, grid: Sequence[Mapping[str, Value]]) -> None:
    """Its size, and its time from a few steps of trial 0's configuration."""
    size = f"grid: {len(grid)} combinations besides the default"
    try:
        with released():
            seconds, rate = _time_of(hypermodel, grid)
    except InputError as error:  # trial 0 will say it again
        print(f"{size}; their time is unknown: {error}", flush=True)
    else:
        print(f"{size}, about {_duration(seconds)} ({rate:.0f} rows a second)", flush=True)


def _time_of(
    hypermodel: TaskHyperModel, grid: Sequence[Mapping[str, Value]]
) -> tuple[float, float]:
    """Seconds of all trials, and training rows a second."""
    experiment = hypermodel.experiment({DEFAULT: 1})
    options = experiment.config.train
    rows = len(experiment.splits["train"])
    some = np.arange(rows)[:: max(1, rows // (ESTIMATE_BATCHES * options.batch_size))]
    began = time.monotonic()
    few = experiment.take(some).for_one_epoch()
    progress = few.train(few.new_model(), folder=None, callbacks=[])
    start = time.monotonic() - began - progress.seconds  # loading and tracing
    rate = progress.examples_per_second or len(some) / start
    # measuring a row takes about a third of training on it
    seen = rows + len(experiment.splits["validation"]) / 3
    epochs = sum(values.get("epochs", options.epochs) for values in ({}, *grid))
    return start * (1 + len(grid)) + epochs * seen / rate, rate


def _description(dimension: Dimension) -> HyperparameterDescription:
    if dimension.values:
        return HyperparameterDescription(dimension.name, values=dimension.values)
    return HyperparameterDescription(
        dimension.name,
        minimum=dimension.minimum,
        maximum=dimension.maximum,
        is_integer=dimension.type is int,
    )


def _without_prefix(figures: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("val_"): value for name, value in figures.items()}


def _outcome(
    trials: list[Trial],
    objective: Objective,
    space: tuple[Dimension, ...],
    config: Config,
    folder: Path,
) -> Outcome:
    best = ranked(trials, objective)[0]
    if best.status != "completed":
        reason = next(trial.reason for trial in trials if trial.reason)
        raise InputError(
            f"no trial of the search succeeded ({folder / 'trials.csv'}); one of them: {reason}"
        )
    default = next(trial for trial in trials if int(trial.name) == 0)
    winner = config if best is default else with_values(config, best.values)
    return Outcome(trials, objective, space, best, default, winner)


def _reason(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        return f"out of memory: {text[:200]}"
    return f"{type(error).__name__}: {text[:300]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
