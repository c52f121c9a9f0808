import json
from typing import Any

import numpy as np
import pytest
from tensorflow.core.example.example_pb2 import Example

from serve.errors import Code, ServingError
from serve.examples import read_examples, write_classifications, write_regressions


def parsed(document: dict[str, Any]) -> list[Example]:
    return [Example.FromString(example) for example in read_examples(document)]


def error_of(document: dict[str, Any]) -> str:
    with pytest.raises(ServingError) as caught:
        read_examples(document)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


def error_of_feature(value: Any) -> str:
    return error_of({"examples": [{"f": value}]})


def test_kinds_follow_the_json_types():
    [example] = parsed(
        {
            "examples": [
                {
                    "whole": [1, True, -(2**63)],
                    "decimal": [1.5, float("nan"), 2**64],
                    "text": ["ä\0", {"b64": "/w=="}],
                    "one": 2,
                    "none": [],
                }
            ]
        }
    )
    features = example.features.feature
    assert list(features["whole"].int64_list.value) == [1, 1, -(2**63)]
    np.testing.assert_array_equal(features["decimal"].float_list.value, [1.5, np.nan, 2.0**64])
    assert list(features["text"].bytes_list.value) == [b"\xc3\xa4\0", b"\xff"]
    assert list(features["one"].int64_list.value) == [2]
    assert features["none"].WhichOneof("kind") is None


def test_a_context_is_merged_into_each_example():
    document = {"context": {"a": 1, "b": "all"}, "examples": [{"b": "own"}, {}]}
    first, second = parsed(document)
    assert first.features.feature["a"].int64_list.value == [1]
    assert first.features.feature["b"].bytes_list.value == [b"own"]
    assert second.features.feature["b"].bytes_list.value == [b"all"]
    assert parsed({"context": {}, "examples": [{}]}) == [Example()]


def test_names_that_are_no_utf8_do_no_harm():
    [example] = parsed({"examples": [{"\udcff": 1}]})
    assert list(example.features.feature) == ["�"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"inputs": 1},
            "JSON Value: {\n    \"inputs\": 1\n} When method is classify, key 'examples' is "
            "expected and was not found",
        ),
        (
            {"examples": {}},
            "JSON Value: {\n    \"examples\": {}\n} Expecting 'examples' value to be an list/array",
        ),
        (
            {"examples": []},
            "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array",
        ),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{}, None]}, "Example must be JSON object but got JSON Null"),
        ({"context": []}, "Example must be JSON object but got JSON Array"),  # before examples
    ],
)
def test_documents_that_do_not_fit(document: dict[str, Any], message: str):
    assert error_of(document) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "Feature: f has element with unexpected JSON type: Null"),
        ([[1]], "Feature: f has element with unexpected JSON type: Array"),
        ({"x": 1}, "Feature: f has element with unexpected JSON type: Object"),
        ({"b64": 1}, "Feature: f has element with unexpected JSON type: Object"),
        ([1.5, 2], "Unexpected element type in feature: f expecting type: float"),
        ([1, 2.5, None], "Unexpected element type in feature: f expecting type: int64"),
        (["a", True], "Unexpected element type in feature: f expecting type: bytes"),
        (2**63, "Feature: f has uint64 element. Only int64 is supported."),
        (1e39, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        ({"b64": "?"}, "Unable to base64 decode"),
    ],
)
def test_features_that_do_not_fit(value: Any, message: str):
    assert error_of_feature(value) == message


def test_write_classifications():
    outputs = {
        "classes": np.array([[b"good", b"b\xc3\xa4d"], [b'a"', b""]], dtype=object),
        "scores": np.float32([[0.75, 0.25], [1, 0]]),
    }
    body = write_classifications(outputs)
    assert body.decode() == (
        '{\n    "results": [[["good", 0.75], ["bäd", 0.25]], [["a\\"", 1.0], ["", 0.0]]\n    ]\n}'
    )
    json.loads(body)


def test_write_classifications_without_classes_or_scores():
    assert json.loads(write_classifications({"scores": np.float32([[0.5, 1]])})) == {
        "results": [[["", 0.5], ["", 1.0]]]
    }
    only_classes = {"classes": np.array([[b"a"], [b"\xff"]], dtype=object)}
    assert b'[["a", 0.0]], [["\xff", 0.0]]' in write_classifications(only_classes)


def test_write_regressions():
    assert write_regressions(np.float32([0.5, 2, np.nan])) == (
        b'{\n    "results": [0.5, 2.0, NaN]\n}'
    )
