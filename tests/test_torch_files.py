"""Files of torch.save against torch itself, and pickles that would do more than hold tensors."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbert.checkpoint_files import open_tensors
from kbert.errors import InputError

torch = pytest.importorskip("torch")


def tensors() -> dict[str, torch.Tensor]:
    """Of all number types, and views that are not their storage as it stands."""
    numbers = torch.arange(24, dtype=torch.float32)
    shared = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    return {
        "plain": numbers.reshape(4, 6).clone(),
        "transposed": numbers.reshape(4, 6).clone().T,
        "strided": numbers.clone()[3::5],
        "middle": numbers.reshape(2, 3, 4).clone()[1, :, 1:3],
        "shared": shared,
        "tied": shared,
        "row": shared[2],
        "half": torch.tensor([1.5, -2.0, 65504.0], dtype=torch.float16),
        "brain": torch.tensor([1.5, 3e20], dtype=torch.bfloat16),
        "double": torch.tensor([1e300], dtype=torch.float64),
        "ids": torch.arange(9).expand(1, -1),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "chars": torch.tensor([-1], dtype=torch.int8),
        "shorts": torch.tensor([-300], dtype=torch.int16),
        "ints": torch.tensor([-70000], dtype=torch.int32),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor.detach().float() if is_half else tensor.detach()).numpy()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), path, _use_new_zipfile_serialization=is_zip)
    read = open_tensors(path)
    assert list(read) == list(tensors())
    for name, tensor in tensors().items():
        expected = as_numpy(tensor)
        assert read.shape(name) == expected.shape
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected, err_msg=name)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_state_dict(tmp_path: Path, is_zip: bool) -> None:
    """An OrderedDict with attributes of its own, and what is no tensor beside the tensors."""
    layer = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
    path = tmp_path / "pytorch_model.bin"
    content = collections.OrderedDict(layer.state_dict(), epoch=3, notes=["a", {"b": (1.5, None)}])
    content._metadata = layer.state_dict()._metadata  # type: ignore[attr-defined]
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert {name: array.tolist() for name, array in open_tensors(path).items()} == {
        name: tensor.tolist() for name, tensor in layer.state_dict().items()
    }


# Pickles that are programs


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def touch(path: Path) -> str:
    return f"touch {path}"


EVIL = {
    "os.system": lambda path: Calls(os.system, touch(path)),
    "eval": lambda path: Calls(eval, f"open({str(path)!r}, 'w')"),
    "exec": lambda path: Calls(exec, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Calls(open, str(path), "w"),
    "getattr": lambda path: Calls(getattr, Calls(__import__, "os"), "system"),
    "in a list": lambda path: {"weights": [Calls(os.system, touch(path))]},
    "torch.load": lambda path: Calls(torch.load, str(path)),
    "as a key": lambda path: {Calls(os.system, touch(path)): 1},
    "of torch": lambda path: Calls(torch._utils._rebuild_device_tensor_from_numpy, path, 1, 1, 1),
}


def zip_with(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_run(tmp_path: Path, kind: str, is_zip: bool, protocol: int) -> None:
    path, sign = tmp_path / "pytorch_model.bin", tmp_path / "sign"
    content = EVIL[kind](sign)
    if is_zip:
        zip_with(path, pickle.dumps(content, protocol))
    else:
        with path.open("wb") as file:
            for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(value, file, 2)
            pickle.dump(content, file, protocol)
    with pytest.raises(InputError, match=r"asks for .*was not run; take a model\.safe") as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)
    assert not sign.exists()


def test_the_evil_pickles_would_run(tmp_path: Path) -> None:
    """The control: the same pickle does act when it is unpickled."""
    pickle.loads(pickle.dumps(EVIL["os.system"](tmp_path / "sign"), 2))
    assert (tmp_path / "sign").exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'touch SIGN'\ntR.",
        b"(S'touch SIGN'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch SIGN'\no.",  # OBJ
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",  # BUILD
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch SIGN\x85R.",  # STACK_GLOBAL
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ccollections\nOrderedDict\n(]tR.",
        b"\x80\x02}(](K\x01eK\x02u.",  # a list as a key
        b"\x80\x02]\x85Q.",
        b"\x80\x02K\x01.",
        b"\x80\x02}.",
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02u.",
        b"",
    ],
)
def test_pickles_by_hand(tmp_path: Path, pickled: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zip_with(Path("pytorch_model.bin"), pickled)
    with pytest.raises(InputError, match="damaged|was not run") as caught:
        open_tensors(Path("pytorch_model.bin"))
    assert "\n" not in str(caught.value)
    assert os.listdir() == ["pytorch_model.bin"]


# Damage


def saved(is_zip: bool = True) -> bytes:
    file = io.BytesIO()
    values = {"a": torch.arange(600.0).reshape(20, 30), "b": torch.ones(3)}
    torch.save(values, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_truncated(tmp_path: Path, is_zip: bool) -> None:
    path, content = tmp_path / "pytorch_model.bin", saved(is_zip)
    for kept in (*range(0, len(content), 97), len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match="damaged|was not run") as caught:
            dict(open_tensors(path))
        assert "\n" not in str(caught.value)


@settings(max_examples=150)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_changes_nothing(tmp_path_factory, place, value) -> None:
    """A zip archive carries checksums of all that is in it."""
    content = bytearray(saved())
    content[place % len(content)] ^= value
    path = tmp_path_factory.mktemp("torch") / "pytorch_model.bin"
    path.write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        read = dict(open_tensors(path))
        np.testing.assert_array_equal(read["a"], np.arange(600.0).reshape(20, 30))
        np.testing.assert_array_equal(read["b"], np.ones(3))


def tensor_pickle(offset: int, shape: tuple, strides: tuple, size: int = 6) -> bytes:
    """What torch.save writes for one tensor, whatever its numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if obj is Pickler else None

    file = io.BytesIO()
    call = Calls(torch._utils._rebuild_tensor_v2, Pickler, offset, shape, strides, False, {})
    Pickler(file, 2).dump({"a": call})
    return file.getvalue()


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "size", "message"),
    [
        (1, (2, 3), (3, 1), 6, "reaches out of its storage"),
        (-1, (2,), (1,), 6, "reaches out of its storage"),
        (5, (2,), (-1,), 6, "reaches out of its storage"),
        (0, (-2, -3), (3, 1), 6, "reaches out of its storage"),
        (0, (10**9, 10**9), (0, 0), 6, "repeats its storage"),
        (0, (2,), (1,), 7, "shorter or longer"),
    ],
)
def test_tensors_out_of_bounds(tmp_path, offset, shape, strides, size, message) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(offset, shape, strides, size))
        archive.writestr("archive/data/0", np.arange(6, dtype="float32").tobytes())
    with pytest.raises(InputError, match=f"tensor a: .*{message}"):
        dict(open_tensors(path))


def test_what_torch_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(0, (6,), (1,)))
    with pytest.raises(InputError, match="does not compress"):
        open_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(0, (2, 3), (3,)))
    with pytest.raises(InputError, match="not one stride for each"):
        open_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(0, (6,), (1,)))
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(InputError, match="byte order"):
        open_tensors(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(InputError, match="holds list"):
        open_tensors(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(InputError, match="holds no tensors"):
        open_tensors(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match="asks for torch.nn.modules.linear.Linear"):
        open_tensors(path)
