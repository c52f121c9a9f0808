import logging
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.example.example_pb2 import Example
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    input_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.apis.prediction_service_pb2_grpc import (
    PredictionServiceStub,
    add_PredictionServiceServicer_to_server,
)

from serve.errors import ServingError, invalid_argument
from serve.grpc_calls import cut, time_left
from serve.metrics import Metrics
from serve.model_store import ModelStore
from serve.prediction_service import PredictionService
from serve.signatures import CLASSIFY, REGRESS

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def serving(service: PredictionService) -> Iterator[PredictionServiceStub]:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=UNLIMITED)
    add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
        yield PredictionServiceStub(channel)
    server.stop(grace=None).wait()


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def service(store: ModelStore, metrics: Metrics) -> Iterator[PredictionServiceStub]:
    yield from serving(PredictionService(store, metrics))


@pytest.fixture(scope="module")
def content_service(store: ModelStore, metrics: Metrics) -> Iterator[PredictionServiceStub]:
    yield from serving(PredictionService(store, metrics, as_tensor_content=True))


def request_of(
    model: str, signature_name: str = "", **inputs: object
) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature_name
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def example_of(**features: Any) -> Example:
    example = Example()
    for name, value in features.items():
        kind = "float_list" if isinstance(value, float) else "bytes_list"
        getattr(example.features.feature[name], kind).value.append(value)
    return example


def fill(request: Any, signature_name: str, *examples: Example) -> Any:
    request.model_spec.name = "examples"
    request.model_spec.signature_name = signature_name
    request.input.example_list.examples.extend(examples)
    return request


def classification(signature_name: str, *examples: Example) -> Any:
    return fill(classification_pb2.ClassificationRequest(), signature_name, *examples)


def regression(signature_name: str, *examples: Example) -> Any:
    return fill(regression_pb2.RegressionRequest(), signature_name, *examples)


def inference(*tasks: tuple[str, str, str], examples: int = 1) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    request.input.example_list.examples.extend([example_of(x=0.25)] * examples)
    for model, signature_name, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature_name
    return request


def error_of(method: grpc.UnaryUnaryMultiCallable, request: Message) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10)
    return caught.value.code().name, caught.value.details()


# --- Predict -------------------------------------------------------------------------------


def test_predict(service: PredictionServiceStub):
    response = service.Predict(request_of("half", x=[[1.0], [2.0]]))
    assert response.model_spec.name == "half"
    assert response.model_spec.version.value == 123
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs["y"].float_val) == [2.5, 3.0]
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [2, 1]
    assert not response.outputs["y"].tensor_content


def test_predict_a_version_and_strings(service: PredictionServiceStub):
    request = request_of("text", text=np.array([b"all is good", b"\xff\0"], dtype=object))
    request.model_spec.version.value = 1
    response = service.Predict(request)
    assert list(response.outputs["label"].string_val) == [b"gut", "schläft".encode()]
    assert list(response.outputs["text_bytes"].string_val) == [b"all is good", b"\xff\0"]


def test_predict_filters_outputs(service: PredictionServiceStub):
    request = request_of("pair", a=[2.0], b=[3.0])
    request.output_filter.append("sum")
    assert list(service.Predict(request).outputs) == ["sum"]
    request.output_filter.append("sum")
    assert error_of(service.Predict, request) == (
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: sum",
    )


def test_predict_without_an_input_that_has_a_default(service: PredictionServiceStub):
    response = service.Predict(request_of("default", a=[2.0]))
    assert list(response.outputs["sum"].float_val) == [12.0]


def test_predict_answers_in_bytes_on_demand(content_service: PredictionServiceStub):
    response = content_service.Predict(request_of("half", x=[[1.0], [2.0]]))
    assert not response.outputs["y"].float_val
    assert response.outputs["y"].tensor_content == np.float32([2.5, 3]).tobytes()


