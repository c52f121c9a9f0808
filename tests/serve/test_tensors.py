from typing import Any

import numpy as np
import pytest

from serve.errors import Code, ServingError
from serve.tensors import Format, read_inputs, read_signature_name, write_outputs

FLOAT = {"x": "float"}
STRING = {"text": "string"}
TWO = {"a": "float", "b": "float"}


def texts(*values: bytes) -> np.ndarray:
    return np.array(values, dtype=object)


def read(document: dict[str, Any], types: dict[str, str]) -> dict[str, np.ndarray]:
    return read_inputs(document, types)[0]


def error_of(document: dict[str, Any], types: dict[str, str]) -> str:
    with pytest.raises(ServingError) as caught:
        read_inputs(document, types)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


# --- reading -------------------------------------------------------------------------------


def test_signature_name():
    assert read_signature_name({}) == ""
    assert read_signature_name({"signature_name": "total"}) == "total"
    with pytest.raises(ServingError) as caught:
        read_signature_name({"signature_name": 5})
    assert caught.value.message == (
        'JSON Value: {\n    "signature_name": 5\n} not formatted correctly. '
        "'signature_name' key must be a string value."
    )


def test_rows_of_bare_values():
    inputs, request_format = read_inputs({"instances": [1, 2.5, float("nan")]}, FLOAT)
    assert request_format is Format.ROW
    assert inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(inputs["x"], np.float32([1, 2.5, np.nan]))


def test_rows_of_objects():
    inputs = read({"instances": [{"b": 3, "a": [1, 2]}, {"a": [4, 5], "b": 6}]}, TWO)
    np.testing.assert_array_equal(inputs["a"], [[1, 2], [4, 5]])
    np.testing.assert_array_equal(inputs["b"], [3, 6])


def test_rows_of_strings_and_base64():
    inputs = read({"instances": ["ä\0", {"b64": "/wA="}, {"b64": "aGk"}]}, STRING)
    np.testing.assert_array_equal(inputs["text"], texts(b"\xc3\xa4\0", b"\xff\0", b"hi"))


def test_columns_of_one_input():
    inputs, request_format = read_inputs({"inputs": [[1], [2]]}, FLOAT)
    assert request_format is Format.COLUMNAR
    np.testing.assert_array_equal(inputs["x"], [[1], [2]])


@pytest.mark.parametrize("value", [3, {"x": 3}, {"x": 3, "not in the signature": None}])
def test_columns_may_be_scalar_named_and_have_more_names(value: Any):
    assert read({"inputs": value}, FLOAT)["x"].shape == ()


def test_columns_of_a_base64_scalar():
    assert read({"inputs": {"b64": "aGk="}}, STRING)["text"].item() == b"hi"


def test_empty_lists_have_a_shape():
    assert read({"inputs": []}, STRING)["text"].shape == (0,)
    assert read({"instances": [[], []]}, FLOAT)["x"].shape == (2, 0)


def test_narrow_integers_wrap_round():
    values = read({"inputs": [1, 300, -1]}, {"n": "uint8"})["n"]
    np.testing.assert_array_equal(values, np.uint8([1, 44, 255]))


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("int32", -(2**31)),
        ("int64", 2**63 - 1),
        ("uint32", 2**32 - 1),
        ("uint64", 2**64 - 1),
        ("bool", True),
        ("double", 2**53 - 1),
        ("float", 3.4e38),
    ],
)
def test_extreme_values_are_kept(type_name: str, value: Any):
    tensor = read({"instances": [value]}, {"x": type_name})["x"]
    assert tensor[0] == tensor.dtype.type(value)


@pytest.mark.parametrize(
    ("type_name", "value", "shown", "json_type"),
    [
        ("float", "1", '"1"', "String"),
        ("float", True, "true", "True"),
        ("float", None, "null", "Null"),
        ("float", {"b64": "aGk="}, '{\n    "b64": "aGk="\n}', "Object"),
        ("int32", 1.0, "1.0", "Number"),
        ("int32", 2**31, "2147483648", "Number"),
        ("int8", 2**31, "2147483648", "Number"),
        ("int64", 2**63, "9223372036854775808", "Number"),
        ("uint32", -1, "-1", "Number"),
        ("int32", False, "false", "False"),
        ("bool", 1, "1", "Number"),
        ("string", 1, "1", "Number"),
        ("string", None, "null", "Null"),
    ],
)
def test_wrong_types(type_name: str, value: Any, shown: str, json_type: str):
    assert error_of({"inputs": [value]}, {"x": type_name}) == (
        f"JSON Value: {shown} Type: {json_type} is not of expected type: {type_name}"
    )


