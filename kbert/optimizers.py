"""AdamW as BERT is fine-tuned by it: warm-up, no decay of biases, a rate for each layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kbert.config import TrainOptions
from kbert.kernel_threads import cores

UNDECAYED = ("bias", "output_bias", "gamma", "beta")  # biases and LayerNorm
EMBEDDINGS = (
    "token_embedding",
    "position_embedding",
    "segment_embedding",
    "embeddings_layer_norm",
)
"""Layers of `kbert.encoder` with weights below the first Transformer block."""
SMALL = 1_000_000
"""Weights of a model whose update takes less time than it takes to compile it."""
PROGRAMS_A_CORE = 4
"""XLA programs of an update: on 2 cores, 8 to 32 were faster than 1, 4 or 74."""
BLOCK = re.compile(r"transformer_layer_(\d+)")


@keras.saving.register_keras_serializable(package="kbert")
class WarmupLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises linearly to its peak, then falls linearly to zero.

    As HuggingFace's get_linear_schedule_with_warmup.

    Args:
        peak: Learning rate at the end of the warm-up.
        warmup_steps: Steps of the warm-up.
        total_steps: Steps of the whole run.
    """

    def __init__(self, peak: float, *, warmup_steps: int, total_steps: int) -> None:
        super().__init__()
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rising = step / self.warmup_steps if self.warmup_steps else 1.0
        falling = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * ops.clip(ops.minimum(rising, falling), 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
        }


