"""Every recipe at toy size: train.py --smoke -> predictions.csv = SavedModel = local server."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from materials import finish_untrained

import kbert
import train
from kbert.certificate import PLACE, read_certificate
from kbert.config import TASK_OPTIONS, Config, parse
from kbert.predictor import Predictor
from kbert.tasks import task_class
from kbert.warmup import WARMUP_PLACE
from serve.client import predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
NAMES = sorted(path.name for path in RECIPES.glob("*.yaml"))
WORDS = ("the", "cat", "dogs", "sat", "ran", "good", "bad", "a", "not")
ROWS = 40
FROM_SCRATCH = {"chinese_news.yaml", "chinese_sentiment.yaml"}
"""They want a vocabulary."""
COLD = "email.yaml"
"""Exported without texts to warm a server up."""
LEARNS = {"pretraining.yaml"}
"""They learn a vocabulary."""
TAUGHT = {"distillation.yaml": "news.yaml"}
"""They want a finished run of the recipe."""
MODELS = {
    "classification": "BertForSequenceClassification",
    "multi_label": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "features": "BertModel",
    "tagging": "BertForTokenClassification",
    "masked_lm": "BertForMaskedLM",
    "embedding": "BertModel",
    "question_answering": "BertForQuestionAnswering",
    "translation": "BertModel, ids alone",
}
"""What of transformers the export is compared with, by the task."""
PREDICTED = {
    "classification": ("prediction", "p_first", "p_second"),
    "features": ("prediction", "p_first", "p_second"),
    "multi_label": ("p_one", "p_two", "p_three"),
    "regression": ("prediction",),
    "question_answering": ("prediction", "score", "start", "end"),
    "translation": ("translation", "score"),
    "tagging": (),
    "embedding": (),
    "masked_lm": (),
}
"""Columns of predictions.csv that an answer to the texts of a row has, too."""


def test_every_task_has_a_recipe() -> None:
    contents = [yaml.safe_load((RECIPES / name).read_text(encoding="utf-8")) for name in NAMES]
    assert {content["task"]["name"] for content in contents} == {*TASK_OPTIONS}


@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, []) for name in NAMES), ("features.yaml", ["--task.classifier", "scikit-learn"])],
)
def test_recipe(name: str, more: list[str], tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    words = ["--config", str(RECIPES / name), "--output", str(tmp_path / "run"), "--smoke"]
    words += ["--data.cache_dir", str(tmp_path / "cache"), "--train.seed", "3"]
    if name in FROM_SCRATCH:
        words += ["--model.vocab", str(tiny_checkpoint / "vocab.txt")]
    elif name not in LEARNS:
        words += ["--model.checkpoint", str(tiny_checkpoint)]
    words += ["--data.train", str(tmp_path / "train.jsonl")]
    words += ["--export.warmup", "false"] if name == COLD else []
    words += more
    if name in TAUGHT:
        words += ["--distill.teacher", str(tmp_path / "teacher")]
    config = parse(words)
    write_rows(tmp_path / "train.jsonl", config)
    if name in TAUGHT:
        begin_teacher(tmp_path, RECIPES / TAUGHT[name], tiny_checkpoint)
    assert train.main(words) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    figures = [metrics["test"][name] for name in metrics["headline"] if name in metrics["test"]]
    assert figures and np.isfinite(figures).all()
    if name == "features.yaml":
        assert "TensorBoard goes without" not in capsys.readouterr().err
    exported = tmp_path / "run/export/run/1"
    assert (exported / WARMUP_PLACE).exists() == (name != COLD)
    certificate = read_certificate(exported / PLACE)
    assert certificate.huggingface == MODELS[config.task.name]
    assert certificate.tf_serving == "2.12"
    predictor = kbert.load(tmp_path / "run")
    compare_with_predictions(tmp_path, predictor, config)
    compare_with_server(tmp_path / "run", predictor, requests_of(config))


def begin_teacher(folder: Path, recipe: Path, checkpoint: Path) -> None:
    """A finished run on the same rows."""
    words = ["--config", recipe, "--data.train", folder / "train.jsonl", "--data.max_length", 16]
    words += ["--data.cache_dir", folder / "cache", "--model.checkpoint", checkpoint]
    finish_untrained([str(word) for word in words], folder / "teacher")


def compare_with_predictions(folder: Path, predictor: Predictor, config: Config) -> None:
    """What predictions.csv says of the test rows is what is answered to their texts."""
    path, shared = folder / "run" / "predictions.csv", PREDICTED[config.task.name]
    assert path.exists() == (config.task.name != "masked_lm")
    if not shared:
        return
    with path.open(encoding="utf-8", newline="") as file:
        predictions = list(csv.DictReader(file))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
    asked = [rows[int(row["row"]) - 1] for row in predictions]
    texts = task_class(config.task.name).columns(config).texts
    requests = [{name: row[name] for name in texts} for row in asked]
    inputs = predictor.inputs if len(texts) == len(predictor.inputs) else predictor.inputs[:1]
    columns = {name: [row[of] for row in requests] for name, of in zip(inputs, texts, strict=True)}
    answers = predictor.answer_columns(columns)
    for name in shared:
        found = [
            type(value)(row[name]) for value, row in zip(answers[name], predictions, strict=True)
        ]
        same(answers[name], found)


def compare_with_server(run: Path, predictor: Predictor, requests: list[dict[str, str]]) -> None:
    """The server's answers are those that Python gives."""
    base = (run / "export" / "run").resolve()
    ours = predictor.predict(requests)
    columns = {name: [request[name] for request in requests] for name in requests[0]}
    with LocalServer([ModelConfig("run", base)]) as server:
        theirs = predict_rest(f"http://{server.rest_address}/v1/models/run", columns)
    for row, answers in enumerate(ours):
        assert set(answers) == set(theirs)
        for name, value in answers.items():
            same(value, theirs[name][row])


