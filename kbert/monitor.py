"""What TensorBoard shows of a run; the only place that writes summaries."""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api, api_pb2
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

STATUSES = {"completed": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}


@dataclasses.dataclass(frozen=True)
class HyperparameterDescription:
    """What a search may set: one of some values, or a number of an interval.

    Raises:
        ValueError: neither values nor both ends of an interval are given, or both are.
    """

    name: str
    values: tuple[int | float | str, ...] = ()
    """What it may be, all numbers or all words; empty for an interval."""
    minimum: float | None = None
    maximum: float | None = None
    is_integer: bool = False
    """Whether the interval is of whole numbers."""

    def __post_init__(self) -> None:
        ends = [end for end in (self.minimum, self.maximum) if end is not None]
        if len(ends) != (0 if self.values else 2):
            raise ValueError(f"a hyper-parameter has values or an interval; received {self}")


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


def describe_search(
    folder: Path, hyperparameters: Sequence[HyperparameterDescription], metrics: Sequence[str]
) -> None:
    """Tell TensorBoard's HParams tab what the trials below a folder have for columns.

    May be called again when a search goes on.

    Args:
        folder: The search's; its trials are somewhere below it.
        hyperparameters: What the search sets. A trial may well have other values.
        metrics: Names among the figures that `end_trial` is given.
    """
    # A row has one figure for a metric, the last of its tag. The last epoch's need not be those of
    # the model that a trial ends with: its figures have tags of their own.
    columns = [
        api.Metric(_figure_tag(name), display_name=name, dataset_type=api.Metric.VALIDATION)
        for name in metrics
    ]
    summary = hparams_summary.experiment_pb(
        [_info(description) for description in hyperparameters],
        [column.as_proto() for column in columns],
    )
    _write_anew(folder, ".search", [summary.SerializeToString()])


def start_trial(folder: Path, name: str, values: Mapping[str, int | float | str]) -> None:
    """Give a trial its row in the HParams tab, which says "unknown" for its status until its end.

    What an earlier start and end of this trial wrote is removed; curves in folders below stay.

    Args:
        folder: The trial's; its curves are in `train` and `validation` below it.
        name: The row's name. Rows of one name become one row, with the mean of their figures:
            where several searches are looked at together, it must say which one this is of.
        values: The hyper-parameters.
    """
    summary = api.hparams_pb(dict(values), trial_id=name)
    _write_anew(folder, ".trial", [summary.SerializeToString()])


def end_trial(
    folder: Path,
    status: Literal["completed", "failed"],
    *,
    figures: Mapping[str, float] | None = None,
) -> None:
    """Write how a trial ended, and the validation figures of the model that it ends with.

    Args:
        folder: The trial's, as in `start_trial`.
        status: Whether the trial came to its end.
        figures: By metric.
    """
    summaries = [scalar_pb(_figure_tag(name), value) for name, value in (figures or {}).items()]
    end = hparams_summary.session_end_pb(STATUSES[status])
    summaries.append(end)
    _write(folder, ".trial", [summary.SerializeToString() for summary in summaries])


def write_image(folder: Path, tag: str, png: bytes, *, step: int) -> None:
    """Show a picture, its bytes as they are.

    Args:
        folder: Where TensorBoard looks.
        tag: The picture's title; those of one tag are one picture with a slider of steps.
        png: A PNG file.
        step: Its place on the slider.

    Raises:
        ValueError: it is no PNG file.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"not a PNG file; it begins with {png[:8]!r}")
    width, height = struct.unpack(">II", png[16:24])  # of the first chunk, the image's header
    image = summary_pb2.Summary.Image(width=width, height=height, encoded_image_string=png)
    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, image=image)])
    _write(folder, ".image", [summary.SerializeToString()], step=step)


def _figure_tag(metric: str) -> str:
    return f"final/{metric}"


def _info(description: HyperparameterDescription) -> api_pb2.HParamInfo:
    """A column: TensorBoard's charts hide those that do not differ."""
    domain = _domain(description)
    varies = len(set(description.values)) > 1 or description.minimum != description.maximum
    info = api_pb2.HParamInfo(name=description.name, differs=varies)
    domain.update_hparam_info(info)
    return info


def _domain(description: HyperparameterDescription) -> api.Domain:
    values = description.values
    if values:  # of one type: 1 and 0.5 are both floats
        is_float = any(isinstance(value, float) for value in values)
        return api.Discrete([float(value) for value in values] if is_float else values)
    if description.is_integer:
        return api.IntInterval(int(description.minimum), int(description.maximum))
    return api.RealInterval(float(description.minimum), float(description.maximum))


def _write_anew(folder: Path, suffix: str, summaries: Iterable[bytes]) -> None:
    """Write in place of earlier files: of a tag written twice TensorBoard believes the first."""
    for path in folder.glob(f"events.out.tfevents.*{suffix}"):
        path.unlink()
    _write(folder, suffix, summaries)


def _write(folder: Path, suffix: str, summaries: Iterable[bytes], *, step: int = 0) -> None:
    """Write a whole file of events; nothing of it stays open, and TensorFlow does not start.

    A search may fork after it, which TensorFlow's own writers and threads would not survive.
    """
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    try:
        for summary in summaries:
            event = event_pb2.Event(wall_time=time.time(), step=step)
            event.summary.ParseFromString(summary)
            writer.add_event(event)
    finally:
        writer.close()
