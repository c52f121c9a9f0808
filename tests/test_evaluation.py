"""Outputs come back in the order of the split; predictions.csv says what is known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tensorflow as tf

from kbert.batches import encode_split
from kbert.config import parse
from kbert.data import read_dataset
from kbert.evaluation import collect, write_predictions
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks.classification import Classification
from kbert.training import new_model


def test_rows_keep_their_places(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    unlabelled = tmp_path / "test.csv"
    texts = ["the cat sat on", "a", "good dogs ran . . . .", "", "bad cat"]
    texts[3] = "not ."
    unlabelled.write_text("text\n" + "\n".join(texts) + "\n", encoding="utf-8")
    config = parse([*tiny_options, "--data.test", str(unlabelled)])
    dataset = read_dataset(config.data, labelled=True, seed=0)
    tokenizer = tokenizer_from_files(tiny_checkpoint)
    task = Classification(config, tokenizer, dataset.labels, np.array([1, 1]))
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    split = encode_split(dataset.splits["test"], task, cache_dir=str(tmp_path / "cache"))
    outputs = collect(model, task, split)
    serve = task.signatures(model)["serving_default"].function
    for index, text in enumerate(texts):
        alone = serve(tf.constant([text]))
        np.testing.assert_allclose(outputs["logits"][index], alone["logits"][0], atol=1e-5)
    path = tmp_path / "predictions.csv"
    write_predictions(path, task, split, outputs)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "prediction", "p_negative", "p_positive"]
    assert [row["row"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [float(row["p_positive"]) for row in rows] == [
        float(f"{value:.9g}") for value in outputs["probabilities"][:, 1]
    ]
