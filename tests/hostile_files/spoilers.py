"""What bad folders are made by, whatever is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    """A file of its own in place of another."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def cut(name: str, share: float) -> Callable[[Path], None]:
    """A file that ends early."""

    def spoil(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * share))

    return spoil


def flip(name: str, place: int, value: int = 0xFF) -> Callable[[Path], None]:
    """A file with one other byte."""

    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= value
        (folder / name).write_bytes(bytes(content))

    return spoil


def grown(name: str, size: int) -> Callable[[Path], None]:
    """A file with a hole at its end, which takes no disk."""

    def spoil(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return spoil


def linked(name: str, target: str) -> Callable[[Path], None]:
    """A symbolic link in place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def piped(name: str) -> Callable[[Path], None]:
    """A pipe that nobody writes, in place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def changed(name: str, **values: Any) -> Callable[[Path], None]:
    """A file of JSON with other values."""

    def spoil(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}))

    return spoil


def later(spoiler: Callable[[], Callable[[Path], Any]]) -> Callable[[Path], None]:
    """One whose content is large, and made only for its file."""

    def spoil(folder: Path) -> None:
        spoiler()(folder)

    return spoil


def both(*spoilers: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for of in spoilers:
            of(folder)

    return spoil


def deep(levels: int = 200_000) -> str:
    return "[" * levels + "]" * levels
