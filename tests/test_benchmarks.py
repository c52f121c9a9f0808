"""What benchmarks/search.py measures, on processes and figures made by hand."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

# five million bytes of a file are there for a second, forty of memory are kept
PROCESS = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
print("rows: train 9")
folder.mkdir()
(folder / "large").write_bytes(bytes(5_000_000))
(folder / "small").write_bytes(bytes(7))
time.sleep(1)
(folder / "large").unlink()
print("trial 00 (default): accuracy 0.5000 (1 s)")
time.sleep(0.5)
kept = bytearray(b"x") * 40_000_000
print("trial 01: epoch 1/1, step 3/9")
print("trial 01: epochs 2, accuracy 0.6000 (1 s)")
time.sleep(1)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location(
        "benchmark_search", BENCHMARKS / "search.py"
    )
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "benchmark_search", module)  # dataclasses look there
    specification.loader.exec_module(module)
    return module


def test_watch(search: ModuleType, tmp_path: Path) -> None:
    folder, log = tmp_path / "output", tmp_path / "log"
    watched = search.watch([sys.executable, "-c", PROCESS, str(folder), "0"], folder, log=log)
    trials = watched.trials()
    assert {number: line.text.split(": ")[1][:6] for number, line in trials.items()} == {
        0: "accura",
        1: "epochs",
    }
    assert 1 <= trials[0].seconds - watched.first("rows:").seconds < 10
    assert 1 <= watched.seconds - trials[1].seconds < 10
    assert trials[1].memory - trials[0].memory > 35e6
    assert watched.peak_memory >= trials[1].memory
    assert watched.peak_disk == 5_000_007
    assert search.size(folder) == 7


def test_watch_failing(search: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no disk'); raise SystemExit(3)"]
    with pytest.raises(subprocess.CalledProcessError) as error:
        search.watch(command, tmp_path / "output", log=tmp_path / "log")
    assert error.value.returncode == 3
    assert error.value.output == "no disk"


def test_times(search: ModuleType) -> None:
    """Start-up counts for the search; trial 0 does not."""
    seconds = {
        **{"rows_line": 10.0, "trial_lines": {0: 25.0, 1: 35.0, 2: 45.0}},
        **{"training_of_trial_0": 12.0, "trained_again": 70.0, "all": 90.0},
    }
    separate = [
        {"trial": "01", "seconds": 30.0, "seconds_until_trained": 27.0},
        {"trial": "02", "seconds": 30.0, "seconds_until_trained": 28.0},
    ]
    assert search.compare_times({"seconds": seconds}, separate) == {
        "trials": 30.0,
        "separate": 60.0,
        "ratio": 0.5,
        "unfavourable_ratio": 0.6,
        "start": 10.0,
        "default_trial": 15.0,
        "training_again": 25.0,
        "evaluation_and_export": 20.0,
    }


def test_memory_by_trial(search: ModuleType) -> None:
    """Growth is counted from trial 5 on."""
    lines = [
        search.Line(float(number), f"trial {number:02}: accuracy 0.5", 1_000_000 * megabytes)
        for number, megabytes in enumerate((100, 300, 500, 600, 650, 700, 702, 704))
    ]
    watched = search.Watched(9.0, lines, peak_memory=710_000_000, peak_disk=0)
    memory = search.memory_by_trial(watched)
    assert memory["resident_mb"][5] == 700
    assert memory["mb_a_trial"] == pytest.approx(2)
    few = search.Watched(9.0, lines[:6], peak_memory=0, peak_disk=0)
    assert search.memory_by_trial(few)["mb_a_trial"] is None


def test_goals(search: ModuleType) -> None:
    same = {"accuracy": 0.8130733966827393, "score_of_trial": 0.8130733966827393}
    other = {"accuracy": 0.8130733966827393, "score_of_trial": 0.8130733966827394}
    failed = {"accuracy": 0.8130733966827393, "score_of_trial": None}
    for ratio, separate, held in (
        (0.8, [same, same], [True, True]),
        (0.81, [same, other], [False, False]),
        (0.5, [same, failed], [True, False]),
    ):
        goals = search.goals_of({"time": {"ratio": ratio}, "separate": separate})
        assert [goal["held"] for goal in goals] == held
