"""What TensorBoard itself says of what is written, over HTTP, by both of its readers."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from browser import Board, tensorboard, until

from kbert.monitor import (
    EventFile,
    HyperparameterDescription,
    _events,
    describe_charts,
    describe_search,
    end_trial,
    exactly,
    histogram,
    image,
    pr_curve,
    read_scalars,
    scalar,
    start_trial,
    text,
    write_graph,
    write_image,
    write_projector,
)

READERS = ["rust", "python"]
LIVE = ["05", "06"]  # the trials that start while TensorBoard is open, one for each reader
DESCRIPTIONS = [
    HyperparameterDescription("batch_size", values=(32, 16)),
    HyperparameterDescription("dropout", values=(0, 0.5)),
    HyperparameterDescription("learning_rate", minimum=1e-5, maximum=1e-3),
    HyperparameterDescription("num_layers", minimum=1, maximum=3, is_integer=True),
    HyperparameterDescription("schedule", values=("linear", "constant")),
    HyperparameterDescription("seed", values=(7,)),
]
DEFAULTS = {
    "batch_size": 8, "dropout": 0.25, "learning_rate": 0.5, "num_layers": 4,
    "schedule": "cosine", "seed": 7,
}  # fmt: skip  # each but the seed outside of what is described
INSIDE = {
    "batch_size": 16, "dropout": 0.5, "learning_rate": 1e-4, "num_layers": 2,
    "schedule": "linear", "seed": 7,
}  # fmt: skip
ODD_TAGS = ["f1/体育", "f1/R&D", "f1/a/b 100%", "f1/two\nlines", "f1/\ud800", " "]
TAGS = ["f1/体育", "f1/R&D", "f1/a/b 100%", "f1/two lines", "f1/?", "(empty)"]
"""How they are shown."""
GROUPS = {"每一类": [("F1", [exactly("f1/R&D"), exactly("f1/a/b 100%")])], "all": [("f1", ["f1/"])]}
CURVES = {"train": [0.5, 0.75], "validation": [0.25, 0.5]}
PNG = tf.io.encode_png(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)).numpy()


def some_graph(name: str) -> tf.compat.v1.GraphDef:
    with tf.Graph().as_default() as graph:
        tf.constant(1, name=name)
    return graph.as_graph_def()


def status_of(row: dict) -> str:
    (session,) = row["sessions"]
    return session["status"]


def figures_of(row: dict) -> dict[str, float]:
    return {value["name"]["tag"]: value["value"] for value in row["metricValues"]}


def train(folder: Path) -> None:
    """Curves of some training."""
    for name, accuracies in CURVES.items():
        events = EventFile(folder / name)
        for step, accuracy in enumerate(accuracies, 1):
            events.write([scalar("epoch_accuracy", accuracy)], step=step)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's folder: two trials completed, one failed, one resumed and running, one retried."""
    folder = tmp_path_factory.mktemp("tensorboard") / "wide"
    describe_search(folder, DESCRIPTIONS[:1], ["loss"])
    describe_search(folder, DESCRIPTIONS, ["accuracy", "loss"])
    for name, values in {"00": DEFAULTS, "01": INSIDE, "02": INSIDE, "03": INSIDE}.items():
        start_trial(folder / "trials" / name, f"trial {name}", values)
    for name in ("00", "03"):
        train(folder / "trials" / name)
    end_trial(folder / "trials/00", "completed", figures={"accuracy": 0.75, "loss": 0.5})
    end_trial(folder / "trials/01", "completed", figures={"accuracy": 0.5, "loss": float("nan")})
    end_trial(folder / "trials/02", "failed")
    start_trial(folder / "trials/03", "trial 03", INSIDE)
    start_trial(folder / "trials/04", "trial 04", INSIDE)
    end_trial(folder / "trials/04", "failed")
    start_trial(folder / "trials/04", "trial 04", INSIDE)
    end_trial(folder / "trials/04", "completed", figures={"accuracy": 1.0, "loss": 0.25})
    write_image(folder, "search", PNG, step=3)
    return folder


