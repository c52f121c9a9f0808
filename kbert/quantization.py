"""Have the encoder of a model that answers compute its products with weights in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

from kbert.batches import EncodedSplit, evaluation_batches
from kbert.encoder import encoders_of, transformer_blocks
from kbert.precision import observed_inputs
from kbert.tasks.task import Task

ROWS = 256
"""Of the training data, whose largest inputs are the bounds of the products."""
SMALLEST = 1 / 127
"""Bound of a column that these rows leave at 0, or nearly, as a share of the largest column's."""


def quantize(model: keras.Model, task: Task, split: EncodedSplit) -> None:
    """Have every block compute its six products with weights in 8 bits, all else as before.

    Kernels are rounded by columns; inputs by columns, too, by the largest absolute values that the
    product met in some rows, and cut to them where they are larger later: bounds that are known
    beforehand cost next to nothing when texts are answered. Embeddings, products of attention,
    pooler and head stay in float32.

    A few columns of a BERT's states, and of its feed-forward parts, are many times as large as the
    others. Multiplying rows of the kernel by what columns of inputs are divided by is that of Xiao
    et al. 2023 (SmoothQuant, https://arxiv.org/abs/2211.10438, section 4) with all of the
    difference in the kernel (their alpha = 1).

    Args:
        model: In float32; what was traced of it before does not change.
        task: What the model is for.
        split: Its training data.
    """
    encoder = encoders_of(model)[0]
    rows = np.unique(np.linspace(0, len(split) - 1, ROWS).round().astype(np.int64))
    with observed_inputs() as observed:
        for inputs, *_ in evaluation_batches(split.take(rows), task, batch_size=32):
            model(inputs, training=False)
    set_bounds(encoder, observed)


def add_in_bfloat16(model: keras.Model) -> None:
    """Have every block add the biases of its products in bfloat16, and take its GELU so.

    oneDNN's kernel then does all of it with the product, before it rounds the sums to bfloat16:
    as good as rounding the products alone (each result is rounded once), and neither they nor the
    widest states of a block are written in float32. TensorFlow's remapper puts the operations
    together; where it does not, they are the same ones in bfloat16.

    Args:
        model: Its products are in bfloat16 (`BFloat16Products`), and it is not trained any more;
            what was traced of it before does not change.
    """
    for block in transformer_blocks(encoders_of(model)[0]):
        for layer in block.projecting_layers:
            layer.adds_in_bfloat16 = True
            layer.autocast = False  # Keras would give float32 to what follows the GELU


def set_bounds(encoder: keras.Model, observed: Mapping[tuple[int, str], np.ndarray]) -> None:
    """Have the blocks of an encoder compute in 8 bits, by what `observed_inputs` gave.

    Raises:
        ValueError: it gave nothing for a block.
    """
    for block in transformer_blocks(encoder):
        for layer in block.projecting_layers:
            found = {name: sizes for (of, name), sizes in observed.items() if of == id(layer)}
            if not found:
                raise ValueError(f"no row passed through {block.name}")
            layer.int8 = {
                name: np.maximum(sizes, max(sizes.max() * SMALLEST, np.finfo(np.float32).tiny))
                for name, sizes in found.items()
            }
