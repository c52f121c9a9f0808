"""Have the encoder of a model compute its products with weights in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

from kbert.batches import EncodedSplit, evaluation_batches
from kbert.encoder import Encoder, transformer_blocks
from kbert.int8 import Int8
from kbert.precision import observed_inputs
from kbert.tasks.task import Task

ROWS = 256
"""Of the training data, whose largest inputs are the bounds of the products."""


def quantize(model: keras.Model, task: Task, split: EncodedSplit) -> None:
    """Have every block compute its six products with weights in 8 bits, all else as before.

    Weights are rounded by columns. Inputs are rounded by the largest absolute value that the
    product met in some rows, and cut to it where they are larger later: bounds that are known
    beforehand cost nothing when texts are answered. Embeddings, products of attention, pooler and
    head stay in float32.

    Args:
        model: In float32; what was traced of it before does not change.
        task: What the model is for.
        split: Its training data.
    """
    rows = np.unique(np.linspace(0, len(split) - 1, ROWS).round().astype(np.int64))
    with observed_inputs() as observed:
        for inputs, *_ in evaluation_batches(split.take(rows), task, batch_size=32):
            model(inputs, training=False)
    set_bounds(_encoder_of(model), observed)


def set_bounds(encoder: keras.Model, observed: Mapping[tuple[int, str], float]) -> None:
    """Have the blocks of an encoder compute in 8 bits, by what `observed_inputs` gave.

    Raises:
        ValueError: it gave nothing for one of the products.
    """
    for block in transformer_blocks(encoder):
        attention, first, second = block.projecting_layers
        bounds = {
            layer: {name: bound for (of, name), bound in observed.items() if of == id(layer)}
            for layer in (attention, first, second)
        }
        if not all(bounds.values()):
            raise ValueError(f"no row passed through {block.name}")
        attention.int8 = {name: Int8(bound) for name, bound in bounds[attention].items()}
        second.int8 = {"kernel": Int8(bounds[second]["kernel"])}
        chained = bounds[second]["kernel"] if first.has_gelu else None
        first.int8 = {"kernel": Int8(bounds[first]["kernel"], chained)}


def _encoder_of(model: keras.Model) -> Encoder:
    return next(layer for layer in (model, *model.layers) if isinstance(layer, Encoder))
