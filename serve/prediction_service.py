"""gRPC's PredictionService.

What is not defined here (Classify, Regress, MultiInference) is answered with UNIMPLEMENTED by
the base class.
"""

import contextlib

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serve import messages
from serve.errors import invalid_argument
from serve.grpc_calls import check_model_spec, requested_version, with_status
from serve.grpc_tensors import read_tensor, write_tensor
from serve.model_store import ModelStore
from serve.servable import DEFAULT_SIGNATURE, Servable


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata.

    Args:
        store: the models to serve.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    @with_status
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

    @with_status
    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        check_model_spec(request)
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
        check_model_spec(request)
        spec = request.model_spec
        return self._store.borrow(
            spec.name, version=requested_version(spec), label=spec.version_label
        )
