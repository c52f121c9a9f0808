"""JSON Schemas of what a signature takes and gives by REST, and examples of it.

They are as strict as TensorFlow Serving is, so that what they call valid is answered. Two of its
rules no schema can say, so the descriptions do: columns must be of one length, and where a size
is left open all rows must agree on it. What JSON does not know (NaN, Infinity) they leave out.
"""

import re
from collections.abc import Mapping
from typing import Any

from serve.client_data import Signature, TensorType
from serve.names import DEFAULT_SIGNATURE
from serve.openapi_fixed import LARGEST_FLOAT, TEXT, Schema, decimal, integer
from serve.tensors import INTEGER_RANGES, LARGEST_EXACT_INTEGERS

LARGEST = {"float": LARGEST_FLOAT, "double": 1.7976931348623157e308}

EXAMPLE_TEXTS = (
    "Shares fell after the bank raised its rates.",
    "The home side won in the last minute.",
)

ROW_RULE = "All rows must have one shape."
COLUMN_RULE = "All inputs must have the same number of rows."

# --- requests ------------------------------------------------------------------------------


def row_request(signature: Signature, name: str) -> Schema:
    """{"instances": [...]}."""
    item = {key: _input(kind, drop_rows=True) for key, kind in signature.inputs.items()}
    named = {
        "type": "object",
        "required": list(item),
        "properties": item,
        "additionalProperties": False,
    }
    forms = [*(item.values() if len(item) == 1 else ()), named]
    lists = [{"type": "array", "minItems": 1, "items": form} for form in forms]
    instances = lists[0] if len(lists) == 1 else {"oneOf": lists}
    description = f"{name}, row by row. {ROW_RULE if _has_open_rows(signature) else ''}".strip()
    return _request(name, description, "instances", instances, "inputs")


def column_request(signature: Signature, name: str) -> Schema:
    """{"inputs": ...}."""
    tensors = {key: _input(kind) for key, kind in signature.inputs.items()}
    named = {"type": "object", "required": list(tensors), "properties": tensors}
    inputs = {"oneOf": [*tensors.values(), named]} if len(tensors) == 1 else named
    description = f"{name}, column by column. {COLUMN_RULE if len(tensors) > 1 else ''}".strip()
    return _request(name, description, "inputs", inputs, "instances")


def has_row_form(signature: Signature) -> bool:
    """Whether `instances` can be answered: every input and output has a batch dimension."""
    return signature.has_rows


def _request(name: str, description: str, key: str, value: Schema, other: str) -> Schema:
    """One of the forms; other keys than these are not looked at."""
    is_default = name == DEFAULT_SIGNATURE
    return {
        "description": description,
        "type": "object",
        "required": [key] if is_default else ["signature_name", key],
        "properties": {
            "signature_name": {"enum": [name, ""]} if is_default else {"const": name},
            key: value,
            other: False,
        },
    }


