"""keras-tuner's oracles, made to be stopped anywhere and to lose no trial.

What keras-tuner 1.4's oracles leave open is closed here (what its tuner does, in kbert.tuner):

* its state is many files, written in place; here it is one file, replaced whole. A trial that is
  recorded as ended is not run again.
* GridSearchOracle forgets on reload where it was, and BayesianOptimizationOracle its random state.
* one failed trial of a round keeps Hyperband from the rounds that follow.
* a trial of a worker that died is never given out again, and the chief waits for it for ever
  (keras-team/keras-tuner, oracle_chief.py: `exit_chief`).
* `synchronized` keeps its lock when what it guards raises, and everybody waits for ever.
* numbers go through its protocol in 32 bits, so that a choice that comes back is none of the
  choices (`Choice.value_to_prob`); values stay with the oracle.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.src.engine.conditions import Parent  # it has no public name

from kbert.search_space import OPTIONS, Dimension, as_value
from kbert.trials import Value
from kbert.whole_files import written_whole

DEFAULT = "kbert/default"
"""Among the values of a trial: it is trial 0, the configuration as it stands."""
STATE = "oracle.json"
BEAT_SECONDS = 5
"""How often a worker says that it is alive."""
LOST_SECONDS = 30
"""After how long without a word its trial is given to another."""
RUNNING, COMPLETED, FAILED, IDLE, STOPPED = "RUNNING", "COMPLETED", "FAILED", "IDLE", "STOPPED"


def synchronized(method: Callable[..., Any]) -> Callable[..., Any]:
    """keras_tuner.synchronized for a method that may raise: the lock is given back first."""

    @keras_tuner.synchronized
    def held(self: KeptOracle, *args: Any) -> tuple[Any, Exception | None]:
        try:
            return method(self, *args), None
        except Exception as error:
            return None, error

    @functools.wraps(method)
    def call(self: KeptOracle, *args: Any) -> Any:
        value, error = held(self, *args)
        if error is not None:
            self.on_error(error)
            raise error
        return value

    return call


class KeptOracle(keras_tuner.Oracle):
    """What all oracles here share; it stands before one of keras-tuner's in a class's bases.

    Trial 0 is the default configuration; the algorithm never sees it.

    Args:
        default: Values of the default configuration.
        lost_seconds: After how long a silent worker's trial is given to another.
        **kwargs: keras-tuner's.
    """

    def __init__(
        self, *, default: Mapping[str, Value], lost_seconds: float = LOST_SECONDS, **kwargs: Any
    ) -> None:
        super().__init__(
            tune_new_entries=False,
            allow_new_entries=False,
            # a search that goes on after failures tells of them in its table
            max_consecutive_failed_trials=2**31,
            **kwargs,
        )
        self.default = dict(default)
        self.lost_seconds = lost_seconds
        self.on_change: Callable[[], None] = lambda: None
        self.on_error: Callable[[Exception], None] = lambda error: None
        self.is_over = False
        """Whether it has said that there are no more trials."""
        self._heard: dict[str, float] = {}

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Values of the next trial, or that there is none (yet)."""
        if not self.trials:
            return {"status": RUNNING, "values": {**self._default_values(), DEFAULT: 1}}
        with self._without_default():
            response = super().populate_space(trial_id)
        values = response.get("values") or {}
        response["values"] = {
            name: as_value(name, value) if name in OPTIONS else value
            for name, value in values.items()
        }
        return response

    @synchronized
    def create_trial(self, tuner_id: str) -> Any:
        """The next trial for a tuner; a copy, so that only `end_trial` changes it here."""
        self._heard[tuner_id] = time.monotonic()
        self.take_back_lost_trials()
        trial = super().create_trial(tuner_id)
        if trial.status == STOPPED and self.ongoing_trials:
            # the worker of one of them may yet be lost
            self.tuner_ids.add(tuner_id)
            trial.status = IDLE
        if trial.status == STOPPED and not self.is_over:
            self.is_over = True
            self.save()
        if trial.status == RUNNING:
            self._keep_default_as_it_is(trial)
            self.on_change()
        return _bare(trial)

    @synchronized
    def get_trial(self, trial_id: str) -> Any:
        """A trial; a worker asks for its own to say that it is alive."""
        for tuner_id, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:
                self._heard[tuner_id] = time.monotonic()
        return _bare(super().get_trial(trial_id))

    @synchronized
    def take_back_lost_trials(self) -> None:
        """Make those of silent workers the next to be given out."""
        now = time.monotonic()
        for tuner_id, heard in list(self._heard.items()):
            if now - heard < self.lost_seconds:
                continue
            del self._heard[tuner_id]
            self.tuner_ids.discard(tuner_id)
            trial = self.ongoing_trials.pop(tuner_id, None)
            if trial is not None:
                print(f"{tuner_id} is silent: its trial {trial.trial_id} is given out again")
                trial.metrics = type(trial.metrics)()
                self._retry_queue.append(trial.trial_id)

    @synchronized
    def end_trial(self, trial: Any) -> None:
        """Record how a trial ended, once: a worker that was given up may end it too."""
        ours = self.trials[trial.trial_id]
        if ours.status in (COMPLETED, FAILED):
            return
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        if trial.status == COMPLETED and not ours.metrics.exists(self.objective.name):
            # another chief heard the figures, and is gone: the worker is asked again
            owners = [name for name, running in self.ongoing_trials.items() if running is ours]
            for owner in owners:
                del self.ongoing_trials[owner]
            self._retry_queue.append(trial.trial_id)
            return
        trial.hyperparameters = ours.hyperparameters
        super().end_trial(trial)
        self.save()
        self.on_change()

    def save(self) -> None:
        """Replace the state on disk."""
        state = {
            "is_over": self.is_over,
            "oracle": self.get_state(),
            "trials": [self.trials[name].get_state() for name in self.start_order],
        }
        with written_whole(self._state_file()) as beside:
            beside.write_text(json.dumps(state, indent=1), encoding="utf-8")

    def reload(self) -> None:
        """Go on from the state on disk, if there is one.

        Trials that ran stay with who ran them, until they have been silent for too long.
        """
        try:
            state = json.loads(self._state_file().read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        kind = keras_tuner.engine.trial.Trial
        trials = [kind.from_state(trial) for trial in state["trials"]]
        self.trials = {trial.trial_id: trial for trial in trials}
        self.set_state(state["oracle"])
        self.is_over = state["is_over"]
        self.ongoing_trials = {
            tuner_id: trial
            for tuner_id, trial in self.ongoing_trials.items()
            if trial.status == RUNNING
        }
        self._heard = dict.fromkeys(self.ongoing_trials, time.monotonic())

    def _save_trial(self, trial: Any) -> None:
        """Nothing: `save` writes trials too."""

    def _state_file(self) -> Path:
        return Path(self._project_dir) / STATE

    def _default_values(self) -> dict[str, Value]:
        return self.default

    def _keep_default_as_it_is(self, trial: Any) -> None:
        """Take back what keras-tuner drew for options that the default leaves to the model."""
        if DEFAULT in trial.hyperparameters.values:
            trial.hyperparameters = keras_tuner.HyperParameters()
            trial.hyperparameters.values = {**self._default_values(), DEFAULT: 1}
            self.save()

    def _comparable_trials(self) -> dict[str, Any]:
        """The trials that the algorithm learns from."""
        return {
            name: trial
            for name, trial in self.trials.items()
            if DEFAULT not in trial.hyperparameters.values
        }

    @contextlib.contextmanager
    def _without_default(self) -> Iterator[None]:
        every = self.trials
        self.trials = self._comparable_trials()
        try:
            yield
        finally:
            self.trials = every


class RandomOracle(KeptOracle, keras_tuner.oracles.RandomSearchOracle):
    """Values drawn at random, none twice."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Also none that are the default's."""
        for _ in range(self._max_collisions):
            response = super().populate_space(trial_id)
            if response["values"] != self.default:
                return response
        return {"status": STOPPED, "values": None}


class GridOracle(KeptOracle):
    """Combinations in their order.

    Args:
        combinations: Values of each trial.
        **kwargs: `KeptOracle`'s.
    """

    def __init__(self, *, combinations: Sequence[dict[str, Value]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.combinations = combinations

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The combination of the trial's number; the default has number 0."""
        if not self.trials:
            return super().populate_space(trial_id)
        number = len(self.trials) - 1
        if number >= len(self.combinations):
            return {"status": STOPPED, "values": None}
        return {"status": RUNNING, "values": dict(self.combinations[number])}


class BayesianOracle(KeptOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """A Gaussian process over the trials so far."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """A function of seed and trials alone, whatever process asks."""
        self._random_state = np.random.RandomState((self.seed + len(self.trials)) % 2**32)
        response = super().populate_space(trial_id)
        for hyperparameter in self.hyperparameters.space:
            # whole numbers without a step may come out one too large (Int.prob_to_value)
            if isinstance(hyperparameter, keras_tuner.engine.hyperparameters.Int):
                name, values = hyperparameter.name, response["values"]
                if name in values:
                    values[name] = min(values[name], hyperparameter.max_value)
        return response


class HyperbandOracle(KeptOracle, keras_tuner.oracles.HyperbandOracle):
    """Many trials for few epochs; the best of each round go on."""

    def promotable(self) -> set[str]:
        """Trials whose checkpoints are wanted: a round that is not full may go on with them.

        Those that a running trial goes on from are among them, as it may not have its own yet.
        """
        found: set[str] = set()
        for bracket in self.get_state()["brackets"]:
            rounds = bracket["rounds"]
            for number in range(1, len(rounds)):
                gone_on = {entry["past_id"] for entry in rounds[number]}
                if len(rounds[number]) < self._get_size(bracket["bracket_num"], number):
                    found |= {entry["id"] for entry in rounds[number - 1]} - gone_on
        for trial in self.trials.values():
            if trial.status == RUNNING:
                parent = trial.hyperparameters.values.get("tuner/trial_id")
                found |= {parent} if parent else set()
        return found

    def _default_values(self) -> dict[str, Value]:
        return {**self.default, "tuner/epochs": self.max_epochs, "tuner/initial_epoch": 0}

    def _comparable_trials(self) -> dict[str, Any]:
        """A failed trial counts as the worst of its round, instead of never ending it."""
        trials = super()._comparable_trials()
        worst = float("-inf") if self.objective.direction == "max" else float("inf")
        for name, trial in trials.items():
            if trial.status == FAILED:
                trials[name] = copy.copy(trial)
                trials[name].status, trials[name].score = COMPLETED, worst
        return trials


def is_over(folder: Path) -> bool:
    """Whether the search of a folder has given out all its trials, and all of them have ended."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))["is_over"]
    except FileNotFoundError:
        return False


def hyperparameters(space: Sequence[Dimension]) -> keras_tuner.HyperParameters:
    """A space as keras-tuner knows it."""
    found = keras_tuner.HyperParameters()
    found.merge([_hyperparameter(dimension) for dimension in space])
    return found


def _hyperparameter(dimension: Dimension) -> Any:
    # conditional_scope knows no condition on a hyper-parameter that has one itself
    kinds = keras_tuner.engine.hyperparameters
    conditions = [Parent(name, list(values)) for name, values in dimension.when]
    if dimension.values or dimension.step:  # keras-tuner's steps miss a maximum of 3 * 0.1
        choices = list(dimension.choices or ())
        return kinds.Choice(dimension.name, choices, conditions=conditions)
    sampling = "log" if dimension.log else "linear"
    options: dict[str, Any] = {"sampling": sampling, "conditions": conditions}
    if dimension.type is int:
        bounds = int(dimension.minimum), int(dimension.maximum)
        return kinds.Int(dimension.name, *bounds, **options)
    return kinds.Float(dimension.name, dimension.minimum, dimension.maximum, **options)


def _bare(trial: Any) -> Any:
    """A trial with its values and without the space, whose conditions print themselves on the way.

    (keras_tuner.engine.conditions.Parent.to_proto has a print.)
    """
    values = keras_tuner.HyperParameters()
    values.values = dict(trial.hyperparameters.values)
    copied = type(trial)(hyperparameters=values, trial_id=trial.trial_id, status=trial.status)
    copied.metrics, copied.score = trial.metrics, trial.score
    return copied
