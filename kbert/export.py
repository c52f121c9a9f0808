"""The SavedModel for TF Serving: written beside, checked in a fresh process, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kbert.errors import InputError
from kbert.tasks.task import Signature, Task

BOUND = 1e-5
PROBES = (
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "It is the [MASK] of the town, and [MASK] knows it.",
    "Ça c'est un café à l'œuvre; naïve coöperation, Ångström, Straße",
    "e\u0301 decomposed and \u00e9 composed",
    "今天天气很好,我们去公园。",
    "中文 and English 混在一起 in one line",
    "日本語のテキスト、カタカナとひらがな",
    "한국어 문장입니다",
    "Привет, мир! Как дела?",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀 👩‍👩‍👧‍👦 🇨🇳 emoji and 👍🏽 skin",
    "tab\tnewline\nreturn\r no-break\u00a0zero\u200bwidth",
    "null \u0000 byte and \ufffd replacement",
    "[CLS] in the text [SEP] too [PAD] [UNK]",
    "UPPER CASE AND MiXeD CaSe",
    "$1,234.56 (50%) -- #hashtag @user http://a.b/c?d=e&f",
    "x" * 99,
    "y" * 100,
    "z" * 101,
    "don't can't won't it's",
    "１２３ ＡＢＣ ﬁ ½ ²",
    "\u2028line separator\u2029",
    "……——“”‘’《》",
    "the same the same the same " * 5,
    "long " * 600,
    "很长的文本" * 300,
)


class ExportError(RuntimeError):
    """The export does not answer as the model does, or does not load in TF Serving."""


def export(model: keras.Model, task: Task, folder: Path, *, version: int) -> Path:
    """Write FOLDER/VERSION, which appears only once it has passed its checks.

    Args:
        model: Model of the task in float32.
        task: Brings the signatures.
        folder: The served model's base path.
        version: Its version number.

    Returns:
        The version's folder.

    Raises:
        InputError: the version is there already.
        ExportError: an op that TF Serving 2.12 does not have, or answers that differ.
    """
    target = folder / str(version)
    if target.exists():
        raise InputError(f"{target} is there already: choose another --export.version.")
    folder.mkdir(parents=True, exist_ok=True)
    # not a number: a server that watches the folder passes it over
    beside = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=folder))
    try:
        signatures = task.signatures(model)
        _write(model, task, signatures, beside)
        check_ops(beside)
        check_answers(beside, signatures["serving_default"])
        os.chmod(beside, 0o755)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def check_ops(saved_model: Path) -> None:
    """Refuse ops that TensorFlow 2.12.1 with TF Text 2.12.1 (TF Serving 2.12 to 2.19) lacks.

    Raises:
        ExportError: naming them.
    """
    listing = resources.files("kbert.assets").joinpath("ops_2_12.txt").read_text("utf-8")
    unknown = sorted(graph_ops(saved_model) - set(listing.split()))
    if unknown:
        raise ExportError(f"{saved_model}: TF Serving 2.12 has no op {', '.join(unknown)}.")


def graph_ops(saved_model: Path) -> set[str]:
    """Names of all ops in a SavedModel's graph and functions."""
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((saved_model / "saved_model.pb").read_bytes())
    ops: set[str] = set()
    for meta_graph in content.meta_graphs:
        library = meta_graph.graph_def.library.function
        functions = {function.signature.name for function in library}
        ops |= {node.op for node in meta_graph.graph_def.node}
        for function in library:
            ops |= {node.op for node in function.node_def}
        ops -= functions
    return ops


def check_answers(
    saved_model: Path, signature: Signature, *, python: str = sys.executable
) -> float:
    """Compare the answers to probe texts of Python and of a fresh process with TensorFlow alone.

    Args:
        saved_model: Folder of the SavedModel.
        signature: What answers in Python.
        python: Interpreter of the fresh process; it needs TensorFlow and TF Text.

    Returns:
        The largest difference, over max(1, largest absolute value in Python).

    Raises:
        ExportError: it is over 1e-5, or the process failed.
    """
    texts = {
        name: list(PROBES[shift:] + PROBES[:shift]) for shift, name in enumerate(signature.inputs)
    }
    expected = signature.function(*(tf.constant(values) for values in texts.values()))
    with tempfile.TemporaryDirectory() as work:
        inputs, outputs = Path(work) / "inputs.json", Path(work) / "outputs.npz"
        inputs.write_text(json.dumps(texts), encoding="utf-8")
        script = Path(__file__).with_name("session_check.py")
        words = [python, str(script), str(saved_model), str(inputs), str(outputs)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        process = subprocess.run(words, capture_output=True, text=True, env=environment)
        if process.returncode:
            reason = process.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ExportError(f"{saved_model} does not load in a session: {reason[0]}")
        with np.load(outputs) as answers:
            return _largest_difference(saved_model, expected, dict(answers))


def _largest_difference(
    saved_model: Path, expected: dict[str, tf.Tensor], answers: dict[str, np.ndarray]
) -> float:
    if set(expected) != set(answers):
        raise ExportError(f"{saved_model} answers {sorted(answers)}, not {sorted(expected)}.")
    largest = 0.0
    for name, tensor in expected.items():
        ours, theirs = tensor.numpy(), answers[name]
        if not np.issubdtype(ours.dtype, np.floating):
            continue
        scale = max(1.0, float(np.abs(ours).max(initial=0.0)))
        difference = float(np.abs(ours - theirs).max(initial=0.0)) / scale
        if not difference <= BOUND:
            raise ExportError(f"{saved_model}: {name} is off by {difference:.2e} (over {BOUND}).")
        largest = max(largest, difference)
    return largest


def _write(model: keras.Model, task: Task, signatures: dict[str, Signature], folder: Path) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, signature in signatures.items():
        specs = [tf.TensorSpec([None], tf.string, name=key) for key in signature.inputs]
        archive.add_endpoint(name, signature.function, input_signature=specs)
    archive.write_out(str(folder), verbose=False)
    if task.labels:
        lines = "".join(f"{label}\n" for label in task.labels)
        (folder / "assets").mkdir(exist_ok=True)
        (folder / "assets" / "labels.txt").write_text(lines, encoding="utf-8")
