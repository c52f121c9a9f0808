"""How the commands of kbert end: one line and a status, whatever a user may have got wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from kbert.errors import NO_ROOM, InputError

logger = logging.getLogger(__name__)

SIGNALLED = 128  # and a signal's number: the status of what it has ended, as a shell has it
AGAIN_SECONDS = 0.05  # until a signal that was lost is sent once more


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as it does before a machine is taken away: it ends a command as Ctrl-C does."""


def finish(
    command: str,
    work: Callable[[], int | None],
    *,
    debug: bool,
    output: str | None = None,
    resumes: bool = False,
) -> int:
    """Do what a command line asks for; the exit status.

    Args:
        command: What a line of error begins with.
        work: Does it; it gives a status, or None for 0.
        debug: Whether the traceback of bad input is shown too.
        output: What it writes, named where there is no room and the error names no file.
        resumes: Whether the same command goes on from where it was stopped.

    Returns:
        2 after bad input, or where nothing more can be written; 130 after Ctrl-C, 143 after
        SIGTERM.
    """
    goes_on = "; the same command goes on." if resumes else "."
    try:
        with _signal_handled(signal.SIGTERM, _terminate), _none_lost():
            return work() or 0
    except (InputError, OSError) as error:
        problem = str(error)
        if isinstance(error, OSError):
            if error.errno not in NO_ROOM:
                raise
            place = error.filename or output
            problem = f"{f'{place}: ' if place else ''}{error.strerror}{goes_on}"
        if debug:
            traceback.print_exc()
        print(f"{command}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped{goes_on}", file=sys.stderr)
        return status_of(stop)


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of a command that was stopped."""
    return SIGNALLED + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM fill, so that what runs is finished first, and saved.

    A second signal ends it at once.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        asked.append(number)
        logger.warning("stopping after this step (a second signal: at once, without saving)")

    with _signal_handled(signal.SIGINT, ask), _signal_handled(signal.SIGTERM, ask):
        yield asked


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


@contextlib.contextmanager
def _none_lost() -> Iterator[None]:
    """Inside, a signal that comes where Python lets no exception out is sent once more.

    What a finalizer or a weak reference calls may be interrupted, too; what it raises is told of
    (`sys.unraisablehook`), and forgotten.
    """
    before = sys.unraisablehook

    def hear(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
        again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _signal_handled(number: int, handler: Callable[[int, Any], None]) -> Iterator[None]:
    try:
        before = signal.signal(number, handler)
    except ValueError:  # not in the main thread: nobody to listen to
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
