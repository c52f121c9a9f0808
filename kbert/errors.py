"""The one exception that means: the input is wrong, and here is what to do about it."""

import errno
import re

MOST_SHOWN = 1500
"""Characters of a message; of a longer one the middle is left out."""


class InputError(ValueError):
    """Bad input: a file, a row, an option or a checkpoint that cannot be used.

    The message is one line that names the file, row or option and says what to do. Whatever a
    file's names and values put into it, it stays one line of printable characters, and short.
    Entry points print it and exit with status 2; everything else that is raised is a
    defect of kbert and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_printable(_shortened(message)))


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Numbers of the errors after which nothing more can be written."""


def _shortened(message: str) -> str:
    if len(message) <= MOST_SHOWN:
        return message
    end = MOST_SHOWN // 4  # what to do
    return f"{message[: MOST_SHOWN - end]} ... {message[-end:]}"


def _printable(message: str) -> str:
    """A message without line breaks, and without what would move a terminal's cursor."""
    line = re.sub(r"\s*\n\s*", " ", message)
    if line.isprintable():
        return line
    return "".join(of if of.isprintable() else repr(of)[1:-1] for of in line)
