"""Outputs come back in the order of the split; predictions.csv says what is known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics
from test_training import Setting

from kbert.batches import encode_split
from kbert.calibration import softmax
from kbert.config import parse
from kbert.data import read_dataset
from kbert.evaluation import Evaluator, appraise, collect, write_predictions
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks.classification import Classification
from kbert.tasks.task import Gold, Learned
from kbert.training import new_model


def test_rows_keep_their_places(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    unlabelled = tmp_path / "test.csv"
    texts = ["the cat sat on", "a", "good dogs ran . . . .", "", "bad cat"]
    texts[3] = "not ."
    unlabelled.write_text("text\n" + "\n".join(texts) + "\n", encoding="utf-8")
    config = parse([*tiny_options, "--data.test", str(unlabelled)])
    dataset = read_dataset(config.data, Classification.columns(config), seed=0)
    tokenizer = tokenizer_from_files(tiny_checkpoint)
    task = Classification(config, tokenizer, Learned(dataset.labels, np.array([1, 1])))
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


@pytest.mark.parametrize("batch_size", [7, 64])
def test_figures_are_of_all_rows_by_their_weights(
    tiny_options: list[str], tiny_checkpoint: Path, batch_size: int
) -> None:
    """Whatever the batches; Keras' own mean of the batches' means depends on them."""
    words = ["--task.class_weights", "balanced", "--task.label_smoothing", "0.1"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    task, split = setting.task, setting.splits["train"]
    task.class_weights = np.array([0.5, 2.0], np.float32)
    model = setting.new_model()
    evaluator = Evaluator(model, task, split, batch_size=batch_size)
    for _ in range(2):  # what a call counts does not stay for the next one
        figures, outputs = evaluator.validate()
    targets = np.eye(2)[split.labels] * 0.9 + 0.05
    losses = -(targets * np.log(softmax(outputs["logits"]))).sum(axis=1)
    expected = np.average(losses, weights=task.class_weights[split.labels])
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    right = outputs["label_index"] == split.labels
    assert figures["accuracy"] == pytest.approx(right.mean())
    theirs = sklearn_metrics.f1_score(split.labels, outputs["label_index"], average="macro")
    assert figures["f1_macro"] == pytest.approx(theirs, rel=1e-6)


def test_validation_of_masked_words_is_their_score(
    tiny_options: list[str], tiny_checkpoint: Path
) -> None:
    setting = Setting([*tiny_options, "--task", "masked_lm"], tiny_checkpoint)
    split = setting.splits["validation"]
    figures, outputs = Evaluator(setting.new_model(), setting.task, split).validate()
    scores = setting.task.score(outputs, Gold(None, lambda columns: {}))
    assert figures["loss"] == pytest.approx(scores["loss"], rel=1e-6)
    assert figures["accuracy"] == pytest.approx(scores["accuracy"], rel=1e-6)


def test_a_split_is_measured_beside_a_linear_model(
    tiny_options: list[str], tiny_checkpoint: Path
) -> None:
    setting = Setting(tiny_options, tiny_checkpoint)
    task = setting.task
    labels = np.array([0, 1, 1, 0, 1], np.int32)
    logits = np.array([[3, 0], [0, 2], [1, 0], [2, 0], [0, 1]], np.float32)
    outputs = {"logits": logits, "label_index": logits.argmax(1), "probabilities": softmax(logits)}
    linear = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1], [0.8, 0.2]])
    found = appraise(
        task, Gold(labels, lambda columns: {}), outputs, baseline=linear, temperature=2.0
    )
    assert found["accuracy"] == 0.8
    assert found["baseline"]["accuracy"] == 0.6
    assert found["paired"] == {"only_ours": 2, "only_baseline": 1, "p_value": 1.0}
    assert found["intervals"]["accuracy"][0] < 0.8 < found["intervals"]["accuracy"][1]
    calibration = found["calibration"]
    assert not calibration["applied"]
    assert calibration["log_loss_before"] == pytest.approx(found["log_loss"])
    after = sklearn_metrics.log_loss(labels, softmax(logits / 2))
    assert calibration["log_loss_after"] == pytest.approx(after)
    task.temperature, task.is_calibrated = 2.0, True
    again = appraise(
        task, Gold(labels, lambda columns: {}), outputs, baseline=None, temperature=2.0
    )
    assert again["calibration"]["applied"]
    assert again["log_loss"] == pytest.approx(after)
    assert again["loss"] == pytest.approx(found["loss"])  # of the logits, which stay
    assert "baseline" not in again
