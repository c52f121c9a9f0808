"""Requests for a new server to answer before it takes others: texts of the training data.

A model's first answers are slow: TensorFlow prepares each signature, and each shape, when it first
meets them. TF Serving sends the requests of this file to a version before it counts as available.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from kbert.batches import EncodedSplit
from kbert.tasks.task import Task
from kbert.text_files import read_rows

WARMUP_PLACE = Path("assets.extra") / "tf_serving_warmup_requests"
"""Where TF Serving looks for it in a SavedModel."""
SIGNATURE = "serving_default"
QUANTILES = (0.0, 0.5, 0.95, 1.0)
"""Which texts, by their length in word pieces: the shortest, the median, 95%, the longest."""
MAX_BATCH_SIZE = 8
"""Rows of the largest requests: max_execution_batch_size of serve/batching.config, so that the
largest batch that a server runs at once is nothing new to it."""
CHARACTERS_A_PIECE = 16
"""A text is cut after so many characters for each word piece that the model reads: the rest of a
very long one changes nothing in the answer, and would stand in the file 9 times."""


def warmup_rows(split: EncodedSplit, task: Task) -> list[dict[str, str]]:
    """Texts of a split at the lengths of QUANTILES, as the inputs of serving_default.

    Args:
        split: Rows of the training data; none of it is tokenised again.
        task: Knows what a client sends for a row.

    Raises:
        InputError: the file cannot be read any more.
    """
    if split.source is None or not len(split):
        return []
    lengths = split.lengths
    order = np.argsort(lengths, kind="stable")
    if lengths.any():
        order = order[lengths[order] > 0]  # a text of no pieces warms nothing
    chosen = order[[round(quantile * (len(order) - 1)) for quantile in QUANTILES]]
    columns = read_rows(split.source, split.rows[chosen], split.source.text_columns)
    longest = CHARACTERS_A_PIECE * task.max_length
    inputs = task.requests([[text[:longest] for text in texts] for texts in columns.values()])
    return [dict(zip(inputs, texts, strict=True)) for texts in zip(*inputs.values(), strict=True)]


def write_warmup(path: Path, name: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Write a file of warm-up requests: each row alone, then each as a whole batch.

    Args:
        path: The file.
        name: Name of the served model.
        rows: Inputs of serving_default.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in _records(name, rows):
            writer.write(record.SerializeToString())


def _records(
    name: str, rows: Sequence[Mapping[str, str]]
) -> Iterator[prediction_log_pb2.PredictionLog]:
    for batch_size in (1, MAX_BATCH_SIZE):
        for row in rows:
            record = prediction_log_pb2.PredictionLog()
            request = record.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = SIGNATURE
            for key, text in row.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto([text] * batch_size))
            yield record
