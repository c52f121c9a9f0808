"""kbert.command: status and one line, whatever a command meets."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from kbert.command import finish
from kbert.errors import InputError

FULL = errno.ENOSPC, "No space left on device"


@pytest.mark.parametrize(
    ("error", "output", "resumes", "status", "line"),
    [
        (InputError("a.csv: empty."), None, False, 2, "name: a.csv: empty.\n"),
        (OSError(*FULL, "a.csv"), "b", False, 2, "name: a.csv: No space left on device.\n"),
        (OSError(*FULL), "b", True, 2,
         "name: b: No space left on device; the same command goes on.\n"),
        (OSError(*FULL), None, False, 2, "name: No space left on device.\n"),
        (KeyboardInterrupt(), None, True, 130, "stopped; the same command goes on.\n"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line(error, output, resumes, status, line, capsys) -> None:
    def work() -> None:
        raise error

    assert finish("name", work, debug=False, output=output, resumes=resumes) == status
    assert capsys.readouterr().err == line


def test_what_is_no_users_fault_is_raised() -> None:
    def work() -> None:
        raise OSError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        finish("name", work, debug=False)
    assert finish("name", lambda: None, debug=False) == 0
    assert finish("name", lambda: 1, debug=False) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_within_a_finalizer_is_not_lost(
    number: int, status: int, capsys, request: pytest.FixtureRequest
) -> None:
    """Python tells of what a finalizer raises, and forgets it."""
    came = []
    # a shell's background jobs ignore Ctrl-C, and so would this process
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    class Finalized:
        def __del__(self) -> None:
            came.append(True)
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # the handler runs here

    def work() -> None:
        Finalized()
        time.sleep(10)

    assert finish("name", work, debug=False, resumes=True) == status
    assert came and capsys.readouterr().err == "stopped; the same command goes on.\n"
