"""Processes that are up at once, of which one works at a time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from quality import OUT

ROOT = Path(__file__).resolve().parents[2]
FAR_SLOWER = 1.5  # times
Round = dict[str, dict[str, Any]]
"""What each process says of a round, by its name."""


class Peer:
    """A process that does a round when it is told to."""

    def __init__(self, name: str, process: subprocess.Popen) -> None:
        self.name = name
        self.process = process

    def round(self, told: str = "") -> dict[str, Any]:
        """Do one: its seconds, and what else it says."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{told}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            log = log_of(self.name).read_text(encoding="utf-8")
            raise ChildProcessError(f"{self.name} has ended:\n{log[-2000:]}")
        return json.loads(line)


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


def in_turn(
    commands: dict[str, list[str]],
    work: dict[str, tuple[str, str]],
    rounds: int,
    *,
    rivals: Sequence[str] = (),
) -> tuple[dict[str, Round], dict[str, list[Round]]]:
    """What each process says of each round.

    The order moves by one each round, so that a ratio is that of two neighbours in time.

    Args:
        commands: What to start, by name.
        work: What all are told to do in the first round and in each other, by name of the work.
        rounds: As many of each work.
        rivals: Some that are the same tool in several ways, of which the fastest is compared: one
            that is `FAR_SLOWER` than another in the first round has no other rounds.

    Returns:
        The first round of each work, which is not counted, and the others.
    """
    first: dict[str, Round] = {}
    found: dict[str, list[Round]] = {}
    with ExitStack() as stack:
        everybody = [stack.enter_context(started(*of)) for of in commands.items()]
        for name, (warm_up, told) in work.items():
            # traces, compiles, and finds its memory
            first[name] = {peer.name: peer.round(warm_up) for peer in everybody}
            seconds = {of: first[name][of]["seconds"] for of in rivals}
            most = FAR_SLOWER * min(seconds.values(), default=0.0)
            peers = [peer for peer in everybody if seconds.get(peer.name, 0.0) <= most]
            found[name] = []
            for number in range(rounds):
                order = peers[number % len(peers) :] + peers[: number % len(peers)]
                found[name].append({peer.name: peer.round(told) for peer in order})
    return first, found


def spread(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "low": low, "high": high, "values": values}
