"""The port itself: sockets, threads, TLS, health, the end, and clients that talk nonsense.

What the services answer is in test_prediction_service.py and test_model_service.py.
"""

import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from serve import grpc_server
from serve.errors import ServingError
from serve.grpc_server import GrpcServer, make_credentials
from serve.loader import Loader
from serve.metrics import Metrics
from serve.model_config import ModelConfig
from serve.model_store import ModelStore
from serve.server import allow_many_connections
from serve.text_protos import SSLConfig
from serve.tls import read_identity

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Gate(tf.Module):
    """Writes FOLDER/begun, then runs until there is FOLDER/open."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="folder")])
    def serving_default(self, folder: tf.Tensor) -> dict[str, tf.Tensor]:
        def is_closed() -> tf.Tensor:
            return tf.equal(tf.size(tf.io.matching_files(folder[0] + "/open")), 0)

        with tf.control_dependencies([tf.io.write_file(folder[0] + "/begun", "")]):
            waits = tf.identity(True)
        waits = tf.while_loop(lambda waits: waits, lambda _: (is_closed(),), (waits,))[0]
        return {"is_open": tf.logical_not(waits)[None]}


@pytest.fixture(scope="module")
def store(publish, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelStore]:
    """half and gate, loaded."""
    root = tmp_path_factory.mktemp("models")
    (root / "half").mkdir()
    publish("half_plus_two", root / "half", "1")
    gate = Gate()
    tf.saved_model.save(gate, str(root / "gate" / "1"), signatures=gate.serving_default)
    configs = [ModelConfig(name, root / name) for name in ("half", "gate")]
    store = ModelStore(configs, load=Loader(metrics=Metrics()), poll_seconds=0)
    store.start()
    store.wait_until_available()
    yield store
    store.stop()


@pytest.fixture
def serve(store: ModelStore) -> Iterator[Callable[..., GrpcServer]]:
    """A function that starts a server with these arguments, on a free port by default."""
    servers = []

    def serve(port: int | None = 0, **arguments) -> GrpcServer:
        servers.append(GrpcServer(store, Metrics(), port, **arguments))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


def half_of(channel: grpc.Channel, value: float = 2.0, **call) -> float:
    """x / 2 + 2, by the model."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[value]]))
    response = PredictionServiceStub(channel).Predict(request, **({"timeout": 20} | call))
    return response.outputs["y"].float_val[0]


def ask(address: str) -> float:
    with grpc.insecure_channel(address) as channel:
        return half_of(channel)


def gate_of(channel: grpc.Channel, folder: Path, timeout: float = 30) -> grpc.Future:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "gate"
    request.inputs["folder"].CopyFrom(tf.make_tensor_proto([str(folder)]))
    return PredictionServiceStub(channel).Predict.future(request, timeout=timeout)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name


# --- ports and sockets ---------------------------------------------------------------------


def test_a_port(serve: Callable[..., GrpcServer]):
    server = serve()
    assert server.address.startswith("127.0.0.1:")
    assert ask(server.address) == 3.0


def test_a_port_in_use(serve: Callable[..., GrpcServer], store: ModelStore):
    port = int(serve().address.split(":")[1])
    with pytest.raises(OSError, match=rf"cannot open 127.0.0.1:{port}: .*[Aa]ddress"):
        GrpcServer(store, Metrics(), port)


def test_a_host_of_ipv6(serve: Callable[..., GrpcServer]):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    server = serve(host="::1")
    assert server.address.startswith("[::1]:")
    assert ask(server.address) == 3.0


def test_a_unix_socket_with_and_without_a_port(serve: Callable[..., GrpcServer], tmp_path: Path):
    path = tmp_path / "grpc.sock"
    both = serve(socket_path=path)
    assert ask(both.address) == ask(f"unix:{path}") == 3.0
    both.stop()
    alone = serve(None, socket_path=path)
    assert alone.address == f"unix:{path}"
    assert ask(alone.address) == 3.0


