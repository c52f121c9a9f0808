"""Tensors of .h5 files, as Keras writes weights, read without HDF5's library in this process.

What a file of a stranger does to the library is done to a process of its own: `h5_check.py` tells
where in the file the numbers are.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SECONDS = 30  # of waiting for a process that has 5 to compute


@dataclass(frozen=True)
class H5Tensor:
    """Numbers in a file, after each other."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """The first byte."""

    @property
    def nbytes(self) -> int:
        """How many bytes they are."""
        return math.prod(self.shape) * self.dtype.itemsize


class H5File:
    """The tensors of an .h5 file by name; each is read when it is asked for.

    Raises:
        ValueError: the file is damaged, or larger than it could be.
    """

    def __init__(self, path: Path) -> None:
        stat = path.stat()
        self.path = path
        self.tensors = _listed(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        for name, tensor in self.tensors.items():
            if tensor.start + tensor.nbytes > stat.st_size:
                raise ValueError(f"{name} ends behind the end of the file")

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the type of the file."""
        tensor = self.tensors[name]
        content = bytearray(tensor.nbytes)  # of less than the file
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            file.readinto(content)
        return np.frombuffer(content, tensor.dtype).reshape(tensor.shape)


@functools.lru_cache(maxsize=64)
def _listed(path: Path, size: int, changed: int, number: int) -> dict[str, H5Tensor]:
    """What `h5_check.py` tells of a file, once as long as it is the same.

    Args:
        path: The file.
        size: Of it; with the other two it tells whether the file is another one.
        changed: When it was changed.
        number: Of its inode.
    """
    del size, changed, number
    environment = {name: of for name, of in os.environ.items() if not name.startswith("HDF5_")}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's threads would take addresses
    command = [sys.executable, "-P", str(Path(__file__).with_name("h5_check.py")), str(path)]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError("HDF5 comes to no end with it") from None
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise ValueError(f"HDF5 comes to no end with it, or to a bad one ({name})")
    if process.returncode:
        raise ValueError((process.stderr.strip().splitlines() or ["HDF5 cannot read it"])[-1])
    return {
        name: H5Tensor(np.dtype(kind), tuple(shape), start)
        for name, (kind, shape, start) in json.loads(process.stdout).items()
    }