def example_request(name: str, features: Mapping[str, TensorType]) -> Schema:
    """{"examples": [...]} of :classify and :regress.

    Which features there are is not in a signature. Those of kbert's exports have the names of the
    inputs of serving_default; what else there is in an example is not looked at.
    """
    known = {
        key: {"oneOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 1}]}
        for key, kind in features.items()
        if kind.dtype == "string"
    }
    value = {"$ref": "#/components/schemas/Feature"}
    context = {"type": "object", "properties": known, "additionalProperties": value}
    is_default = name == DEFAULT_SIGNATURE
    return {
        "description": f"{name}; `context` is put in front of each example.",
        "type": "object",
        "required": ["examples"] if is_default else ["signature_name", "examples"],
        "properties": {
            "signature_name": {"enum": [name, ""]} if is_default else {"const": name},
            "context": context,
            "examples": {
                "type": "array",
                "minItems": 1,
                "items": {**context, "required": list(known)},
            },
        },
    }


# --- answers -------------------------------------------------------------------------------


def row_answer(signature: Signature) -> Schema:
    """{"predictions": [...]}."""
    items = {key: _output(key, kind, drop_rows=True) for key, kind in signature.outputs.items()}
    item = next(iter(items.values())) if len(items) == 1 else _closed(items)
    return _closed({"predictions": {"type": "array", "items": item}})


def column_answer(signature: Signature) -> Schema:
    """{"outputs": ...}."""
    tensors = {key: _output(key, kind) for key, kind in signature.outputs.items()}
    return _closed(
        {"outputs": next(iter(tensors.values())) if len(tensors) == 1 else _closed(tensors)}
    )


# --- examples ------------------------------------------------------------------------------


def example_rows(signature: Signature) -> list[Any]:
    """Two rows, bare if there is one input."""
    columns = example_columns(signature)
    rows = [{key: value[row] for key, value in columns.items()} for row in range(2)]
    return [next(iter(row.values())) for row in rows] if len(columns) == 1 else rows


def example_columns(signature: Signature) -> dict[str, Any]:
    """Two rows of each input."""
    return {key: _example(key, kind) for key, kind in signature.inputs.items()}


def example_features(features: Mapping[str, TensorType]) -> list[dict[str, Any]]:
    """One example for :classify and :regress."""
    return [{key: EXAMPLE_TEXTS[0] for key, kind in features.items() if kind.dtype == "string"}]


def _example(name: str, kind: TensorType) -> Any:
    shape = (None,) if kind.shape is None else kind.shape
    if kind.dtype == "string":
        leaves: list[Any] = [
            text if name in ("text", "text_a") else f"Example {number} of {name}."
            for number, text in enumerate(EXAMPLE_TEXTS, 1)
        ]
    else:
        leaves = [True, False] if kind.dtype == "bool" else [1, 0]
    if not shape:
        return leaves[0]
    inner = [size or 2 for size in shape[1:]]
    rows = [_filled(leaf, inner) for leaf in leaves]
    return [rows[index % 2] for index in range(shape[0] or 2)]


def _filled(leaf: Any, shape: list[int]) -> Any:
    if not shape:
        return leaf
    return [_filled(leaf, shape[1:]) for _ in range(shape[0])]


# --- tensors -------------------------------------------------------------------------------


def _input(kind: TensorType, *, drop_rows: bool = False) -> Schema:
    if kind.shape is None:
        return {"description": f"{kind.dtype}, of any shape"}
    shape = kind.shape[drop_rows:]
    # an empty list has no further sizes, so that a tensor of several must not be empty
    return _nested(_input_element(kind.dtype), shape, least=0 if len(shape) == 1 else 1)


def _output(name: str, kind: TensorType, *, drop_rows: bool = False) -> Schema:
    if kind.shape is None:
        return {"description": f"{kind.dtype}, of any shape"}
    return _nested(_output_element(name, kind.dtype), kind.shape[drop_rows:], least=0)


def _nested(element: Schema, shape: tuple[int | None, ...], *, least: int) -> Schema:
    """Lists in lists; a size that is left open is `least` or more."""
    for size in reversed(shape):
        sizes = {"minItems": least} if size is None else {"minItems": size, "maxItems": size}
        element = {"type": "array", "items": element, **sizes}
    return element


def _input_element(dtype: str) -> Schema:
    if dtype == "string":
        return {"$ref": "#/components/schemas/Text"}
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype in INTEGER_RANGES:
        return integer(*INTEGER_RANGES[dtype])
    if dtype in LARGEST:
        # a whole number that is larger would lose digits, and is refused
        exact = LARGEST_EXACT_INTEGERS[dtype]
        return {"anyOf": [integer(-exact, exact), decimal(LARGEST[dtype])]}
    return {"description": f"{dtype} has no JSON form", "not": {}}


def _output_element(name: str, dtype: str) -> Schema:
    if dtype == "string":
        return {"$ref": "#/components/schemas/Bytes"} if _is_bytes(name) else {"type": "string"}
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype in INTEGER_RANGES:
        return {"type": "integer"}
    return {"type": "number"}


def _is_bytes(name: str) -> bool:
    return name.endswith("_bytes")


def _has_open_rows(signature: Signature) -> bool:
    """Whether a size other than that of the batch is left open."""
    return any(kind.shape is None or None in kind.shape[1:] for kind in signature.inputs.values())


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {
        "type": "object",
        "required": list(properties),
        "properties": dict(properties),
        "additionalProperties": False,
    }


def component_name(*parts: str) -> str:
    """A name that OpenAPI allows for a component."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", "_".join(parts))
