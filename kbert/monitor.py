"""TensorBoard's file formats, without TensorFlow and Keras; the only place that writes them.

A folder with a file of events is a run. The values of one tag must be of one kind.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from google.protobuf import text_format
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.pr_curve import metadata as pr_curves
from tensorboard.plugins.projector import metadata as projector
from tensorboard.plugins.projector import projector_config_pb2
from tensorboard.plugins.scalar import metadata as scalars
from tensorboard.plugins.text import metadata as texts
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from kbert.whole_files import written_whole

Value: TypeAlias = summary_pb2.Summary.Value

STATUSES = {"completed": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}
THRESHOLDS = 201
"""Of a PR curve."""
BUCKETS = 30
"""Of a histogram."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""What TensorBoard's pages cannot show in a name, and what would end a line of a table."""
_serial = itertools.count()


class EventFile:
    """Appends to a file of events; between two calls neither file nor thread is open.

    The file is made at the first write. A copy, an unpickled one and the same object after a fork
    write files of their own. Where several are in a folder, the later sorts later.

    TensorBoard's reader in Python (`--load_fast=false`) leaves a file for good once it sees a later
    one: while a run goes on, one folder should be written through one object.

    Example:

    ```python
    events = EventFile(Path("runs/news/tensorboard/train"))
    events.write([scalar("loss", 0.5), text("note", "*well*")], step=10)
    ```

    Args:
        folder: Where TensorBoard looks, or below it; the run has its name. It need not be there.
        suffix: How the file's name ends.
    """

    def __init__(self, folder: Path, *, suffix: str = "") -> None:
        self.folder = folder
        self.suffix = suffix
        self._path: Path | None = None
        self._process = 0

    def write(self, values: Iterable[Value], *, step: int, wall_time: float | None = None) -> None:
        """Append one event, which TensorBoard can read at once.

        Args:
            values: What `scalar`, `text`, `image`, `pr_curve` and `histogram` make.
            step: Their place on the axis.
            wall_time: Seconds since 1970; now, if None.
        """
        summary = summary_pb2.Summary(value=values)
        if summary.value:
            now = time.time() if wall_time is None else wall_time
            self._append(event_pb2.Event(wall_time=now, step=step, summary=summary))

    def files(self) -> list[Path]:
        """Those that this object and earlier ones of the same folder and suffix have written."""
        found = self.folder.glob("events.out.tfevents.*")
        return sorted(path for path in found if _suffix(path) == self.suffix)

    def _append(self, event: event_pb2.Event) -> None:
        if self._path is None or self._process != os.getpid() or not self._path.exists():
            self._begin()
        assert self._path is not None
        try:
            _append(self._path, event)
        except OSError:  # the file may end with half an event: nothing after it would be read
            self._path = None
            raise

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = (
            f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}"
            f".{os.getpid()}.{next(_serial)}{self.suffix}"
        )
        path = self.folder / name
        path.open("xb").close()
        version = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        version.source_metadata.writer = "kbert.monitor"
        _append(path, version)
        self._path, self._process = path, os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_path": None}


def _suffix(path: Path) -> str:
    """What `EventFile` was given; before it are a serial number, and a host's name with dots."""
    last = path.name.rpartition(".")[2]
    return "" if last.isdigit() else f".{last}"


def scalar(tag: str, value: float) -> Value:
    """A point of a curve. The part of a tag before its first "/" is the group it is shown in."""
    return Value(tag=_tag(tag), simple_value=float(value))


def text(tag: str, markdown: str) -> Value:
    """A text in Markdown, with tables; HTML in it is shown as text."""
    content = _tensor_of_bytes(_encodable(markdown).encode())
    return Value(tag=_tag(tag), tensor=content, metadata=texts.create_summary_metadata(None, None))


