"""The one exception that means: the input is wrong, and here is what to do about it."""

import errno


class InputError(ValueError):
    """Bad input: a file, a row, an option or a checkpoint that cannot be used.

    The message is one line that names the file, row or option and says what to do.
    Entry points print it and exit with status 2; everything else that is raised is a
    defect of kbert and keeps its traceback.
    """


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Numbers of the errors after which nothing more can be written."""
