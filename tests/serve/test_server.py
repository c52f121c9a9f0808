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

import httpx
import pytest
import tensorflow as tf
import tensorflow_text

from serve import server
from serve.client import predict_grpc, predict_rest
from serve.servable import Servable
from serve.server import LocalServer

ROOT = Path(__file__).parents[2]


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
    try:
        status = server.main(arguments)
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return status, captured.err.strip()


# --- flags ---------------------------------------------------------------------------------


def test_flags_in_both_styles():
    flags = server.parse_flags(["--model_base_path=/models", "--port", "9000"])
    assert flags.model_name == "default"
    assert flags.model_base_path == Path("/models")
    assert (flags.port, flags.rest_api_port) == (9000, 0)
    assert flags.file_system_poll_wait_seconds == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --model_base_path"),
        (["--model_base_path=models"], "--model_base_path must be absolute, not models"),
        (["--model_base_path=/m", "--enable_batching"], "unknown flag: --enable_batching"),
        (["--model_base_path=/m", "--model=news"], "unknown flag: --model=news"),
        (["--model_base_path=/m", "--port=http"], "argument --port: invalid int value: 'http'"),
        (["--model_base_path=/m", "--port=70000"], "--port must be from 0 to 65535, not 70000"),
        (["--model_base_path=/m", "--port=0"], "--port and --rest_api_port are both 0"),
        (["--model_base_path=/m", "--rest_api_port=8500"], "are both 8500"),
        (["--model_base_path=/m", "--model_name="], "--model_name must not be empty"),
        (
            ["--model_base_path=/m", "--file_system_poll_wait_seconds=-1"],
            "--file_system_poll_wait_seconds must not be negative",
        ),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    status, error = error_of(arguments, capsys)
    assert status == 2
    assert error.startswith("serve.server: ")
    assert message in error


def test_help_does_without_tensorflow():
    code = (
        "import sys; from serve.server import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as error: assert error.code == 0\n"
        "assert not {'tensorflow', 'grpc', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "--file_system_poll_wait_seconds" in done.stdout
    assert "mv /models/news/next /models/news/2" in done.stdout


# --- start and stop ------------------------------------------------------------------------


@pytest.mark.usefixtures("old_handlers")
def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    status, error = error_of([f"--model_base_path={tmp_path / 'no'}"], capsys)
    assert status == 1
    assert error.endswith("is not a directory")


@pytest.mark.usefixtures("old_handlers")
def test_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, error = error_of([f"--model_base_path={tmp_path}", f"--port={port}"], capsys)
    assert status == 1
    assert error == f"serve.server: cannot open port {port}: Address already in use"


@pytest.mark.usefixtures("old_handlers")
def test_the_first_load_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture, unused_port: Callable[[], int]
):
    (tmp_path / "1").mkdir()
    arguments = [f"--model_base_path={tmp_path}", "--model_name=news", f"--port={unused_port()}"]
    status, error = error_of(arguments, capsys)
    assert status == 1
    assert error.startswith("serve.server: version 1 of model news cannot be loaded: SavedModel")


def test_an_interface_can_be_off(publish, tmp_path: Path):
    publish("half_plus_two", tmp_path, "1")
    with LocalServer("half", tmp_path, grpc_port=None) as running:
        assert running.grpc_address is None
        assert httpx.get(f"http://{running.rest_address}/v1/models/half").status_code == 200
    with LocalServer("half", tmp_path, rest_port=None) as running:
        assert running.rest_address is None
        assert predict_grpc(running.grpc_address, "half", {"x": [2]})["y"] == 3