def test_a_unix_socket_in_use(serve: Callable[..., GrpcServer], store: ModelStore, tmp_path: Path):
    path = tmp_path / "grpc.sock"
    serve(None, socket_path=path)
    with pytest.raises(OSError, match="grpc.sock: Address already in use"):
        GrpcServer(store, Metrics(), None, socket_path=path)
    assert ask(f"unix:{path}") == 3.0
    with pytest.raises(OSError, match="cannot open unix:"):
        GrpcServer(store, Metrics(), None, socket_path=tmp_path / "no" / "grpc.sock")


@pytest.mark.parametrize("folder", ["", "no"])
def test_the_port_is_free_again_if_the_socket_cannot_be_opened(
    folder: str, serve: Callable[..., GrpcServer], store: ModelStore, tmp_path: Path
):
    serve(None, socket_path=tmp_path / "grpc.sock")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OSError, match="cannot open unix:"):
        GrpcServer(store, Metrics(), port, socket_path=tmp_path / folder / "grpc.sock")
    assert not _takes_connections(f"127.0.0.1:{port}")


def test_the_unix_socket_of_a_killed_server_is_taken_over(
    serve: Callable[..., GrpcServer], tmp_path: Path
):
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    serve(None, socket_path=path)
    assert ask(f"unix:{path}") == 3.0


def test_messages_beyond_the_usual_size(serve: Callable[..., GrpcServer]):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    values = tf.zeros([2_000_000, 1])  # 8 MB, twice what gRPC takes by default
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(values.numpy()))
    unlimited = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(serve().address, options=unlimited) as channel:
        response = PredictionServiceStub(channel).Predict(request, timeout=30)
    assert len(response.outputs["y"].float_val) == 2_000_000


def test_channel_arguments_go_before_our_own(serve: Callable[..., GrpcServer]):
    server = serve(channel_arguments=[("grpc.max_receive_message_length", 10)])
    assert code_of(lambda: ask(server.address)) == "RESOURCE_EXHAUSTED"


def test_tensor_content(serve: Callable[..., GrpcServer]):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[2.0]]))
    with grpc.insecure_channel(serve(as_tensor_content=True).address) as channel:
        response = PredictionServiceStub(channel).Predict(request, timeout=20)
    assert response.outputs["y"].tensor_content == struct.pack("<f", 3.0)


# --- threads -------------------------------------------------------------------------------


def test_what_waits_when_all_threads_are_busy(
    serve: Callable[..., GrpcServer], tmp_path: Path, wait_until
):
    """Status and health are answered, a prediction waits, and is dropped at its deadline."""
    server = serve(threads=1, health=True)
    first, late = tmp_path / "first", tmp_path / "late"
    first.mkdir()
    late.mkdir()
    with grpc.insecure_channel(server.address) as channel:
        running = gate_of(channel, first)
        wait_until((first / "begun").exists)
        dropped = gate_of(channel, late, timeout=0.3)
        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "half"
        assert ModelServiceStub(channel).GetModelStatus(status, timeout=10).model_version_status
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
        assert code_of(dropped.result) == "DEADLINE_EXCEEDED"
        (first / "open").touch()
        assert running.result().outputs["is_open"].bool_val[0]
        assert half_of(channel) == 3.0  # behind the one that was dropped
    assert not (late / "begun").exists()


# --- health --------------------------------------------------------------------------------