@pytest.mark.parametrize(
    ("type_name", "value", "shown"),
    [
        ("float", 2**24, "16777216"),
        ("double", -(2**53), "-9007199254740992"),
        ("float", 1e39, "1e+39"),
    ],
)
def test_loss_of_precision(type_name: str, value: Any, shown: str):
    assert error_of({"inputs": value}, {"x": type_name}) == (
        f"Cannot convert JSON value: {shown} to {type_name} without loss of precision."
    )


def test_integers_beyond_64_bits_are_decimals():
    assert read({"inputs": [2**64, -(2**70)]}, FLOAT)["x"].tolist() == [2.0**64, -(2.0**70)]
    assert error_of({"inputs": [2**64]}, {"x": "uint64"}) == (
        "JSON Value: 1.84467441e+19 Type: Number is not of expected type: uint64"
    )
    for type_name in ("float", "int32"):
        assert error_of({"inputs": [10**400]}, {"x": type_name}) == (
            "JSON Parse error: Number too big to be stored in double."
        )


@pytest.mark.parametrize("values", [[2**24, 0.5], [0.5, 2**24]])
def test_integers_among_decimals_have_limits_of_their_own(values: list[float]):
    assert error_of({"inputs": values}, FLOAT) == (
        "Cannot convert JSON value: 16777216 to float without loss of precision."
    )
    assert read({"inputs": [2.0**24, 0.5]}, FLOAT)["x"].tolist() == [2**24, 0.5]


def test_rows_that_must_be_looked_at_one_by_one():
    rows = [{"a": ["x", {"b64": "aGk="}]}, {"a": [{"b64": "aGk="}, "y"]}]
    inputs = read({"instances": rows}, {"a": "string"})
    assert inputs["a"].tolist() == [[b"x", b"hi"], [b"hi", b"y"]]
    inputs = read({"instances": [{"b64": [1.5]}, {"b64": [2]}]}, {"b64": "float"})
    assert inputs["b64"].tolist() == [[1.5], [2.0]]


def test_lists_that_are_nested_too_deeply():
    value: Any = 1.0
    for _ in range(900):
        value = [value]
    assert "900 deep" in error_of({"inputs": value}, FLOAT)
    assert "900 deep" in error_of({"instances": value}, FLOAT).replace("899", "900")


def test_types_that_json_cannot_write():
    with pytest.raises(ServingError) as caught:
        read_inputs({"inputs": 1}, {"x": "half"})
    assert caught.value.code is Code.UNIMPLEMENTED
    assert caught.value.message == "Conversion of JSON Value: 1 to type: half"


