"""The folder of a served model's versions: which there are, and a new one, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kbert.errors import InputError
from kbert.whole_files import lock_file, sync, sync_all

LOCK = ".exporting.lock"
UNFINISHED = (".exporting.*.*", ".parity.*")
"""What killed exports leave: folders of theirs, whose names are none of a version's."""


def versions_in(folder: Path) -> list[int]:
    """The versions of a model that are there as a server sees them, ascending."""
    numbered = [path for path in folder.glob("*") if path.name.isascii() and path.name.isdecimal()]
    return sorted({int(path.name) for path in numbered if path.is_dir()})


@contextlib.contextmanager
def new_version(folder: Path, version: int) -> Iterator[Path]:
    """An empty folder that becomes FOLDER/VERSION once the block has filled it.

    Until then it stands beside, under a name that is no number, so that a server that watches the
    folder passes it over. If the block fails, nothing is left of it.

    Raises:
        InputError: the version is there already.
    """
    target = folder / str(version)
    if version in versions_in(folder) or target.exists():
        raise InputError(f"{target} is there already: choose another version.")
    folder.mkdir(parents=True, exist_ok=True)
    with _under_way(folder):
        beside = Path(tempfile.mkdtemp(prefix=f".exporting.{version}.", dir=folder))
        try:
            yield beside
            os.chmod(beside, 0o755)
            sync_all(beside)
            beside.rename(target)
            sync(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _under_way(folder: Path) -> Iterator[None]:
    """Let other processes know that this one writes a version into a folder.

    If no other does, what there is of unfinished exports is of killed ones, and is removed.
    """
    with lock_file(folder / LOCK) as lock:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for pattern in UNFINISHED:
                for path in folder.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
