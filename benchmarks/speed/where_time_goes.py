"""Where a step's time goes: `python benchmarks/speed/where_time_goes.py training sst2`, or answers.

A round of kbert's own part of `make bench` after two others, under TensorFlow's profiler: the time
of each kind of operation, without what runs within it, added up over all threads, in milliseconds
a training step or a request.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import infer_kbert  # noqa: E402
import inference  # noqa: E402
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
import training  # noqa: E402
from quality import OUT  # noqa: E402
from rounds import read  # noqa: E402
from texts import MAX_LENGTHS, texts  # noqa: E402

from kbert.config import parse  # noqa: E402
from kbert.experiment import Materials  # noqa: E402
from kbert.run import begin_threads, with_fastest_step  # noqa: E402

WARM_UP = 2  # rounds
MOST = 25  # kinds of operations that are told


class Profiled(keras.callbacks.Callback):
    """Profiles the last epoch."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.steps = 0
        self.seconds = 0.0

    def on_epoch_begin(self, epoch, logs=None) -> None:
        if epoch == WARM_UP:
            tf.profiler.experimental.start(self.folder)
        self.steps, self.seconds = 0, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.seconds = time.perf_counter() - self.seconds
        if epoch == WARM_UP:
            tf.profiler.experimental.stop()
            raise KeyboardInterrupt  # the benchmark's epochs do not end


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("training", "answers"))
    parser.add_argument("set", choices=tuple(MAX_LENGTHS))
    parser.add_argument(
        "--precision",
        choices=tuple(inference.OURS.values()),
        default="float32",
        help="of the answering export (default: float32)",
    )
    parser.add_argument(
        "--batch", type=int, choices=(1, 32), default=32, help="texts that it answers at once"
    )
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.part == "training":
            said, seconds, steps = profile_training(options.set, folder)
        else:
            said, seconds, steps = profile_answers(
                options.set, folder, precision=options.precision, batch_size=options.batch
            )
        spent = time_by_operation(Path(folder))
    whole = sum(spent.values())
    print(
        f"{options.set}, {said}: {1000 * seconds / steps:.1f} ms a step, "
        f"{whole / steps:.1f} of all threads' operations"
    )
    for kind, milliseconds in spent.most_common(MOST):
        print(f"  {milliseconds / steps:8.2f}  {milliseconds / whole:6.1%}  {kind}")


def profile_training(name: str, folder: str) -> tuple[str, float, int]:
    """How an epoch trains, its seconds and its steps."""
    config = parse(training.kbert(name)[2:])
    tf.config.experimental.enable_op_determinism()  # as kbert.run.run
    begin_threads(config)
    materials = Materials(config)
    config = with_fastest_step(config, materials.experiment(config))
    experiment = materials.experiment(config)
    profiled = Profiled(folder)
    with contextlib.suppress(KeyboardInterrupt):
        experiment.train(experiment.new_model(), folder=None, callbacks=[profiled])
    said = f"{config.train.precision}, {config.train.compile}"
    return said, profiled.seconds, profiled.steps


def profile_answers(
    name: str, folder: str, *, precision: str, batch_size: int
) -> tuple[str, float, int]:
    """How an export answers, its seconds and its requests."""
    tf.config.threading.set_intra_op_parallelism_threads(1)  # as infer_kbert.py
    answer = infer_kbert.served(str(inference.exports_of(name, {"kbert": precision})["kbert"]))
    (work,) = [of for of in inference.WORK.values() if of["batch_size"] == batch_size]
    rows = [text for text, _ in read(str(texts(name)))]
    batches = [rows[batch_size * at : batch_size * (at + 1)] for at in range(work["batches"])]
    for round in range(WARM_UP + 1):
        if round == WARM_UP:
            tf.profiler.experimental.start(folder)
        began = time.perf_counter()
        for batch in batches:
            answer(batch)
        seconds = time.perf_counter() - began
    tf.profiler.experimental.stop()
    return f"{precision}, batches of {batch_size}", seconds, len(batches)


def time_by_operation(folder: Path) -> collections.Counter[str]:
    """Milliseconds by kind of operation, without what runs within it, of a profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = folder.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    spent: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        if plane.name == "/host:CPU":
            for line in plane.lines:
                add_own_times(line.events, plane.event_metadata, spent)
    return spent


def add_own_times(events: Any, names: Any, spent: collections.Counter[str]) -> None:
    """What the events of a thread take, to `spent`: those that are of operations."""
    open_events: list[tuple[int, str | None]] = []  # end in picoseconds, kind
    for event in sorted(events, key=lambda of: (of.offset_ps, -of.duration_ps)):
        while open_events and open_events[-1][0] <= event.offset_ps:
            open_events.pop()
        _, separator, kind = names[event.metadata_id].name.partition(":")
        is_operation = bool(separator) and not kind.startswith(":")
        found = kind.split("#")[0].strip() if is_operation else None
        if found is not None and found.startswith("__inference"):  # it waits for what is in it
            found = None
        if found is not None:
            spent[found] += event.duration_ps / 1e9
            outer = next((of for _, of in reversed(open_events) if of is not None), None)
            if outer is not None:
                spent[outer] -= event.duration_ps / 1e9
        open_events.append((event.offset_ps + event.duration_ps, found))


if __name__ == "__main__":
    main()
