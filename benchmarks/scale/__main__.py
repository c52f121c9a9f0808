"""What training costs as data and model grow: `make bench-scale`.

Starts: train.py on made-up texts, 1,000 to 5,000,000 rows, by a model of two layers of 128 that is
small beside the data; seconds from `python train.py` to the end of the first step, with nothing
and with everything in the cache, and peak memory. The largest set is trained for a whole epoch,
measured and reported, with peak memory up to its end. Each is in a process of its own.

Steps: times of a step of MiniLM-L6's sizes against length, batch, layers, hidden size, classes and
cores, each beside what its floating-point operations say. Each table is measured in one process.

Figures go to growth.json beside this file, tables to docs/growth.md.

Exit status: 0 when every goal is reached, 1 when one is missed, 2 when the vocabulary is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "benchmarks")]

from made_texts import write_texts  # noqa: E402
from quality import OUT, WEIGHTS, checkpoint, describe_machine  # noqa: E402
from tables import GIB, PAGE, write_tables  # noqa: E402

RESULTS = HERE / "growth.json"
ROWS = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
CLASSES = 10
FIRST_STEPS = 20
SWEEPS = {
    "length": (16, 32, 64, 128, 256, 512),
    "batch": (8, 16, 32, 64, 128),
    "layers": (1, 2, 4, 6, 12),
    "hidden": (128, 256, 384, 512, 768),
    "classes": (2, 100, 1_000, 10_000),
}
FIRST_SECONDS = 60  # to the first step, of the largest set
AGAIN_SECONDS = 20  # of the second smallest set, from the cache
MOST_MEMORY = 2 * GIB  # of the largest set, above that of the smallest: the model's own need


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--most-rows", type=int, default=ROWS[-1], help="of the rows' table")
    parser.add_argument("--only", choices=("rows", "steps"), help="measure one of the two")
    options = parser.parse_args()
    weights = checkpoint()
    if weights is None:
        print(f"bench-scale: not run: the package {WEIGHTS} is absent.", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results["machine"] = describe_machine()
    if options.only != "steps":
        sizes = [rows for rows in ROWS if rows <= options.most_rows]
        results["rows"] = [
            starts(weights / "vocab.txt", rows, is_whole=rows in (sizes[0], sizes[-1]))
            for rows in sizes
        ]
    if options.only != "rows":
        results["steps"] = {name: sweep(name, values) for name, values in SWEEPS.items()}
        counts = range(1, len(os.sched_getaffinity(0)) + 1)
        results["cores"] = [{"cores": count, **steps([{}], cores=count)[0]} for count in counts]
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_tables(results)
    print(f"\nfigures: {RESULTS.relative_to(ROOT)}; tables: {PAGE.relative_to(ROOT)}")
    missed = misses(results["rows"]) if options.only != "steps" else []
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


def starts(vocabulary: Path, rows: int, *, is_whole: bool) -> dict[str, Any]:
    """A first and a second start on so many rows; of `is_whole` the second goes on to the end."""
    folder = OUT / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / "texts.csv"
    write_texts(file, vocabulary, rows=rows, classes=CLASSES)
    words = [
        f"--data.train={file}",
        f"--data.cache_dir={folder / 'cache'}",
        f"--model.vocab={vocabulary}",
        *(f"--data.{name}={value}" for name, value in (("text_column", "text"),
                                                       ("label_column", "label"),
                                                       ("max_length", 64))),
        *(f"--model.{name}={value}" for name, value in (("num_layers", 2), ("hidden_dim", 128),
                                                        ("num_heads", 2),
                                                        ("intermediate_dim", 512))),
        *(f"--train.{name}={value}" for name, value in (("epochs", 1), ("batch_size", 256),
                                                        ("learning_rate", 1e-3))),
        "--task.name=classification",
        "--export.enabled=false",
    ]  # fmt: skip
    first = start([*words, f"--output={folder / 'first'}"], FIRST_STEPS)
    again = start([*words, f"--output={folder / 'again'}"], 0 if is_whole else FIRST_STEPS)
    found = {
        "rows": rows,
        "first": first["step 1"],
        "again": again["step 1"],
        "steps": first[f"step {FIRST_STEPS}"] if f"step {FIRST_STEPS}" in first else first["end"],
    }
    if is_whole:
        found["end"] = again["end"]
    print(json.dumps(found), flush=True)
    shutil.rmtree(folder)
    return found


def start(words: list[str], steps: int) -> dict[str, dict[str, Any]]:
    """A process that trains: what it told, by event."""
    log = OUT / "scale.log"
    command = [sys.executable, str(HERE / "start.py"), str(time.time()), str(steps), *words]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"event"')]
    if done.returncode not in (0, 130) or not said:
        raise ChildProcessError(f"a training has failed ({log}):\n{done.stderr[-2000:]}")
    return {of["event"]: of for of in said}


def sweep(name: str, values: tuple[int, ...]) -> list[dict[str, Any]]:
    """Steps of one size at several values, the others as they are."""
    print(f"steps: {name} {values[0]} to {values[-1]}", flush=True)
    return steps([{name: value} for value in values])


def steps(sizes: list[dict[str, int]], *, cores: int | None = None) -> list[dict[str, Any]]:
    """Steps of some sizes in one process, on so many cores; None for all."""
    command = [sys.executable, str(HERE / "steps.py"), json.dumps(sizes)]
    if cores is not None:
        chosen = sorted(os.sched_getaffinity(0))[:cores]
        command = ["taskset", "-c", ",".join(map(str, chosen)), *command]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def misses(measured: list[dict[str, Any]]) -> list[str]:
    """The goals that are not reached, of those that can be told."""
    found = []
    if measured[-1]["rows"] == ROWS[-1]:
        seconds = measured[-1]["first"]["seconds"]
        if seconds > FIRST_SECONDS:
            found.append(f"first step after {seconds:.1f} s, goal {FIRST_SECONDS}")
        above = measured[-1]["end"]["peak_memory"] - measured[0]["end"]["peak_memory"]
        if above > MOST_MEMORY:
            found.append(f"{above / GIB:.2f} GiB above the model's own need, goal 2")
    for of in measured:
        if of["rows"] == ROWS[1] and of["again"]["seconds"] > AGAIN_SECONDS:
            seconds = of["again"]["seconds"]
            found.append(f"first step from the cache after {seconds:.1f} s, goal {AGAIN_SECONDS}")
    return found


if __name__ == "__main__":
    sys.exit(main())
