"""One model trained by several devices, of this process or of several: tf.distribute under `fit`.

Each step is that of one global batch. Every process makes the same batch, padding and random masks
included, and each device takes a slice of its rows; what the slices find is added up by their
weights, so that loss, gradients and metrics are those of one device with the whole batch.

Keras 3's own `fit` takes no MultiWorkerMirroredStrategy
(https://github.com/keras-team/keras/issues/20585). Here the layers, and so the variables, are made
in the strategy's scope and the model around them outside of it, so that Keras knows of no strategy
and `make_train_function`, its public seam, is all there is to say.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.accumulation import AccumulatingModel
from kbert.cluster import Cluster, LeftAlone, this_cluster
from kbert.config import TrainOptions
from kbert.errors import InputError
from kbert.evaluation import TaskMetrics, by_output
from kbert.tasks.task import Task

logger = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGINT)
SEED_STRIDE = 1_000_003  # between the seeds of two replicas
GONE = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
        tf.errors.DeadlineExceededError, tf.errors.InternalError)  # fmt: skip
"""What TensorFlow raises where another process is gone."""


class Replicas:
    """The devices that train one model side by side.

    Args:
        strategy: Of them.
        cluster: The processes whose devices they are; None for this one alone.
    """

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None) -> None:
        self.strategy = strategy
        self.cluster = cluster
        self.count = strategy.num_replicas_in_sync
        local = len(strategy.extended.worker_devices)
        first = 0 if cluster is None else cluster.index * local
        self.local = range(first, first + local)
        """Numbers, among all replicas, of those of this process."""

    @property
    def is_chief(self) -> bool:
        """Whether this process measures, and writes all files."""
        return self.cluster is None or self.cluster.is_chief

    def from_chief(self, value: Any) -> Any:
        """What the chief has, in every process, as JSON: all call this at once, and wait for it."""
        if self.cluster is None:
            return value
        told = np.frombuffer(json.dumps(value).encode() if self.is_chief else b"", np.uint8)
        size = int(self._sum(np.array([len(told)], np.int32))[0])
        padded = np.zeros(size, np.int32)
        padded[: len(told)] = told
        return json.loads(self._sum(padded).astype(np.uint8).tobytes())

    def share(self, variables: Iterable[keras.Variable]) -> None:
        """Give the chief's values of variables to all processes, which call this at once."""
        if self.cluster is None:
            return
        for variable in {id(variable): variable for variable in variables}.values():
            value = np.asarray(variable.numpy())
            dtype = np.int64 if value.dtype.kind in "iub" else np.float32
            found = value if self.is_chief else np.zeros_like(value)
            found = self._sum(found.astype(dtype).ravel()).reshape(value.shape)
            if not self.is_chief:
                variable.assign(found.astype(value.dtype))

    def spread_seeds(self, model: keras.Model) -> None:
        """Have each replica drop out other elements: where all have the first one's seeds.

        The first replica's, which checkpoints hold, stay as they are.
        """
        weights = {id(variable) for variable in model.weights}
        states = [variable for variable in model.variables if id(variable) not in weights]

        def move() -> None:
            number = _replica_number()
            for state in states:
                offset = tf.stack([tf.cast(number * SEED_STRIDE, tf.int64), 0])
                state.value.assign_add(tf.cast(offset, state.dtype))

        if states:
            tf.function(lambda: self.strategy.run(move), autograph=False)()

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over processes of a vector."""
        return self._sums(tf.constant(values)).numpy()

    @functools.cached_property
    def _sums(self) -> Callable[[tf.Tensor], tf.Tensor]:
        first = self.local[0]

        def add(values: tf.Tensor) -> tf.Tensor:
            own = tf.where(_replica_number() == first, values, tf.zeros_like(values))
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

        def added(values: tf.Tensor) -> tf.Tensor:
            return self._any(self.strategy.run(add, args=(values,)))

        return tf.function(added, autograph=False, reduce_retracing=True)

    def _any(self, of_replicas: Any) -> tf.Tensor:
        """What all replicas have alike."""
        return self.strategy.experimental_local_results(of_replicas)[0]


def _replica_number() -> tf.Tensor:
    return tf.distribute.get_replica_context().replica_id_in_sync_group


@functools.cache
def _replicas(strategy: str) -> Replicas | None:
    if strategy == "none":
        return None
    if strategy == "multi_worker":
        cluster = this_cluster()
        made: tf.distribute.Strategy = tf.distribute.MultiWorkerMirroredStrategy()
        logger.info("%s of %d processes, %d devices",
                    cluster.name, len(cluster.addresses), made.num_replicas_in_sync)  # fmt: skip
        found = Replicas(made, cluster)
        return found if len(cluster.addresses) > 1 or found.count > 1 else None
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        logger.info("train.strategy mirrored: there is one device, %s", devices[0].name)
        return None
    return Replicas(tf.distribute.MirroredStrategy([device.name for device in devices]), None)


def replicas_of(options: TrainOptions) -> Replicas | None:
    """The devices of a `train.strategy`; None where there is but one.

    TensorFlow wants that of several processes before it computes anything else.

    Raises:
        InputError: there are more of them than rows in a step.
    """
    replicas = _replicas(options.strategy)
    if replicas is not None and replicas.count > options.batch_size:
        raise InputError(
            f"train.batch_size {options.batch_size} is under the {replicas.count} devices of "
            f"train.strategy {options.strategy}: each needs a row."
        )
    return replicas


def scope_of(options: TrainOptions) -> contextlib.AbstractContextManager:
    """Inside, variables are made on all devices."""
    replicas = replicas_of(options)
    return contextlib.nullcontext() if replicas is None else replicas.strategy.scope()


def is_chief(options: TrainOptions) -> bool:
    """Whether this process measures, and writes all files."""
    replicas = replicas_of(options)
    return replicas is None or replicas.is_chief


def from_chief(options: TrainOptions, value: Any = None) -> Any:
    """`Replicas.from_chief`, or the value where there is one process."""
    replicas = replicas_of(options)
    return value if replicas is None else replicas.from_chief(value)


@contextlib.contextmanager
def telling_of_the_gone() -> Iterator[None]:
    """Turns what TensorFlow raises where another process is gone into `LeftAlone`."""
    try:
        yield
    except GONE as error:
        reason = " ".join((error.message or "").split())
        if isinstance(error, tf.errors.InternalError) and "ollective" not in reason:
            raise
        logger.debug("%s", reason)
        raise LeftAlone("another process of the training is gone") from error


class DistributedModel(AccumulatingModel):
    """A functional model whose step is computed by several devices, see the module.

    Each replica's variables are the same after each step. Metrics are counted by each replica for
    itself, and the sums of all are added to the model's own, which are plain variables: reading
    them, or any other, concerns no other process.

    `replicas` is set before the first step, and so is what the parent needs: see `distributed`.
    """

    replicas: Replicas
    stops: _Stops
    """Whether to stop, which is agreed upon with each step."""

    def compile(self, *args, metrics=None, weighted_metrics=None, **kwargs) -> None:
        """As Keras' own; the optimizer is made in the strategy's scope."""
        super().compile(*args, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs)
        found = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        counted = TaskMetrics({name: of for name, of in found.items() if of is not None})
        with self.replicas.strategy.scope():
            counting = TaskMetrics(self.task.metrics())
        self.both_metrics = _Both(counted, counting)

    def agree_on(self, asked: list[int]) -> list[int]:
        """What `asked`, which signals fill in each process, is in all of them after the same step.

        Args:
            asked: Numbers of the signals that have asked this process to stop.

        Returns:
            A list that is filled at the end of a step, in all processes alike, once any was asked.
        """
        self.stops = _Stops(asked, [])
        return self.stops.agreed

    def make_train_function(self, force: bool = False):
        """The step of all replicas, of an iterator over `slices_of` batches."""
        if self.train_function is not None and not force:
            return self.train_function

        @functools.partial(tf.function, autograph=False, reduce_retracing=True)
        def step(iterator: Any, asked: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            slices = next(iterator)
            first = self.replicas.local[0]
            data = self.replicas.strategy.experimental_distribute_values_from_function(
                lambda context: slices[context.replica_id_in_sync_group - first]
            )
            found = self.replicas.strategy.run(self.train_step, args=(data, asked))
            sums = self.replicas._any(found)
            return self._record_sums(sums[len(STOPS) :], slices[0]), sums[: len(STOPS)]

        def train(iterator: Any) -> dict[str, tf.Tensor]:
            asked = [float(number in self.stops.asked) for number in STOPS]
            figures, asked_in_all = step(iterator, tf.constant(asked))
            if not self.stops.agreed:
                found = zip(STOPS, asked_in_all.numpy(), strict=True)
                self.stops.agreed += [number for number, count in found if count > 0]
            return figures

        self.train_function = train
        return train

    def train_step(self, data: Any, asked: tf.Tensor) -> tf.Tensor:
        """One replica's part of a step.

        Args:
            data: Its `slices_of` a batch.
            asked: Of each of `STOPS` 1 if this process got it, else 0.

        Returns:
            Sums over all replicas: of asked (a process counts once), of the parts of the losses,
            and of what the replica has counted.
        """
        batch, totals, _, is_there = data
        self.both_metrics.counting.reset()
        losses, gradients = self.losses_and_gradients(batch, totals)
        self.optimizer.apply(gradients, self.trainable_variables)
        counted = [
            tf.reshape(tf.cast(variable.value, tf.float32) * is_there, [-1])
            for variable in self.both_metrics.counting.variables
        ]
        is_first = tf.cast(_replica_number() == self.replicas.local[0], tf.float32)
        parts = tf.concat([asked * is_first, tf.stack(losses), *counted], 0)
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, parts)

    def count(self, inputs: Any, targets: Any, predicted: Any, weights: Any) -> None:
        """Add rows to what this replica has counted."""
        self.both_metrics.counting.update(targets, predicted, weights)

    def _record_sums(self, sums: tf.Tensor, data: Any) -> dict[str, tf.Tensor]:
        """Add losses and counts of `train_step` to the metrics; these, as they are then."""
        (_, targets, _), totals, rows, _ = data
        start = len(totals)
        losses = tf.unstack(sums[:start], num=start)
        self.record(losses, list(by_output(targets)), rows)
        for variable in self.both_metrics.counted.variables:
            end = start + int(np.prod(variable.shape))
            added = tf.reshape(sums[start:end], variable.shape)
            variable.assign_add(tf.cast(added, variable.dtype))
            start = end
        return self.get_metrics_result()


@dataclass
class _Stops:
    """Signals that ask to stop."""

    asked: list[int]
    """This process, so far."""
    agreed: list[int]
    """All of them."""


class _Both:
    """Two sets of the same metrics; no list or tuple, which Keras would take for the model's."""

    def __init__(self, counted: TaskMetrics, counting: TaskMetrics) -> None:
        self.counted = counted
        """Of all rows of an epoch so far."""
        self.counting = counting
        """Of a replica's rows of one step, with variables of its own on each replica."""


