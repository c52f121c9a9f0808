"""Biases and GELU in bfloat16: what they cost in accuracy, and that a product has them with it."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from parity import ODD_CONFIG, random_inputs
from tensorflow.python.eager import context

from kbert.encoder import build_encoder, computed_by_length
from kbert.precision import BFloat16Products, kept_operands
from kbert.quantization import add_in_bfloat16

INPUTS = random_inputs(31)  # (5, 11)


def encoders(activation: str) -> tuple[keras.Model, keras.Model, keras.Model]:
    """The same encoder in float32, with products in bfloat16, and with sums in it."""
    config = dataclasses.replace(ODD_CONFIG, activation=activation)
    keras.utils.set_random_seed(3)
    exact = build_encoder(config)
    for variable in exact.variables:  # biases are 0 at first
        variable.assign(np.random.default_rng(len(variable.path)).normal(0, 0.3, variable.shape))
    found = [exact]
    for _ in range(2):
        found.append(build_encoder(config, dtype=BFloat16Products()))
        for ours, theirs in zip(found[-1].variables, exact.variables, strict=True):
            ours.assign(theirs)
    add_in_bfloat16(found[2])
    return found[0], found[1], found[2]


def states(encoder: keras.Model) -> tf.Tensor:
    return encoder(INPUTS)["sequence_output"]


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_it_costs_no_more_than_the_products_do(activation: str) -> None:
    exact, products, sums = (
        tf.function(states)(encoder).numpy() for encoder in encoders(activation)
    )
    assert sums.dtype == np.float32
    assert np.abs(sums - products).max() > 0
    off = [np.sqrt(np.mean((found - exact) ** 2)) for found in (products, sums)]
    assert 1e-4 < off[1] < 1.5 * off[0]


def test_kept_by_length_it_is_the_same() -> None:
    *_, encoder = encoders("gelu")
    plain = tf.function(states)(encoder).numpy()
    with computed_by_length(encoder, 2), kept_operands():
        kept = tf.function(lambda: states(encoder)).get_concrete_function()
        types = {variable.dtype for variable in kept.graph.variables if variable.shape == (37,)}
        found = kept().numpy()
    assert types == {tf.bfloat16}
    mask = np.asarray(INPUTS["padding_mask"])[..., None]
    np.testing.assert_allclose(found * mask, plain * mask, atol=0.05)


def test_tensorflow_puts_product_bias_and_gelu_together() -> None:
    *_, encoder = encoders("gelu")
    with context.collect_graphs(optimized=True) as graphs:
        tf.function(states)(encoder)
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for of in graph.library.function for node in of.node_def]
    fused = [
        tuple(node.attr["fused_ops"].list.s) for node in nodes if node.op.endswith("FusedMatMul")
    ]
    assert fused.count((b"BiasAdd", b"GeluExact")) == ODD_CONFIG.num_layers
    assert not [node.name for node in nodes if node.op == "Erf"]
