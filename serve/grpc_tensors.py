"""TensorProto <-> numpy arrays, as TensorFlow Serving reads and writes them."""

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serve.errors import invalid_argument

# Type -> (the field of TensorProto that holds it, the integer type whose bits it takes, if any).
TYPED_FIELDS: dict[int, tuple[str, type | None]] = {
    types_pb2.DT_FLOAT: ("float_val", None),
    types_pb2.DT_DOUBLE: ("double_val", None),
    types_pb2.DT_INT32: ("int_val", None),
    types_pb2.DT_INT16: ("int_val", None),
    types_pb2.DT_INT8: ("int_val", None),
    types_pb2.DT_UINT8: ("int_val", None),
    types_pb2.DT_UINT16: ("int_val", None),
    types_pb2.DT_INT64: ("int64_val", None),
    types_pb2.DT_UINT32: ("uint32_val", None),
    types_pb2.DT_UINT64: ("uint64_val", None),
    types_pb2.DT_BOOL: ("bool_val", None),
    types_pb2.DT_STRING: ("string_val", None),
    types_pb2.DT_HALF: ("half_val", np.uint16),
    types_pb2.DT_BFLOAT16: ("half_val", np.uint16),
}


def read_tensor(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """An input of a request as an array; both typed fields and tensor_content are read."""
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def write_tensor(array: np.ndarray) -> tensor_pb2.TensorProto:
    """An output with its values in the typed field (float_val ...), as TF Serving sends them."""
    dtype = tf.as_dtype(array.dtype).as_datatype_enum
    if dtype not in TYPED_FIELDS:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=tf.TensorShape(array.shape).as_proto())
    field, bits = TYPED_FIELDS[dtype]
    values = array.ravel() if bits is None else array.ravel().view(bits)
    getattr(proto, field).extend(values.tolist())
    return proto
