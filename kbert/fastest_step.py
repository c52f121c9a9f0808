"""What train.precision and train.compile are when they are auto: a few measured steps."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kbert.config import EncoderConfig, TrainOptions
from kbert.encoder import build_encoder, compute_in_parts
from kbert.kernel_threads import has_one_thread_a_kernel, parts_of_rows
from kbert.precision import policy_of

logger = logging.getLogger(__name__)

AUTO = "auto"
UNMEASURED = {"precision": "float32", "compile": "graph"}
"""Of a training that is too short for anything to gain by."""
SHORT = 1e13
"""Floating-point operations of such a training: a minute of a desktop's two slowest cores."""
LARGEST_BATCH = 8192  # tokens: larger ones are no faster a token
STEPS = 5
AT_LEAST = 0.95  # of the time of what is exact, or simple, to be worth leaving it


def fastest_step(
    options: TrainOptions, model: EncoderConfig, *, tokens: float, length: float
) -> TrainOptions:
    """The options with precision and compile as they are fastest, where they are auto.

    One Transformer block of the model's sizes is trained for a few steps in each way: a model is
    a stack of them. On a CPU that is float32 or bfloat16_products, graph or parallel (without the
    former where kernels have one thread, see `kbert.kernel_threads`); on a GPU float32 or
    bfloat16. xla is for who asks for it: it compiles a model anew for each shape of a
    batch, of which there are dozens, and no measured step tells what that costs.

    Args:
        options: Of the training.
        model: Sizes of the encoder.
        tokens: Those of all its steps.
        length: Tokens of a text, on average.
    """
    asked = [name for name in UNMEASURED if getattr(options, name) == AUTO]
    if not asked:
        return options
    in_parts = ("parallel",) if has_one_thread_a_kernel() else ("graph", "parallel")
    if 6 * tokens * _block_weights(model) * model.num_layers < SHORT:
        unmeasured = {**UNMEASURED, "compile": in_parts[0]}
        return dataclasses.replace(options, **{name: unmeasured[name] for name in asked})
    is_gpu = bool(tf.config.list_physical_devices("GPU"))
    ways = {
        "precision": ("float32", "bfloat16" if is_gpu else "bfloat16_products"),
        "compile": ("graph",) if is_gpu else in_parts,
    }
    choices = [ways[name] if name in asked else (getattr(options, name),) for name in UNMEASURED]
    block = dataclasses.replace(model, num_layers=1, vocabulary_size=64, pad_token_id=0)
    rows = max(1, min(options.part_size, int(LARGEST_BATCH / length)))
    times = {
        way: _seconds(block, *way, rows=rows, length=max(1, round(length)))
        for way in itertools.product(*choices)
    }
    simplest = next(iter(times))
    fastest = min(times, key=lambda way: times[way])
    if times[fastest] > AT_LEAST * times[simplest]:
        fastest = simplest
    told = ", ".join(f"{' '.join(way)} {1000 * seconds:.1f} ms" for way, seconds in times.items())
    logger.info("a block's step of %d texts: %s; %s it is", rows, told, " ".join(fastest))
    return dataclasses.replace(options, **dict(zip(UNMEASURED, fastest, strict=True)))


def parts_of(options: TrainOptions) -> int:
    """Into how many parts the rows of a step are split to be computed side by side."""
    return parts_of_rows(options.part_size) if options.compile == "parallel" else 1


def _block_weights(model: EncoderConfig) -> int:
    return model.hidden_dim * (4 * model.hidden_dim + 2 * model.intermediate_dim)


def _seconds(
    config: EncoderConfig, precision: str, compile: str, *, rows: int, length: int
) -> float:
    """Median time of a step of the encoder, forwards and backwards."""
    encoder = build_encoder(config, dtype=policy_of(precision))
    options = TrainOptions(batch_size=rows, compile=compile)
    compute_in_parts(encoder, parts_of(options))
    ids = tf.constant(np.random.default_rng(0).integers(1, 64, (rows, length)), tf.int32)
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": tf.ones_like(ids)}
    weights = [variable.value for variable in encoder.trainable_variables]

    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            states = encoder(inputs, training=True)["sequence_output"]
            loss = tf.reduce_sum(tf.cast(states, tf.float32) ** 2)
        gradients = tape.gradient(loss, weights)
        return [tf.reduce_sum(gradient) for gradient in gradients if gradient is not None]

    return _median(tf.function(step, jit_compile=compile == "xla"))


def _median(step: Callable[[], list[tf.Tensor]]) -> float:
    times = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        _ = [result.numpy() for result in step()]
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
