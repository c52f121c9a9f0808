"""What a model that stays as it is gives for each row of a split: computed once, kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.batches import EncodedSplit, RaggedColumn, evaluation_batches, evaluation_order
from kbert.tasks.task import Task
from kbert.whole_files import written_whole

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cached files
BATCH_SIZE = 32


class VectorModel:
    """What makes the vectors: a model of word pieces to one a row, float32 (batch, size)."""

    def __init__(self, model: keras.Model) -> None:
        self.vectors = tf.function(
            lambda inputs: model(inputs, training=False), reduce_retracing=True
        )
        self.size = model.output.shape[-1]


def cached_vectors(
    split: EncodedSplit,
    task: Task,
    made_by: Any,
    make: Callable[[], VectorModel],
    *,
    folder: Path,
    what: str,
) -> RaggedColumn:
    """A vector for each row of a split, in a column of its file, mapped from disk.

    They are kept by the file, its rows and their word pieces, and by what makes them.

    Args:
        split: The rows, of a file.
        task: What packs them.
        made_by: All that the vectors depend on besides, as JSON.
        make: Makes the model; called where they are not kept yet.
        folder: Where they are kept.
        what: What is computed, for the log.
    """
    source = None if split.source is None else split.source.digest
    rows = hashlib.sha256(np.ascontiguousarray(split.rows)).hexdigest()
    made_of = [source, rows, task.encoding_key, task.max_length]
    key = hashlib.sha256(json.dumps([FORMAT, made_of, made_by], sort_keys=True).encode())
    path = folder / f"{key.hexdigest()[:32]}.npy"
    if not path.exists():
        logger.info("computing %s, %s rows", what, f"{len(split):,}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            _write(beside, split, task, make())
    of_file = np.zeros(split.rows[-1] + 1, np.int64)  # vectors of each row of the file
    of_file[split.rows] = 1
    return RaggedColumn(np.load(path, mmap_mode="r"), np.r_[0, np.cumsum(of_file)])


def _write(path: Path, split: EncodedSplit, task: Task, model: VectorModel) -> None:
    """Write the vectors of a split, float32 (rows, size), in the order of its rows."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, (len(split), model.size))
    places = evaluation_order(split, task, batch_size=BATCH_SIZE)
    batches = evaluation_batches(split, task, batch_size=BATCH_SIZE)
    for rows, (inputs, _, _) in zip(places, batches, strict=True):
        array[rows] = model.vectors(inputs)
    array.flush()
