"""What runs a trial: keras-tuner's HyperModel and tuner, on the training that every run has."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import keras
import keras_tuner
import numpy as np
import tensorflow as tf

from kbert.checkpoints import latest_checkpoint
from kbert.config import Config
from kbert.errors import InputError
from kbert.experiment import Experiment, Materials
from kbert.memory import released
from kbert.monitor import end_trial, start_trial
from kbert.oracles import BEAT_SECONDS, DEFAULT, KeptOracle
from kbert.search_space import Dimension, shown_values, values_of, with_values
from kbert.terminal import TrialsReport
from kbert.trained_part import trained_part
from kbert.training import Interrupted, read_progress, save_weights
from kbert.training_view import Curves, Guarded, RunFiles
from kbert.trial_folder import TrialFolder, trial_folder
from kbert.trials import Objective, Value
from kbert.workers import CHIEF_SECONDS, is_worker

logger = logging.getLogger(__name__)
keras_tuner.src.config.DEBUG = False  # prints the traceback of every trial that failed

OWNED_SECONDS = 2  # how often a running trial looks whether it was given to another worker
IDLE_SECONDS = 0.25  # how often a worker without a trial asks for one
ATTEMPTS_KILLED = 2  # for want of memory, after which a trial has failed


class TrialTaken(Exception):
    """The trial was given to another worker, which took this one for dead."""


class TaskHyperModel(keras_tuner.HyperModel):
    """For keras-tuner: `build` makes the model of a trial, `fit` trains it as any run is trained.

    Args:
        materials: Data, tokenised once for all trials.
        config: Options of trial 0.
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
        self.config = config
        self.space = space
        self.objective = objective
        self.folder = folder
        self.tensorboard = tensorboard
        self.report = report

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A new model with the checkpoint's weights."""
        return self.experiment(hp.values).new_model()

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *, folder: TrialFolder
    ) -> dict[str, float]:
        """Train it from where the trial was cut off, and record the result in its folder.

        Returns:
            Validation figures of the model that it ends with.

        Raises:
            TrialTaken: another worker has it.
        """
        experiment = self.experiment(hp.values)
        before = self._go_on(hp.values, folder)
        until = hp.values.get("tuner/epochs")
        callbacks: list[Any] = [_Owned(folder), _Shown(self.report, folder.name, experiment)]
        curves = self.curves(folder.name)
        if curves is not None:
            callbacks.append(Guarded(Curves(experiment, RunFiles(curves))))
        progress = experiment.train(
            model, folder=folder.checkpoints, callbacks=callbacks, until_epoch=until
        )
        figures = progress.figures(experiment.config.train)
        metrics = {name: value for name, value in figures.items() if name.startswith("val_")}
        if not math.isfinite(metrics[self.objective.metric]):
            value = metrics[self.objective.metric]
            raise InputError(f"{self.objective.metric} is {value}.")
        if not folder.is_ours():
            raise TrialTaken(folder.name)
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
        return metrics

    def experiment(self, values: Mapping[str, Value]) -> Experiment:
        """What a trial with these hyper-parameters trains."""
        config = self.config if DEFAULT in values else with_values(self.config, values)
        experiment = trained_part(self.materials.experiment(config))
        count = len(experiment.splits["train"])
        rows = np.random.default_rng(self.config.train.seed).permutation(count)
        rows = rows[: max(1, round(count * self.config.search.fraction))]
        return experiment if len(rows) == count else experiment.take(np.sort(rows))

    def shown_values(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The hyper-parameters of a trial as tables show them."""
        default = DEFAULT in values
        return shown_values(values_of(self.config, self.space) if default else values, self.space)

    def curves(self, trial: str) -> Path | None:
        """Where TensorBoard looks for a trial."""
        return None if self.tensorboard is None else self.tensorboard / "trials" / trial

    def _go_on(self, values: Mapping[str, Value], folder: TrialFolder) -> float:
        """Take what a trial of an earlier round ended with; the seconds that it took."""
        if "tuner/trial_id" not in values:
            return 0.0
        earlier = trial_folder(self.folder, str(values["tuner/trial_id"]))
        result = earlier.result()
        if result is None or result["status"] == "failed":
            raise InputError(f"trial {earlier.name}, from which it would go on, failed.")
        folder.go_on_from(earlier)
        return result["elapsed"]


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
        self.taken = False
        if is_worker():
            self.oracle = _PatientClient(self.oracle)
        else:
            oracle.reload()

    def pre_create_trial(self) -> None:
        """Ask again after a moment when there was no trial to have."""
        if self.waiting:
            time.sleep(IDLE_SECONDS)
        self.waiting = True

    def on_trial_begin(self, trial: Any) -> None:
        """There was one."""
        self.waiting = False
        self.taken = False

    def on_trial_end(self, trial: Any) -> None:
        """Tell the oracle, unless another worker has the trial now.

        Raises:
            FatalError: what went wrong is not the trial's fault; it stays as it is.
        """
        if self.taken:
            return
        if trial.status == "INVALID":  # what run_trial does not make FAILED
            raise keras_tuner.errors.FatalError(trial.message)
        self.oracle.end_trial(trial)

    def save(self) -> None:
        """The oracle's state is all that there is."""
        if not is_worker():
            self.oracle.save()

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Figures of the trial; they are recorded before the oracle hears of them."""
        folder = trial_folder(self.hypermodel.folder, trial.trial_id)
        curves = self.hypermodel.curves(trial.trial_id)
        try:
            if curves is not None:
                shown = self.hypermodel.shown_values(trial.hyperparameters.values)
                start_trial(curves, f"trial {trial.trial_id}", shown)
            if folder.result() is None:
                with _beating(self.oracle, trial.trial_id):
                    self._train(trial.hyperparameters, folder)
            result = folder.result() or {}
            if curves is not None:
                figures = _without_prefix(result.get("metrics", {}))
                end_trial(curves, result["status"], figures=figures)
        except (Interrupted, OSError) as error:  # a full disk is no fault of the trial
            raise keras_tuner.errors.FatalError() from error
        if result["status"] == "failed":
            raise keras_tuner.errors.FailedTrialError(result["reason"])
        return result["metrics"]

    def _train(self, hp: keras_tuner.HyperParameters, folder: TrialFolder) -> None:
        """Leave a result in the folder."""
        killed = folder.attempts_killed()
        folder.claim()
        began = time.monotonic()
        # the model that ran out of memory is given back too: once the exception is done with
        with released():
            try:
                if killed >= ATTEMPTS_KILLED:
                    raise MemoryError(f"the system ended the process in {killed} attempts.")
                self.hypermodel.fit(hp, self.hypermodel.build(hp), folder=folder)
            except Interrupted:
                folder.claim()  # what the system ends until it goes on is nothing of the trial's
                raise
            except TrialTaken:
                self.taken = True
                raise
            except OSError:
                raise
            except Exception as error:
                logger.debug("%s", traceback.format_exc())
                self._fail(folder, reason_of(error), seconds=time.monotonic() - began)

    def _fail(self, folder: TrialFolder, reason: str, *, seconds: float) -> None:
        if not folder.is_ours():
            self.taken = True
            raise TrialTaken(folder.name)
        state = latest_checkpoint(folder.checkpoints)
        epochs = 0
        if state is not None:
            progress = read_progress(state)
            epochs, seconds = progress.epoch, max(seconds, progress.elapsed)
        folder.finish({"status": "failed", "reason": reason, "epochs": epochs, "seconds": seconds})


class _PatientClient:
    """keras-tuner's client of the chief's oracle, which waits while a chief is on its way back."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            while True:
                try:
                    return attribute(*args, **kwargs)
                except grpc.RpcError as error:
                    away = error.code() == grpc.StatusCode.UNAVAILABLE
                    if not away or time.monotonic() - began > CHIEF_SECONDS:
                        raise
                    time.sleep(1)

        return call


class _Owned(keras.callbacks.Callback):
    """Leaves a trial that was given to another worker."""

    def __init__(self, folder: TrialFolder) -> None:
        super().__init__()
        self.folder = folder
        self.looked = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if time.monotonic() - self.looked >= OWNED_SECONDS:
            self.looked = time.monotonic()
            self._look()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._look()  # before the checkpoint

    def _look(self) -> None:
        if not self.folder.is_ours():
            raise TrialTaken(self.folder.name)


class _Shown(keras.callbacks.Callback):
    """Tells the terminal how far a trial is."""

    def __init__(self, report: TrialsReport, trial: str, experiment: Experiment) -> None:
        super().__init__()
        self.report = report
        self.trial = trial
        self.epochs = experiment.config.train.epochs
        self.steps = experiment.total_steps // self.epochs

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = int(self.model.optimizer.iterations.numpy())
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
            with contextlib.suppress(grpc.RpcError):
                oracle.get_trial(trial)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def reason_of(error: Exception) -> str:
    """Why a trial failed, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        return f"out of memory: {text[:200]}"
    return f"{type(error).__name__}: {text[:300]}"


def trial_config(config: Config) -> Config:
    """The options of trial 0: the run's, with the epochs of a trial."""
    epochs = config.search.epochs or config.train.epochs
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))


def _without_prefix(figures: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix("val_"): value for name, value in figures.items()}
