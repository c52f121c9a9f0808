"""python -m kbert.evaluate: a finished run's splits, other files, runs without labels."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train
from kbert.batches import encode_split
from kbert.config import parse
from kbert.data import read_dataset
from kbert.errors import InputError
from kbert.evaluate import main
from kbert.finished_run import FinishedRun, open_run
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks import task_class
from kbert.tasks.task import Learned

ROOT = Path(__file__).resolve().parents[1]


def words_of(options: dict[str, object]) -> list[str]:
    return [str(word) for pair in options.items() for word in pair]


@pytest.fixture(scope="module")
def options(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> dict[str, object]:
    """Of a run whose training file can be taken away, with a column more than it needs."""
    folder = tmp_path_factory.mktemp("evaluate")
    with tiny_csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [f"{r['text']},{r['label']},{'abc'[i % 3]}" for i, r in enumerate(rows)]
    path = folder / "train.csv"
    path.write_text("\n".join(["text,label,source", *lines]) + "\n", encoding="utf-8")
    return {
        "--data.train": path,
        "--data.max_length": 12,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 1,
        "--train.batch_size": 8,
        "--train.learning_rate": 3e-3,
        "--train.seed": 3,
        "--monitor.tensorboard": "false",
        "--export.enabled": "false",
        "--output": folder / "run",
    }


@pytest.fixture(scope="module")
def finished(options: dict[str, object]) -> Path:
    assert train.main(words_of(options)) == 0
    return Path(str(options["--output"]))


@pytest.fixture(scope="module")
def words_run(options: dict[str, object], tmp_path_factory) -> Path:
    """A run that learns masked words."""
    folder = tmp_path_factory.mktemp("words") / "run"
    changed = {**options, "--task": "masked_lm", "--output": folder}
    assert train.main(words_of(changed)) == 0
    return folder


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def read_predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refusal(capsys, *words: str) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("kbert.evaluate: ") and message.count("\n") == 1
    return message


def test_the_runs_own_test_split_again(finished: Path, capsys) -> None:
    assert main([str(finished), "--slice_by", "source"]) == 0
    folder = finished / "evaluation" / "test"
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "predictions.csv"}
    found, before = read_metrics(folder), read_metrics(finished)["test"]
    assert {name: found[name] for name in before} == before
    assert (folder / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()
    assert found["reliability"]["ece"] == pytest.approx(found["ece"], abs=1e-12)
    low, high = found["intervals"]["accuracy"]
    assert low <= found["accuracy"] <= high
    slices = found["slices"]
    assert list(slices) == ["length", "label", "column source"]
    for rows in slices.values():
        assert sum(row["rows"] for row in rows) == before["rows"]
        right = sum(row["accuracy"] * row["rows"] for row in rows)
        assert right == pytest.approx(before["accuracy"] * before["rows"])
    assert {row["slice"] for row in slices["column source"]} <= {"a", "b", "c"}
    said, complaints = capsys.readouterr()
    assert "newly initialised" not in complaints
    for title in ("overall, 10 rows", "per class", "by length", "by label", "by column source"):
        assert f"test: {title}" in said
    assert "test: calibration: expected calibration error" in said
    assert "95% interval" in said and "linear model alone" in said


def test_an_evaluation_is_replaced_whole(finished: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "a" / "validation"
    command = [str(finished), "--split", "validation", "--output", str(folder)]
    assert main(command) == 0
    first = read_metrics(folder)
    assert first["rows"] == 10
    assert first["accuracy"] == read_metrics(finished)["validation"]["accuracy"]
    (folder / "metrics.json").write_text("{}")
    assert main(command) == 0
    assert read_metrics(folder) == first
    assert [path.name for path in folder.parent.iterdir()] == ["validation"]
    (folder / "mine.txt").write_text("mine")
    assert "it holds other things (mine.txt)" in refusal(capsys, *command)
    assert "it holds other things" in refusal(capsys, str(finished), "--output", str(finished))
    assert (folder / "mine.txt").exists()


def test_a_baseline_stands_beside(
    finished: Path, options: dict[str, object], tiny_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    from kbert.baseline import Baseline

    config = parse(words_of(options))
    dataset = read_dataset(
        config.data, task_class("classification").columns(config), seed=config.train.seed
    )
    tokenizer = tokenizer_from_files(tiny_checkpoint)
    task = task_class("classification")(config, tokenizer, Learned(dataset.labels, np.ones(2)))
    splits = {
        name: encode_split(split, task, cache_dir=config.data.cache_dir)
        for name, split in dataset.splits.items()
    }
    baseline = Baseline.load(finished / "baseline.safetensors")
    assert main([str(finished), "--output", str(tmp_path / "found")]) == 0
    found = read_metrics(tmp_path / "found")
    guesses = baseline.probabilities(splits["test"]).argmax(axis=1)
    right = float(np.mean(guesses == splits["test"].labels))
    assert found["baseline"]["accuracy"] == right
    assert set(found["baseline"]["intervals"]) == set(found["intervals"])
    assert set(found["paired"]) == {"only_ours", "only_baseline", "p_value"}
    assert all("baseline_accuracy" in row for row in found["slices"]["length"])
    said = capsys.readouterr().out
    assert "f1 of the linear model" in said and "accuracy of the linear model" in said


def test_a_file_without_the_training_file(
    finished: Path, options: dict[str, object], tmp_path: Path, capsys
) -> None:
    later = tmp_path / "later.csv"
    rows = ["kind,body", "negative,好 bad cat", "positive,good dogs ran .", "negative,the bad"]
    later.write_text("\n".join(rows) + "\n", encoding="gb18030")
    train_file = Path(str(options["--data.train"]))
    hidden = train_file.rename(train_file.with_suffix(".away"))
    try:
        command = [str(finished), "--data.test", str(later), "--data.text_column", "body"]
        command += ["--data.label_column", "kind", "--data.encoding", "gb18030"]
        assert main(command) == 0
        assert "train.csv: there is no such file" in refusal(capsys, str(finished))
    finally:
        hidden.rename(train_file)
    folder = finished / "evaluation" / "later.csv"
    metrics, predictions = read_metrics(folder), read_predictions(folder)
    assert metrics["rows"] == 3 and metrics["file"] == str(later)
    assert [row["label"] for row in predictions] == ["negative", "positive", "negative"]
    right = sum(row["label"] == row["prediction"] for row in predictions) / 3
    assert metrics["accuracy"] == pytest.approx(right)


def test_a_file_without_labels_is_predicted(finished: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "new.jsonl"
    path.write_text('{"text": "good cat", "n": 1}\n{"text": "bad", "n": 2}\n', encoding="utf-8")
    command = [str(finished), "--data.test", str(path), "--output", str(tmp_path / "found")]
    assert main(command) == 0
    assert "has no labels: its 2 rows are only predicted" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "found").iterdir()] == ["predictions.csv"]
    first = read_predictions(tmp_path / "found")[0]
    assert list(first) == ["row", "prediction", "p_negative", "p_positive"]
    assert "has no labels to measure by" in refusal(capsys, *command, "--slice_by", "n")
    message = refusal(capsys, *command, "--data.label_column", "kind")
    assert "new.jsonl: no column 'kind'" in message


def test_wrong_files_are_refused_in_one_line(finished: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "new.csv"
    path.write_text("text,label\ngood cat,positive\nbad,mixed\n", encoding="utf-8")
    message = refusal(capsys, str(finished), "--data.test", str(path))
    assert "new.csv: row 2, column 'label': the label 'mixed' is not in the training" in message
    path.write_text("text,label\ngood cat,positive\n", encoding="utf-8")
    command = [str(finished), "--data.test", str(path)]
    assert "no column 'year'; name one of 'text'" in refusal(capsys, *command, "--slice_by", "year")
    message = refusal(capsys, *command, "--data.text_column", "[text, label]")
    assert "was trained on 1 text column, not 2" in message
    assert "no column 'body'" in refusal(capsys, *command, "--data.text_column", "body")
    message = refusal(capsys, str(finished), "--data.test", str(tmp_path / "none.csv"))
    assert "there is no such file; correct --data.test" in message
    message = refusal(capsys, str(finished), "--data.encoding", "utf-16")
    assert "--data.encoding needs a file: name it by --data.test." in message


def test_a_temperature_is_told(finished: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("evaluation"))
    metrics = read_metrics(run)
    metrics["fitted"] = {"temperature": 2.0}
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert main([str(run)]) == 0
    found = read_metrics(run / "evaluation" / "test")
    block = found["calibration"]
    assert block["temperature"] == 2.0 and block["applied"] is False
    assert block["log_loss_before"] == pytest.approx(found["loss"], abs=1e-6)
    assert block["log_loss_after"] != block["log_loss_before"]
    assert "test: temperature 2.0000 (not applied: task.calibrate)" in capsys.readouterr().out


def test_the_options_of_a_searchs_winner(finished: Path, tmp_path: Path) -> None:
    run = open_run(finished)
    assert run.config == run.options
    assert run.learned.labels == ("negative", "positive")
    temperature = run.metrics["test"]["calibration"]["temperature"]
    assert run.fitted == run.metrics["fitted"] == {"temperature": temperature}
    winner = {"winner": {"hyperparameters": {"max_length": 8, "epochs": 2}}}
    searched = FinishedRun(finished, run.options, {**run.metrics, "search": winner})
    assert searched.config.data.max_length == 8 and searched.config.train.epochs == 2
    older = {name: block for name, block in run.metrics.items() if name != "fitted"}
    assert FinishedRun(finished, run.options, older).fitted == {"temperature": temperature}
    bare = FinishedRun(tmp_path, run.options, {"train": {}})
    with pytest.raises(InputError, match="does not tell the labels"):
        bare.learned  # noqa: B018


def test_other_folders_are_refused(finished: Path, tmp_path: Path, capsys) -> None:
    assert "no run is there (no config.yaml)" in refusal(capsys, str(tmp_path))
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    assert "the run is not finished (no metrics.json)" in refusal(capsys, str(unfinished))
    (unfinished / "metrics.json").write_bytes((finished / "metrics.json").read_bytes())
    assert "the run's weights are gone" in refusal(capsys, str(unfinished))


def test_changed_files_are_refused(
    finished: Path, options: dict[str, object], tmp_path: Path, capsys
) -> None:
    path = Path(str(options["--data.train"]))
    content = path.read_bytes()
    path.write_bytes(content + b"good,positive,a\n" * 20)
    try:
        message = refusal(capsys, str(finished), "--output", str(tmp_path / "found"))
    finally:
        path.write_bytes(content)
    assert "train.csv: the file has changed since the run" in message


def test_masked_words(words_run: Path, tmp_path: Path, capsys) -> None:
    assert main([str(words_run)]) == 0
    found, before = read_metrics(words_run / "evaluation" / "test"), read_metrics(words_run)["test"]
    assert {name: found[name] for name in before} == before
    assert "perplexity" in before
    assert not (words_run / "evaluation" / "test" / "predictions.csv").exists()
    path = tmp_path / "texts.txt"
    path.write_text("the good cat sat .\na bad dog ran .\n", encoding="utf-8")
    assert main([str(words_run), "--data.test", str(path)]) == 0
    assert read_metrics(words_run / "evaluation" / "texts.txt")["rows"] == 2
    assert "test: masked words" in capsys.readouterr().out
    assert "has no classes" in refusal(capsys, str(words_run), "--slice_by", "source")


def test_help_is_quick() -> None:
    began = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "kbert.evaluate", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--slice_by COLUMN" in process.stdout
    assert "tensorflow" not in process.stderr and "keras" not in process.stderr
    assert time.monotonic() - began < 30
