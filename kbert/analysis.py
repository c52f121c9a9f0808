"""What a report shows beyond figures: texts behind them, lengths, label errors, slices.

All of it is one dictionary that JSON holds, made of numbers that others have computed: nothing
here runs a model.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.calibration import reliability, softmax
from kbert.data import DataSet
from kbert.label_errors import likely_label_errors
from kbert.slices import by_label, by_length, slice_table
from kbert.text_files import Source, read_rows
from kbert.whole_files import written_whole

if TYPE_CHECKING:
    from kbert.batches import EncodedSplit
    from kbert.tasks.task import Task

Explain = Callable[[list[tuple[str, ...]], np.ndarray], list[list[list[tuple[str, float]]]]]
"""Texts, one tuple a row, and class indices (rows,), to (part of the text, score) of each text."""

ATTRIBUTION = "integrated gradients of the predicted class's logit on the embeddings (32 steps)"
LONGEST_TEXT = 600  # characters
MISTAKES_A_CELL = 200  # of the confusion matrix
RIGHT_A_CLASS = 30
EXPLAINED = 50
LABEL_ERRORS = 200
LENGTH_BINS = 40
LONGEST_SHOWN = 4  # times max_length


def measured_split(splits: Mapping[str, EncodedSplit]) -> str | None:
    """The split whose texts are shown: test, or validation where test has no labels; or None."""
    found = (name for name in ("test", "validation") if name in splits)
    return next((name for name in found if splits[name].labels is not None), None)


def analyse(
    dataset: DataSet,
    task: Task,
    splits: Mapping[str, EncodedSplit],
    *,
    outputs: Mapping[str, np.ndarray] | None = None,
    baseline: np.ndarray | None = None,
    temperature: float | None = None,
    explain: Explain | None = None,
    attribution: str = "",
) -> dict[str, Any]:
    """What analysis.json holds; of a task without classes the part about the data alone.

    Args:
        dataset: The splits as rows of files.
        task: Labels and the longest input.
        splits: The same splits in word pieces; they may hold fewer of the rows.
        outputs: The outputs of `measured_split(splits)`, as `kbert.evaluation.collect` gives
            them: logits and probabilities (rows, classes). None for the part about the data.
        baseline: The baseline's probabilities of these rows, (rows, classes).
        temperature: What was fitted on the validation split, for the reliability after it.
        explain: Tells which words of a text mattered to the logit of a class.
        attribution: How it does that, for people.
    """
    found = _data_part(dataset, task, splits)
    name = measured_split(splits)
    if outputs is None or name is None or not task.labels:
        return found
    answers = _Answers.of(splits[name], outputs, baseline)
    source = dataset.splits[name].source
    found |= {"split": name, "labels": list(task.labels)}
    found["rows"] = _rows(answers, source, _shown(answers))
    found |= _mistakes(answers, source, explain, attribution)
    found["label_errors"] = _label_errors(answers, source, name)
    labels, logits = answers.labels, outputs["logits"]
    found["reliability"] = reliability(labels, softmax(logits)).as_dict()
    if temperature is not None:
        found["reliability_after"] = reliability(labels, softmax(logits, temperature)).as_dict()
    found["slices"] = slice_tables(
        splits[name], answers.predictions, task.labels, baseline=answers.baseline
    )
    return found


def slice_tables(
    split: EncodedSplit,
    predictions: np.ndarray,
    names: Sequence[str],
    *,
    baseline: np.ndarray | None,
) -> dict[str, list[dict[str, Any]]]:
    """How a model does by length and by label, as `kbert.slices.slice_table`.

    Args:
        split: Rows with labels.
        predictions: Predicted class index of each row, int (rows,).
        names: Names of the classes.
        baseline: The baseline's predictions, int (rows,).
    """
    labels = split.labels
    assert labels is not None
    slices = {"length": by_length(split.lengths), "label": by_label(labels, names)}
    return {
        name: slice_table(parts, labels, predictions, num_classes=len(names), baseline=baseline)
        for name, parts in slices.items()
    }


def write_analysis(path: Path, analysis: Mapping[str, Any]) -> None:
    """Write it as JSON in UTF-8, whole or not at all."""
    with written_whole(path) as beside:
        text = json.dumps(analysis, ensure_ascii=False, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")


# The data


def _data_part(dataset: DataSet, task: Task, splits: Mapping[str, EncodedSplit]) -> dict[str, Any]:
    found: dict[str, Any] = {"columns": list(dataset.splits["train"].source.text_columns)}
    if task.labels:
        found["label_counts"] = {
            name: np.bincount(split.labels, minlength=len(task.labels)).tolist()
            for name, split in splits.items()
            if split.labels is not None
        }
    found["lengths"] = _lengths(task, splits)
    found["duplicates"] = dict(dataset.duplicates)
    return found


def _lengths(task: Task, splits: Mapping[str, EncodedSplit]) -> dict[str, Any]:
    """A histogram of the training texts in word pieces, and how many texts are cut.

    edges are whole numbers, ascending; a bin holds what is at least its lower edge and under its
    upper one, and the last one all longer texts too.
    """
    from kbert.batches import packed_sizes  # with TensorFlow

    lengths = splits["train"].lengths
    top = min(int(lengths.max(initial=1)), LONGEST_SHOWN * task.max_length)
    width = math.ceil((top + 1) / LENGTH_BINS)
    edges = np.arange(0, top + width + 1, width)
    return {
        "edges": edges.tolist(),
        "counts": np.histogram(np.minimum(lengths, top), edges)[0].tolist(),
        "median": float(np.median(lengths)),
        "longest": int(lengths.max(initial=0)),
        "max_length": task.max_length,
        "truncated": {
            name: int((~packed_sizes(split, task).is_whole).sum()) for name, split in splits.items()
        },
        "rows": {name: len(split) for name, split in splits.items()},
    }


# The texts behind the figures


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a model says of each row of a split."""

    rows: np.ndarray  # int64 (rows,), numbers in the file, from 0
    labels: np.ndarray  # int (rows,)
    probabilities: np.ndarray  # float64 (rows, classes)
    predictions: np.ndarray  # int (rows,)
    losses: np.ndarray  # float64 (rows,), -log of the label's probability
    baseline: np.ndarray | None  # int (rows,), the baseline's predictions

    @classmethod
    def of(
        cls, split: EncodedSplit, outputs: Mapping[str, np.ndarray], baseline: np.ndarray | None
    ) -> _Answers:
        labels = split.labels
        assert labels is not None
        probabilities = outputs["probabilities"].astype(np.float64)
        of_label = probabilities[np.arange(len(labels)), labels]
        return cls(
            split.rows,
            labels,
            probabilities,
            outputs["label_index"],
            -np.log(np.maximum(of_label, np.finfo(np.float32).tiny)),
            None if baseline is None else baseline.argmax(axis=1),
        )

    @property
    def costliest(self) -> np.ndarray:
        """Positions of all rows, the largest loss first."""
        return np.argsort(-self.losses, kind="stable")


