"""gRPC's ModelService: the status of the versions, and a new configuration while it serves."""

import logging
import threading

import grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
)

from serve import messages
from serve.errors import Code, ServingError, invalid_argument
from serve.grpc_calls import check_model_spec, requested_version, with_status
from serve.model_config import model_configs
from serve.model_store import ModelStore

log = logging.getLogger(__name__)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        store: the models to serve.
        is_stopping: when set, reloads that wait for their models end with CANCELLED.
    """

    def __init__(self, store: ModelStore, *, is_stopping: threading.Event | None = None) -> None:
        self._store = store
        self._is_stopping = is_stopping or threading.Event()

    @with_status
    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        check_model_spec(request)
        spec = request.model_spec
        statuses = self._store.status(spec.name, version=requested_version(spec))
        return messages.model_status(statuses)

    @with_status
    def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        try:
            self._reload(request, context)
        except ServingError as error:
            log.error("the configuration asked for by gRPC: %s", error.message)
            raise
        return messages.reloaded(request.metric_names)

    def _reload(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> None:
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        configs = model_configs(request.config, known=self._store.models())
        # It is inactive when the client has hung up, or its deadline is past.
        self._store.reload(
            configs, should_stop=lambda: self._is_stopping.is_set() or not context.is_active()
        )
        if self._is_stopping.is_set():
            raise ServingError(Code.CANCELLED, "The server is stopping")
