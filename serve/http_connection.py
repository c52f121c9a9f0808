"""One connection of the REST port: HTTP/1 bytes in, requests out, answers back in their order.

A connection belongs to the event loop: nothing in here may take long, and nothing in here is
called from another thread. What may last (JSON, the model) is the server's to hand to threads.

The parser is llhttp, that of Node.js. What TF Serving's library (libevent) sets no bounds to is
bounded here: the size of a head and of a body, and the time that a slow client gets.
"""

import asyncio
import collections
import dataclasses
import enum
import http
from typing import Protocol

import httptools

KEPT_HEADERS = frozenset(
    (b"content-encoding", b"content-length", b"expect", b"origin", b"transfer-encoding")
)

# libevent's page for what never reaches TF Serving's handlers
PAGE = (
    "<HTML><HEAD>\n<TITLE>{status} {phrase}</TITLE>\n</HEAD><BODY>\n<H1>{phrase}</H1>\n"
    "</BODY></HTML>\n"
)
PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
PHRASES |= {413: "Request Entity Too Large", 499: "Client Closed Request", 504: "Gateway Time-out"}
STATUS_LINES = {
    status: f"HTTP/1.1 {status} {phrase}\r\n".encode() for status, phrase in PHRASES.items()
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

METHODS = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"))

LINGER_SECONDS = 2.0
SMALL_ANSWER_BYTES = 64 * 1024  # up to this, one copy is cheaper than a second system call


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask of a connection. All of them are far beyond what a real one needs.

    Attributes:
        head_bytes: of the request line and the headers together.
        body_bytes: of one body, as sent.
        held_bytes: of the bodies of all connections that are in memory at one time.
        patience_seconds: how long a client may take for `least_bytes` of a request or an answer.
        least_bytes: what it has to send, or to take, in that time, or else be done.
        idle_seconds: how long a connection is kept between two requests.
    """

    head_bytes: int = 64 * 1024
    body_bytes: int = 512 * 1024 * 1024
    held_bytes: int = 2 * 1024 * 1024 * 1024
    patience_seconds: float = 60.0
    least_bytes: int = 64 * 1024
    idle_seconds: float = 300.0


@dataclasses.dataclass(slots=True)
class Request:
    """A request, its body complete.

    Attributes:
        method: in capitals.
        target: path and query, as they were sent.
        headers: the few that are looked at, by their name in small letters.
        body: as it was sent.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes | bytearray = b""
    keep_alive: bool = True
    is_http_1_0: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back.

    Attributes:
        headers: besides the date, the length and the content type.
        closes: whether the connection ends with it.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    closes: bool = False


def error_page(status: int) -> Answer:
    """The answer to what is no request to the API at all."""
    page = PAGE.format(status=status, phrase=PHRASES[status])
    return Answer(status, page.encode(), "text/html", closes=True)


class State(enum.Enum):
    """What a connection waits for: each has its own clock."""

    IDLE = enum.auto()  # the next request
    RECEIVING = enum.auto()  # the rest of a request; also the first byte of the first one
    WORKING = enum.auto()  # an answer of ours
    LINGERING = enum.auto()  # the end of what a refused client is still sending


class Owner(Protocol):
    """What a connection needs of the server."""

    limits: Limits
    loop: asyncio.AbstractEventLoop
    connections: "set[Connection]"
    date: str
    held_bytes: int
    is_stopping: bool

    def handle(self, connection: "Connection", request: Request) -> None:
        """Has the request answered some time, by `connection.answer` in the event loop."""
        ...

    def lost(self, connection: "Connection") -> None:
        """The connection is gone."""
        ...


class Connection(asyncio.Protocol):
    """Args:
    owner: of all connections.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._limits = owner.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._state = State.RECEIVING
        self._since = owner.loop.time()
        self._moved_bytes = 0  # since then, of what is waited for
        self._unsent_bytes = 0  # of answers, when last looked at
        self._waiting: collections.deque[Request | Answer] = collections.deque()
        self._current: Request | None = None  # being answered
        self._is_deaf = False  # what comes is thrown away
        self._has_ended = False  # the client sends no more
        self._is_paused = False
        self._is_full = False
        # of the request being received
        self._has_begun = False
        self._is_in_head = True
        self._head_bytes = 0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._method = ""
        self._body = bytearray()
        self._held_bytes = 0  # of this connection, received or being answered

    # --- asyncio's side --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._owner.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_deaf = True
        self._transport = None
        self._waiting.clear()
        self._body = bytearray()
        # What is being answered is in memory until it is.
        self._release(self._held_bytes - (len(self._current.body) if self._current else 0))
        self._owner.connections.discard(self)
        self._owner.lost(self)

    def eof_received(self) -> bool:
        # A client may close its side after its last request and still wait for the answer.
        self._has_ended = True
        return self._state is State.WORKING

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._moved_bytes += len(data)
        if self._is_in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_with_http_1(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(400)
        if self._is_in_head and self._head_bytes > self._limits.head_bytes:
            self._refuse(400)
        if self._waiting or self._is_deaf:
            self._pause()

    def _stay_with_http_1(self, rest: bytes) -> None:
        """Takes a request that offers another protocol as if it did not.

        Java's client offers HTTP/2 with its first request. The parser stops at the end of such
        a head, so that another one gets it again, without the offer.
        """
        if self._is_deaf:
            return
        if not self._parser.should_keep_alive():
            self._headers["connection"] = "close"
        lines = [f"{self._method} {self._url.decode('latin-1')} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received("\r\n".join([*lines, "\r\n"]).encode("latin-1") + rest)

    def pause_writing(self) -> None:
        # The client takes no answers: it gets no new ones.
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._go_on()

    # --- the parser's side -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._has_begun = True
        self._url = b""
        self._headers = {}
        if self._state is State.IDLE:
            self._enter(State.RECEIVING)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those after a chunked body are not looked at, and not kept.
        name = name.lower()
        if self._is_in_head and name in KEPT_HEADERS:
            self._headers.setdefault(name.decode(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        self._method = self._parser.get_method().decode()
        if self._parser.should_upgrade() and self._method != "CONNECT":
            return  # it comes again
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            self._refuse(400)
            return
        if self._method not in METHODS:
            self._refuse(501)
            return
        length = self._headers.get("content-length", "0")
        if int(length) > self._limits.body_bytes:  # the parser has checked that it is a number
            self._refuse(413)
            return
        expected = self._headers.get("expect")
        if expected is None or self._parser.get_http_version() == "1.0":
            return
        if expected.lower() != "100-continue":
            self._refuse(417)
        elif self._state is State.RECEIVING and self._transport:
            self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._is_deaf:
            return
        self._body += body
        self._hold(len(body))
        if len(self._body) > self._limits.body_bytes:
            self._refuse(413)
        elif self._owner.held_bytes > self._limits.held_bytes:
            self._refuse(429)

    def on_message_complete(self) -> None:
        self._has_begun = False
        self._is_in_head = True
        if self._is_deaf or self._parser.should_upgrade():
            return
        request = Request(
            self._method,
            self._url.decode("latin-1"),
            self._headers,
            self._body,
            keep_alive=self._parser.should_keep_alive(),
            is_http_1_0=self._parser.get_http_version() == "1.0",
        )
        self._body = bytearray()
        self._waiting.append(request)
        self._go_on()

    # --- requests and answers ---------------------------------------------------------------

    def _go_on(self) -> None:
        """Starts on the next request that is complete, if none is being answered."""
        if self._current or not self._waiting or self._is_full:
            return
        item = self._waiting.popleft()
        if isinstance(item, Answer):
            self._send(item, is_head=False, keep_alive=False, is_http_1_0=False)
            self._linger()
            return
        self._current = item
        self._enter(State.WORKING)
        self._owner.handle(self, item)

    def answer(self, answer: Answer) -> None:
        """Sends the answer to the request that was handed over last."""
        request, self._current = self._current, None
        if request is None:
            return
        self._release(len(request.body))
        if self._transport is None:
            return
        keep_alive = request.keep_alive and not (
            answer.closes or self._owner.is_stopping or (self._has_ended and not self._waiting)
        )
        self._send(
            answer,
            is_head=request.method == "HEAD",
            keep_alive=keep_alive,
            is_http_1_0=request.is_http_1_0,
        )
        if not keep_alive:
            self._is_deaf = True
            self._waiting.clear()
            self._transport.close()
            self._enter(State.LINGERING)
            return
        self._enter(State.RECEIVING if self._has_begun or self._waiting else State.IDLE)
        if self._waiting:
            self._go_on()
        else:
            self._resume()

    def _send(self, answer: Answer, *, is_head: bool, keep_alive: bool, is_http_1_0: bool) -> None:
        if self._transport is None:
            return
        lines = f"Content-Type: {answer.content_type}\r\nDate: {self._owner.date}\r\n"
        for name, value in answer.headers:
            lines += f"{name}: {value}\r\n"
        if not is_head:
            lines += f"Content-Length: {len(answer.body)}\r\n"
        if not keep_alive:
            lines += "Connection: close\r\n"
        elif is_http_1_0:
            lines += "Connection: keep-alive\r\n"
        head = STATUS_LINES[answer.status] + lines.encode("latin-1") + b"\r\n"
        if is_head:
            self._transport.write(head)
        elif len(answer.body) <= SMALL_ANSWER_BYTES:
            self._transport.write(head + answer.body)
        else:
            self._transport.writelines((head, answer.body))

    def _refuse(self, status: int) -> None:
        """Answers with a page, after what is being answered, and hears no more."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self._body = bytearray()
        self._waiting.append(error_page(status))
        self._go_on()

    def _linger(self) -> None:
        """Ends our side and waits a little for the client's.

        A socket that is closed with bytes unread resets the connection, and the client may
        never see the answer.
        """
        if self._transport is None:
            return
        if self._has_ended:
            self._transport.close()
        else:
            self._transport.write_eof()
            self._resume()
        self._release(self._held_bytes)
        self._enter(State.LINGERING)

    # --- clocks and counts ------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        self._state = state
        self._since = self._owner.loop.time()
        self._moved_bytes = 0

    def look_after(self, now: float) -> None:
        """Ends the connection if its time is over; the server calls this every now and then."""
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if unsent and self._state is not State.WORKING:
            self._look_after_reader(unsent, now)
            return
        self._unsent_bytes = 0
        passed = now - self._since
        if self._state is State.IDLE:
            if passed >= self._limits.idle_seconds:
                self._transport.close()
        elif self._state is State.LINGERING:
            if passed >= LINGER_SECONDS:
                self._transport.abort()
        elif self._state is State.RECEIVING and passed >= self._limits.patience_seconds:
            if self._moved_bytes < self._limits.least_bytes:
                self._transport.abort()
            else:
                self._enter(State.RECEIVING)

    def _look_after_reader(self, unsent: int, now: float) -> None:
        """An answer that the client does not take."""
        if not self._unsent_bytes or self._unsent_bytes - unsent >= self._limits.least_bytes:
            self._unsent_bytes = unsent
            self._since = now
        elif now - self._since >= self._limits.patience_seconds:
            assert self._transport
            self._transport.abort()

    def shut_down(self, patience_seconds: float) -> None:
        """Takes no new request; one that is under way is received, for a while, and answered."""
        if self._transport is None:
            return
        if self._state is State.IDLE or (self._state is State.RECEIVING and not self._moved_bytes):
            self._transport.close()
        elif self._state is State.RECEIVING:
            self._limits = dataclasses.replace(
                self._limits, patience_seconds=patience_seconds, least_bytes=2**63
            )
            self._enter(State.RECEIVING)

    @property
    def is_lost(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._transport is None

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport:
            self._transport.abort()

    def _hold(self, count: int) -> None:
        self._held_bytes += count
        self._owner.held_bytes += count

    def _release(self, count: int) -> None:
        self._held_bytes -= count
        self._owner.held_bytes -= count

    def _pause(self) -> None:
        if self._transport and not self._is_paused and self._state is not State.LINGERING:
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._transport and self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
