"""What TensorBoard itself says of a search's folder, over HTTP, by both of its readers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kbert.monitor import (
    EventFile,
    HyperparameterDescription,
    describe_search,
    end_trial,
    scalar,
    start_trial,
    write_image,
)

STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
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
CURVES = {"train": [0.5, 0.75], "validation": [0.25, 0.5]}
PNG = tf.io.encode_png(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)).numpy()


class Board:
    """A TensorBoard that is looking at a folder."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process = process
        self.log = log

    def wait(self) -> None:
        """Until it serves."""
        until(lambda: re.search(r"http://127\.0\.0\.1:\d+/", self.log.read_text()), self.log)
        self.url = re.search(r"http://127\.0\.0\.1:\d+/", self.log.read_text())[0]

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}data/{path}", timeout=10) as response:
            return response.read()

    def ask(self, path: str, **body: object) -> dict:
        """A question to the HParams tab's backend."""
        request = urllib.request.Request(
            f"{self.url}data/plugin/hparams/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def rows(self) -> dict[str, dict]:
        """Rows of the HParams tab, as it asks for them."""
        answer = self.ask("session_groups", allowedStatuses=STATUSES, sliceSize=100)
        assert answer["totalSize"] == len(answer["sessionGroups"])
        return {group["name"]: group for group in answer["sessionGroups"]}


def until(ready: Callable[[], object], log: Path, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


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
def boards(search: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Board]]:
    """TensorBoard with its data server in Rust, and with the reader in Python, side by side."""
    found = {}
    try:
        for reader, fast in zip(READERS, ("true", "false"), strict=True):
            log = tmp_path_factory.mktemp("logs") / f"{reader}.log"
            command = [
                sys.executable, "-m", "tensorboard.main", "--logdir", search.parent,
                "--host", "127.0.0.1", "--port", "0", "--reload_interval", "0.3",
                "--load_fast", fast,
            ]  # fmt: skip
            with log.open("w") as output:
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
                )
            found[reader] = Board(process, log)
        for board in found.values():
            board.wait()
            until(lambda board=board: len(board.rows()) >= 5, board.log)
        yield found
    finally:
        for board in found.values():
            board.process.kill()  # its data server ends with it
        for board in found.values():
            board.process.wait()


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
    runs = {run for run in json.loads(board.read("runs")) if run.endswith(("train", "validation"))}
    assert runs == {f"wide/trials/{trial}/{name}" for trial in ("00", "03") for name in CURVES}
    for run in runs:
        points = json.loads(board.read(f"plugin/scalars/scalars?run={run}&tag=epoch_accuracy"))
        assert [step for _, step, _ in points] == [1, 2]
        assert [value for *_, value in points] == CURVES[run.rsplit("/")[-1]]


def test_a_picture_is_shown_byte_by_byte(board: Board) -> None:
    tags = json.loads(board.read("plugin/images/tags"))
    assert list(tags["wide"]) == ["search"]
    (picture,) = json.loads(board.read("plugin/images/images?run=wide&tag=search&sample=0"))
    assert picture["step"] == 3
    assert board.read(f"plugin/images/individualImage?{picture['query']}") == PNG


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