@pytest.fixture(scope="module")
def run(search: Path) -> Path:
    """A run with something for each tab, beside the search."""
    folder = search.parent / "run"
    describe_charts(folder, {"first": [("any", ["x"])]})
    describe_charts(folder, GROUPS)
    write_graph(folder, some_graph("earlier"))
    write_graph(folder, some_graph("later"))
    events = EventFile(folder)
    for step in (1, 2):
        values = [scalar(tag, step / 2) for tag in ODD_TAGS]
        values.append(pr_curve("pr/新", [1, 0, 1, 0], [1.0, 0.6, 0.5, np.nan], title="新的"))
        values.append(text("note", f"**{step}** <i>好</i>"))
        values.append(histogram("weights", [0, 1, 1, 30, np.inf]))
        values.append(histogram("equal", [3, 3]))
        events.write(values, step=step)
    write_projector(folder / "points", "before", np.eye(3), {"text": ["好\t人", "", '"a"\n']})
    return folder


@pytest.fixture(scope="module")
def boards(search: Path, run: Path) -> Iterator[dict[str, Board]]:
    """TensorBoard with its data server in Rust, and with the reader in Python, side by side."""
    with contextlib.ExitStack() as open_boards:
        found = {
            reader: open_boards.enter_context(
                tensorboard(search.parent, load_fast=reader == "rust")
            )
            for reader in READERS
        }
        for board in found.values():
            board.wait()
            until(lambda board=board: len(board.rows()) >= 5, board.log)
            until(lambda board=board: "run/points/before" in board.runs(), board.log)
        yield found


@pytest.fixture(params=READERS)
def board(request: pytest.FixtureRequest, boards: dict[str, Board]) -> Board:
    return boards[request.param]


def test_columns(board: Board) -> None:
    """Of the later of two descriptions: the first was written by what was then interrupted."""
    experiment = board.ask("experiment")
    columns = {info["name"]: info for info in experiment["hparamInfos"]}
    assert list(columns) == [description.name for description in DESCRIPTIONS]
    assert columns["batch_size"]["domainDiscrete"] == [16, 32]
    assert columns["dropout"]["domainDiscrete"] == [0, 0.5]
    assert columns["learning_rate"]["domainInterval"] == {"minValue": 1e-5, "maxValue": 1e-3}
    assert columns["num_layers"]["domainInterval"] == {"minValue": 1, "maxValue": 3}
    assert columns["schedule"]["domainDiscrete"] == ["constant", "linear"]
    assert [name for name, info in columns.items() if not info["differs"]] == ["seed"]
    metrics = experiment["metricInfos"]
    assert [metric["displayName"] for metric in metrics] == ["accuracy", "loss"]
    assert {metric["datasetType"] for metric in metrics} == {"DATASET_VALIDATION"}


def test_a_row_for_every_trial(board: Board) -> None:
    rows = board.rows()
    assert {name: status_of(row) for name, row in rows.items() if name not in LIVE} == {
        "trial 00": "STATUS_SUCCESS",
        "trial 01": "STATUS_SUCCESS",
        "trial 02": "STATUS_FAILURE",
        "trial 03": "STATUS_UNKNOWN",
        "trial 04": "STATUS_SUCCESS",
    }
    assert rows["trial 00"]["hparams"] == DEFAULTS
    for name in ("trial 01", "trial 02", "trial 03", "trial 04"):
        assert rows[name]["hparams"] == INSIDE
    assert figures_of(rows["trial 00"]) == {"final/accuracy": 0.75, "final/loss": 0.5}
    assert figures_of(rows["trial 01"]) == {"final/accuracy": 0.5, "final/loss": "NaN"}
    assert figures_of(rows["trial 02"]) == {}
    assert figures_of(rows["trial 03"]) == {}
    assert figures_of(rows["trial 04"]) == {"final/accuracy": 1, "final/loss": 0.25}


