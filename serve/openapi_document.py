"""Puts the OpenAPI document of a model together from its signatures."""

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from serve import openapi_fixed as fixed
from serve import openapi_schemas as schemas
from serve.client_data import Metadata, Signature, TensorType
from serve.names import DEFAULT_SIGNATURE
from serve.openapi_fixed import Schema
from serve.openapi_schemas import component_name

ERRORS = {
    "400": "The request does not fit the model or is malformed, or the label is unknown.",
    "404": "The server does not have the model, or not this version of it.",
    "429": "A limit is reached.",
    "500": "The model failed.",
    "501": "The server cannot do this.",
    "503": "The server cannot take the request now: send it again after a pause.",
    "504": "The server ran out of time.",
}


def build_document(
    metadata: Metadata, *, server: str, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a model.

    Args:
        metadata: its name, version and signatures.
        server: address that clients use.
        labels: the version labels that the server has; any text is allowed if none are given.
    """
    kinds = {
        verb: {
            name: signature
            for name, signature in metadata.signatures.items()
            if _verb(signature) == verb
        }
        for verb in ("predict", "classify", "regress")
    }
    components: dict[str, Schema] = {
        "Bytes": fixed.BYTES,
        "Text": fixed.TEXT,
        "Error": fixed.error_schema(),
        "Status": fixed.status_schema(),
        "Metadata": fixed.metadata_schema(),
    }
    operations: dict[str, dict[str, Any]] = {}
    if kinds["predict"]:
        operations["predict"] = _predict_operation(kinds["predict"], components)
    features = _features(metadata)
    for verb, answer in (
        ("classify", fixed.CLASSIFICATIONS),
        ("regress", fixed.REGRESSIONS),
    ):
        if kinds[verb]:
            components["Feature"] = fixed.FEATURE
            operations[verb] = _examples_operation(verb, kinds[verb], features, answer, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{metadata.model}, served by TensorFlow Serving",
            "version": str(metadata.version),
            "description": "Made from the signatures of the model. Numbers that are NaN or "
            "infinite are written as NaN, Infinity and -Infinity, which JSON does not know.",
        },
        "servers": [{"url": server}],
        "paths": _paths(metadata, operations, labels),
        "components": {
            "schemas": components,
            "responses": {
                f"Error{status}": _json_response(
                    description, {"$ref": "#/components/schemas/Error"}
                )
                for status, description in ERRORS.items()
            },
        },
    }


# --- paths ---------------------------------------------------------------------------------


def _paths(
    metadata: Metadata, operations: dict[str, dict[str, Any]], labels: Sequence[str]
) -> dict[str, Any]:
    base = f"/v1/models/{urllib.parse.quote(metadata.model, safe='')}"
    label_schema = {"enum": list(labels)} if labels else {"type": "string", "pattern": "^[^/:]+$"}
    version_schema = {**fixed.integer(0, 2**63 - 1), "format": "int64"}
    choices = (
        ("", "", []),
        (
            "/versions/{version}",
            "OfVersion",
            [_parameter("version", {**version_schema, "examples": [metadata.version]})],
        ),
        ("/labels/{label}", "OfLabel", [_parameter("label", label_schema)]),
    )
    paths = {}
    for choice, suffix, parameters in choices:
        shared = {"parameters": parameters} if parameters else {}
        for verb, operation in operations.items():
            post = {**operation, "operationId": f"{verb}{suffix}"}
            paths[f"{base}{choice}:{verb}"] = {**shared, "post": post}
        for verb, schema, summary in (
            ("status", "Status", "The versions of the model and their states"),
            ("metadata", "Metadata", "What the model takes and gives"),
        ):
            get = {
                "operationId": f"{verb}{suffix}",
                "summary": summary,
                "responses": _responses({"$ref": f"#/components/schemas/{schema}"}),
            }
            path = f"{base}{choice}" + ("/metadata" if verb == "metadata" else "")
            paths[path] = {**shared, "get": get}
    return paths


def _parameter(name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _predict_operation(
    signatures: dict[str, Signature], components: dict[str, Schema]
) -> dict[str, Any]:
    requests, answers, examples = [], [], {}
    for name, signature in signatures.items():
        named = {} if name == DEFAULT_SIGNATURE else {"signature_name": name}
        if schemas.has_row_form(signature):
            request = schemas.row_request(signature, name)
            requests.append(_add(components, request, "Request", name, "rows"))
            answer = schemas.row_answer(signature)
            answers.append(_add(components, answer, "Answer", name, "rows"))
            examples[component_name(name, "rows")] = {
                "summary": f"{name}, rows",
                "value": {**named, "instances": schemas.example_rows(signature)},
            }
        request = schemas.column_request(signature, name)
        requests.append(_add(components, request, "Request", name, "columns"))
        answer = schemas.column_answer(signature)
        answers.append(_add(components, answer, "Answer", name, "columns"))
        examples[component_name(name, "columns")] = {
            "summary": f"{name}, columns",
            "value": {**named, "inputs": schemas.example_columns(signature)},
        }
    body = {"schema": {"oneOf": requests}, "examples": examples}
    return {
        "summary": "Predict",
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": _responses({"anyOf": answers}),
    }


def _examples_operation(
    verb: str,
    signatures: dict[str, Signature],
    features: Mapping[str, TensorType],
    answer: Schema,
    components: dict[str, Schema],
) -> dict[str, Any]:
    requests, examples = [], {}
    for name in signatures:
        request = schemas.example_request(name, features)
        requests.append(_add(components, request, "Request", name, verb))
        named = {} if name == DEFAULT_SIGNATURE else {"signature_name": name}
        value = {**named, "examples": schemas.example_features(features)}
        examples[component_name(name, verb)] = {"summary": name, "value": value}
    body = {"schema": {"oneOf": requests}, "examples": examples}
    reference = _add(components, answer, "Answer", verb)
    return {
        "summary": verb.capitalize(),
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": _responses(reference),
    }


def _add(components: dict[str, Schema], schema: Schema, *name: str) -> Schema:
    key = component_name(*name)
    while key in components:  # names that differ only in what a component may not be called
        key += "_"
    components[key] = schema
    return {"$ref": f"#/components/schemas/{key}"}


def _verb(signature: Signature) -> str:
    """How a signature is called: "predict", "classify" or "regress"."""
    verb = signature.method.rsplit("/", 1)[-1]
    return verb if verb in ("classify", "regress") else "predict"


def _features(metadata: Metadata) -> Mapping[str, TensorType]:
    default = metadata.signatures.get(DEFAULT_SIGNATURE)
    return default.inputs if default is not None and _verb(default) == "predict" else {}


def _responses(schema: Schema) -> dict[str, Any]:
    errors = {status: {"$ref": f"#/components/responses/Error{status}"} for status in ERRORS}
    return {"200": _json_response("The answer.", schema), **errors}


def _json_response(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
