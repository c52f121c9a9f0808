"""Matrix products: in which type they are computed, and what is added to them."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from kbert.int8 import product8, rounded, rounded_columns


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


Bounds = Mapping[str, np.ndarray]
"""For the name of each product in 8 bits, the largest absolute value of each column of its inputs,
over 0."""
_observed: contextvars.ContextVar[dict[tuple[int, str], np.ndarray] | None] = (
    contextvars.ContextVar("observed", default=None)
)


@contextlib.contextmanager
def observed_inputs() -> Iterator[dict[tuple[int, str], np.ndarray]]:
    """Inside, each `projection` in eager mode notes how large the columns of its inputs are.

    Yields:
        The largest absolute values (inner,), by the id of the layer and the name of its product.
    """
    observed: dict[tuple[int, str], np.ndarray] = {}
    token = _observed.set(observed)
    try:
        yield observed
    finally:
        _observed.reset(token)


def projection(
    inputs: tf.Tensor,
    layer: keras.Layer,
    name: str,
    parts: Sequence[keras.Layer],
    *,
    gelu: bool = False,
) -> tf.Tensor:
    """What dense layers make of the same inputs, side by side: inputs @ kernels + biases.

    In the type that the layer's policy says; in 8 bits where the layer has bounds of that name in
    its `int8`; with the biases in bfloat16 where it `adds_in_bfloat16`.

    Args:
        inputs: (rows, inner).
        layer: Whose product it is.
        name: The product's.
        parts: The dense layers; either all of them have additions of LoRA, or none has.
        gelu: Whether the exact GELU follows: in 8 bits it is part of the product, and of sums in
            bfloat16 it is to be taken in bfloat16.

    Returns:
        (rows, columns of all parts); in bfloat16 where that is to meet the GELU.
    """

    def kernels() -> tf.Tensor:
        if len(parts) == 1 and len(parts[0].kernel.shape) == 2:
            return parts[0].kernel
        width = inputs.shape[-1]
        return tf.concat([tf.reshape(part.kernel, (width, -1)) for part in parts], 1)

    def biases() -> tf.Tensor:
        if len(parts) == 1 and len(parts[0].bias.shape) == 1:
            return parts[0].bias
        return tf.concat([tf.reshape(part.bias, (-1,)) for part in parts], 0)

    if layer.adds_in_bfloat16:
        kernel = operand(layer, name, kernels)
        bias = made_once(layer, f"{name} half bias", lambda: tf.cast(biases(), tf.bfloat16))
        sums = tf.nn.bias_add(tf.matmul(tf.cast(inputs, tf.bfloat16), kernel), bias)
        return sums if gelu else tf.cast(sums, tf.float32)
    bias = made_once(layer, f"{name} bias", biases)
    bounds = getattr(layer, "int8", {}).get(name)
    if bounds is not None:
        # Columns of inputs that are as large as each other lose as little as each other: what they
        # are divided by, the kernel's rows are multiplied by.
        @functools.cache
        def columns() -> tuple[tf.Tensor, tf.Tensor]:
            return rounded_columns(tf.convert_to_tensor(kernels()) * bounds[:, None])

        kernel = made_once(layer, f"{name} int8", lambda: columns()[0])
        largest = made_once(layer, f"{name} largest", lambda: columns()[1])
        return product8(rounded(inputs * (1 / bounds)), kernel, largest, bias, gelu=gelu)
    observed = _observed.get()
    if observed is not None:
        key = id(layer), name
        sizes = tf.reduce_max(tf.abs(inputs), axis=0).numpy()
        observed[key] = np.maximum(observed.get(key, 0.0), sizes)
    kernel = operand(layer, name, kernels)
    outputs = tf.nn.bias_add(product(inputs, kernel, layer.dtype_policy), bias)
    added = low_rank(inputs, parts, layer.dtype_policy)
    return outputs if added is None else outputs + added


@keras.saving.register_keras_serializable("kbert")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` by one plain product, see `product`: (..., inputs) -> (..., units)."""

    int8: Bounds = {}
    """{"kernel": bounds} for a product in 8 bits, see `projection`."""
    adds_in_bfloat16 = False
    """Whether biases are in bfloat16, see `kbert.quantization.add_in_bfloat16`."""
    has_gelu = False
    """Whether the activation is the exact GELU, which some products have with them."""

    def call(self, inputs, training=None):
        shape = tf.shape(inputs)
        flat = tf.reshape(inputs, (-1, inputs.shape[-1]))
        outputs = projection(flat, self, "kernel", [self], gelu=self.has_gelu)
        is_done = self.has_gelu and "kernel" in self.int8
        if self.activation is not None and not is_done:
            outputs = self.activate(outputs, bool(training))
        return tf.reshape(outputs, tf.concat([shape[:-1], [self.units]], 0))

    def activate(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """The activation of what the product gave, (rows, units)."""
        del training
        return self.activation(inputs)
