"""What TensorBoard shows of a run; the only place that writes summaries."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


class TensorBoardMonitor(keras.callbacks.Callback):
    """Curves of training and validation, the options as text, the model's graph.

    Training goes to FOLDER/train and validation to FOLDER/validation under the same tags, so
    that both stand in one chart: by step `loss`, `learning_rate` and the task's metrics over the
    last `every_steps` steps; by epoch `epoch_loss` and so on.

    Args:
        folder: Where TensorBoard looks.
        every_steps: Steps between two points.
        options: Resolved options of the run, as YAML.
    """

    def __init__(self, folder: Path, *, every_steps: int, options: str) -> None:
        super().__init__()
        self.every_steps = every_steps
        self.options = options
        self.train = tf.summary.create_file_writer(str(folder / "train"))
        self.validation = tf.summary.create_file_writer(str(folder / "validation"))
        self.before: list[np.ndarray] | None = None
        self.described = False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if not self.described and self._step() == 0:
            self._describe()
        self.described = True
        self.before = self._sums()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = self._step()
        if step % self.every_steps:
            return
        with self.train.as_default(step):
            for name, value in self._window().items():
                tf.summary.scalar(name, value)
            tf.summary.scalar("learning_rate", self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        for name, value in (logs or {}).items():
            writer = self.validation if name.startswith("val_") else self.train
            with writer.as_default(epoch + 1):
                tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value)
            if writer is self.validation:  # beside the training's points, on the axis of steps
                with writer.as_default(self._step()):
                    tf.summary.scalar(name.removeprefix("val_"), value)
        self.train.flush()
        self.validation.flush()

    def close(self) -> None:
        """Write out what is buffered."""
        self.train.close()
        self.validation.close()

    def _step(self) -> int:
        return int(self.model.optimizer.iterations)

    def _sums(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self.model.metrics_variables]

    def _window(self) -> dict[str, float]:
        """Metrics since the last point: they are of sums, so of the difference of the sums."""
        now = self._sums()
        if self.before is not None and len(self.before) == len(now):
            self._assign([new - old for new, old in zip(now, self.before, strict=True)])
        values = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        self._assign(now)
        self.before = now
        return values

    def _assign(self, values: list[np.ndarray]) -> None:
        for variable, value in zip(self.model.metrics_variables, values, strict=True):
            variable.assign(value)

    def _describe(self) -> None:
        """The options, and the graph of the forward pass."""
        forward = tf.function(lambda inputs: self.model(inputs, training=False))
        specs = {
            name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
            for name, tensor in self.model.input.items()
        }
        with self.train.as_default(0):
            tf.summary.text("options", f"```yaml\n{self.options}\n```")
            tf.summary.graph(forward.get_concrete_function(specs).graph)