@pytest.mark.parametrize(
    ("document", "types", "message"),
    [
        ({}, FLOAT, "Missing 'inputs' or 'instances' key"),
        ({"inputs": 1}, {}, "Failed to get input map for signature: DEFAULT"),
        (
            {"inputs": 1, "instances": 1},
            FLOAT,
            'JSON Value: {\n    "inputs": 1,\n    "instances": 1\n} Not formatted correctly '
            "expecting only one of 'inputs' or 'instances' keys to exist",
        ),
        (
            {"instances": 1},
            FLOAT,
            "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
        ),
        (
            {"instances": []},
            FLOAT,
            "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
        ),
        (
            {"instances": [1]},
            TWO,
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            {"inputs": [1]},
            TWO,
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        ({"inputs": {"a": 1}}, TWO, "Missing named input: b in 'inputs' object."),
        (
            {"instances": [{"a": 1, "b": 2, "z": 3}]},
            TWO,
            "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: z",
        ),
        (
            {"instances": [{"a": 1}]},
            TWO,
            "Failed to process element: 0 of 'instances' list. JSON object: "
            '{\n    "a": 1\n} keys must be equal to: a,b',
        ),
        (
            {"instances": [{"x": 1}, 2]},
            FLOAT,
            "Expecting object but got list at item 1 of input list",
        ),
        (
            {"instances": [1, {"x": 2}]},
            FLOAT,
            "Expecting value/list but got object at item 1 of input list",
        ),
        (
            {"instances": [[1, 2], [3]]},
            FLOAT,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 2 but got: 1",
        ),
        (
            {"instances": [[[1, 2]], [[1], [2]]]},
            FLOAT,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting shape [1,2] but got: [2,1]",
        ),
        (
            {"inputs": [1, [2]]},
            FLOAT,
            "Encountered list at unexpected level: 1 expected < 1",
        ),
        (
            {"inputs": [[1, 2], [3]]},
            FLOAT,
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        (
            {"inputs": [[1], 2]},
            FLOAT,
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ({"inputs": [{"b64": "?"}]}, STRING, "Unable to base64 decode"),
        (
            {"inputs": [{"b64": 1}]},
            STRING,
            'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data',
        ),
    ],
)
def test_requests_that_do_not_fit(document: dict[str, Any], types: dict[str, str], message: str):
    assert error_of(document, types) == message


# --- writing -------------------------------------------------------------------------------


def test_write_rows_of_one_output():
    assert write_outputs({"y": np.float32([2.5, 3])}, Format.ROW) == (
        b'{\n    "predictions": [2.5, 3.0\n    ]\n}'
    )
    assert write_outputs({"y": np.float32([[1, 2], [3, 4]])}, Format.ROW) == (
        b'{\n    "predictions": [[1.0, 2.0], [3.0, 4.0]\n    ]\n}'
    )


def test_write_rows_of_several_outputs():
    outputs = {"label": texts(b"gut", b"m\xc3\xa4h"), "a": np.int32([[1, 2], [3, 4]])}
    assert (
        write_outputs(outputs, Format.ROW).decode()
        == """{
    "predictions": [
        {
            "a": [1, 2],
            "label": "gut"
        },
        {
            "a": [3, 4],
            "label": "mäh"
        }
    ]
}"""
    )


def test_write_columns():
    assert write_outputs({"y": np.float64(0.5).reshape(())}, Format.COLUMNAR) == (
        b'{\n    "outputs": 0.5\n}'
    )
    outputs = {"n": np.int64([1, 2]), "is_good": np.bool_([True])}
    assert (
        write_outputs(outputs, Format.COLUMNAR).decode()
        == """{
    "outputs": {
        "is_good": [
            true
        ],
        "n": [
            1,
            2
        ]
    }
}"""
    )


def test_write_strings_raw_and_as_base64():
    assert write_outputs({"y": texts(b"\xff")}, Format.ROW) == (
        b'{\n    "predictions": ["\xff"\n    ]\n}'
    )
    assert b'{\n            "b64": "/w=="\n        }' in (
        write_outputs({"y_bytes": texts(b"\xff")}, Format.ROW)
    )


def test_write_control_characters_as_tf_serving_does():
    # \x1b is not what a backslash and the letters "u001b" are
    assert write_outputs({"y": texts(b'\x1b\n"\x7f', rb"\u001b")}, Format.ROW) == (
        rb"""{
    "predictions": ["\u001B\n\""""
        + b"\x7f"
        + rb"""", "\\u001b"
    ]
}"""
    )


def test_write_deep_arrays():
    array = np.arange(4, dtype=np.int32).reshape(2, 1, 2)
    assert write_outputs({"y": array, "z": np.int32([5, 6])}, Format.ROW).decode() == (
        """{
    "predictions": [
        {
            "y": [[0, 1]],
            "z": 5
        },
        {
            "y": [[2, 3]],
            "z": 6
        }
    ]
}"""
    )
    assert write_outputs({"y": np.zeros((2, 0, 3), np.int32)}, Format.COLUMNAR).decode() == (
        """{
    "outputs": [
        [],
        []
    ]
}"""
    )


def test_write_no_rows():
    assert write_outputs({"y": np.zeros((0, 3), np.float32)}, Format.ROW) == (
        b'{\n    "predictions": []\n}'
    )


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "Cannot convert empty tensor map to JSON"),
        ({"y": np.float32(1).reshape(())}, "Tensor name: y has no shape information"),
        (
            {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)},
            "Tensor name: b has inconsistent batch size: 3 expecting: 2",
        ),
        ({"y": np.zeros(1, np.float16)}, "Failed to write JSON value for tensor type: half"),
    ],
)
def test_outputs_that_cannot_be_written(outputs: dict[str, np.ndarray], message: str):
    with pytest.raises(ServingError) as caught:
        write_outputs(outputs, Format.ROW)
    assert caught.value.message == message
