"""How fast one process makes the batches of many: `input.py OPTION ...`, which prints JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from kbert.batches import EncodedSplit, RaggedColumn, epoch_order, training_batches  # noqa: E402
from kbert.config import parse  # noqa: E402
from kbert.distribution import slices_of  # noqa: E402
from kbert.experiment import Materials  # noqa: E402

ROWS = 500_000
SHORTEST, LONGEST = 16, 112  # word pieces of a row, 64 on average
BATCH = 4096
STEPS = 20
DEVICES, OF_A_PROCESS = 64, 8
ORDERED = 10_000_000


def main() -> None:
    """Rows a second of batches for 64 devices, 8 of them of this process; an epoch's order."""
    config = parse(sys.argv[1:])
    task = Materials(config).experiment(config).task
    generator = np.random.default_rng(0)
    lengths = generator.integers(SHORTEST, LONGEST + 1, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = generator.integers(1000, 2000, offsets[-1]).astype(np.int32)
    labels = generator.integers(0, 2, ROWS).astype(np.int32)
    split = EncodedSplit((RaggedColumn(ids, offsets),), np.arange(ROWS), labels)
    batches = training_batches(split, task, batch_size=BATCH, seed=0, epoch=0)
    replicas: Any = SimpleNamespace(local=range(OF_A_PROCESS), count=DEVICES)
    steps = iter(slices_of(batches, task, replicas))
    size = sum(np.asarray(part).nbytes for part in tf.nest.flatten(next(steps)))
    for _ in range(10):  # what was made ahead
        next(steps)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        next(steps)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    of_all = generator.integers(SHORTEST, LONGEST + 1, ORDERED)
    began = time.process_time()
    epoch_order(of_all, batch_size=BATCH, seed=0, epoch=0)
    print(json.dumps({
        "rows_a_second": BATCH * STEPS / seconds,
        "rows_a_cpu_second": BATCH * STEPS / cpu,
        "bytes_of_slices": size,
        "order_seconds_a_million_rows": (time.process_time() - began) / (ORDERED / 1e6),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
