import gzip
import http.client
import json
import threading
from typing import Any

import httpx
import pytest
from rest_stand_in import OneModelStore

from serve.errors import Code, ServingError
from serve.metrics import Metrics
from serve.rest_server import RestServer

HALF = "/v1/models/half"


@pytest.fixture(scope="module")
def web(rest_address: str):
    with httpx.Client(base_url=f"http://{rest_address}") as client:
        yield client


@pytest.fixture
def one_model() -> OneModelStore:
    return OneModelStore()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def stand_in(one_model: OneModelStore, metrics: Metrics):
    """A server on a model in Python, with all that can be switched on."""
    server = RestServer(one_model, metrics, 0, threads=2, cors=True, metrics_path=PAGE)
    server.start()
    with httpx.Client(base_url=f"http://{server.address}") as client:
        yield client
    server.stop()


def predict(web: httpx.Client, body: Any, path: str = HALF, **kwargs: Any) -> httpx.Response:
    return web.post(f"{path}:predict", content=json.dumps(body), **kwargs)


def error_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return response.status_code, response.json()["error"]


# --- predict -------------------------------------------------------------------------------


def test_predict_rows(web: httpx.Client):
    response = predict(web, {"instances": [1.0, 2.0, 5.0]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.text == '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


def test_predict_columns(web: httpx.Client):
    answer = predict(web, {"inputs": {"x": [[1], [2]]}, "signature_name": ""}).json()
    assert answer == {"outputs": [[2.5], [3.0]]}


def test_predict_several_inputs_and_outputs(web: httpx.Client):
    pair = "/v1/models/pair"
    rows = {"instances": [{"a": 2, "b": 3}, {"a": 4, "b": 5}]}
    assert predict(web, rows, pair).json() == {
        "predictions": [{"product": 6.0, "sum": 5.0}, {"product": 20.0, "sum": 9.0}]
    }
    columns = {"inputs": {"a": [2, 4], "b": [3, 5]}}
    assert predict(web, columns, pair).json() == {
        "outputs": {"product": [6.0, 20.0], "sum": [5.0, 9.0]}
    }


def test_predict_strings(web: httpx.Client):
    body = {"instances": ["all is good", {"b64": "/w=="}]}
    assert predict(web, body, "/v1/models/text").json() == {
        "predictions": [
            {
                "label": "gut",
                "probabilities": [0.75, 0.25],
                "text_bytes": {"b64": "YWxsIGlzIGdvb2Q="},
            },
            {"label": "schläft", "probabilities": [0.1, 0.9], "text_bytes": {"b64": "/w=="}},
        ]
    }


def test_predict_not_a_number(web: httpx.Client):
    response = predict(web, {"instances": [float("nan"), float("-inf")]})
    assert '"predictions": [NaN, -Infinity' in response.text


def test_predict_a_version_and_an_encoded_name(web: httpx.Client):
    for path in (f"{HALF}/versions/123", f"{HALF}/versions/000123", "/V1/Models/h%61lf"):
        assert predict(web, {"instances": [1.0]}, path).json() == {"predictions": [2.5]}


def test_the_content_type_is_ignored(web: httpx.Client):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert predict(web, {"instances": [1.0]}, headers=headers).json() == {"predictions": [2.5]}


def test_a_gzip_body_is_inflated(web: httpx.Client):
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"instances": [1.0]}')
    response = web.post(f"{HALF}:predict", content=body, headers=headers)
    assert response.json() == {"predictions": [2.5]}
    for broken in (b"no gzip", body[:-9]):
        response = web.post(f"{HALF}:predict", content=broken, headers=headers)
        assert error_of(response) == (400, "JSON Parse error: The document is empty")


def test_answers_are_not_compressed(web: httpx.Client):
    response = predict(web, {"instances": [1.0] * 1000}, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in response.headers


def test_a_large_body(web: httpx.Client):
    response = predict(web, {"instances": [1.5] * 50_000})
    assert len(response.json()["predictions"]) == 50_000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b"[]", "JSON Value: [] Is not object"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (
            b'{"signature_name": "no", "instances": [1]}',
            'Serving signature name: "no" not found in signature def',
        ),
        (
            b'{"signature_name": "total", "instances": [1]}',
            "Tensor name: total has no shape information",
        ),
        (
            b'{"signature_name": "uneven", "instances": [1, 2]}',
            "Tensor name: b has inconsistent batch size: 1 expecting: 2",
        ),
        (b'{"signature_name": "triples", "inputs": [1]}', "Input to reshape is a tensor with 1"),
    ],
)
def test_predict_errors(web: httpx.Client, body: bytes, message: str):
    status, received = error_of(web.post(f"{HALF}:predict", content=body))
    assert status == 400
    assert message in received


