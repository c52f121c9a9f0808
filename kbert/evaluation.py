"""Measure a model on a split: the outputs of all rows, their figures, predictions.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.csv
import tensorflow as tf

from kbert.batches import EncodedSplit, evaluation_batches, length_order
from kbert.calibration import softmax
from kbert.metrics import classes_report, intervals, probability_figures
from kbert.paired_tests import mcnemar
from kbert.tasks.task import Task
from kbert.whole_files import written_whole

BATCH_SIZE = 32


class Evaluator:
    """Measures a model on a split, as often as wanted; the graph is traced once.

    Args:
        model: Model of the task; its weights may change between two calls.
        task: Brings loss, metrics and outputs.
        split: Rows to measure, with all of their batches in the same order at every call.
        batch_size: Rows a batch.
    """

    def __init__(
        self, model: keras.Model, task: Task, split: EncodedSplit, *, batch_size: int = BATCH_SIZE
    ) -> None:
        self.model = model
        self.task = task
        self.batches = evaluation_batches(split, task, batch_size=batch_size)
        order = np.concatenate(length_order(split.lengths, batch_size=batch_size))
        self.places = np.argsort(order)
        self.loss = task.loss()
        found = task.metrics()
        self.unweighted, self.weighted = found.get("metrics", []), found.get("weighted_metrics", [])
        self.measured = tf.function(self._measured, reduce_retracing=True)

    def validate(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Loss and metrics as training has them, and the task's outputs of every row.

        Returns:
            Figures by name, the loss being the mean over all rows by their weights; outputs as
            `collect` gives them.
        """
        metrics = [*self.unweighted, *self.weighted]
        for metric in metrics:
            metric.reset_state()
        losses, weights = 0.0, 0.0
        collected: dict[str, list[np.ndarray]] = {}
        for batch in self.batches:
            outputs, loss, weight = self.measured(*batch)
            losses += float(loss) * float(weight)
            weights += float(weight)
            for name, values in outputs.items():
                collected.setdefault(name, []).append(values.numpy())
        figures = {"loss": losses / weights if weights else 0.0}
        figures |= {metric.name: float(metric.result()) for metric in metrics}
        return figures, self._in_order(collected)

    def _measured(
        self, inputs: dict[str, tf.Tensor], targets: tf.Tensor, weights: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        predicted = self.model(inputs, training=False)
        for metric in self.unweighted:
            metric.update_state(targets, predicted)
        for metric in self.weighted:
            metric.update_state(targets, predicted, sample_weight=weights)
        loss = self.loss(targets, predicted, sample_weight=weights)
        return self.task.outputs(predicted, targets, weights), loss, tf.reduce_sum(weights)

    def _in_order(self, collected: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        """The parts of all batches as one array a name, in the order of the split."""
        return {name: np.concatenate(parts)[self.places] for name, parts in collected.items()}


def collect(model: keras.Model, task: Task, split: EncodedSplit) -> dict[str, np.ndarray]:
    """The task's outputs of every row, in the order of the split, each (rows, ...)."""
    return Evaluator(model, task, split).validate()[1]


def measure(model: keras.Model, task: Task, split: EncodedSplit) -> dict[str, Any]:
    """The task's figures of a split."""
    return task.score(collect(model, task, split), split.labels)


def appraise(
    task: Task,
    labels: np.ndarray | None,
    outputs: dict[str, np.ndarray],
    *,
    baseline: np.ndarray | None,
    temperature: float | None,
) -> dict[str, Any]:
    """All that metrics.json says of a split.

    To `task.score` it adds, for a task that classifies: `intervals` by bootstrap; under `baseline`
    the same figures of the linear model, and under `paired` McNemar's test of the two; under
    `calibration` what the temperature does to log loss and calibration error.

    Args:
        task: What was done.
        labels: Class index of each row, int (rows,); None where they are not known.
        outputs: What `collect` found.
        baseline: The linear model's probabilities (rows, classes); None without one.
        temperature: Fitted on the validation split, applied or not; None without one.
    """
    metrics = task.score(outputs, labels)
    if labels is None or not task.classifies:
        return metrics
    probabilities = softmax(outputs["logits"], task.temperature)
    metrics["intervals"] = intervals(labels, probabilities)
    if baseline is not None:
        linear = classes_report(labels, baseline, task.labels)
        del linear["confusion_matrix"], linear["labels"]
        metrics["baseline"] = {**linear, "intervals": intervals(labels, baseline)}
        ours, theirs = outputs["label_index"] == labels, baseline.argmax(axis=1) == labels
        test = mcnemar(ours, theirs)
        metrics["paired"] = {
            "only_ours": test.only_ours,
            "only_baseline": test.only_theirs,
            "p_value": test.p_value,
        }
    if temperature is not None:
        metrics["calibration"] = {
            "temperature": temperature,
            "applied": task.is_calibrated,
            **_calibration("before", labels, softmax(outputs["logits"])),
            **_calibration("after", labels, softmax(outputs["logits"], temperature)),
        }
    return metrics


def _calibration(
    when: str, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, float | None]:
    figures = probability_figures(labels, probabilities)
    return {f"{name}_{when}": figures[name] for name in ("ece", "log_loss")}


def write_predictions(
    path: Path, task: Task, split: EncodedSplit, outputs: dict[str, np.ndarray]
) -> None:
    """A CSV of the task's predictions: row (from 1, in its file), label if known, prediction ...

    Nothing is written for a task without predictions.
    """
    columns = task.predictions(outputs)
    if not columns:
        return
    table: dict[str, list] = {"row": [int(row) + 1 for row in split.rows]}
    if split.labels is not None:
        table["label"] = [task.labels[index] for index in split.labels]
    table.update(columns)
    with written_whole(path) as beside:
        pa.csv.write_csv(pa.table(table), beside, pa.csv.WriteOptions(quoting_style="needed"))
