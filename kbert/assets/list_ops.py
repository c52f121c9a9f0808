"""Write tf_serving_ops.txt: `python kbert/assets/list_ops.py`, in an environment of TensorFlow.

It downloads the TensorFlow of each TF Serving, two gigabytes in all, one after the other.
"""

import ctypes
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# TF Serving -> the TensorFlow, and the TF Text, that its binary is made of
SERVING = {
    "2.12": ("2.12.1", "2.12.1"),
    "2.13": ("2.13.1", "2.12.1"),
    "2.14": ("2.14.1", "2.12.1"),
    "2.15": ("2.15.1", "2.12.1"),
    "2.16": ("2.16.2", "2.12.1"),
    "2.17": ("2.17.1", "2.12.1"),
    "2.18": ("2.18.1", "2.12.1"),
    "2.19": ("2.19.1", "2.12.1"),
    "2.20": ("2.20.0", "2.20.0"),
}
# TF Text 2.12.1 defines these, but the binaries that are made with it do not link them
UNLINKED = {"2.12.1": {"TFText>RoundRobinTrim", "TFText>RoundRobinGenerateMasks"}}


class Buffer(ctypes.Structure):
    """TF_Buffer of TensorFlow's C interface."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    ]


def main() -> None:
    core: dict[str, set[str]] = {}
    text: dict[str, set[str]] = {}
    for tensorflow, tf_text in SERVING.values():
        if tensorflow == tf_text:  # the ops of TF Text are those that it adds to its TensorFlow
            core[tensorflow], both = listed(tensorflow), listed(tensorflow, tf_text)
            text[tf_text] = both - core[tensorflow] - UNLINKED.get(tf_text, set())
        else:
            core[tensorflow] = listed(tensorflow)
    ops = {serving: core[first] | text[second] for serving, (first, second) in SERVING.items()}
    write(Path(__file__).with_name("tf_serving_ops.txt"), first_versions(ops))


def listed(tensorflow: str, tf_text: str | None = None) -> set[str]:
    """Names of the ops that a TensorFlow registers, with those of a TF Text."""
    from tensorflow.core.framework import op_def_pb2  # brings this environment's TensorFlow along

    packages = [f"tensorflow-cpu=={tensorflow}", *([f"tensorflow-text=={tf_text}"] * bool(tf_text))]
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--no-cache-dir", "--target", folder, *packages], check=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            content = process.submit(registered, folder).result()
    return {op.name for op in op_def_pb2.OpList.FromString(content).op}


def registered(folder: str) -> bytes:
    """The OpList of the libraries in a folder, in a process that has no other TensorFlow."""
    root = Path(folder)
    libraries = [root / "tensorflow" / f"libtensorflow_{name}.so.2" for name in ("framework", "cc")]
    libraries += sorted(root.glob("tensorflow_text/python/**/_*.so"))
    loaded = [ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL) for library in libraries]
    loaded[1].TF_GetAllOpList.restype = ctypes.POINTER(Buffer)
    buffer = loaded[1].TF_GetAllOpList().contents
    return ctypes.string_at(buffer.data, buffer.length)


def first_versions(ops: dict[str, set[str]]) -> dict[str, list[str]]:
    """By TF Serving, the ops that it and all later ones have, and the one before it has not.

    Args:
        ops: By TF Serving, the oldest first, the names of its ops.
    """
    have = list(ops.values())
    lasting = [set.intersection(*have[index:]) for index in range(len(have))]
    before = [set(), *lasting]
    return {
        serving: sorted(there - gone)
        for serving, there, gone in zip(ops, lasting, before, strict=False)
    }


def write(path: Path, first: dict[str, list[str]]) -> None:
    lines = [line for serving, found in first.items() for line in (f"[{serving}]", *found)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print({serving: len(found) for serving, found in first.items()})


if __name__ == "__main__":
    main()
