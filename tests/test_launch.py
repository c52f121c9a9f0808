"""The processes of a training on one machine: started, restarted, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what a process is told: its number and that of all, and how to wait to be stopped
BEGIN = """
import json, os, signal, sys, time
told = json.loads(os.environ["TF_CONFIG"])
index, count = told["task"]["index"], len(told["cluster"]["worker"])
def stop(number, frame):
    print("stopped"); sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
mark = sys.argv[1]
"""


def launch(
    tmp_path: Path, script: str, *flags: str, start: bool = False
) -> subprocess.Popen | tuple[int, list[str]]:
    """The exit status and the lines of a launch of a script; or the process."""
    file = tmp_path / "script.py"
    file.write_text(BEGIN + script, encoding="utf-8")
    command = [sys.executable, "-m", "kbert.launch", *flags, "--", str(file), str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if start:
        return process
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.splitlines()


def test_each_has_its_place(tmp_path: Path) -> None:
    status, lines = launch(tmp_path, "print(f'{index} of {count}')", "--workers", "3")
    assert status == 0
    assert sorted(lines) == ["[0] 0 of 3", "[1] 1 of 3", "[2] 2 of 3"]


def test_a_new_group_when_one_dies(tmp_path: Path) -> None:
    """The first time worker 1 is killed; the others, left alone, end by themselves with 75."""
    script = """
if os.path.exists(mark + "/died"):
    sys.exit(0)
open(f"{mark}/{index}", "w").close()
while not all(os.path.exists(f"{mark}/{other}") for other in range(count)):
    time.sleep(0.01)
if index == 1:
    open(mark + "/died", "w").close(); os.kill(os.getpid(), 9)
while not os.path.exists(mark + "/died"):
    time.sleep(0.01)
sys.exit(75)
"""
    status, lines = launch(tmp_path, script, "--workers", "3", "--restarts", "1")
    assert (status, lines) == (
        0, ["worker 1 ended with status 137: all are started again (1 more times at most)"],
    )  # fmt: skip


def test_not_for_ever(tmp_path: Path) -> None:
    status, lines = launch(tmp_path, "sys.exit(3 if index else 75)", "--restarts", "1")
    assert status == 3
    assert lines == [
        "worker 1 ended with status 3: all are started again (1 more times at most)",
        "worker 1 ended with status 3: no more",
    ]


def test_bad_input_is_as_bad_the_next_time(tmp_path: Path) -> None:
    script = (
        "print('no such file') if index == 0 else time.sleep(0.2); sys.exit(75 if index else 2)"
    )
    assert launch(tmp_path, script) == (2, ["[0] no such file"])


def test_others_do_not_outlive_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kbert import launch as module

    monkeypatch.setattr(module, "ALONE_SECONDS", 0.2)
    file = tmp_path / "script.py"
    file.write_text(BEGIN + "sys.exit(4) if index else time.sleep(100)", encoding="utf-8")
    began = time.monotonic()
    group = module._Group([sys.executable, str(file), str(tmp_path)], 2)
    assert group.run(module._Asked()) == (4, 1)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_are_stopped(tmp_path: Path, number: signal.Signals) -> None:
    script = "open(f'{mark}/{index}', 'w').close(); time.sleep(100)"
    process = launch(tmp_path, script, start=True)
    wait_for(tmp_path / "0", tmp_path / "1")
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert sorted(output.splitlines()) == ["[0] stopped", "[1] stopped"]


def test_one_that_was_stopped_is_no_crash(tmp_path: Path) -> None:
    """SIGTERM for a worker: all stop after the same step."""
    script = """
if index:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.3); sys.exit(143)
"""
    assert launch(tmp_path, script) == (143, ["[1] stopped"])


def test_none_outlives_the_launcher(tmp_path: Path) -> None:
    script = "open(f'{mark}/{index}', 'w').write(str(os.getpid())); time.sleep(100)"
    process = launch(tmp_path, script, start=True)
    wait_for(tmp_path / "0", tmp_path / "1")
    time.sleep(0.1)
    numbers = [int((tmp_path / name).read_text()) for name in "01"]
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while any(is_running(number) for number in numbers):
        assert time.monotonic() < until
        time.sleep(0.02)


def is_running(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_isolated(tmp_path: Path) -> None:
    """A network of loopback alone, with the user and the files as they are."""
    script = """
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
open(f"{mark}/{index}", "w").close()
print(interfaces, os.getuid())
"""
    status, lines = launch(tmp_path, script, "--isolated", "--workers", "1")
    if status == 2:
        pytest.skip(lines[0])
    assert lines == [f"[0] ['lo'] {os.getuid()}"]
    assert (tmp_path / "0").stat().st_uid == os.getuid()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "no command: write it after --, such as -- train.py --config ..."),
        (["--workers", "0", "--", "train.py"], "argument --workers: invalid _count value: '0'"),
        (["--worker", "2", "--", "train.py"], "unknown flag: --worker (did you mean --workers?)"),
    ],
)
def test_bad_flags(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from kbert.launch import main

    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