def test_the_order_of_the_checks(web: httpx.Client):
    """The text, the signature's name, the model, the signature, the tensors."""
    body = b'{"signature_name": "no", "instances": 1}'
    unknown = "/v1/models/unknown:predict"
    assert "Parse error" in error_of(web.post(unknown, content=b"{"))[1]
    assert "string value" in error_of(web.post(unknown, content=b'{"signature_name": 1}'))[1]
    assert error_of(web.post(unknown, content=body)) == (
        404,
        "Servable not found for request: Latest(unknown)",
    )
    assert "not found in signature def" in error_of(web.post(f"{HALF}:predict", content=body))[1]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/models/no", 404, "Servable not found for request: Latest(no)"),
        (f"{HALF}/versions/9", 404, "Servable not found for request: Specific(half, 9)"),
        (f"{HALF}/labels/canary", 400, "Unrecognized servable version label: canary"),
        (
            f"{HALF}/versions/9223372036854775808",
            400,
            "Failed to convert version: 9223372036854775808 to numeric.",
        ),
    ],
)
def test_predict_of_what_is_not_there(web: httpx.Client, path: str, status: int, message: str):
    assert error_of(predict(web, {"instances": [1.0]}, path)) == (status, message)


# --- classify and regress ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("classify", {"results": [[["a", 0.5]], [["a", 0.5]]]}),
        ("regress", {"results": [0.5, 0.5]}),
    ],
)
def test_examples(stand_in: httpx.Client, verb: str, body: dict):
    pytest.importorskip("serve.examples")
    content = json.dumps({"examples": [{"x": 1.0}, {"x": 2.0}]})
    response = stand_in.post(f"{HALF}:{verb}", content=content)
    assert response.json() == body
    assert response.status_code == 200
    assert error_of(stand_in.post(f"/v1/models/no:{verb}", content=content)) == (
        404,
        "Servable not found for request: Latest(no)",
    )
    assert error_of(stand_in.post(f"{HALF}:{verb}", content=b"")) == (
        400,
        "JSON Parse error: The document is empty",
    )
    assert stand_in.post(f"{HALF}:{verb}", content=b'{"examples": []}').status_code == 400


# --- codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.INVALID_ARGUMENT, 400),
        (Code.FAILED_PRECONDITION, 400),
        (Code.OUT_OF_RANGE, 400),
        (Code.UNAUTHENTICATED, 401),
        (Code.PERMISSION_DENIED, 403),
        (Code.NOT_FOUND, 404),
        (Code.ALREADY_EXISTS, 409),
        (Code.ABORTED, 409),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.CANCELLED, 499),
        (Code.UNKNOWN, 500),
        (Code.INTERNAL, 500),
        (Code.DATA_LOSS, 500),
        (Code.UNIMPLEMENTED, 501),
        (Code.UNAVAILABLE, 503),
        (Code.DEADLINE_EXCEEDED, 504),
    ],
)
def test_codes(
    one_model: OneModelStore, metrics: Metrics, stand_in: httpx.Client, code: Code, status: int
):
    def fail() -> None:
        raise ServingError(code, 'a "message"\nof two lines')

    one_model.servable.behave = fail
    response = predict(stand_in, {"instances": [1.0]})
    assert error_of(response) == (status, 'a "message"\nof two lines')
    assert metrics.request_count.value("half", code.name) == 1


def test_a_bug_is_an_internal_error(
    one_model: OneModelStore, stand_in: httpx.Client, caplog: pytest.LogCaptureFixture
):
    one_model.servable.behave = lambda: {}["bug"]
    assert error_of(predict(stand_in, {"instances": [1.0]})) == (500, "KeyError('bug')")
    assert "POST /v1/models/half:predict failed" in caplog.text


# --- paths ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", HALF),
        ("DELETE", HALF),
        ("GET", f"{HALF}:predict"),
        ("POST", HALF),
        ("POST", f"{HALF}:PREDICT"),
        ("POST", f"{HALF}:explain"),
        ("GET", f"{HALF}/versions/one"),
        ("GET", f"{HALF}/"),
        ("GET", "/v1/other"),
        ("GET", "/v1/"),
        ("PATCH", HALF),
        ("POST", f"{HALF}:predict?x=1"),
    ],
)
def test_malformed_requests(web: httpx.Client, method: str, path: str):
    assert error_of(web.request(method, path)) == (400, f"Malformed request: {method} {path}")


def test_head_is_malformed(web: httpx.Client):
    assert web.head(HALF).status_code == 400


def test_options_of_a_browser(web: httpx.Client):
    response = web.options(HALF, headers={"Origin": "https://example.org"})
    assert (response.status_code, response.content) == (200, b"")
    for headers in ({"Origin": "null"}, {}):
        assert error_of(web.options(HALF, headers=headers)) == (
            400,
            "Origin header is missing in CORS preflight",
        )


def test_cors(web: httpx.Client, stand_in: httpx.Client):
    expected = {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST, GET",
        "access-control-allow-headers": "Content-Type",
    }
    for response in (
        stand_in.options(HALF, headers={"Origin": "http://example.org"}),
        stand_in.options(HALF),
        stand_in.get(HALF),
        stand_in.get("/v1/models/no"),
        predict(stand_in, {"instances": [1.0]}),
    ):
        assert expected.items() <= response.headers.items()
    assert not any(name.startswith("access-control") for name in web.get(HALF).headers)
    assert not any(name.startswith("access-control") for name in stand_in.get("/").headers)


