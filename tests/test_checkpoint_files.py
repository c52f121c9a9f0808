"""Weight files: what is found, read and written, and what a damaged file says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kbert import h5_files
from kbert.checkpoint_files import (
    WEIGHT_FILES,
    find_weights,
    open_tensors,
    read_index,
    write_h5,
    write_safetensors,
)
from kbert.errors import InputError

TENSORS = {
    "kernel": np.arange(6, dtype="float32").reshape(2, 3),
    "half": np.array([1.5, -2.0], "float16"),
    "brain": np.array([1.5, 3e20], ml_dtypes.bfloat16),
    "ids": np.arange(4),
    "scalar": np.array(7.0, "float32"),
}


def write_datasets(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in tensors.items():
            file[name] = array


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        write_datasets(path, tensors)


def test_find_weights_prefers_safetensors_and_whole_files(tmp_path):
    assert WEIGHT_FILES[:3] == (
        "model.safetensors",
        "model.safetensors.index.json",
        "tf_model.h5",
    )
    for name in reversed(WEIGHT_FILES):
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name


def test_find_weights_says_what_is_there(tmp_path):
    with pytest.raises(InputError, match="found: nothing"):
        find_weights(tmp_path)
    for name in ("flax_model.msgpack", "config.json"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"found: config\.json, flax_model\.msgpack\. .*\n?"):
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


def test_whether_a_tensor_is_there_is_known_without_reading_it(tmp_path):
    """Of four terabytes, none of which is on the disk."""
    shape, path = (2**20, 2**20), tmp_path / "model.safetensors"
    size = 4 * shape[0] * shape[1]
    told = {"huge": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(told).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    tensors = open_tensors(path)
    assert "huge" in tensors and "other" not in tensors
    assert tensors.shape("huge") == shape


def test_h5(tmp_path):
    path = tmp_path / "tf_model.h5"
    write(path, {"bert/tf/kernel:0": TENSORS["kernel"], "top": TENSORS["half"]})
    tensors = open_tensors(path)
    assert list(tensors) == ["bert/tf/kernel:0", "top"]
    assert tensors.shape("bert/tf/kernel:0") == (2, 3)
    np.testing.assert_array_equal(tensors["bert/tf/kernel:0"], TENSORS["kernel"])
    assert tensors["top"].dtype == np.float32


def test_h5_follows_nothing_out_of_the_file(tmp_path):
    write_datasets(tmp_path / "other.h5", {"secret": np.ones(2)})
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


def test_damaged_h5_name(tmp_path):
    path = tmp_path / "tf_model.h5"
    write(path, {"layer/kernel": np.ones(2), "text": "words"})
    assert list(open_tensors(path)) == ["layer/kernel"]  # strings may be of any size
    path.write_bytes(path.read_bytes().replace(b"kernel", b"\xffernel"))
    with pytest.raises(InputError, match=r"tf_model\.h5: .*damaged or incomplete .*not UTF-8"):
        open_tensors(path)


def test_h5_that_is_compressed_or_not_stored(tmp_path):
    """Keras writes neither, and a small file could be of any size in memory."""
    path = tmp_path / "tf_model.h5"
    for options in (
        {"data": np.zeros(3000), "compression": "gzip"},
        {"data": np.zeros(3000), "chunks": (1000,)},
        {"shape": (2**20, 2**20), "dtype": "f4"},
    ):
        with h5py.File(path, "w") as file:
            file.create_dataset("a", **options)
        with pytest.raises(InputError, match="numbers of a are compressed, in chunks or not there"):
            open_tensors(path)


def test_h5_of_all_types(tmp_path):
    path = tmp_path / "tf_model.h5"
    arrays = {
        "big": np.arange(6, dtype=">f8").reshape(2, 3),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3), "float32"),
        "scalar": np.array(7, "int8"),
    }
    write(path, {**arrays, "none": h5py.Empty("f4"), "compound": np.zeros(2, "f4,i4")})
    tensors = open_tensors(path)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].shape == array.shape


def test_h5_that_changes_is_read_anew(tmp_path):
    path = tmp_path / "tf_model.h5"
    for value in (1.0, 2.0):
        write(path, {"a": np.full(3, value)})
        assert open_tensors(path)["a"].tolist() == [value] * 3


def test_h5_that_ends_the_process_that_looks_at_it(tmp_path, monkeypatch):
    """As changed bytes can do to HDF5's library; here the interpreter ends itself."""
    path = tmp_path / "tf_model.h5"
    write(path, {"a": np.ones(2)})
    for code, message in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"a bad one \(SIGSEGV\)"),
        ("import time; time.sleep(60)", "comes to no end with it"),
    ):
        script = tmp_path / "script.py"
        script.write_text(code)
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(h5_files.sys, "executable", str(python))
        monkeypatch.setattr(h5_files, "SECONDS", 0.5)
        path.touch()
        with pytest.raises(InputError, match=message):
            open_tensors(path)


