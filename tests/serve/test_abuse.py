"""What no client should do, and some do: raw bytes against a real server.

After each test the server answers another client as if nothing had been, and it has logged no
error. The limits are short and small here, so that their end comes within the test.
"""

import gzip
import json
import logging
import os
import resource
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from rest_stand_in import ANSWER, BODY, Client, OneModelStore, exchange, post, together

from serve.metrics import Metrics
from serve.rest_protocol import Limits
from serve.rest_server import LARGE_THREADS, RestServer

LIMITS = Limits(
    head_bytes=16 * 1024,
    body_bytes=4 * 1024 * 1024,
    held_bytes=16 * 1024 * 1024,
    patience_seconds=0.4,
    least_bytes=1024,
    idle_seconds=0.8,
)
STATUS = b"GET /v1/models/half HTTP/1.1\r\n\r\n"


@pytest.fixture(scope="module")
def store() -> OneModelStore:
    return OneModelStore()


def serve(store: OneModelStore, limits: Limits) -> Iterator[RestServer]:
    server = RestServer(store, Metrics(), 0, threads=4, limits=limits)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def server(store: OneModelStore) -> Iterator[RestServer]:
    yield from serve(store, LIMITS)


@pytest.fixture(scope="module")
def patient_server(store: OneModelStore) -> Iterator[RestServer]:
    """With the limits of every day."""
    yield from serve(store, Limits())


@pytest.fixture(autouse=True)
def stays_well(
    server: RestServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> Iterator[None]:
    yield
    assert exchange(server.address, post()) == (200, ANSWER)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "Traceback" not in "".join(capfd.readouterr())


def error_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    status, body = answer
    return status, json.loads(body)["error"]


# --- what is no HTTP -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n\r\n",  # HTTP/0.9
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"\x00" * 100,
        b"GET /v1/models/half HTTP/9.9\r\n\r\n",
        b"GET /v1/models/half HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v1/models/half HTTP/1.1\r\nName : value\r\n\r\n",
        b"GET /v1/models/half HTTP/1.1\r\nName: a\x00b\r\n\r\n",
        post(headers="Transfer-Encoding: chunked\r\n"),  # two lengths: smuggling
        post(headers="Content-Length: 3\r\n"),
        post(headers="Transfer-Encoding: xchunked\r\n"),
        post().replace(b"Content-Length: ", b"Content-Length: +"),
        post().replace(b"Content-Length: ", b"Content-Length: -"),
        post().replace(b"Content-Length: ", b"Content-Length: 0x"),
        post().replace(b"Content-Length: ", b"Content-Length: 9999999999999999999999"),
        post().replace(b"Content-Length: 20", b"Transfer-Encoding: chunked, identity"),
        post().replace(b"Content-Length: 20", b"Transfer-Encoding: chunked"),  # no chunk
        b"CONNECT half:80 HTTP/1.1\r\nHost: half\r\n\r\n",
        b"CONNECT half:80 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET http:// HTTP/1.1\r\n\r\n",
        b"GET /v1/models/half\xff HTTP/1.1\r\n\r\n",
        b"GET /v1/models/half%zz HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request(server: RestServer, data: bytes):
    client = Client(server.address)
    client.send(data)
    status, _ = client.answer()
    assert status in (400, 0)
    assert client.is_closed()


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "LINK"])
def test_methods_that_tf_serving_does_not_know(server: RestServer, method: str):
    client = Client(server.address)
    client.send(f"{method} /v1/models/half HTTP/1.1\r\nHost: half\r\n\r\n".encode())
    status, page = client.answer()
    assert status == 501  # as libevent
    assert b"<TITLE>501 Not Implemented</TITLE>" in page
    assert client.is_closed()


UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


def test_an_offer_of_http_2_is_not_taken_up(server: RestServer):
    """What curl --http2 and Java's client send: answered in HTTP/1, and the connection is kept."""
    client = Client(server.address)
    client.send(post(b"", headers=UPGRADE, length=len(BODY)))
    client.send(BODY + post(headers=UPGRADE) + STATUS)
    assert client.answer() == (200, ANSWER)
    assert client.answer() == (200, ANSWER)
    assert client.answer()[0] == 200
    chunked = post(headers=UPGRADE).replace(b"Content-Length: 20", b"Transfer-Encoding: chunked")
    client.send(chunked[: -len(BODY)] + b"14\r\n" + BODY + b"\r\n0\r\n\r\n")
    assert client.answer() == (200, ANSWER)
    client.send(post(headers=UPGRADE.replace("Upgrade,", "Upgrade, close,")))
    assert client.answer() == (200, ANSWER)
    assert client.is_closed()


