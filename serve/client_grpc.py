"""The client of gRPC.

The stubs bring TensorFlow with them, so what needs them is imported when it is first used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.client_calls import AsyncioWay, BlockingWay, Retries
from serve.client_grpc_wire import GrpcWire
from serve.client_http import Tls
from serve.client_model import ModelCalls
from serve.client_public import AsyncModelClient, ModelClient

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # a model server is asked directly
    ("grpc.enable_retries", 0),  # `send_repeatedly` does it, alike for REST
    # A repeat finds gRPC ready to connect: by default it would wait a second, then ever longer.
    # The smallest back-off stays what it is, 20 s: it is also the time that connecting may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcClient(ModelClient):
    """Asks one model by gRPC, blocking; threads may share it.

    One channel is kept open between calls; `close` or a `with` block ends it.

    Args:
        address: "HOST:PORT".
        model: name of the model.
        timeout: seconds that a call may take with all its requests and repeats, if the call
            itself names no other; `math.inf` is no limit. The server is told what is left of it.
        retries: how often and when a request that was UNAVAILABLE is sent again.
        batch_size: rows in one request; longer calls are cut. None sends all in one, but for
            `predict_rows`, which then sends each row by itself.
        max_in_flight: how many requests of one call may be under way at once.
        tls: encrypts the connection; `Tls()` for a server whose certificate gRPC trusts.

    Example:
        >>> with GrpcClient("127.0.0.1:8500", "news") as client:
        ...     client.predict({"text": ["good news", "bad news"]})["label"]
        array(['world', 'business'], dtype=object)
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
        batch_size: int | None = 32,
        max_in_flight: int = 4,
        tls: Tls | None = None,
    ) -> None:
        wire = GrpcWire(BlockingGrpc(address, tls), address, model)
        way = BlockingWay()
        super().__init__(ModelCalls(wire, way, timeout, retries, batch_size, max_in_flight))


class AsyncGrpcClient(AsyncModelClient):
    """GrpcClient for asyncio: the same arguments; `async with`, and `await` before the calls."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
        batch_size: int | None = 32,
        max_in_flight: int = 4,
        tls: Tls | None = None,
    ) -> None:
        wire = GrpcWire(AsyncGrpc(address, tls), address, model)
        way = AsyncioWay()
        super().__init__(ModelCalls(wire, way, timeout, retries, batch_size, max_in_flight))


class BlockingGrpc:
    """A channel whose calls block."""

    def __init__(self, address: str, tls: Tls | None) -> None:
        import grpc

        self._methods: dict[str, Any] = {}
        credentials, options = _channel_arguments(tls)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)

    async def send(self, method: str, request: "Message", timeout: float | None) -> Any:
        if method not in self._methods:
            self._methods[method] = _method(self._channel, method)
        return self._methods[method](request, timeout=timeout)

    async def close(self) -> None:
        self._channel.close()


class AsyncGrpc:
    """A channel for the event loop in which the first call is made."""

    def __init__(self, address: str, tls: Tls | None) -> None:
        self._address = address
        self._arguments = _channel_arguments(tls)
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}

    async def send(self, method: str, request: "Message", timeout: float | None) -> Any:
        if self._channel is None:
            self._channel = self._connect()
        if method not in self._methods:
            self._methods[method] = _method(self._channel, method)
        return await self._methods[method](request, timeout=timeout)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    def _connect(self) -> "grpc.aio.Channel":
        import grpc.aio

        credentials, options = self._arguments
        if credentials is None:
            return grpc.aio.insecure_channel(self._address, options)
        return grpc.aio.secure_channel(self._address, credentials, options)


def _channel_arguments(tls: Tls | None) -> tuple["grpc.ChannelCredentials | None", list[Any]]:
    import grpc

    if tls is None:
        return None, CHANNEL_OPTIONS
    root, key, certificate = (
        Path(path).read_bytes() if path is not None else None
        for path in (tls.root_certificate, tls.key, tls.certificate)
    )
    options = list(CHANNEL_OPTIONS)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.ssl_channel_credentials(root, key, certificate), options


def _method(channel: "grpc.Channel | grpc.aio.Channel", name: str) -> Any:
    """The callable of an RPC, from the stub of its service."""
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    if name == "GetModelStatus":
        return model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus
    return getattr(prediction_service_pb2_grpc.PredictionServiceStub(channel), name)