def distributed(model: keras.Model, task: Task, options: TrainOptions) -> DistributedModel:
    """The same functional model, of the same layers, with the step of `DistributedModel`.

    Args:
        model: Of the task, made in `scope_of` the options; this is called outside of it.
        task: Brings losses and metrics, and takes batches apart.
        options: There are several devices.
    """
    made = DistributedModel(model.input, model.output, name=model.name)
    made.task = task
    made.parts = options.accumulate
    made.replicas = replicas_of(options)
    made.agree_on([])
    return made


def slices_of(batches: tf.data.Dataset, task: Task, replicas: Replicas) -> tf.data.Dataset:
    """Of each global batch the parts of this process's replicas, one after the other.

    A part is ((inputs, targets, weights), totals, rows, is_there): the sums of the weights of the
    whole batch, of each output; how many rows the model is given of the whole batch; and 1. A
    replica for which there is no row has the first one, with weights of 0, and 0 in place of 1.

    Args:
        batches: (inputs, targets, weights), as `Task.batch` gives them.
        task: Takes batches apart.
        replicas: Which are to have parts.
    """

    def slices(*batch: Any) -> tuple:
        inputs, targets, weights = batch
        examples = tf.shape(next(iter(by_output(targets).values())))[0]
        totals = [tf.reduce_sum(weight) for weight in by_output(weights).values()]
        rows = tf.shape(keras.tree.flatten(inputs)[0])[0]
        found = []
        for number in replicas.local:
            start = number * examples // replicas.count
            end = (number + 1) * examples // replicas.count
            is_there = tf.cast(end > start, tf.float32)
            start = tf.where(end > start, start, 0)
            x, y, w = task.examples(batch, start, tf.maximum(end, start + 1))
            w = tf.nest.map_structure(lambda of, there=is_there: of * there, w)
            found.append(((x, y, w), tuple(totals), rows, is_there))
        return tuple(found)

    return batches.map(slices).prefetch(2)
