"""gRPC's PredictionService."""

import contextlib

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serve import inference, messages
from serve.errors import invalid_argument
from serve.grpc_calls import check_model_spec, counted, requested_version, time_left, with_status
from serve.grpc_tensors import write_tensor, write_tensor_content
from serve.metrics import Metrics
from serve.model_store import ModelStore
from serve.servable import Servable


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata.

    Args:
        store: the models to serve.
        metrics: count the requests; None counts for nobody.
        as_tensor_content: whether Predict answers with tensor_content instead of typed fields:
            TF Serving's --enable_serialization_as_tensor_content.
    """

    def __init__(
        self,
        store: ModelStore,
        metrics: Metrics | None = None,
        *,
        as_tensor_content: bool = False,
    ) -> None:
        self.metrics = metrics or Metrics()
        self._store = store
        self._write = write_tensor_content if as_tensor_content else write_tensor

    @with_status
    @counted
    def Predict(  # noqa: N802
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        check_model_spec(request)
        timeout = time_left(context)
        with self._borrow(request.model_spec) as servable:
            return inference.predict(servable, request, timeout=timeout, write=self._write)

    @with_status
    @counted
    def Classify(  # noqa: N802
        self, request: classification_pb2.ClassificationRequest, context: grpc.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        check_model_spec(request)
        timeout = time_left(context)
        with self._borrow(request.model_spec) as servable:
            return inference.classify(servable, request, timeout=timeout)

    @with_status
    @counted
    def Regress(  # noqa: N802
        self, request: regression_pb2.RegressionRequest, context: grpc.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        check_model_spec(request)
        timeout = time_left(context)
        with self._borrow(request.model_spec) as servable:
            return inference.regress(servable, request, timeout=timeout)

    @with_status
    def MultiInference(  # noqa: N802
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        # The first task tells the model; that the others name the same is checked later.
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        timeout = time_left(context)
        with self._borrow(spec) as servable:
            return inference.multi_inference(servable, request, timeout=timeout)

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
                # TF Serving's own slip: the %s stays, the name comes after.
                raise invalid_argument(f"Metadata field %s is not supported{field}")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._borrow(request.model_spec) as servable:
            spec = messages.model_spec(request.model_spec.name, servable.version)
            response.model_spec.CopyFrom(spec)
            signatures = messages.signature_map(servable.signatures)
            response.metadata["signature_def"].Pack(signatures)
        return response

    def _borrow(self, spec: model_pb2.ModelSpec) -> contextlib.AbstractContextManager[Servable]:
        return self._store.borrow(
            spec.name, version=requested_version(spec), label=spec.version_label
        )