def test_curves_of_each_trial(board: Board) -> None:
    """Under names of their own; a trial that is resumed keeps those that it has."""
    runs = {run for run in board.runs() if run.endswith(("train", "validation"))}
    assert runs == {f"wide/trials/{trial}/{name}" for trial in ("00", "03") for name in CURVES}
    for run in runs:
        points = board.get("scalars/scalars", run=run, tag="epoch_accuracy")
        assert [step for _, step, _ in points] == [1, 2]
        assert [value for *_, value in points] == CURVES[run.rsplit("/")[-1]]


def test_a_picture_is_shown_byte_by_byte(board: Board) -> None:
    assert list(board.get("images/tags")["wide"]) == ["search"]
    (picture,) = board.get("images/images", run="wide", tag="search", sample=0)
    assert picture["step"] == 3
    assert board.read(f"plugin/images/individualImage?{picture['query']}") == PNG


def test_tags_of_any_label(board: Board) -> None:
    assert sorted(board.get("scalars/tags")["run"]) == sorted(TAGS)
    for tag in TAGS:
        points = board.get("scalars/scalars", run="run", tag=tag)
        assert [(step, value) for _, step, value in points] == [(1, 0.5), (2, 1)]


def test_charts(board: Board) -> None:
    """Of the later of two descriptions; an exact expression finds its tag and no other."""
    groups = board.get("custom_scalars/layout")["category"]
    assert [group["title"] for group in groups] == list(GROUPS)
    (chart,) = groups[0]["chart"]
    assert chart["title"] == "F1"
    for pattern, tag in zip(chart["multiline"]["tag"], ["f1/R&D", "f1/a/b 100%"], strict=True):
        found = board.get("custom_scalars/scalars", run="run", tag=pattern)
        assert found["regex_valid"]
        assert list(found["tag_to_events"]) == [tag]


def test_pr_curves(board: Board) -> None:
    """Counts at each threshold; the row whose probability is not a number is not counted."""
    assert board.get("pr_curves/tags")["run"]["pr/新"]["displayName"] == "新的"
    first, second = board.get("pr_curves/pr_curves", run="run", tag="pr/新")["run"]
    assert (first["step"], second["step"]) == (1, 2)
    counts = dict(
        zip(
            np.round(first["thresholds"], 3),
            zip(
                first["true_positives"],
                first["false_positives"],
                first["true_negatives"],
                first["false_negatives"],
                first["precision"],
                first["recall"],
                strict=True,
            ),
            strict=True,
        )
    )
    assert len(counts) == 201
    assert counts[0] == pytest.approx((2, 1, 0, 0, 2 / 3, 1))
    assert counts[0.5] == pytest.approx((2, 1, 0, 0, 2 / 3, 1))
    assert counts[0.505] == pytest.approx((1, 1, 0, 1, 0.5, 0.5))
    assert counts[1] == pytest.approx((1, 0, 1, 1, 1, 0.5))


def test_texts(board: Board) -> None:
    texts = board.get("text/text", run="run", tag="note")
    assert [text["step"] for text in texts] == [1, 2]
    assert [text["text"] for text in texts] == [
        f"<p><strong>{step}</strong> &lt;i&gt;好&lt;/i&gt;</p>" for step in (1, 2)
    ]


def test_histograms(board: Board) -> None:
    (_, step, buckets), _ = board.get("histograms/histograms", run="run", tag="weights")
    assert step == 1
    assert [bucket for bucket in buckets if bucket[2]] == [[0, 1, 1], [1, 2, 2], [29, 30, 1]]
    (_, _, buckets), _ = board.get("histograms/histograms", run="run", tag="equal")
    assert [bucket for bucket in buckets if bucket[2]] == [[3, 3, 2]]


def test_graph(board: Board) -> None:
    """The later of two."""
    assert board.get("graphs/info")["run"]["run_graph"]
    found = board.read("plugin/graphs/graph?run=run")
    assert b'name: "later"' in found
    assert b"earlier" not in found


def test_projector(board: Board) -> None:
    """Before and after a training, the latter while TensorBoard is open."""
    assert "run/points/before" in board.get("projector/runs")
    (info,) = board.get("projector/info", run="run/points/before")["embeddings"]
    assert (info["tensorName"], info["tensorShape"]) == ("before", [3, 3])
    asked = "run=run/points/before&name=before"
    vectors = np.frombuffer(board.read(f"plugin/projector/tensor?{asked}"), np.float32)
    np.testing.assert_array_equal(vectors.reshape(3, 3), np.eye(3))
    metadata = board.read(f"plugin/projector/metadata?{asked}").decode()
    assert metadata == '好 人\n(empty)\n"a"\n'


