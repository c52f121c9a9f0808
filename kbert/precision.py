"""Matrix products: in which type they are computed, and what LoRA adds to them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

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


_made: contextvars.ContextVar[_Made | None] = contextvars.ContextVar("made", default=None)


class _Made(dict):
    """What was made of layers' weights, by layer and name."""

    kept = False
    """Whether as variables of a graph."""


@contextlib.contextmanager
def shared_operands() -> Iterator[None]:
    """Inside, what several calls of a layer make of its weights is made once."""
    token = _made.set(_Made() if (outer := _made.get()) is None else outer)
    try:
        yield
    finally:
        _made.reset(token)


@contextlib.contextmanager
def kept_operands() -> Iterator[None]:
    """Inside, what a graph makes of weights is made now, and kept in variables of the graph.

    They live no longer, so that the graph is to be used, or written, inside.
    """
    made = _Made()
    made.kept = True
    token = _made.set(made)
    try:
        yield
    finally:
        _made.reset(token)


@contextlib.contextmanager
def own_operands() -> Iterator[None]:
    """Inside, nothing is shared with what is outside of it: not even by `shared_operands`."""
    token = _made.set(None)
    try:
        yield
    finally:
        _made.reset(token)


def operand(layer: keras.Layer, name: str, make: Callable[[], tf.Tensor]) -> tf.Tensor:
    """The right side of a `product`: what a layer makes of its weights, in the product's type.

    Args:
        layer: Whose weights they are.
        name: Of what is made, among all that is made of this layer's weights.
        make: Makes it.
    """

    def in_type() -> tf.Tensor:
        result = make()
        is_half = isinstance(layer.dtype_policy, BFloat16Products)
        return tf.cast(result, tf.bfloat16) if is_half else result

    return made_once(layer, name, in_type)


def made_once(layer: keras.Layer, name: str, make: Callable[[], tf.Tensor]) -> tf.Tensor:
    """What a layer makes of its weights, see `shared_operands` and `kept_operands`."""
    made = _made.get()
    if made is None:
        return _tensor(make())
    key = (id(layer), name)
    if key not in made:
        made[key] = _kept(make, f"{layer.name}_{name}") if made.kept else _tensor(make())
    return _tensor(made[key])


def _kept(make: Callable[[], tf.Tensor], name: str) -> tf.Variable | keras.Variable:
    def in_eager_mode() -> tf.Variable | keras.Variable:
        result = make()
        if isinstance(result, keras.Variable):  # nothing was made of it
            return result
        return tf.Variable(result, trainable=False, name=name.replace(" ", "_"))

    # A graph that is traced takes each variable that its thread reads for one that it needs.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(in_eager_mode).result()


def _tensor(value) -> tf.Tensor:
    return tf.convert_to_tensor(value)


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
        kernel = operand(self, "kernel", lambda: self.kernel)
        bias = tf.convert_to_tensor(self.bias)
        outputs = tf.nn.bias_add(product(flat, kernel, self.dtype_policy), bias)
        added = low_rank(flat, [self], self.dtype_policy)
        if added is not None:
            outputs = outputs + added
        if self.activation is not None:
            outputs = self.activate(outputs, bool(training))
        return tf.reshape(outputs, tf.concat([shape[:-1], [self.units]], 0))

    def activate(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """The activation of what the product gave, (rows, units)."""
        del training
        return self.activation(inputs)
