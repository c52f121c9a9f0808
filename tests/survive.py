"""Thirty deaths at random moments, and what is left of them: what `make survive` runs.

A run, a search and an export are each done once undisturbed, and once more with deaths: SIGKILL to
all processes of the run, SIGTERM to the first one (which must save, say how to go on, and end with
143 within 30 s), and, for the run, power cuts: the output folder is on a disk image whose copy is
mounted instead, so that only what had reached the disk is left. The same command goes on each
time. At the end the weights must be the same to the bit, and figures, predictions, points of
TensorBoard and the exported version the same; no file half written may lie about.

`python tests/survive.py [--kills 30] [--seed 0]`. Power cuts need root, mkfs.ext4 and loop devices;
without them they are left out, which is said. Exit status: 0 when all that holds, 1 when not.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serve.startup import import_tensorflow_quietly  # noqa: E402

SAVES = 30.0  # seconds that SIGTERM may take
ROWS = 800
WORDS = ("good", "bad", "cat", "dog", "sat", "ran", "the", "a", ".")
TIMED = ("seconds", "elapsed", "examples_per_second", "peak_memory_bytes")
SPEED = ("examples_per_second", "tokens_per_second", "padding_share")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is killed."""

    name: str
    words: tuple[str, ...]
    begins: str
    """A line of this in the output begins the time in which deaths come; "": the start does."""
    share: float
    """Of all deaths."""


KINDS = (
    Kind("train", ("--train.epochs=3", "--train.best_metric=loss"), "", 0.4),
    Kind(
        "search",
        (
            "--train.epochs=1",
            "--search.tuner=random",
            "--search.trials=3",
            "--search.seeds=2",
            "--search.space={learning_rate: [1e-3, 3e-3]}",
        ),
        "",
        0.3,
    ),
    Kind("export", ("--train.epochs=1",), "a linear model", 0.3),
)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="deaths of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="survive-") as name:
        place = Path(name)
        write_data(place)
        for kind in KINDS:
            kills = round(options.kills * kind.share)
            found = [f"{kind.name}: {line}" for line in survive(kind, place, kills, chance)]
            for line in found:
                print(f"FAILED {line}", flush=True)
            failures += found
    print("all is as if nothing had happened" if not failures else f"{len(failures)} failures")
    return 1 if failures else 0


def write_data(place: Path) -> None:
    """Texts, and a vocabulary of a few words."""
    chance = random.Random(0)
    with (place / "moods.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(ROWS):
            label = chance.choice(("good", "bad"))
            words = chance.choices(WORDS, k=chance.randint(2, 9))
            writer.writerow([" ".join([*words, label]), label])
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    (place / "vocab.txt").write_text("\n".join((*special, *WORDS)) + "\n", encoding="utf-8")


def survive(kind: Kind, place: Path, kills: int, chance: random.Random) -> list[str]:
    """What differs at the end."""
    began = time.monotonic()
    whole = place / f"{kind.name}-whole"
    process = start(kind, place, whole)
    first = time.monotonic() - wait_for(process, kind.begins)
    output, _ = process.communicate()
    lasts = time.monotonic() - began - (0.0 if not kind.begins else first)
    if process.returncode != 0:
        return [f"undisturbed it ended with {process.returncode}: {output[-500:]}"]
    print(f"{kind.name}: undisturbed {time.monotonic() - began:.1f} s; {kills} deaths", flush=True)
    failures, done, run = [], 0, 0
    ways: list[Callable[[subprocess.Popen], str | None]] = [killed, killed, terminated]
    while done < kills:
        run += 1
        with ground(place, cuts=kind.name == "train") as soil:
            folder = soil.folder / f"{kind.name}-{run}"
            for attempt in itertools.count():
                process = start(kind, place, folder)
                began = wait_for(process, kind.begins)
                if done == kills:  # now it may end
                    output, _ = process.communicate()
                    break
                moment = chance.uniform(0, lasts)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=moment)
                if process.poll() is not None:
                    if attempt == 0:  # sooner than the first did: later moments would not meet it
                        lasts = min(lasts, time.monotonic() - began)
                    break
                done += 1
                way = chance.choice([*ways, soil.cut] if soil.cut else ways)
                problem = way(process)
                print(f"  {done:2d} {way.__name__} after {moment:5.1f} s", flush=True)
                if problem:
                    failures.append(f"death {done}: {problem}")
            if process.returncode != 0:
                failures.append(f"run {run} ended with {process.returncode}: {output[-500:]}")
                continue
            failures += [f"run {run}: {line}" for line in differences(whole, folder)]
    return failures


