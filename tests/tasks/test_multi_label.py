"""Several labels a text: what is read, learnt, chosen by thresholds, and served."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from parity import assert_same_outputs

import train
from kbert.batches import encode_split, evaluation_batches, length_order
from kbert.config import Config, parse
from kbert.data import read_dataset
from kbert.errors import InputError
from kbert.evaluation import collect
from kbert.finished_run import open_run
from kbert.preprocessing import tokenizer_from_files
from kbert.saving import save_checkpoint
from kbert.tasks.multi_label import MultiLabel
from kbert.tasks.task import Gold, Learned, Rows
from kbert.text_files import LIST_SEPARATOR
from kbert.training import new_model
from serve.client import predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer

LABELS = ("animal", "bad", "good")


@pytest.fixture
def config(tiny_options: list[str]) -> Config:
    return parse([*tiny_options, "--task", "multi_label"])


@pytest.fixture
def task(config: Config, tiny_checkpoint: Path) -> MultiLabel:
    learned = Learned(names={"label": LABELS})
    return MultiLabel(config, tokenizer_from_files(tiny_checkpoint), learned)


def multi_hot(task: MultiLabel, cells: list[str]) -> np.ndarray:
    texts = [tf.constant(["the cat"] * len(cells))]
    targets = task.encode_targets(texts, [tf.constant(cells)])
    rows = Rows(task.encode(texts), tf.zeros(len(cells), tf.int32), targets)
    _, found, weights = task.batch(rows, tf.constant([0, 0]))
    assert weights.numpy().tolist() == [1] * len(cells)
    return found.numpy()


def test_cells_are_rows_of_ones_and_zeros(task: MultiLabel) -> None:
    cells = ["good", "", LIST_SEPARATOR.join(["good", "animal", "good"]), "bad"]
    expected = [[0, 0, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert multi_hot(task, cells).tolist() == expected
    assert multi_hot(task, ["", ""]).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("name", "lines", "separator"),
    [
        ("a.csv", ["text,label", 'the cat,"good, animal"', "dog,", 'a cat,"bad,"'], ","),
        ("a.tsv", ["text\tlabel", "the cat\tgood#animal", "dog\t", "a cat\tbad"], "#"),
        (
            "a.jsonl",
            [
                '{"text": "the cat", "label": ["good", "animal"]}',
                '{"text": "dog", "label": []}',
                '{"text": "a cat", "label": "bad"}',
            ],
            ",",
        ),
    ],
)
def test_files_of_labels(
    tiny_options: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    name: str,
    lines: list[str],
    separator: str,
) -> None:
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["--task", "multi_label", "--task.separator", separator, "--data.train"]
    config = parse([*tiny_options, *words, str(tmp_path / name), "--data.test_fraction", "0",
                    "--data.validation_fraction", "0"])  # fmt: skip
    dataset = read_dataset(config.data, MultiLabel.columns(config), seed=0)
    assert dataset.names == {"label": LABELS}
    task = MultiLabel(config, tokenizer_from_files(tiny_checkpoint), Learned(names=dataset.names))
    split = encode_split(dataset.splits["train"], task, cache_dir=config.data.cache_dir)
    (found,) = [target.gather(split.rows) for target in split.targets]
    assert found[0].tolist() == [2, 0, 1] and found[1].tolist() == [2, 0, 1]
    assert collect_targets(split, task).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def collect_targets(split, task: MultiLabel) -> np.ndarray:
    order = np.concatenate(length_order(split.lengths, batch_size=2))
    parts = [targets.numpy() for _, targets, _ in evaluation_batches(split, task, batch_size=2)]
    return np.concatenate(parts)[np.argsort(order)]


def gold_of(cells: list[str]) -> Gold:
    return Gold(None, lambda columns: {columns[0]: cells})


def test_labels_that_training_does_not_have_count_as_wrong(task: MultiLabel) -> None:
    logits = np.array([[2.0, -1.0, -1.0], [-2.0, 1.0, -0.5]], np.float32)
    outputs = {"logits": logits, "chosen": logits >= 0}
    report = task.score(outputs, gold_of([LIST_SEPARATOR.join(["animal", "odd"]), "bad"]))
    assert report["subset_accuracy"] == 0.5
    assert report["recall_micro"] == pytest.approx(2 / 3)
    assert report["labels"] == [*LABELS, "(not in training)"]
    assert report["per_class"]["(not in training)"]["recall"] == 0
    assert report["per_class"]["(not in training)"]["threshold"] is None
    report = task.score(outputs, gold_of(["animal", "bad"]))
    assert report["subset_accuracy"] == 1 and report["labels"] == list(LABELS)
    assert [table.title for table in task.tables(report)] == ["overall, 2 rows", "per class"]


def test_a_file_without_any_label_is_refused(config: Config, tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="--data.label_column: no row of .* has a label"):
        MultiLabel(config, tokenizer_from_files(tiny_checkpoint), Learned(names={"label": ()}))


def test_logits_and_loss_are_transformers(
    task: MultiLabel, config: Config, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    generator = np.random.default_rng(1)
    kernel, bias = model.get_layer("classifier").weights
    kernel.assign(generator.normal(0, 0.3, kernel.shape))
    bias.assign(generator.normal(0, 0.3, bias.shape))
    save_checkpoint(
        model,
        tmp_path / "saved",
        tokenizer=task.tokenizer,
        labels=task.labels,
        problem_type=task.reference().problem_type,
    )
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert theirs.config.problem_type == "multi_label_classification"
    texts = ["the cats sat not ran", "a good dog .", "bad"]
    inputs = task.inputs.preprocess(tf.constant(texts))
    targets = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0]], np.float32)
    logits = model(inputs)
    encoded = {
        "input_ids": inputs["token_ids"],
        "token_type_ids": inputs["segment_ids"],
        "attention_mask": inputs["padding_mask"],
    }
    with torch.no_grad():
        found = theirs(
            **{name: torch.tensor(of.numpy()) for name, of in encoded.items()},
            labels=torch.tensor(targets),
        )
    assert_same_outputs(logits, found.logits)
    loss = task.loss()(targets, logits, sample_weight=tf.ones(3))
    assert float(loss) == pytest.approx(float(found.loss), abs=1e-6)


def test_thresholds_that_are_fitted_choose(task: MultiLabel) -> None:
    """What half of the rows say proves right on the other half."""
    logits = np.array([[2.0, -1.0, 0.0], [-2.0, 1.0, -0.5], [0.1, -3.0, -4.0]], np.float32)
    rows = [LIST_SEPARATOR.join(["bad", "animal"]), LIST_SEPARATOR.join(LABELS[1:]), ""]
    logits, gold = np.tile(logits, (2, 1)), gold_of(2 * rows)
    before = task.outputs(tf.constant(logits), None, tf.ones(6))
    np.testing.assert_array_equal(before["chosen"], logits >= 0)
    collected = {name: of.numpy() for name, of in before.items()}
    fitted = json.loads(json.dumps(task.fit_on_validation(collected, gold)))
    assert task.use_fitted(fitted)
    after = {name: of.numpy() for name, of in task.outputs(tf.constant(logits), None, None).items()}
    assert after["chosen"].tolist() == 2 * [[True, True, True], [False, True, True], [False] * 3]
    report = task.score(after, gold)
    rows = report["per_class"].items()
    assert {label: row["threshold"] for label, row in rows} == fitted["thresholds"]
    assert report["f1_micro"] == pytest.approx(8 / 9)
    columns = task.predictions(after, gold)
    assert columns["prediction"] == 2 * ["animal,bad,good", "bad,good", ""]
    assert columns["label"] == 2 * ["bad,animal", "bad,good", ""]
    assert columns["p_good"][0] == "0.5"


def test_a_reference_at_a_threshold_says_nothing_of_labels(task: MultiLabel) -> None:
    answers = task.reference().answers
    logits = np.array([1.0, -2.0, 3e-6], np.float32)
    assert set(answers([[{"logits": logits}]])) == {"probabilities", "logits"}
    logits[2] = 1e-3
    assert answers([[{"logits": logits}]])["labels"].tolist() == [["animal", "good", ""]]


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 80 texts, whose labels are some of their words, read in windows of five pieces."""
    folder = tmp_path_factory.mktemp("multi_label")
    generator = np.random.default_rng(0)
    lines = ["text\tlabels"]
    for _ in range(80):
        words = generator.choice(["the", "good", "bad", "cat", "sat"], generator.integers(1, 12))
        labels = sorted({word for word in words if word in ("good", "bad", "cat")})
        lines.append(f"{' '.join(words)}\t{'#'.join(labels)}")
    (folder / "texts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {
        "--task": "multi_label",
        "--task.separator": "#",
        "--data.train": folder / "texts.tsv",
        "--data.label_column": "labels",
        "--data.validation_fraction": 0.2,
        "--data.test_fraction": 0.2,
        "--data.max_length": 7,
        "--data.stride": 1,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 4,
        "--train.batch_size": 8,
        "--train.learning_rate": 1e-2,
        "--output": folder / "tags",
    }
    assert train.main([str(word) for pair in options.items() for word in pair]) == 0
    return folder / "tags"


