"""One answer for a text that was cut into windows."""

from __future__ import annotations

from typing import Any, get_args

import keras
import tensorflow as tf

from kbert.config import Pooling
from kbert.errors import InputError


@keras.saving.register_keras_serializable(package="kbert")
class WindowPooling(keras.layers.Layer):
    """Pools what a model gives for windows to what it gives for the texts they are of.

    It has no weights. In a model that ends with it the loss is that of the pooled answer, so that
    training, evaluation and the exported graph are one function.

    Example:

    >>> logits = tf.constant([[1.0, 4.0], [3.0, 0.0], [5.0, 6.0]])
    >>> WindowPooling("mean")(logits, tf.constant([0, 0, 1])).numpy().tolist()
    [[2.0, 2.0], [5.0, 6.0]]

    Args:
        pooling: "mean", or "max" of each column by itself.

    Raises:
        InputError: If there is no such pooling.
    """

    def __init__(self, pooling: Pooling = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if pooling not in get_args(Pooling):
            raise InputError(
                f"pooling must be one of {', '.join(get_args(Pooling))}. Received: {pooling}"
            )
        self.pooling: Pooling = pooling
        self.built = True

    def call(self, values: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Pools a batch.

        Args:
            values: Of each window, float (windows, ...).
            rows: The text that a window is of, int32 (windows,): ascending from 0, each text having
                a window at least, as `kbert.preprocessing.BertWindowPacker` gives them.

        Returns:
            Of each text, (texts, ...).
        """
        pool = tf.math.segment_mean if self.pooling == "mean" else tf.math.segment_max
        return pool(values, rows)

    def compute_output_spec(
        self, values: keras.KerasTensor, rows: keras.KerasTensor
    ) -> keras.KerasTensor:
        return keras.KerasTensor((None, *values.shape[1:]), dtype=values.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pooling": self.pooling}
