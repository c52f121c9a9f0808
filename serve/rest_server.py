"""The REST port: an event loop in a thread for the bytes, and threads for the requests.

Not on a web framework: the routes are two patterns, and all that matters at this port is below
what a framework shows (limits on heads, slow clients, libevent's pages for what is no HTTP).
"""

import asyncio
import collections
import contextlib
import email.utils
import logging
import queue
import socket
import threading
from typing import Any

from serve.http_connection import Answer, Connection, Limits, Request
from serve.metrics import Metrics
from serve.model_store import ModelStore
from serve.rest import RestApi, expected_size

DRAIN_SECONDS = 30.0
LATE_SECONDS = 1.0  # for the rest of a request that is half received when the server stops
BACKLOG = 1024
# A document takes ten times its size as Python objects: few of those over this size are read at
# once, by threads of their own, so that the others need not wait behind them.
LARGE_BYTES = 8 * 1024 * 1024
LARGE_THREADS = 2

GONE = Answer(499, b"")  # nobody gets it

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
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self.date = ""
        self.held_bytes = 0
        self.is_stopping = False
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self._api = RestApi(store, metrics, timeout=timeout, cors=cors, metrics_path=metrics_path)
        self._socket = _listen(host, port)
        self.address = _address(self._socket)
        self._should_stop = asyncio.Event()
        self._is_empty = asyncio.Event()
        # Finished requests on their way back to the event loop, which is woken once for many.
        self._finished: collections.deque[tuple[Connection, Answer]] = collections.deque()
        self._is_woken = False
        self._small: queue.SimpleQueue[tuple[Connection, Request] | None] = queue.SimpleQueue()
        self._large: queue.SimpleQueue[tuple[Connection, Request] | None] = queue.SimpleQueue()
        self._workers = [
            threading.Thread(target=self._work, args=(tasks,), name=name, daemon=True)
            for tasks, name in [
                *((self._small, f"rest_{number}") for number in range(max(threads, 1))),
                *((self._large, f"rest_large_{number}") for number in range(LARGE_THREADS)),
            ]
        ]
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)

    def start(self) -> None:
        """Begins to answer. Connections that come before the thread is ready are queued."""
        self._socket.listen(BACKLOG)
        for thread in (*self._workers, self._thread):
            thread.start()

    def stop(self) -> None:
        """Takes no new request, and waits for those that run (30 seconds at most)."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self.loop.call_soon_threadsafe(self._should_stop.set)
            self._thread.join()
            for tasks in (self._small, self._large):
                tasks.put(None)
        elif not self.loop.is_closed():
            self.loop.close()
        self._socket.close()

    # --- the event loop --------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(_log_trouble)
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.loop.close()

    async def _serve(self) -> None:
        self._look_after_connections()
        server = await self.loop.create_server(
            lambda: Connection(self), sock=self._socket, backlog=BACKLOG
        )
        await self._should_stop.wait()
        server.close()
        self.is_stopping = True
        for connection in list(self.connections):
            connection.shut_down(LATE_SECONDS)
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_empty.wait(), DRAIN_SECONDS)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # the transports close in the next round

    def _look_after_connections(self) -> None:
        """One timer for all: to set and cancel one a request would cost more than the request."""
        self.date = email.utils.formatdate(usegmt=True)
        now = self.loop.time()
        for connection in list(self.connections):
            connection.look_after(now)
        pause = min(0.5, self.limits.patience_seconds / 4, self.limits.idle_seconds / 4)
        self.loop.call_later(pause, self._look_after_connections)

    def handle(self, connection: Connection, request: Request) -> None:
        """Puts a request in the queue of the threads."""
        tasks = self._large if expected_size(request) > LARGE_BYTES else self._small
        tasks.put((connection, request))

    def lost(self, connection: Connection) -> None:
        """Ends the wait of `stop` with the last connection."""
        if self.is_stopping and not self.connections:
            self._is_empty.set()

    def _send_finished(self) -> None:
        # First the flag: what is appended from here on wakes the loop once more.
        self._is_woken = False
        while self._finished:
            connection, answer = self._finished.popleft()
            connection.answer(answer)

    # --- the other threads -----------------------------------------------------------------

    def _work(self, tasks: queue.SimpleQueue) -> None:
        while (task := tasks.get()) is not None:
            connection, request = task
            answer = GONE if connection.is_lost else self._api.answer(request)
            self._finished.append((connection, answer))
            del task, connection, request, answer  # else they live on until the next one comes
            if not self._is_woken:
                self._is_woken = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: too late
                    self.loop.call_soon_threadsafe(self._send_finished)
        tasks.put(None)  # for the next thread


def _log_trouble(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line, where asyncio would write a traceback: it is out of file descriptors, mostly."""
    log.warning("%s: %s", context.get("message"), context.get("exception"))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
