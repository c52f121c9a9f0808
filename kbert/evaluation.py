"""Measure a model on a split: the outputs of all rows, their figures, predictions.csv."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.csv
import tensorflow as tf

from kbert.batches import EncodedSplit, evaluation_batches, length_order
from kbert.tasks.task import Scores, Task
from kbert.whole_files import written_whole

BATCH_SIZE = 32


def collect(model: keras.Model, task: Task, split: EncodedSplit) -> dict[str, np.ndarray]:
    """The task's outputs of every row, in the order of the split, each (rows, ...)."""
    outputs = tf.function(
        lambda inputs, targets, weights: task.outputs(model, inputs, targets, weights),
        reduce_retracing=True,
    )
    collected: dict[str, list[np.ndarray]] = {}
    for batch in evaluation_batches(split, task, batch_size=BATCH_SIZE):
        for name, values in outputs(*batch).items():
            collected.setdefault(name, []).append(values.numpy())
    order = np.concatenate(length_order(split.lengths, batch_size=BATCH_SIZE))
    places = np.argsort(order)
    return {name: np.concatenate(parts)[places] for name, parts in collected.items()}


def measure(model: keras.Model, task: Task, split: EncodedSplit) -> Scores:
    """The task's figures of a split."""
    return task.score(collect(model, task, split), split.labels)


def write_predictions(
    path: Path, task: Task, split: EncodedSplit, outputs: dict[str, np.ndarray]
) -> None:
    """A CSV of the task's predictions: row (from 1, in its file), label if known, prediction ...

    Nothing is written for a task without predictions.
    """
    columns = task.predictions(outputs)
    if not columns:
        return
    table: dict[str, list] = {"row": [int(row) + 1 for row in split.rows]}
    if split.labels is not None:
        table["label"] = [task.labels[index] for index in split.labels]
    table.update(columns)
    with written_whole(path) as beside:
        pa.csv.write_csv(pa.table(table), beside, pa.csv.WriteOptions(quoting_style="needed"))
