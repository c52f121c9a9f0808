"""Several devices, and several processes, train the model that one device trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import train
from kbert.config import parse
from kbert.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
MIRRORED = ROOT / "tests" / "mirrored_steps.py"
CASES = (
    "classification", "windows", "low rank", "features", "regression", "embedding", "multi_label",
    "masked_lm", "next_sentence", "question_answering", "translation",
    "tagging in parts, as a graph",
)  # fmt: skip
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
SHORT = ["--model.dropout", "0", "--export.enabled", "false", "--train.epochs", "6",
         "--train.precision", "float32", "--train.compile", "graph"]  # fmt: skip


@pytest.fixture(scope="module")
def mirrored(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `mirrored_steps.py` finds, in a process with two logical devices."""
    folder = tmp_path_factory.mktemp("mirrored")
    process = subprocess.run(
        [sys.executable, str(MIRRORED), str(folder), str(tiny_checkpoint)],
        env={**os.environ, **QUIET}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_are_one_device(mirrored: dict[str, Any], case: str) -> None:
    """An epoch of batches of 5 rows, the last one of a single row."""
    found = mirrored[case]
    assert (found["replicas"], found["rows"] % 5) == (2, 1)
    correlations = [of.pop("pearson", 0.0) for of in (found["of two"], found["figures"])]
    assert correlations[0] == pytest.approx(correlations[1], abs=1e-3)  # of nearly equal cosines
    assert found["of two"] == pytest.approx(found["figures"], rel=1e-6)
    assert found["moved"] > 1e-3
    assert found["apart"] < 2e-6, found["worst"]


def test_all_cases_are_looked_at(mirrored: dict[str, Any]) -> None:
    assert set(mirrored) == {*CASES, "dropout"}


def test_each_replica_drops_others(mirrored: dict[str, Any]) -> None:
    """Of two equal rows in two replicas, and again in the next step; resumed to the bit."""
    found = mirrored["dropout"]
    assert found["alike"] is False
    assert found["resumed"] is True


def words_of(tiny_options: list[str], output: Path, *more: str) -> list[str]:
    return [*tiny_options, *SHORT, "--output", str(output), *more]


def launched(words: list[str], folder: Path, *, kill: bool = False) -> tuple[int, list[str]]:
    """Status and lines of train.py by two processes, the second of which may be killed -9."""
    isolated = ["--isolated"] if can_isolate() else []
    process = subprocess.Popen(
        [sys.executable, "-m", "kbert.launch", *isolated, "--workers", "2", "--", "train.py",
         *words, "--train.strategy", "multi_worker"],
        cwd=ROOT, env={**os.environ, **QUIET}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if kill:
        while not list(folder.glob("checkpoints/step-*")) and process.poll() is None:
            time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output.splitlines()


def can_isolate() -> bool:
    """Whether the two may have a network that nobody else reaches."""
    code = "from kbert.launch import isolate; isolate()"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    return process.returncode == 0


def test_two_processes_one_of_which_is_killed(tiny_options: list[str], tmp_path: Path) -> None:
    """train.py from file to report; it ends as one process does."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main(words_of(tiny_options, one)) == 0
    words = words_of(tiny_options, two, "--train.checkpoint_steps", "3")
    status, lines = launched(words, two, kill=True)
    said = "\n".join(lines)
    assert status == 0, said
    assert "worker 1 ended with status 137: all are started again (3 more times at most)" in lines
    assert "[0] going on from step-0" in said
    assert said.count("another process of the training is gone; the same command goes on.") <= 1
    assert "Traceback" not in said
    histories = [json.loads((of / "metrics.json").read_text())["train"]["history"]
                 for of in (one, two)]  # fmt: skip
    assert len(histories[0]) == 6
    for ours, theirs in zip(*histories, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    weights = [safetensors.numpy.load_file(of / "checkpoints" / "model.safetensors")
               for of in (one, two)]  # fmt: skip
    for path, weight in weights[0].items():
        if not path.endswith("key/bias"):  # its gradient is rounding alone
            np.testing.assert_allclose(weights[1][path], weight, atol=2e-5, err_msg=path)
    # nobody but the chief has written, and nobody has written twice
    assert sorted(of.name for of in one.iterdir()) == sorted(of.name for of in two.iterdir())
    again, lines = launched(words, two)
    assert (again, lines[-1]) == (0, f"[0] {two} is finished: see {two / 'metrics.json'}.")


@pytest.mark.parametrize(
    ("cluster", "more", "message"),
    [
        (None, ["--train.strategy", "multi_worker"], "needs the variable TF_CONFIG, such as"),
        ('{"task": {}}', ["--train.strategy", "multi_worker"], "TF_CONFIG: it lacks 'cluster'"),
        (
            '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}',
            [],
            "TF_CONFIG names 2 processes, but train.strategy is none: add --train.strategy",
        ),
        (
            '{"cluster": {"worker": ["192.0.2.7:1", "b:2"]}, '
            '"task": {"type": "worker", "index": 0}}',
            ["--train.strategy", "multi_worker"],
            "worker 0 cannot listen at its address 192.0.2.7:1",
        ),
    ],
)
def test_wrong_cluster_is_one_line(
    tiny_options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cluster: str | None,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if cluster is not None:
        monkeypatch.setenv("TF_CONFIG", cluster)
    began = time.monotonic()
    assert train.main([*tiny_options, *more]) == 2
    assert time.monotonic() - began < 60
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: ") and message in line
    assert not Path(parse(tiny_options).output).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.strategy", "mirrored", "--train.compile", "xla"], "train.compile xla goes with"),
        (["--train.strategy", "mirrored", "--train.precision", "float16"], "float16 goes without"),
        (
            ["--train.strategy", "multi_worker", "--search.tuner", "random"],
            "train.strategy multi_worker goes without search.tuner",
        ),
        (
            ["--task", "features", "--task.classifier", "scikit-learn",
             "--train.strategy", "mirrored"],
            "task.classifier scikit-learn goes without train.strategy mirrored",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(tiny_options: list[str], words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse([*tiny_options, *words])