# --- names and paths -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "decoded"),
    [
        ("a%2Fb", "a/b"),
        ("..", ".."),
        ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", "../../etc/passwd"),
        ("a%00b", "a\0b"),
        ("%E6%A8%A1%E5%9E%8B", "模型"),
        ("half%20", "half "),
        ("half?verbose=1", "half?verbose=1"),
        ("half%22%0d%0aX-Header:%201", None),
        ("x" * 15_000, "x" * 15_000),
    ],
)
def test_odd_names(server: RestServer, name: str, decoded: str | None):
    answer = exchange(server.address, f"GET /v1/models/{name} HTTP/1.1\r\n\r\n".encode())
    if decoded is None:
        assert answer[0] == 400
    else:
        assert error_of(answer) == (404, f"Could not find any versions of model {decoded}")


def test_a_name_that_is_no_text(server: RestServer):
    """The bytes come back as they were sent."""
    status, body = exchange(server.address, b"GET /v1/models/a%ffb HTTP/1.1\r\n\r\n")
    assert status == 404
    assert b"model a\xffb" in body


@pytest.mark.parametrize("path", ["/v1/models/a/b", "/v1/models/half/../half", "/v1/models//half"])
def test_slashes_in_names(server: RestServer, path: str):
    answer = exchange(server.address, f"GET {path} HTTP/1.1\r\n\r\n".encode())
    assert error_of(answer) == (400, f"Malformed request: GET {path}")


def test_heads_that_are_too_long(server: RestServer):
    for data in (
        b"GET /" + b"x" * 100_000,
        STATUS[:-2] + b"Name: " + b"x" * 100_000,
        STATUS[:-2] + b"Name: x\r\n" * 20_000,
    ):
        client = Client(server.address)
        client.send(data)
        assert client.answer()[0] in (400, 0)
        assert client.is_closed()


def test_a_head_without_end_is_not_held(server: RestServer):
    tracemalloc.start()
    client = Client(server.address)
    client.send(STATUS[:-2])
    for _ in range(1000):
        client.send(b"Name: " + b"x" * 10_000 + b"\r\n")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert client.answer()[0] in (400, 0)
    assert peak < 4 * 1024 * 1024


# --- bodies --------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused_before_it_comes(server: RestServer):
    client = Client(server.address)
    client.send(post(b"", length=LIMITS.body_bytes + 1))
    status, page = client.answer()
    assert status == 413
    assert b"413 Request Entity Too Large" in page
    assert client.is_closed()


def test_a_refused_client_that_goes_on_sending_sees_the_answer(server: RestServer):
    client = Client(server.address)
    client.socket.sendall(post(b"x" * 3_000_000, length=LIMITS.body_bytes + 1))
    assert client.answer()[0] == 413
    client.socket.settimeout(0.1)
    with pytest.raises(TimeoutError):  # it is waited for: no reset
        client.socket.recv(1)
    client.socket.settimeout(30)
    assert client.is_closed()