def test_outside_of_the_api(web: httpx.Client):
    for path in ("/", "/v1", "/v2/models/half", "/monitoring/prometheus/metrics"):
        response = web.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "text/html"
        assert "<TITLE>404 Not Found</TITLE>" in response.text


# --- metrics -------------------------------------------------------------------------------

PAGE = "/monitoring/prometheus/metrics"


def test_requests_are_counted(metrics: Metrics, stand_in: httpx.Client):
    predict(stand_in, {"instances": [1.0]})
    predict(stand_in, {"instances": ["text"]})
    predict(stand_in, {"instances": [1.0]}, "/v1/models/no")
    stand_in.get(HALF)
    stand_in.get("/v1/nothing")
    stand_in.get("/elsewhere")
    response = stand_in.get(PAGE)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain"
    name = ":tensorflow:serving:request_count"
    counts = [line for line in response.text.splitlines() if line.startswith(name)]
    assert counts == [
        f'{name}{{model_name="",status="INVALID_ARGUMENT"}} 1',
        f'{name}{{model_name="half",status="INVALID_ARGUMENT"}} 1',
        f'{name}{{model_name="half",status="OK"}} 2',
        f'{name}{{model_name="no",status="NOT_FOUND"}} 1',
    ]
    # Only what went well is timed; a status request is of no API.
    assert metrics.request_latency.count("half", "predict", "REST") == 1
    assert metrics.request_latency.count("half", "", "REST") == 1
    assert "no" not in {labels["model_name"] for _, labels, _ in metrics.request_latency.samples()}


def test_the_page_is_at_its_path_only(stand_in: httpx.Client):
    response = stand_in.get(f"{PAGE}?x=1")
    assert response.status_code == 400
    assert response.text == f"Unexpected path: {PAGE}?x=1. Should be {PAGE}"
    assert stand_in.get(f"{PAGE}/").status_code == 404


# --- status and metadata -------------------------------------------------------------------

HALF_STATUS = {
    "model_version_status": [
        {
            "version": "123",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
}


@pytest.mark.parametrize("path", [HALF, f"{HALF}/versions/123", f"{HALF}/labels/any"])
def test_status(web: httpx.Client, path: str):
    response = web.get(path)
    assert response.status_code == 200
    assert response.json() == HALF_STATUS


def test_metadata_in_capitals_is_the_status(web: httpx.Client):
    """The pattern of the path ignores case, the choice that follows does not."""
    assert web.get(f"{HALF}/METADATA").json() == HALF_STATUS


def test_a_query_is_part_of_the_name(web: httpx.Client):
    assert error_of(web.get(f"{HALF}?x=1")) == (
        404,
        "Could not find any versions of model half?x=1",
    )


def test_status_of_what_is_not_there(web: httpx.Client):
    assert error_of(web.get("/v1/models")) == (400, "Missing model name in request.")
    assert error_of(web.get("/v1/models/no")) == (
        404,
        "Could not find any versions of model no",
    )
    assert error_of(web.get(f"{HALF}/versions/9")) == (
        404,
        "Could not find version 9 of model half",
    )
    status, message = error_of(web.get(f"{HALF}/versions/{'9' * 5000}"))
    assert status == 400
    assert message.startswith("Failed to convert version: 999")


def tensor(name: str) -> dict[str, Any]:
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    return {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": name}


def test_metadata(web: httpx.Client):
    answer = web.get("/v1/models/pair/metadata").json()
    assert answer["model_spec"] == {"name": "pair", "signature_name": "", "version": "1"}
    assert list(answer) == ["model_spec", "metadata"]
    assert list(answer["metadata"]) == ["signature_def"]
    assert answer["metadata"]["signature_def"]["signature_def"]["serving_default"] == {
        "inputs": {"a": tensor("serving_default_a:0"), "b": tensor("serving_default_b:0")},
        "outputs": {
            "product": tensor("PartitionedCall:0"),
            "sum": tensor("PartitionedCall:1"),
        },
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


def test_metadata_of_what_is_not_there(web: httpx.Client):
    assert error_of(web.get("/v1/models/no/metadata")) == (
        404,
        "Servable not found for request: Latest(no)",
    )
    assert error_of(web.get(f"{HALF}/labels/canary/metadata")) == (
        400,
        "Unrecognized servable version label: canary",
    )


def test_a_client_that_goes_away_does_no_harm(rest_address: str, web: httpx.Client):
    host, port = rest_address.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.putrequest("POST", f"{HALF}:predict")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b'{"instances": [')
    connection.close()
    assert predict(web, {"instances": [1.0]}).json() == {"predictions": [2.5]}


def test_many_at_once(web: httpx.Client):
    answers = []
    threads = [
        threading.Thread(
            target=lambda value: answers.append(
                (value, predict(web, {"instances": [value]}).json()["predictions"][0])
            ),
            args=(float(value),),
        )
        for value in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(float(value), value / 2 + 2) for value in range(24)]
