"""Training rows a second of kbert, HuggingFace's Trainer and keras-hub, side by side: `make bench`.

All train the same sizes on the same 1,920 texts, 60 steps of 32 an epoch. The processes are up at
once, and one works at a time: a round is an epoch of each, one after the other, in an order that
moves by one each round, and a ratio is that of two neighbours in time. The first epoch of each is
not counted. The Trainer pads to the longest of a batch, groups by length, and has fused AdamW; of
its precisions and torch.compile the one that is fastest in an epoch of its own is compared.

Results go to benchmarks/results.json.

Exit status: 0 when every goal is reached, 1 when one is missed, 2 when data or packages are absent.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from quality import (  # noqa: E402
    DATA,
    OUT,
    PEER,
    checkpoint,
    cpus,
    describe_machine,
    what_is_absent,
)
from rounds import read_lines  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results.json"
BATCH_SIZE = 32
ROWS = 60 * BATCH_SIZE
EPOCHS = 1000  # more than are asked for
HUB_LENGTH = 128  # keras-hub has one length for all texts
COMMON = {"batch_size": BATCH_SIZE, "warmup": 0.1, "weight_decay": 0.01, "clip_norm": 1.0}
MAX_LENGTHS = {"sst2": 64, "clinc150": 64, "spamassassin": 128}
TRAINERS = {
    "Trainer float32": {"precision": "float32", "compile": False},
    "Trainer bfloat16": {"precision": "bfloat16", "compile": False},
    "Trainer bfloat16, torch.compile": {"precision": "bfloat16", "compile": True},
}
HUB_SETS = ("sst2", "clinc150")
GOALS = {"Trainer": 1.5, "keras-hub": 4.0}


class Peer:
    """A process that trains an epoch when it is told to."""

    def __init__(self, name: str, process: subprocess.Popen) -> None:
        self.name = name
        self.process = process

    def epoch(self) -> dict[str, Any]:
        """Train one: its seconds, and what else it says."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            log = log_of(self.name).read_text(encoding="utf-8")
            raise ChildProcessError(f"{self.name} has ended:\n{log[-2000:]}")
        return json.loads(line)


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=tuple(MAX_LENGTHS), default=[*MAX_LENGTHS])
    parser.add_argument("--rounds", type=int, default=5, help="counted epochs (default: 5)")
    options = parser.parse_args()
    absent = what_is_absent([]) or next(
        (
            f"../shared/data/{name} is absent."
            for name in options.sets
            if not (DATA / name).is_dir()
        ),
        None,
    )
    if absent:
        print(f"bench: not run: {absent}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    results = {"machine": describe_machine(), "training": {}}
    for name in options.sets:
        results["training"][name] = measure(name, options.rounds)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    ratios = [
        (name, tool, ratio)
        for name, measured in results["training"].items()
        for tool, ratio in measured["ratios"].items()
    ]
    missed = [of for of in ratios if of[2]["median"] < GOALS[of[1]]]
    for name, tool, ratio in missed:
        print(f"missed: {name}, {ratio['median']:.2f} times {tool}, goal {GOALS[tool]}")
    return 1 if missed else 0


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Epochs of kbert, of the fastest Trainer and of keras-hub on one data set."""
    print(f"{name}, max_length {MAX_LENGTHS[name]}", flush=True)
    best = fastest_trainer(name)
    with ExitStack() as stack:
        commands = {"kbert": kbert(name), "Trainer": trainer(name, **TRAINERS[best])}
        if name in HUB_SETS:
            commands["keras-hub"] = keras_hub(name)
        peers = [stack.enter_context(started(*of)) for of in commands.items()]
        for peer in peers:
            peer.epoch()  # traces, compiles, and finds its memory
        epochs: list[dict[str, Any]] = []
        for number in range(rounds):
            order = peers[number % len(peers) :] + peers[: number % len(peers)]
            told = {peer.name: peer.epoch() for peer in order}
            epochs.append(told)
            print("  " + ", ".join(f"{tool} {ROWS / of['seconds']:.0f} rows/s"
                                   for tool, of in told.items()), flush=True)  # fmt: skip
    ratios = {
        tool: spread([of[tool]["seconds"] / of["kbert"]["seconds"] for of in epochs])
        for tool in commands
        if tool != "kbert"
    }
    for tool, ratio in ratios.items():
        print(f"  kbert / {tool}: {ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})")
    return {"trainer": best, "epochs": epochs, "ratios": ratios}


def fastest_trainer(name: str) -> str:
    """Which of the Trainer's ways is fastest here, by the second epoch of each."""
    seconds = {}
    for way, settings in TRAINERS.items():
        try:
            with started(way, trainer(name, **settings)) as peer:
                peer.epoch()
                seconds[way] = peer.epoch()["seconds"]
        except ChildProcessError as error:
            print(f"  {way}: does not run ({str(error).strip().splitlines()[-1]})", flush=True)
        else:
            print(f"  {way}: {ROWS / seconds[way]:.0f} rows/s", flush=True)
    return min(seconds, key=lambda way: seconds[way])


@contextmanager
def started(name: str, command: list[str]) -> Iterator[Peer]:
    """A process that waits to be told, until the end."""
    with log_of(name).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
    try:
        yield Peer(name, process)
    finally:
        process.kill()
        process.communicate()


def log_of(name: str) -> Path:
    """Where a process writes what it has to say."""
    return OUT / f"bench-{name.replace(' ', '-').replace(',', '')}.log"


def kbert(name: str) -> list[str]:
    """The call of train_kbert.py: the options are auto."""
    options = {
        "data.train": texts(name),
        "data.max_length": MAX_LENGTHS[name],
        "data.cache_dir": OUT / "cache",
        "model.checkpoint": checkpoint(),
        "train.epochs": EPOCHS,
        "train.learning_rate": 1e-5,
        "output": OUT / "none",
        **{f"train.{option}": value for option, value in COMMON.items()},
    }
    words = [f"--{option}={value}" for option, value in options.items()]
    return [sys.executable, str(HERE / "train_kbert.py"), *words]


def trainer(name: str, *, precision: str, compile: bool) -> list[str]:
    """The call of train_trainer.py."""
    told = {"max_length": MAX_LENGTHS[name], "precision": precision, "compile": compile}
    settings = json.dumps({**common_settings(name), **COMMON, **PEER, **told})
    return [sys.executable, str(HERE / "train_trainer.py"), settings]


def keras_hub(name: str) -> list[str]:
    """The call of train_keras_hub.py."""
    settings = json.dumps(
        {**common_settings(name), "batch_size": BATCH_SIZE, "sequence_length": HUB_LENGTH}
    )
    return [sys.executable, str(HERE / "train_keras_hub.py"), settings]


def common_settings(name: str) -> dict[str, Any]:
    """What both peers are told."""
    return {
        "seed": 0,
        "file": str(texts(name)),
        "checkpoint": str(checkpoint()),
        "threads": cpus(),
        "epochs": EPOCHS,
        "learning_rate": 1e-5,
    }


@functools.cache
def texts(name: str) -> Path:
    """`ROWS` rows of its training data, evenly spaced, as texts and labels."""
    path = OUT / f"bench-{name}-{ROWS}.jsonl"
    rows = list(READERS[name](DATA / name))
    kept = [rows[row * len(rows) // ROWS] for row in range(ROWS)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in kept]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_sst2(folder: Path) -> list[tuple[str, str]]:
    """A TSV file without quoting."""
    lines = (folder / "train.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [tuple(line.split("\t")) for line in lines[1:]]


def read_clinc150(folder: Path) -> list[tuple[str, str]]:
    """A text and its intent a line."""
    return [(row["text"], row["intent"]) for row in read_lines(folder / "train.jsonl")]


def read_spamassassin(folder: Path) -> list[tuple[str, str]]:
    """Subject and body as one text."""
    rows = read_lines(folder / "train.jsonl")
    return [(f"{row['subject']} {row['body']}", row["label"]) for row in rows]


READERS = {"sst2": read_sst2, "clinc150": read_clinc150, "spamassassin": read_spamassassin}


def spread(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "low": low, "high": high, "values": values}


if __name__ == "__main__":
    sys.exit(main())