def test_a_taken_port_stops_what_was_started(publish, tmp_path: Path):
    publish("half_plus_two", tmp_path, "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for ports in ({"rest_port": port}, {"grpc_port": port}):
            with pytest.raises(OSError, match=r"[Aa]ddress"):
                LocalServer("half", tmp_path, **ports).__enter__()


def test_stop_lets_running_requests_end(publish, tmp_path: Path, monkeypatch):
    publish("half_plus_two", tmp_path, "1")
    number_running = threading.Semaphore(0)
    may_go_on = threading.Event()
    predict = Servable.predict

    def slow_predict(*args, **kwargs):
        number_running.release()
        assert may_go_on.wait(10)
        return predict(*args, **kwargs)

    monkeypatch.setattr(Servable, "predict", slow_predict)
    running = LocalServer("half", tmp_path)
    running.start()
    url = f"http://{running.rest_address}/v1/models/half"
    with ThreadPoolExecutor() as threads:
        by_rest = threads.submit(predict_rest, url, {"x": [2]})
        by_grpc = threads.submit(predict_grpc, running.grpc_address, "half", {"x": [2]})
        assert number_running.acquire(timeout=10)
        assert number_running.acquire(timeout=10)
        stop = threads.submit(running.stop)
        time.sleep(0.3)
        assert not stop.done()
        may_go_on.set()
        assert by_rest.result(10)["y"] == 3
        assert by_grpc.result(10)["y"] == 3
        stop.result(10)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_no_answer_fails_while_versions_change(publish, tmp_path: Path, wait_until):
    publish("half_plus_two", tmp_path, "1")
    is_done = threading.Event()
    seen = set()

    def ask_until_done(ask: Callable[[], dict]) -> None:
        while not is_done.is_set():
            seen.add(ask()["y"].item())

    with LocalServer("half", tmp_path, poll_seconds=0.05) as running, ThreadPoolExecutor() as pool:
        url = f"http://{running.rest_address}/v1/models/half"
        asking = [
            pool.submit(ask_until_done, lambda: predict_rest(url, {"x": [2]})),
            pool.submit(
                ask_until_done, lambda: predict_grpc(running.grpc_address, "half", {"x": [2]})
            ),
        ]
        wait_until(lambda: seen == {3.0} or any(future.done() for future in asking))
        publish("half_plus_three", tmp_path, "2")
        wait_until(lambda: seen == {3.0, 4.0} or any(future.done() for future in asking))
        is_done.set()
        for future in asking:
            future.result(10)
        states = httpx.get(url).json()["model_version_status"]
        assert [(state["version"], state["state"]) for state in states] == [
            ("2", "AVAILABLE"),
            ("1", "END"),
        ]


# --- the real command ----------------------------------------------------------------------


@pytest.fixture
def unused_port() -> Callable[[], int]:
    def unused_port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return probe.getsockname()[1]

    return unused_port


class Lower(tf.Module):
    """Text -> lower case, with an operation of TF Text that the server has to bring."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serving_default(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"lower": tensorflow_text.case_fold_utf8(text)}


def test_the_command(tmp_path: Path, unused_port: Callable[[], int]):
    """Start, answer by both ways, stop on SIGTERM with status 0."""
    module = Lower()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.serving_default)
    ports = unused_port(), unused_port()
    command = [sys.executable, "-m", "serve.server", "--model_name=lower"]
    command += [f"--model_base_path={tmp_path}", f"--port={ports[0]}", "--rest_api_port"]
    process = subprocess.Popen(
        [*command, str(ports[1])],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        url = f"http://127.0.0.1:{ports[1]}/v1/models/lower"
        assert line == f"serving lower version 1: gRPC 127.0.0.1:{ports[0]}, REST {url}\n"
        by_rest = predict_rest(url, {"text": ["ÄB"]})
        by_grpc = predict_grpc(f"127.0.0.1:{ports[0]}", "lower", {"text": ["ÄB"]})
        assert by_rest["lower"].tolist() == by_grpc["lower"].tolist() == ["äb"]
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert output == ""
    assert "version 1 of lower is unloaded" in errors
    assert not re.search("Traceback|deprecated|WARNING tensorflow", errors)


def test_sigterm_while_it_waits_for_a_model(tmp_path: Path, unused_port: Callable[[], int]):
    command = [sys.executable, "-m", "serve.server", f"--model_base_path={tmp_path}"]
    process = subprocess.Popen(
        [*command, f"--port={unused_port()}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "no version of default yet" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