def same(ours: Any, theirs: Any) -> None:
    """Strings and whole numbers are equal, others within rounding."""
    left, right = np.array(ours), np.array(theirs)
    right = right[: len(left)] if left.ndim else right  # Python leaves off what fills a row up
    if left.dtype.kind == "f":
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    else:
        assert left.tolist() == right.tolist()


def write_rows(path: Path, config: Config) -> None:
    """Rows of the columns that the recipe's task reads."""
    generator = np.random.default_rng(0)
    rows = [row_of(config, index, generator) for index in range(ROWS)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def row_of(config: Config, index: int, generator: np.random.Generator) -> dict[str, Any]:
    columns = task_class(config.task.name).columns(config)
    row: dict[str, Any] = {
        name: " ".join(generator.choice(WORDS, generator.integers(3, 12))) for name in columns.texts
    }
    if columns.label is not None:
        number = columns.label_kind == "number"
        names = ["first", "second", *([] if columns.outside is None else [columns.outside])]
        row[columns.label] = 1 + index % 5 if number else names[index % len(names)]
    options = config.task
    match options.name:
        case "multi_label":
            row[columns.targets[0]] = ["one", "two", "three"][: index % 4]
        case "tagging":
            tokens = row[columns.texts[0]].split()
            row[columns.texts[0]] = tokens
            row[options.tags_column] = ["B-animal" if "cat" in word else "O" for word in tokens]
        case "question_answering":
            row[options.answer_column] = row[columns.texts[1]].split()[1]
            if options.start_column:
                row[options.start_column] = row[columns.texts[1]].index(" ") + 1
        case "translation":
            row[options.target_column] = row[columns.texts[0]].upper()
    return row


def requests_of(config: Config) -> list[dict[str, str]]:
    """What a client sends: a text for each input, of different lengths."""
    columns = task_class(config.task.name).columns(config)
    names = {"question_answering": ("question", "context"), "embedding": ("text",)}
    texts = ("text",) if len(columns.texts) == 1 else ("text_a", "text_b", "text_c")
    inputs = names.get(config.task.name, texts[: len(columns.texts)])
    mask = "[MASK] " if config.task.name == "masked_lm" else ""
    lengths = (2, 7)
    return [{name: mask + " ".join(WORDS[:length]) for name in inputs} for length in lengths]