@keras.saving.register_keras_serializable(package="kbert")
class AdamW(keras.optimizers.Optimizer):
    """AdamW with the clipping, the decay of layers and the sparse tables of fine-tuning.

    - Gradients are clipped as torch's clip_grad_norm_ does. Keras' own `global_clipnorm` takes the
      gradient of an embedding as one row a token of the batch, so that a token that comes twice
      counts as two small gradients and not as their sum.
    - The learning rate may fall by a factor from each Transformer block to the one below, see
      `layer_factors`. Weight decay is decoupled, that of `UNDECAYED` is none, and it scales with
      the rate of its variable.
    - Of an embedding whose rows do not all occur, those that do have moments and updates; the
      others, whose gradient is always zero, have only weight decay, which is put down in a sum and
      applied by `settle`. The numbers are those of an update of all rows.
    - One device's update of a large model is a few XLA programs side by side, in which every weight
      and moment is read and written once. The norm of the gradients is not XLA's, which adds up
      one number after the other on a CPU.
    - Gradients of several replicas are added up first, those of an embedding by its rows that
      occur; then each replica makes the same update of its own copy.

    Args:
        learning_rate: Rate, or schedule, of the head and the pooler.
        beta_1: Decay of the mean of gradients.
        beta_2: Decay of the mean of their squares.
        epsilon: Is added to the root of that mean.
        decoupled_weight_decay: Share of a weight that a step takes away at a rate of 1.
        layer_decay: Factor on the rate from each block to the one below; 1: one rate for all.
        clip_norm: Largest global norm of the gradients; 0 for no clipping.
        rows: By the path of an embedding its rows that occur, int (rows,); gradients of such an
            embedding must be `tf.IndexedSlices`. All rows of the embeddings that are not named.
        name: Of the optimizer.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101; as torch.optim.AdamW.
    """

    def __init__(
        self,
        learning_rate,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        decoupled_weight_decay: float = 0.0,
        layer_decay: float = 1.0,
        clip_norm: float = 0.0,
        rows: Mapping[str, Sequence[int]] | None = None,
        name: str = "adamw",
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.decoupled_weight_decay = decoupled_weight_decay
        self.layer_decay = layer_decay
        self.clip_norm = clip_norm
        self.rows = {path: np.asarray(of, np.int32) for path, of in (rows or {}).items()}
        self._compiled = {}

    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        paths = [variable.path for variable in variables]
        self.factors = layer_factors(paths, layer_decay=self.layer_decay)
        self.decays = tuple(
            self.decoupled_weight_decay if _is_decayed(path) else 0.0 for path in paths
        )
        self._moments = [self._new_moments(variable) for variable in variables]
        self._pending = {
            path: self.add_variable((), initializer="zeros", name=f"{path.replace('/', '_')}_decay")
            for path in paths
            if path in self.rows
        }
        self.gradient_norm = self.add_variable((), initializer="zeros", name="gradient_norm")

    def _new_moments(self, variable) -> tuple[keras.Variable, keras.Variable]:
        names = ("momentum", "velocity")
        if variable.path not in self.rows:
            return tuple(self.add_variable_from_reference(variable, name=name) for name in names)
        shape = (len(self.rows[variable.path]), *variable.shape[1:])
        path = variable.path.replace("/", "_")
        return tuple(
            self.add_variable(shape, initializer="zeros", name=f"{path}_{name}") for name in names
        )

    def apply(self, grads, trainable_variables=None) -> None:
        """Update the variables; `gradient_norm` is then the norm before it was clipped."""
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        self.build(variables)  # no variable can be made in a compiled function
        dense, values = [], []
        for grad, variable in zip(grads, variables, strict=True):
            value = None
            if variable.path in self.rows:
                grad = self._of_rows(grad, variable)
                value = tf.gather(variable.value, self.rows[variable.path])
            elif grad is not None:  # rows of an embedding that come twice are summed
                grad = tf.convert_to_tensor(grad)
            dense.append(grad)
            values.append(value)
        if _are_several_replicas():
            dense = _sum_over_replicas(dense)
        there = [tf.cast(grad, tf.float32) for grad in dense if grad is not None]
        norm = tf.linalg.global_norm(there)
        self.gradient_norm.assign(norm)
        scale = tf.minimum(1.0, self.clip_norm / (norm + 1e-6)) if self.clip_norm else 1.0
        rate = tf.cast(self.learning_rate, tf.float32)
        factors = tf.stack([scale, rate, tf.cast(self.iterations + 1, tf.float32)])
        for group, update in self._updates(variables):
            new = update([dense[i] for i in group], [values[i] for i in group], factors)
            for i, of_rows in zip(group, new, strict=True):
                if of_rows is not None:
                    self._put_rows(variables[i], of_rows, rate)
        self.iterations.assign_add(1)

    def settle(self) -> None:
        """Apply the weight decay of rows that do not occur; until then they are as they were."""
        for variable in self._trainable_variables:
            if variable.path in self._pending:
                pending = self._pending[variable.path]
                factors = np.ones((variable.shape[0], 1), np.float64)
                factors *= np.exp(float(pending.numpy()))  # the logarithms of each step's factor
                factors[self.rows[variable.path]] = 1
                variable.assign(variable * tf.constant(factors, variable.dtype))
                pending.assign(0)

    def _updates(self, variables) -> list[tuple[list[int], Callable]]:
        """Groups of variables, by their places, and what updates the variables of each."""
        sizes = [math.prod(variable.shape) for variable in variables]
        everything = list(range(len(variables)))
        if _are_several_replicas() or sum(sizes) < SMALL:
            return [(everything, partial(self._update, variables))]
        key = tuple(map(id, variables))
        if key not in self._compiled:
            groups = groups_of_sizes(sizes, PROGRAMS_A_CORE * cores())
            # the variables are no arguments: tf.function would take their values
            self._compiled[key] = [
                (group, tf.function(partial(self._update, [variables[i] for i in group]),
                                    jit_compile=True))
                for group in groups
            ]  # fmt: skip
        return self._compiled[key]

    def _update(self, variables, grads, values, factors) -> list[tf.Tensor | None]:
        """Update variables and moments, but those of which rows are given: their new rows return.

        Args:
            variables: Some of those that are trained.
            grads: Of each; None where there is none.
            values: Of each the rows that occur, or None where all do.
            factors: Of the gradients, for clipping; the learning rate; the number of the step, from
                1. float32 (3,).
        """
        scale, rate, step = tf.unstack(factors)
        new = []
        for grad, value, variable in zip(grads, values, variables, strict=True):
            if grad is None:
                new.append(None)
                continue
            grad = grad * tf.cast(scale, grad.dtype)
            index = self._get_variable_index(variable)
            before = variable if value is None else value
            updated = self._updated(grad, before, index, rate, step)
            if value is None:
                self.assign(variable, updated)
            new.append(None if value is None else updated)
        return new

    def _updated(self, gradient, value, index: int, rate, step):
        """The new value of a variable, or of its rows; its moments are updated."""
        momentum, velocity = self._moments[index]
        gradient, rate, step = (ops.cast(of, momentum.dtype) for of in (gradient, rate, step))
        mean = momentum + (gradient - momentum) * (1 - self.beta_1)
        square = velocity + (ops.square(gradient) - velocity) * (1 - self.beta_2)
        self.assign(momentum, mean)
        self.assign(velocity, square)
        rate = rate * self.factors[index]
        root = ops.sqrt(square) / ops.sqrt(1 - self.beta_2**step) + self.epsilon
        change = mean * (rate / (1 - self.beta_1**step)) / root
        return value * (1 - rate * self.decays[index]) - change

    def _put_rows(self, variable, rows: tf.Tensor, rate: tf.Tensor) -> None:
        """Write the rows of an embedding that occur; put down the weight decay of the others."""
        index = self._get_variable_index(variable)
        indices = tf.constant(self.rows[variable.path])
        variable.value.scatter_update(tf.IndexedSlices(rows, indices))
        decay = rate * self.factors[index] * self.decays[index]
        self._pending[variable.path].assign_add(ops.log1p(-decay))

    def _of_rows(self, grad, variable) -> tf.Tensor:
        """A sparse gradient as one of the rows that occur."""
        rows = self.rows[variable.path]
        places = np.full(variable.shape[0], -1, np.int32)
        places[rows] = np.arange(len(rows))
        found = tf.gather(places, grad.indices)
        known = tf.debugging.assert_non_negative(found, f"{variable.path}: a row that is no row.")
        with tf.control_dependencies([] if known is None else [known]):
            return tf.math.unsorted_segment_sum(grad.values, found, len(rows))

    def get_config(self) -> dict[str, Any]:
        of_parent = super().get_config()
        return {
            "name": of_parent["name"],
            "learning_rate": of_parent["learning_rate"],
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "decoupled_weight_decay": self.decoupled_weight_decay,
            "layer_decay": self.layer_decay,
            "clip_norm": self.clip_norm,
            "rows": {path: rows.tolist() for path, rows in self.rows.items()},
        }


def groups_of_sizes(sizes: Sequence[int], count: int) -> list[list[int]]:
    """The places of some sizes in groups, none empty, of about the same sum.

    Args:
        sizes: At least one.
        count: The most groups.
    """
    groups: list[list[int]] = [[] for _ in range(min(count, len(sizes)))]
    sums = [0] * len(groups)
    for place in sorted(range(len(sizes)), key=lambda of: -sizes[of]):
        least = sums.index(min(sums))
        groups[least].append(place)
        sums[least] += sizes[place]
    return groups


def layer_factors(paths: Sequence[str], *, layer_decay: float) -> tuple[float, ...]:
    """Factor on the learning rate of each variable.

    Of L blocks, block i (from 0) has layer_decay ** (L - i), the embeddings have
    layer_decay ** (L + 1), everything above the blocks has 1.

    Args:
        paths: Paths of the variables that are trained; the highest block among them is the top
            one, as freezing begins from below.
        layer_decay: Factor from each block to the one below.

    Source: Clark et al. 2020, https://arxiv.org/abs/2003.10555; the exponents are those of BEiT
    (beit/optim_factory.py in https://github.com/microsoft/unilm). ELECTRA's _get_layer_lrs
    (model/optimization.py in https://github.com/google-research/electra) has one more for blocks
    and embeddings, left over from a pooler, which its author calls a mistake (issue 51 there).
    """
    layers = [path.split("/")[0] for path in paths]
    blocks = {layer: int(match[1]) for layer in layers if (match := BLOCK.fullmatch(layer))}
    count = 1 + max(blocks.values(), default=-1)
    exponents = {layer: count - index for layer, index in blocks.items()}
    exponents |= dict.fromkeys(EMBEDDINGS, count + 1)
    return tuple(layer_decay ** exponents.get(layer, 0) for layer in layers)


def new_optimizer(
    options: TrainOptions, *, total_steps: int, rows: Mapping[str, Sequence[int]] | None = None
) -> keras.optimizers.Optimizer:
    """AdamW with clipping; no weight decay on biases and LayerNorm.

    Args:
        options: Rates and norms.
        total_steps: Steps of the whole run, for the schedule.
        rows: Of embeddings, see `AdamW`.
    """
    schedule = WarmupLinear(
        options.learning_rate,
        warmup_steps=math.ceil(options.warmup * total_steps),
        total_steps=total_steps,
    )
    return AdamW(
        schedule,
        decoupled_weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        clip_norm=options.clip_norm,
        rows=rows,
    )


def _are_several_replicas() -> bool:
    """Whether this is the step of one of several replicas (`kbert.distribution`)."""
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def _sum_over_replicas(gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Each gradient's sum, the same on all replicas; what one of them has not, none has."""
    context = tf.distribute.get_replica_context()
    there = [gradient for gradient in gradients if gradient is not None]
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, there))
    return [None if gradient is None else next(sums) for gradient in gradients]


def _is_decayed(path: str) -> bool:
    return path.split("/")[-1] not in UNDECAYED
