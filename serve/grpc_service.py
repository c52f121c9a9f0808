"""The gRPC services of TensorFlow Serving: PredictionService and ModelService.

What a servicer here does not define (Classify, Regress, MultiInference,
HandleReloadConfigRequest) is answered with UNIMPLEMENTED by its base class.
"""

import contextlib
import functools
import logging
from collections.abc import Callable
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serve import messages
from serve.errors import Code, ServingError, invalid_argument
from serve.model_store import ModelStore
from serve.servable import DEFAULT_SIGNATURE, Servable

MAX_MESSAGE_CHARACTERS = 1024
NUM_THREADS = 16
DRAIN_SECONDS = 30

# Type -> (the field of TensorProto that holds it, the integer type whose bits it takes, if any).
TYPED_FIELDS: dict[int, tuple[str, type | None]] = {
    types_pb2.DT_FLOAT: ("float_val", None),
    types_pb2.DT_DOUBLE: ("double_val", None),
    types_pb2.DT_INT32: ("int_val", None),
    types_pb2.DT_INT16: ("int_val", None),
    types_pb2.DT_INT8: ("int_val", None),
    types_pb2.DT_UINT8: ("int_val", None),
    types_pb2.DT_UINT16: ("int_val", None),
    types_pb2.DT_INT64: ("int64_val", None),
    types_pb2.DT_UINT32: ("uint32_val", None),
    types_pb2.DT_UINT64: ("uint64_val", None),
    types_pb2.DT_BOOL: ("bool_val", None),
    types_pb2.DT_STRING: ("string_val", None),
    types_pb2.DT_HALF: ("half_val", np.uint16),
    types_pb2.DT_BFLOAT16: ("half_val", np.uint16),
}

log = logging.getLogger(__name__)


def _with_status(answer: Callable) -> Callable:
    """Ends the call with the code and the message of a ServingError."""

    @functools.wraps(answer)
    def answer_or_abort(self, request: Message, context: grpc.ServicerContext) -> Message:
        try:
            return answer(self, request, context)
        except ServingError as error:
            code, message = error.code, error.message
        except Exception as error:
            log.exception("%s failed", answer.__name__)
            code, message = Code.INTERNAL, repr(error)
        if len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[:MAX_MESSAGE_CHARACTERS] + "...TRUNCATED"
        context.abort(grpc.StatusCode[code.name], message)

    return answer_or_abort


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata.

    Args:
        store: the models to serve.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    @_with_status
    def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        with self._borrow(request) as servable:
            signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            outputs = servable.predict(
                {name: read_tensor(name, proto) for name, proto in request.inputs.items()},
                signature_name=signature_name,
                output_filter=request.output_filter,
            )
            spec = messages.model_spec(request.model_spec.name, servable.version, signature_name)
        response = predict_pb2.PredictResponse(model_spec=spec)
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(write_tensor(array))
        return response

    @_with_status
    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        _check_model_spec(request)
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._borrow(request) as servable:
            spec = messages.model_spec(request.model_spec.name, servable.version)
            response.model_spec.CopyFrom(spec)
            signatures = messages.signature_map(servable.signatures)
            response.metadata["signature_def"].Pack(signatures)
        return response

    def _borrow(
        self, request: predict_pb2.PredictRequest | get_model_metadata_pb2.GetModelMetadataRequest
    ) -> contextlib.AbstractContextManager[Servable]:
        _check_model_spec(request)
        spec = request.model_spec
        return self._store.borrow(
            spec.name, version=_requested_version(spec), label=spec.version_label
        )


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus.

    Args:
        store: the models to serve.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    @_with_status
    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        _check_model_spec(request)
        spec = request.model_spec
        statuses = self._store.status(spec.name, version=_requested_version(spec))
        return messages.model_status(statuses)


def _check_model_spec(request: Message) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")


def _requested_version(spec: model_pb2.ModelSpec) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def read_tensor(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """An input of a request as an array; both typed fields and tensor_content are read."""
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def write_tensor(array: np.ndarray) -> tensor_pb2.TensorProto:
    """An output with its values in the typed field (float_val ...), as TF Serving sends them."""
    dtype = tf.as_dtype(array.dtype).as_datatype_enum
    if dtype not in TYPED_FIELDS:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=tf.TensorShape(array.shape).as_proto())
    field, bits = TYPED_FIELDS[dtype]
    values = array.ravel() if bits is None else array.ravel().view(bits)
    getattr(proto, field).extend(values.tolist())
    return proto


class GrpcServer:
    """Runs both services.

    Args:
        store: the models to serve.
        port: 0 takes a free one.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, store: ModelStore, port: int) -> None:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # else two servers share a port without a word
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(store), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(store), self._server)
        try:
            port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from error
        self.address = f"127.0.0.1:{port}"

    def start(self) -> None:
        """Begins to answer."""
        self._server.start()

    def stop(self) -> None:
        """Takes no new call, and waits for those that run (30 seconds at most)."""
        self._server.stop(grace=DRAIN_SECONDS).wait()
