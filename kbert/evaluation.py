"""Measure a model on a split: the outputs of all rows, their figures, predictions.csv."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.csv
import tensorflow as tf

from kbert.batches import EncodedSplit, evaluation_batches, evaluation_order
from kbert.calibration import softmax
from kbert.encoder import computed_in_parts
from kbert.kernel_threads import cores, has_one_thread_a_kernel
from kbert.metrics import classes_report, intervals, probability_figures
from kbert.paired_tests import mcnemar
from kbert.scope import scope_report
from kbert.tasks.task import Gold, Task
from kbert.whole_files import written_whole

BATCH_SIZE = 32


class Evaluator:
    """Measures a model on a split, as often as wanted; the graph is traced once.

    Args:
        model: Model of the task; its weights may change between two calls.
        task: Brings loss, metrics and outputs.
        split: Rows to measure, with all of their batches in the same order at every call.
        batch_size: Rows a batch.
        generate: Whether to add what only the task's `generate` gives, which takes long.
    """

    def __init__(
        self,
        model: keras.Model,
        task: Task,
        split: EncodedSplit,
        *,
        batch_size: int = BATCH_SIZE,
        generate: bool = False,
    ) -> None:
        self.model = model
        self.task = task
        self.gold = split.gold
        self.generates = generate and task.generates
        self.batches = evaluation_batches(split, task, batch_size=batch_size)
        order = np.concatenate(evaluation_order(split, task, batch_size=batch_size))
        self.places = np.argsort(order)
        self.losses = by_output(task.loss())
        self.metrics = TaskMetrics(task.metrics())
        self.measured = tf.function(self._measured, reduce_retracing=True)

    def validate(
        self, *, between: Callable[[], None] | None = None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Loss and metrics as training has them, and the task's outputs of every row.

        Args:
            between: Called before each batch; what it raises ends the pass.

        Returns:
            Figures by name, the loss being the mean over all rows by their weights, and the sum of
            such means where there are several outputs; outputs as `collect` gives them.
        """
        self.metrics.reset()
        losses = np.zeros(len(self.losses))
        weights = np.zeros(len(self.losses))
        collected: dict[str, list[np.ndarray]] = {}
        for batch in self.batches:
            if between is not None:
                between()
            outputs, loss, weight = self.measured(*batch)
            losses += loss.numpy() * weight.numpy()
            weights += weight.numpy()
            for name, values in outputs.items():
                collected.setdefault(name, []).append(_collected(values))
        figures = {"loss": float(np.sum(losses / np.where(weights, weights, 1.0)))}
        figures |= {name: float(of.result()) for name, of in self.metrics.by_name.items()}
        return figures, self._in_order(collected)

    def _measured(
        self, inputs: dict[str, tf.Tensor], targets: Any, weights: Any
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Outputs of a batch; of each output of the model its loss and its sum of weights."""
        with (
            computed_in_parts(self.model, cores())
            if has_one_thread_a_kernel()
            else contextlib.nullcontext()
        ):
            predicted = self.model(inputs, training=False)
        self.metrics.update(targets, predicted, weights)
        losses = losses_by_output(self.losses, targets, predicted, weights)
        weighed = by_output(weights)
        sums = [tf.reduce_sum(weighed[name]) for name in self.losses]
        outputs = self.task.outputs(predicted, targets, weights)
        if self.generates:
            outputs |= self.task.generate(self.model, inputs)
        return outputs, tf.stack(losses), tf.stack(sums)

    def _in_order(self, collected: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        """The parts of all batches as one array a name, in the order of the split."""
        return {name: np.concatenate(parts)[self.places] for name, parts in collected.items()}


class TaskMetrics:
    """The metrics of a task, of all outputs of its model.

    Args:
        found: What the task's `metrics` gave.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.unweighted = by_output(found.get("metrics", []))
        self.weighted = by_output(found.get("weighted_metrics", []))
        self.by_name = {**named_metrics(self.unweighted), **named_metrics(self.weighted)}
        """By the names that Keras' `fit` reports them under."""

    @property
    def variables(self) -> list[keras.Variable]:
        """What they keep: sums over rows."""
        return [variable for metric in self.by_name.values() for variable in metric.variables]

    def reset(self) -> None:
        """Forget all rows."""
        for metric in self.by_name.values():
            metric.reset_state()

    def update(self, targets: Any, predicted: Any, weights: Any) -> None:
        """Count a batch, all arguments being as `Task` gives them."""
        gold, given, weighed = by_output(targets), by_output(predicted), by_output(weights)
        for name, metrics in self.unweighted.items():
            for metric in metrics:
                metric.update_state(gold[name], given[name])
        for name, metrics in self.weighted.items():
            for metric in metrics:
                metric.update_state(gold[name], given[name], sample_weight=weighed[name])


def by_output(of: Any) -> dict[str, Any]:
    """What a task gives for each output of its model; under "" for the one that has no name."""
    return of if isinstance(of, dict) else {"": of}


def losses_by_output(losses: Any, targets: Any, predicted: Any, weights: Any) -> list[tf.Tensor]:
    """The loss of each output of the model, all arguments being as `Task` gives them."""
    gold, given, weighed = by_output(targets), by_output(predicted), by_output(weights)
    return [
        loss(gold[name], given[name], sample_weight=weighed[name])
        for name, loss in by_output(losses).items()
    ]


def metric_names(task: Task) -> list[str]:
    """Names of the task's metrics, as Keras' `fit` reports them."""
    return [name for found in task.metrics().values() for name in named_metrics(by_output(found))]


def epoch_names(task: Task) -> list[str]:
    """Names of what is known of the validation split after each epoch, but for the loss."""
    headline = () if task.generates else task.headline
    return list(dict.fromkeys([*metric_names(task), *headline]))


def named_metrics(metrics: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The metrics of `by_output` by the names that Keras' `fit` reports them under."""
    return {
        f"{output}_{metric.name}" if output else metric.name: metric
        for output, found in metrics.items()
        for metric in found
    }


def _collected(values: tf.Tensor | tf.RaggedTensor) -> np.ndarray:
    """An output of a batch in numpy; a ragged one as an object array of one array a row."""
    if not isinstance(values, tf.RaggedTensor):
        return values.numpy()
    flat, splits = values.flat_values.numpy(), values.row_splits.numpy()
    rows = np.empty(len(splits) - 1, object)
    for row, (start, end) in enumerate(itertools.pairwise(splits)):
        rows[row] = flat[start:end]
    return rows


def collect(model: keras.Model, task: Task, split: EncodedSplit) -> dict[str, np.ndarray]:
    """The task's outputs of every row, in the order of the split, each (rows, ...)."""
    return Evaluator(model, task, split, generate=True).validate()[1]


def collect_outside(
    model: keras.Model, task: Task, split: EncodedSplit
) -> dict[str, np.ndarray] | None:
    """The outputs of the rows of a split that are of no class; None where there are none."""
    return collect(model, task, split.out_of_scope) if len(split.outside) else None


def measure(model: keras.Model, task: Task, split: EncodedSplit) -> dict[str, Any]:
    """The task's figures of a split."""
    return task.score(collect(model, task, split), split.gold)


def appraise(
    task: Task,
    gold: Gold,
    outputs: dict[str, np.ndarray],
    *,
    baseline: np.ndarray | None,
    temperature: float | None,
    outside: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """All that metrics.json says of a split.

    To `task.score` it adds, for a task that classifies: `intervals` by bootstrap; under `baseline`
    the same figures of the linear model, and under `paired` McNemar's test of the two; under
    `calibration` what the temperature does to log loss and calibration error; and under
    `out_of_scope` what the threshold does, see `kbert.scope.scope_report`.

    Args:
        task: What was done.
        gold: What the rows should be answered.
        outputs: What `collect` found.
        baseline: The linear model's probabilities (rows, classes); None without one.
        temperature: Fitted on the validation split, applied or not; None without one.
        outside: What `collect_outside` found.
    """
    metrics, labels = task.score(outputs, gold), gold.labels
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
    if outside is not None:
        metrics["out_of_scope"] = scope_report(
            labels, outputs["probabilities"], outside["probabilities"], threshold=task.threshold
        )
    return metrics


def _calibration(
    when: str, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, float | None]:
    figures = probability_figures(labels, probabilities)
    return {f"{name}_{when}": figures[name] for name in ("ece", "log_loss")}


def write_predictions(
    path: Path,
    task: Task,
    split: EncodedSplit,
    outputs: dict[str, np.ndarray],
    *,
    outside: dict[str, np.ndarray] | None = None,
) -> None:
    """A CSV of the task's predictions: row (from 1, in its file), label if known, prediction ...

    Nothing is written for a task without predictions.

    Args:
        path: The file.
        task: What was done.
        split: The rows.
        outputs: What `collect` found.
        outside: What `collect_outside` found.
    """
    labels = None
    if split.labels is not None:
        named = bool(task.labels)
        labels = [task.labels[of] if named else str(of) for of in split.labels]
    table = _predictions(task, split, labels, outputs)
    if table is None:
        return
    if outside is not None:
        rows = split.out_of_scope
        more = _predictions(task, rows, [task.options.out_of_scope] * len(rows), outside)
        table = pa.concat_tables([table, more]).sort_by("row")
    with written_whole(path) as beside:
        pa.csv.write_csv(table, beside, pa.csv.WriteOptions(quoting_style="needed"))


def _predictions(
    task: Task, split: EncodedSplit, labels: list[str] | None, outputs: dict[str, np.ndarray]
) -> pa.Table | None:
    columns = task.predictions(outputs, split.gold)
    if not columns:
        return None
    known = {} if labels is None else {"label": labels}
    return pa.table({"row": split.rows + 1, **known, **columns})