def test_chunks_over_the_limit_are_counted(server: RestServer):
    client = Client(server.address)
    client.send(post().replace(b"Content-Length: 20", b"Transfer-Encoding: chunked")[: -len(BODY)])
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for _ in range(LIMITS.body_bytes // 0x10000 + 1):
        client.send(chunk)
    assert client.answer()[0] == 413


def test_bodies_that_are_held_together_are_bounded(server: RestServer, wait_until):
    """Each is allowed, and all of them are not: the last ones are told to come again."""
    body = b" " * (LIMITS.body_bytes - 100)
    clients = [Client(server.address) for _ in range(6)]
    for client in clients:
        threading.Thread(target=client.send, args=(post(body, length=len(body) + 1),)).start()
    statuses = [client.answer()[0] for client in clients]  # the rest are closed: too slow
    assert set(statuses) == {429, 0}
    wait_until(lambda: server.held_bytes == 0)


def test_chunked_bodies(server: RestServer):
    head = post().replace(b"Content-Length: 20", b"Transfer-Encoding: chunked")[: -len(BODY)]
    single_bytes = b"".join(b"1;extension=%d\r\n%c\r\n" % (byte, byte) for byte in BODY)
    for chunks in (
        b"14\r\n" + BODY + b"\r\n0\r\n\r\n",
        single_bytes + b"0\r\nTrailer: 1\r\nContent-Encoding: gzip\r\n\r\n",
    ):
        assert exchange(server.address, head + chunks) == (200, ANSWER)
    client = Client(server.address)
    client.send(head + b"zz\r\n" + BODY)
    assert client.answer()[0] == 400


def test_trailers_are_not_held(server: RestServer):
    head = post().replace(b"Content-Length: 20", b"Transfer-Encoding: chunked")[: -len(BODY)]
    client = Client(server.address)
    client.send(head + b"14\r\n" + BODY + b"\r\n0\r\n")
    tracemalloc.start()
    for number in range(1000):
        client.send(b"Trailer-%d: " % number + b"x" * 10_000 + b"\r\n")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 1024 * 1024
    client.send(b"\r\n")
    assert client.answer()[0] in (200, 400, 0)


def test_a_length_that_is_a_lie(server: RestServer):
    """Too long: the rest never comes. Too short: what is over is no request."""
    client = Client(server.address)
    client.send(post(length=len(BODY) + 1))
    assert client.answer() == (0, b"")
    client = Client(server.address)
    client.send(post(length=len(BODY) - 1) + b"x" * 10)
    assert "JSON Parse error" in error_of(client.answer())[1]
    assert client.is_closed()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 100_000, 400),
        (b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"instances": ' + b'{"x": ' * 100_000, 400),
        (b'{"instances": [1' + b"0" * 100_000 + b"]}", 400),
        (b'{"instances": [1e' + b"9" * 100_000 + b"]}", None),
        (b'{"instances": [-1e999999999]}', None),
        (b'{"instances": [0.' + b"0" * 100_000 + b"1]}", 200),
        (b'{"instances": ["\xff\xfe\xc0"]}', 400),
        (b'{"instances": ["\\ud800"]}', 400),
        (b"\xff\xfe{\x00}\x00", 400),
        (b'{"instances": [1.0]}' + b"\x00" * 1000, 200),
        (b"\x00" * 1_000_000, 400),
        (b'"' + b"\\" * 1_000_000, 400),
        (b'{"' + b"x" * 1_000_000 + b'": 1}', 400),
        (b"{" + b'"a": 1, ' * 100_000 + b'"instances": [1]}', 200),
    ],
)
def test_odd_documents(server: RestServer, body: bytes, status: int | None):
    """None: whether a number is too large is a matter of the JSON, not of the port."""
    answer = exchange(server.address, post(body))
    assert answer[0] == status or (status is None and answer[0] in (200, 400))
    if answer[0] == 400:
        message = json.loads(answer[1].decode("utf-8", "replace"))["error"]
        assert len(message) < 2000


# --- gzip ----------------------------------------------------------------------------------

EMPTY = (400, "JSON Parse error: The document is empty")


def post_gzip(body: bytes) -> bytes:
    return post(body, headers="Content-Encoding: gzip\r\n")


def test_gzip(server: RestServer):
    packed = gzip.compress(BODY)
    assert exchange(server.address, post_gzip(packed)) == (200, ANSWER)
    for broken in (
        b"no gzip",
        packed[:-1],
        packed[:-9],
        packed + b"x",
        packed + packed,
        packed[:-8] + bytes(4) + packed[-4:],  # the check sum
        b"\x1f\x8b" + bytes(100),
        b"x",
    ):
        assert error_of(exchange(server.address, post_gzip(broken))) == EMPTY


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """100 MB of spaces, which are allowed: 100 kB."""
    return gzip.compress(b" " * (100 * 1024 * 1024), compresslevel=6)


def resident() -> int:
    return psutil.Process(os.getpid()).memory_info().rss


