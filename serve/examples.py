"""The JSON of :classify and :regress: a parsed document -> tf.train.Example, results -> a body.

The order of the checks and the texts of the messages are those of
tensorflow_serving/util/json_tensor.cc. A request is read before its model is looked for.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from serve.errors import ServingError, invalid_argument
from serve.json_text import (
    LARGEST_FLOAT32,
    echo,
    format_decimals,
    is_double,
    to_bytes,
    to_double,
    type_of,
)
from serve.tensors import INDENT, decode_base64, is_base64, write_single_line_rows, write_string


def read_examples(document: Mapping[str, Any]) -> list[bytes]:
    """The examples of a classify or regress request.

    Args:
        document: the parsed body: {"context"?: {feature: value or list}, "examples": [{...}]}.

    Returns:
        Serialised tf.train.Example; the context, serialised too, stands in front of each, which
        merges the two.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    context = _serialise(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise _format_error(
            document, "When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    return [context + _serialise(example) for example in examples]


def _serialise(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {type_of(value)}")
    example = _example_class()()
    for name, content in value.items():
        # Names are text: bytes that are no UTF-8 cannot be part of them.
        feature = example.features.feature[to_bytes(name).decode("utf-8", "replace")]
        for element in content if isinstance(content, list) else [content]:
            _add(element, name, feature)
    return example.SerializeToString()


@functools.cache
def _example_class() -> type:
    # Here, because it costs the import of TensorFlow.
    from tensorflow.core.example import example_pb2

    return example_pb2.Example


def _add(value: Any, name: str, feature: Any) -> None:
    """Adds one JSON value to a feature, whose kind the first one decides."""
    kind = _kind_of(value, name)
    expected = feature.WhichOneof("kind") or kind
    if kind != expected:
        raise invalid_argument(
            f"Unexpected element type in feature: {name} "
            f"expecting type: {expected.removesuffix('_list')}"
        )
    getattr(feature, kind).value.append(_convert(kind, value, name))


def _kind_of(value: Any, name: str) -> str:
    if isinstance(value, str) or is_base64(value):
        return "bytes_list"
    if is_double(value):
        return "float_list"
    if isinstance(value, bool | int):
        return "int64_list"
    raise invalid_argument(
        f"Feature: {name} has element with unexpected JSON type: {type_of(value)}"
    )


def _convert(kind: str, value: Any, name: str) -> bytes | int | float:
    if kind == "bytes_list":
        return to_bytes(value) if isinstance(value, str) else decode_base64(value)
    if kind == "int64_list":
        if value >= 2**63:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return int(value)
    number = to_double(value)
    if np.isfinite(number) and abs(number) > LARGEST_FLOAT32:
        raise invalid_argument(
            f"Cannot convert JSON value: {echo(value)} to float without loss of precision."
        )
    return number


def _format_error(document: Mapping[str, Any], reason: str) -> ServingError:
    return invalid_argument(f"JSON Value: {echo(document)} {reason}")


def write_classifications(outputs: Mapping[str, np.ndarray]) -> bytes:
    """The body of the answer to :classify, laid out as TF Serving does.

    Args:
        outputs: "classes" (batch, number of classes) of bytes and/or "scores" of float32; without
            classes the labels are "", without scores these are 0.
    """
    shape = next(iter(outputs.values())).shape
    classes = outputs["classes"] if "classes" in outputs else np.full(shape, b"", dtype=object)
    scores = outputs["scores"] if "scores" in outputs else np.zeros(shape, np.float32)
    texts = iter(format_decimals(scores.ravel()))
    rows = []
    for labels in classes.tolist():
        pairs = ", ".join(f"[{write_string(label)}, {next(texts)}]" for label in labels)
        rows.append(f"[{pairs}]")
    return _body(write_single_line_rows(rows))


def write_regressions(values: np.ndarray) -> bytes:
    """The body of the answer to :regress; values are (batch,) of float32."""
    return _body(f"[{', '.join(format_decimals(values))}]")


def _body(results: str) -> bytes:
    return f'{{\n{INDENT}"results": {results}\n}}'.encode("utf-8", "surrogateescape")
