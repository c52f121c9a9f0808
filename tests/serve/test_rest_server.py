"""The port: its threads, its end, its addresses. The model is a stand-in."""

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from rest_stand_in import ANSWER, BODY, Client, OneModelStore, exchange, post, together

from serve import rest_server
from serve.metrics import Metrics
from serve.rest_protocol import Limits
from serve.rest_server import RestServer


@pytest.fixture
def store() -> OneModelStore:
    return OneModelStore()


@pytest.fixture
def server(store: OneModelStore) -> Iterator[RestServer]:
    server = RestServer(store, Metrics(), 0, threads=4)
    server.start()
    yield server
    server.stop()


def test_a_connection_is_kept(server: RestServer):
    client = Client(server.address)
    for _ in range(3):
        client.send(post())
        assert client.answer() == (200, ANSWER)
    client.send(post(headers="Connection: close\r\n"))
    assert client.answer() == (200, ANSWER)
    assert client.is_closed()


def test_http_1_0(server: RestServer):
    """Its connections are not kept, and it is told so when it asks for it."""
    request = post(headers="Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    client = Client(server.address)
    client.send(request)
    assert client.answer() == (200, ANSWER)
    assert client.is_closed()


def test_the_headers_of_an_answer(server: RestServer):
    client = Client(server.address)
    client.send(post(headers="Connection: close\r\n"))
    received = b""
    while data := client.socket.recv(1000):
        received += data
    first, *headers = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert first == "HTTP/1.1 200 OK"
    names = {header.partition(":")[0] for header in headers}
    assert names == {"content-type", "date", "content-length", "connection"}
    assert "content-type: application/json" in headers


def test_answers_are_sent_at_once(server: RestServer):
    """Not 40 ms later, by Nagle's algorithm."""
    client = Client(server.address)
    client.send(post())
    assert client.answer() == (200, ANSWER)
    (connection,) = server.connections
    served = connection.transport.get_extra_info("socket")
    assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_expect_100_continue(server: RestServer):
    client = Client(server.address)
    client.send(post(b"", headers="Expect: 100-continue\r\n", length=len(BODY)))
    assert client.answer() == (100, b"")
    client.send(BODY)
    assert client.answer() == (200, ANSWER)
    assert exchange(server.address, post(headers="Expect: cake\r\n"))[0] == 417


def test_requests_run_side_by_side(server: RestServer, store: OneModelStore):
    """As many as there are threads: each waits for the others."""
    barrier = threading.Barrier(4, timeout=10)
    store.servable.behave = barrier.wait
    assert together(4, lambda _: exchange(server.address, post())) == [(200, ANSWER)] * 4


def test_the_status_waits_for_no_model(server: RestServer, store: OneModelStore):
    """Three threads of four are in a model; the fourth answers, and the loop turns."""
    is_done = threading.Event()
    store.servable.behave = lambda: is_done.wait(10)
    clients = [Client(server.address) for _ in range(3)]
    for client in clients:
        client.send(post())
    status, _ = exchange(server.address, b"GET /v1/models/half HTTP/1.1\r\n\r\n")
    is_done.set()
    assert status == 200
    assert [client.answer() for client in clients] == [(200, ANSWER)] * 3


def test_stop_lets_running_requests_end(store: OneModelStore):
    has_begun, may_end = threading.Event(), threading.Event()

    def behave() -> None:
        has_begun.set()
        may_end.wait(10)

    store.servable.behave = behave
    server = RestServer(store, Metrics(), 0, threads=2)
    server.start()
    running, idle = Client(server.address), Client(server.address)
    running.send(post())
    assert has_begun.wait(10)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    assert idle.is_closed()
    with pytest.raises(ConnectionRefusedError):
        Client(server.address)
    assert stopping.is_alive()
    may_end.set()
    assert running.answer() == (200, ANSWER)
    assert running.is_closed()
    stopping.join(10)
    assert not stopping.is_alive()


def test_stop_receives_what_is_under_way(store: OneModelStore):
    server = RestServer(store, Metrics(), 0, threads=2)
    server.start()
    late, never = Client(server.address), Client(server.address)
    for client in (late, never):
        client.send(post(b"", length=len(BODY)))
    together(2, lambda _: exchange(server.address, post()))  # both halves are there by now
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    late.send(BODY)
    assert late.answer() == (200, ANSWER)
    assert never.is_closed()  # a second later
    stopping.join(10)
    assert not stopping.is_alive()


def test_stop_waits_so_long(
    store: OneModelStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A model that never answers, a client that takes no answer: the server ends."""
    monkeypatch.setattr(rest_server, "DRAIN_SECONDS", 0)
    has_begun, may_end = threading.Event(), threading.Event()

    def behave() -> None:
        has_begun.set()
        may_end.wait(20)

    server = RestServer(store, Metrics(), 0, threads=1)
    server.start()
    store.servable.output = np.array([b"x" * 2**25], object)
    deaf = Client(server.address)
    deaf.send(post())
    assert deaf.socket.recv(1)
    store.servable.output, store.servable.behave = None, behave
    running, waiting = Client(server.address), Client(server.address)
    for client in (running, waiting):
        client.send(post())
    assert has_begun.wait(10)
    server.stop()
    assert not server.connections
    may_end.set()
    for client in (running, waiting):
        assert client.answer()[0] == 503
        assert client.is_closed()
    assert "Traceback" not in caplog.text


def test_stop_leaves_no_thread_and_no_socket(store: OneModelStore):
    before = set(threading.enumerate())
    server = RestServer(store, Metrics(), 0, threads=3)
    server.start()
    assert together(3, lambda _: exchange(server.address, post())) == [(200, ANSWER)] * 3
    threads = set(threading.enumerate()) - before
    assert threads
    server.stop()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    again = RestServer(store, Metrics(), int(server.address.rpartition(":")[2]))
    again.stop()  # never started


def test_a_port_in_use(server: RestServer, store: OneModelStore):
    with pytest.raises(OSError, match="in use"):
        RestServer(store, Metrics(), int(server.address.rpartition(":")[2]))


def test_ipv6(store: OneModelStore):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    for host, reached_at in (("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])):
        server = RestServer(store, Metrics(), 0, host=host, threads=1)
        server.start()
        assert server.address.startswith(f"[{host}]:")
        port = server.address.rpartition(":")[2]
        for address in reached_at:
            assert exchange(f"{address}:{port}", post()) == (200, ANSWER)
        server.stop()


def test_the_timeout_goes_to_the_model(store: OneModelStore):
    for timeout, expected in ((2.5, 2.5), (0.0, None)):
        server = RestServer(store, Metrics(), 0, threads=1, timeout=timeout)
        server.start()
        exchange(server.address, post())
        server.stop()
        assert store.servable.timeouts[-1] == expected


def test_the_limits_are_generous():
    """As documented: a body of half a gigabyte, a minute for 64 kB, five minutes of silence."""
    limits = Limits()
    assert limits.body_bytes == 2**29
    assert (limits.patience_seconds, limits.least_bytes) == (60, 2**16)
    assert limits.idle_seconds == 300
