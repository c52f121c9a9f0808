"""LoRA: a Transformer block learns by low-rank additions to the kernels of its dense layers."""

from __future__ import annotations

import math

import keras
import numpy as np

from kbert.encoder import encoders_of, transformer_blocks
from kbert.optimizers import EMBEDDINGS


def add_low_rank(model: keras.Model, *, rank: int, alpha: float, seed: int) -> None:
    """Freeze embeddings and blocks of the encoder in a model, and give the blocks additions.

    To each product with a kernel, x W, comes (x A) B alpha / rank: for query, key, value and output
    of the attention and both layers of the feed-forward part, as models fine-tuned by additions to
    all of them reach what full fine-tuning reaches, and those of query and value alone do not
    always (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 4). A is uniform in
    +-1 / sqrt(inputs), as in the authors' code, and B is zero, so that nothing has changed yet.
    Blocks that are frozen as layers stay without. Pooler and head are trained as ever.

    Args:
        model: With an `Encoder` among its layers.
        rank: Columns of A, rows of B.
        alpha: See above.
        seed: Of A.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685.
    """
    encoder = encoders_of(model)[0]
    blocks = transformer_blocks(encoder)
    for layer in (*map(encoder.get_layer, EMBEDDINGS), *blocks):
        for variable in layer.weights:
            variable.trainable = False
    generator = np.random.default_rng([seed, rank])
    for block in blocks:
        for layer in block.dense_layers if block.trainable else ():
            inputs, units = _sizes(layer)
            bound = inputs**-0.5
            _add_weights(layer, inputs, units, rank)
            layer.lora_a.assign(generator.uniform(-bound, bound, (inputs, rank)))
            layer.lora_scale = alpha / rank


def merge_low_rank(model: keras.Model) -> None:
    """Put the additions of `add_low_rank` into the kernels; the model is then as before it.

    What was traced with them goes on to be right: of the additions it knows, B is zero.
    """
    encoder = encoders_of(model)[0]
    for block in transformer_blocks(encoder):
        for layer in block.dense_layers:
            if hasattr(layer, "lora_a"):
                a, b = (of.numpy().astype(np.float64) for of in (layer.lora_a, layer.lora_b))
                added = (layer.lora_scale * (a @ b)).reshape(layer.kernel.shape)
                layer.kernel.assign(layer.kernel.numpy() + added)
                layer.lora_b.assign(np.zeros_like(b))
                del layer.lora_a, layer.lora_b


def _sizes(layer: keras.Layer) -> tuple[int, int]:
    """Rows and columns of the kernel as a matrix; that of attention has an axis of heads, too."""
    units = math.prod(layer.bias.shape)
    return math.prod(layer.kernel.shape) // units, units


def _add_weights(layer: keras.Layer, inputs: int, units: int, rank: int) -> None:
    """As Keras' own `enable_lora`, which has other shapes where there are heads."""
    layer._tracker.unlock()
    layer.lora_a = layer.add_weight(name="lora_a", shape=(inputs, rank), initializer="zeros")
    layer.lora_b = layer.add_weight(name="lora_b", shape=(rank, units), initializer="zeros")
    layer._tracker.lock()