def _shown(answers: _Answers) -> np.ndarray:
    """Positions of the costliest rows of each cell of the confusion matrix, costliest first."""
    seen: Counter[tuple[int, int]] = Counter()
    chosen = []
    for position in answers.costliest.tolist():
        cell = int(answers.labels[position]), int(answers.predictions[position])
        seen[cell] += 1
        if seen[cell] <= (RIGHT_A_CLASS if cell[0] == cell[1] else MISTAKES_A_CELL):
            chosen.append(position)
    return np.array(chosen, np.int64)


def _rows(answers: _Answers, source: Source, positions: np.ndarray) -> list[dict[str, Any]]:
    texts = _texts(answers, source, positions)
    return [_row(answers, int(p), row) for p, row in zip(positions, texts, strict=True)]


def _row(answers: _Answers, position: int, texts: tuple[str, ...]) -> dict[str, Any]:
    label, prediction = int(answers.labels[position]), int(answers.predictions[position])
    found = {
        "row": int(answers.rows[position]) + 1,
        "texts": [_cut(text) for text in texts],
        "label": label,
        "prediction": prediction,
        "probability": _figure(answers.probabilities[position, prediction]),
        "label_probability": _figure(answers.probabilities[position, label]),
        "loss": _figure(answers.losses[position]),
    }
    if answers.baseline is not None:
        found["baseline"] = int(answers.baseline[position])
    return found


def _mistakes(
    answers: _Answers, source: Source, explain: Explain | None, attribution: str
) -> dict[str, Any]:
    """The costliest mistakes; with the words that mattered where they can be told."""
    order = answers.costliest
    wrong = order[answers.labels[order] != answers.predictions[order]][:EXPLAINED]
    texts = _texts(answers, source, wrong)
    found = [_row(answers, int(p), row) for p, row in zip(wrong, texts, strict=True)]
    if explain is None or not found:
        return {"mistakes": found}
    explained = explain(texts, answers.predictions[wrong])
    for row, columns in zip(found, explained, strict=True):
        row["words"] = [
            [[_cut(text), _figure(score)] for text, score in pieces] for pieces in columns
        ]
    return {"mistakes": found, "attribution": attribution}


def _label_errors(answers: _Answers, source: Source, split: str) -> list[dict[str, Any]]:
    suspects = likely_label_errors(answers.labels, answers.probabilities)[:LABEL_ERRORS]
    positions = np.array([suspect.position for suspect in suspects], np.int64)
    texts = _texts(answers, source, positions)
    return [
        {
            "split": split,
            "row": int(answers.rows[suspect.position]) + 1,
            "texts": [_cut(text) for text in row],
            "label": int(answers.labels[suspect.position]),
            "suggested": int(suspect.suggested),
            "probability": _figure(suspect.probability),
        }
        for suspect, row in zip(suspects, texts, strict=True)
    ]


def _texts(answers: _Answers, source: Source, positions: np.ndarray) -> list[tuple[str, ...]]:
    """The whole texts of some rows, one a text column."""
    columns = read_rows(source, answers.rows[positions], source.text_columns)
    return list(zip(*(columns[name] for name in source.text_columns), strict=True))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _figure(value: float) -> float:
    """Six digits, which a page of many rows need not exceed."""
    return float(f"{value:.6g}")
