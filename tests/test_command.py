"""kbert.command: status and one line, whatever a command meets."""

from __future__ import annotations

import errno

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
