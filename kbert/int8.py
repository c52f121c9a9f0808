"""Matrix products of whole numbers of 8 bits, as TensorFlow's oneDNN kernels compute them.

The op `_QuantizedMatMul` (TensorFlow 2.17 and later, x86) has no Python function. What is public,
`tf.raw_ops.QuantizedMatMulWithBias` and its kin, knows one scale for all columns, no GELU, and
answers wrongly since some TensorFlow after 2.12 where inputs may be negative;
tests/test_int8.py looks at both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

OP = "_QuantizedMatMul"
LARGEST = 127
"""-128 is not used, so that numbers are symmetric."""


@dataclass(frozen=True)
class Int8:
    """How a layer computes one of its products in 8 bits."""

    bound: float
    """Largest absolute value of the inputs; larger ones are cut to it."""
    next_bound: float | None = None
    """That of the inputs of the product that follows at once, where the results are rounded for
    it; None for results in float32."""


def is_supported() -> bool:
    """Whether this TensorFlow computes such products on this machine."""
    try:
        kernel, largest = rounded_columns(tf.ones((1, 1)))
        _ = product8(tf.ones((1, 1)), kernel, largest, tf.ones(1), Int8(1.0), False)
    except (tf.errors.OpError, RuntimeError):  # no such kernel, no such op
        return False
    return True


def rounded_columns(kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A kernel (inputs, columns) in int8, and the largest absolute value of each column."""
    largest = tf.reduce_max(tf.abs(kernel), axis=0)
    steps = tf.where(largest > 0, largest, 1.0) / LARGEST
    return tf.cast(tf.round(kernel / steps), tf.int8), steps * LARGEST


def rounded(inputs: tf.Tensor, bound: float) -> tf.Tensor:
    """Inputs in int8, `bound` being 127; what is int8 is so already."""
    if inputs.dtype == tf.int8:
        return inputs
    numbers, _, _ = tf.raw_ops.QuantizeV2(
        input=inputs,
        min_range=-bound,
        max_range=bound,
        T=tf.qint8,
        mode="SCALED",
        round_mode="HALF_TO_EVEN",
        narrow_range=True,
    )
    return tf.bitcast(numbers, tf.int8)


def product8(
    inputs: tf.Tensor, kernel: tf.Tensor, largest: tf.Tensor, bias: tf.Tensor, how: Int8, gelu: bool
) -> tf.Tensor:
    """inputs @ kernel + bias, and the exact GELU of it where `gelu`.

    The kernel must be the same at every call of a graph that this is part of: it is laid out for
    the CPU at the first one.

    Args:
        inputs: (rows, inner) in float32, or in int8 as `rounded` has them.
        kernel: (inner, columns) in int8, of `rounded_columns`.
        largest: (columns,), of `rounded_columns`.
        bias: (columns,).
        how: The bounds.
        gelu: Whether to apply it.

    Returns:
        (rows, columns) in float32; in int8 where `how` has a bound of what follows.
    """

    def compute() -> tf.Tensor:
        numbers = tf.bitcast(rounded(inputs, how.bound), tf.qint8)
        columns = tf.bitcast(kernel, tf.qint8)
        limits = [tf.constant(-how.bound), tf.constant(how.bound), -largest, largest]
        result = tf.float32 if how.next_bound is None else tf.qint8
        last = b"Dequantize" if how.next_bound is None else b"Requantize"
        told = [] if how.next_bound is None else [tf.float32, tf.float32]
        if how.next_bound is not None:
            limits += [tf.constant(-how.next_bound), tf.constant(how.next_bound)]
        attributes = {
            "Tdevice_inputs": [tf.qint8, tf.qint8, tf.float32],
            "Thost_inputs": [tf.float32] * len(limits),
            "Tdevice_outputs": [result],
            "Thost_outputs": told,
            "T1": tf.qint8,
            "T2": tf.qint8,
            "Tbias": tf.float32,
            "U": tf.float32,
            "Tout": result,
            "is_weight_const": True,
            "is_bias_const": True,
            "fused_ops": [b"BiasAdd", *([b"GeluExact"] if gelu else []), last],
            "input_quant_mode": b"SCALED",
            "output_quant_mode": b"SCALED",
        }
        outputs = _op([numbers, columns, bias, *limits], [result, *told], attributes)
        return outputs if how.next_bound is None else tf.bitcast(outputs, tf.int8)

    found = tf.function(compute)() if tf.executing_eagerly() else compute()  # no eager op has it
    found.set_shape([inputs.shape[0], kernel.shape[1]])
    return found


def _op(inputs: list[tf.Tensor], types: list[tf.DType], attributes: Mapping[str, Any]) -> tf.Tensor:
    """The op's first output."""
    graph = tf.compat.v1.get_default_graph()
    found = {name: _attribute(value) for name, value in attributes.items()}
    return graph.create_op(OP, inputs, types, attrs=found, name="product8").outputs[0]


def _attribute(value: Any) -> attr_value_pb2.AttrValue:
    found = attr_value_pb2.AttrValue()
    match value:
        case bool():
            found.b = value
        case bytes():
            found.s = value
        case tf.DType():
            found.type = value.as_datatype_enum
        case [bytes(), *_]:
            found.list.s.extend(value)
        case _:
            found.list.SetInParent()
            found.list.type.extend(kind.as_datatype_enum for kind in value)
    return found
