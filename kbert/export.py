"""The SavedModel for TF Serving: written beside, checked in a fresh process, then renamed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

from kbert.certificate import PLACE, write_certificate
from kbert.certify import ExportError, Reduced, certify
from kbert.encoder import computed_by_length
from kbert.lineage import LINEAGE_PLACE, write_lineage
from kbert.precision import kept_operands
from kbert.serving_ops import WANTED, graph_ops, newer_ops, newest_listed, tf_serving_version
from kbert.tasks.task import Signature, Task
from kbert.version_folders import new_version
from kbert.warmup import WARMUP_PLACE, write_warmup
from kbert.whole_files import written_whole

logger = logging.getLogger(__name__)

ROWS = 8
"""Texts of alike lengths that a served graph computes at a time."""


def export(
    model: keras.Model,
    task: Task,
    folder: Path,
    *,
    version: int,
    lineage: dict[str, Any],
    warmup: Sequence[Mapping[str, str]] = (),
    reduced: Reduced | None = None,
) -> Path:
    """Write FOLDER/VERSION, which appears only once it has passed its checks.

    What it answered to the probe texts, and from which TF Serving on it loads, stands in its
    assets.extra/parity.json, what made it in assets.extra/lineage.json.

    Args:
        model: Model of the task in float32.
        task: Brings the signatures.
        folder: The served model's base path, whose name is the model's.
        version: Its version number.
        lineage: What made the model: `kbert.lineage.lineage`.
        warmup: Inputs for a server to warm up by: `kbert.warmup.warmup_rows`; () for none.
        reduced: The model to write, where it is not that in float32.

    Returns:
        The version's folder.

    Raises:
        InputError: the version is there already.
        ExportError: an op that no TF Serving has, a warm-up request that fails, or answers that
            differ from those in Python or from HuggingFace's.
    """
    with new_version(folder, version) as beside:
        served = model if reduced is None else reduced.model
        with computed_by_length(served, ROWS), kept_operands():
            _write(task, task.signatures(served), beside)
        write_lineage(beside / LINEAGE_PLACE, lineage)
        if warmup:
            write_warmup(beside / WARMUP_PLACE, folder.name, warmup)
        tf_serving = check_ops(beside)
        certificate = dataclasses.replace(
            certify(beside, model, task, reduced=reduced), tf_serving=tf_serving
        )
        write_certificate(beside / PLACE, certificate)
    return folder / str(version)


def check_ops(saved_model: Path) -> str:
    """From which TF Serving on a SavedModel loads; a warning if that is a later one than 2.12.

    Raises:
        ExportError: it has ops that no TF Serving has, naming them.
    """
    ops = graph_ops(saved_model)
    newer = newer_ops(ops)
    version = tf_serving_version(ops)
    if version is None:
        unknown = ", ".join(op for op, first in newer.items() if first is None)
        raise ExportError(
            f"{saved_model}: no TF Serving from {WANTED} to {newest_listed()} has {unknown}."
        )
    if newer:
        named = ", ".join(f"{op} ({first})" for op, first in newer.items())
        logger.warning("the export needs TF Serving %s or later: %s", version, named)
    return version


def _write(task: Task, signatures: dict[str, Signature], folder: Path) -> None:
    # Not archive.track(model): the archive finds the variables that the signatures use by itself,
    # and writes what is tracked too a second time, which doubles the file and a server's memory.
    archive = keras.export.ExportArchive()
    for name, signature in signatures.items():
        specs = [tf.TensorSpec([None], tf.string, name=key) for key in signature.inputs]
        archive.add_endpoint(name, signature.function, input_signature=specs)
    archive.write_out(str(folder), verbose=False)
    _write_methods(folder, signatures)
    if task.labels:
        lines = "".join(f"{label}\n" for label in task.labels)
        (folder / "assets").mkdir(exist_ok=True)
        (folder / "assets" / "labels.txt").write_text(lines, encoding="utf-8")


def _write_methods(saved_model: Path, signatures: dict[str, Signature]) -> None:
    """Name the method of each signature; TensorFlow calls them all "predict".

    Older servers, and others where they are told to, classify by no signature of that name.
    """
    path = saved_model / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in content.meta_graphs:
        for name, signature in signatures.items():
            method = f"tensorflow/serving/{signature.method}"
            meta_graph.signature_def[name].method_name = method
    with written_whole(path) as beside:
        beside.write_bytes(content.SerializeToString(deterministic=True))
    write_fingerprint(str(saved_model))  # fingerprint.pb holds digests of that file