def test_points_are_seen_while_it_runs(run: Path, board: Board, request) -> None:
    name = f"after-{request.node.callspec.params['board']}"
    vectors = np.array([[1 / 3, np.nan], [-1e9, np.inf]])
    write_projector(run / "points", name, vectors, {"label": ["a", "b"], "text": ["一", "二"]})
    until(lambda: f"run/points/{name}" in board.get("projector/runs"), board.log)
    asked = f"run=run/points/{name}&name={name}"
    found = np.frombuffer(board.read(f"plugin/projector/tensor?{asked}"), np.float32)
    np.testing.assert_allclose(found, [1 / 3, 0, -1e9, 0], rtol=1e-5)
    metadata = board.read(f"plugin/projector/metadata?{asked}").decode()
    assert metadata == "label\ttext\na\t一\nb\t二\n"


def test_events_are_seen_while_they_are_written(run: Path, board: Board, request) -> None:
    """Of one file that grows; a later file in the same folder is read too."""
    name = f"grows-{request.node.callspec.params['board']}"
    earlier, later = EventFile(run / name), EventFile(run / name)

    def steps() -> list[int]:
        if "loss" not in board.get("scalars/tags").get(f"run/{name}", {}):
            return []
        return [step for _, step, _ in board.get("scalars/scalars", run=f"run/{name}", tag="loss")]

    for step, events in enumerate((earlier, earlier, later, later)):
        events.write([scalar("loss", step)], step=step)
        until(lambda step=step: steps() == list(range(step + 1)), board.log)


def test_a_trial_is_seen_while_it_runs(search: Path, board: Board, request) -> None:
    """New rows and their ends come to a TensorBoard that is already open."""
    name = LIVE[READERS.index(request.node.callspec.params["board"])]
    folder = search / "trials" / name
    start_trial(folder, name, INSIDE)
    until(lambda: name in board.rows(), board.log)
    assert status_of(board.rows()[name]) == "STATUS_UNKNOWN"
    start_trial(folder, name, INSIDE)  # stopped, and resumed
    end_trial(folder, "completed", figures={"accuracy": 0.5, "loss": 0.125})
    until(lambda: status_of(board.rows()[name]) == "STATUS_SUCCESS", board.log)
    until(lambda: len(figures_of(board.rows()[name])) == 2, board.log)
    assert figures_of(board.rows()[name]) == {"final/accuracy": 0.5, "final/loss": 0.125}


def test_a_resumed_trial_leaves_one_start(tmp_path: Path) -> None:
    for _ in range(2):
        start_trial(tmp_path, "trial 00", INSIDE)
        (tmp_path / "validation").mkdir(exist_ok=True)
        (tmp_path / "validation" / "events.out.tfevents.1.vm.1.0.trial").touch()
    assert len(list(tmp_path.glob("events.*"))) == 1
    assert len(list((tmp_path / "validation").iterdir())) == 1


def test_files_of_one_folder(tmp_path: Path) -> None:
    """A copy, an unpickled one and a forked process write files of their own; later sorts later."""
    first = EventFile(tmp_path)
    first.write([scalar("loss", 0)], step=0)
    others = [copy.deepcopy(first), pickle.loads(pickle.dumps(first)), EventFile(tmp_path)]
    for step, events in enumerate(others, 1):
        events.write([scalar("loss", step)], step=step)
    paths = sorted(tmp_path.iterdir())
    process = os.fork()
    if process == 0:
        try:
            first.write([scalar("loss", 4)], step=4)
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    first.write([scalar("loss", 5)], step=5)
    assert sorted(tmp_path.iterdir())[:4] == paths
    assert len(list(tmp_path.iterdir())) == 5
    assert read_scalars(tmp_path) == {"loss": [(step, step) for step in range(6)]}
    assert [len(list(_events(path))) for path in paths] == [3, 2, 2, 2]  # the first is a version