def test_predict_beyond_the_usual_size_of_messages(service: PredictionServiceStub):
    values = np.zeros((2_000_000, 1), np.float32)  # 8 MB, twice what gRPC takes by default
    response = service.Predict(request_of("half", x=values))
    assert len(response.outputs["y"].float_val) == 2_000_000


def test_predict_without_a_model(service: PredictionServiceStub):
    assert error_of(service.Predict, predict_pb2.PredictRequest()) == (
        "INVALID_ARGUMENT",
        "Missing ModelSpec",
    )
    assert error_of(service.Predict, request_of("", "serving_default")) == (
        "INVALID_ARGUMENT",
        "ModelSpec has no name specified.",
    )


def test_predict_of_what_is_not_there(service: PredictionServiceStub):
    assert error_of(service.Predict, request_of("no")) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(no)",
    )
    request = request_of("half")
    request.model_spec.version.value = 9
    assert error_of(service.Predict, request) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(half, 9)",
    )
    request.model_spec.version_label = "canary"
    assert error_of(service.Predict, request) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: canary",
    )
    assert error_of(service.Predict, request_of("half", "no", x=[1.0])) == (
        "FAILED_PRECONDITION",
        'Serving signature key "no" not found.',
    )


def test_predict_inputs_that_do_not_fit(service: PredictionServiceStub):
    assert error_of(service.Predict, request_of("pair", a=[1.0])) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
        "Missing but required: {b}.",
    )
    assert error_of(service.Predict, request_of("half", x=[1])) == (
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but int32 is provided",
    )
    broken = request_of("half")
    broken.inputs["x"].CopyFrom(tensor_pb2.TensorProto())
    assert error_of(service.Predict, broken) == (
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    )


def test_the_order_of_the_checks_of_predict(service: PredictionServiceStub):
    """Signature, number of inputs, names and values one by one, filter, types."""
    request = request_of("pair", "no", z=[1], a=[1])
    request.inputs["b"].CopyFrom(tensor_pb2.TensorProto())
    request.output_filter.append("no")
    assert error_of(service.Predict, request) == (
        "FAILED_PRECONDITION",
        'Serving signature key "no" not found.',
    )
    request.model_spec.signature_name = ""
    assert "input size does not match signature: 3!=2" in error_of(service.Predict, request)[1]
    del request.inputs["z"]
    assert error_of(service.Predict, request)[1] == "tensor parsing error: b"
    request.inputs["b"].CopyFrom(tf.make_tensor_proto([1.0]))
    assert "alias not found in signature: no" in error_of(service.Predict, request)[1]
    del request.output_filter[:]
    assert error_of(service.Predict, request)[1] == (
        "Expects arg[0] to be float but int32 is provided"
    )


def test_errors_of_operations_keep_their_code(service: PredictionServiceStub):
    code, message = error_of(service.Predict, request_of("half", "triples", x=[1.0]))
    assert code == "INVALID_ARGUMENT"
    assert "Input to reshape is a tensor with 1 values" in message


# --- messages, deadlines, metrics ----------------------------------------------------------


def test_long_messages_are_cut(service: PredictionServiceStub):
    _, message = error_of(service.Predict, request_of("n" * 5000))
    assert len(message) == 1024 + len("...TRUNCATED")
    assert message.endswith("n...TRUNCATED")
    assert cut("ä" * 1000) == "ä" * 512 + "...TRUNCATED"  # bytes are counted
    assert cut("ä" * 512) == "ä" * 512


class Broken:
    """A store that fails with what it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def borrow(self, *args: object, **kwargs: object) -> object:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (invalid_argument("\udcff \0\n"), ("INVALID_ARGUMENT", "? \0\n")),
        (RuntimeError("\ud800"), ("INTERNAL", "RuntimeError('\\ud800')")),
    ],
)
def test_no_message_breaks_an_answer(
    error: Exception, status: tuple[str, str], caplog: pytest.LogCaptureFixture
):
    # half a surrogate pair in what is captured cannot be sent by pytest-xdist
    caplog.set_level(logging.CRITICAL + 1, logger="serve.grpc_calls")
    metrics = Metrics()
    service = serving(PredictionService(Broken(error), metrics))
    for stub in service:
        assert error_of(stub.Predict, request_of("half")) == status
    assert metrics.request_count.value("half", status[0]) == 1


class Call:
    """As much of a ServicerContext as the time goes."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def time_remaining(self) -> float | None:
        return self.seconds


