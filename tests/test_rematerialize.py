"""Blocks that compute themselves again: the same gradients, dropout included."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_training import Setting

from kbert.config import EncoderConfig
from kbert.encoder import build_encoder, compute_in_parts, rematerialize, transformer_blocks
from kbert.precision import policy_of

CONFIG = EncoderConfig(
    vocabulary_size=19,
    hidden_dim=12,
    num_layers=2,
    num_heads=3,
    intermediate_dim=21,
    max_sequence_length=33,
    dropout=0.2,
    attention_dropout=0.3,
)


def gradients(precision: str, compile: str, *, again: bool) -> dict[str, np.ndarray]:
    """Of the second of two steps: that of the first has drawn random numbers, too."""
    keras.utils.set_random_seed(0)
    encoder = build_encoder(CONFIG, dtype=policy_of(precision))
    compute_in_parts(encoder, 2 if compile == "parallel" else 1)
    if again:
        rematerialize(encoder)
    ids = tf.constant(np.random.default_rng(0).integers(1, 19, (4, 9)), tf.int32)
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": tf.cast(ids < 17, tf.int32)}
    variables = [v for v in encoder.trainable_variables if not v.path.startswith("pooler")]

    @tf.function(jit_compile=compile == "xla")
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            states = encoder(inputs, training=True)["sequence_output"]
            loss = tf.reduce_sum(tf.cast(states, tf.float32) ** 3)  # of squares it is constant
        found = tape.gradient(loss, variables)
        return [tf.convert_to_tensor(gradient) for gradient in found]

    step()
    found = {v.path: g.numpy() for v, g in zip(variables, step(), strict=True)}
    seeds = [v.numpy()[1] for v in encoder.variables if v.path.endswith("seed_generator_state")]
    assert set(seeds) == {4 if compile == "parallel" else 2}
    return found


@pytest.mark.parametrize("compile", ["graph", "parallel", "xla"])
def test_gradients_are_those_of_what_was_kept(compile: str) -> None:
    """With dropout; to rounding of sums."""
    kept = gradients("float32", compile, again=False)
    again = gradients("float32", compile, again=True)
    for path, gradient in kept.items():
        size = np.abs(gradient).max()
        assert size > 0, path
        if not path.endswith("key/bias"):  # its gradient is rounding alone
            np.testing.assert_allclose(again[path], gradient, atol=1e-6 * size, err_msg=path)


@pytest.mark.parametrize(
    ("precision", "compile"), [("bfloat16_products", "parallel"), ("bfloat16", "graph")]
)
def test_gradients_in_bfloat16_are_as_near_to_float32(precision: str, compile: str) -> None:
    exact = gradients("float32", compile, again=False)
    kept = gradients(precision, compile, again=False)
    again = gradients(precision, compile, again=True)

    def distance(found: dict[str, np.ndarray]) -> float:
        """Of all gradients as one vector, as a share of its length."""
        off = sum(np.sum((found[path] - gradient) ** 2) for path, gradient in exact.items())
        return float(np.sqrt(off / sum(np.sum(gradient**2) for gradient in exact.values())))

    assert 0 < distance(kept) < 0.02
    assert distance(again) < 1.2 * distance(kept)


def test_a_block_keeps_its_input_alone() -> None:
    """The forward pass is traced once more for the gradient, and for nothing else."""
    encoder = build_encoder(CONFIG)
    rematerialize(encoder)
    calls = []
    for block in transformer_blocks(encoder):
        compute = block._self_attention_layer.call

        def counted(*arguments, compute=compute, **keywords):
            calls.append(1)
            return compute(*arguments, **keywords)

        block._self_attention_layer.call = counted
    ids = tf.ones((2, 5), tf.int32)
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids}
    for training, count in ((False, 2), (True, 4)):
        calls.clear()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoder(inputs, training=training)["sequence_output"] ** 2)
        tape.gradient(loss, [v.value for v in encoder.trainable_variables])
        assert len(calls) == count


def test_a_run_is_the_same(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    words = ["--train.epochs", "1", "--train.frozen_layers", "1", "--train.accumulate", "2"]
    words = [*tiny_options, *words]
    kept, _ = Setting(words, tiny_checkpoint).train(None)
    again, _ = Setting([*words, "--train.rematerialize", "true"], tiny_checkpoint).train(None)
    for ours, theirs in zip(again.weights, kept.weights, strict=True):
        if not ours.path.endswith("key/bias"):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-5, err_msg=ours.path)
