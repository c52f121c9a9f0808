"""Files of torch.save, read without torch and without unpickling.

A pickle is a program. Here its opcodes are only parsed, and the few that describe tensors are
followed: no name is imported, nothing is called, and a file that asks for more is refused.

Since torch 1.6 the files are zip archives (`name/data.pkl`, `name/data/0` ...); before, the pickles
and the raw storages stood one after the other.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from kbert.errors import InputError

STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
PARAMETER = "torch._utils _rebuild_parameter"
DICTIONARY = "collections OrderedDict"
NAMES = (*STORAGES, *TENSORS, PARAMETER, DICTIONARY)
"""All that a pickle may name, "module name"."""

LEGACY_HEADER = (0x1950A86A20F9469CFC6C, 1001)


@dataclass(frozen=True)
class Storage:
    """Numbers in a file: their type, the key of their place, how many there are."""

    dtype: np.dtype
    key: str
    size: int


@dataclass(frozen=True)
class TorchTensor:
    """A view of a storage; offset and strides count its numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor out of its storage's numbers, (size,)."""
        if 0 in self.shape:
            return np.empty(self.shape, numbers.dtype)
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        smallest = min(0, self.offset, *self.shape, *self.strides)
        if smallest < 0 or self.offset + steps >= len(numbers):
            raise ValueError("a tensor reaches out of its storage")
        if math.prod(self.shape) > len(numbers):
            raise ValueError("a tensor repeats its storage")  # and could be of any size
        strides = [step * numbers.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides)
        return np.array(view, order="C")


class TorchFile:
    """The tensors of a file of torch.save by name; each is read when it is asked for.

    Raises:
        InputError: the file asks for more than tensors.
        Exception: the file is damaged (of many kinds, from zipfile and pickletools).
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
        content, self._read_bytes = _open_zip(path) if is_zip else _open_legacy(path)
        self.tensors: dict[str, TorchTensor] = {
            name: value
            for name, value in _expect(content, dict).items()
            if isinstance(name, str) and isinstance(value, TorchTensor)
        }
        if not self.tensors:
            raise ValueError("it holds no tensors")

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the type of the file."""
        tensor = self.tensors[name]
        numbers = np.frombuffer(self._read_bytes(tensor.storage), tensor.storage.dtype)
        if len(numbers) != tensor.storage.size:
            raise ValueError("a storage is shorter or longer than its tensors say")
        return tensor.of(numbers)


def _open_zip(path: Path) -> tuple[Any, Callable[[Storage], bytes]]:
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("torch.save does not compress")  # and a small file could unpack to any
        (pickled,) = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        root = pickled.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its byte order is not little-endian")
        with archive.open(pickled) as file:
            content = _parse(file, path, {})

    def read_bytes(storage: Storage) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{root}data/{storage.key}")  # checks its checksum

    return content, read_bytes


def _open_legacy(path: Path) -> tuple[Any, Callable[[Storage], bytes]]:
    storages: dict[str, Storage] = {}
    places: dict[str, int] = {}
    with open(path, "rb") as file:
        if (_parse(file, path, {}), _parse(file, path, {})) != LEGACY_HEADER:
            raise ValueError("it is not a file of torch.save")
        if _expect(_parse(file, path, {}), dict).get("little_endian") is not True:
            raise ValueError("its byte order is not little-endian")
        content = _parse(file, path, storages)
        for key in _expect(_parse(file, path, {}), list):
            storage = storages[_expect(key, str)]
            if int.from_bytes(file.read(8), "little") != storage.size:
                raise ValueError("a storage is shorter or longer than its tensors say")
            places[key] = file.tell()
            file.seek(storage.size * storage.dtype.itemsize, 1)

    def read_bytes(storage: Storage) -> bytes:
        with open(path, "rb") as file:
            file.seek(places[storage.key])
            return file.read(storage.size * storage.dtype.itemsize)

    return content, read_bytes


class _Name(str):
    """What a pickle calls by name; it stays a name."""


_MARK = object()
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _parse(file: IO[bytes], path: Path, storages: dict[str, Storage]) -> Any:
    """The value that one pickle describes; leaves the file behind it.

    Args:
        file: The pickle.
        path: What to call the file in an error.
        storages: Collects the storages by their keys.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]  # pyright: ignore[reportArgumentType]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])  # pyright: ignore[reportArgumentType]
        elif name == "BINPERSID":
            storage = _storage(*_expect(stack.pop(), tuple))
            stack.append(storages.setdefault(storage.key, storage))
        elif name == "GLOBAL" and argument not in NAMES:
            raise _refused(path, str(argument).replace(" ", "."))
        elif name != "PROTO" and not _follow(name, argument, stack):
            raise _refused(path, f"the opcode {name}")
    raise ValueError("a pickle has no end")


def _follow(name: str, argument: Any, stack: list[Any]) -> bool:
    """Does to the stack what an opcode asks for; whether it is one of the known."""
    if name == "GLOBAL":
        stack.append(_Name(argument))
    elif name in _LITERALS:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
    elif name in _TUPLES:
        stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        values = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
        _expect(stack[-1], list).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        for key, value in zip(values[::2], values[1::2], strict=True):
            _expect(stack[-1], dict)[_expect(key, str | int)] = value
    elif name == "REDUCE":
        arguments = _expect(stack.pop(), tuple)
        stack.append(_described(_expect(stack.pop(), _Name), arguments))
    elif name == "BUILD":
        stack.pop()  # attributes of a dictionary, such as the _metadata of a state_dict
        _expect(stack[-1], dict)
    else:
        return False
    return True


def _described(name: _Name, arguments: tuple) -> Any:
    """The tensor or dictionary that a call in a pickle stands for."""
    if name in TENSORS:
        storage, offset, shape, strides = arguments[:4]
        for size in (offset, *shape, *strides):
            _expect(size, int)
        return TorchTensor(_expect(storage, Storage), offset, tuple(shape), tuple(strides))
    if name == PARAMETER:
        return _expect(arguments[0], TorchTensor)
    if name == DICTIONARY and not arguments:
        return {}
    raise ValueError(f"a pickle calls {name}")


def _storage(kind: Any, dtype: Any, key: Any, device: Any, size: Any, *view: Any) -> Storage:
    if kind != "storage" or any(view):
        raise ValueError("a pickle refers to what is no storage")
    return Storage(STORAGES[_expect(dtype, _Name)], _expect(key, str), _expect(size, int))


def _since_mark(stack: list[Any]) -> list[Any]:
    """Takes what is above the last mark off the stack, and the mark."""
    place = max(index for index, value in enumerate(stack) if value is _MARK)
    values = stack[place + 1 :]
    del stack[place:]
    return values


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a pickle holds {type(value).__name__} in place of {kind}")
    return value


def _refused(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: asks for {' '.join(what.split())[:100]}, which is no part of a file of weights "
        "and was not run; take a model.safetensors of this checkpoint."
    )
