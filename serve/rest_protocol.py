"""What uvicorn's HTTP/1 connection is taught here: limits, half-closed clients, declined offers.

The one place that leans on uvicorn's insides; `test_rest_protocol` names them. uvicorn itself has
a time for idle connections, and no other limit: a client may send half a head and stay, or a head
without end, or take no answer.

Left as it is in uvicorn, and other than in TensorFlow Serving (libevent): what is no HTTP gets a
400 of plain text, or nothing where an answer is still due on its connection; a connection is not
kept for HTTP/1.0.
"""

import asyncio
import dataclasses
import sys
from collections.abc import Sized
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LATE_SECONDS = 1.0  # for the rest of a request that is half received when the server stops


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask of a connection. All of them are far beyond what a real one needs.

    Attributes:
        head_bytes: of the request line and the headers together (one read of the socket more).
        body_bytes: of one body, as sent.
        held_bytes: of the bodies of all connections that are in memory at one time.
        patience_seconds: how long, about, a client may take for `least_bytes` of a request or an
            answer.
        least_bytes: what it has to send, or to take, in that time, or else be done.
        idle_seconds: how long a connection is kept between two requests.
    """

    head_bytes: int = 64 * 1024
    body_bytes: int = 512 * 1024 * 1024
    held_bytes: int = 2 * 1024 * 1024 * 1024
    patience_seconds: float = 60.0
    least_bytes: int = 64 * 1024
    idle_seconds: int = 300


class PipelineFlow(FlowControl):
    """Reads no more while whole requests wait: uvicorn reads on after each answer.

    Args:
        pipeline: the requests that wait.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """One connection. The application finds its transport in the state of a request.

    Args:
        limits: those on heads and on time; bodies are counted by the application.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._received_bytes = 0
        self._head_begin = 0  # in the bytes received: where the head, or a trailer, began at least
        self._data = b""  # that is being parsed
        self._progress = 0
        self._since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = PipelineFlow(transport, self.pipeline)
        self.app_state = {"transport": transport}
        self._look_after()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        self._data = data
        while self._data and not self.transport.is_closing():
            data = self._data
            super().data_received(data)
            if self._data is data:  # else it has been put back, without an offer
                self._data = b""
        if self._received_bytes - self._head_begin > self._limits.head_bytes:
            self.send_400_response("Head too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if "method" not in self.scope:  # else a trailer, after a chunked body
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._head_begin = self._received_bytes

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_begin = self._received_bytes
        self.flow.resume_reading()  # to see it when the client goes away

    def eof_received(self) -> bool:  # type: ignore[override]
        # A client may close its side after its request, and wait for the answer.
        return self._close_after_answers()

    def send_400_response(self, msg: str) -> None:
        # Not in the place of an answer that is due.
        if not self._close_after_answers():
            super().send_400_response(msg)

    # Java's client offers HTTP/2 with its first request, and so does curl --http2: as to any
    # server of HTTP/1, the offer is nothing to TF Serving. The parser stops after such a head, and
    # uvicorn would lose the body. What uvicorn does for WebSockets does for this: the head is
    # given to another parser, without the offer.

    def _should_upgrade(self) -> bool:
        return True

    def handle_websocket_upgrade(self) -> None:
        upgrade = sys.exception()
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        if self.scope["method"] == "CONNECT":
            self.send_400_response("No proxy.")
            return
        version = self.parser.get_http_version()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version.encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self._data = b"\r\n".join([*lines, b"", self._data[upgrade.args[0] :]])

    def _close_after_answers(self) -> bool:
        """Has the connection closed after the last answer that is due, if there is one."""
        if not self._is_working():
            return False
        self.cycle.keep_alive = False
        return True

    def _is_working(self) -> bool:
        """Whether a whole request waits for its answer."""
        return bool(
            self.pipeline
            or (self.cycle and not self.cycle.response_complete and not self.cycle.more_body)
        )

    def _look_after(self) -> None:
        """Ends the connection of a client that keeps us waiting, to send or to take."""
        unsent = self.transport.get_write_buffer_size()
        is_idle = self.timeout_keep_alive_task is not None  # uvicorn's clock
        gained = self._received_bytes - unsent - self._progress
        now = self.loop.time()
        if (not unsent and (is_idle or self._is_working())) or not (
            0 <= gained < self._limits.least_bytes
        ):
            self._progress += gained
            self._since = now
        elif now - self._since >= self._limits.patience_seconds:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(self._limits.patience_seconds / 4, self._look_after)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(LATE_SECONDS, self._end_if_late)

    def _end_if_late(self) -> None:
        if not self.transport.is_closing() and not self._is_working():
            self.transport.abort()
