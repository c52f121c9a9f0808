"""What is measured, each as a process with one way to put load on it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PREDICT = "/tensorflow.serving.PredictionService/Predict"
NAME = "news"
WARM_UP = 1.0  # seconds of load before what is measured

Result = dict[str, Any]
"""count, seconds, milliseconds: see load.py and bare.py."""


@dataclass(frozen=True)
class Served:
    """A server that answers one text a request."""

    name: str
    kind: str
    """grpc or rest."""
    address: str
    target: str
    form: str
    """Of a request: predict (PredictRequest), json, or text."""

    def measure(self, texts: Sequence[str], clients: int, seconds: float) -> Result:
        """Closed loop of so many clients, in a process of its own."""
        job = {
            "kind": self.kind,
            "address": self.address,
            "target": self.target,
            "requests": [
                base64.b64encode(request_bytes(self.form, text)).decode() for text in texts
            ],
            "clients": clients,
            "seconds": seconds,
            "warm_up": WARM_UP,
        }
        words = [sys.executable, str(HERE / "load.py")]
        done = subprocess.run(
            words, input=json.dumps(job), text=True, stdout=subprocess.PIPE, check=True
        )
        result = json.loads(done.stdout)
        if result["errors"]:
            raise SystemExit(f"{self.name}: {result['errors'][0]}")
        return result


@dataclass(frozen=True)
class Bare:
    """The SavedModel in a loop, no server around it."""

    name: str
    process: subprocess.Popen
    rows: int = 1

    def measure(self, texts: Sequence[str], clients: int, seconds: float) -> Result:
        """As many threads as the servers have clients."""
        job = {
            "texts": list(texts),
            "rows": self.rows,
            "threads": clients,
            "seconds": seconds,
            "warm_up": WARM_UP,
        }
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def request_bytes(form: str, text: str) -> bytes:
    """A request of one text as it goes over the wire."""
    if form == "text":
        return text.encode()
    if form == "json":
        return json.dumps({"instances": [text]}).encode()
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = NAME
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([text.encode()]))
    return request.SerializeToString()


@contextmanager
def model_server(
    base_path: Path, *flags: str, log: IO[str] | None = None
) -> Iterator[tuple[Served, Served, int]]:
    """`python -m serve.server` with more flags: by gRPC, by REST, its process id."""
    grpc_port, rest_port = free_port(), free_port()
    words = [sys.executable, "-m", "serve.server", f"--model_name={NAME}"]
    words += [f"--model_base_path={base_path}", f"--port={grpc_port}"]
    words += [f"--rest_api_port={rest_port}", *flags]
    with running(words, "serving", log=log) as process:
        yield (
            Served("gRPC", "grpc", f"127.0.0.1:{grpc_port}", PREDICT, "predict"),
            Served("REST", "rest", f"127.0.0.1:{rest_port}", f"/v1/models/{NAME}:predict", "json"),
            process.pid,
        )


@contextmanager
def thin_server(engine: str, checkpoint: Path, threads: int) -> Iterator[Served]:
    """The peer's engine behind a bare gRPC server."""
    words = [sys.executable, str(HERE / "thin_server.py"), engine, str(checkpoint), str(threads)]
    with running(words, "") as process:
        yield Served(engine, "grpc", f"127.0.0.1:{process.first_line}", "/Thin/Predict", "text")


@contextmanager
def bare_model(saved_model: Path) -> Iterator[subprocess.Popen]:
    """The process of `Bare`."""
    with running([sys.executable, str(HERE / "bare.py"), str(saved_model)], "ready") as process:
        yield process


class Process(subprocess.Popen):
    """A process that prints a line when it is ready."""

    first_line = ""


@contextmanager
def running(
    words: Sequence[str], beginning: str, *, log: IO[str] | None = None
) -> Iterator[Process]:
    """A process from its first line, which begins so, to its end."""
    process = Process(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout and process.stdin
        process.first_line = process.stdout.readline().strip()
        if not process.first_line.startswith(beginning) or process.poll() is not None:
            raise SystemExit(f"{words[1:4]} did not start: {process.first_line!r}")
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
