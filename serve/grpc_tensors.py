"""TensorProto <-> numpy arrays, as TensorFlow Serving reads and writes them."""

import functools
import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serve.errors import invalid_argument

# Type -> (the field of TensorProto that holds it, the type of what that field holds).
TYPED_FIELDS: dict[int, tuple[str, type]] = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_DOUBLE: ("double_val", np.float64),
    types_pb2.DT_INT32: ("int_val", np.int32),
    types_pb2.DT_INT16: ("int_val", np.int32),
    types_pb2.DT_INT8: ("int_val", np.int32),
    types_pb2.DT_UINT8: ("int_val", np.int32),
    types_pb2.DT_UINT16: ("int_val", np.int32),
    types_pb2.DT_INT64: ("int64_val", np.int64),
    types_pb2.DT_UINT32: ("uint32_val", np.uint32),
    types_pb2.DT_UINT64: ("uint64_val", np.uint64),
    types_pb2.DT_BOOL: ("bool_val", np.bool_),
    types_pb2.DT_STRING: ("string_val", np.object_),
    types_pb2.DT_HALF: ("half_val", np.uint16),
    types_pb2.DT_BFLOAT16: ("half_val", np.uint16),
}
BIT_PATTERNS = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
# A message bounds the tensors in it, unless a few values are to be repeated: then this does.
MAX_FILLED_BYTES = 64 * 1024 * 1024
LARGEST_ITEM = 16  # complex128


def read_tensor(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """An input of a request as an array; both typed fields and tensor_content are read.

    Args:
        name: of the input, for the message.
        proto: the value; if it has fewer elements than its shape says, the last one is repeated.

    Raises:
        ServingError: INVALID_ARGUMENT if it is no tensor.
    """
    try:
        return _read(proto)
    except (TypeError, ValueError, LookupError, MemoryError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def _read(proto: tensor_pb2.TensorProto) -> np.ndarray:
    shape = [dim.size for dim in proto.tensor_shape.dim]
    num_elements = math.prod(shape)
    if proto.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise ValueError("the shape is not known")
    if proto.dtype not in TYPED_FIELDS:
        if num_elements > proto.ByteSize():  # more than there can be
            _check_filled(num_elements * LARGEST_ITEM)
        return tf.make_ndarray(proto)
    if num_elements and proto.tensor_content:
        return _read_content(proto, num_elements).reshape(shape)
    return _resized(_read_field(proto), num_elements).reshape(shape)


def _read_field(proto: tensor_pb2.TensorProto) -> np.ndarray:
    field, held = TYPED_FIELDS[proto.dtype]
    values = getattr(proto, field)
    if held is np.object_:
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
        return array
    array = np.fromiter(values, np.int32 if held is np.uint16 else held, len(values))
    if proto.dtype in BIT_PATTERNS:
        return array.astype(np.uint16).view(_numpy_type(proto.dtype))
    return array.astype(_numpy_type(proto.dtype), copy=False)


def _resized(array: np.ndarray, size: int) -> np.ndarray:
    if len(array) == size:
        return array
    if len(array) > size:
        return array[:size]
    _check_filled(size * array.itemsize)
    last = array[-1] if len(array) else (b"" if array.dtype == object else 0)
    resized = np.full(size, last, dtype=array.dtype)
    resized[: len(array)] = array
    return resized


def _check_filled(num_bytes: int) -> None:
    if num_bytes > MAX_FILLED_BYTES:
        raise ValueError("too large")


def _read_content(proto: tensor_pb2.TensorProto, num_elements: int) -> np.ndarray:
    if proto.dtype == types_pb2.DT_STRING:
        return _read_strings(proto.tensor_content, num_elements)
    array = np.frombuffer(proto.tensor_content, dtype=_numpy_type(proto.dtype))
    if len(array) != num_elements:
        raise ValueError("tensor_content does not have the size of the shape")
    return array


def _read_strings(content: bytes, num_elements: int) -> np.ndarray:
    """tensor_content of strings: the lengths of all of them as varints, then all their bytes."""
    position = 0
    lengths = []
    for _ in range(num_elements):
        length = shift = 0
        while True:
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise ValueError("tensor_content does not have the size of the strings")
    strings = np.empty(num_elements, dtype=object)
    for index, length in enumerate(lengths):
        strings[index] = content[position : position + length]
        position += length
    return strings


def write_tensor(array: np.ndarray) -> tensor_pb2.TensorProto:
    """An output with its values in the typed field (float_val ...), as TF Serving sends them."""
    dtype = _enum(array.dtype)
    if dtype not in TYPED_FIELDS:
        return tf.make_tensor_proto(array)
    proto = _without_values(array, dtype)
    flat = array.ravel()
    values = flat.view(np.uint16) if dtype in BIT_PATTERNS else flat
    getattr(proto, TYPED_FIELDS[dtype][0]).extend(values.tolist())
    return proto


def write_tensor_content(array: np.ndarray) -> tensor_pb2.TensorProto:
    """An output in bytes, as TF Serving with --enable_serialization_as_tensor_content."""
    proto = _without_values(array, _enum(array.dtype))
    if array.dtype == object:
        values = array.ravel().tolist()
        lengths = bytes(byte for value in values for byte in _varint(len(value)))
        proto.tensor_content = lengths + b"".join(values)
    else:
        proto.tensor_content = array.tobytes()
    return proto


def _varint(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number


def _without_values(array: np.ndarray, dtype: int) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto()
    proto.dtype = dtype  # pyright: ignore[reportAttributeAccessIssue]
    shape = proto.tensor_shape
    if not array.ndim:
        shape.SetInParent()
    for size in array.shape:
        shape.dim.add().size = size
    return proto


@functools.cache
def _enum(dtype: np.dtype) -> int:
    return tf.as_dtype(dtype).as_datatype_enum


@functools.cache
def _numpy_type(dtype: int) -> np.dtype:
    return np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
