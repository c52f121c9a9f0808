"""The parser of flags that the server and the client share."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Whole flag names only; an error is one line and exit status 2."""

    def __init__(self, *, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the process, without the usage text."""
        message = message.replace("unrecognized arguments:", "unknown flag:")
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")
