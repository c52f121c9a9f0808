"""Matrix products of whole numbers of 8 bits, as TensorFlow's oneDNN kernels compute them.

The op `_QuantizedMatMul` (x86, TensorFlow 2.17 and later,
https://github.com/tensorflow/tensorflow/pull/66087) has no Python function. What is public,
`tf.raw_ops.QuantizedMatMulWithBias` and its kin, knows one scale for all columns, no GELU, and
answers wrongly since some TensorFlow after 2.12 where inputs may be negative. tests/test_int8.py
looks at both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

OP = "_QuantizedMatMul"
LARGEST = 127
"""-128 is not used, so that numbers are symmetric."""


def is_supported() -> bool:
    """Whether this TensorFlow computes such products on this machine."""
    try:
        kernel, largest = rounded_columns(tf.ones((1, 1)))
        _ = product8(rounded(tf.ones((1, 1))), kernel, largest, tf.ones(1), gelu=False)
    except (tf.errors.OpError, RuntimeError):  # no such kernel, no such op
        return False
    return True


def rounded_columns(kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A kernel (inner, columns) in int8, and the largest absolute value of each column."""
    largest = tf.reduce_max(tf.abs(kernel), axis=0)
    largest = tf.where(largest > 0, largest, 1.0)
    return tf.cast(tf.round(kernel * (LARGEST / largest)), tf.int8), largest


def rounded(inputs: tf.Tensor) -> tf.Tensor:
    """Inputs in int8, 1 being 127; what is over 1 is cut."""
    numbers, _, _ = tf.raw_ops.QuantizeV2(
        input=inputs,
        min_range=-1.0,
        max_range=1.0,
        T=tf.qint8,
        mode="SCALED",
        round_mode="HALF_TO_EVEN",
        narrow_range=True,
    )
    return tf.bitcast(numbers, tf.int8)


def product8(
    inputs: tf.Tensor, kernel: tf.Tensor, largest: tf.Tensor, bias: tf.Tensor, *, gelu: bool
) -> tf.Tensor:
    """inputs @ kernel + bias, and the exact GELU of it where `gelu`.

    The kernel must be the same at every call of a graph that this is part of: it is laid out for
    the CPU at the first one.

    Args:
        inputs: (rows, inner) in int8, of `rounded`.
        kernel: (inner, columns) in int8, of `rounded_columns`.
        largest: (columns,), of `rounded_columns`.
        bias: (columns,).
        gelu: Whether to apply it.

    Returns:
        float32 (rows, columns).
    """

    def compute() -> tf.Tensor:
        return _op(
            [tf.bitcast(inputs, tf.qint8), tf.bitcast(kernel, tf.qint8), bias],
            [tf.constant(-1.0), tf.constant(1.0), -largest, largest],
            [b"BiasAdd", *([b"GeluExact"] if gelu else []), b"Dequantize"],
        )

    found = tf.function(compute)() if tf.executing_eagerly() else compute()  # no eager op has it
    found.set_shape([inputs.shape[0], kernel.shape[1]])
    return found


def _op(operands: list[tf.Tensor], limits: list[tf.Tensor], fused: list[bytes]) -> tf.Tensor:
    attributes: dict[str, Any] = {
        "Tdevice_inputs": [tf.qint8, tf.qint8, tf.float32],
        "Thost_inputs": [tf.float32] * len(limits),
        "Tdevice_outputs": [tf.float32],
        "Thost_outputs": [],
        "T1": tf.qint8,
        "T2": tf.qint8,
        "Tbias": tf.float32,
        "U": tf.float32,
        "Tout": tf.float32,
        "is_weight_const": True,
        "is_bias_const": True,
        "fused_ops": fused,
        "input_quant_mode": b"SCALED",
        "output_quant_mode": b"SCALED",
    }
    graph = tf.compat.v1.get_default_graph()
    made = graph.create_op(
        OP, [*operands, *limits], [tf.float32], attrs=_attributes(attributes), name="product8"
    )
    return made.outputs[0]


def _attributes(values: Mapping[str, Any]) -> dict[str, attr_value_pb2.AttrValue]:
    return {name: _attribute(value) for name, value in values.items()}


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
