"""The SavedModel for TF Serving: written beside, checked in a fresh process, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kbert.certificate import PLACE, write_certificate
from kbert.certify import ExportError, certify
from kbert.errors import InputError
from kbert.lineage import LINEAGE_PLACE, write_lineage
from kbert.tasks.task import Signature, Task


def export(
    model: keras.Model, task: Task, folder: Path, *, version: int, lineage: dict[str, Any]
) -> Path:
    """Write FOLDER/VERSION, which appears only once it has passed its checks.

    What it answered to the probe texts stands in its assets.extra/parity.json, what made it in
    assets.extra/lineage.json.

    Args:
        model: Model of the task in float32.
        task: Brings the signatures.
        folder: The served model's base path.
        version: Its version number.
        lineage: What made the model: `kbert.lineage.lineage`.

    Returns:
        The version's folder.

    Raises:
        InputError: the version is there already.
        ExportError: an op that TF Serving 2.12 does not have, or answers that differ from those
            in Python or from HuggingFace's.
    """
    target = folder / str(version)
    if target.exists():
        raise InputError(f"{target} is there already: choose another --export.version.")
    folder.mkdir(parents=True, exist_ok=True)
    # not a number: a server that watches the folder passes it over
    beside = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=folder))
    try:
        _write(model, task, task.signatures(model), beside)
        write_lineage(beside / LINEAGE_PLACE, lineage)
        check_ops(beside)
        write_certificate(beside / PLACE, certify(beside, model, task))
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
