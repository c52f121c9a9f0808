"""Bad and hostile files, each read as kbert reads it: what `make hostile` runs.

Every file of `hostile_files` is refused, by each command and function that would read it, in at
most 10 s (the import of TensorFlow not counted) and 2 GB, by one error of one line that names it.
Nothing of it is run, nothing is written. What looks bad and is not (the links of the hub's cache)
is read; gigabytes of good rows may take the time that they take, in the same memory. A child
process reads one after the other; if one kills it, or takes too long, that is that file's outcome,
and another child goes on.

Exit status: 0 when all that holds, 1 when not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostile_files.case import Case

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1"}

SECONDS, MEBIBYTES = 10, 2048
GRACE = 20  # seconds until a reader that takes too long is killed
PATIENCE = 300  # seconds for gigabytes of good rows
CEILING = 6 << 30  # bytes of memory beside the imports: the machine is to survive
LONGEST = 2000  # characters of an error


@dataclass
class Outcome:
    """What came of a file."""

    case: str
    reader: str
    found: str
    """refused, read, or what went wrong."""
    message: str
    seconds: float
    mebibytes: float
    """The most memory that the reader took on top of what the process had."""
    holds: bool


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--quick", action="store_true", help="without the large files")
    parser.add_argument("--messages", action="store_true", help="print the errors, too")
    parser.add_argument("--child", nargs=2, metavar=("MATERIALS", "NUMBERS"), help="internal")
    parser.add_argument("--make", nargs=2, metavar=("NUMBER", "FOLDER"), help="internal")
    options = parser.parse_args()
    if options.make:
        return _make(int(options.make[0]), Path(options.make[1]))
    if options.child:
        return _child(Path(options.child[0]), json.loads(options.child[1]))
    from hostile_files import CASES

    chosen = [
        number
        for number, case in enumerate(CASES)
        if options.only in case.name and not (options.quick and case.is_large)
    ]
    with tempfile.TemporaryDirectory(prefix="kbert-hostile-") as work:
        _make_materials(Path(work))
        outcomes = []
        for outcome in _outcomes(Path(work), chosen):
            outcomes.append(outcome)
            print(_line(outcome), flush=True)
            if options.messages:
                print(f"    {outcome.message.replace(work, '')}", flush=True)
    failed = [outcome for outcome in outcomes if not outcome.holds]
    slowest = max(outcomes, key=lambda of: of.seconds)
    largest = max(outcomes, key=lambda of: of.mebibytes)
    print(
        f"{len(chosen)} files, read {len(outcomes)} times: {len(failed)} outcomes do not hold\n"
        f"slowest {slowest.seconds:.1f} s ({slowest.case}, {slowest.reader}); "
        f"most memory {largest.mebibytes:.0f} MiB ({largest.case}, {largest.reader})"
    )
    for outcome in failed:
        print(f"FAILED {_line(outcome)}\n       {outcome.message[:500]}")
    return 1 if failed else 0


def _line(outcome: Outcome) -> str:
    verdict = outcome.found if outcome.holds else f"{outcome.found} !!"
    return (
        f"{outcome.case[:64]:<65}{outcome.reader:<10}{verdict:<24}"
        f"{outcome.seconds:6.1f} s{outcome.mebibytes:7.0f} MiB"
    )


def _is_good_data(case: Case) -> bool:
    """Whether it is gigabytes of good rows."""
    return case.is_large and case.is_read


def _patience(case: Case) -> float:
    """Seconds until its reader is killed."""
    return PATIENCE if _is_good_data(case) else GRACE


def _make_materials(work: Path) -> None:
    """The good folders that cases begin with: WORK/checkpoint, WORK/run, WORK/nothing."""
    from materials import write_tiny_checkpoint, write_tiny_csv

    import train

    for name in ("checkpoint", "nothing", "work"):
        (work / name).mkdir()
    write_tiny_checkpoint(work / "checkpoint")
    texts = write_tiny_csv(work / "train.csv")
    options = {
        "--data.train": texts,
        "--data.max_length": 12,
        "--data.cache_dir": work / "cache",
        "--model.checkpoint": work / "checkpoint",
        "--train.epochs": 1,
        "--task.calibrate": "true",
        "--output": work / "run",
    }
    with contextlib.redirect_stdout(sys.stderr):
        status = train.main([str(word) for pair in options.items() for word in pair])
    if status:
        raise SystemExit("the good run that others are made from did not work")


def _outcomes(work: Path, numbers: list[int]) -> Iterator[Outcome]:
    """Of the cases of these numbers, in children of which each goes on where the last ended."""
    from hostile_files import CASES

    left = [(number, reader) for number in numbers for reader in CASES[number].readers]
    while left:
        command = [sys.executable, __file__, "--child", str(work), json.dumps(left)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for outcome in _reports(child):
                left.pop(0)
                yield outcome
            status = child.wait()
        if left:
            number, reader = left.pop(0)
            found = "takes too long" if status == -signal.SIGKILL else f"dies ({status})"
            seconds = _patience(CASES[number])
            yield Outcome(CASES[number].name, reader, found, "", seconds, 0, holds=False)


def _reports(child: subprocess.Popen[str]) -> Iterator[Outcome]:
    """What a child tells of one case after the other; it is killed when a reader takes too long."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_collect, args=(child, lines), daemon=True).start()
    if lines.get() != "ready\n":
        raise SystemExit("the good files that others are made from cannot be read")
    while (line := lines.get()) != "":  # the file is made: how long it may take
        try:
            line = lines.get(timeout=float(line))
        except queue.Empty:
            child.kill()
            return
        if line:
            yield Outcome(**json.loads(line))


