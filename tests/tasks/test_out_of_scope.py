"""Texts of no class: rows kept apart, the threshold that is served, what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import tensorflow as tf
from materials import export_untrained

from kbert.batches import encode_split
from kbert.certificate import PLACE, read_certificate
from kbert.config import parse
from kbert.data import read_dataset, read_split
from kbert.errors import InputError
from kbert.evaluate import evaluate
from kbert.export import export
from kbert.lineage import LINEAGE_PLACE
from kbert.preprocessing import tokenizer_from_files
from kbert.run import run
from kbert.tasks.classification import Classification
from kbert.tasks.task import Gold, Learned
from serve.client import predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer

SCOPE = ("--task.out_of_scope", "oos")


def _write(path: Path, rows: int, *, outside: int, seed: int) -> Path:
    """Texts of good or bad; some rows among them are of neither."""
    generator = np.random.default_rng(seed)
    lines = []
    for index in range(rows):
        word, label = (("good", "yes"), ("bad", "no"))[index % 2]
        lines.append(f"{' '.join(generator.choice(['the', 'cat'], index % 5))} {word},{label}")
    for index in range(outside):
        lines.insert(3 * index + 1, f"{' '.join(['人', '好', 'ran'][: 1 + index % 3])},oos")
    path.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def words(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """A command line."""
    options = {
        "--data.train": _write(tmp_path / "train.csv", 40, outside=2, seed=0),
        "--data.validation": _write(tmp_path / "validation.csv", 12, outside=4, seed=1),
        "--data.test": _write(tmp_path / "test.csv", 14, outside=5, seed=2),
        "--data.max_length": 12,
        "--data.cache_dir": tmp_path / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.batch_size": 8,
        "--train.learning_rate": 1e-2,
        "--output": tmp_path / "run",
    }
    return [*(str(word) for pair in options.items() for word in pair), *SCOPE]


def test_rows_of_no_class_are_apart(words: list[str], tiny_checkpoint: Path) -> None:
    config = parse(words)
    columns = Classification.columns(config)
    dataset = read_dataset(config.data, columns, seed=0)
    assert dataset.labels == ("no", "yes")
    assert {name: len(split.outside) for name, split in dataset.splits.items()} == {
        "train": 2,
        "validation": 4,
        "test": 5,
    }
    test = dataset.splits["test"]
    assert test.outside.tolist() == [1, 4, 7, 10, 13]
    assert sorted([*test.rows, *test.outside]) == list(range(19))
    assert set(test.labels) == {0, 1}
    again = read_split(test.source.path, config.data, columns, dataset.labels)
    np.testing.assert_array_equal(again.outside, test.outside)
    np.testing.assert_array_equal(again.labels, test.labels)
    learned = Learned(dataset.labels, np.array([20, 20]))
    task = Classification(config, tokenizer_from_files(tiny_checkpoint), learned)
    split = encode_split(test, task, cache_dir=config.data.cache_dir)
    assert len(split.out_of_scope) == 5
    assert split.out_of_scope.gold.read(["label"]) == {"label": ["oos"] * 5}
    assert len(split.take(np.arange(3)).outside) == 5


def test_rows_of_no_class_are_held_out_with_the_others(words: list[str], tmp_path: Path) -> None:
    at = words.index("--data.validation")
    path = _write(tmp_path / "all.csv", 60, outside=18, seed=3)
    words = ["--data.train", str(path), *words[2:at], *words[at + 4 :]]
    config = parse([*words, "--data.validation_fraction", "0.2", "--data.test_fraction", "0.2"])
    dataset = read_dataset(config.data, Classification.columns(config), seed=0)
    counts = {name: len(split.outside) for name, split in dataset.splits.items()}
    assert sum(counts.values()) == 18
    assert counts["validation"] in (3, 4)  # a fifth
    assert counts["test"] in (3, 4)


def test_labels_that_nobody_knows_are_still_refused(words: list[str], tmp_path: Path) -> None:
    with (tmp_path / "test.csv").open("a", encoding="utf-8") as file:
        file.write("the cat,maybe\n")
    config = parse(words)
    with pytest.raises(InputError, match=r"row 20, column 'label': the label 'maybe' is not in"):
        read_dataset(config.data, Classification.columns(config), seed=0)


def test_the_answer_below_the_threshold(words: list[str], tiny_checkpoint: Path) -> None:
    learned = Learned(("no", "yes"), np.array([1, 1]))
    tokenizer = tokenizer_from_files(tiny_checkpoint)
    task = Classification(parse(words), tokenizer, learned)
    task.threshold = 0.75
    # the probability of "yes" is 0.5, 0.75 and 0.9
    logits = np.log([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]).astype(np.float32)
    logits[1, 1] += 1e-5  # the threshold itself would do, but for rounding
    served = task.signatures(lambda *_, **__: tf.constant(logits))["serving_default"].function
    answers = served(tf.constant(["a", "b", "c"]))
    assert answers["label"].numpy().tolist() == [b"oos", b"yes", b"yes"]
    assert answers["label_index"].numpy().tolist() == [-1, 1, 1]
    np.testing.assert_array_equal(answers["logits"], logits)
    np.testing.assert_allclose(tf.reduce_sum(answers["probabilities"], axis=1), 1, atol=1e-6)
    found = task.outputs(tf.constant(logits), None, None)
    outputs = {name: values.numpy() for name, values in found.items()}
    assert outputs["label_index"].tolist() == [0, 1, 1]  # of the classes, which are measured
    gold = Gold(None, lambda _: {})
    assert task.predictions(outputs, gold)["prediction"] == ["oos", "yes", "yes"]


def test_without_the_option_nothing_is_rejected(words: list[str], tiny_checkpoint: Path) -> None:
    learned = Learned(("no", "yes"), np.array([1, 1]))
    task = Classification(parse(words[:-2]), tokenizer_from_files(tiny_checkpoint), learned)
    logits = tf.zeros((1, 2))
    served = task.signatures(lambda *_, **__: logits)["serving_default"].function
    assert served(tf.constant(["a"]))["label"].numpy().tolist() == [b"no"]


def test_the_export_is_huggingfaces_model_under_the_threshold(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    base = tmp_path / "export" / "moods"
    words = [*SCOPE, "--data.max_length", "12"]
    model, task, folder = export_untrained(tiny_checkpoint, base, *words, labels=("no", "yes"))
    found = read_certificate(folder / PLACE).answers["python"].outputs["probabilities"]
    confidence = np.unique(found.max(axis=1).round(4))
    task.threshold = float(confidence[len(confidence) // 2 - 1 :][:2].mean())
    lineage = json.loads((folder / LINEAGE_PLACE).read_text(encoding="utf-8"))
    folder = export(model, task, base, version=4, lineage=lineage)
    answers = read_certificate(folder / PLACE).answers
    for source in ("saved_model", "huggingface"):
        outputs = answers[source].outputs
        is_outside = found.max(axis=1) < task.threshold
        assert 0 < is_outside.sum() < len(is_outside)
        np.testing.assert_array_equal(outputs["label"] == "oos", is_outside)
        np.testing.assert_array_equal(outputs["label_index"] == -1, is_outside)
    assert (folder / "assets" / "labels.txt").read_text(encoding="utf-8") == "no\nyes\n"


def test_a_whole_run(words: list[str], tmp_path: Path, no_cache, caplog, capsys) -> None:
    words += ["--train.epochs", "3", "--task.calibrate", "true"]
    assert run(parse(words)) == 0
    assert "goes without" not in caplog.text
    assert "is not written" not in caplog.text
    assert "leaves out: train 2, validation 4, test 5" in capsys.readouterr().out
    folder = tmp_path / "run"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["labels"] == ["no", "yes"]
    assert metrics["test"]["rows"] == 14
    block = metrics["test"]["out_of_scope"]
    assert block["threshold"] == metrics["validation"]["out_of_scope"]["threshold"]
    assert block["rows"] == 5
    assert "Out of scope" in (folder / "report.html").read_text(encoding="utf-8")

    predictions = pa.csv.read_csv(folder / "predictions.csv").to_pydict()
    source = pa.csv.read_csv(tmp_path / "test.csv").to_pydict()
    assert predictions["row"] == list(range(1, 20))
    assert predictions["label"] == source["label"]
    hits = np.equal(predictions["label"], predictions["prediction"])
    assert np.mean(hits) == pytest.approx(block["accuracy"])
    with LocalServer([ModelConfig("run", (folder / "export" / "run").resolve())]) as server:
        url = f"http://{server.rest_address}/v1/models/run"
        answers = predict_rest(url, {"text": source["text"]})
    assert answers["label"].tolist() == predictions["prediction"]

    written = evaluate(folder, split="test")
    again = json.loads((written / "metrics.json").read_text(encoding="utf-8"))
    assert again["out_of_scope"] == block
    assert (written / "predictions.csv").read_text() == (folder / "predictions.csv").read_text()
    written = evaluate(folder, overrides={"data.test": str(tmp_path / "validation.csv")})
    again = json.loads((written / "metrics.json").read_text(encoding="utf-8"))
    assert again["out_of_scope"] == metrics["validation"]["out_of_scope"]


def test_validation_needs_rows_of_no_class(words: list[str], tmp_path: Path, no_cache) -> None:
    _write(tmp_path / "validation.csv", 12, outside=0, seed=1)
    with pytest.raises(InputError, match="validation rows with the label 'oos', and there are"):
        run(parse(words))


def test_a_file_of_no_class_alone_is_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\nthe cat,oos\n", encoding="utf-8")
    config = parse(words)
    with pytest.raises(InputError, match="every row has the label 'oos', which is no class"):
        read_dataset(config.data, Classification.columns(config), seed=0)
