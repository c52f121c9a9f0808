"""Arrays by name in safetensors files, whole or not at all, and with a checksum where one is asked.

Neither TensorFlow nor Keras.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from kbert.errors import InputError
from kbert.whole_files import written_whole

CHECKSUM = "sha256"
"""In a file's metadata: of all else of its metadata, and of the arrays' names, types, shapes and
bytes."""


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a file, or replace it.

    Raises:
        OSError: it cannot be written.
    """
    # safetensors writes the bytes of C-contiguous arrays only
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with written_whole(path) as beside:
        try:
            safetensors.numpy.save_file(arrays, beside, metadata=dict(metadata))
        except safetensors.SafetensorError as error:
            raise _os_error(error, path) from None


def write_checked(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """`write_tensors` with a checksum, which `read_checked` looks at.

    Raises:
        OSError: it cannot be written.
    """
    checksum = _checksum(sorted(tensors.items()), metadata)
    write_tensors(path, tensors, {**metadata, CHECKSUM: checksum})


def read_checked(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a file.

    Raises:
        InputError: it is damaged, or cut short, or it has a checksum and is not what was written.
        OSError: it is not there, or cannot be read.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            metadata = dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: is damaged ({' '.join(str(error).split())}).") from None
    written = metadata.pop(CHECKSUM, None)
    if written is not None and written != _checksum(tensors.items(), metadata):
        raise InputError(f"{path}: is damaged (its bytes are not those that were written).")
    return tensors, metadata


def _checksum(tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]) -> str:
    """SHA-256 in hexadecimal digits.

    Args:
        tensors: In the order of their names.
        metadata: Of the file, without the checksum.
    """
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, array in tensors:
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _os_error(error: safetensors.SafetensorError, path: Path) -> OSError:
    """safetensors tells the number of what went wrong in its text alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(str(error))
    number = int(found.group(1))
    return OSError(number, os.strerror(number), str(path))