def _collect(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """The lines that a child writes, and an empty one at its end."""
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")


# The child


def _child(work: Path, left: list[tuple[int, str]]) -> int:
    from hostile_files import CASES

    from serve.startup import import_tensorflow_quietly

    tell, sys.stdout = sys.stdout, sys.stderr
    import_tensorflow_quietly()
    _warm_up(work)
    _, unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + CEILING, unlimited))
    print("ready", file=tell, flush=True)
    for number, reader in left:
        outcome = _outcome(work, CASES[number], reader, tell)
        print(json.dumps(asdict(outcome)), file=tell, flush=True)
    return 0


def _make(number: int, folder: Path) -> int:
    """Make a large case, which takes more memory than the child that reads it has."""
    from hostile_files import CASES

    _, unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (unlimited, unlimited))
    CASES[number].spoil(folder)
    return 0


def _warm_up(work: Path) -> None:
    """Import all, and let TensorFlow make its threads and kernels."""
    from hostile_files import READERS

    for start, readers in (
        ("checkpoint", ("encoder", "tokenizer")),
        ("run", ("predict", "evaluate", "report", "compare")),
    ):
        for reader in readers:
            with _copy(work, start) as folder:
                READERS[reader](folder)


@contextlib.contextmanager
def _copy(work: Path, start: str) -> Iterator[Path]:
    """A folder that is a copy of a good one; beside a run, another one that stays good."""
    place = Path(tempfile.mkdtemp(dir=work / "work"))
    try:
        shutil.copytree(work / start, place / "folder")
        if start == "run":
            (place / "good").symlink_to(work / "run")
        yield place / "folder"
    finally:
        shutil.rmtree(place)


def _outcome(work: Path, case: Case, reader: str, tell) -> Outcome:
    """Make a case and read it."""
    from hostile_files import CANARY, CASES, READERS

    from kbert.errors import InputError

    assert not CANARY.exists()
    with _copy(work, case.start) as folder:
        if case.is_large:
            made = [sys.executable, __file__, "--make", str(CASES.index(case)), str(folder)]
            subprocess.run(made, check=True)
        else:
            case.spoil(folder)
        before = _listing(folder)
        print(_patience(case), file=tell, flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        base, began, message = _memory("VmRSS"), time.perf_counter(), ""
        try:
            READERS[reader](folder)
            found = "read"
        except InputError as error:
            found, message = "refused", str(error)
        except BaseException as error:
            found, message = type(error).__name__, str(error)
        seconds = time.perf_counter() - began
        mebibytes = max(0, _memory("VmHWM") - base) / 2**20
        if found == "refused":
            found = _fault(message, folder, before, _listing(folder)) or found
    if CANARY.exists():
        found = "it was RUN"
    is_right = found == ("read" if case.is_read else "refused")
    if is_right and seconds > SECONDS and not _is_good_data(case):
        found = "takes too long"
    if is_right and mebibytes > MEBIBYTES:
        found = "takes too much memory"
    holds = found in ("read", "refused") and is_right
    return Outcome(case.name, reader, found, message, seconds, mebibytes, holds)


def _fault(message: str, folder: Path, before: list, after: list) -> str:
    """What is wrong with an error, in a few words; "" where nothing is."""
    names = (str(folder), folder.name, *(path.name for path in folder.rglob("*")))
    if not message.isprintable():
        return "no one line"
    if len(message) > LONGEST:
        return "a long line"
    if not any(name in message for name in names):
        return "names no file"
    if "Unable to allocate" in message or "MemoryError" in message:
        return "memory was asked for"
    return "" if before == after else "something is written"


def _listing(folder: Path) -> list[tuple]:
    """All that there is: names, kinds, sizes, times."""
    found = []
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found.append((str(path), stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return found


def _memory(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


if __name__ == "__main__":
    sys.exit(main())
