"""50 clients, 100 hot swaps, five minutes: what `make serve-check` runs.

The demo's model in four versions that differ in the bias of their head, so that each answer tells
which version gave it. One is swapped for the next under the clients' eyes, half of which ask by
REST and half by gRPC. Every answer must come, and all its rows must be of one version: by gRPC of
the one that the answer names. Afterwards the server may hold at most 1.2 times the memory that it
held before the first swap.

Exit status: 0 when all that holds, 1 when not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "serving"), str(ROOT)]

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_text  # noqa: E402, F401  (registers its ops)
from demo_model import demo_export, mixed_texts  # noqa: E402
from systems import NAME, Served, model_server  # noqa: E402
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402

VARIANTS = 4
SHIFT = 3.0  # of one logit, from one variant to the next
CLOSE = 1e-3  # batches of other lengths differ by rounding, variants by SHIFT
DEADLINE = 30.0  # seconds for one request
MOST_GROWTH = 1.2
FLAGS = (
    "--file_system_poll_wait_seconds=1",
    "--enable_batching",
    f"--batching_parameters_file={ROOT / 'serve/batching.config'}",
)

Answer = tuple[np.ndarray, int | None]
"""Logits (rows, classes), and the version that the answer names, if it names one."""


@dataclass
class Tally:
    """What the clients of one way saw."""

    name: str
    answers: Counter[int] = field(default_factory=Counter)
    """By variant."""
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=50, help="at once (default: 50)")
    parser.add_argument("--swaps", type=int, default=100, help="of the version (default: 100)")
    parser.add_argument("--minutes", type=float, default=5, help="at least (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variants = [make_variant(demo_export(), folder / f"v{n}", n) for n in range(VARIANTS)]
        texts = mixed_texts(64)
        expected = np.stack([answers_of(variant, texts) for variant in variants])
        base_path = folder / NAME
        base_path.mkdir()
        publish(variants[1], base_path, 1)
        with model_server(base_path, *FLAGS) as (rpc, rest, pid):
            return check(options, (rpc, rest), pid, Versions(base_path, variants), texts, expected)


@dataclass
class Versions:
    """The folder that the server watches, and what goes into it."""

    base_path: Path
    variants: list[Path]
    newest: int = 1

    def swap(self, rest: Served) -> None:
        """Publish the next version and wait until it is served."""
        self.newest += 1
        publish(self.variants[self.newest % VARIANTS], self.base_path, self.newest)
        while state(rest, self.newest) != "AVAILABLE":
            time.sleep(0.05)
        shutil.rmtree(self.base_path / str(self.newest - 2), ignore_errors=True)


def check(
    options: argparse.Namespace,
    ways: tuple[Served, Served],
    pid: int,
    versions: Versions,
    texts: list[str],
    expected: np.ndarray,
) -> int:
    """Clients without swaps, then with them; print what was seen."""
    rpc, rest = ways
    server = psutil.Process(pid)
    with clients_at_work(options.clients, ways, texts, expected):
        time.sleep(20)
    time.sleep(3)
    before = highest = server.memory_info().rss
    began = time.monotonic()
    with clients_at_work(options.clients, ways, texts, expected) as tallies:
        for swap in range(options.swaps):
            versions.swap(rest)
            highest = max(highest, server.memory_info().rss)
            due = began + options.minutes * 60 * (swap + 1) / options.swaps
            time.sleep(max(0.0, due - time.monotonic()))
            if (swap + 1) % 10 == 0:
                size = server.memory_info().rss // 2**20
                print(f"{swap + 1} swaps, {time.monotonic() - began:.0f} s, {size} MB", flush=True)
    seconds = time.monotonic() - began
    while state(rest, versions.newest - 1) != "END":
        time.sleep(0.1)
    time.sleep(3)
    after = server.memory_info().rss
    return report(tallies, options, seconds, before, highest, after)


def report(
    tallies: Sequence[Tally],
    options: argparse.Namespace,
    seconds: float,
    before: int,
    highest: int,
    after: int,
) -> int:
    """Print the counts; 0 when all is well."""
    print(f"\n{options.clients} clients, {options.swaps} swaps, {seconds:.0f} s")
    for tally in tallies:
        p50, p99 = np.percentile(tally.milliseconds, [50, 99])
        print(
            f"{tally.name}: {tally.answers.total()} answers {dict(sorted(tally.answers.items()))}, "
            f"{len(tally.failed)} failed, {len(tally.wrong)} wrong, p50 {p50:.0f} ms, "
            f"p99 {p99:.0f} ms"
        )
        for problem in (tally.failed + tally.wrong)[:5]:
            print(f"  {problem}")
    mega = 2**20
    print(
        f"memory of the server: before {before / mega:.0f} MB, highest {highest / mega:.0f} MB, "
        f"after {after / mega:.0f} MB: {after / before:.2f} times (at most {MOST_GROWTH})"
    )
    is_right = not any(tally.failed or tally.wrong for tally in tallies)
    return 0 if is_right and after <= MOST_GROWTH * before else 1


@contextmanager
def clients_at_work(
    count: int, ways: Sequence[Served], texts: list[str], expected: np.ndarray
) -> Iterator[list[Tally]]:
    """Closed loops, half of them each way, until the block ends."""
    stop = threading.Event()
    tallies = [Tally(way.name) for way in ways]
    threads = [
        threading.Thread(
            target=client, args=(ways[row % 2], tallies[row % 2], texts, expected, row, stop)
        )
        for row in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield tallies
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def client(
    way: Served,
    tally: Tally,
    texts: list[str],
    expected: np.ndarray,
    seed: int,
    stop: threading.Event,
) -> None:
    """Ask for one to three texts at a time and hold each answer against all variants."""
    chance = random.Random(seed)
    ask = ask_grpc(way) if way.kind == "grpc" else ask_rest(way)
    while not stop.is_set():
        chosen = chance.sample(range(len(texts)), chance.randint(1, 3))
        began = time.perf_counter()
        try:
            logits, version = ask([texts[row] for row in chosen])
        except Exception as error:
            tally.failed.append(" ".join(str(error).split())[:300])
            continue
        tally.milliseconds.append((time.perf_counter() - began) * 1000)
        off = np.abs(expected[:, chosen] - logits).max(axis=(1, 2))  # (variants,)
        [*matching] = np.flatnonzero(off < CLOSE)
        if len(matching) != 1 or (version is not None and version % VARIANTS != matching[0]):
            tally.wrong.append(f"version {version}, off by {off.tolist()}")
        else:
            tally.answers[int(matching[0])] += 1


def ask_rest(way: Served) -> Callable[[list[str]], Answer]:
    """A function that asks over a connection of its own, which stays open."""
    connection = http.client.HTTPConnection(way.address, timeout=DEADLINE)

    def ask(texts: list[str]) -> Answer:
        connection.request("POST", way.target, json.dumps({"instances": texts}))
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise OSError(f"{response.status}: {answer}")
        return np.array([row["logits"] for row in answer["predictions"]], np.float32), None

    return ask


def ask_grpc(way: Served) -> Callable[[list[str]], Answer]:
    """A function that asks over a channel of its own."""
    channel = grpc.insecure_channel(way.address, [("grpc.use_local_subchannel_pool", 1)])
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(texts: list[str]) -> Answer:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = NAME
        request.inputs["text"].CopyFrom(tf.make_tensor_proto([text.encode() for text in texts]))
        answer = stub.Predict(request, timeout=DEADLINE)
        return tf.make_ndarray(answer.outputs["logits"]), answer.model_spec.version.value

    return ask


def state(rest: Served, version: int) -> str:
    """Of a version, as the server tells it."""
    connection = http.client.HTTPConnection(rest.address, timeout=DEADLINE)
    connection.request("GET", f"/v1/models/{NAME}/versions/{version}")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["model_version_status"][0]["state"] if "error" not in answer else ""


def publish(saved_model: Path, base_path: Path, version: int) -> None:
    """Copy under a name that is no number, then rename."""
    beside = base_path / "next"
    shutil.copytree(saved_model, beside)
    beside.rename(base_path / str(version))


def make_variant(exported: Path, folder: Path, variant: int) -> Path:
    """The export with another bias of its head: class `variant` more likely by SHIFT."""
    shutil.copytree(exported, folder)
    labels = (exported / "assets" / "labels.txt").read_text(encoding="utf-8").splitlines()
    reader = tf.train.load_checkpoint(str(exported / "variables" / "variables"))
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    for value in tensors.values():
        if np.shape(value) == (len(labels),):  # the bias; Keras may write a variable twice
            value[variant % len(labels)] += SHIFT
    shutil.rmtree(folder / "variables")
    (folder / "variables").mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(folder / "variables" / "variables"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return folder


def answers_of(saved_model: Path, texts: list[str]) -> np.ndarray:
    """The logits that a SavedModel gives, (texts, classes)."""
    served = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    return np.concatenate([served(tf.constant([text]))["logits"].numpy() for text in texts])


if __name__ == "__main__":
    sys.exit(main())
