"""In which type matrix products are computed."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("kbert")
class BFloat16Products(keras.DTypePolicy):
    """A policy of float32 whose layers give bfloat16 to their matrix products, and nothing else.

    Variables, sums, normalisation, softmax and activations are in float32, which "mixed_bfloat16"
    computes in bfloat16 and TensorFlow's CPU kernels at half the speed. Products add up in float32
    in both. It says "float32" of itself to layers that do not know it.
    """

    def __init__(self, name: str = "float32") -> None:
        super().__init__(name)


POLICIES = {
    "auto": "float32",
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


def policy_of(precision: str) -> keras.DTypePolicy:
    """The policy of a `train.precision`; one of auto that was not measured is float32."""
    if precision == "bfloat16_products":
        return BFloat16Products()
    return keras.DTypePolicy(POLICIES[precision])


_operands: contextvars.ContextVar[dict | None] = contextvars.ContextVar("operands", default=None)


@contextlib.contextmanager
def shared_operands() -> Iterator[None]:
    """Inside, what several calls of a layer make of its weights is made once."""
    token = _operands.set({})
    try:
        yield
    finally:
        _operands.reset(token)


def operand(layer: keras.Layer, name: str, make: Callable[[], tf.Tensor]) -> tf.Tensor:
    """The right side of a `product`: what a layer makes of its weights, in the product's type.

    Args:
        layer: Whose weights they are.
        name: Of what is made, among all that is made of this layer's weights.
        make: Makes it.
    """
    made = _operands.get()
    if made is None:
        return make()
    key = (id(layer), name)
    if key not in made:
        result = make()
        is_half = isinstance(layer.dtype_policy, BFloat16Products)
        made[key] = tf.cast(result, tf.bfloat16) if is_half else result
    return made[key]


def product(
    left: tf.Tensor, right: tf.Tensor, policy: keras.DTypePolicy, *, transpose_right: bool = False
) -> tf.Tensor:
    """The matrix product of two tensors of equal rank, as a layer of this policy computes it.

    Args:
        left: (..., rows, inner).
        right: (..., inner, columns); of `transpose_right` (..., columns, inner).
        policy: The layer's `dtype_policy`.
        transpose_right: Whether the right one is transposed.
    """
    if not isinstance(policy, BFloat16Products):
        return tf.matmul(left, right, transpose_b=transpose_right)
    halves = tf.cast(left, tf.bfloat16), tf.cast(right, tf.bfloat16)
    return tf.cast(tf.matmul(*halves, transpose_b=transpose_right), left.dtype)


@keras.saving.register_keras_serializable("kbert")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` by one plain product, see `product`: (..., inputs) -> (..., units)."""

    def call(self, inputs, training=None):
        shape = tf.shape(inputs)
        flat = tf.reshape(inputs, (-1, inputs.shape[-1]))
        kernel = operand(self, "kernel", lambda: tf.convert_to_tensor(self.kernel))
        bias = tf.convert_to_tensor(self.bias)
        outputs = tf.nn.bias_add(product(flat, kernel, self.dtype_policy), bias)
        if self.activation is not None:
            outputs = self.activate(outputs, bool(training))
        return tf.reshape(outputs, tf.concat([shape[:-1], [self.units]], 0))

    def activate(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """The activation of what the product gave, (rows, units)."""
        del training
        return self.activation(inputs)
