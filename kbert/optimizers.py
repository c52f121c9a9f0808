"""AdamW as BERT is fine-tuned by it: warm-up, no decay of biases, a rate for each layer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kbert.config import TrainOptions

UNDECAYED = ("bias", "output_bias", "gamma", "beta")  # biases and LayerNorm
EMBEDDINGS = (
    "token_embedding",
    "position_embedding",
    "segment_embedding",
    "embeddings_layer_norm",
)
"""Layers of `kbert.encoder` with weights below the first Transformer block."""
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


class GlobalNormClipping:
    """For an optimizer of Keras: clips as torch's clip_grad_norm_ does, and keeps the norm.

    Keras' own `global_clipnorm` takes the gradient of an embedding as one row a token of the batch,
    so that a token that comes twice counts as two small gradients and not as their sum.

    Args:
        clip_norm: Largest global norm of the gradients; 0 for no clipping.
        *args: What the optimizer takes.
        **kwargs: What the optimizer takes.
    """

    def __init__(self, *args, clip_norm: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.clip_norm = clip_norm
        self._compiled = {}

    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        self.gradient_norm = self.add_variable((), initializer="zeros", name="gradient_norm")

    def apply(self, grads, trainable_variables=None) -> None:
        """Update the variables; `gradient_norm` is then the norm before it was clipped."""
        # of an embedding: an index may come twice, whose rows are summed
        grads = [None if grad is None else tf.convert_to_tensor(grad) for grad in grads]
        if trainable_variables is not None:
            self.build(trainable_variables)  # no variable can be made in a compiled function
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # variables of several devices
            self._update(grads, trainable_variables)
        else:
            self._compiled_update(trainable_variables)(grads)

    def _compiled_update(self, variables):
        """Each variable and its moments are read and written once, as XLA fuses the operations."""
        key = None if variables is None else tuple(map(id, variables))
        if key not in self._compiled:
            # the variables are no arguments: tf.function would take their values
            self._compiled[key] = tf.function(
                lambda grads: self._update(grads, variables), jit_compile=True
            )
        return self._compiled[key]

    def _update(self, grads, variables) -> None:
        norm = tf.linalg.global_norm([tf.cast(grad, tf.float32) for grad in grads
                                      if grad is not None])  # fmt: skip
        if self.clip_norm:
            scale = tf.minimum(1.0, self.clip_norm / (norm + 1e-6))
            grads = [None if grad is None else grad * tf.cast(scale, grad.dtype) for grad in grads]
        super().apply(grads, variables)
        self.gradient_norm.assign(norm)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "clip_norm": self.clip_norm}


@keras.saving.register_keras_serializable(package="kbert")
class ClippedAdamW(GlobalNormClipping, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with torch's clipping."""


@keras.saving.register_keras_serializable(package="kbert")
class LayerwiseAdamW(GlobalNormClipping, keras.optimizers.Adam):
    """AdamW whose learning rate falls by a factor from each Transformer block to the one below.

    Weight decay is decoupled, that of `UNDECAYED` is none, and it scales with the rate of its
    variable. It is applied here and not by Keras, whose own takes one rate for all variables.

    Args:
        learning_rate: Rate, or schedule, of the head and the pooler.
        layer_decay: The factor, see `layer_factors`.
        decoupled_weight_decay: As keras.optimizers.AdamW's `weight_decay`.
        **kwargs: What the parent takes.
    """

    def __init__(
        self, learning_rate, *, layer_decay: float, decoupled_weight_decay: float = 0.0, **kwargs
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.layer_decay = layer_decay
        self.decoupled_weight_decay = decoupled_weight_decay

    def build(self, var_list) -> None:
        if self.built:
            return
        super().build(var_list)
        paths = [variable.path for variable in var_list]
        self.factors = layer_factors(paths, layer_decay=self.layer_decay)
        self.decays = tuple(
            self.decoupled_weight_decay if _is_decayed(path) else 0.0 for path in paths
        )

    def update_step(self, gradient, variable, learning_rate) -> None:
        index = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self.factors[index]
        if self.decays[index]:
            self.assign_sub(variable, variable * self.decays[index] * rate)
        super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layer_decay": self.layer_decay,
            "decoupled_weight_decay": self.decoupled_weight_decay,
        }


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
    options: TrainOptions, *, total_steps: int, variables: list[keras.Variable]
) -> keras.optimizers.Optimizer:
    """AdamW with clipping; no weight decay on biases and LayerNorm.

    Args:
        options: Rates and norms.
        total_steps: Steps of the whole run, for the schedule.
        variables: What will be trained.
    """
    schedule = WarmupLinear(
        options.learning_rate,
        warmup_steps=math.ceil(options.warmup * total_steps),
        total_steps=total_steps,
    )
    common = {
        "epsilon": 1e-8,
        "clip_norm": options.clip_norm,
        "name": "adamw",
    }
    if options.layer_decay < 1:
        return LayerwiseAdamW(
            schedule,
            layer_decay=options.layer_decay,
            decoupled_weight_decay=options.weight_decay,
            **common,
        )
    optimizer = ClippedAdamW(schedule, weight_decay=options.weight_decay, **common)
    optimizer.exclude_from_weight_decay(
        var_list=[variable for variable in variables if not _is_decayed(variable.path)]
    )
    return optimizer


def _is_decayed(path: str) -> bool:
    return path.split("/")[-1] not in UNDECAYED
