"""Weight files of checkpoints, `model.safetensors` and `tf_model.h5`, as {name: array}.

Nothing here knows Keras, BERT or what a name means.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import ml_dtypes  # noqa: F401  (gives numpy the bfloat16 that safetensors asks it for)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kbert.errors import InputError

WEIGHT_FILES = ("model.safetensors", "tf_model.h5")
"""The files that can be read, the preferred one first."""

# What h5py and safetensors raise at a damaged file.
_DAMAGED = (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError)


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of one file by name; each is read when it is asked for.

    Half-precision tensors are given as float32.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self.path = path
        self._shapes = shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            raise KeyError(name)
        try:
            array = self._read(name)
        except _DAMAGED as error:
            raise _unreadable(self.path, error, tensor=name) from None
        half = array.dtype in (np.dtype("float16"), np.dtype("bfloat16"))
        return array.astype(np.float32) if half else array

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._shapes[name]

    def _read(self, name: str) -> np.ndarray:
        raise NotImplementedError


def find_weights(folder: Path) -> Path:
    """The weight file of a checkpoint folder.

    Raises:
        InputError: the folder has none that can be read; the message lists what is there.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "nothing"
    raise InputError(
        f"{folder}: no weights, {' or '.join(WEIGHT_FILES)} is needed; found: {found}. Other "
        "formats become model.safetensors by transformers' save_pretrained."
    )


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a `.safetensors` or `.h5` file, read one at a time.

    Raises:
        InputError: the file is missing, truncated, damaged, or of another format.
    """
    readers = {".safetensors": _SafetensorsFile, ".h5": _HDF5File}
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: a weight file ends in {' or '.join(readers)}.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        return reader(path)
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file whole or not at all: beside its place, then renamed.

    Args:
        path: File to write or to replace.
        tensors: Arrays by name.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        # transformers refuses files that do not say which framework's layout they have.
        save_file(arrays, beside, metadata={"format": "pt"})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class _SafetensorsFile(TensorFile):
    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="numpy")
        names = self._file.keys()
        shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in names}
        super().__init__(path, shapes)

    def _read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)


class _HDF5File(TensorFile):
    def __init__(self, path: Path) -> None:
        self._file = h5py.File(path, "r")
        super().__init__(path, _dataset_shapes(self._file))

    def _read(self, name: str) -> np.ndarray:
        return self._file[name][()]  # pyright: ignore[reportIndexIssue, reportReturnType]


def _dataset_shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    """Datasets of the file itself: neither links nor data kept in other files are followed."""
    shapes = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
            shapes[name] = item.shape

    file.visititems(visit)  # each object once, whatever loops the groups form
    return shapes


def _unreadable(path: Path, error: Exception, *, tensor: str | None = None) -> InputError:
    place = f"{path}, tensor {tensor}" if tensor else str(path)
    return InputError(
        f"{place}: cannot be read, the file is damaged or incomplete "
        f"({' '.join(str(error).split())})."
    )
