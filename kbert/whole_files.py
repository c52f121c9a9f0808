"""Files that are there whole or not at all, and locks for what several processes change."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside another that takes its place once it is written; else nothing is left of it.

    It is on the disk before it takes the place, and the place is before this returns: after a power
    cut there is the old file or the new one.
    """
    # not by process ids: processes of two containers may share a folder and a number
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield beside
        sync(beside)
        os.replace(beside, path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that have no such thing for folders
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """`sync` all that is in a folder, at any depth, and itself."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """A file to call `fcntl.flock` on, made where it is missing.

    Its locks end with the process, however that ends. The file stays: a process that waited for it
    would hold the lock of a file that others no longer see.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
