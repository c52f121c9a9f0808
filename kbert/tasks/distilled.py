"""A task as a student learns it: from labels, and from what a teacher's model says."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from kbert.config import DistillOptions
from kbert.losses import DistillationLoss, join_distilled, split_distilled
from kbert.tasks.task import Rows, Task


class Distilled:
    """A task whose training rows come with the outputs of a teacher's model, some without a label.

    Its rows have two more targets than the task's: the teacher's outputs, float32 (rows, outputs),
    and 1, or 0 for a row without a label. All but batches, loss and metrics for training is the
    task's own, and so is what measures a model.

    Args:
        task: What is learnt; one of `kbert.config.DISTILLABLE`.
        options: How.
    """

    def __init__(self, task: Task, options: DistillOptions) -> None:
        self.measured = task
        self.options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self.measured, name)

    def batch(self, rows: Rows, seed: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, Any]:
        """Packed inputs, what `DistillationLoss` takes, weights (batch,): 1 without a label."""
        *targets, theirs, flags = rows.targets
        labelled = flags.values
        inputs, labels, weights = self.measured.batch(rows._replace(targets=targets), seed)
        weights = tf.where(labelled > 0, weights, 1.0)
        return inputs, join_distilled(labels, theirs.values, labelled), weights

    def loss(self) -> keras.losses.Loss:
        """That to the labels, and the teacher's."""
        return DistillationLoss(
            self.measured.loss(),
            self.measured.teacher_loss(self.options.temperature),
            alpha=self.options.alpha,
        )

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """The task's, of the rows with a label."""
        return {
            kind: [OfLabelled(metric) for metric in metrics]
            for kind, metrics in self.measured.metrics().items()
        }


class OfLabelled(keras.metrics.Metric):
    """A metric of the rows with a label, under its name.

    Args:
        metric: It, of labels and outputs (batch, outputs).
    """

    def __init__(self, metric: keras.metrics.Metric) -> None:
        super().__init__(name=metric.name, dtype=metric.dtype)
        self.metric = metric

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Count a batch, of labels as of `DistillationLoss`."""
        labels, _, labelled = split_distilled(y_true)
        weights = labelled if sample_weight is None else labelled * sample_weight
        self.metric.update_state(labels, y_pred, sample_weight=weights)

    def result(self):
        """The metric's."""
        return self.metric.result()