def test_many_bombs_at_once(server: RestServer, bomb: bytes):
    """The largest that are allowed, those over it, and those that lie about their size."""
    size = 100 * 1024 * 1024
    over = bomb[:-4] + (size + 1).to_bytes(4, "little")
    lie = bomb[:-4] + (1000).to_bytes(4, "little")
    bombs = [bomb] * 4 + [over] * 23 + [lie] * 23
    before = resident()
    highest = [before]
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(0.005):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    waits = []

    def send(number: int) -> tuple[int, bytes]:
        if number == len(bombs):
            time.sleep(0.05)
            began = time.monotonic()
            answer = exchange(server.address, post())
            waits.append(time.monotonic() - began)
            return answer
        return exchange(server.address, post_gzip(bombs[number]))

    *exploded, other = together(len(bombs) + 1, send)
    is_done.set()
    watcher.join()
    assert other == (200, ANSWER)
    assert {status for status, _ in exploded} == {400}
    # Fifty would be five gigabytes: only few are text at once, each with its copies.
    assert highest[0] - before < LARGE_THREADS * 5 * size
    assert waits[0] < 5


# --- slow clients --------------------------------------------------------------------------


def test_half_sent_heads_and_bodies_are_closed(server: RestServer):
    """Two hundred of them; each sends a byte now and then, and the others are served."""
    kinds = (b"", STATUS[:10], STATUS[:-2], post()[:-1])
    clients = [Client(server.address) for _ in range(200)]
    for number, client in enumerate(clients):
        client.send(kinds[number % len(kinds)])
    began = time.monotonic()
    assert exchange(server.address, post()) == (200, ANSWER)
    assert time.monotonic() - began < 5
    for client in clients[1::4] + clients[2::4]:
        client.send(b"x")
    assert all(client.is_closed() for client in clients)


def test_a_slow_body_that_moves_is_received(server: RestServer):
    """For longer than the patience: what counts is that enough comes."""
    client = Client(server.address)
    body = BODY + b" " * 40_000
    data = post(body)
    began = time.monotonic()
    for start in range(0, len(data), 4000):
        client.send(data[start : start + 4000])
        time.sleep(0.1)
    assert time.monotonic() - began > 2 * LIMITS.patience_seconds
    assert client.answer() == (200, ANSWER)


def test_idle_connections_are_closed(server: RestServer):
    client = Client(server.address)
    client.send(post())
    assert client.answer() == (200, ANSWER)
    began = time.monotonic()
    assert client.is_closed()
    assert time.monotonic() - began > LIMITS.idle_seconds - 0.1


def test_a_client_that_takes_no_answer_is_closed(
    server: RestServer, store: OneModelStore, wait_until
):
    """An answer larger than all buffers on the way."""
    store.servable.output = np.array([b"x" * 2**25], object)
    client = Client(server.address)
    client.send(post())
    wait_until(lambda: len(server.connections) == 1)
    wait_until(lambda: not server.connections)
    store.servable.output = None
    assert client.answer()[0] in (200, 0)  # what was on the way
    client.close()


def test_a_client_that_takes_its_answer_slowly_gets_it(server: RestServer, store: OneModelStore):
    store.servable.output = np.array([b"x" * 2**24], object)
    client = Client(server.address)
    client.send(post())
    received = client.socket.recv(100)
    began = time.monotonic()
    while time.monotonic() - began < 3 * LIMITS.patience_seconds:
        received += client.socket.recv(2**18)
        time.sleep(0.05)
    store.servable.output = None
    while len(received) < 2**24:
        data = client.socket.recv(2**20)
        assert data
        received += data


def test_clients_that_go_away(server: RestServer, wait_until):
    body = b'{"instances": [' + b"1," * 100_000 + b"1]}"
    for data in (post(body), post(body)[:-1], STATUS[:5], b""):
        client = Client(server.address)
        client.send(data)
        client.close()
    wait_until(lambda: not server.connections)
    assert server.held_bytes == 0


def test_a_client_that_ends_its_side_gets_its_answers(server: RestServer):
    client = Client(server.address)
    client.send(post() + STATUS)
    client.socket.shutdown(1)
    assert client.answer() == (200, ANSWER)
    assert client.answer()[0] == 200
    assert client.is_closed()


# --- many ----------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(server: RestServer):
    client = Client(server.address)
    bodies = [b'{"instances": [%d]}' % (2 * number) for number in range(500)]
    client.send(b"".join(post(body) for body in bodies))
    for number in range(500):
        status, body = client.answer()
        assert (status, json.loads(body)) == (200, {"predictions": [number + 2.0]})


