"""Warm-up requests: texts of the training data at four lengths, alone and as whole batches."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from kbert.config import parse
from kbert.experiment import Experiment, Materials
from kbert.warmup import MAX_BATCH_SIZE, warmup_rows, write_warmup
from serve.text_protos import BatchingParameters, read_text_proto

ROOT = Path(__file__).resolve().parents[1]


def experiment_of(*words: object) -> Experiment:
    config = parse([str(word) for word in words])
    return Materials(config).experiment(config)


def write_table(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_the_largest_requests_are_a_servers_largest_batch() -> None:
    batching = read_text_proto(ROOT / "serve" / "batching.config", BatchingParameters)
    assert batching.max_execution_batch_size.value == MAX_BATCH_SIZE
    assert batching.enable_large_batch_splitting.value or (
        batching.max_batch_size.value >= MAX_BATCH_SIZE
    )


def test_texts_of_the_training_rows_at_four_lengths(
    tiny_options: list[str], tiny_csv: Path
) -> None:
    experiment = experiment_of(*tiny_options)
    split = experiment.splits["train"]
    with tiny_csv.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    rows = warmup_rows(split, experiment.task)
    assert [set(row) for row in rows] == [{"text"}] * 4
    assert {row["text"] for row in rows} <= {texts[row] for row in split.rows}
    (pieces,) = experiment.task.encode([tf.constant([row["text"] for row in rows])])
    expected = np.quantile(split.lengths, [0, 0.5, 0.95, 1], method="nearest")
    assert pieces.row_lengths().numpy().tolist() == expected.tolist()
    assert len(set(expected)) == 4


def test_pairs_have_an_input_a_column(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    table = [("a", "b", "label"), *[("cat " * i, "dog", str(i % 2)) for i in range(20)]]
    words = ["--data.train", write_table(tmp_path / "pairs.csv", table)]
    experiment = experiment_of(*tiny_options, *words, "--data.text_column", "[a, b]")
    rows = warmup_rows(experiment.splits["train"], experiment.task)
    assert [set(row) for row in rows] == [{"text_a", "text_b"}] * 4
    assert {row["text_b"] for row in rows} == {"dog"}


def test_long_texts_are_cut_and_empty_ones_left_out(
    tiny_options: list[str], tmp_path: Path
) -> None:
    texts = [*["\u200b"] * 9, "cat", "good " * 5000]
    table = [("text", "label"), *[(text, str(len(text) % 2)) for text in texts * 2]]
    path = write_table(tmp_path / "long.csv", table)
    words = ["--data.validation_fraction", 0, "--data.test_fraction", 0]
    experiment = experiment_of(*tiny_options, "--data.train", path, *words)
    texts = [row["text"] for row in warmup_rows(experiment.splits["train"], experiment.task)]
    assert {len(text) for text in texts} == {len("cat"), 16 * 12}
    assert texts[0] == "cat"
    assert texts[-1] == ("good " * 5000)[: 16 * 12]
    (pieces,) = experiment.task.encode([tf.constant(texts[-1:])])
    assert pieces.row_lengths()[0] >= 12  # as many as the model reads


def test_masked_words_are_asked_for(tiny_options: list[str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join("cat " * count for count in range(1, 30)), encoding="utf-8")
    experiment = experiment_of(*tiny_options, "--task", "masked_lm", "--data.train", lines)
    texts = [row["text"] for row in warmup_rows(experiment.splits["train"], experiment.task)]
    assert all(text.startswith("[MASK] cat") for text in texts)
    preprocessed = experiment.task.packer(experiment.task.encode([tf.constant(texts)]))
    masks = preprocessed["token_ids"] == experiment.task.tokenizer.mask_token_id
    assert tf.reduce_sum(tf.cast(masks, tf.int32), axis=1).numpy().tolist() == [1] * 4


@pytest.mark.parametrize("rows", [[{"text": "好 cat"}, {"text": "dog"}]])
def test_records_are_what_tf_serving_reads(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "assets.extra" / "warmup"
    write_warmup(path, "news", rows)
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert {log.WhichOneof("log_type") for log in logs} == {"predict_log"}
    requests = [log.predict_log.request for log in logs]
    assert {request.model_spec.name for request in requests} == {"news"}
    assert {request.model_spec.signature_name for request in requests} == {"serving_default"}
    texts = [tf.make_ndarray(request.inputs["text"]).tolist() for request in requests]
    alone = [["好 cat".encode()], [b"dog"]]
    assert texts == [*alone, *(row * MAX_BATCH_SIZE for row in alone)]
