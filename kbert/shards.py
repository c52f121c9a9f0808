"""What a data option names: one file, or several that are read one after the other as one.

Several are a folder (its files, hidden ones and those that begin with "_" left out) or a pattern
such as data/part-*.parquet, in the order of their names. Each may be of this machine or, as a URI,
of another file system that Arrow knows: gs://, s3://, abfs://, hf://, file://.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs

from kbert.errors import InputError

URI = re.compile(r"[a-z][a-z0-9+.-]*://")
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """A file of another file system, with as much of a `Path` as readers ask for."""

    uri: str

    def __str__(self) -> str:
        return self.uri

    @property
    def suffix(self) -> str:
        """Such as ".csv"."""
        return Path(self.uri).suffix

    @property
    def name(self) -> str:
        """Without its folder."""
        return Path(self.uri).name

    @cached_property
    def _place(self) -> tuple[pa.fs.FileSystem, str]:
        return _file_system(self.uri)

    @cached_property
    def _type(self) -> pa.fs.FileType:
        system, path = self._place
        return system.get_file_info(path).type

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self._type != pa.fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self._type == pa.fs.FileType.File

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self._type == pa.fs.FileType.Directory

    def open(self, mode: str = "rb") -> Any:
        """The file to read bytes of, from wherever one likes."""
        if mode != "rb":
            raise ValueError(f"{mode}: it is read only.")
        system, path = self._place
        return system.open_input_file(path)


DataFile = Path | RemoteFile


@dataclass(frozen=True)
class Shards:
    """Several files that are read as one, one after the other."""

    name: str
    """The folder or pattern, as it was written."""
    files: tuple[DataFile, ...]
    """Sorted by name, all of one kind; at least one."""

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        """Of all files."""
        return self.files[0].suffix

    def open(self, mode: str = "rb") -> Any:
        """ValueError: one of the files is to be opened."""
        raise ValueError(f"{self.name}: several files.")


DataSource = Path | RemoteFile | Shards


def data_source(name: str, option: str) -> DataSource:
    """The file, or files, of a data option.

    Args:
        name: What it names.
        option: Such as "--data.train".

    Raises:
        InputError: a folder or pattern of no files, or of files of several kinds; or a file system
            that cannot be reached.
    """
    try:
        file, names = _files(name)
    except (pa.ArrowException, OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: cannot be looked at ({reason}); correct {option}.") from None
    if file is not None:
        return file
    files = tuple(_of(one) for one in sorted(names))
    if not files:
        raise InputError(f"{name}: there are no files there; correct {option}.")
    if len(kinds := sorted({one.suffix.lower() for one in files})) > 1:
        raise InputError(
            f"{name}: files of several kinds ({', '.join(kinds)}); name those of one kind by a "
            f"pattern, such as {os.path.join(name.rstrip('/*'), '*' + kinds[0])}."
        )
    return Shards(name, files)


def files_of(source: DataSource) -> tuple[DataFile, ...]:
    """The files, one after the other."""
    return source.files if isinstance(source, Shards) else (source,)


def digest_of(source: DataSource) -> str:
    """SHA-256 of a file's bytes, as sha256sum prints it; of several that of their digests, a line
    each.

    Raises:
        InputError: a file cannot be read.
    """
    digests = [_digest(file) for file in files_of(source)]
    if isinstance(source, Shards):
        return hashlib.sha256("".join(f"{of}\n" for of in digests).encode()).hexdigest()
    return digests[0]


def _digest(file: DataFile) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}).") from None
    return digest.hexdigest()


def opened(file: DataSource) -> Path | IO[bytes]:
    """What Arrow's own readers take for a file."""
    return file if isinstance(file, Path) else file.open("rb")


def _of(name: str) -> DataFile:
    return RemoteFile(name) if URI.match(name) else Path(name)


def _file_system(uri: str) -> tuple[pa.fs.FileSystem, str]:
    return pa.fs.FileSystem.from_uri(uri)


def _files(name: str) -> tuple[DataFile | None, list[str]]:
    """The file that the name is of; or None and those in the folder, or of the pattern."""
    file = _of(name)
    if isinstance(file, RemoteFile):
        scheme = name[: name.index("://") + 3]
        has_pattern = glob.has_magic(name[len(scheme) :])
        if has_pattern or file.is_dir():
            return None, list(_remote_files(name, scheme, has_pattern=has_pattern))
        return file, []
    if file.is_dir():
        return None, [str(one) for one in file.iterdir() if one.is_file() and _is_shown(one.name)]
    if glob.has_magic(name) and not file.exists():
        return None, [one for one in glob.glob(name) if Path(one).is_file()]
    return file, []


def _is_shown(name: str) -> bool:
    return not name.startswith((".", "_"))


def _remote_files(name: str, scheme: str, *, has_pattern: bool) -> Iterator[str]:
    """URIs of the files of a folder, or of a pattern for the last part of a path."""
    folder, _, pattern = name.rpartition("/") if has_pattern else (name.rstrip("/"), "", "*")
    if glob.has_magic(folder[len(scheme) :]):
        raise InputError(f"{name}: a pattern is for the names in one folder; name one folder.")
    system, path = _file_system(folder)
    for info in system.get_file_info(pa.fs.FileSelector(path)):
        shown = has_pattern or _is_shown(info.base_name)
        if info.is_file and shown and fnmatch.fnmatchcase(info.base_name, pattern):
            yield f"{folder}/{info.base_name}"
