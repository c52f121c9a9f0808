"""A training step computed in parts, one after the other, in the memory of one part."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from kbert.evaluation import by_output, losses_by_output
from kbert.tasks.task import Task

Sum = tf.Tensor | tuple[tf.TensorArray, tf.TensorArray]
"""The gradients of the parts so far: added up, or the values and the indices of each part."""


class AccumulatingModel(keras.Model):
    """A functional model whose training step goes over the parts of a batch.

    What a part has computed is given back before the next one begins. Each part's losses count by
    its share of the weights of all rows, so that loss and gradients are those of the whole batch,
    however the rows are weighed and however many a part has. Dropout draws anew for each part.
    Nothing is left of a step when it ends: optimizer, schedule and checkpoints know of no parts.

    Metrics must be sums over rows. `task` and `parts` are set before the first step, see
    `accumulating`.
    """

    task: Task
    parts: int = 1
    """Of how many parts, as equal as can be, a batch is; no part is without examples."""

    def train_step(self, data: tuple[dict[str, tf.Tensor], Any, Any]) -> dict[str, Any]:
        """One update by (inputs, targets, weights) as `Task.batch` gives them."""
        inputs, targets, weights = data
        totals = [tf.reduce_sum(weight) for weight in by_output(weights).values()]
        losses, gradients = self.losses_and_gradients(data, totals)
        self.optimizer.apply(gradients, self.trainable_variables)
        rows = tf.shape(keras.tree.flatten(inputs)[0])[0]
        self.record(losses, list(by_output(targets)), rows)
        return self.get_metrics_result()

    def losses_and_gradients(
        self, data: tuple[dict[str, tf.Tensor], Any, Any], totals: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor | tf.IndexedSlices]]:
        """The loss of each output of the model and the gradients of all trained variables.

        Args:
            data: Inputs, targets and weights, of all rows of a step or of some.
            totals: The sum of the weights of all rows of the step, of each output.

        Returns:
            What these rows add to the losses, and to the gradients, of the step.
        """
        inputs, targets, weights = data
        variables = self.trainable_variables
        examples = tf.shape(next(iter(by_output(targets).values())))[0]
        parts = tf.minimum(self.parts, examples)
        loss_functions = self.task.loss()
        # Keras divides losses by the number of replicas that train side by side
        replicas = tf.distribute.get_strategy().num_replicas_in_sync

        def of_part(x: Any, y: Any, w: Any) -> tuple[list[tf.Tensor], list]:
            shares = [
                replicas * tf.math.divide_no_nan(tf.reduce_sum(weight), total)
                for weight, total in zip(by_output(w).values(), totals, strict=True)
            ]
            with tf.GradientTape() as tape:
                predicted = self(x, training=True)
                found = losses_by_output(loss_functions, y, predicted, w)
                found = [loss * share for loss, share in zip(found, shares, strict=True)]
                loss = self.optimizer.scale_loss(tf.add_n(found))
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            self.count(x, y, predicted, w)
            return found, gradients

        if self.parts == 1:
            return of_part(inputs, targets, weights)

        def add(part: tf.Tensor, losses: list[tf.Tensor], sums: list[Sum]) -> tuple:
            start, end = part * examples // parts, (part + 1) * examples // parts
            found, gradients = of_part(*self.task.examples(data, start, end))
            losses = [of + more for of, more in zip(losses, found, strict=True)]
            sums = [_added(of, more, part) for of, more in zip(sums, gradients, strict=True)]
            return part + 1, losses, sums

        _, losses, sums = tf.while_loop(
            lambda part, losses, sums: part < parts,
            add,
            (tf.constant(0), [tf.constant(0.0) for _ in totals], self._zeros(variables, parts)),
            parallel_iterations=1,
        )
        return losses, [_whole(of, variable) for of, variable in zip(sums, variables, strict=True)]

    def count(self, inputs: Any, targets: Any, predicted: Any, weights: Any) -> None:
        """Add a part's rows to the metrics."""
        self.compute_metrics(inputs, targets, predicted, sample_weight=weights)
        if not self._compile_loss.built:  # as its first call does: a mean for each of outputs
            self._compile_loss.build(targets, predicted)

    def record(self, losses: list[tf.Tensor], outputs: list[str], rows: tf.Tensor) -> None:
        """What Keras' own step does with the loss of a batch, and with those of its outputs.

        Args:
            losses: Of each output.
            outputs: Their names.
            rows: How many rows the model was given.
        """
        means = {metric.name: metric for metric in self.metrics}
        means["loss"].update_state(tf.add_n(losses), sample_weight=rows)
        if len(losses) > 1:
            for name, loss in zip(outputs, losses, strict=True):
                means[f"{name}_loss"].update_state(loss)

    def _zeros(self, variables: list[keras.Variable], parts: tf.Tensor) -> list[Sum]:
        """Sums of no gradients; those of few rows of an embedding stay apart, as AdamW wants."""
        rows = getattr(self.optimizer, "rows", {})
        return [
            _no_rows(variable, parts) if variable.path in rows else tf.zeros(variable.shape)
            for variable in variables
        ]


def accumulating(model: keras.Model, task: Task, parts: int) -> AccumulatingModel:
    """The same functional model, of the same layers, with the step of `AccumulatingModel`.

    Args:
        model: Of the task.
        task: Brings losses, and takes batches apart.
        parts: Of a batch.
    """
    made = AccumulatingModel(model.input, model.output, name=model.name)
    made.task = task
    made.parts = parts
    return made


def _no_rows(variable: keras.Variable, parts: tf.Tensor) -> tuple[tf.TensorArray, tf.TensorArray]:
    shapes = (tf.TensorShape([None, *variable.shape[1:]]), tf.TensorShape([None]))
    return tuple(
        tf.TensorArray(dtype, parts, infer_shape=False, element_shape=shape)
        for dtype, shape in zip((tf.float32, tf.int32), shapes, strict=True)
    )


def _added(of: Sum, gradient: tf.Tensor | tf.IndexedSlices, part: tf.Tensor) -> Sum:
    if not isinstance(of, tuple):
        return of + tf.convert_to_tensor(gradient)
    values, indices = of
    return values.write(part, gradient.values), indices.write(
        part, tf.cast(gradient.indices, tf.int32)
    )


def _whole(of: Sum, variable: keras.Variable) -> tf.Tensor | tf.IndexedSlices:
    if not isinstance(of, tuple):
        return of
    values, indices = of
    return tf.IndexedSlices(values.concat(), indices.concat(), list(variable.shape))