def test_time_left():
    assert time_left(Call(None)) is None
    assert time_left(Call(1e11)) is None
    assert time_left(Call(2.5)) == 2.5
    with pytest.raises(ServingError, match="Deadline") as caught:
        time_left(Call(0.0))
    assert caught.value.code.name == "DEADLINE_EXCEEDED"


class Borrowed:
    """A store and its only servable, which notes the time-outs it is given."""

    version = 1

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def borrow(self, *args: object, **kwargs: object) -> "Borrowed":
        return self

    def __enter__(self) -> "Borrowed":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def predict(self, inputs: object, *, timeout: float | None, **kwargs: object) -> dict:
        self.timeouts.append(timeout)
        return {}


def test_the_deadline_becomes_the_time_out():
    store = Borrowed()
    for stub in serving(PredictionService(store)):
        stub.Predict(request_of("any"), timeout=50)
        stub.Predict(request_of("any"))
    first, second = store.timeouts
    assert second is None
    assert first is not None and 0 < first < 51


def test_metrics_of_requests(store: ModelStore):
    metrics = Metrics()
    for stub in serving(PredictionService(store, metrics)):
        stub.Predict(request_of("half", x=[1.0]))
        error_of(stub.Predict, request_of("half"))
        error_of(stub.Predict, request_of("no"))
        stub.Classify(classification("classify", Example()))
        stub.Regress(regression("regress", Example()))
        stub.MultiInference(inference(("examples", "classify", CLASSIFY)))
    counts = {labels: metrics.request_count.value(*labels) for labels in (
        ("half", "OK"), ("half", "INVALID_ARGUMENT"), ("no", "NOT_FOUND"), ("examples", "OK"),
    )}  # fmt: skip
    assert list(counts.values()) == [1, 1, 1, 2]  # not MultiInference
    assert metrics.request_latency.count("half", "Predict", "GRPC") == 1  # the failed one is not
    assert metrics.request_latency.count("examples", "Classify", "GRPC") == 1
    assert metrics.request_latency.count("examples", "Regress", "GRPC") == 1
    assert metrics.request_latency.count("examples", "MultiInference", "GRPC") == 0


def test_many_requests_at_once(service: PredictionServiceStub):
    failures = []

    def ask(number: int) -> None:
        for _ in range(20):
            response = service.Predict(request_of("half", x=[float(number)]))
            if list(response.outputs["y"].float_val) != [number / 2 + 2]:
                failures.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- Classify, Regress, MultiInference -----------------------------------------------------


def test_classify(service: PredictionServiceStub):
    request = classification("classify", example_of(x=0.25, s=b"a"), example_of(s=b"\xff"))
    response = service.Classify(request)
    assert response.model_spec.name == "examples"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "classify"
    rows = [
        [(entry.label, entry.score) for entry in row.classes]
        for row in response.result.classifications
    ]
    assert rows == [[("a", 0.25), ("rest", 0.75)], [("�", 0.0), ("rest", 1.0)]]


def test_classify_without_classes_or_scores(service: PredictionServiceStub):
    [row] = service.Classify(classification("only_scores", Example())).result.classifications
    assert [(entry.label, entry.score) for entry in row.classes] == [("", 0), ("", 1)]
    [row] = service.Classify(classification("only_classes", Example())).result.classifications
    assert [(entry.label, entry.score) for entry in row.classes] == [("none", 0), ("rest", 0)]
    response = service.Classify(classification("", Example()))
    assert response.model_spec.signature_name == "serving_default"


