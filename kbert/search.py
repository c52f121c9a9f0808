"""keras-tuner's search for hyper-parameters; a trial is the training code."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np

from kbert import oracles
from kbert.config import Config
from kbert.errors import InputError
from kbert.experiment import Experiment, Materials
from kbert.memory import released
from kbert.monitor import HyperparameterDescription, describe_search
from kbert.oracles import BEAT_SECONDS, DEFAULT, KeptOracle
from kbert.search_space import Dimension, combinations, values_of, with_values
from kbert.search_view import SearchView
from kbert.terminal import TrialsReport
from kbert.training import Interrupted, smaller_is_better
from kbert.trials import Objective, Trial, Value, ranked
from kbert.tuner import SearchTuner, TaskHyperModel, reason_of, trial_config
from kbert.workers import is_chief, local_workers

TRIALS = 10  # of a search that does not say
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


def search(
    materials: Materials,
    config: Config,
    space: tuple[Dimension, ...],
    *,
    folder: Path,
    tensorboard: Path | None,
) -> Outcome:
    """Run the trials that the folder does not have yet; name the best.

    Args:
        materials: Data of the run.
        config: Options of the run.
        space: What to try.
        folder: Where the search keeps its trials; all its processes share it.
        tensorboard: Where curves and the HParams tab's data go; None for nowhere.

    Raises:
        InputError: there is no validation split, or no trial succeeded, or no worker is left.
        Interrupted: SIGINT came, and the running trial's checkpoint is written.
    """
    hypermodel = _new_hypermodel(materials, config, space, folder=folder, tensorboard=tensorboard)
    objective, report = hypermodel.objective, hypermodel.report
    oracle = _new_oracle(config, space, objective)
    tuner = SearchTuner(oracle, hypermodel, folder=folder)
    view = SearchView(
        oracle, objective, space, hypermodel.config,
        folder=folder, tensorboard=tensorboard, report=report,
    )  # fmt: skip
    if isinstance(oracle, oracles.GridOracle) and not oracle.trials:
        _tell_time_of_grid(hypermodel, oracle.combinations)
    if tensorboard is not None:
        descriptions = [_description(dimension) for dimension in space]
        describe_search(tensorboard, descriptions, [objective.title])
    oracle.on_change = view.update
    try:
        view.update()
        if not oracle.is_over:
            _run(tuner, oracle, config, folder)
        view.drop_checkpoints()
    finally:
        report.close()
    return _outcome(view.trials(), objective, space, config, folder)


def work(
    materials: Materials,
    config: Config,
    space: tuple[Dimension, ...],
    *,
    folder: Path,
    tensorboard: Path | None,
) -> None:
    """Run the trials that a chief gives this process, until none is left; else as `search`."""
    if oracles.is_over(folder):
        return
    hypermodel = _new_hypermodel(materials, config, space, folder=folder, tensorboard=tensorboard)
    tuner = SearchTuner(_new_oracle(config, space, hypermodel.objective), hypermodel, folder=folder)
    with contextlib.closing(hypermodel.report):
        _search(tuner)


def _new_hypermodel(
    materials: Materials,
    config: Config,
    space: tuple[Dimension, ...],
    *,
    folder: Path,
    tensorboard: Path | None,
) -> TaskHyperModel:
    experiment = materials.experiment(config)
    if "validation" not in experiment.splits:
        raise InputError("search.tuner needs a validation split: data.validation or a fraction.")
    objective = objective_of(experiment)
    report = TrialsReport(objective, [dimension.name for dimension in space])
    return TaskHyperModel(
        materials, trial_config(config), space, objective,
        folder=folder, tensorboard=tensorboard, report=report,
    )  # fmt: skip


def _run(tuner: SearchTuner, oracle: KeptOracle, config: Config, folder: Path) -> None:
    """Run the trials here, or let workers run them."""
    workers: contextlib.AbstractContextManager = contextlib.nullcontext()
    if config.search.workers:
        results = str(folder / "trials" / "*" / "result.json")
        options = Path(str(config.output)) / "config.yaml"
        workers = local_workers(config.search.workers, options, results=results)
    with workers, _listening_to_workers(oracle):
        _search(tuner)


def _search(tuner: SearchTuner) -> None:
    try:
        tuner.search(verbose=0)
    except keras_tuner.errors.FatalError as error:
        raise (error.__cause__ or error) from None


def objective_of(experiment: Experiment) -> Objective:
    """What a search maximises or minimises: train.best_metric, by default the task's."""
    chosen = experiment.config.train.best_metric
    metric = f"val_{chosen.removeprefix('val_')}" if chosen else experiment.task.default_metric
    return Objective(metric, larger_is_better=not smaller_is_better(metric))


@contextlib.contextmanager
def _listening_to_workers(oracle: KeptOracle) -> Iterator[None]:
    """In a chief, look for workers that fall silent; an error that one meets here ends the search.

    Also while no worker asks for a trial: the chief ends when none is left.

    Raises:
        OSError: the state cannot be written.
    """
    if not is_chief():
        yield
        return
    ended = threading.Event()
    errors: list[Exception] = []

    def look() -> None:
        while not ended.wait(BEAT_SECONDS):
            oracle.take_back_lost_trials()

    def leave(error: Exception) -> None:
        if isinstance(error, OSError):  # in a thread of the server's
            errors.append(error)
            os.kill(os.getpid(), signal.SIGINT)

    oracle.on_error = leave
    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if errors:
            raise errors[0] from None
        raise
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
        grid = [values for values in combinations(space) if values != default]
        grid = grid[: options.trials]
        return oracles.GridOracle(combinations=grid, max_trials=len(grid) + 1, **common)
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
    except Interrupted:
        raise
    except Exception as error:  # trial 0 will meet it again
        print(f"{size}; their time is unknown: {reason_of(error)}", flush=True)
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
    epochs = options.epochs + sum(int(of.get("epochs", options.epochs)) for of in grid)
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


def _outcome(
    trials: list[Trial],
    objective: Objective,
    space: tuple[Dimension, ...],
    config: Config,
    folder: Path,
) -> Outcome:
    best = ranked(trials, objective)[0]
    if best.status != "completed":
        reason = next((trial.reason for trial in trials if trial.reason), "unknown")
        raise InputError(
            f"no trial of the search succeeded ({folder / 'trials.csv'}); one of them: {reason}"
        )
    default = next(trial for trial in trials if trial.is_default)
    winner = config if best is default else with_values(config, best.values)
    return Outcome(trials, objective, space, best, default, winner)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
