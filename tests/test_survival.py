"""train.py meets SIGTERM, a second run in its folder, and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from kbert.checkpoints import latest_checkpoint, states
from kbert.tensor_files import read_checked

ROOT = Path(__file__).resolve().parents[1]


def test_sigterm_saves_and_a_second_run_is_refused_meanwhile(
    tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*tiny_options, "--train.epochs", "500", "--train.checkpoint_steps", "5"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    folder = tmp_path / "run" / "checkpoints"
    try:
        while process.poll() is None and not states(folder):
            time.sleep(0.05)
        assert train.main(words) == 2
        told = capsys.readouterr().err
        assert f"another run is at work there (process {process.pid} of " in told
        assert told.count("\n") == 1
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, output
    assert f"stopped; the same command goes on from {tmp_path / 'run'}." in output
    assert latest_checkpoint(folder) == states(folder)[-1]
    assert len(states(folder)) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_one_line_and_what_was_there_stays_whole(
    tiny_options: list[str], small_disk: Path, capfd: pytest.CaptureFixture
) -> None:
    run = small_disk / "run"
    words = [*tiny_options, "--output", str(run), "--train.keep_checkpoints", "100",
             "--train.checkpoint_steps", "1", "--export.enabled", "false"]  # fmt: skip
    assert train.main(words) == 2
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"train.py: error: {run}")
    assert "No space left on device" in told
    assert "goes on" in told
    kept = states(run / "checkpoints")
    assert kept
    for path in kept:
        read_checked(path)
    remount = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(remount, check=True)
    assert train.main(words) == 0
    assert (run / "metrics.json").exists()
