"""The parser of flags that the server and the client share."""

import argparse
import difflib
from collections.abc import Sequence
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

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Reads the flags; of those it does not know the first is named, with one like it."""
        flags, unknown = self.parse_known_args(args, namespace or argparse.Namespace())
        if unknown:
            self.error(self._unknown_flag(unknown[0]))
        return flags

    def error(self, message: str) -> NoReturn:
        """Ends the process, without the usage text."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (--help lists the flags)\n")

    def _unknown_flag(self, argument: str) -> str:
        message = f"unknown flag: {argument}"
        names = list(self._option_string_actions)
        near = difflib.get_close_matches(argument.partition("=")[0], names, n=1)
        return f"{message} (did you mean {near[0]}?)" if near else message
