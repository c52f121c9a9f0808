"""What Parquet footers say of columns of texts, asked in a process of its own.

What a file of a stranger does to pyarrow is done to that process: `parquet_check.py` looks at the
footer, kbert reads the values.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kbert.shards import DataFile

MAGIC = b"PAR1"
LARGEST_FOOTER = 1 << 28  # bytes; ten thousand columns in 300 row groups have about that


class DamagedFooter(Exception):
    """A Parquet file does not end as one does, or pyarrow cannot bear what it says."""


@dataclass(frozen=True)
class TextColumn:
    """The chunks of a column of texts, in all row groups."""

    has_dictionary: bool
    """Whether a text is stored once for several rows, in some row group."""
    mean_size: float
    """Bytes of a value, unpacked, in the row group where it is largest."""


def text_columns(path: DataFile, names: Sequence[str]) -> dict[str, TextColumn]:
    """The columns of bytes below some names, by `ColumnSchema.path`.

    Args:
        path: A Parquet file.
        names: Of columns, which may be lists of texts.

    Raises:
        DamagedFooter: it is not what a footer can be.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(require_footer(file))
        footer = file.read()[:-8]
    question = json.dumps({"columns": list(names), "size": len(footer)}).encode() + b"\n" + footer
    with _lock:
        answer = _ask(question)
    if isinstance(answer, str):
        raise DamagedFooter(answer)
    return {path: TextColumn(*of_column) for path, of_column in answer.items()}


def require_footer(file: IO[bytes]) -> int:
    """Where the footer of a Parquet file begins, in bytes.

    Raises:
        DamagedFooter: there is none, or it is larger than it could be.
        OSError: the file cannot be read.
    """
    end = file.seek(0, os.SEEK_END) - 8
    file.seek(max(0, end))
    last = file.read(8)
    size = int.from_bytes(last[:4], "little")
    if last[4:] != MAGIC or size > end:
        raise DamagedFooter("it does not end as such a file does")
    if size > LARGEST_FOOTER:
        raise DamagedFooter(f"a footer of {size:,} bytes, over {LARGEST_FOOTER:,}")
    return end - size


_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


def _ask(question: bytes) -> dict[str, list] | str:
    """The answer of the process, which is started if there is none."""
    global _process
    while True:
        process = _process = _process or _started()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: before, or by this
            process.stdin.write(question)
            process.stdin.flush()
        if (line := process.stdout.readline()).endswith(b"\n"):
            return json.loads(line)
        _process = None
        if problem := _end(process):
            return problem  # otherwise it was idle, and ended as this came


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", str(Path(__file__).with_name("parquet_check.py"))]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    # an idle one ends while nobody asks: without this it would stay a zombie for the whole run
    threading.Thread(target=process.wait, name="parquet_check", daemon=True).start()
    return process


def _end(process: subprocess.Popen[bytes]) -> str | None:
    """What ended a process; None where it had nothing to do any more."""
    _, told = process.communicate()
    if process.returncode == 0:
        return None
    last = ["", *told.decode("utf-8", "replace").strip().splitlines()][-1].strip()
    name = signal.Signals(-process.returncode).name if process.returncode < 0 else ""
    return f"pyarrow ends at it: {last.removeprefix('what():').strip() or name}"


@atexit.register
def _end_all() -> None:
    global _process
    process, _process = _process, None
    if process is not None:
        _end(process)
