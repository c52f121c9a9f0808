"""Weight files: what is found, read and written, and what a damaged file says."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kbert.checkpoint_files import find_weights, open_tensors, write_safetensors
from kbert.errors import InputError

TENSORS = {
    "kernel": np.arange(6, dtype="float32").reshape(2, 3),
    "half": np.array([1.5, -2.0], "float16"),
    "brain": np.array([1.5, 3e20], ml_dtypes.bfloat16),
    "ids": np.arange(4),
    "scalar": np.array(7.0, "float32"),
}


def write_h5(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in tensors.items():
            file[name] = array


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    (save_file if path.suffix == ".safetensors" else lambda t, p: write_h5(p, t))(tensors, path)


def test_find_weights_prefers_safetensors(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    assert find_weights(tmp_path).name == "tf_model.h5"
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path).name == "model.safetensors"


def test_find_weights_says_what_is_there(tmp_path):
    with pytest.raises(InputError, match="found: nothing"):
        find_weights(tmp_path)
    for name in ("pytorch_model.bin", "config.json"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"found: config\.json, pytorch_model\.bin\. .*\n?"):
        find_weights(tmp_path)


def test_safetensors(tmp_path):
    write(tmp_path / "model.safetensors", TENSORS)
    tensors = open_tensors(tmp_path / "model.safetensors")
    assert set(tensors) == set(TENSORS)
    assert len(tensors) == 5
    for name, array in TENSORS.items():
        assert tensors.shape(name) == array.shape
        np.testing.assert_array_equal(tensors[name], array.astype("float32"))
    assert {tensors[name].dtype.name for name in ("half", "brain", "kernel")} == {"float32"}
    assert tensors["ids"].dtype == np.int64
    with pytest.raises(KeyError):
        tensors["absent"]
    assert "absent" not in tensors


def test_h5(tmp_path):
    path = tmp_path / "tf_model.h5"
    write(path, {"bert/tf/kernel:0": TENSORS["kernel"], "top": TENSORS["half"]})
    tensors = open_tensors(path)
    assert list(tensors) == ["bert/tf/kernel:0", "top"]
    assert tensors.shape("bert/tf/kernel:0") == (2, 3)
    np.testing.assert_array_equal(tensors["bert/tf/kernel:0"], TENSORS["kernel"])
    assert tensors["top"].dtype == np.float32


def test_h5_follows_nothing_out_of_the_file(tmp_path):
    write_h5(tmp_path / "other.h5", {"secret": np.ones(2)})
    (tmp_path / "raw").write_bytes(np.ones(2).tobytes())
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        file["own"] = np.zeros(2)
        file["group/soft"] = h5py.SoftLink("/own")
        file["group/outer"] = h5py.ExternalLink("other.h5", "/secret")
        file["group/loop"] = h5py.SoftLink("/group")
        outside = [(str(tmp_path / "raw"), 0, 16)]
        file.create_dataset("external", (2,), "float64", external=outside)
        layout = h5py.VirtualLayout((2,), "float64")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (2,))
        file.create_virtual_dataset("virtual", layout)
    assert list(open_tensors(path)) == ["own"]


def test_h5_with_a_loop_of_hard_links(tmp_path):
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        file["group/own"] = np.zeros(2)
        file["group/again"] = file["group"]
    assert list(open_tensors(path)) == ["group/own"]


@pytest.mark.parametrize("name", ["model.safetensors", "tf_model.h5"])
def test_damaged_files(tmp_path, name):
    path = tmp_path / name
    write(path, {"a": np.arange(3000, dtype="float32"), "b": np.ones(2, "float32")})
    content = path.read_bytes()
    for kept in (0, 3, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(InputError, match=f"{name}.* damaged or incomplete") as caught:
            dict(open_tensors(path))
        assert "\n" not in str(caught.value)
    path.write_bytes(os.urandom(500))
    with pytest.raises(InputError, match="damaged or incomplete"):
        open_tensors(path)


def test_damaged_h5_chunk(tmp_path):
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.arange(3000.0), compression="gzip")
        start = file["a"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"tf_model\.h5, tensor a: .*damaged"):
        open_tensors(path)["a"]


def test_wrong_names(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_tensors(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="ends in"):
        open_tensors(tmp_path / "pytorch_model.bin")


def test_write_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    write_safetensors(path, {**TENSORS, "transposed": TENSORS["kernel"].T})
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    read = load_file(path)
    np.testing.assert_array_equal(read["transposed"], TENSORS["kernel"].T)
    assert {name: array.shape for name, array in read.items() if name in TENSORS} == {
        name: array.shape for name, array in TENSORS.items()
    }


def test_write_safetensors_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    with pytest.raises(Exception, match="."):
        write_safetensors(path, {"a": np.array([object()])})
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
