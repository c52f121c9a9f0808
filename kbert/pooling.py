"""From the states of a text's tokens to one vector: Keras layers, as sentence-transformers pools.

[CLS] and [SEP] are tokens like the others, padding is none. `pooling_layer`
makes them in float32, whatever the encoder's policy.
"""

from __future__ import annotations

from typing import Literal, get_args

import keras
from keras import ops

PoolingName = Literal["mean", "cls", "max"]
POOLINGS: tuple[PoolingName, ...] = get_args(PoolingName)


@keras.saving.register_keras_serializable("kbert")
class MeanPooling(keras.layers.Layer):
    """The mean of the states of all tokens.

    Called with states (batch, length, hidden) and padding_mask (batch, length), 1 at tokens; gives
    (batch, hidden). A row of nothing but padding is all zeros.

    Example:

    >>> states = np.array([[[1.0, 4.0], [3.0, 0.0], [9.0, 9.0]]], "float32")
    >>> MeanPooling()(states, padding_mask=np.array([[1, 1, 0]])).numpy().tolist()
    [[2.0, 2.0]]
    """

    def call(self, states, padding_mask):
        mask = ops.expand_dims(ops.cast(padding_mask, states.dtype), -1)  # (batch, length, 1)
        tokens = ops.maximum(ops.sum(mask, axis=1), 1)  # (batch, 1)
        return ops.sum(states * mask, axis=1) / tokens

    def compute_output_shape(self, states_shape, padding_mask_shape=None):
        return _pooled_shape(states_shape)


@keras.saving.register_keras_serializable("kbert")
class ClsPooling(keras.layers.Layer):
    """The state of the first token, [CLS]; called as `MeanPooling`."""

    def call(self, states, padding_mask):
        return states[:, 0]

    def compute_output_shape(self, states_shape, padding_mask_shape=None):
        return _pooled_shape(states_shape)


@keras.saving.register_keras_serializable("kbert")
class MaxPooling(keras.layers.Layer):
    """The largest state of all tokens, in each dimension; called as `MeanPooling`."""

    def call(self, states, padding_mask):
        is_token = ops.expand_dims(ops.cast(padding_mask, "bool"), -1)  # (batch, length, 1)
        return ops.max(ops.where(is_token, states, float("-inf")), axis=1)

    def compute_output_shape(self, states_shape, padding_mask_shape=None):
        return _pooled_shape(states_shape)


@keras.saving.register_keras_serializable("kbert")
class PairSimilarity(keras.layers.Layer):
    """The cosine of the vectors of two texts.

    Called with vectors (2 * pairs, hidden), the first texts of all pairs before the second ones;
    gives (pairs, 1), in [-1, 1] up to rounding.

    Example:

    >>> vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 0.0]], "float32")
    >>> PairSimilarity()(vectors).numpy().tolist()
    [[1.0], [0.0]]
    """

    def call(self, vectors):
        first, second = ops.split(ops.normalize(vectors, epsilon=1e-12), 2, axis=0)
        return ops.sum(first * second, axis=-1, keepdims=True)

    def compute_output_spec(self, vectors):
        return keras.KerasTensor((None, 1), dtype=self.compute_dtype)


def pooling_layer(pooling: PoolingName) -> keras.layers.Layer:
    """A layer of states (batch, length, hidden) and padding_mask to vectors, float32.

    Raises:
        KeyError: there is no such pooling.
    """
    layers = {"mean": MeanPooling, "cls": ClsPooling, "max": MaxPooling}
    return layers[pooling](dtype="float32", name="pooling")


def sentence_encoder(encoder: keras.Model, *, pooling: PoolingName, normalize: bool) -> keras.Model:
    """An encoder and what makes one vector of a text's states.

    Args:
        encoder: Functional encoder of `kbert.encoder`.
        pooling: How the states are pooled.
        normalize: Whether to divide each vector by its length.

    Returns:
        A model of the encoder's inputs to vectors float32 (batch, hidden).
    """
    states = encoder(encoder.input)["sequence_output"]
    vectors = pooling_layer(pooling)(states, padding_mask=encoder.input["padding_mask"])
    if normalize:
        vectors = keras.layers.UnitNormalization(dtype="float32", name="normalize")(vectors)
    return keras.Model(encoder.input, vectors, name="sentence_encoder")


def _pooled_shape(states_shape):
    batch, _, hidden = states_shape
    return (batch, hidden)
