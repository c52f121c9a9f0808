"""One process of a training, whose chief counts steps and bytes: `process.py RESULT OPTION ...`."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from kbert.cluster import meet, this_cluster  # noqa: E402
from kbert.config import parse  # noqa: E402
from kbert.distribution import is_chief, replicas_of  # noqa: E402
from kbert.experiment import Materials  # noqa: E402


class Counter(keras.callbacks.Callback):
    """After each step the time, the mean loss so far and the bytes that loopback has carried."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.steps.append({"at": time.perf_counter(), "bytes": loopback_bytes()})

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        loss = float((logs or {})["loss"])
        self.steps.append({"at": time.perf_counter(), "bytes": loopback_bytes(), "loss": loss})


def loopback_bytes() -> int:
    """What was sent over loopback in this process's network, by whomever."""
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise RuntimeError("there is no loopback.")


def main() -> None:
    """An epoch of steps, and nothing of what comes after them."""
    config = parse(sys.argv[2:])
    tf.config.experimental.enable_op_determinism()
    if config.train.strategy == "multi_worker":
        meet(this_cluster(), {})
    replicas_of(config.train)
    experiment = Materials(config).experiment(config).for_one_epoch()
    model, counter = experiment.new_model(), Counter()
    chief = is_chief(config.train)
    experiment.train(model, folder=None, callbacks=[counter] if chief else [])
    if chief:
        rows = model.optimizer.rows
        sizes = [
            len(rows[of.path]) * of.shape[1] if of.path in rows else math.prod(of.shape)
            for of in model.trainable_variables
        ]
        found = {"steps": counter.steps, "gradient_bytes": 4 * sum(sizes)}
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
