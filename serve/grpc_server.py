"""The gRPC port: both services behind it, its start and its stop."""

from concurrent import futures

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serve.model_service import ModelService
from serve.model_store import ModelStore
from serve.prediction_service import PredictionService

NUM_THREADS = 16
DRAIN_SECONDS = 30


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
