from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serve.errors import Code, ServingError
from serve.servable import Servable, load_servable, type_name


@pytest.fixture(scope="module")
def half(exports: dict[str, Path]) -> Iterator[Servable]:
    servable = load_servable(exports["half_plus_two"], 1)
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def pair(exports: dict[str, Path]) -> Iterator[Servable]:
    servable = load_servable(exports["pair"], 1)
    yield servable
    servable.close()


def error_of(servable: Servable, *args: object, **kwargs: object) -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        servable.predict(*args, **kwargs)
    return caught.value.code, caught.value.message


def test_predict(half: Servable):
    assert half.input_types("") == {"x": "float"}
    assert half.input_types("absent") is None
    np.testing.assert_array_equal(half.predict({"x": np.float32([[1], [2]])})["y"], [[2.5], [3]])


def test_static_shapes_are_not_checked(half: Servable):
    outputs = half.predict({"x": np.float32([1, 2, 5])})  # the signature says [-1, 1]
    np.testing.assert_array_equal(outputs["y"], [2.5, 3, 4.5])


def test_strings_scalar_and_with_zeros(exports: dict[str, Path]):
    servable = load_servable(exports["text"], 1)
    outputs = servable.predict(
        {"text": np.array([b"a\0", b""], dtype=object)}, output_filter=["text_bytes"]
    )
    assert outputs["text_bytes"].tolist() == [b"a\0", b""]
    scalar = servable.predict(
        {"text": np.array(b"\xff\0", dtype=object)}, output_filter=["text_bytes"]
    )
    assert scalar["text_bytes"].dtype == object
    assert scalar["text_bytes"].item() == b"\xff\0"
    servable.close()


def test_output_filter(pair: Servable):
    inputs = {"a": np.float32([2]), "b": np.float32([3])}
    assert list(pair.predict(inputs)) == ["product", "sum"]
    assert list(pair.predict(inputs, output_filter=["sum"])) == ["sum"]
    assert error_of(pair, inputs, output_filter=["sum", "sum"]) == (
        Code.INVALID_ARGUMENT,
        "duplicate output tensor alias: sum",
    )
    assert error_of(pair, inputs, output_filter=["Y"]) == (
        Code.INVALID_ARGUMENT,
        "output tensor alias not found in signature: Y Outputs expected to be in the set "
        "{product,sum}.",
    )


def test_inputs_that_do_not_fit(pair: Servable):
    one = np.float32([1])
    assert error_of(pair, {"a": one}) == (
        Code.INVALID_ARGUMENT,
        "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
        "Missing but required: {b}.",
    )
    code, message = error_of(pair, {"a": one, "z": one})
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("Signature input alias: b(feed name: serving_default_b:0) not found")
    assert error_of(pair, {"a": one, "b": np.int32([1])}) == (
        Code.INVALID_ARGUMENT,
        "Expects arg[1] to be float but int32 is provided",
    )
    assert error_of(pair, {"a": one, "b": one}, signature_name="absent") == (
        Code.FAILED_PRECONDITION,
        'Serving signature key "absent" not found.',
    )


def test_an_input_with_a_default_may_be_left_out(exports: dict[str, Path]):
    servable = load_servable(exports["pair"], 1)
    defaults = servable.signatures["serving_default"].defaults
    defaults["b"].CopyFrom(tf.make_tensor_proto([10.0]))
    assert servable.predict({"a": np.float32([1])})["sum"] == [11]
    code, message = error_of(servable, {"a": np.float32([1]), "z": np.float32([1])})
    assert code is Code.INVALID_ARGUMENT
    assert message == ("Inputs contains invalid name. Used request inputs: a, request input: a,z")
    servable.close()


def test_errors_of_operations_keep_their_code(half: Servable):
    code, message = error_of(half, {"x": np.float32([1])}, signature_name="triples")
    assert code is Code.INVALID_ARGUMENT
    assert "Input to reshape is a tensor with 1 values" in message


@pytest.mark.parametrize(
    ("file", "text", "code", "words"),
    [
        ("notes.txt", "", Code.NOT_FOUND, "SavedModel file does not exist"),
        ("saved_model.pb", "no protocol buffer", Code.UNKNOWN, "Cannot parse file"),
    ],
)
def test_load_errors_are_one_line(tmp_path: Path, file: str, text: str, code: Code, words: str):
    (tmp_path / file).write_text(text)
    with pytest.raises(ServingError) as caught:
        load_servable(tmp_path, 1)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.code is code


def test_type_name():
    types = (tf.float32, np.dtype(np.float64), tf.half, np.dtype(object), tf.int32, 1)
    names = ["float", "double", "half", "string", "int32", "float"]
    assert [type_name(dtype) for dtype in types] == names
