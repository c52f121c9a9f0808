"""Weight files: safetensors, h5, pickles, shards, symbolic links."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import load_file

from hostile_files.case import CANARY, TERA, Case
from hostile_files.spoilers import (
    both,
    changed,
    cut,
    deep,
    flip,
    grown,
    later,
    linked,
    piped,
    write,
)


def raw_safetensors(header: bytes, size: int = 0, length: int | None = None) -> Callable:
    """A header, the length that it claims, and a hole of so many bytes behind it."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
        os.truncate(path, path.stat().st_size + size)

    return spoil


def header_of(**shapes: tuple[int, ...]) -> tuple[bytes, int]:
    """A header of float32 tensors that is right, and the number of their bytes."""
    content, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape, dtype=object))
        content[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return json.dumps(content).encode(), end


def giant_checkpoint(folder: Path) -> None:
    """Config and weights that agree about a model of terabytes, in a file of holes."""
    shapes = {name: array.shape for name, array in tensors_of(folder).items()}
    wide = {12: 120_000, 21: 210_000}
    header, size = header_of(
        **{name: tuple(wide.get(axis, axis) for axis in shape) for name, shape in shapes.items()}
    )
    raw_safetensors(header, size)(folder)
    changed("config.json", hidden_size=120_000, intermediate_size=210_000)(folder)


def surplus_terabytes(folder: Path) -> None:
    """The right tensors, and one of ten terabytes that no model asks for."""
    tensors = tensors_of(folder)
    header, size = header_of(
        **{name: array.shape for name, array in tensors.items()}, surplus=(10 * TERA // 4,)
    )
    raw_safetensors(header)(folder)
    with (folder / "model.safetensors").open("ab") as file:
        for array in tensors.values():
            file.write(array.tobytes())
    os.truncate(folder / "model.safetensors", 8 + len(header) + size)


def many_tensors(folder: Path) -> None:
    content = {
        f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        for number in range(1_000_000)
    }
    raw_safetensors(json.dumps(content).encode())(folder)


def in_h5(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    """The weights as tf_model.h5, changed."""

    def spoil(folder: Path) -> None:
        tensors = tensors_of(folder)
        (folder / "model.safetensors").unlink()
        with h5py.File(folder / "tf_model.h5", "w") as file:
            for name, array in tensors.items():
                file[name] = array
            change(file)

    return spoil


WORDS = "embeddings.word_embeddings.weight"


def h5_words(**options: Any) -> Callable[[Path], None]:
    """The word embedding as another dataset."""

    def change(file: h5py.File) -> None:
        del file[WORDS]
        file.create_dataset(WORDS, **options)

    return in_h5(change)


def h5_external(file: h5py.File) -> None:
    raw = Path(file.filename).with_name("secret.bin")
    raw.write_bytes(bytes(19 * 12 * 4))
    del file[WORDS]
    file.create_dataset(WORDS, (19, 12), "float32", external=[(str(raw), 0, 19 * 12 * 4)])


def h5_virtual(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as there:
        there["secret"] = np.zeros((19, 12), "float32")
    del file[WORDS]
    layout = h5py.VirtualLayout((19, 12), "float32")
    layout[:] = h5py.VirtualSource(str(other), "secret", (19, 12))
    file.create_virtual_dataset(WORDS, layout)


def h5_link(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[WORDS]
        file[WORDS] = link

    return change


def h5_strings(file: h5py.File) -> None:
    """Every number of a tensor is the same string of 100 MB, stored once."""
    del file[WORDS]
    text = h5py.string_dtype()
    file.create_dataset(WORDS, (19, 12), text)
    file[WORDS][:] = "x"
    file[WORDS][0, 0] = "x" * 100_000_000


def h5_deep(file: h5py.File) -> None:
    group: Any = file
    for _ in range(20_000):
        group = group.create_group("g")


def h5_wide(file: h5py.File) -> None:
    for number in range(300_000):
        file.create_group(f"group {number}")


# Files of torch.save, by hand


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


EVIL: dict[str, Any] = {
    "os.system": Calls(os.system, f"touch {CANARY}"),
    "eval": Calls(eval, f"open({str(CANARY)!r}, 'w')"),
    "exec": Calls(exec, f"open({str(CANARY)!r}, 'w')"),
    "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(CANARY)]),
    "in a tensor's place": {WORDS: Calls(os.mkdir, str(CANARY))},
    "as a key": {Calls(Path.touch, CANARY): 1},
}


def torch_bin(pickled: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Callable:
    """A zip archive as torch.save writes it, in place of the weights."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink(missing_ok=True)
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w", **options) as archive:
            archive.writestr("archive/data.pkl", pickled)
            for key, content in (storages or {}).items():
                archive.writestr(f"archive/data/{key}", content)

    return spoil


def torch_legacy(pickled: bytes, behind: bytes = b"") -> Callable[[Path], None]:
    """The layout before torch 1.6, in place of the weights."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink(missing_ok=True)
        head = [pickle.dumps(of, 2) for of in (0x1950A86A20F9469CFC6C, 1001)]
        head.append(pickle.dumps({"little_endian": True}, 2))
        (folder / "pytorch_model.bin").write_bytes(b"".join(head) + pickled + behind)

    return spoil


def state_pickle(
    tensors: Iterable[tuple[str, str, int, int, tuple[int, ...], tuple[int, ...]]],
) -> bytes:
    """The pickle of a state_dict: name, storage, its size, offset, shape, strides of each."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    def text(words: str) -> bytes:
        return b"X" + struct.pack("<I", len(words.encode())) + words.encode()

    parts = [b"\x80\x02}("]
    for name, key, size, offset, shape, strides in tensors:
        parts += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", text("storage")]
        parts += [b"ctorch\nFloatStorage\n", text(key), text("cpu"), plain(size), b"tQ"]
        parts += [plain(offset), b"(", *map(plain, shape), b"t(", *map(plain, strides), b"t"]
        parts += [b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join([*parts, b"u."])


def torch_weights(folder: Path) -> None:
    """The tiny weights, as torch.save writes them."""
    tensors = tensors_of(folder)
    rows = [
        (name, str(number), array.size, 0, array.shape, _strides(array.shape))
        for number, (name, array) in enumerate(tensors.items())
    ]
    storages = {str(number): array.tobytes() for number, array in enumerate(tensors.values())}
    torch_bin(state_pickle(rows), storages)(folder)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def torch_view_of_terabytes(folder: Path) -> None:
    """The right shapes, all of them small views of one storage of ten terabytes, a hole."""
    size = 10 * TERA // 4
    shapes = {name: array.shape for name, array in tensors_of(folder).items()}
    rows = [(name, "0", size, 7, shape, _strides(shape)) for name, shape in shapes.items()]
    torch_legacy(state_pickle(rows), pickle.dumps(["0"], 2) + struct.pack("<Q", size))(folder)
    path = folder / "pytorch_model.bin"
    os.truncate(path, path.stat().st_size + 4 * size)


def torch_endless_name(folder: Path) -> None:
    """A pickle that claims a name of four gigabytes, and has them."""
    torch_legacy(b"\x80\x02}(X" + struct.pack("<I", 0xFFFFFFF0))(folder)
    os.truncate(folder / "pytorch_model.bin", 5 << 30)


def torch_endless_line(folder: Path) -> None:
    """A pickle whose GLOBAL has no end of line."""
    torch_legacy(b"\x80\x02}(c")(folder)
    os.truncate(folder / "pytorch_model.bin", 5 << 30)


def zip_of_many(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", state_pickle([]))
        for number in range(400_000):
            archive.writestr(f"archive/data/{number}", b"")


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def index(**shards: str) -> Callable[[Path], None]:
    """An index in place of the weights, which stand beside as a shard that it may name."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.rename(folder / "model-00001-of-00001.safetensors")
        content = {"weight_map": dict.fromkeys(shards, "") | shards}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


def hub_cache(folder: Path) -> None:
    """The folder as the cache of HuggingFace's hub has it: links into the blobs."""
    commit = folder.with_name("models--tiny--bert") / "snapshots" / ("a" * 40)
    blobs = commit.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    commit.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (commit / path.name).symlink_to(f"../../blobs/{number}")
    folder.rmdir()
    folder.symlink_to(commit)


def whole_folder_linked(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


WEIGHTS = ("encoder",)
weights = [
    Case("safetensors: empty", write("model.safetensors", b""), WEIGHTS),
    Case("safetensors: cut in its header", cut("model.safetensors", 0.1), WEIGHTS),
    Case("safetensors: cut in its numbers", cut("model.safetensors", 0.9), WEIGHTS),
    Case("safetensors: a flipped bit of the header", flip("model.safetensors", 40), WEIGHTS),
    Case("safetensors: a header of 2**60 bytes", raw_safetensors(b"{}", length=2**60), WEIGHTS),
    Case("safetensors: a header of 4 TB, all there", raw_safetensors(b"{", 4 * TERA, 4 * TERA),
         WEIGHTS),
    Case("safetensors: a header of 200,000 levels", raw_safetensors(deep().encode()), WEIGHTS),
    Case("safetensors: a header of a million tensors", many_tensors, WEIGHTS, is_large=True),
    Case("safetensors: a tensor of 2**62 numbers",
         raw_safetensors(json.dumps({WORDS: {"dtype": "F32", "shape": [2**31, 2**31],
                                             "data_offsets": [0, 64]}}).encode(), 64), WEIGHTS),
    Case("safetensors: a shape whose bytes overflow",
         raw_safetensors(json.dumps({WORDS: {"dtype": "F32", "shape": [2**32, 2**32, 2**32],
                                             "data_offsets": [0, 0]}}).encode()), WEIGHTS),
    Case("safetensors: numbers of two tensors in one place",
         raw_safetensors(json.dumps({name: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
                                     for name in "ab"}).encode(), 64), WEIGHTS),
    Case("safetensors: terabytes that config.json agrees with", giant_checkpoint, WEIGHTS),
    Case("safetensors: ten terabytes beside the model's tensors", surplus_terabytes, WEIGHTS,
         is_read=True),
    Case("safetensors: names with line breaks and escapes",
         raw_safetensors(*header_of(**{"a\nb\x1b[2J" + "c" * 1_000_000: (1,)})), WEIGHTS),
    Case("safetensors: a pipe", piped("model.safetensors"), WEIGHTS),
    Case("h5: empty", both(in_h5(lambda file: None), write("tf_model.h5", b"")), WEIGHTS),
    Case("h5: cut", both(in_h5(lambda file: None), cut("tf_model.h5", 0.7)), WEIGHTS),
    Case("h5: a flipped bit of its first block",
         both(in_h5(lambda file: None), flip("tf_model.h5", 40)), WEIGHTS),
    Case("h5: a tensor of terabytes, not stored", h5_words(shape=(2**20, 2**20), dtype="f4"),
         WEIGHTS),
    Case("h5: terabytes in chunks, not stored",
         h5_words(shape=(2**20, 2**20), dtype="f4", chunks=(1024, 1024)), WEIGHTS),
    Case("h5: 3 GB beside the model's tensors, compressed to nothing",
         in_h5(lambda file: file.create_dataset("surplus", (3 << 28,), "f4", compression="gzip",
                                                chunks=(1 << 24,), data=np.zeros(3 << 28, "f4"))),
         WEIGHTS, is_large=True),
    Case("h5: a type of 1 GB", h5_words(shape=(9,), dtype=np.dtype(("f4", (2**28,)))), WEIGHTS),
    Case("h5: external storage", in_h5(h5_external), WEIGHTS),
    Case("h5: a virtual dataset of another file", in_h5(h5_virtual), WEIGHTS),
    Case("h5: an external link", in_h5(h5_link(h5py.ExternalLink("other.h5", "/a"))), WEIGHTS),
    Case("h5: a soft link to nothing", in_h5(h5_link(h5py.SoftLink("/nothing"))), WEIGHTS),
    Case("h5: a soft link to itself", in_h5(h5_link(h5py.SoftLink(f"/{WORDS}"))), WEIGHTS),
    Case("h5: strings of 100 MB for numbers", in_h5(h5_strings), WEIGHTS),
    Case("h5: 20,000 groups in each other", in_h5(h5_deep), WEIGHTS, is_large=True),
    Case("h5: 300,000 groups", in_h5(h5_wide), WEIGHTS, is_large=True),
    *(
        Case(f"torch: {name}, protocol {protocol}, {kind.__name__[6:]}",
             kind(pickle.dumps(call, protocol)), WEIGHTS)
        for name, call in EVIL.items()
        for protocol, kind in ((0, torch_bin), (2, torch_legacy), (4, torch_bin))
    ),
    Case("torch: its weights", torch_weights, WEIGHTS, is_read=True),
    Case("torch: cut", both(torch_weights, cut("pytorch_model.bin", 0.5)), WEIGHTS),
    Case("torch: a flipped bit of a number", both(torch_weights, flip("pytorch_model.bin", 9000)),
         WEIGHTS),
    Case("torch: a zip bomb of 3 GB",
         later(lambda: torch_bin(b"\0" * (3 << 30), compression=zipfile.ZIP_DEFLATED)), WEIGHTS,
         is_large=True),
    Case("torch: 3 million opcodes", torch_bin(b"\x80\x02]" + b"]a" * 1_500_000 + b"."), WEIGHTS),
    Case("torch: 300,000 values below 300,000 tuples",
         torch_bin(b"\x80\x02" + b"K\x01" * 300_000 + b"(t" * 300_000 + b"."), WEIGHTS),
    Case("torch: 100,000 tuples in each other",
         torch_bin(b"\x80\x02)" + b"\x85" * 100_000 + b"}\x86."), WEIGHTS),
    Case("torch: a name of 4 GB", torch_endless_name, WEIGHTS),
    Case("torch: a line of 5 GB", torch_endless_line, WEIGHTS),
    Case("torch: a view of a storage of 10 TB", torch_view_of_terabytes, WEIGHTS),
    Case("torch: one storage as a tensor of 10**18 numbers",
         torch_bin(state_pickle([(WORDS, "0", 6, 0, (10**9, 10**9), (0, 0))]), {"0": bytes(24)}),
         WEIGHTS),
    Case("torch: a tensor of 100,000 axes",
         torch_bin(state_pickle([(WORDS, "0", 6, 0, (2**200,) * 100_000, (1,) * 100_000)])),
         WEIGHTS),
    Case("torch: an archive of 400,000 files", zip_of_many, WEIGHTS, is_large=True),
    Case("index: a shard in the folder above", index(a="../model.safetensors"), WEIGHTS),
    Case("index: a shard by an absolute path", index(a="/etc/model.safetensors"), WEIGHTS),
    Case("index: itself", index(a="model.safetensors.index.json"), WEIGHTS),
    Case("index: a shard that is not there", index(a="model-2.safetensors"), WEIGHTS),
    Case("index: a tensor that is not there", index(a="model-00001-of-00001.safetensors"), WEIGHTS),
    Case("index: 200,000 levels",
         both(index(), write("model.safetensors.index.json", deep())), WEIGHTS),
    Case("index: 10 TB", both(index(), grown("model.safetensors.index.json", 10 * TERA)), WEIGHTS),
    Case("index: a million shards",
         later(lambda: index(**{f"t{number}": f"{number}.safetensors" for number in range(10**6)})),
         WEIGHTS, is_large=True),
    Case("symlink: weights out of the folder", linked("model.safetensors", "/etc/passwd"), WEIGHTS),
    Case("symlink: weights to /dev/zero", linked("model.safetensors", "/dev/zero"), WEIGHTS),
    Case("symlink: config.json out of the folder", linked("config.json", "/etc/passwd"), WEIGHTS),
    Case("symlink: config.json to /dev/zero", linked("config.json", "/dev/zero"), WEIGHTS),
    Case("symlink: to itself", linked("config.json", "config.json"), WEIGHTS),
    Case("symlink: the hub's cache", hub_cache, ("encoder", "tokenizer"), is_read=True),
    Case("symlink: the whole folder", whole_folder_linked, ("encoder", "tokenizer"), is_read=True),
    Case("no weights: .keras",
         both(write("model.keras", b"PK\x03\x04"), lambda folder: (folder / "model.safetensors")
              .unlink()), WEIGHTS),
]  # fmt: skip
