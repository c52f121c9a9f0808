"""Files of torch.save, read without torch and without unpickling.

A pickle is a program. Here its opcodes are only parsed, and the few that describe tensors are
followed: no name is imported, nothing is called, and a file that asks for more is refused.

Since torch 1.6 the files are zip archives (`name/data.pkl`, `name/data/0` ...); before, the pickles
and the raw storages stood one after the other.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
import zlib
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

# A state_dict of BERT-large takes 18,000 opcodes, and 400 entries of an archive.
MOST_PICKLE = 1 << 24  # bytes
MOST_OPCODES = 500_000
CHUNK = 1 << 22  # bytes that are read at a time; an archive's list of its files must be in one
MOST_AXES = 32
MOST_SHARED = 1 << 30  # bytes of a storage that is more than its tensor


@dataclass(frozen=True)
class Storage:
    """Numbers in a file: their type, the key of their place, how many there are."""

    dtype: np.dtype
    key: str
    size: int

    @property
    def nbytes(self) -> int:
        """How many bytes they are."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class TorchTensor:
    """A view of a storage; offset and strides count its numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def reach(self) -> int:
        """How many numbers of its storage it lies across, from its offset on.

        Raises:
            ValueError: it is not within its storage, or larger.
        """
        if 0 in self.shape:
            return 0
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        smallest = min(0, self.offset, *self.shape, *self.strides)
        if smallest < 0 or self.offset + steps >= self.storage.size:
            raise ValueError("a tensor reaches out of its storage")
        count = math.prod(self.shape)
        if count > self.storage.size:
            raise ValueError("a tensor repeats its storage")  # and could be of any size
        if count < self.storage.size and self.storage.nbytes > MOST_SHARED:
            raise ValueError(f"a tensor is part of a storage of over {MOST_SHARED >> 20} MiB")
        return steps + 1

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor out of the numbers that it lies across, (reach,)."""
        if 0 in self.shape:
            return np.empty(self.shape, numbers.dtype)
        strides = [step * numbers.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers, self.shape, strides)
        return np.array(view, order="C")


@dataclass(frozen=True)
class Place:
    """Where the numbers of a storage stand in a file."""

    start: int
    size: int
    """In bytes."""
    crc: int | None
    """Checksum of them; None where the file has none."""


