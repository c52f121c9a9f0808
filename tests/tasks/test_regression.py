"""A number for a text or a pair: what is learnt, and what is served."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from materials import export_untrained
from parity import assert_same_outputs

import train
from kbert.certificate import PLACE, read_certificate
from kbert.config import Config, parse
from kbert.preprocessing import tokenizer_from_files
from kbert.saving import save_checkpoint
from kbert.tasks.regression import Regression
from kbert.tasks.task import Gold, Learned, Rows
from kbert.training import new_model
from serve.client import RestClient, predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer


@pytest.fixture
def config(tiny_options: list[str]) -> Config:
    return parse([*tiny_options, "--task", "regression", "--data.text_column", "[a, b]"])


@pytest.fixture
def task(config: Config, tiny_checkpoint: Path) -> Regression:
    return Regression(config, tokenizer_from_files(tiny_checkpoint), Learned())


def test_values_and_loss_are_transformers(
    task: Regression, config: Config, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    kernel, bias = model.get_layer("classifier").weights
    kernel.assign(np.random.default_rng(1).normal(0, 0.3, kernel.shape))
    bias.assign([0.7])
    folder, kind = tmp_path / "saved", task.reference().problem_type
    save_checkpoint(model, folder, tokenizer=task.tokenizer, problem_type=kind)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder)
    assert theirs.config.problem_type == "regression" and theirs.config.num_labels == 1
    segments = task.encode([tf.constant(["the cat", "a good dog ."]), tf.constant(["sat", "ran"])])
    numbers = np.array([2.5, -1.0], np.float32)
    inputs, targets, weights = task.batch(Rows(segments, tf.constant(numbers), []), [0, 0])
    encoded = {
        "input_ids": inputs["token_ids"],
        "token_type_ids": inputs["segment_ids"],
        "attention_mask": inputs["padding_mask"],
    }
    with torch.no_grad():
        found = theirs(
            **{name: torch.tensor(of.numpy()) for name, of in encoded.items()},
            labels=torch.tensor(numbers),
        )
    predicted = model(inputs)
    assert_same_outputs(predicted, found.logits)
    loss = task.loss()(targets, predicted, sample_weight=weights)
    assert float(loss) == pytest.approx(float(found.loss), abs=1e-6)
    assert task.outputs(predicted, targets, weights)["value"].shape == (2,)


def test_windows_of_long_texts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = ["--task", "regression", "--data.max_length", "8", "--data.stride", "1",
             "--task.window_pooling", "max"]  # fmt: skip
    model, task, folder = export_untrained(tiny_checkpoint, tmp_path / "scores", *words)
    certificate = read_certificate(folder / PLACE)  # there is none where answers differ
    if find_spec("torch") and find_spec("transformers"):
        assert certificate.huggingface == "BertForSequenceClassification"
    inputs = task.inputs.preprocess(tf.constant(["the cat sat . the dog ran ." * 2, "a dog"]))
    assert inputs["rows"].numpy().tolist() == [0, 0, 0, 1]
    assert model(inputs).shape == (2, 1)


def test_nothing_is_scored_without_numbers(task: Regression) -> None:
    assert task.score({"value": np.ones(2)}, Gold(None, lambda columns: {})) == {}


def test_pairs_from_file_to_answer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = ["a\tb\tscore"]
    for _ in range(60):
        first, second = generator.integers(0, 4, 2)
        lines.append(f"the {'good ' * first}cat\t{'bad ' * second}dog\t{first - second / 2}")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {
        "--task": "regression",
        "--data.train": tmp_path / "pairs.tsv",
        "--data.text_column": "[a, b]",
        "--data.label_column": "score",
        "--data.validation_fraction": 0.2,
        "--data.test_fraction": 0.2,
        "--data.max_length": 14,
        "--data.cache_dir": tmp_path / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 6,
        "--train.batch_size": 8,
        "--train.learning_rate": 1e-2,
        "--train.best_metric": "pearson",
        "--output": tmp_path / "run",
        "--export.name": "scores",
    }
    assert train.main([str(word) for pair in options.items() for word in pair]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    with (tmp_path / "run" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    gold, ours = (np.array([float(row[of]) for row in rows]) for of in ("label", "prediction"))
    assert metrics["test"]["mae"] == pytest.approx(np.abs(gold - ours).mean(), abs=1e-6)
    assert metrics["test"]["pearson"] == pytest.approx(np.corrcoef(gold, ours)[0, 1], abs=1e-5)
    best = metrics["train"]["history"][metrics["train"]["best_epoch"] - 1]
    assert best["val_pearson"] == max(one["val_pearson"] for one in metrics["train"]["history"])
    assert best["val_pearson"] == pytest.approx(metrics["validation"]["pearson"], abs=1e-5)
    texts = [lines[int(row["row"])].split("\t") for row in rows]
    columns = {"text_a": [text[0] for text in texts], "text_b": [text[1] for text in texts]}
    base = (tmp_path / "run" / "export" / "scores").resolve()
    with LocalServer([ModelConfig("scores", base)]) as server:
        url = f"http://{server.rest_address}/v1/models/scores"
        served = predict_rest(url, columns)["value"]
        with RestClient(server.rest_address, "scores") as client:
            examples = [dict(zip(columns, text, strict=False)) for text in texts]
            regressed = client.regress(examples, signature_name="regress")
    assert served.shape == (len(rows),)
    np.testing.assert_allclose(served, ours, atol=1e-5)
    np.testing.assert_allclose(regressed, ours, atol=1e-5)