def test_a_pipeline_that_ends_badly(server: RestServer):
    client = Client(server.address)
    client.send(post() + STATUS + b"no HTTP\r\n\r\n" + post())
    assert client.answer() == (200, ANSWER)
    assert client.answer()[0] == 200
    assert client.is_closed()


def test_a_pipeline_whose_answers_nobody_takes(
    server: RestServer, store: OneModelStore, wait_until
):
    """Twenty megabytes are asked for; no more are made than fit in the buffers on the way."""
    store.servable.output = np.array([b"x" * 100_000], object)
    before = len(store.servable.timeouts)
    client = Client(server.address)
    client.send(post() * 2000)
    wait_until(lambda: not server.connections)
    assert len(store.servable.timeouts) - before < 200
    store.servable.output = None
    client.close()


def test_a_pipeline_without_end_is_not_held(server: RestServer, wait_until):
    """However many requests wait, no more are read than fit in one read of the socket."""
    wait_until(lambda: not server.connections)
    client = Client(server.address)
    sending = threading.Thread(target=client.send, args=(post() * 50_000,))
    sending.start()
    for _ in range(20):
        assert client.answer() == (200, ANSWER)
        (connection,) = server.connections
        assert len(connection.pipeline) <= 2**18 / len(post())
    client.socket.shutdown(socket.SHUT_RDWR)
    sending.join()
    client.close()


def test_a_pipeline_of_offers(server: RestServer):
    """Many in one piece: each is declined, one after the other."""
    offer = STATUS[:-2] + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    client = Client(server.address)
    client.send(offer * 2000)
    assert {client.answer()[0] for _ in range(2000)} == {200}


def test_requests_of_clients_that_went_away_are_not_run(
    server: RestServer, store: OneModelStore, wait_until
):
    """What waits for a thread is dropped after a reset; its body is counted until then."""
    may_end = threading.Event()
    store.servable.behave = lambda: may_end.wait(20)
    expected = len(store.servable.timeouts) + 4
    running = [Client(server.address) for _ in range(4)]
    for client in running:
        client.send(post())
    wait_until(lambda: len(store.servable.timeouts) == expected)
    gone = [Client(server.address) for _ in range(4)]
    for client in gone:
        client.send(post(BODY + b" " * 1_000_000))
    wait_until(lambda: server.held_bytes >= 4_000_000)
    for client in gone:  # a plain close could be that of a client that waits for its answer
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    wait_until(lambda: len(server.connections) == 4)
    assert server.held_bytes >= 4_000_000
    may_end.set()
    assert [client.answer() for client in running] == [(200, ANSWER)] * 4
    wait_until(lambda: server.held_bytes == 0)
    store.servable.behave = lambda: None
    assert len(store.servable.timeouts) == expected


def test_a_thousand_connections(patient_server: RestServer):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    try:
        clients = [Client(patient_server.address) for _ in range(1000)]
        for client in clients:
            client.send(post())
        assert [client.answer() for client in clients] == [(200, ANSWER)] * 1000
        assert len(patient_server.connections) == 1000
        assert exchange(patient_server.address, post()) == (200, ANSWER)
        for client in clients:
            client.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_file_descriptors_are_left(server: RestServer, caplog: pytest.LogCaptureFixture):
    """Connections wait until there are some again; the log gets a line, not a traceback."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # of those that are free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, limits[1]))
    clients: list[Client] = []

    def connect_for_ever() -> None:
        while True:
            clients.append(Client(server.address))

    try:
        with pytest.raises(OSError, match="Too many open files"):
            connect_for_ever()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    clients[-1].send(post())
    assert clients[-1].answer() == (200, ANSWER)
    assert "Traceback" not in caplog.text
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) < 5
    caplog.clear()
    for client in clients:
        client.close()


def test_connections_leave_nothing_behind(server: RestServer, wait_until):
    def use(count: int) -> None:
        for _ in range(count):
            exchange(server.address, post())
            exchange(server.address, b"no HTTP\r\n\r\n")
        wait_until(lambda: not server.connections)

    use(50)
    tracemalloc.start()
    use(5)
    before, _ = tracemalloc.get_traced_memory()
    use(300)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 300 * 1024