def test_regress(service: PredictionServiceStub):
    response = service.Regress(regression("regress", example_of(x=0.25), example_of(x=1.0)))
    assert [entry.value for entry in response.result.regressions] == [0.5, 2]
    assert response.model_spec.signature_name == "regress"


def test_a_context_is_merged_into_each_example(service: PredictionServiceStub):
    request = regression("regress")
    examples = request.input.example_list_with_context
    examples.context.CopyFrom(example_of(x=3.0))
    examples.examples.extend([Example(), example_of(x=1.0)])
    assert [entry.value for entry in service.Regress(request).result.regressions] == [6, 2]


def test_requests_with_examples_that_do_not_fit(service: PredictionServiceStub):
    for method, request in (
        (service.Classify, classification_pb2.ClassificationRequest()),
        (service.Regress, regression_pb2.RegressionRequest()),
    ):
        assert error_of(method, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
        request.model_spec.name = "examples"
        request.model_spec.signature_name = "no"
        assert error_of(method, request) == (
            "INVALID_ARGUMENT",
            "No signature was found with the name: no",
        )
        request.model_spec.signature_name = "regress" if method is service.Regress else ""
        assert error_of(method, request) == ("INVALID_ARGUMENT", "Input is empty.")
        request.input.CopyFrom(input_pb2.Input(example_list=input_pb2.ExampleList()))
        assert error_of(method, request) == ("INVALID_ARGUMENT", "Input is empty.")


def test_multi_inference(service: PredictionServiceStub):
    request = inference(("examples", "regress", REGRESS), ("examples", "", CLASSIFY), examples=2)
    first, second = service.MultiInference(request).results
    assert [entry.value for entry in first.regression_result.regressions] == [0.5, 0.5]
    assert first.model_spec.signature_name == "regress"
    assert len(second.classification_result.classifications) == 2
    assert second.model_spec.signature_name == "serving_default"
    assert second.model_spec.version.value == 1


@pytest.mark.parametrize(
    ("tasks", "status"),
    [
        ([], ("INVALID_ARGUMENT", "ModelSpec has no name specified.")),
        (
            [("examples", "", CLASSIFY), ("", "regress", REGRESS)],
            ("INVALID_ARGUMENT", "Found ModelSpec with an empty model name."),
        ),
        (
            [("examples", "", CLASSIFY), ("half", "regress", REGRESS)],
            (
                "INVALID_ARGUMENT",
                "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
            ),
        ),
        (
            [("examples", "", CLASSIFY)] * 2,
            ("INVALID_ARGUMENT", "Duplicate evaluation of signature: serving_default"),
        ),
        (
            [("examples", "regress", "odd")],
            ("UNIMPLEMENTED", "Unsupported signature method_name: odd"),
        ),
        ([("no", "", CLASSIFY)], ("NOT_FOUND", "Servable not found for request: Latest(no)")),
    ],
)
def test_multi_inference_refuses(
    service: PredictionServiceStub, tasks: list[tuple[str, str, str]], status: tuple[str, str]
):
    assert error_of(service.MultiInference, inference(*tasks)) == status


# --- GetModelMetadata ----------------------------------------------------------------------


def test_metadata(service: PredictionServiceStub):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert error_of(service.GetModelMetadata, request)[1] == "Missing ModelSpec"
    request.model_spec.name = "pair"
    response = service.GetModelMetadata(request)
    assert response.model_spec.name == "pair"
    assert response.model_spec.version.value == 1
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert sorted(signature.inputs) == ["a", "b"]
    assert signature.inputs["a"].dtype == types_pb2.DT_FLOAT


def test_metadata_errors(service: PredictionServiceStub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "pair"
    assert error_of(service.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field.append("weights")
    assert error_of(service.GetModelMetadata, request) == (
        "INVALID_ARGUMENT",
        "Metadata field %s is not supportedweights",
    )