def test_wrong_names(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_tensors(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="ends in"):
        open_tensors(tmp_path / "model.msgpack")


# Shards


def write_shards(folder: Path, name: str = "model.safetensors", *, scope: str = "") -> Path:
    """Two shards and their index, whose names begin with the scope as those of tf_model.h5 do."""
    start, ending = name.split(".")
    shards = {
        f"{start}-00001-of-00002.{ending}": ("kernel", "half", "ids"),
        f"{start}-00002-of-00002.{ending}": ("brain", "scalar"),
    }
    for shard, names in shards.items():
        arrays = {f"part/{name}": TENSORS[name] for name in names}
        if ending == "h5":
            arrays = {name: array.astype("float32") for name, array in arrays.items()}
        write(folder / shard, arrays)
    places = {f"{scope}part/{name}": shard for shard, names in shards.items() for name in names}
    index = folder / f"{name}.index.json"
    content = {"metadata": {"total_size": 5}, "weight_map": places}
    index.write_text(json.dumps(content), encoding="utf-8")
    return index


@pytest.mark.parametrize(
    ("name", "scope"),
    [("model.safetensors", ""), ("tf_model.h5", ""), ("tf_model.h5", "tf_bert_model/")],
)
def test_shards(tmp_path, name, scope):
    index = write_shards(tmp_path, name, scope=scope)
    tensors = open_tensors(index)
    assert set(tensors) == {f"{scope}part/{name}" for name in TENSORS}
    for name, array in TENSORS.items():
        assert tensors.shape(f"{scope}part/{name}") == array.shape
        np.testing.assert_array_equal(tensors[f"{scope}part/{name}"], array.astype("float32"))
    assert read_index(index)[f"{scope}part/kernel"].endswith(f"-00001-of-00002{index.suffixes[-3]}")


def test_shards_hold_what_their_index_says(tmp_path):
    index = write_shards(tmp_path)
    content = json.loads(index.read_text())
    del content["weight_map"]["part/kernel"]
    index.write_text(json.dumps(content))
    assert "part/kernel" not in open_tensors(index)
    content["weight_map"]["part/kernel"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(content))
    lacks = r"model-00002-of-00002\.safetensors: lacks the tensor part/kernel, which .*promises"
    with pytest.raises(InputError, match=lacks):
        open_tensors(index)


def test_shards_missing_or_damaged(tmp_path):
    index = write_shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors: .*damaged"):
        open_tensors(index)
    shard.unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors: there is no such"):
        open_tensors(index)


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "folder/model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "..",
        "",
    ],
)
def test_index_names_shards_beside_it(tmp_path, shard):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match=r"index\.json: names the shard .* same folder") as caught:
        open_tensors(index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "1", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', b"\xff\xfe"],
)
def test_index_that_is_none(tmp_path, content):
    index = tmp_path / "tf_model.h5.index.json"
    index.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match="its weight_map must name the shard of each") as caught:
        open_tensors(index)
    assert "\n" not in str(caught.value)


# Writing


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


def test_write_h5(tmp_path):
    path = tmp_path / "tf_model.h5"
    path.write_text("old")
    tied = TENSORS["kernel"]
    arrays = {
        "second/model/a/kernel:0": tied.T,
        "second/model/a/bias:0": TENSORS["brain"],
        "first/model/b/kernel:0": tied,
        "second/model/tied:0": tied,
    }
    write_h5(path, arrays)
    assert [file.name for file in tmp_path.iterdir()] == ["tf_model.h5"]
    with h5py.File(path) as file:
        assert list(file.attrs["layer_names"]) == ["second", "first"]
        for layer in ("second", "first"):
            names = [name.partition("/")[2] for name in arrays if name.startswith(layer)]
            assert list(file[layer].attrs["weight_names"]) == names
            for name in names:
                np.testing.assert_array_equal(file[layer][name], arrays[f"{layer}/{name}"])
        assert file["second/model/tied:0"] == file["first/model/b/kernel:0"]  # one object
    assert set(open_tensors(path)) == set(list(arrays)[:3])


def test_write_h5_whole_or_not_at_all(tmp_path):
    path = tmp_path / "tf_model.h5"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_h5(path, {"a/b": np.ones(2), "a/c": np.array([object()])})
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["tf_model.h5"]
