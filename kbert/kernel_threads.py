"""How many threads share the work of one kernel: TensorFlow asks once a process, when it starts.

Two kernels of one thread each, on parts of a batch, are faster than two after each other of two
threads each, which wait for each other at the end of every one (docs/speed.md has figures).
"""

from __future__ import annotations

import logging
import os

import tensorflow as tf

logger = logging.getLogger(__name__)

LEAST_ROWS = 8
"""Of a part of a batch that is worth a thread of its own."""


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def parts_of_rows(rows: int) -> int:
    """Into how many parts rows are split to be computed side by side: one a core, of `LEAST_ROWS`
    at least."""
    return max(1, min(cores(), rows // LEAST_ROWS))


def use_one_thread_a_kernel() -> None:
    """Let every kernel run in the thread that starts it; for who has a part for every core.

    Nothing happens where TensorFlow has begun to compute, or has a GPU.
    """
    if cores() == 1 or tf.config.list_physical_devices("GPU"):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:  # it has begun
        return
    logger.debug("one thread a kernel: each of %d cores has a part of a batch", cores())


def has_one_thread_a_kernel() -> bool:
    """Whether a kernel leaves all cores but one to others."""
    return tf.config.threading.get_intra_op_parallelism_threads() == 1 and cores() > 1
