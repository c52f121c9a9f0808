"""The REST port: uvicorn in a thread for the bytes, and threads for the requests.

The application is plain ASGI with starlette's Request and Response, not on starlette's router: the
routes are two patterns of TensorFlow Serving (`rest`), held against the path as it was sent.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.errors import Code
from serve.metrics import Metrics
from serve.model_store import ModelStore
from serve.rest import RestApi, error_answer, error_page, inflated_size
from serve.rest_protocol import BoundedProtocol, Limits

METHODS = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"))  # libevent's

DRAIN_SECONDS = 30
LINGER_SECONDS = 2.0
BACKLOG = 1024
# A document takes ten times its size as Python objects: few of those over this size are read at
# once, by threads of their own, so that the others need not wait behind them.
LARGE_BYTES = 8 * 1024 * 1024
LARGE_THREADS = 2

log = logging.getLogger(__name__)


class RestServer:
    """Answers at a port until it is stopped.

    Args:
        store: the models to serve.
        metrics: counts the requests.
        port: 0 takes a free one.
        host: address to listen on; "::" is all of IPv6 and IPv4.
        threads: how many requests are worked on at once.
        timeout: seconds for the model to answer a request; 0 or less is no limit.
        cors: whether answers may be read by pages from elsewhere.
        metrics_path: of Prometheus' page; None is no page.
        limits: on clients.

    Raises:
        OSError: the port is in use.
    """

    def __init__(
        self,
        store: ModelStore,
        metrics: Metrics,
        port: int,
        *,
        host: str = "127.0.0.1",
        threads: int = 8,
        timeout: float = 30.0,
        cors: bool = False,
        metrics_path: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._api = RestApi(store, metrics, timeout=timeout, cors=cors, metrics_path=metrics_path)
        self._socket = _listen(host, port)
        self.address = _address(self._socket)
        self.held_bytes = 0
        self._quiet_until = 0.0
        self._small = ThreadPoolExecutor(max(threads, 1), "rest")
        self._large = ThreadPoolExecutor(LARGE_THREADS, "rest_large")
        self._server = uvicorn.Server(_configure(self._application, self._limits))
        self.connections = self._server.server_state.connections
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)

    def start(self) -> None:
        """Begins to answer. Connections that come before the thread is ready are queued."""
        self._thread.start()

    def stop(self) -> None:
        """Takes no new request, and waits for those that run (30 seconds at most)."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)
        self._socket.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._log_trouble)
        await self._server.serve(sockets=[self._socket])
        if tasks := self._server.server_state.tasks:  # cancelled: they tell their clients
            await asyncio.wait(tasks, timeout=LINGER_SECONDS)
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the transports close in the next round

    def _log_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A line a second, where asyncio writes a thousand tracebacks: no file descriptors left."""
        if not isinstance(context.get("exception"), OSError):
            loop.default_exception_handler(context)
        elif loop.time() > self._quiet_until:
            self._quiet_until = loop.time() + 1
            log.warning("%s: %s", context.get("message"), context["exception"])

    # --- a request -------------------------------------------------------------------------

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        except Refused as refused:
            await _refuse(refused.answer, request, send)
            return
        except asyncio.CancelledError:  # by uvicorn, after DRAIN_SECONDS
            answer = error_page(503)
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        _check_head(request, self._limits)
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                self.held_bytes += len(chunk)
                if size > self._limits.body_bytes:
                    raise Refused(error_page(413))
                if self.held_bytes > self._limits.held_bytes:
                    message = "The bodies of all requests take too much memory: try again later"
                    raise Refused(error_answer(Code.RESOURCE_EXHAUSTED, message))
                chunks.append(chunk)
            body = b"".join(chunks)
            chunks.clear()
            is_large = inflated_size(request, body) > LARGE_BYTES
            pool = self._large if is_large else self._small
            return await asyncio.get_running_loop().run_in_executor(pool, self._work, request, body)
        finally:
            self.held_bytes -= size

    def _work(self, request: Request, body: bytes) -> Response:
        """In a thread, perhaps after a while: the client may be gone."""
        if request.state.transport.is_closing():
            return Response(status_code=499)  # nobody gets it
        return self._api.answer(request, body)


class Refused(Exception):
    """The answer to a request whose body is not going to be read.

    Args:
        answer: that is sent instead.
    """

    def __init__(self, answer: Response) -> None:
        super().__init__(answer)
        self.answer = answer


def _check_head(request: Request, limits: Limits) -> None:
    """Refuses, before any of the body has come, what libevent would not hand to TF Serving."""
    version = request.scope["http_version"]
    if version not in ("1.0", "1.1"):
        raise Refused(error_page(400))
    if request.method not in METHODS:
        raise Refused(error_page(501))
    if int(request.headers.get("content-length", "0")) > limits.body_bytes:
        raise Refused(error_page(413))
    if version == "1.1" and request.headers.get("expect", "100-continue").lower() != "100-continue":
        raise Refused(error_page(417))


async def _refuse(answer: Response, request: Request, send: Send) -> None:
    """Sends the answer, and waits a little for the end of what the client is still sending.

    A socket that is closed with bytes unread resets the connection, and the client may never see
    the answer.
    """
    answer.headers["Connection"] = "close"
    start = {"status": answer.status_code, "headers": answer.raw_headers}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(LINGER_SECONDS):
            async for _ in request.stream():
                pass
    await send({"type": "http.response.body"})


def _configure(application: Any, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        interface="asgi3",
        http=functools.partial(BoundedProtocol, limits=limits),  # type: ignore[arg-type]
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # no line a bad request: clients could fill the log
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server(
        (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::"
    )
    # Connections inherit it. asyncio sets it only where a socket names its protocol, and without
    # it the second half of an answer (uvicorn sends two) waits 40 ms for a sign of the client.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
