"""What a process that trains says and hears: a round is an epoch of the same texts.

After each round the process writes its seconds to standard output, as a line of JSON, and waits
for a line on standard input, so that only one of several processes ever works.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


class Rounds:
    """Times the steps of each epoch, from its beginning to its last step."""

    def __init__(self) -> None:
        # what libraries print goes elsewhere
        self.output, sys.stdout = sys.stdout, sys.stderr
        self.began = self.began_cpu = 0.0
        self.seconds = self.cpu_seconds = 0.0

    def begin(self) -> None:
        """An epoch begins, when it is asked for."""
        if not sys.stdin.readline():
            raise SystemExit(0)
        self.began, self.began_cpu = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """A step is done."""
        self.seconds = time.perf_counter() - self.began
        self.cpu_seconds = time.process_time() - self.began_cpu

    def end(self, **more) -> None:
        """An epoch is done."""
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_memory": kilobytes * 1024,
            **more,
        }
        print(json.dumps(said), file=self.output, flush=True)


def read(path: str) -> list[tuple[str, str]]:
    """Texts and labels of a JSONL file."""
    return [(row["text"], row["label"]) for row in read_lines(Path(path))]


def read_lines(path: Path) -> list[dict[str, str]]:
    """The rows of a JSONL file."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [json.loads(line) for line in lines]


def answer_in_rounds(path: str, answer: Callable[[list[str]], np.ndarray]) -> None:
    """Answer texts in batches, a round after the other.

    A line on standard input is JSON: `batch_size` and `batches`, those from the beginning of the
    file. Said are the seconds, and `logits`: the first numbers, for whoever compares.

    Args:
        path: JSONL file of texts.
        answer: A batch of texts to logits, float32 (batch, classes).
    """
    texts = [text for text, _ in read(path)]
    output, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        told = json.loads(line)
        size = told["batch_size"]
        batches = [texts[size * at : size * (at + 1)] for at in range(told["batches"])]
        began = time.perf_counter()
        answers = [answer(batch) for batch in batches]
        said = {"seconds": time.perf_counter() - began, "logits": answers[0][0].tolist()}
        print(json.dumps(said), file=output, flush=True)