class TorchFile:
    """The tensors of a file of torch.save by name; each is read when it is asked for.

    Raises:
        InputError: the file asks for more than tensors.
        Exception: the file is damaged (of many kinds, from zipfile and pickletools).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked: set[Place] = set()
        with _Short(io.FileIO(path)) as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            content, self._places = (_open_zip if is_zip else _open_legacy)(file, path)
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
        storage, place = tensor.storage, self._places.get(tensor.storage.key)
        item, size = storage.dtype.itemsize, tensor.reach * storage.dtype.itemsize
        end = self.path.stat().st_size
        if place is None or place.size != storage.nbytes or place.start + place.size > end:
            raise ValueError("a storage is missing, shorter or longer than its tensors say")
        with self.path.open("rb") as file:
            self._check(file, place)
            content = bytearray(size)
            file.seek(place.start + tensor.offset * item)
            file.readinto(content)
        return tensor.of(np.frombuffer(content, storage.dtype))

    def _check(self, file: IO[bytes], place: Place) -> None:
        """ValueError if the checksum of a storage is another."""
        if place.crc is None or place in self._checked:
            return
        file.seek(place.start)
        crc, left = 0, place.size
        while left > 0 and (part := file.read(min(left, CHUNK))):
            crc, left = zlib.crc32(part, crc), left - len(part)
        if crc != place.crc:
            raise ValueError("the checksum of a storage is not that of its numbers")
        self._checked.add(place)


class _Short(io.BufferedReader):
    """A file that gives a chunk at most at a time, whatever its own headers ask for."""

    def read(self, size: int | None = -1) -> bytes:
        is_more = size is None or size < 0 or size > CHUNK
        return super().read(CHUNK if is_more else size)


def _open_zip(file: IO[bytes], path: Path) -> tuple[Any, dict[str, Place]]:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("torch.save does not compress")  # and a small file could unpack to any
    (pickled,) = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
    root = pickled.removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in entries and archive.open(order).read(16) != b"little":
        raise ValueError("its byte order is not little-endian")
    content = _parse(archive.open(pickled), path, {})
    places = {}
    for name, entry in entries.items():
        if name.startswith(f"{root}data/"):
            key = name.removeprefix(f"{root}data/")
            places[key] = Place(_start(file, entry), entry.file_size, entry.CRC)
    return content, places


def _start(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the content of a file in an archive begins: behind its own header, of 30 bytes, a name
    and an extra field, whose sizes are the last two numbers of the 30 bytes."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or not header.startswith(b"PK\3\4"):
        raise ValueError("a file of the archive is not where its list says")
    return entry.header_offset + 30 + sum(np.frombuffer(header[26:], "<u2").tolist())


def _open_legacy(file: IO[bytes], path: Path) -> tuple[Any, dict[str, Place]]:
    storages: dict[str, Storage] = {}
    places: dict[str, Place] = {}

    def following(storages: dict[str, Storage]) -> Any:
        return _parse(file, path, storages)

    if (following({}), following({})) != LEGACY_HEADER:
        raise ValueError("it is not a file of torch.save")
    if _expect(following({}), dict).get("little_endian") is not True:
        raise ValueError("its byte order is not little-endian")
    content = following(storages)
    for key in _expect(following({}), list):
        storage = storages[_expect(key, str)]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError("a storage is shorter or longer than its tensors say")
        places[key] = Place(file.tell(), storage.size * storage.dtype.itemsize, None)
        file.seek(places[key].size, 1)
    return content, places


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
        file: The pickle, and perhaps more.
        path: What to call the file in an error.
        storages: Collects the storages by their keys.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    start = file.tell()
    pickled = io.BytesIO(_read(file, MOST_PICKLE))  # what it claims of its sizes, it must hold
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        name = opcode.name
        if number == MOST_OPCODES:
            raise ValueError(f"a pickle has over {MOST_OPCODES:,} opcodes")
        if name == "STOP":
            file.seek(start + pickled.tell())
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


def _read(file: IO[bytes], most: int) -> bytes:
    """What follows in a file, so much at most."""
    parts = []
    while most > 0 and (part := file.read(min(most, CHUNK))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


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
        if not len(shape) == len(strides) <= MOST_AXES:
            raise ValueError(f"a tensor has over {MOST_AXES} axes, or not one stride for each")
        for size in (offset, *shape, *strides):
            _expect_size(size)
        return TorchTensor(_expect(storage, Storage), offset, tuple(shape), tuple(strides))
    if name == PARAMETER:
        return _expect(arguments[0], TorchTensor)
    if name == DICTIONARY and not arguments:
        return {}
    raise ValueError(f"a pickle calls {name}")


def _storage(kind: Any, dtype: Any, key: Any, device: Any, size: Any, *view: Any) -> Storage:
    if kind != "storage" or any(view):
        raise ValueError("a pickle refers to what is no storage")
    if _expect_size(size) < 0:
        raise ValueError("a storage has a size under 0")
    return Storage(STORAGES[_expect(dtype, _Name)], _expect(key, str), size)


def _since_mark(stack: list[Any]) -> list[Any]:
    """Takes what is above the last mark off the stack, and the mark."""
    # from the top: what is passed is taken, so that a pickle's marks cannot make this slow
    place = len(stack) - 1
    while stack[place] is not _MARK:
        place -= 1
    values = stack[place + 1 :]
    del stack[place:]
    return values


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a pickle holds {type(value).__name__} in place of {kind}")
    return value


def _expect_size(value: Any) -> int:
    if abs(_expect(value, int)) >= 1 << 63:
        raise ValueError("a size has over 63 bits")
    return value


def _refused(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: asks for {' '.join(what.split())[:100]}, which is no part of a file of weights "
        "and was not run; take a model.safetensors of this checkpoint."
    )
