import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from news_server import VERSION, save_models, served
from openapi_spec_validator import validate

from serve.client import Metadata, Signature, TensorType
from serve.openapi import build_document, main, read_saved_model

CLASSIFY = Signature(
    {"inputs": TensorType("string", (None,))},
    {"classes": TensorType("string", (None, None)), "scores": TensorType("float", (None, None))},
    "tensorflow/serving/classify",
)
REGRESS = Signature(
    {"inputs": TensorType("string", (None,))},
    {"outputs": TensorType("float", (None,))},
    "tensorflow/serving/regress",
)
PREDICT = "tensorflow/serving/predict"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_models(root)
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with served(root) as (rest, _):
        yield f"http://{rest}"


@pytest.fixture(scope="module", params=["news", "pairs"])
def document(request: pytest.FixtureRequest, url: str, tmp_path_factory: Any) -> dict[str, Any]:
    """The document of a model of the server."""
    path = tmp_path_factory.mktemp("openapi") / "openapi.json"
    options = ["--label", "stable", "--output", str(path)]
    assert main([url, "--model", request.param, *options]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def validator(document: dict[str, Any], schema: Any) -> jsonschema.Draft202012Validator:
    """A validator of a schema that refers to the components of a document."""
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def request_validator(document: dict[str, Any], verb: str = "predict") -> Any:
    [path] = [path for path in document["paths"] if path.endswith(f":{verb}") and "{" not in path]
    body = document["paths"][path]["post"]["requestBody"]
    return validator(document, body["content"]["application/json"]["schema"])


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in ("get", "post"):
            if method in item:
                yield path, method, item[method]


def test_documents_are_valid(document: dict[str, Any]):
    validate(document)
    base = f"/v1/models/{document['info']['title'].split(',')[0]}"
    choices = ("", "/versions/{version}", "/labels/{label}")
    assert set(document["paths"]) == {
        f"{base}{choice}{verb}" for choice in choices for verb in ("", "/metadata", ":predict")
    }
    assert document["info"]["version"] == str(VERSION)


def test_examples_and_real_answers_fit(document: dict[str, Any], url: str):
    count = 0
    for path, method, operation in operations(document):
        address = url + path.replace("{version}", str(VERSION)).replace("{label}", "stable")
        content = operation["responses"]["200"]["content"]["application/json"]
        answers = validator(document, content["schema"])
        if method == "get":
            answers.validate(httpx.get(address).json())
            continue
        body = operation["requestBody"]["content"]["application/json"]
        for name, example in body["examples"].items():
            validator(document, body["schema"]).validate(example["value"])
            response = httpx.post(address, json=example["value"])
            assert response.status_code == 200, response.text
            assert response.headers["content-type"].startswith("application/json")
            answers.validate(response.json())
            if "{" not in path:
                assert content["examples"][name]["value"] == response.json()
            count += 1
    assert count == (12 if "preprocess" in str(document) else 6)


GOOD = [
    {"instances": ["a"]},
    {"instances": [{"b64": "/w=="}, "ä"], "signature_name": "", "more": 1},
    {"instances": [{"text": "a"}, {"text": {"b64": "/w"}}], "signature_name": "serving_default"},
    {"inputs": []},
    {"inputs": ["a", "b"]},
    {"inputs": {"text": ["a"], "other": None}},
    {"inputs": ["a"], "signature_name": "preprocess"},
]
BAD = [
    {},
    [],
    {"instances": []},
    {"instances": "a"},
    {"instances": [1]},
    {"instances": [None]},
    {"instances": ["a", {"text": "a"}]},
    {"instances": [{"text": "a", "other": "b"}]},
    {"instances": [{}]},
    {"instances": [{"b64": "a"}]},
    {"instances": [{"b64": "ä"}]},
    {"instances": [["a"], "b"]},
    {"instances": ["a"], "inputs": ["a"]},
    {"instances": ["a"], "signature_name": None},
    {"instances": ["a"], "signature_name": "none"},
    {"inputs": {}},
    {"inputs": {"other": ["a"]}},
    {"inputs": [True]},
    {"inputs": None},
]


@pytest.mark.parametrize("document", ["news"], indirect=True)
def test_what_the_schema_calls_valid_is_what_the_server_takes(document: dict[str, Any], url: str):
    requests = request_validator(document)
    error = validator(document, {"$ref": "#/components/schemas/Error"})
    address = f"{url}/v1/models/news:predict"
    for body in GOOD:
        requests.validate(body)
        assert httpx.post(address, json=body).status_code == 200, body
    for body in BAD:
        assert not requests.is_valid(body), body
        response = httpx.post(address, json=body)
        assert response.status_code == 400, body
        error.validate(response.json())


@pytest.mark.parametrize("document", ["pairs"], indirect=True)
def test_pairs_have_names(document: dict[str, Any], url: str):
    requests = request_validator(document)
    address = f"{url}/v1/models/pairs:predict"
    pair = {"text_a": "a", "text_b": "b"}
    for body in ({"instances": [pair]}, {"inputs": {"text_a": ["a"], "text_b": ["b"]}}):
        requests.validate(body)
        assert httpx.post(address, json=body).status_code == 200
    for body in ({"instances": ["a"]}, {"inputs": ["a"]}, {"inputs": {"text_a": ["a"]}}):
        assert not requests.is_valid(body)
        assert httpx.post(address, json=body).status_code == 400


def test_other_errors_fit_too(document: dict[str, Any], url: str):
    error = validator(document, {"$ref": "#/components/schemas/Error"})
    for path in ("no", "news/versions/99", "news/versions/99/metadata", "news/versions/x"):
        response = httpx.get(f"{url}/v1/models/{path}")
        assert f"Error{response.status_code}" in document["components"]["responses"]
        error.validate(response.json())


def test_a_saved_model_gives_the_same(document: dict[str, Any], root: Path, capsys: Any):
    """All but the answers, which only a server can give."""
    name = document["info"]["title"].split(",")[0]
    for path in (root / name, root / name / str(VERSION)):
        [server] = document["servers"]
        options = ["--label", "stable", "--server", server["url"]]
        assert main([str(path), "--model", name, *options]) == 0
        offline = json.loads(capsys.readouterr().out)
        expected = copy.deepcopy(document)
        for _, method, operation in operations(expected):
            if method == "post":
                answer = operation["responses"]["200"]["content"]["application/json"]
                answer.pop("examples", None)
        assert offline == expected


def test_numbers():
    """Types and sizes of what is no text."""
    inputs = {
        "ids": TensorType("int32", (None, 2)),
        "weight": TensorType("float", (None,)),
        "is_new": TensorType("bool", (None,)),
    }
    signature = Signature(inputs, {"y_bytes": TensorType("string", (None,))}, PREDICT)
    document = build_document(Metadata("m", 1, {"serving_default": signature}), server="http://a")
    validate(document)
    requests = request_validator(document)
    row = {"ids": [1, 2], "weight": 0.5, "is_new": True}
    requests.validate({"instances": [row]})
    for name, value in [
        ("ids", [1]),
        ("ids", [1, 2, 3]),
        ("ids", [1, 2**31]),
        ("ids", [1.5, 1]),
        ("ids", ["1", "2"]),
        ("weight", 2**24),
        ("weight", 1e39),
        ("weight", True),
        ("is_new", 1),
    ]:
        assert not requests.is_valid({"instances": [row | {name: value}]}), (name, value)
    for weight in (2**24 - 1, -0.1, 1e-30):
        requests.validate({"instances": [row | {"weight": weight}]})
    answer = document["components"]["schemas"]["Answer_serving_default_rows"]
    validator(document, answer).validate({"predictions": [{"b64": "/w=="}]})
    assert not validator(document, answer).is_valid({"predictions": ["a"]})


def test_a_signature_without_a_batch_has_no_rows():
    total = Signature({"x": TensorType("float", (None,))}, {"y": TensorType("float", ())}, PREDICT)
    document = build_document(Metadata("m", 1, {"total": total}), server="http://a")
    validate(document)
    requests = request_validator(document)
    assert requests.is_valid({"signature_name": "total", "inputs": [1]})
    assert not requests.is_valid({"signature_name": "total", "instances": [1]})
    assert not requests.is_valid({"inputs": [1]})


def test_classify_and_regress():
    text = Signature(
        {"text": TensorType("string", (None,))}, {"y": TensorType("float", (None,))}, PREDICT
    )
    signatures = {"serving_default": text, "classes": CLASSIFY, "values/1": REGRESS}
    document = build_document(Metadata("a b", 1, signatures), server="http://a", labels=["stable"])
    validate(document)
    assert "/v1/models/a%20b/labels/{label}:classify" in document["paths"]
    [label] = document["paths"]["/v1/models/a%20b/labels/{label}:regress"]["parameters"]
    assert label["schema"] == {"enum": ["stable"]}
    requests = request_validator(document, "classify")
    base = {"signature_name": "classes"}
    for example in ({"text": "a"}, {"text": ["a"], "n": [1, 2], "x": 0.5, "b": True}):
        requests.validate({**base, "context": {"n": 1}, "examples": [example]})
    for example in ({}, {"text": 1}, {"text": "a", "n": None}, {"text": "a", "n": [1, "a"]}, 1):
        assert not requests.is_valid({**base, "examples": [example]}), example
    assert not requests.is_valid({"examples": [{"text": "a"}]})
    assert not requests.is_valid({"signature_name": "values/1", "examples": [{"text": "a"}]})
    assert not request_validator(document).is_valid({**base, "inputs": ["a"]})
    for verb, good, bad in [
        ("classify", [[["a", 0.5], ["b", 1]]], [["a", 0.5]]),
        ("regress", [0.5, 1], [[0.5]]),
    ]:
        schema = validator(document, {"$ref": f"#/components/schemas/Answer_{verb}"})
        schema.validate({"results": good})
        assert not schema.is_valid({"results": bad})


def test_versions_are_those_that_the_server_finds(root: Path, tmp_path: Path):
    saved_model = (root / "news" / str(VERSION) / "saved_model.pb").read_bytes()
    for name in ("3", "0004", "٥", str(2**63)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(saved_model)
    (tmp_path / "6").mkdir()  # not yet copied
    assert read_saved_model(tmp_path, "m").version == 4
    assert read_saved_model(tmp_path / "0004", "m").version == 4
    assert read_saved_model(tmp_path / "٥", "m").version == 1


def test_errors_are_one_line(root: Path, url: str, tmp_path: Path, capsys: Any):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"\xff\xff")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "saved_model.pb").touch()
    for source, message in [
        (str(tmp_path / "none"), "is no SavedModel"),
        (str(tmp_path), "is no SavedModel"),
        (str(tmp_path / "broken"), "is broken"),
        (str(tmp_path / "empty"), 'no graph tagged "serve"'),
        (url, "Servable not found for request: Latest(m)"),
        ("http://127.0.0.1:1", "no answer from"),
        ("ftp://127.0.0.1", "an address of REST is HOST:PORT"),
    ]:
        assert main([source, "--model=m"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("serve.openapi: ") and error.count("\n") == 1, error
        assert message in error
    assert main([str(root / "news"), "--model=m", "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert read_saved_model(root / "news", "m").version == VERSION