def test_what_is_measured_is_what_is_served(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["f1_micro"] > 0.6
    thresholds = metrics["fitted"]["thresholds"]
    assert list(thresholds) == metrics["test"]["labels"] == ["bad", "cat", "good"]
    with (finished / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (finished.parent / "texts.tsv").read_text(encoding="utf-8").splitlines()
    texts, labels = zip(*(lines[int(row["row"])].split("\t") for row in rows), strict=True)
    assert [row["label"] for row in rows] == list(labels)
    right = [row["label"] == row["prediction"] for row in rows]
    assert metrics["test"]["subset_accuracy"] == pytest.approx(np.mean(right))
    with LocalServer([ModelConfig("tags", (finished / "export" / "tags").resolve())]) as server:
        url = f"http://{server.rest_address}/v1/models/tags"
        answers = predict_rest(url, {"text": list(texts)})
    assert answers["labels"].shape == answers["probabilities"].shape == (len(rows), 3)
    assert ["#".join(filter(None, row)) for row in answers["labels"].tolist()] == [
        row["prediction"] for row in rows
    ]
    for index, label in enumerate(thresholds):
        served = [float(row[f"p_{label}"]) for row in rows]
        np.testing.assert_allclose(answers["probabilities"][:, index], served, atol=1e-5)


def test_a_finished_run_has_its_thresholds(finished: Path) -> None:
    run = open_run(finished)
    part = run.part("test")
    model, task = run.model(part.experiment), part.experiment.task
    assert task.thresholds.tolist() == list(run.metrics["fitted"]["thresholds"].values())
    again = task.score(collect(model, task, part.split), part.split.gold)
    assert again["f1_micro"] == pytest.approx(run.metrics["test"]["f1_micro"])