def image(tag: str, png: bytes) -> Value:
    """A picture, its bytes as they are.

    Args:
        tag: The picture's title; those of one tag are one picture with a slider of steps.
        png: A PNG file.

    Raises:
        ValueError: it is no PNG file.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"not a PNG file; it begins with {png[:8]!r}")
    width, height = struct.unpack(">II", png[16:24])  # of the first chunk, the image's header
    picture = summary_pb2.Summary.Image(width=width, height=height, encoded_image_string=png)
    return Value(tag=_tag(tag), image=picture)


def pr_curve(tag: str, labels: np.ndarray, probabilities: np.ndarray, *, title: str) -> Value:
    """Precision and recall of one class at 201 thresholds from 0 to 1.

    Rows whose probability is not a number are left out.

    Args:
        tag: The curve's; curves of one tag, of several runs, are in one chart.
        labels: Whether a row is of the class: bool or 0 and 1 (rows,).
        probabilities: Of the class (rows,).
        title: Of the chart.
    """
    labels, probabilities = np.asarray(labels, bool), np.asarray(probabilities, np.float64)
    known = ~np.isnan(probabilities)
    labels, probabilities = labels[known], probabilities[known]
    # a row counts as found at the thresholds up to its probability
    place = np.floor(np.clip(probabilities, 0, 1) * (THRESHOLDS - 1)).astype(np.int64)
    true_positives = _at_least(place[labels])
    false_positives = _at_least(place[~labels])
    true_negatives = false_positives[0] - false_positives
    false_negatives = true_positives[0] - true_positives
    found = true_positives + false_positives
    precision = true_positives / np.maximum(found, 1)
    recall = true_positives / max(true_positives[0], 1)
    figures = np.stack(
        [true_positives, false_positives, true_negatives, false_negatives, precision, recall]
    )  # (6, thresholds), in the plugin's order
    return Value(
        tag=_tag(tag),
        tensor=tensor_util.make_tensor_proto(figures.astype(np.float32)),
        metadata=pr_curves.create_summary_metadata(_tag(title), "", THRESHOLDS),
    )


def histogram(tag: str, values: np.ndarray) -> Value:
    """How numbers of any shape are spread; those that are not finite are left out."""
    values = np.asarray(values, np.float64).ravel()
    return Value(
        tag=_tag(tag),
        tensor=tensor_util.make_tensor_proto(_buckets(values[np.isfinite(values)])),
        metadata=histograms.create_summary_metadata(None, None),
    )


def describe_charts(
    folder: Path, groups: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
) -> None:
    """Tell the Custom Scalars tab which curves stand in one chart, of all runs.

    An earlier description in this folder is replaced.

    Args:
        folder: Any run's.
        groups: By the group's name its charts: a title, and regular expressions of tags. They
            match from a tag's beginning; `exactly` makes one of a whole tag.
    """
    layout = layout_pb2.Layout()
    for name, charts in groups.items():
        group = layout.category.add(title=_tag(name))
        for title, tags in charts:
            group.chart.add(title=_tag(title)).multiline.tag.extend(tags)
    value = Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        tensor=_tensor_of_bytes(layout.SerializeToString()),
        metadata=custom_scalars.create_summary_metadata(),
    )
    _write_anew(folder, ".charts", [value])


def exactly(tag: str) -> str:
    """A regular expression of a tag and no other, for `describe_charts`."""
    return f"{re.escape(_tag(tag))}$"


def write_graph(folder: Path, graph_def: Any) -> None:
    """Show a graph in the Graphs tab, in place of an earlier one of this folder.

    Args:
        folder: The run's.
        graph_def: TensorFlow's GraphDef.
    """
    _remove(folder, ".graph")
    event = event_pb2.Event(wall_time=time.time(), graph_def=graph_def.SerializeToString())
    EventFile(folder, suffix=".graph")._append(event)


def write_projector(
    folder: Path,
    name: str,
    vectors: np.ndarray,
    metadata: Mapping[str, Sequence[str]],
) -> None:
    """Show points in the Projector tab, as a run of their own: FOLDER/NAME.

    TensorBoard looks for points only when it finds a new run: points beside those of a run that it
    knows would not be seen before it is started again.

    Args:
        folder: The points' runs are below it.
        name: Of the points: letters, digits, "_", "-", ".".
        vectors: (rows, width); what is not finite counts as 0.
        metadata: What is known of each row, by the column's name. The first column is what the
            points are labelled with. White space in texts becomes single spaces.

    Raises:
        ValueError: the name has other characters, or there are not as many texts as vectors.
    """
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):  # it stands in TensorBoard's requests as it is
        raise ValueError(f"a name has letters, digits, '_', '-' and '.'; received {name!r}")
    vectors = np.nan_to_num(np.asarray(vectors, np.float32), posinf=0, neginf=0)
    lengths = {column: len(values) for column, values in metadata.items()}
    if vectors.ndim != 2 or set(lengths.values()) - {len(vectors)}:
        raise ValueError(f"as many texts as vectors; received {vectors.shape} and {lengths}")
    run = folder / name
    run.mkdir(parents=True, exist_ok=True)
    embedding = projector_config_pb2.EmbeddingInfo(
        tensor_name=name, tensor_shape=vectors.shape, tensor_path="vectors.tsv"
    )
    with written_whole(run / "vectors.tsv") as path:
        np.savetxt(path, vectors, fmt="%.6g", delimiter="\t")
    if metadata:
        embedding.metadata_path = "metadata.tsv"
        with written_whole(run / "metadata.tsv") as path:
            path.write_text(_table(metadata), encoding="utf-8")
    config = projector_config_pb2.ProjectorConfig(embeddings=[embedding])
    with written_whole(run / projector.PROJECTOR_FILENAME) as path:
        path.write_text(text_format.MessageToString(config), encoding="utf-8")
    # last: with a file of events the folder becomes a run, and TensorBoard reads the others
    if not any(run.glob("events.out.tfevents.*")):
        EventFile(run, suffix=".points")._begin()


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
        api_pb2.MetricInfo(
            name=api_pb2.MetricName(tag=_figure_tag(name)),
            display_name=name,
            dataset_type=api_pb2.DATASET_VALIDATION,
        )
        for name in metrics
    ]
    experiment = api_pb2.Experiment(
        hparam_infos=[_info(description) for description in hyperparameters],
        metric_infos=columns,
        time_created_secs=time.time(),
    )
    data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    _write_anew(folder, ".search", [_hparams_value(hparams.EXPERIMENT_TAG, data)])


def start_trial(folder: Path, name: str, values: Mapping[str, int | float | str]) -> None:
    """Give a trial its row in the HParams tab, which says "unknown" for its status until its end.

    What an earlier start and end of this trial wrote is removed; curves in folders below stay.

    Args:
        folder: The trial's; its curves are in `train` and `validation` below it.
        name: The row's name. Rows of one name become one row, with the mean of their figures:
            where several searches are looked at together, it must say which one this is of.
        values: The hyper-parameters.
    """
    start = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=time.time())
    for key, value in values.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, str):
            start.hparams[key].string_value = value
        else:
            start.hparams[key].number_value = value
    data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
    _write_anew(folder, ".trial", [_hparams_value(hparams.SESSION_START_INFO_TAG, data)])


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
    values = [scalar(_figure_tag(name), value) for name, value in (figures or {}).items()]
    end = plugin_data_pb2.SessionEndInfo(status=STATUSES[status], end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    values.append(_hparams_value(hparams.SESSION_END_INFO_TAG, data))
    EventFile(folder, suffix=".trial").write(values, step=0)


def write_image(folder: Path, tag: str, png: bytes, *, step: int) -> None:
    """Show a picture by a file of its own, for a folder that nothing else is written to.

    Args:
        folder: Where TensorBoard looks.
        tag: The picture's title; those of one tag are one picture with a slider of steps.
        png: A PNG file.
        step: Its place on the slider.

    Raises:
        ValueError: it is no PNG file.
    """
    EventFile(folder, suffix=".image").write([image(tag, png)], step=step)


def start_profile(folder: Path) -> None:
    """Record what TensorFlow does from now on, for the Profile tab of a folder."""
    from tensorflow.profiler import experimental

    experimental.start(str(folder))


def stop_profile() -> None:
    """Write what has been recorded."""
    from tensorflow.profiler import experimental

    experimental.stop()


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of a run's curves, by tag in the order of steps.

    Of a step that was written again, after a run was resumed, the later point counts.

    Args:
        folder: The run's; there may be nothing. Folders below it are other runs.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("*tfevents*")):
        for event in _events(path):
            for value in event.summary.value:
                number = _number(value)
                if number is not None:
                    points.setdefault(value.tag, {})[event.step] = number
    return {tag: sorted(by_step.items()) for tag, by_step in points.items()}


def _tag(name: str) -> str:
    """A name that is one line, and that a file and a page can hold."""
    return CONTROL.sub(" ", _encodable(name)).strip() or "(empty)"


def _encodable(words: str) -> str:
    return words.encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """Tab-separated values; a single column has no header, as the projector expects."""
    lines = list(zip(*columns.values(), strict=True))
    if len(columns) > 1:
        lines.insert(0, tuple(columns))
    return "".join("\t".join(_cell(cell) for cell in line) + "\n" for line in lines)


def _cell(words: str) -> str:
    return " ".join(_tag(str(words)).split())


def _tensor_of_bytes(content: bytes) -> tensor_pb2.TensorProto:
    shape = tensor_pb2.TensorProto().tensor_shape  # of a scalar
    return tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[content]
    )


def _at_least(places: np.ndarray) -> np.ndarray:
    """How many are at each place or after it: (thresholds,)."""
    return np.cumsum(np.bincount(places, minlength=THRESHOLDS)[::-1])[::-1]


def _buckets(values: np.ndarray) -> np.ndarray:
    """Left edge, right edge and count: (buckets, 3). Equal values are all in the last one."""
    if not len(values):
        return np.zeros((BUCKETS, 3))
    low, high = values.min(), values.max()
    if (np.diff(np.linspace(low, high, BUCKETS + 1)) > 0).all():
        counts, edges = np.histogram(values, BUCKETS, (low, high))
        return np.stack([edges[:-1], edges[1:], counts], axis=1)
    buckets = np.full((BUCKETS, 3), high)
    buckets[:, 2] = 0
    buckets[-1, 2] = len(values)
    return buckets


def _figure_tag(metric: str) -> str:
    return f"final/{metric}"


def _hparams_value(tag: str, data: plugin_data_pb2.HParamsPluginData) -> Value:
    """Where TensorBoard keeps such data: beside an empty tensor."""
    return Value(
        tag=tag, tensor=hparams.NULL_TENSOR, metadata=hparams.create_summary_metadata(data)
    )


def _info(description: HyperparameterDescription) -> api_pb2.HParamInfo:
    """A column: TensorBoard's charts hide those that do not differ."""
    values = description.values
    varies = len(set(values)) > 1 or description.minimum != description.maximum
    info = api_pb2.HParamInfo(name=description.name, differs=varies)
    words = any(isinstance(value, str) for value in values)
    info.type = api_pb2.DATA_TYPE_STRING if words else api_pb2.DATA_TYPE_FLOAT64
    if values:
        info.domain_discrete.extend(sorted(values))  # pyright: ignore[reportArgumentType]
    else:
        info.domain_interval.min_value = description.minimum
        info.domain_interval.max_value = description.maximum
    return info


