"""The processes of a search: keras-tuner's chief and workers, by its environment variables."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kbert.errors import InputError

MOST_DEATHS = 3  # of one worker, one after the other while no trial ends
CHIEF_SECONDS = 3600  # that a worker waits for a chief that is away, as long as keras-tuner does
WAIT_SECONDS = 30  # for a worker to end by itself
CHIEF = "chief"


def check_environment(workers: int) -> None:
    """Whether keras-tuner's variables are complete, and say the same as search.workers.

    Raises:
        InputError: one of them is missing, or both ways ask for workers.
    """
    if not _has_chief():
        return
    for name in ("KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID"):
        if not os.environ.get(name):
            raise InputError(
                f"{name} is missing: with KERASTUNER_ORACLE_IP every process needs it "
                "(chief, worker0, worker1 ...; docs/search.md)."
            )
    if is_chief():
        _check_address(os.environ["KERASTUNER_ORACLE_IP"], os.environ["KERASTUNER_ORACLE_PORT"])
    if is_chief() and workers:
        raise InputError(
            "search.workers starts workers on this machine, KERASTUNER_ORACLE_IP asks for workers "
            "started elsewhere: leave one out."
        )


def is_worker() -> bool:
    """Whether this process gets its trials from a chief (KERASTUNER_ORACLE_IP, _TUNER_ID)."""
    return _has_chief() and CHIEF not in os.environ["KERASTUNER_TUNER_ID"]


def is_chief() -> bool:
    """Whether this process only hands out trials while the search runs."""
    return _has_chief() and CHIEF in os.environ["KERASTUNER_TUNER_ID"]


@contextlib.contextmanager
def local_workers(count: int, options: Path, *, results: str) -> Iterator[None]:
    """Make this process the chief of `count` workers on this machine.

    A worker that dies is started again, and goes on with its trial; if it dies `MOST_DEATHS` times
    while no trial ends, it stays away. Workers end when this process does, however it ends.

    Raises:
        InputError: all of them stay away.

    Args:
        count: Number of workers.
        options: The run's options as YAML, which the workers read.
        results: Matches the result of every trial that has ended.
    """
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(_free_port())}
    workers: list[_Worker] = []

    def end_without_workers() -> None:
        if all(worker.stays_away for worker in workers):
            os.kill(os.getpid(), signal.SIGINT)  # the chief would wait for ever

    for number in range(count):
        name = f"worker{number}"
        environment = {**os.environ, **address, "KERASTUNER_TUNER_ID": name}
        command = [sys.executable, "-m", "kbert.worker", str(options)]
        workers.append(
            _Worker(name, command, environment, results=results, gone=end_without_workers)
        )
    for worker in workers:
        worker.start()
    os.environ.update(address, KERASTUNER_TUNER_ID=CHIEF)
    try:
        yield
        for worker in workers:
            worker.wait()
    except KeyboardInterrupt:
        if all(worker.stays_away for worker in workers):
            raise InputError(
                "no worker is left: each ended again and again (their last lines tell why); the "
                "same command goes on."
            ) from None
        raise
    finally:
        for worker in workers:
            worker.stop()
        for name in (*address, "KERASTUNER_TUNER_ID"):
            os.environ.pop(name)


class _Worker:
    """Keeps one worker running until it has ended well."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        *,
        results: str,
        gone: Callable[[], None],
    ) -> None:
        self.name = name
        self.command = command
        self.environment = environment
        self.results = results
        self.gone = gone
        self.stopping = False
        self.stays_away = False

    def start(self) -> None:
        """Start it, and again when it dies."""
        self.process = self._start()
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self) -> None:
        """Until it has heard that no trial is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(WAIT_SECONDS)

    def stop(self) -> None:
        """Let it write a checkpoint and end."""
        self.stopping = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.wait()
            self.process.kill()
            self.process.wait()

    def _start(self) -> subprocess.Popen:
        # its standard input tells it when this process is gone; Ctrl-C is passed on by `stop`
        process = subprocess.Popen(
            self.command,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._say, args=(process,), daemon=True).start()
        return process

    def _say(self, process: subprocess.Popen) -> None:
        """Pass its lines on: above the table, where there is a terminal."""
        for line in process.stdout or ():
            print(f"{self.name}: {line.rstrip()}", flush=True)

    def _watch(self) -> None:
        deaths, ended = 0, len(glob.glob(self.results))
        while deaths < MOST_DEATHS:
            status = self.process.wait()
            if status == 0 or self.stopping:
                return
            before, ended = ended, len(glob.glob(self.results))
            deaths = 0 if ended > before else deaths + 1
            again = deaths < MOST_DEATHS
            what = "it is started again" if again else "it stays away"
            print(f"{self.name} ended with status {status}: {what}", flush=True)
            if again:
                self.process = self._start()
        self.stays_away = True
        self.gone()


def _has_chief() -> bool:
    return "KERASTUNER_ORACLE_IP" in os.environ


def _check_address(host: str, port: str) -> None:
    """InputError if the chief cannot listen there."""
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found[4])
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"KERASTUNER_ORACLE_IP {host}, KERASTUNER_ORACLE_PORT {port}: the chief cannot listen "
            f"there ({error})."
        ) from None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