def test_nothing_is_kept_between_writes(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "deep" / "run")
    events.write([], step=0)
    assert not list(tmp_path.iterdir())
    handles, threads = os.listdir("/proc/self/fd"), threading.active_count()
    for step in range(50):
        events.write([scalar("loss", step)], step=step, wall_time=1e9 + step)
    write_projector(tmp_path, "points", np.eye(2), {})
    describe_charts(tmp_path, GROUPS)
    assert os.listdir("/proc/self/fd") == handles
    assert threading.active_count() == threads
    shutil.rmtree(tmp_path / "deep")
    events.write([scalar("loss", 1)], step=51)
    (path,) = (tmp_path / "deep" / "run").iterdir()
    assert [event.file_version for event in _events(path)] == ["brain.Event:2", ""]


def test_scalars_are_read(tmp_path: Path) -> None:
    """Of TensorFlow's own files as well; of two points of a step, and of half an event."""
    assert read_scalars(tmp_path) == {}
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=3):
        tf.summary.scalar("loss", 0.25)
        tf.summary.text("note", "well")
        tf.summary.histogram("weights", [1.0])
    events = EventFile(tmp_path, suffix=".ours")
    for step, value in ((7, 0.5), (9, 0.75), (5, 0.5), (7, 1.0)):
        events.write([scalar("loss", value), scalar("f1/好", 1)], step=step)
    events.write([text("note", "well"), image("picture", PNG)], step=9)
    assert read_scalars(tmp_path) == {
        "loss": [(3, 0.25), (5, 0.5), (7, 1.0), (9, 0.75)],
        "f1/好": [(5, 1), (7, 1), (9, 1)],
    }
    (path,) = tmp_path.glob("*.ours")
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) - 40):
        path.write_bytes(content[:length])
        assert read_scalars(tmp_path)["loss"][-1] == (9, 0.75)
    path.write_bytes(content[:50])
    assert read_scalars(tmp_path) == {"loss": [(3, 0.25)]}


def test_points_that_cannot_be_shown(tmp_path: Path) -> None:
    for name in ("", "..", "a/b", "R&D", "a b"):
        with pytest.raises(ValueError, match="a name has letters"):
            write_projector(tmp_path, name, np.eye(2), {})
    for vectors, metadata in ((np.eye(2), {"text": ["a"]}), (np.ones(2), {})):
        with pytest.raises(ValueError, match="as many texts as vectors; received"):
            write_projector(tmp_path, "points", vectors, metadata)
    assert not list(tmp_path.iterdir())


def test_nothing_stays_open(tmp_path: Path) -> None:
    """Neither file nor thread, and TensorFlow is not loaded: a search may fork afterwards."""
    code = """
import os, sys, threading
from pathlib import Path
from kbert.monitor import *
folder = Path(sys.argv[1])
describe_search(folder, [HyperparameterDescription("seed", values=(1,))], ["loss"])
start_trial(folder / "00", "trial 00", {"seed": 1})
end_trial(folder / "00", "completed", figures={"loss": 1})
events = EventFile(folder / "00" / "train")
for step in range(3):
    events.write([scalar("loss", 1), text("note", "well"), histogram("weights", [1, 2])], step=step)
assert read_scalars(folder / "00" / "train") == {"loss": [(0, 1), (1, 1), (2, 1)]}
names = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
print([name for name in names if "events" in name], threading.active_count(),
      {"tensorflow", "keras"} & set(sys.modules))
"""
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[] 1 set()"


def test_descriptions_that_say_too_little_or_too_much() -> None:
    for given in (
        {},
        {"minimum": 1},
        {"maximum": 1},
        {"values": (1,), "minimum": 0, "maximum": 2},
    ):
        with pytest.raises(ValueError, match="values or an interval; received"):
            HyperparameterDescription("seed", **given)


def test_pictures_are_png_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a PNG file; it begins with b'GIF89a'"):
        write_image(tmp_path, "search", b"GIF89a", step=0)
    assert not list(tmp_path.iterdir())
