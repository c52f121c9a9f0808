"""Weight files of checkpoints, as {name: array}: model.safetensors, tf_model.h5, pytorch_model.bin.

Any of them may be in shards, with an index that says which tensor is in which. Nothing here knows
Keras, BERT or what a name means.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import ml_dtypes  # noqa: F401  (gives numpy the bfloat16 that safetensors asks it for)
import numpy as np
from safetensors import SafetensorError, safe_open

from kbert.errors import InputError
from kbert.foreign_files import malformed_told, read_object
from kbert.h5_files import H5File
from kbert.tensor_files import write_tensors
from kbert.torch_files import TorchFile
from kbert.whole_files import written_whole

WHOLE_FILES = ("model.safetensors", "tf_model.h5", "pytorch_model.bin")
INDEX_ENDING = ".index.json"
WEIGHT_FILES = tuple(name + ending for name in WHOLE_FILES for ending in ("", INDEX_ENDING))
"""The files that can be read, the preferred one first; an index stands for its shards."""

MOST_TENSORS = 100_000
"""Of a file; of BERT-large it are 400."""

# What safetensors, zipfile and the parsers of pickles and of .h5 files raise at a damaged one.
_DAMAGED = (
    OSError,
    SafetensorError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    EOFError,
    OverflowError,
    MemoryError,
)


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of one file by name; each is read when it is asked for.

    Half-precision tensors are given as float32.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        if len(shapes) > MOST_TENSORS:
            raise ValueError(f"it holds over {MOST_TENSORS:,} tensors")
        self.path = path
        self._shapes = shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes  # Mapping's own would read the tensor

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            raise KeyError(name)
        with _damage_told(self.path, tensor=name):
            array = np.asarray(self._read(name))
        return _widened(array)

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
        f"{folder}: no weights, {' or '.join(WHOLE_FILES)} is needed, whole or in shards with an "
        f"index; found: {found}. Other formats become model.safetensors by transformers' "
        "save_pretrained."
    )


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a `.safetensors`, `.h5` or `.bin` file, or of all shards of an index.

    Raises:
        InputError: the file or a shard is missing, truncated, damaged, or of another format; a
            shard lacks what its index promises.
    """
    readers = {".safetensors": _SafetensorsFile, ".h5": _HDF5File, ".bin": _TorchTensors}
    reader = _Shards if path.name.endswith(INDEX_ENDING) else readers.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: a weight file ends in {' or '.join(readers)}.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    with _damage_told(path):
        return reader(path)


def read_index(path: Path) -> dict[str, str]:
    """Name of the shard by tensor, of an index such as `model.safetensors.index.json`.

    Raises:
        InputError: it is not an index, or names files other than shards beside it.
    """
    advice = "its weight_map must name the shard of each tensor; save the checkpoint anew"
    content = read_object(path, advice=advice)
    with malformed_told(path, advice=advice):
        shards = {str(tensor): Path(shard) for tensor, shard in content["weight_map"].items()}
    suffix = Path(path.name.removesuffix(INDEX_ENDING)).suffix
    for shard in shards.values():
        if shard.name != str(shard) or shard.suffix != suffix:
            raise InputError(
                f"{path}: names the shard {str(shard)!r}, but a shard is a {suffix} file in the "
                "same folder."
            )
    return {tensor: shard.name for tensor, shard in shards.items()}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file whole or not at all: beside its place, then renamed.

    Args:
        path: File to write or to replace.
        tensors: Arrays by name.

    Raises:
        OSError: it cannot be written.
    """
    # transformers refuses files that do not say which framework's layout they have
    write_tensors(path, tensors, {"format": "pt"})


def write_h5(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a `.h5` file in Keras 2's layout of weights, whole or not at all.

    Args:
        path: File to write or to replace.
        tensors: Arrays by name, "layer/name of the weight"; those of one layer stand together. An
            array that has two names is stored once. Half precision is widened to float32.

    Raises:
        OSError: it cannot be written.
    """
    layers: dict[str, list[str]] = {}
    places: dict[int, str] = {}
    content = io.BytesIO()  # on a full disk HDF5 would fail again at each object it closes
    with h5py.File(content, "w") as file:
        for name, array in tensors.items():
            layer, _, weight = name.partition("/")
            layers.setdefault(layer, []).append(weight)
            first = places.setdefault(id(array), name)
            file[name] = _widened(array) if first == name else file[first]
        for layer, weights in layers.items():
            file[layer].attrs["weight_names"] = weights
        file.attrs["layer_names"] = list(layers)
        file.attrs["backend"] = "tensorflow"
    with written_whole(path) as beside:
        beside.write_bytes(content.getbuffer())


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
        self._file = H5File(path)
        super().__init__(path, {name: of.shape for name, of in self._file.tensors.items()})

    def _read(self, name: str) -> np.ndarray:
        return self._file.read(name)


class _TorchTensors(TensorFile):
    def __init__(self, path: Path) -> None:
        self._file = TorchFile(path)
        super().__init__(path, {name: it.shape for name, it in self._file.tensors.items()})

    def _read(self, name: str) -> np.ndarray:
        return self._file.read(name)


class _Shards(TensorFile):
    """The tensors of an index, each from its shard; what else is in the shards is left out."""

    def __init__(self, path: Path) -> None:
        index = read_index(path)
        files = {
            shard: open_tensors(path.with_name(shard)) for shard in sorted(set(index.values()))
        }
        self._places = {name: (files[shard], name) for name, shard in index.items()}
        for name, (file, _) in self._places.items():
            # transformers leaves the model's name out in shards of tf_model.h5, not in their index.
            known = next((known for known in (name, name.partition("/")[2]) if known in file), None)
            if known is None:
                raise InputError(f"{file.path}: lacks the tensor {name}, which {path} promises.")
            self._places[name] = (file, known)
        shapes = {name: file.shape(known) for name, (file, known) in self._places.items()}
        super().__init__(path, shapes)

    def _read(self, name: str) -> np.ndarray:
        file, known = self._places[name]
        return file[known]


def _widened(array: np.ndarray) -> np.ndarray:
    half = array.dtype in (np.dtype("float16"), np.dtype("bfloat16"))
    return array.astype(np.float32) if half else array


@contextlib.contextmanager
def _damage_told(path: Path, *, tensor: str | None = None) -> Iterator[None]:
    """Turns what readers raise into the one error of a damaged file."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGED as error:
        place = f"{path}, tensor {tensor}" if tensor else str(path)
        raise InputError(
            f"{place}: cannot be read, the file is damaged or incomplete "
            f"({' '.join(str(error).split())})."
        ) from None
