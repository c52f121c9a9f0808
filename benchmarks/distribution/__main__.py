"""One, two and four processes that train the same batches: `make scale`, at most 15 minutes.

For classification and for masked words it prints losses beside those of one process, rows a
second, and what the processes send each other a step: they have a network of their own, whose
loopback counts it. Then one of two processes is killed in mid-epoch, and the run is compared with
one that was not disturbed. On a machine of two cores, four processes measure contention, not
scaling.

Exit status: 0; 1 where losses or weights are not what they should be; 2 when data or packages are
absent, or the system allows no network of one's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from quality import DATA, OUT, checkpoint, describe_machine, what_is_absent  # noqa: E402

HERE = Path(__file__).parent
FOLDER = OUT / "distribution"
WARM = 3  # steps that are not timed: the first one traces
WITHIN = 1e-4  # of one process's loss
COMMON: dict[str, Any] = {
    "data.max_length": 64,
    "data.validation_fraction": 0,
    "data.test_fraction": 0,
    "train.batch_size": 32,
    "train.epochs": 1,
    "train.learning_rate": 5e-5,
    "train.precision": "float32",
    "train.compile": "graph",
    "model.dropout": 0,
    "output": FOLDER / "unused",
}
TASKS = {
    "classification": {"task.class_weights": "balanced"},
    "masked_lm": {"task": "masked_lm"},
}


@dataclass(frozen=True)
class Found:
    """A training of some processes."""

    processes: int
    losses: list[float]
    """The mean so far, after each step."""
    seconds: float
    """Of a step, the median."""
    bytes: float
    """Sent a step by all processes together, the median."""
    start_bytes: int
    """Sent before the first step: the weights, from the chief to the others."""
    gradient_bytes: int
    """That one process has of a step."""


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=790, help="of sst2 (default: 790)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    absent = what_is_absent(["sst2"])
    if absent:
        print(f"distribution: not run: {absent}", file=sys.stderr)
        return 2
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    describe_machine()
    common = {
        **COMMON,
        "data.train": sample(options.rows),
        "data.cache_dir": OUT / "cache",
        "model.checkpoint": checkpoint(),
    }
    right = True
    for task, more in TASKS.items():
        print(f"\n{task}, {options.rows} rows, batches of {COMMON['train.batch_size']}\n")
        print("| processes | rows a second | of one | loss | relative difference | "
              "MB sent a step | a ring's | MB before the first step |")  # fmt: skip
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        one = None
        for count in options.processes:
            found = trained(task, count, {**common, **more})
            one = one or found
            print(line(found, one), flush=True)
            right = right and difference(found, one) < WITHIN
    return 0 if killed(common) and right else 1


def sample(rows: int) -> Path:
    """The first rows of sst2, which are in no order."""
    path = FOLDER / "train.tsv"
    with (DATA / "sst2" / "train.tsv").open(encoding="utf-8") as file:
        path.write_text("".join(itertools.islice(file, rows + 1)), encoding="utf-8")
    return path


def words(options: dict[str, Any]) -> list[str]:
    """Options as a command line."""
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def launched(count: int, command: list[str]) -> list[str]:
    """The command by so many processes, in a network of their own."""
    launch = [sys.executable, "-m", "kbert.launch", "--isolated", "--workers", str(count)]
    return [*launch, "--", *command]


def trained(task: str, count: int, options: dict[str, Any]) -> Found:
    """Train in new processes."""
    result = FOLDER / f"{task}-{count}.json"
    if count > 1:
        options = {**options, "train.strategy": "multi_worker"}
    command = launched(count, [str(HERE / "process.py"), str(result), *words(options)])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"distribution: {done.stdout}{done.stderr}")
    told = json.loads(result.read_text(encoding="utf-8"))
    begin, *steps = told["steps"]
    pairs = list(itertools.pairwise(steps))[WARM - 1 : -1]  # all of whole batches
    return Found(
        count,
        [step["loss"] for step in steps],
        median(after["at"] - before["at"] for before, after in pairs),
        median(after["bytes"] - before["bytes"] for before, after in pairs),
        begin["bytes"],
        told["gradient_bytes"],
    )


def difference(found: Found, one: Found) -> float:
    """The largest relative one of the losses of all steps."""
    pairs = zip(found.losses, one.losses, strict=True)
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)


def line(found: Found, one: Found) -> str:
    """A row of the table."""
    # each of n processes sends 2 (n - 1) / n of its gradients
    ring = 2 * (found.processes - 1) * found.gradient_bytes
    rate = COMMON["train.batch_size"] / found.seconds
    cells = (
        found.processes,
        f"{rate:.1f}",
        f"{one.seconds / found.seconds:.2f}",
        f"{found.losses[-1]:.7f}",
        f"{difference(found, one):.1e}",
        f"{found.bytes / 1e6:.1f}",
        f"{ring / 1e6:.1f}",
        f"{found.start_bytes / 1e6:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def killed(common: dict[str, Any]) -> bool:
    """Whether a run of train.py, one of whose processes was killed, is as one that was not."""
    options = {
        **common,
        "train.strategy": "multi_worker",
        "train.checkpoint_steps": 5,
        "model.dropout": 0.1,
        "monitor.tensorboard": "false",
        "export.enabled": "false",
    }
    runs = []
    for name in ("undisturbed", "killed"):
        folder = FOLDER / name
        command = launched(2, ["train.py", *words({**options, "output": folder})])
        with (FOLDER / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            if name == "killed":
                kill_one(process, folder / "checkpoints")
            if process.wait():
                raise SystemExit(f"distribution: {(FOLDER / f'{name}.log').read_text('utf-8')}")
        history = json.loads((folder / "metrics.json").read_text("utf-8"))["train"]["history"]
        runs.append((history, (folder / "checkpoints" / "model.safetensors").read_bytes()))
    told = (FOLDER / "killed.log").read_text(encoding="utf-8").splitlines()
    print("\none of two processes killed in mid-epoch, dropout 0.1\n")
    for found in told:
        if "ended with status" in found or "going on from" in found:
            print(f"    {found}")
    is_same = runs[0] == runs[1]
    losses = [history[-1]["loss"] for history, _ in runs]
    print(f"\nloss {losses[0]:.7f} undisturbed, {losses[1]:.7f} killed; weights "
          f"{'equal to the bit' if is_same else 'NOT equal'}")  # fmt: skip
    return is_same


def kill_one(process: subprocess.Popen, checkpoints: Path) -> None:
    """Kill -9 the second process once there is a checkpoint."""
    while not list(checkpoints.glob("step-*.safetensors")) and process.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