def start(kind: Kind, place: Path, folder: Path) -> subprocess.Popen[str]:
    """train.py in a process group of its own."""
    words = [
        f"--data.train={place / 'moods.csv'}", f"--data.cache_dir={place / 'cache'}",
        "--data.max_length=12", f"--model.vocab={place / 'vocab.txt'}", "--model.hidden_dim=16",
        "--model.num_layers=2", "--model.num_heads=2", "--model.intermediate_dim=32",
        "--train.batch_size=4", "--train.checkpoint_steps=20", "--train.learning_rate=1e-3",
        "--monitor.every_steps=10", "--export.name=moods", f"--output={folder}", *kind.words,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], line: str) -> float:
    """When a line that begins so came, or the process ended."""
    assert process.stdout is not None
    if line:
        for found in process.stdout:
            if found.startswith(line):
                break
    return time.monotonic()


def killed(process: subprocess.Popen[str]) -> None:
    """kill -9, which is what the kernel does when memory is out, too."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def terminated(process: subprocess.Popen[str]) -> str | None:
    """What is wrong with its end after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    try:
        output, _ = process.communicate(timeout=SAVES)
    except subprocess.TimeoutExpired:
        killed(process)
        return f"SIGTERM was not followed in {SAVES:.0f} s"
    if process.returncode == -signal.SIGTERM:  # Python had not begun to listen
        return None
    if process.returncode == 143 and "the same command goes on" in output:
        return None
    return None if process.returncode == 0 else f"{process.returncode} after SIGTERM: {output}"


@dataclasses.dataclass
class Soil:
    """Where a run writes."""

    folder: Path
    cut: Callable[[subprocess.Popen[str]], None] | None = None


@contextlib.contextmanager
def ground(place: Path, *, cuts: bool) -> Iterator[Soil]:
    """A folder; with cuts one whose disk can lose its power, where this machine has such disks."""
    if not cuts or not can_mount():
        if cuts:
            print("  no power cuts: they need root, mkfs.ext4 and loop devices", flush=True)
        yield Soil(place)
        return
    image, folder = place / "disk.img", place / "disk"
    folder.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)

    def power_cut(process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGSTOP)
        copy = place / "copy.img"
        shutil.copyfile(image, copy)  # what the file system has not written is not in it
        killed(process)
        subprocess.run(["umount", folder], check=True)
        os.replace(copy, image)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)

    try:
        yield Soil(folder, power_cut)
    finally:
        subprocess.run(["umount", folder], check=True)


def can_mount() -> bool:
    """Whether disk images can be mounted."""
    tools = shutil.which("mkfs.ext4") and shutil.which("mount")
    return bool(tools) and os.geteuid() == 0 and Path("/dev/loop-control").exists()


def differences(whole: Path, folder: Path) -> list[str]:
    """What two finished runs have that is not the same."""
    from kbert.monitor import read_scalars

    found = []
    for name in ("checkpoints/model.safetensors", "predictions.csv"):
        if digest(whole / name) != digest(folder / name):
            found.append(f"{name} differs")
    ours, theirs = (
        untimed(json.loads((of / "metrics.json").read_text())) for of in (folder, whole)
    )
    if ours != theirs:
        found.append("metrics.json differs")
    names = {path.relative_to(whole) for path in whole.rglob("*") if not is_random(path)}
    others = {path.relative_to(folder) for path in folder.rglob("*") if not is_random(path)}
    if names != others:
        found.append(f"files differ: {sorted(map(str, names ^ others))}")
    runs = {path.parent.relative_to(whole) for path in whole.rglob("events.out.tfevents.*")}
    for run in sorted(runs):
        expected, read = read_scalars(whole / run), read_scalars(folder / run)
        for name in sorted({*expected, *read}):
            if name.rpartition("/")[2] in SPEED or "seconds" in name:
                continue
            if expected.get(name) != read.get(name):
                found.append(f"TensorBoard's {run}: {name} differs")
        doubled = [point for point in points(folder / run) if point[1] > 1]
        found += [
            f"TensorBoard's {run}: {point} is there {count} times" for point, count in doubled
        ]
    return found


def points(folder: Path) -> list[tuple[tuple[str, int], int]]:
    """Tag and step of each scalar, and how often it is there."""
    import_tensorflow_quietly()  # the loader would, aloud
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    counts: dict[tuple[str, int], int] = {}
    for path in folder.glob("events.out.tfevents.*"):
        if path.name.rpartition(".")[2].isdigit():  # the others are replaced as a whole
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    key = (value.tag, event.step)
                    counts[key] = counts.get(key, 0) + 1
    return list(counts.items())


def is_random(path: Path) -> bool:
    """Whether a file's name, or its being there, is not the same in two runs."""
    return path.name.startswith("events.out.tfevents.") or path.name in ("owner", "lost+found")


def untimed(found: Any) -> Any:
    """JSON without what a clock, or the kernel, has said."""
    if isinstance(found, dict):
        return {name: untimed(of) for name, of in found.items() if name not in TIMED}
    return [untimed(of) for of in found] if isinstance(found, list) else found


def digest(path: Path) -> str:
    """SHA-256 of a file; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
