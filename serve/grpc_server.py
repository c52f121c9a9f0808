"""The gRPC port: the services behind it, its start and its stop."""

import functools
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from types import MappingProxyType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serve.flags import DEFAULT_THREADS, LARGEST_INT32
from serve.metrics import Metrics
from serve.model_service import ModelService
from serve.model_store import ModelStore
from serve.prediction_service import PredictionService
from serve.tls import ServerIdentity

DRAIN_SECONDS = 30
DEFAULTS = {
    "grpc.max_receive_message_length": LARGEST_INT32,
    "grpc.max_send_message_length": LARGEST_INT32,
    "grpc.so_reuseport": 0,  # else two servers share a port without a word
}
HEALTH_NAMES = ("", "ModelService", "PredictionService")  # "" is the whole server
# Status and health have threads of their own, so that they are answered when all the others are
# at predictions. So have reloads: each waits for its models, which may be for ever, and one that
# mends what another waits for must not stand behind it. They are made as they are needed.
NUM_SIDE_THREADS = 4
NUM_RELOAD_THREADS = 32

log = logging.getLogger(__name__)


class GrpcServer:
    """Runs PredictionService and ModelService.

    A request that finds all threads busy waits for one, and is dropped if its deadline passes
    before.

    Args:
        store: the models to serve.
        metrics: counts the requests.
        port: 0 takes a free one, None opens none.
        host: the address to open it on.
        socket_path: of a Unix socket to open as well.
        credentials: for TLS; None speaks plain.
        threads: predictions that run at once.
        channel_arguments: (name, value) for gRPC's C library.
        health: whether to answer grpc.health.v1 too.
        as_tensor_content: whether Predict answers with tensor_content.

    Raises:
        OSError: the port or the socket is in use, or cannot be opened.

    Example:
        >>> server = GrpcServer(store, metrics, 8500)
        >>> server.start()
        >>> server.stop()
    """

    def __init__(
        self,
        store: ModelStore,
        metrics: Metrics,
        port: int | None,
        *,
        host: str = "127.0.0.1",
        socket_path: Path | None = None,
        credentials: grpc.ServerCredentials | None = None,
        threads: int = DEFAULT_THREADS,
        channel_arguments: Sequence[tuple[str, int | str]] = (),
        health: bool = False,
        as_tensor_content: bool = False,
    ) -> None:
        self._credentials = credentials
        self._side_threads = futures.ThreadPoolExecutor(
            NUM_SIDE_THREADS, thread_name_prefix="grpc_side"
        )
        self._reload_threads = futures.ThreadPoolExecutor(
            NUM_RELOAD_THREADS, thread_name_prefix="grpc_reload"
        )
        self._is_stopping = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            options=list((DEFAULTS | dict(channel_arguments)).items()),
        )
        self._health = _Health() if health else None
        predictions = PredictionService(store, metrics, as_tensor_content=as_tensor_content)
        self._add_services(predictions, ModelService(store, is_stopping=self._is_stopping))
        try:
            self.address = self._open_all(port, host, socket_path)
        except OSError:
            # gRPC closes what is open already only when a server that was started stops.
            self.start()
            self._server.stop(grace=None).wait()
            raise

    def start(self) -> None:
        """Begins to answer."""
        self._server.start()

    def stop(self) -> None:
        """Takes no new call, and waits for those that run (30 seconds at most).

        Reloads that wait for their models are not waited for.
        """
        self._is_stopping.set()
        if self._health:
            self._health.end()
        all_done = self._server.stop(grace=DRAIN_SECONDS)
        # At the limit gRPC cancels what still runs, and is done; a little is given for that.
        if not all_done.wait(DRAIN_SECONDS - 0.1):
            log.warning("gRPC calls still run after %d seconds: they are cut off", DRAIN_SECONDS)
            all_done.wait(1)
        self._side_threads.shutdown(wait=False)
        self._reload_threads.shutdown(wait=False)

    def _add_services(self, predictions: PredictionService, models: ModelService) -> None:
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            predictions, self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            _Aside(models, self._side_threads, {"HandleReloadConfigRequest": self._reload_threads}),
            self._server,
        )
        if self._health:
            health_pb2_grpc.add_HealthServicer_to_server(
                _Aside(self._health, self._side_threads), self._server
            )

    def _open_all(self, port: int | None, host: str, socket_path: Path | None) -> str:
        """Opens what is asked for; gives the first address."""
        addresses = []
        if port is not None:
            name = f"[{host}]" if ":" in host else host
            addresses.append(f"{name}:{self._open(f'{name}:{port}')}")
        if socket_path is not None:
            _require_unused(socket_path)
            self._open(f"unix:{socket_path}")
            addresses.append(f"unix:{socket_path}")
        return addresses[0]

    def _open(self, address: str) -> int:
        """Opens a port or a socket; gives the number of the port."""
        try:
            if self._credentials:
                return self._server.add_secure_port(address, self._credentials)
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot open {address}: {error}") from error


class _Aside:
    """A service whose methods run in other threads than the server's; some in their own (`others`).

    The attribute they are told by is experimental: a gRPC that does not know it runs them in the
    server's.
    """

    def __init__(
        self,
        service: object,
        threads: futures.ThreadPoolExecutor,
        others: Mapping[str, futures.ThreadPoolExecutor] = MappingProxyType({}),
    ) -> None:
        self._service = service
        self._threads = threads
        self._others = others

    def __getattr__(self, name: str) -> Callable:
        method = getattr(self._service, name)
        aside = functools.update_wrapper(functools.partial(method), method)
        threads = self._others.get(name, self._threads)
        aside.experimental_thread_pool = threads  # pyright: ignore[reportAttributeAccessIssue]
        return aside


class _Health(health.HealthServicer):
    """Says SERVING for the names tensorflow_model_server has, and NOT_SERVING while it stops."""

    def __init__(self) -> None:
        super().__init__()
        self._watchers: set[Callable] = set()
        for name in HEALTH_NAMES:
            self.set(name, health_pb2.HealthCheckResponse.SERVING)

    def Watch(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable | None = None,
    ) -> object:
        if send_response_callback:
            self._watchers.add(send_response_callback)
            context.add_callback(lambda: self._watchers.discard(send_response_callback))
        return super().Watch(request, context, send_response_callback)

    def end(self) -> None:
        """Tells all watchers NOT_SERVING and ends their calls: the drain would wait for them."""
        self.enter_graceful_shutdown()
        for send_response in list(self._watchers):
            send_response(None)


def make_credentials(identity: ServerIdentity) -> grpc.ServerCredentials:
    """Credentials for GrpcServer."""
    return grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)],
        root_certificates=identity.custom_ca or None,
        require_client_auth=identity.client_verify,
    )


def _require_unused(socket_path: Path) -> None:
    """gRPC takes the path over from a server that is alive; from one that was killed it may."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_path))
        except OSError:
            return
    raise OSError(f"cannot open unix:{socket_path}: Address already in use")
