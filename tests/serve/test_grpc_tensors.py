import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serve.errors import Code, ServingError
from serve.grpc_tensors import read_tensor, write_tensor, write_tensor_content

KINDS = ["float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32"]
KINDS += ["int64", "uint64", "bool", "complex64", tf.bfloat16.as_numpy_dtype]


def proto_of(dtype: int, shape: list[int], **fields: object) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=dtype, **fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize("write", [write_tensor, write_tensor_content])
@pytest.mark.parametrize("dtype", KINDS)
def test_tensors_keep_type_shape_and_values(dtype: str, write: object):
    array = np.arange(6).reshape(2, 1, 3).astype(dtype)
    for given in (array, array[0, 0, 2].reshape(()), array[:0]):
        proto = write(given)
        for copy in (read_tensor("x", proto), tf.make_ndarray(proto)):  # ours, TensorFlow's
            assert copy.dtype == given.dtype
            assert copy.shape == given.shape
            np.testing.assert_array_equal(copy, given)


@pytest.mark.parametrize("write", [write_tensor, write_tensor_content])
def test_strings_keep_every_byte(write: object):
    array = np.array([[b"", b"\xff\0"], [b"x" * 300, "ä".encode()]], dtype=object)
    copy = read_tensor("x", write(array))
    assert copy.tolist() == array.tolist()
    assert read_tensor("x", write(array[0, 1:].reshape(()))).item() == b"\xff\0"


def test_contents_are_what_tensorflow_reads():
    strings = np.array([b"a", b"\xff" * 200], dtype=object)
    decode = tf.io.parse_tensor  # C++, as in TF Serving
    proto = write_tensor_content(strings)
    assert not proto.string_val
    assert decode(proto.SerializeToString(), tf.string).numpy().tolist() == strings.tolist()
    proto = write_tensor_content(np.float32([1, 2]))
    assert not proto.float_val
    assert decode(proto.SerializeToString(), tf.float32).numpy().tolist() == [1, 2]


def test_typed_fields_are_as_tensorflow_writes_them():
    for array in (np.float32([[1, 2]]), np.array([b"x"], dtype=object), np.float16([1.5])):
        ours, theirs = write_tensor(array), tf.make_tensor_proto(array.tolist(), array.dtype)
        assert not ours.tensor_content
        assert ours.dtype == theirs.dtype
        assert ours.tensor_shape == theirs.tensor_shape


def test_the_last_value_is_repeated_and_what_is_too_much_cut():
    read = lambda **fields: read_tensor("x", proto_of(types_pb2.DT_FLOAT, [3], **fields)).tolist()  # noqa: E731
    assert read(float_val=[1, 2]) == [1, 2, 2]
    assert read() == [0, 0, 0]
    assert read(float_val=[1, 2, 3, 4]) == [1, 2, 3]
    strings = proto_of(types_pb2.DT_STRING, [2, 2], string_val=[b"x"])
    assert read_tensor("x", strings).tolist() == [[b"x", b"x"], [b"x", b"x"]]
    floats = proto_of(types_pb2.DT_FLOAT, [2**24], float_val=[3])  # 64 MB, the limit
    assert read_tensor("x", floats)[-1] == 3
    values = np.zeros(2**24 + 1, np.float32)  # what is there has no limit
    assert len(read_tensor("x", write_tensor_content(values))) == len(values)


def test_narrow_integers_wrap_round():
    proto = proto_of(types_pb2.DT_INT8, [2], int_val=[300, -1])
    assert read_tensor("x", proto).tolist() == [44, -1]


@pytest.mark.parametrize(
    "proto",
    [
        tensor_pb2.TensorProto(),
        proto_of(types_pb2.DT_FLOAT, [-1], float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [2**40], float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [2**24 + 1], float_val=[1]),
        proto_of(types_pb2.DT_STRING, [2**23 + 1], string_val=[b"x"]),
        proto_of(types_pb2.DT_COMPLEX64, [2**23 + 1], scomplex_val=[1, 1]),
        proto_of(types_pb2.DT_FLOAT, [1] * 70, float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [2], tensor_content=b"1234"),
        proto_of(types_pb2.DT_FLOAT, [1], tensor_content=b"123"),
        proto_of(types_pb2.DT_STRING, [2], tensor_content=b"\x01\x02ab"),
        proto_of(types_pb2.DT_STRING, [1], tensor_content=b"\xff"),
        proto_of(types_pb2.DT_RESOURCE, [1]),
        proto_of(9999, [1]),
    ],
)
def test_protos_that_are_no_tensors(proto: tensor_pb2.TensorProto):
    with pytest.raises(ServingError) as caught:
        read_tensor("x", proto)
    assert (caught.value.code, caught.value.message) == (
        Code.INVALID_ARGUMENT,
        "tensor parsing error: x",
    )
