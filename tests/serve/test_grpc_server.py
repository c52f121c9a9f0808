from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from serve.grpc_server import GrpcServer
from serve.grpc_tensors import read_tensor, write_tensor
from serve.model_store import ModelStore


@pytest.fixture(scope="module")
def channel(grpc_address: str) -> Iterator[grpc.Channel]:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(grpc_address, options=unlimited) as channel:
        yield channel


@pytest.fixture(scope="module")
def service(channel: grpc.Channel) -> PredictionServiceStub:
    return PredictionServiceStub(channel)


def request_of(
    model: str, signature_name: str = "", **inputs: object
) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature_name
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
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


def test_errors_of_operations_keep_their_code(service: PredictionServiceStub):
    code, message = error_of(service.Predict, request_of("half", "triples", x=[1.0]))
    assert code == "INVALID_ARGUMENT"
    assert "Input to reshape is a tensor with 1 values" in message


def test_long_messages_are_cut(service: PredictionServiceStub):
    _, message = error_of(service.Predict, request_of("n" * 5000))
    assert len(message) == 1024 + len("...TRUNCATED")
    assert message.endswith("n...TRUNCATED")


def test_what_is_not_there_yet(service: PredictionServiceStub):
    code, _ = error_of(service.Classify, classification_pb2.ClassificationRequest())
    assert code == "UNIMPLEMENTED"


# --- GetModelMetadata and GetModelStatus ---------------------------------------------------


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
        "Metadata field weights is not supported",
    )


def test_status(channel: grpc.Channel):
    service = ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    assert error_of(service.GetModelStatus, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.name = "half"
    [status] = service.GetModelStatus(request).model_version_status
    assert status.version == 123
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert status.HasField("status")
    request.model_spec.version.value = 9
    assert error_of(service.GetModelStatus, request) == (
        "NOT_FOUND",
        "Could not find version 9 of model half",
    )


# --- tensors and ports ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32"]
    + ["int64", "uint64", "bool", "complex64", tf.bfloat16.as_numpy_dtype],
)
def test_tensors_keep_type_shape_and_values(dtype: str):
    array = np.arange(6).reshape(2, 1, 3).astype(dtype)
    copy = read_tensor("x", write_tensor(array))
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array)


def test_a_port_in_use(store: ModelStore, grpc_address: str):
    with pytest.raises(OSError, match=r"[Aa]ddress"):
        GrpcServer(store, int(grpc_address.split(":")[1]))
