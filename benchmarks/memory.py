"""What gradient accumulation, rematerialisation, LoRA and frozen layers save: `make bench-memory`.

Each way trains MiniLM-L6 on the same long texts in a process of its own, beside one of full
fine-tuning: the two take turns, a step each, and a ratio of their times is that of neighbours. CPU
time, of all cores, says more than the clock where others use the machine, too. Memory is the most
that a process has held (its maximum resident set), less what one holds that has imported the same
packages and done nothing: the model is in it.

With --accuracy each way that learns otherwise then trains an epoch of sst2 by train.py.

Exit status: 0, or 2 when data or packages are absent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "benchmarks" / "speed" / "train_kbert.py"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from quality import DATA, OUT, checkpoint, describe_machine, what_is_absent  # noqa: E402

EPOCHS = 1000  # more than are asked for
WORDS = 700  # of a text: more than any model's positions
BARE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import kbert.experiment
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@dataclass(frozen=True)
class Way:
    """Of training: its name, its options, and those that it learns best with."""

    name: str
    options: dict[str, Any]
    learning: dict[str, Any] | None = None
    """For sst2; None where it is that of another way."""


FULL = Way("full fine-tuning", {}, {"train.learning_rate": 1e-4})
LORA = {"train.lora_rank": 16}
WAYS = (
    Way("frozen_layers 3", {"train.frozen_layers": 3}, {"train.learning_rate": 1e-4}),
    Way("lora_rank 16", LORA, {"train.learning_rate": 1e-3}),
    Way("accumulate 4", {"train.accumulate": 4}),
    Way("rematerialize", {"train.rematerialize": "true"}),
    Way("accumulate 4, rematerialize", {"train.accumulate": 4, "train.rematerialize": "true"}),
    Way(
        "lora_rank 16, accumulate 4, rematerialize",
        {**LORA, "train.accumulate": 4, "train.rematerialize": "true"},
    ),
)


@dataclass(frozen=True)
class Found:
    """Of a way, beside full fine-tuning."""

    name: str
    memory: float
    """The most bytes that it held, over those of a bare import."""
    trained: int
    """Weights that are trained."""
    rounds: list[tuple[dict[str, Any], dict[str, Any]]]
    """What it said of a step, and what full fine-tuning said just before or after."""

    def seconds(self, kind: str) -> float:
        """Of a step, the median."""
        return median(ours[kind] for ours, _ in self.rounds)

    def ratio(self, kind: str) -> float:
        """Of the times of neighbours, the median."""
        return median(ours[kind] / theirs[kind] for ours, theirs in self.rounds)


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=512, help="word pieces (default: 512)")
    parser.add_argument("--batch-size", type=int, default=16, help="texts a step (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="counted ones (default: 3)")
    parser.add_argument("--accuracy", action="store_true", help="train an epoch of sst2, too")
    options = parser.parse_args()
    absent = what_is_absent(["sst2"])
    if not absent and not (DATA / "spamassassin").is_dir():
        absent = "../shared/data/spamassassin is absent."
    if absent:
        print(f"memory.py: not run: {absent}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    describe_machine()
    common = {
        "data.train": texts(options.batch_size),
        "data.max_length": options.length,
        "train.batch_size": options.batch_size,
        "train.epochs": EPOCHS,
    }
    bare = int(subprocess.check_output([sys.executable, "-c", BARE, str(ROOT)], text=True))
    print(f"a bare import: {bare / 2**20:.0f} MiB", flush=True)
    rows = []
    with training(FULL, common) as full:
        told = next(full)  # traces, and finds its memory
        for way in WAYS:
            rows.append(beside(full, way, common, rounds=options.rounds, bare=bare))
            print(line(rows[-1], None), flush=True)
        steps = [(theirs, theirs) for row in rows for _, theirs in row.rounds]
        memory = next(full)["peak_memory"] - bare
        rows.insert(0, Found(FULL.name, memory, told["trained"], steps))
    print(f"\nlength {options.length}, batch_size {options.batch_size}\n")
    print("| options | memory, MiB | of full | trained weights | CPU s a step | of full | wall |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(line(row, rows[0]))
    if options.accuracy:
        for way in (FULL, *WAYS):
            if way.learning is not None:
                print(f"{way.name}: sst2 accuracy {accuracy(way):.4f} after an epoch", flush=True)
    return 0


def beside(
    full: Iterator[dict[str, Any]], way: Way, common: dict[str, Any], *, rounds: int, bare: int
) -> Found:
    """A way, in turn with full fine-tuning."""
    with training(way, common) as ours:
        next(ours)
        found = []
        for number in range(rounds):
            pair = (full, ours) if number % 2 else (ours, full)  # neither is always the first
            told = {of: next(of) for of in pair}
            found.append((told[ours], told[full]))
    last, _ = found[-1]
    return Found(way.name, last["peak_memory"] - bare, last["trained"], found)


def line(row: Found, full: Found | None) -> str:
    """Of the table; full fine-tuning is measured to its end before the share of it is known."""
    share = "" if full is None else f"{row.memory / full.memory:.0%}"
    return (
        f"| {row.name} | {row.memory / 2**20:,.0f} | {share} "
        f"| {row.trained:,} | {row.seconds('cpu_seconds'):.1f} | {row.ratio('cpu_seconds'):.2f} "
        f"| {row.ratio('seconds'):.2f} |"
    )


@contextmanager
def training(way: Way, common: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    """A process that trains an epoch whenever the next thing it has to say is asked for."""
    options = {**base(), **common, **way.options, "output": OUT / "none"}
    words = [f"--{option}={value}" for option, value in options.items()]
    log = OUT / f"bench-memory-{way.name.replace(' ', '-').replace(',', '')}.log"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
    try:
        yield said(process, log)
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen, log: Path) -> Iterator[dict[str, Any]]:
    """What a process says of each epoch."""
    assert process.stdin is not None and process.stdout is not None
    while True:
        process.stdin.write("\n")
        process.stdin.flush()
        text = process.stdout.readline()
        if not text:
            raise SystemExit(f"{log}: the process has ended:\n{log.read_text()[-2000:]}")
        yield json.loads(text)


def base() -> dict[str, Any]:
    """Options of every way."""
    return {
        "data.cache_dir": OUT / "cache",
        "data.validation_fraction": 0,
        "data.test_fraction": 0,
        "model.checkpoint": checkpoint(),
        "train.precision": "float32",
        "train.compile": "graph",
        "monitor.tensorboard": "false",
    }


def texts(rows: int) -> Path:
    """Mails, one after the other, in texts that are longer than the model reads."""
    path = OUT / f"bench-memory-{rows}.jsonl"
    lines = (DATA / "spamassassin" / "train.jsonl").read_text(encoding="utf-8").split("\n")
    mails = iter([json.loads(line) for line in lines if line])
    made = []
    while len(made) < rows:
        words: list[str] = []
        while len(words) < WORDS:
            words += next(mails)["body"].split()
        made.append(json.dumps({"text": " ".join(words), "label": str(len(made) % 2)}))
    path.write_text("\n".join(made) + "\n", encoding="utf-8")
    return path


def accuracy(way: Way) -> float:
    """On the test rows of sst2, after an epoch by train.py."""
    output = OUT / "memory" / way.name.replace(" ", "-")
    options = {
        **base(),
        "data.train": DATA / "sst2" / "train.tsv",
        "data.validation": DATA / "sst2" / "valid.tsv",
        "data.test": DATA / "sst2" / "test.tsv",
        "data.max_length": 64,
        "train.epochs": 1,
        "export.enabled": "false",
        **way.options,
        **(way.learning or {}),
        "output": output,
    }
    words = [f"--{option}={value}" for option, value in options.items()]
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], check=True, stdout=subprocess.DEVNULL
    )
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))["test"]["accuracy"]


if __name__ == "__main__":
    sys.exit(main())
