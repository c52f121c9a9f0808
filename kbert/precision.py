"""Matrix products: in which type they are computed, and what LoRA adds to them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

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


@contextlib.contextmanager
def own_operands() -> Iterator[None]:
    """Inside, nothing is shared with what is outside of it: not even by `shared_operands`."""
    token = _operands.set(None)
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


def low_rank(inputs: tf.Tensor, layers: Sequence[keras.Layer], policy: keras.DTypePolicy):
    """What LoRA adds to the products of the same inputs with the kernels of some layers.

    `kbert.lora` gives a layer its `lora_a` (inner, rank), `lora_b` (rank, columns) and
    `lora_scale`. The inputs meet all first factors in one plain product.

    Args:
        inputs: (rows, inner).
        layers: Either all of them have additions, or none has.
        policy: Of what computes the products.

    Returns:
        (rows, columns of all layers, side by side); None where there are no additions.
    """
    if not hasattr(layers[0], "lora_a"):
        return None
    firsts = operand(
        layers[0],
        "lora_a of all",
        lambda: tf.concat([tf.convert_to_tensor(layer.lora_a) for layer in layers], 1),
    )
    thin = tf.split(product(inputs, firsts, policy) * layers[0].lora_scale, len(layers), 1)
    added = [
        product(part, operand(layer, "lora_b", lambda of=layer: tf.convert_to_tensor(of.lora_b)),
                policy)
        for part, layer in zip(thin, layers, strict=True)
    ]  # fmt: skip
    return added[0] if len(added) == 1 else tf.concat(added, 1)


@keras.saving.register_keras_serializable("kbert")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` by one plain product, see `product`: (..., inputs) -> (..., units)."""

    def call(self, inputs, training=None):
        shape = tf.shape(inputs)
        flat = tf.reshape(inputs, (-1, inputs.shape[-1]))
        kernel = operand(self, "kernel", lambda: tf.convert_to_tensor(self.kernel))
        bias = tf.convert_to_tensor(self.bias)
        outputs = tf.nn.bias_add(product(flat, kernel, self.dtype_policy), bias)
        added = low_rank(flat, [self], self.dtype_policy)
        if added is not None:
            outputs = outputs + added
        if self.activation is not None:
            outputs = self.activation(outputs)
        return tf.reshape(outputs, tf.concat([shape[:-1], [self.units]], 0))