def test_health(serve: Callable[..., GrpcServer]):
    with grpc.insecure_channel(serve(health=True).address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "ModelService", "PredictionService"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert stub.Check(request, timeout=10).status == SERVING
        unknown = health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService")
        assert code_of(lambda: stub.Check(unknown, timeout=10)) == "NOT_FOUND"


def test_health_is_off_by_default(serve: Callable[..., GrpcServer]):
    with grpc.insecure_channel(serve().address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest()
        assert code_of(lambda: check(request, timeout=10)) == "UNIMPLEMENTED"


def test_watchers_are_told_the_end_and_do_not_hold_it_up(serve: Callable[..., GrpcServer]):
    """More watchers than there are threads for them."""
    server = serve(threads=1, health=True)
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watchers = [watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(10)]
        assert [next(watcher).status for watcher in watchers] == [SERVING] * 10
        assert half_of(channel) == 3.0
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < grpc_server.DRAIN_SECONDS / 2
        assert [[answer.status for answer in watcher] for watcher in watchers] == [
            [NOT_SERVING]
        ] * 10


# --- the end -------------------------------------------------------------------------------


def test_stop_waits_for_what_runs_and_takes_nothing_new(
    serve: Callable[..., GrpcServer], tmp_path: Path, wait_until
):
    server = serve()
    with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor() as threads:
        running = gate_of(channel, tmp_path)
        wait_until((tmp_path / "begun").exists)
        stopping = threads.submit(server.stop)
        wait_until(lambda: not _takes_connections(server.address))
        assert not stopping.done()
        (tmp_path / "open").touch()
        assert running.result().outputs["is_open"].bool_val[0]
        stopping.result(10)


def _takes_connections(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except OSError:
        return False
    return True


def test_the_wait_has_a_limit_and_says_so(
    serve: Callable[..., GrpcServer], tmp_path: Path, wait_until, monkeypatch, caplog
):
    monkeypatch.setattr(grpc_server, "DRAIN_SECONDS", 0.3)
    server = serve()
    with grpc.insecure_channel(server.address) as channel:
        running = gate_of(channel, tmp_path)
        wait_until((tmp_path / "begun").exists)
        server.stop()
        assert code_of(running.result) in ("CANCELLED", "UNAVAILABLE")
    assert "gRPC calls still run after" in caplog.text
    (tmp_path / "open").touch()


# --- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """ca, server and client (both signed by it), stranger (by itself): NAME.key and NAME.crt."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl command")
    folder = tmp_path_factory.mktemp("pem")
    signed = "-CA ca.crt -CAkey ca.key"
    alt_name = "-addext subjectAltName=IP:127.0.0.1"
    for name, more in [
        ("ca", ""),
        ("server", f"{signed} {alt_name}"),
        ("client", signed),
        ("stranger", ""),
    ]:  # noqa: E501
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        command += f"-subj /CN={name} -keyout {name}.key -out {name}.crt {more}"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_config(path: Path, **fields: str | bytes | bool) -> Path:
    texts = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in fields.items()
    }
    path.write_text(text_format.MessageToString(SSLConfig(**texts)))
    return path


def ask_over_tls(address: str, ca: bytes, key: bytes | None = None, certificate=None) -> float:
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    with grpc.secure_channel(address, credentials) as channel:
        return half_of(channel)


def test_tls(serve: Callable[..., GrpcServer], pem: dict[str, bytes], tmp_path: Path):
    config = write_config(
        tmp_path / "ssl.config", server_key=pem["server.key"], server_cert=pem["server.crt"]
    )
    server = serve(credentials=make_credentials(read_identity(config)))
    assert ask_over_tls(server.address, pem["ca.crt"]) == 3.0
    assert code_of(lambda: ask(server.address)) == "UNAVAILABLE"
    stranger = pem["stranger.crt"]
    assert code_of(lambda: ask_over_tls(server.address, stranger)) == "UNAVAILABLE"


def test_tls_with_certificates_of_clients(
    serve: Callable[..., GrpcServer], pem: dict[str, bytes], tmp_path: Path
):
    config = write_config(
        tmp_path / "ssl.config",
        server_key=pem["server.key"],
        server_cert=pem["server.crt"],
        custom_ca=pem["ca.crt"],
        client_verify=True,
    )
    server = serve(credentials=make_credentials(read_identity(config)))
    own = pem["client.key"], pem["client.crt"]
    others = pem["stranger.key"], pem["stranger.crt"]
    assert ask_over_tls(server.address, pem["ca.crt"], *own) == 3.0
    assert code_of(lambda: ask_over_tls(server.address, pem["ca.crt"])) == "UNAVAILABLE"
    assert code_of(lambda: ask_over_tls(server.address, pem["ca.crt"], *others)) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server_key": ""}, "server_key is missing: the PEM text itself, not a path"),
        ({"server_cert": ""}, "server_cert is missing"),
        ({"server_cert": "/etc/server.crt"}, "server_key and server_cert are no PEM key and"),
        ({"server_key": "-----BEGIN PRIVATE KEY-----\nx\n"}, "that belong together: "),
        ({"server_cert": "client.crt"}, "that belong together: key values mismatch"),
        ({"custom_ca": "no PEM"}, "custom_ca is no PEM certificate: "),
        ({"client_verify": True}, "client_verify needs custom_ca"),
    ],
)
def test_wrong_pem(changes: dict, message: str, pem: dict[str, bytes], tmp_path: Path):
    fields = {"server_key": pem["server.key"], "server_cert": pem["server.crt"]}
    fields |= {name: pem.get(value, value) for name, value in changes.items()}
    config = write_config(tmp_path / "ssl.config", **fields)
    with pytest.raises(ServingError) as caught:
        read_identity(config)
    assert caught.value.message.startswith(f"{config}: ")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


