"""JSON Schemas of what is the same for all models: strings, features, states, metadata, errors."""

from typing import Any

from serve.errors import Code

Schema = dict[str, Any]

LARGEST_FLOAT = 3.4028234663852886e38
STATES = ["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}(==)?|[A-Za-z0-9+/]{3}=?)?$"


def integer(smallest: int, largest: int) -> Schema:
    """Whole numbers in a range."""
    return {"type": "integer", "minimum": smallest, "maximum": largest}


def decimal(largest: float) -> Schema:
    """Numbers that are not whole."""
    return {
        "type": "number",
        "minimum": -largest,
        "maximum": largest,
        "not": {"type": "integer"},
    }


BYTES: Schema = {
    "description": "Bytes, UTF-8 or not, in base64.",
    "type": "object",
    "required": ["b64"],
    "properties": {"b64": {"type": "string", "pattern": BASE64}},
    "additionalProperties": False,
}
TEXT: Schema = {"anyOf": [{"type": "string"}, {"$ref": "#/components/schemas/Bytes"}]}

FEATURE: Schema = {
    "description": "A value of a tf.train.Example: whole numbers and true or false are int64, "
    "decimals float (write 2.0, not 2), the rest bytes. Elements of a list are of one kind.",
    "anyOf": [
        kind
        for one in (TEXT, integer(-(2**63), 2**63 - 1), decimal(LARGEST_FLOAT), {"type": "boolean"})
        for kind in (one, {"type": "array", "items": one})
    ],
}
CLASSIFICATIONS: Schema = {
    "description": "For each example its classes and their scores.",
    "type": "object",
    "required": ["results"],
    "properties": {
        "results": {
            "type": "array",
            "items": {
                "type": "array",
                "items": {
                    "type": "array",
                    "prefixItems": [{"type": "string"}, {"type": "number"}],
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
        }
    },
    "additionalProperties": False,
}
REGRESSIONS: Schema = {
    "description": "The value of each example.",
    "type": "object",
    "required": ["results"],
    "properties": {"results": {"type": "array", "items": {"type": "number"}}},
    "additionalProperties": False,
}


def error_schema() -> Schema:
    return _object({"error": {"type": "string"}}, additionalProperties=False)


def status_schema() -> Schema:
    status = _object(
        {
            "error_code": {"enum": [code.name for code in Code]},
            "error_message": {"type": "string"},
        },
        additionalProperties=False,
    )
    version = _object(
        {
            "version": {"type": "string", "pattern": "^[0-9]+$"},
            "state": {"enum": STATES},
            "status": status,
        },
        additionalProperties=False,
    )
    return _object(
        {"model_version_status": {"type": "array", "items": version}}, additionalProperties=False
    )


def metadata_schema() -> Schema:
    text = {"type": "string"}
    dimension = _object({"size": {"type": "string", "pattern": "^-?[0-9]+$"}, "name": text})
    tensor = _object(
        {
            "dtype": {"type": "string", "pattern": "^DT_"},
            "tensor_shape": _object(
                {
                    "dim": {"type": "array", "items": dimension},
                    "unknown_rank": {"type": "boolean"},
                }
            ),
        }
    )
    tensors = {"type": "object", "additionalProperties": tensor}
    signature = _object({"inputs": tensors, "outputs": tensors, "method_name": text})
    signatures = {"type": "object", "additionalProperties": signature}
    spec = _object({"name": text, "signature_name": text, "version": text})
    return _object(
        {
            "model_spec": spec,
            "metadata": _object({"signature_def": _object({"signature_def": signatures})}),
        },
        additionalProperties=False,
    )


def _object(required: dict[str, Schema], **other: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": required, **other}
