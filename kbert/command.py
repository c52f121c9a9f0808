"""How the commands of kbert end: one line and a status, whatever a user may have got wrong."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from kbert.errors import NO_ROOM, InputError


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
        2 after bad input, or where nothing more can be written; 130 after Ctrl-C.
    """
    goes_on = "; the same command goes on." if resumes else "."
    try:
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
    except KeyboardInterrupt:
        print(f"stopped{goes_on}", file=sys.stderr)
        return 130
