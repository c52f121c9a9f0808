"""Start the processes of one training on this machine: `python -m kbert.launch --help`.

It ends with the status of the first process, the chief.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from kbert.cluster import TRY_AGAIN, VARIABLE
from kbert.errors import InputError
from serve.command_line import OneLineParser

EPILOG = """\
Four processes that train one model, each with a quarter of the rows of a step:

  python -m kbert.launch --workers 4 -- train.py --config recipes/news.yaml \\
    --train.strategy multi_worker --data.train articles.csv --output runs/news

When one of them dies, all are started again and go on from the newest checkpoint. Ctrl-C and
SIGTERM are passed on: all stop after the same step, save, and the same command goes on.
"""
LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.1
ALONE_SECONDS = 15  # for processes that another one has left alone, to end by themselves
STOP_SECONDS = 60  # for a step and its checkpoint, once all are asked to stop
BAD_INPUT = 2
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Statuses of processes that were asked to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Start what the command line names, and keep it running; the exit status."""
    options = _parse(arguments)
    try:
        if options.isolated:
            isolate()
    except InputError as error:
        print(f"kbert.launch: {error}", file=sys.stderr)
        return BAD_INPUT
    with _Asked() as asked:
        for attempt in range(options.restarts + 1):
            group = _Group([sys.executable, *options.command], options.workers)
            status, died = group.run(asked)
            if died is None:
                return status
            left = options.restarts - attempt
            what = f"all are started again ({left} more times at most)" if left else "no more"
            print(f"worker {died} ended with status {status}: {what}", flush=True)
    return status


class _Asked:
    """Which signal asked to stop, 0 for none: SIGINT and SIGTERM, while it is entered."""

    number = 0
    group: _Group | None = None
    """Whom to pass it on to."""

    def __enter__(self) -> _Asked:
        self.before = {of: signal.signal(of, self._ask) for of in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: object) -> None:
        self.number = number
        if self.group is not None:
            self.group.send(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class _Group:
    """All processes of a training, the chief first.

    Args:
        command: What each of them is.
        count: How many.
    """

    def __init__(self, command: Sequence[str], count: int) -> None:
        addresses = [f"{LOOPBACK}:{port}" for port in _free_ports(count)]
        self.processes = [
            _start(command, {"cluster": {"worker": addresses}, "task": {
                "type": "worker", "index": index,
            }})
            for index in range(count)
        ]  # fmt: skip
        self.printers = [
            threading.Thread(target=_print, args=(f"[{index}] ", process.stdout), daemon=True)
            for index, process in enumerate(self.processes)
        ]
        for printer in self.printers:
            printer.start()

    def run(self, asked: _Asked) -> tuple[int, int | None]:
        """Wait until all have ended, and end those that another one has left alone.

        Returns:
            The exit status, and which process died, None where all ended as they should.
        """
        asked.group = self
        first: dict[int, int] = {}
        try:
            until = float("inf")
            while len(ended := self._ended()) < len(self.processes) and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
                if until == float("inf") and (ended or asked.number):
                    first = ended
                    stops = asked.number or {0, *STOPPED} & set(ended.values())
                    until = time.monotonic() + (STOP_SECONDS if stops else ALONE_SECONDS)
        finally:
            asked.group = None
            self.send(signal.SIGKILL)
            for process in self.processes:
                process.wait()
            for printer in self.printers:
                printer.join(ALONE_SECONDS)
        return self._judged(first, stopped=bool(asked.number))

    def _judged(self, first: dict[int, int], *, stopped: bool) -> tuple[int, int | None]:
        """What `run` returns.

        Args:
            first: Statuses of those that ended first; others may have ended because of them.
            stopped: Whether all were asked to stop.
        """
        statuses = self._ended()
        if stopped or statuses[0] in (0, *STOPPED):
            return statuses[0], None
        if BAD_INPUT in statuses.values():
            return BAD_INPUT, None
        dead = [index for index in (*first, *statuses) if statuses[index] not in (0, TRY_AGAIN)]
        index = (dead or list(statuses))[0]
        return statuses[index], index

    def _ended(self) -> dict[int, int]:
        """The statuses, as a shell has them, of the processes that have ended."""
        found = {index: process.poll() for index, process in enumerate(self.processes)}
        return {
            index: code if code >= 0 else 128 - code
            for index, code in found.items()
            if code is not None
        }

    def send(self, number: int) -> None:
        """Send a signal to all that are running."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _start(command: Sequence[str], cluster: dict) -> subprocess.Popen:
    environment = {**os.environ, VARIABLE: json.dumps(cluster), "PYTHONUNBUFFERED": "1"}
    # a session of its own: Ctrl-C is passed on, and not heard twice
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_end_with_the_parent,
    )


def _end_with_the_parent() -> None:
    """SIGTERM for this process when the launcher is gone, however it ended."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def _print(prefix: str, lines: IO[str] | None) -> None:
    for line in lines or ():
        print(f"{prefix}{line.rstrip()}", flush=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


def isolate() -> None:
    """Give this process, and all that it starts, a network of its own that is loopback alone.

    TensorFlow's servers listen at all addresses of a machine and ask nobody for a password; in such
    a network nobody else can reach them, and they reach nobody.

    Raises:
        InputError: Linux does not let this user do so.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_network = 0x10000000, 0x40000000
    if libc.unshare(new_user | new_network):
        reason = os.strerror(ctypes.get_errno())
        raise InputError(f"--isolated: this system allows no network of one's own ({reason}).")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        set_flags, is_up_and_running = 0x8914, 0x1 | 0x40  # SIOCSIFFLAGS
        fcntl.ioctl(one, set_flags, struct.pack("16sH14x", b"lo", is_up_and_running))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, command = words, []
    if "--" in words:
        own, command = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = OneLineParser(
        prog="kbert.launch",
        description="Start the processes of one training on this machine, and keep them running.",
        epilog=EPILOG,
    )
    parser.usage = "python -m kbert.launch [flags] -- train.py ..."
    parser.add_argument("--workers", type=_count, default=2, help="how many (default: 2)")
    parser.add_argument(
        "--restarts",
        type=_number,
        default=3,
        help="how often all are started again after one has died (default: 3)",
    )
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="give them a network of their own: TensorFlow's servers have no password, and listen "
        "at all addresses of this machine; data and checkpoint must be files",
    )
    options = parser.parse_args(own)
    if not command:
        parser.error("no command: write it after --, such as -- train.py --config ...")
    options.command = command
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
