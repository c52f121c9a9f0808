"""How clients repeat, wait, cut and join, against servers made to fail in known ways."""

import asyncio
import contextlib
import math
import pickle
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from scripted_servers import ScriptedGrpc, ScriptedHttp, signature_json, start_grpc

from serve.client import (
    AsyncGrpcClient,
    AsyncRestClient,
    ClientError,
    GrpcClient,
    RestClient,
    Retries,
    Tls,
)
from serve.client_calls import Deadline

FAST = Retries(attempts=4, first_pause=0.01, longest_pause=0.02)
ERROR_503 = (503, b'{"error": "The batch scheduling queue is full"}')
ASYNC = {RestClient: AsyncRestClient, GrpcClient: AsyncGrpcClient}


@pytest.fixture
def rest() -> Iterator[ScriptedHttp]:
    server = ScriptedHttp()
    yield server
    server.stop()


@pytest.fixture
def grpc_service() -> Iterator[tuple[ScriptedGrpc, str]]:
    service = ScriptedGrpc()
    server, address = start_grpc(service)
    yield service, address
    service.is_over.set()
    server.stop(None).wait()


class InLoop:
    """A client of asyncio behind the methods of a blocking one."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            found = method(*arguments, **options)
            return [row async for row in found] if name == "predict_rows" else await found

        return lambda *arguments, **options: self._runner.run(call(*arguments, **options))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """A function that makes a client of a class, blocking or in a loop."""
    clients = []

    def connect(kind: type, address: str, **options: Any) -> Any:
        options = {"retries": FAST, "timeout": 10.0, **options}
        if request.param == "blocking":
            clients.append(kind(address, "m", **options))
        else:
            clients.append(InLoop(ASYNC[kind](address, "m", **options)))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


# --- repeats -------------------------------------------------------------------------------


def test_503_is_sent_again(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.script = [ERROR_503, ERROR_503]
    assert connect(RestClient, rest.address).predict([1, 2])["y"].tolist() == [1, 2]
    assert rest.posts == [{"signature_name": "serving_default", "inputs": {"x": [1, 2]}}] * 3


def test_503_is_not_sent_for_ever(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.script = [ERROR_503] * 9
    with pytest.raises(ClientError, match="answered 503: The batch scheduling queue") as caught:
        connect(RestClient, rest.address).predict([1])
    assert caught.value.code == "UNAVAILABLE"
    assert caught.value.message == "The batch scheduling queue is full"
    assert len(rest.posts) == FAST.attempts


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"),
        (404, "NOT_FOUND"),
        (405, "INVALID_ARGUMENT"),
        (302, "UNKNOWN"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (502, "UNKNOWN"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_no_other_status_is_sent_again(rest: ScriptedHttp, status: int, code: str):
    rest.script = [(status, b"no JSON\n at all")]
    with (
        RestClient(rest.address, "m", retries=FAST) as client,
        pytest.raises(ClientError, match=f"answered {status}: no JSON at all$") as caught,
    ):
        client.predict([1])
    assert (caught.value.code, len(rest.posts)) == (code, 1)


def test_a_broken_connection_is_not_sent_again(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.script = ["close"]
    with pytest.raises(ClientError, match="no answer from http") as caught:
        connect(RestClient, rest.address).predict([1])
    assert (caught.value.code, len(rest.posts)) == ("UNKNOWN", 1)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"outputs": ["a"]}', b'{"no": 1}'])
def test_answers_that_are_none(rest: ScriptedHttp, body: bytes):
    rest.script = [(200, body)]
    with RestClient(rest.address, "m") as client, pytest.raises(ClientError) as caught:
        client.predict([1])
    assert caught.value.code in ("UNKNOWN", "INTERNAL")
    assert len(rest.posts) == 1


@pytest.mark.parametrize("kind", [RestClient, GrpcClient])
def test_a_server_that_comes_late(kind: type, connect: Callable[..., Any]):
    patient = Retries(attempts=200, first_pause=0.02, longest_pause=0.05)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # but nobody listens: refused
        port = reserved.getsockname()[1]
    client = connect(kind, f"127.0.0.1:{port}", retries=patient)
    found = []
    thread = threading.Thread(target=lambda: found.append(client.predict([3])["y"].tolist()))
    thread.start()
    time.sleep(0.3)
    server = ScriptedHttp(port) if kind is RestClient else start_grpc(ScriptedGrpc(), port)[0]
    thread.join()
    if kind is RestClient:
        server.stop()
    else:
        server.stop(None)
    assert found == [[3]]


@contextlib.contextmanager
def relay(address: str, seconds: float) -> Iterator[str]:
    """The address of a relay to a server that lets nothing through in its first seconds."""
    host, port = address.split(":")
    ends = []

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # an end was closed
            while data := source.recv(2**16):
                target.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                near, _ = listener.accept()
                threading.Thread(target=join, args=(near,), daemon=True).start()

    def join(near: socket.socket) -> None:
        ends.append(near)
        time.sleep(seconds)
        with contextlib.suppress(OSError):  # the server is gone
            far = socket.create_connection((host, int(port)))
            ends.append(far)
            threading.Thread(target=copy, args=(far, near), daemon=True).start()
            copy(near, far)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    for end in ends:
        end.close()


def test_a_slow_handshake_is_waited_for(
    grpc_service: tuple[ScriptedGrpc, str], connect: Callable[..., Any]
):
    with relay(grpc_service[1], 0.3) as address:
        client = connect(GrpcClient, address, retries=Retries(attempts=1))
        assert client.predict([1])["y"].tolist() == [1]


def test_grpc_is_sent_again(grpc_service: tuple[ScriptedGrpc, str], connect: Callable[..., Any]):
    service, address = grpc_service
    service.script = [grpc.StatusCode.UNAVAILABLE] * 2
    assert connect(GrpcClient, address).predict([1, 2])["y"].tolist() == [1, 2]
    assert len(service.requests) == 3
    service.script = [grpc.StatusCode.UNAVAILABLE] * 9
    with pytest.raises(ClientError, match="no answer from .*: as the script says") as caught:
        connect(GrpcClient, address).predict([1])
    assert (caught.value.code, len(service.requests)) == ("UNAVAILABLE", 3 + FAST.attempts)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"])
def test_grpc_sends_nothing_else_again(grpc_service: tuple[ScriptedGrpc, str], code: str):
    service, address = grpc_service
    service.script = [grpc.StatusCode[code]]
    with (
        GrpcClient(address, "m", retries=FAST) as client,
        pytest.raises(ClientError, match=f"answered {code}: as the script says") as caught,
    ):
        client.predict([1])
    assert (caught.value.code, len(service.requests)) == (code, 1)


def test_pauses_double_up_to_the_longest():
    retries = Retries(attempts=9, first_pause=1, longest_pause=5)
    for repeats, most in enumerate([1, 2, 4, 5, 5]):
        pauses = [retries.pause(repeats) for _ in range(200)]
        assert most / 2 <= min(pauses) < 0.6 * most
        assert 0.9 * most < max(pauses) <= most
    assert retries.pause(10**6) <= 5


# --- deadlines -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["hang", "trickle"])
def test_deadline_of_rest(rest: ScriptedHttp, connect: Callable[..., Any], step: str):
    client = connect(RestClient, rest.address)
    client.predict([1])  # the metadata is fetched
    rest.script = [step]
    with pytest.raises(ClientError, match="no answer within 1 seconds") as caught:
        client.predict([1], timeout=1)
    assert (caught.value.code, len(rest.posts)) == ("DEADLINE_EXCEEDED", 2)
    assert client.predict([1])["y"].tolist() == [1]  # the client is still good


def test_deadline_of_grpc(grpc_service: tuple[ScriptedGrpc, str], connect: Callable[..., Any]):
    service, address = grpc_service
    client = connect(GrpcClient, address)
    client.metadata()  # it is kept, and TensorFlow is imported
    service.script = ["hang"]
    with pytest.raises(ClientError, match="no answer within 1 seconds") as caught:
        client.predict([1], timeout=1)
    assert (caught.value.code, len(service.requests)) == ("DEADLINE_EXCEEDED", 1)
    assert client.predict([1])["y"].tolist() == [1]


def test_deadline_ends_the_repeats(rest: ScriptedHttp, connect: Callable[..., Any]):
    # The second request is sent after 0.5 to 1 s; the pause after it takes 1 s at least.
    client = connect(RestClient, rest.address, retries=Retries(1000, first_pause=1))
    client.metadata()
    rest.script = [ERROR_503] * 1000
    with pytest.raises(ClientError) as caught:
        client.predict([1], timeout=1.4)
    assert (caught.value.code, len(rest.posts)) == ("UNAVAILABLE", 2)


def test_no_deadline(rest: ScriptedHttp, connect: Callable[..., Any]):
    assert connect(RestClient, rest.address).predict([1], timeout=math.inf)["y"].tolist() == [1]
    assert Deadline(math.inf).remaining("") is None


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_what_is_no_timeout(timeout: float):
    with pytest.raises(ValueError, match="a timeout is a number of seconds over 0"):
        RestClient("127.0.0.1:1", "m", timeout=timeout)


# --- one connection ------------------------------------------------------------------------


def test_connections_are_kept(rest: ScriptedHttp, connect: Callable[..., Any]):
    client = connect(RestClient, rest.address)
    for number in range(5):
        client.predict([number])
    assert len(rest.connections) == 1
    assert len(rest.posts) == 5


def test_a_connection_that_was_closed_while_idle(rest: ScriptedHttp, connect: Callable[..., Any]):
    client = connect(RestClient, rest.address)
    rest.script = ["close"]
    with pytest.raises(ClientError):
        client.predict([1])
    assert client.predict([1])["y"].tolist() == [1]


def test_a_closed_client_says_so(rest: ScriptedHttp):
    with RestClient(rest.address, "m") as client:
        pass
    with pytest.raises(ValueError, match="the client is closed"):
        client.predict([1])


def test_threads_share_a_client(rest: ScriptedHttp):
    with RestClient(rest.address, "m") as client, futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: client.predict([number])["y"][0], range(50)))
    assert found == list(range(50))
    assert len(rest.connections) <= 8


# --- long lists ----------------------------------------------------------------------------


def slow_first(body: dict[str, Any]) -> dict[str, Any]:
    """An answer that comes the later, the earlier its rows stand."""
    values = body["inputs"]["x"]
    time.sleep(0.1 if values[0] == 0 else 0.02)
    return {"outputs": values}


def test_long_lists_are_cut_and_joined_in_order(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.answer = slow_first
    client = connect(RestClient, rest.address, max_in_flight=3)
    outputs = client.predict(list(range(200)))
    assert outputs["y"].tolist() == list(range(200))
    assert outputs["y"].dtype == np.int32
    assert sorted(len(body["inputs"]["x"]) for body in rest.posts) == [8] + [32] * 6
    assert 1 < rest.most_at_once <= 3
    assert rest.metadata_count == 1


def test_an_error_names_its_rows(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.answer = lambda body: {
        "outputs": body["inputs"]["x"] if 40 not in body["inputs"]["x"] else "no"
    }
    with pytest.raises(ClientError, match="^rows 32 to 63: http.* does not fit") as caught:
        connect(RestClient, rest.address).predict(np.arange(100))
    assert caught.value.rows == range(32, 64)
    assert caught.value.code == "INTERNAL"


def test_one_request_if_asked_for(rest: ScriptedHttp, connect: Callable[..., Any]):
    outputs = connect(RestClient, rest.address, batch_size=None).predict(list(range(200)))
    assert len(outputs["y"]) == 200
    assert len(rest.posts) == 1


def test_what_has_no_batch_is_not_cut(rest: ScriptedHttp):
    rest.signature = signature_json(rows="40")
    with RestClient(rest.address, "m") as client:
        assert len(client.predict(list(range(40)))["y"]) == 40
    assert len(rest.posts) == 1


def test_rows_that_do_not_join(rest: ScriptedHttp):
    rest.answer = lambda body: {
        "outputs": [[0] * len(body["inputs"]["x"])] * len(body["inputs"]["x"])
    }
    with RestClient(rest.address, "m") as client:
        with pytest.raises(ClientError, match=r"rows of the shapes \(8,\) and \(32,\)") as caught:
            client.predict(list(range(40)))
        rows = list(client.predict_rows(range(40)))
    assert [len(row["y"]) for row in rows] == [32] * 32 + [8] * 8
    # What the error advises works.
    assert str(caught.value).endswith("single rows, by predict_rows and batch_size=1")
    with RestClient(rest.address, "m", batch_size=1) as client:
        assert [row["y"].shape for row in client.predict_rows(range(3))] == [(1,)] * 3


def test_without_a_batch_size_each_row_goes_by_itself(
    rest: ScriptedHttp, connect: Callable[..., Any]
):
    client = connect(RestClient, rest.address, batch_size=None)
    assert [row["y"] for row in client.predict_rows(range(3))] == [0, 1, 2]
    assert sorted(body["inputs"]["x"] for body in rest.posts) == [[0], [1], [2]]


def test_a_model_that_sums_up_its_batch(rest: ScriptedHttp):
    rest.answer = lambda body: {"outputs": [sum(body["inputs"]["x"])]}
    with (
        RestClient(rest.address, "m") as client,
        pytest.raises(ClientError, match=r"output y has the shape \(1,\) for 32 rows"),
    ):
        client.predict(list(range(40)))


def test_rows_are_taken_as_there_is_room(rest: ScriptedHttp):
    taken = []

    def rows() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with RestClient(rest.address, "m", batch_size=10, max_in_flight=2) as client:
        answers = client.predict_rows(rows())
        assert [next(answers)["y"] for _ in range(15)] == list(range(15))
        assert len(taken) <= 40
        answers.close()
    assert len(taken) <= 40


def test_rows_from_an_asynchronous_source(rest: ScriptedHttp):
    async def numbers() -> Any:
        for number in range(100):
            await asyncio.sleep(0)
            yield number

    async def ask() -> list[Any]:
        async with AsyncRestClient(rest.address, "m", batch_size=7) as client:
            return [row["y"] async for row in client.predict_rows(numbers())]

    assert asyncio.run(ask()) == list(range(100))


def test_an_error_of_a_row(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.script = [(400, b'{"error": "bad row"}')]
    client = connect(RestClient, rest.address, batch_size=3, max_in_flight=1)
    with pytest.raises(ClientError, match="^rows 0 to 2: .* bad row$"):
        list(client.predict_rows(range(10)))
    with pytest.raises(ClientError, match="every row must have the names x"):
        list(client.predict_rows([{"x": 1}, 2]))


def test_cancelling_ends_the_requests(rest: ScriptedHttp):
    rest.script = ["hang"] * 4

    async def ask() -> None:
        async with AsyncRestClient(rest.address, "m") as client:
            await asyncio.wait_for(client.predict(list(range(200))), 0.3)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert len(rest.posts) == 4


def test_errors_can_be_pickled():
    error = ClientError("NOT_FOUND", "two\nlines", "where answered: two\nlines", range(3, 5))
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.message, copy.rows) == (error.code, error.message, error.rows)
    assert str(copy) == "rows 3 to 4: where answered: two lines"


# --- signatures that are kept --------------------------------------------------------------


def test_signatures_are_asked_for_once(rest: ScriptedHttp, connect: Callable[..., Any]):
    client = connect(RestClient, rest.address)
    for _ in range(3):
        client.predict([1])
        client.predict([1], version=7)
        client.predict([1], label="good one")
    assert rest.metadata_count == 3
    assert set(rest.paths[1::2]) | set(rest.paths[::2]) == {
        f"/v1/models/m{choice}{verb}"
        for choice in ("", "/versions/7", "/labels/good%20one")
        for verb in ("/metadata", ":predict")
    }


def test_a_swap_to_other_outputs_is_noticed(rest: ScriptedHttp, connect: Callable[..., Any]):
    client = connect(RestClient, rest.address)
    assert client.predict([1])["y"].dtype == np.int32
    rest.signature = signature_json("DT_STRING")
    rest.answer = lambda body: {"outputs": ["good"]}
    assert client.predict([1])["y"].tolist() == ["good"]
    assert (rest.metadata_count, len(rest.posts)) == (2, 2)  # nothing was sent twice


def test_an_error_makes_it_look_again(rest: ScriptedHttp, connect: Callable[..., Any]):
    client = connect(RestClient, rest.address)
    rest.script = [(400, b'{"error": "x is of another type now"}')]
    with pytest.raises(ClientError, match="another type"):
        client.predict([1])
    client.predict([1])
    assert rest.metadata_count == 2


def test_grpc_notices_another_version(
    grpc_service: tuple[ScriptedGrpc, str], connect: Callable[..., Any]
):
    service, address = grpc_service
    client = connect(GrpcClient, address)
    client.predict([1])
    service.version, service.dtype = 8, "DT_FLOAT"
    assert client.predict([1])["y"].dtype == np.int32
    assert client.predict([1])["y"].dtype == np.float32
    assert service.metadata_count == 2


def test_choices_that_are_none():
    with RestClient("127.0.0.1:1", "m") as client:
        with pytest.raises(ValueError, match="a version or a label, not both"):
            client.predict([1], version=1, label="stable")
        with pytest.raises(ValueError, match="a version is a number from 0 on"):
            client.predict([1], version=-1)
    for address in ("ftp://a:1", "a:b", "http://", "ä:1", "a:1\n", ""):
        with pytest.raises(ValueError, match="an address of REST is HOST:PORT"):
            RestClient(address, "m")
    with pytest.raises(ValueError, match="batch_size"):
        RestClient("127.0.0.1:1", "m", batch_size=0)
    with pytest.raises(ValueError, match="max_in_flight"):
        RestClient("127.0.0.1:1", "m", max_in_flight=0)


# --- examples ------------------------------------------------------------------------------


def test_classify_by_rest(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.answer = lambda body: {"results": [[["gut", 0.75], ["", 0.25]]] * len(body["examples"])}
    client = connect(RestClient, rest.address, batch_size=2)
    examples = [{"text": "a", "raw": b"\xff", "numbers": np.float32([1, 0.5])}] * 3
    found = client.classify(examples, context={"n": 1}, signature_name="c", label="l")
    assert found["classes"].tolist() == [["gut", ""]] * 3
    assert found["scores"].tolist() == [[0.75, 0.25]] * 3
    assert found["scores"].dtype == np.float32
    sent = {"text": "a", "raw": {"b64": "/w=="}, "numbers": [1.0, 0.5]}
    expected = {"signature_name": "c", "context": {"n": 1}, "examples": [sent]}
    assert expected in rest.posts
    assert rest.paths == ["/v1/models/m/labels/l:classify"] * 2


def test_regress_by_rest(rest: ScriptedHttp, connect: Callable[..., Any]):
    rest.answer = lambda body: {"results": [example["x"] / 2 for example in body["examples"]]}
    values = connect(RestClient, rest.address).regress([{"x": 2.0}, {"x": 3.0}])
    assert values.tolist() == [1, 1.5]
    assert values.dtype == np.float32
    assert rest.posts == [
        {"signature_name": "serving_default", "examples": [{"x": 2.0}, {"x": 3.0}]}
    ]


def test_examples_by_grpc(grpc_service: tuple[ScriptedGrpc, str], connect: Callable[..., Any]):
    service, address = grpc_service
    client = connect(GrpcClient, address)
    examples = [{"text": "ä", "raw": b"\xff", "n": [1, True], "x": np.float32([0.5, 2])}]
    found = client.classify(examples * 2, context={"c": "d"}, version=3)
    assert found["classes"].tolist() == [["gut", "schläft"]] * 2
    assert found["scores"].dtype == np.float32
    request = service.requests[0]
    assert request.model_spec.version.value == 3
    with_context = request.input.example_list_with_context
    assert with_context.context.features.feature["c"].bytes_list.value == [b"d"]
    feature = with_context.examples[0].features.feature
    assert feature["text"].bytes_list.value == ["ä".encode()]
    assert feature["raw"].bytes_list.value == [b"\xff"]
    assert feature["n"].int64_list.value == [1, 1]
    assert feature["x"].float_list.value == [0.5, 2]
    assert client.regress([{"x": 2.0}, {"x": 3.0}], label="l").tolist() == [1, 1.5]
    assert service.requests[1].model_spec.version_label == "l"
    for wrong in ([1.5, 2], [1, "a"], [2**70], [None], ["\ud800"]):
        with pytest.raises(ClientError, match="feature w is no list of"):
            client.classify([{"w": wrong}])


# --- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root.pem, and server.pem and client.pem that it has signed, with their keys."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    openssl(f"req -x509 -days 2 -subj /CN=root -keyout root.key -out root.pem {key}")
    signed = "-days 2 -CA root.pem -CAkey root.key -CAcreateserial -extfile names"
    for name, host in (("server", "models.example"), ("client", "client")):
        (folder / "names").write_text(f"subjectAltName=DNS:{host}\n")
        openssl(f"req -subj /CN={host} -keyout {name}.key -out {name}.csr {key}")
        openssl(f"x509 -req -in {name}.csr -out {name}.pem {signed}")
    return folder


@pytest.fixture
def tls_address(certificates: Path) -> Iterator[str]:
    read = [(certificates / name).read_bytes() for name in ("server.key", "server.pem", "root.pem")]
    credentials = grpc.ssl_server_credentials([(read[0], read[1])], read[2], True)
    server, address = start_grpc(ScriptedGrpc(), credentials=credentials)
    yield address
    server.stop(None).wait()


def test_tls_of_grpc(certificates: Path, tls_address: str, connect: Callable[..., Any]):
    root, certificate, key = (
        str(certificates / name) for name in ("root.pem", "client.pem", "client.key")
    )
    tls = Tls(root, certificate, key, "models.example")
    assert connect(GrpcClient, tls_address, tls=tls).predict([1])["y"].tolist() == [1]
    with pytest.raises(ClientError) as caught:  # without a certificate of the client
        connect(GrpcClient, tls_address, tls=Tls(root, server_name="models.example")).predict([1])
    assert caught.value.code == "UNAVAILABLE"
    with pytest.raises(ClientError):  # in clear
        connect(GrpcClient, tls_address).predict([1])
    with pytest.raises(ValueError, match="a client certificate and its key go together"):
        Tls(certificate=certificate)


def test_tls_of_rest(certificates: Path, rest: ScriptedHttp, connect: Callable[..., Any]):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    rest._server.socket = context.wrap_socket(rest._server.socket, server_side=True)
    address = f"https://{rest.address}"
    tls = Tls(str(certificates / "root.pem"), server_name="models.example")
    assert connect(RestClient, address, tls=tls).predict([1])["y"].tolist() == [1]
    with pytest.raises(ClientError, match="certificate verify failed") as caught:
        connect(RestClient, address).predict([1])
    assert caught.value.code == "UNKNOWN"
