"""kbert.analysis: the right texts behind the right figures, in the shape that the report reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kbert.analysis import (
    LONGEST_TEXT,
    MISTAKES_A_CELL,
    RIGHT_A_CLASS,
    analyse,
    measured_split,
    write_analysis,
)
from kbert.batches import EncodedSplit, encode_split
from kbert.config import parse
from kbert.data import DataSet, read_dataset
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks import task_class
from kbert.tasks.task import Learned, Task

LONG = "the cat sat . " * 60  # 840 characters, 240 word pieces


class Setting:
    """A task and its splits, without a model."""

    def __init__(self, words: list[str], checkpoint: Path) -> None:
        config = parse(words)
        kind = task_class(config.task.name)
        self.dataset: DataSet = read_dataset(config.data, kind.columns(config), seed=0)
        labels = self.dataset.labels
        learned = Learned(labels, np.ones(len(labels), int))
        self.task: Task = kind(config, tokenizer_from_files(checkpoint), learned)
        self.splits: dict[str, EncodedSplit] = {
            name: encode_split(split, self.task, cache_dir=config.data.cache_dir)
            for name, split in self.dataset.splits.items()
        }

    def analyse(self, **arguments) -> dict:
        return analyse(self.dataset, self.task, self.splits, **arguments)


def outputs_of(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """As a model gives them."""
    logits = np.log(probabilities).astype(np.float32)
    return {
        "logits": logits,
        "probabilities": probabilities.astype(np.float32),
        "label_index": probabilities.argmax(axis=1).astype(np.int32),
    }


def write_csv(path: Path, rows: list[tuple[str, ...]]) -> Path:
    path.write_text("\n".join(map(",".join, rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def setting(tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path) -> Setting:
    """Six training rows of which two are the same, five test rows; max_length is 12."""
    train = [("a cat", "x"), ("a cat", "x"), ("dog", "y"), ("a dog", "y"), (LONG, "y"), (".", "z")]
    test = [("good cat", "x"), (LONG, "x"), ("bad dog", "y"), ("dog", "y"), ("好 人", "z")]
    head = ("text", "label")
    files = [
        *("--data.train", str(write_csv(tmp_path / "train.csv", [head, *train]))),
        *("--data.test", str(write_csv(tmp_path / "test.csv", [head, *test]))),
        *("--data.validation_fraction", "0"),
    ]
    return Setting([*tiny_options, *files], tiny_checkpoint)


PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1],  # right
        [0.01, 0.98, 0.01],  # x for y, the costliest
        [0.3, 0.6, 0.1],  # right
        [0.6, 0.3, 0.1],  # y for x
        [0.1, 0.1, 0.8],  # right
    ]
)


def test_the_part_about_the_data(setting: Setting) -> None:
    found = setting.analyse()
    assert found["columns"] == ["text"]
    assert found["label_counts"] == {"train": [2, 3, 1], "test": [2, 2, 1]}
    assert found["duplicates"] == {"train": 1, "train/test": 2}
    lengths = found["lengths"]
    # 48, four times max_length, is the last that is shown; LONG is counted there
    assert lengths["edges"] == list(range(0, 51, 2))
    assert lengths["counts"] == [2, 3, *[0] * 22, 1]
    assert lengths["longest"] == 240 and lengths["median"] == 2
    assert lengths["max_length"] == 12
    assert lengths["truncated"] == {"train": 1, "test": 1}
    assert lengths["rows"] == {"train": 6, "test": 5}
    assert set(found) == {"columns", "label_counts", "duplicates", "lengths"}


@pytest.mark.parametrize(("columns", "longest"), [(1, 10), (2, 9)])
def test_truncated_is_what_the_packer_cuts(
    columns: int, longest: int, tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = ("a", "b")[:columns]
    texts = [("cat " * (count - columns + 1), "dog")[:columns] for count in range(5, 15)]
    rows = [(*names, "label"), *((*row, "xy"[i % 2]) for i, row in enumerate(texts))]
    words = ["--data.train", str(write_csv(tmp_path / "pairs.csv", rows))]
    words += ["--data.text_column", f"[{', '.join(names)}]"]
    words += ["--data.validation_fraction", "0", "--data.test_fraction", "0"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    assert setting.splits["train"].lengths.tolist() == list(range(5, 15))
    assert setting.analyse()["lengths"]["truncated"] == {"train": 14 - longest}


def test_rows_and_mistakes(setting: Setting) -> None:
    baseline = PROBABILITIES[:, [1, 0, 2]]
    asked = []

    def explain(texts, class_index):
        asked.append((texts, class_index.tolist()))
        return [[[(text[:3], 0.123456789), (text[3:], 0.0)]] for (text,) in texts]

    found = setting.analyse(
        outputs=outputs_of(PROBABILITIES), baseline=baseline, explain=explain, attribution="by hand"
    )
    assert found["split"] == "test" and found["labels"] == ["x", "y", "z"]
    assert [row["row"] for row in found["rows"]] == [2, 4, 3, 1, 5]
    costliest, second = found["rows"][:2]
    assert costliest.pop("texts") == [LONG[: LONGEST_TEXT - 1] + "…"]
    assert costliest == {
        "row": 2,
        "label": 0,
        "prediction": 1,
        "probability": 0.98,
        "label_probability": 0.01,
        "loss": pytest.approx(-np.log(0.01), abs=1e-5),
        "baseline": 0,
    }
    assert second["texts"] == ["dog"]
    # whole texts are explained, and only mistakes
    assert asked == [([(LONG,), ("dog",)], [1, 0])]
    assert found["attribution"] == "by hand"
    assert found["mistakes"][1]["words"] == [[["dog", 0.123457], ["", 0.0]]]


def test_calibration_slices_and_label_errors(setting: Setting) -> None:
    outputs = outputs_of(PROBABILITIES)
    found = setting.analyse(outputs=outputs, temperature=2.0)
    assert sum(found["reliability"]["counts"]) == 5
    gap = abs(np.array([0.7, 0.98, 0.6, 0.6, 0.8]) - [1, 0, 1, 0, 1])
    assert found["reliability"]["ece"] == pytest.approx(
        (gap[0] + gap[1] + abs(0.6 - 0.5) * 2 + gap[4]) / 5, abs=1e-6
    )
    assert found["reliability_after"]["ece"] != found["reliability"]["ece"]
    assert "reliability_after" not in setting.analyse(outputs=outputs)
    lengths, labels = found["slices"]["length"], found["slices"]["label"]
    assert [(row["slice"], row["rows"], row["accuracy"]) for row in lengths] == [
        ("1 word piece", 1, 0.0),
        ("2 word pieces", 3, 1.0),
        ("3-240 word pieces", 1, 0.0),
    ]
    assert [(row["slice"], row["rows"]) for row in labels] == [("x", 2), ("y", 2), ("z", 1)]
    (suspect,) = [row for row in found["label_errors"] if row["row"] == 2]
    assert suspect["split"] == "test" and suspect["label"] == 0 and suspect["suggested"] == 1
    assert suspect["probability"] == 0.98
    assert suspect["texts"] == [LONG[: LONGEST_TEXT - 1] + "…"]
    assert "words" not in found["mistakes"][0] and "attribution" not in found
    assert "baseline" not in found["rows"][0]


def test_limits_of_rows(tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    head = ("text", "label")
    train = write_csv(tmp_path / "train.csv", [head, ("cat", "x"), ("dog", "y")])
    rows = [("cat", "x")] * 250 + [("dog", "y")] * 50
    test = write_csv(tmp_path / "test.csv", [head, *rows])
    words = ["--data.train", str(train), "--data.test", str(test)]
    words += ["--data.validation_fraction", "0"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    second = np.linspace(0.6, 0.99, 300)  # every row is said to be y, later ones with more
    probabilities = np.stack([1 - second, second], axis=1)
    found = setting.analyse(outputs=outputs_of(probabilities))
    numbers = {
        label: [row["row"] for row in found["rows"] if row["label"] == label] for label in (0, 1)
    }
    assert numbers[0] == list(range(250, 250 - MISTAKES_A_CELL, -1))
    assert numbers[1] == list(range(251, 251 + RIGHT_A_CLASS))
    assert [row["row"] for row in found["mistakes"]] == numbers[0][:50]


def test_it_is_json_and_the_same_every_time(setting: Setting, tmp_path: Path) -> None:
    certain = np.array([[1.0, 0.0, 0.0]] * 5)  # a loss that is infinite but for rounding
    outputs = {**outputs_of(PROBABILITIES), "probabilities": certain.astype(np.float32)}
    outputs["label_index"] = certain.argmax(axis=1)
    path = tmp_path / "analysis.json"
    write_analysis(path, setting.analyse(outputs=outputs, temperature=0.05))
    first = path.read_bytes()
    assert "好 人" in first.decode("utf-8")
    assert json.loads(first)["mistakes"][0]["loss"] > 80
    write_analysis(path, setting.analyse(outputs=outputs, temperature=0.05))
    assert path.read_bytes() == first


def test_the_split_that_is_measured(setting: Setting) -> None:
    labelled, unlabelled = setting.splits["test"], setting.splits["test"].take(np.arange(2))
    unlabelled = EncodedSplit(unlabelled.segments, unlabelled.rows, None)
    assert measured_split({"train": labelled}) is None
    assert measured_split({"train": labelled, "test": labelled}) == "test"
    assert measured_split({"validation": labelled, "test": unlabelled}) == "validation"
    setting.splits["test"] = unlabelled
    found = setting.analyse(outputs=outputs_of(PROBABILITIES))
    assert found["label_counts"] == {"train": [2, 3, 1]} and "rows" not in found


def test_a_task_without_classes(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    setting = Setting([*tiny_options, "--task", "masked_lm"], tiny_checkpoint)
    found = setting.analyse(outputs={"loss": np.ones(10)})
    assert set(found) == {"columns", "lengths", "duplicates"}
    assert found["lengths"]["rows"] == {"train": 81, "validation": 10, "test": 10}
    assert sum(found["lengths"]["counts"]) == 81