# --- clients that talk nonsense ------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header, HPACK without index and without Huffman."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers() -> bytes:
    return (
        b"\x83\x86"  # :method POST, :scheme http
        + literal(b":path", b"/tensorflow.serving.PredictionService/Predict")
        + literal(b"content-type", b"application/grpc")
        + literal(b"te", b"trailers")
    )


BEGIN = PREFACE + frame(SETTINGS)
NONSENSE = {
    "nothing": b"",
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "noise": bytes(range(256)) * 64,
    "half a preface": PREFACE[:10],
    "half a frame": BEGIN + frame(HEADERS, request_headers(), flags=4, stream=1)[:20],
    "oversized frame": BEGIN + b"\xff\xff\xff" + struct.pack(">BBI", DATA, 0, 1) + bytes(70_000),
    "oversized message": BEGIN
    + frame(HEADERS, request_headers(), flags=4, stream=1)
    + frame(DATA, b"\0\xff\xff\xff\xff" + bytes(1000), stream=1),
    "broken message": BEGIN
    + frame(HEADERS, request_headers(), flags=4, stream=1)
    + frame(DATA, b"\0\0\0\0\x04\xff\xff\xff\xff", flags=1, stream=1),
    "broken headers": BEGIN + frame(HEADERS, b"\xff" * 200, flags=4, stream=1),
    "data on no stream": BEGIN + frame(DATA, b"x" * 100, stream=77),
    "even stream": BEGIN + frame(HEADERS, request_headers(), flags=4, stream=2),
    "unknown kinds": BEGIN + b"".join(frame(kind, b"x" * 50) for kind in range(10, 256)),
    "broken settings": BEGIN + frame(SETTINGS, b"12345"),
    "window overflow": BEGIN + frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff") * 3,
    "settings flood": BEGIN + frame(SETTINGS, b"\0\x04\0\1\0\0" * 10) * 20_000,
    "ping flood": BEGIN + frame(PING, bytes(8)) * 20_000,
    "continuation flood": BEGIN
    + frame(HEADERS, request_headers(), stream=1)
    + frame(CONTINUATION, literal(b"a", b"b" * 100) * 10, stream=1) * 2000,
    "rapid reset": BEGIN
    + b"".join(
        frame(HEADERS, request_headers(), flags=4, stream=stream)
        + frame(RST_STREAM, b"\0\0\0\x08", stream=stream)
        for stream in range(1, 2001, 2)
    ),
}


@pytest.fixture(scope="module")
def attacked(store: ModelStore) -> Iterator[GrpcServer]:
    server = GrpcServer(store, Metrics(), 0)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_of_one_client_is_nothing_to_another(nonsense: str, attacked: GrpcServer):
    host, port = attacked.address.split(":")
    with grpc.insecure_channel(attacked.address) as channel:
        assert half_of(channel) == 3.0
        with socket.create_connection((host, int(port)), timeout=10) as client:
            try:
                client.settimeout(5)
                client.sendall(NONSENSE[nonsense])
            except OSError:
                pass  # it hangs up, as it may
            assert half_of(channel) == 3.0
            assert ask(attacked.address) == 3.0
        assert half_of(channel) == 3.0  # and after it has gone


def test_a_thousand_idle_connections(attacked: GrpcServer):
    allow_many_connections()
    host, port = attacked.address.split(":")
    clients = []
    try:
        for number in range(1000):
            clients.append(socket.create_connection((host, int(port)), timeout=10))
            clients[-1].sendall(BEGIN if number % 2 else b"")
        assert all(client.recv(9)[3] == SETTINGS for client in clients[1::2])  # it talks to them
        assert ask(attacked.address) == 3.0
    finally:
        for client in clients:
            client.close()
    assert ask(attacked.address) == 3.0
