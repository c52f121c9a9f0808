"""gRPC's ModelService.

What is not defined here (HandleReloadConfigRequest) is answered with UNIMPLEMENTED by the base
class.
"""

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serve import messages
from serve.grpc_calls import check_model_spec, requested_version, with_status
from serve.model_store import ModelStore


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus.

    Args:
        store: the models to serve.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    @with_status
    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        check_model_spec(request)
        spec = request.model_spec
        statuses = self._store.status(spec.name, version=requested_version(spec))
        return messages.model_status(statuses)