def _write_anew(folder: Path, suffix: str, values: Iterable[Value]) -> None:
    """Write in place of earlier files: of a tag written twice TensorBoard believes the first."""
    _remove(folder, suffix)
    EventFile(folder, suffix=suffix).write(values, step=0)


def _remove(folder: Path, suffix: str) -> None:
    for path in folder.glob(f"events.out.tfevents.*{suffix}"):
        path.unlink()


def _append(path: Path, event: event_pb2.Event) -> None:
    with path.open("ab") as file:
        RecordWriter(file).write(event.SerializeToString())


def _events(path: Path) -> Iterator[event_pb2.Event]:
    """Of a file, up to the first that is cut off: the file may be growing."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(header := file.read(12)) == 12:  # the length, and a checksum of it
            (length,) = struct.unpack_from("<Q", header)
            if file.tell() + length + 4 > size:
                return
            yield event_pb2.Event.FromString(file.read(length))
            file.seek(4, os.SEEK_CUR)  # the content's checksum


def _number(value: Value) -> float | None:
    """A curve's point, in the old format and in the one of TensorFlow 2; None of other values."""
    if value.WhichOneof("value") == "simple_value":
        return value.simple_value
    if value.metadata.plugin_data.plugin_name == scalars.PLUGIN_NAME:
        return float(tensor_util.make_ndarray(value.tensor).item())
    return None
