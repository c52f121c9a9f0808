import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
import tensorflow as tf
import tensorflow_text
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from serve import server
from serve.errors import ServingError
from serve.flags import Options
from serve.model_config import ModelConfig
from serve.server import LocalServer
from serve.text_protos import BatchingParameters

ROOT = Path(__file__).parents[2]
OFTEN = Options(poll_seconds=0.05)


def by_rest(address: str, model: str, rows: list, timeout: float = 30) -> list:
    url = f"http://{address}/v1/models/{model}:predict"
    answer = httpx.post(url, json={"instances": rows}, timeout=timeout)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def by_grpc(address: str, model: str, rows: list, timeout: float = 30) -> list:
    """By the one input and the one output of a model."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs[{"half": "x", "gate": "text"}[model]].CopyFrom(tf.make_tensor_proto(rows))
    with grpc.insecure_channel(address) as channel:
        response = PredictionServiceStub(channel).Predict(request, timeout=timeout)
    [output] = response.outputs.values()
    values = tf.make_ndarray(output).tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


@pytest.fixture
def half(publish, tmp_path: Path) -> list[ModelConfig]:
    base_path = tmp_path / "half"
    base_path.mkdir()
    publish("half_plus_two", base_path, "1")
    return [ModelConfig("half", base_path)]


@pytest.fixture
def unused_port() -> Callable[[], int]:
    def unused_port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return probe.getsockname()[1]

    return unused_port


# --- main, until TensorFlow is needed --------------------------------------------------------


@pytest.fixture
def old_handlers() -> Iterator[None]:
    """`main` takes over the signals of the process; this gives them back."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """The exit status and the one line on stderr."""
    status = server.main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return status, captured.err.strip()


def test_version(capsys: pytest.CaptureFixture):
    assert server.main(["--version"]) == 0
    output = capsys.readouterr().out
    assert re.fullmatch(
        r"TensorFlow ModelServer: 2\.20\.0 .*\nTensorFlow Library: 2\.[0-9.]+\n", output
    )


CONFIG = 'model_config_list { config { name: "news" base_path: "%s" model_platform: "%s" } }'


@pytest.mark.usefixtures("old_handlers")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_base_path=models"], "Expected model default to have an absolute path or URI; "),
        (["--model_base_path=gs://b/m"], "File system scheme 'gs' not implemented"),
        (["--model_base_path=/no/such"], "model default, /no/such, is not a directory"),
        (["--model_config_file=FOLDER/no"], "FOLDER/no: No such file or directory"),
        (["--model_config_file=FOLDER/bad"], "Error parsing text-format tensorflow.serving.Mod"),
        (["--model_config_file=FOLDER/caffe"], "FOLDER/caffe: Model news requests unsupported pl"),
        (["--model_config_file=FOLDER/gone"], "model news, /no/such, is not a directory"),
        (
            ["--model_base_path=FOLDER", "--ssl_config_file=FOLDER/empty"],
            "FOLDER/empty: server_key is missing",
        ),
    ],
)
def test_wrong_files(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "bad").write_text("model_config_list {")
    (tmp_path / "caffe").write_text(CONFIG % (tmp_path, "caffe"))
    (tmp_path / "gone").write_text(CONFIG % ("/no/such", "tensorflow"))
    (tmp_path / "empty").touch()
    folder = str(tmp_path)
    given = [argument.replace("FOLDER", folder) for argument in arguments]
    status, error = error_of(given, capsys)
    assert status == 2
    assert error.startswith("serve.server: ")
    assert message.replace("FOLDER", folder) in error


@pytest.mark.usefixtures("old_handlers")
def test_batching_parameters_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 8 } allowed_batch_sizes: 4")
    arguments = [f"--model_base_path={tmp_path}", "--port=0", "--grpc_socket_path=s"]
    arguments += ["--enable_batching", f"--batching_parameters_file={file}"]
    status, error = error_of(arguments, capsys)
    assert status == 2
    assert "allowed_batch_sizes" in error


@pytest.mark.usefixtures("old_handlers")
def test_a_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, error = error_of([f"--model_base_path={tmp_path}", f"--port={port}"], capsys)
    assert status == 1
    assert error == f"serve.server: cannot open port {port} of 127.0.0.1: Address already in use"


@pytest.mark.usefixtures("old_handlers")
def test_a_host_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = [f"--model_base_path={tmp_path}", "--host=192.0.2.1"]
    status, error = error_of(arguments, capsys)
    assert status == 1
    assert error.startswith("serve.server: cannot open port 8500 of 192.0.2.1: ")


@pytest.mark.usefixtures("old_handlers")
def test_the_first_load_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture, unused_port: Callable[[], int]
):
    (tmp_path / "1").mkdir()
    arguments = [f"--model_base_path={tmp_path}", "--model_name=news", f"--port={unused_port()}"]
    assert server.main([*arguments, "--max_num_load_retries=0"]) == 1
    error = capsys.readouterr().err
    assert "serve.server: 1 servable(s) did not become available: " in error
    assert "news" in error


# --- LocalServer ---------------------------------------------------------------------------


def test_an_interface_can_be_off(half: list[ModelConfig], tmp_path: Path):
    with LocalServer(half, options=Options(grpc_port=None)) as running:
        assert running.grpc_address is None
        assert by_rest(running.rest_address, "half", [[2.0]]) == [[3.0]]
    path = tmp_path / "grpc.sock"
    options = Options(grpc_port=None, grpc_socket_path=path, rest_port=None)
    with LocalServer(half, options=options) as running:
        assert running.rest_address is None
        assert by_grpc(f"unix:{path}", "half", [[2.0]]) == [[3.0]]


def test_a_taken_port_stops_what_was_started(half: list[ModelConfig]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options in (Options(rest_port=port), Options(grpc_port=port)):
            running = LocalServer(half, options=options)
            with pytest.raises(OSError, match=r"[Aa]ddress"):
                running.__enter__()
            assert running.store.status("half")[0].state.name == "END"


def test_options_reach_what_they_are_for(half: list[ModelConfig]):
    """Batching, metrics, CORS and tensor_content, by what a client sees."""
    batching = BatchingParameters()
    batching.max_batch_size.value = 4
    batching.batch_timeout_micros.value = 0
    options = Options(batching=batching, metrics_path="/m", rest_cors=True, grpc_health=True)
    with LocalServer(half, options=options) as running:
        assert by_rest(running.rest_address, "half", [[2.0]]) == [[3.0]]
        assert by_grpc(running.grpc_address, "half", [[2.0]]) == [[3.0]]
        page = httpx.get(f"http://{running.rest_address}/m").text
        assert ':tensorflow:serving:request_count{model_name="half",status="OK"} 2' in page
        assert ":tensorflow:serving:batching_session:" in page
        url = f"http://{running.rest_address}/v1/models/half"
        answer = httpx.get(url, headers={"Origin": "http://example.com"})
        assert "access-control-allow-origin" in answer.headers
        with grpc.insecure_channel(running.grpc_address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=10).status


def test_no_answer_fails_while_versions_change(publish, half: list[ModelConfig], wait_until):
    is_done = threading.Event()
    seen = set()

    def ask_until_done(ask: Callable[..., list], address: str) -> None:
        while not is_done.is_set():
            seen.add(ask(address, "half", [[2.0]])[0][0])

    with LocalServer(half, options=OFTEN) as running, ThreadPoolExecutor() as pool:
        asking = [
            pool.submit(ask_until_done, by_rest, running.rest_address),
            pool.submit(ask_until_done, by_grpc, running.grpc_address),
        ]
        try:
            wait_until(lambda: seen == {3.0} or any(future.done() for future in asking))
            publish("half_plus_three", half[0].base_path, "2")
            wait_until(lambda: seen == {3.0, 4.0} or any(future.done() for future in asking))
        finally:
            is_done.set()
        for future in asking:
            future.result(10)


def test_models_follow_their_file(publish, half: list[ModelConfig], tmp_path: Path, wait_until):
    publish("half_plus_three", half[0].base_path, "2")
    file = tmp_path / "models.config"
    text = CONFIG.replace("news", "%s") % ("half", half[0].base_path, "tensorflow")
    file.write_text(text)
    options = Options(poll_seconds=0.05, config_file=file, config_poll_seconds=0.05)
    with LocalServer(half, options=options) as running:
        assert by_rest(running.rest_address, "half", [[2.0]]) == [[4.0]]
        older = "model_version_policy { specific { versions: 1 } } } }"
        file.write_text(text.replace("} }", older))
        wait_until(lambda: by_rest(running.rest_address, "half", [[2.0]]) == [[3.0]])


# --- the real command ----------------------------------------------------------------------


class Gate(tf.Module):
    """text is the name of a folder: writes FOLDER/begun, then runs until there is FOLDER/open.

    The operation of TF Text is one that the server has to bring.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serving_default(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        def is_closed() -> tf.Tensor:
            return tf.equal(tf.size(tf.io.matching_files(text[0] + "/open")), 0)

        with tf.control_dependencies([tf.io.write_file(text[0] + "/begun", "")]):
            waits = tf.identity(True)
        waits = tf.while_loop(lambda waits: waits, lambda _: (is_closed(),), (waits,))[0]
        with tf.control_dependencies([waits]):
            return {"lower": tensorflow_text.case_fold_utf8(["ÄB"])}


class Command:
    """`python -m serve.server` as a process."""

    def __init__(self, *arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serve.server", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.errors.extend(iter(self.process.stderr.readline, ""))

    def ready_line(self) -> str:
        return self.process.stdout.readline()

    def end(self) -> tuple[int, str]:
        """The exit status and what was written to stdout after the ready line."""
        status = self.process.wait(timeout=40)
        self._reader.join(10)
        return status, self.process.stdout.read()


@pytest.fixture
def start() -> Iterator[Callable[..., Command]]:
    commands = []

    def start(*arguments: str) -> Command:
        commands.append(Command(*arguments))
        return commands[-1]

    yield start
    for command in commands:
        with contextlib.suppress(ProcessLookupError):
            command.process.kill()
        command.process.wait(10)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The base path of a Gate."""
    module = Gate()
    tf.saved_model.save(module, str(tmp_path / "gate" / "1"), signatures=module.serving_default)
    return tmp_path / "gate"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    return folders


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


def test_the_command(
    start, gate: Path, folders: list[Path], unused_port: Callable[[], int], wait_until
):
    """Starts quietly, answers, and at SIGTERM finishes what runs on both ports, then ends."""
    ports = unused_port(), unused_port()
    flags = ["--model_name=gate", f"--model_base_path={gate}", f"--port={ports[0]}"]
    command = start(*flags, "--rest_api_port", str(ports[1]), "--flush_filesystem_caches=false")
    addresses = f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    assert command.ready_line() == (
        f"serving gate version 1: gRPC {addresses[0]}, REST http://{addresses[1]}/v1/models/gate\n"
    )
    with ThreadPoolExecutor() as threads:
        answers = [
            threads.submit(by_grpc, addresses[0], "gate", [str(folders[0])]),
            threads.submit(by_rest, addresses[1], "gate", [str(folders[1])]),
        ]
        wait_until(lambda: all((folder / "begun").exists() for folder in folders))
        command.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(ports[0]) and is_refused(ports[1]))
        assert command.process.poll() is None
        for folder in folders:
            (folder / "open").touch()
        assert [answer.result(20) for answer in answers] == [["äb"], ["äb"]]
    assert command.end() == (0, "")
    errors = "".join(command.errors)
    assert "version 1 of gate is unloaded" in errors
    assert "stopping once running requests are done" in errors
    # Nothing but our own lines: no greeting of TensorFlow, no warning.
    for line in command.errors:
        assert re.match(r"INFO serve\.|serve\.server: --flush_filesystem_caches is acc", line), line


def test_a_signal_on_the_way_to_wait_for_it():
    """Where the event is locked already: Python's own lock, by its private name."""
    code = """
import os, signal
from serve.server import _stop_on_signals
should_stop = _stop_on_signals()
with should_stop._cond:
    os.kill(os.getpid(), signal.SIGTERM)
should_stop.wait()
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == 0


def test_kill_and_a_second_sigterm(
    start, publish, gate: Path, folders: list[Path], tmp_path: Path, wait_until,
    unused_port: Callable[[], int],
):  # fmt: skip
    """A killed server starts again in the state of its files; a second SIGTERM ends at once."""
    (tmp_path / "half").mkdir()
    for version, export in (("1", "half_plus_two"), ("2", "half_plus_three")):
        publish(export, tmp_path / "half", version)
    file = tmp_path / "models.config"
    file.write_text(
        f"""model_config_list {{
          config {{ name: "half" base_path: "{tmp_path / "half"}" model_platform: "tensorflow"
                    model_version_policy {{ all {{ }} }}
                    version_labels {{ key: "stable" value: 1 }} }}
          config {{ name: "gate" base_path: "{gate}" model_platform: "tensorflow" }} }}"""
    )
    port, path = unused_port(), tmp_path / "grpc.sock"
    flags = [f"--model_config_file={file}", "--port=0", f"--rest_api_port={port}"]
    flags += [f"--grpc_socket_path={path}", "--allow_version_labels_for_unavailable_models"]
    ready = (
        f"serving half versions 1 and 2, gate version 1: gRPC unix:{path}, "
        f"REST http://127.0.0.1:{port}/v1/models\n"
    )
    killed = start(*flags)
    assert killed.ready_line() == ready
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(by_grpc, f"unix:{path}", "gate", [str(folders[0])])
        wait_until((folders[0] / "begun").exists)
        killed.process.kill()
        assert answer.exception(20).code().name == "UNAVAILABLE"
    again = start(*flags)
    assert again.ready_line() == ready
    assert by_rest(f"127.0.0.1:{port}", "half/labels/stable", [[2.0]]) == [[3.0]]
    assert by_rest(f"127.0.0.1:{port}", "half", [[2.0]]) == [[4.0]]
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(by_grpc, f"unix:{path}", "gate", [str(folders[1])])
        wait_until((folders[1] / "begun").exists)
        again.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any("a second signal ends them" in line for line in again.errors))
        again.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert again.end() == (-signal.SIGTERM, "")
        assert time.monotonic() - begun < 20  # it would drain for 30
        assert answer.exception(20).code().name == "UNAVAILABLE"


def test_sigterm_while_it_waits_for_a_model(start, tmp_path: Path, unused_port, wait_until):
    command = start(f"--model_base_path={tmp_path}", f"--port={unused_port()}")
    wait_until(lambda: any("model default" in line for line in command.errors))
    command.process.send_signal(signal.SIGTERM)
    assert command.end() == (0, "")


def test_load_errors_are_of_serving(half: list[ModelConfig], tmp_path: Path):
    (half[0].base_path / "1" / "saved_model.pb").write_bytes(b"no model")
    running = LocalServer(half, options=Options(max_num_load_retries=0))
    with pytest.raises(ServingError, match="did not become available"):
        running.__enter__()
