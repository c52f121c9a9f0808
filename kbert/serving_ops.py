"""From which TF Serving on a SavedModel loads, by its ops and a list of those of each version.

`kbert/assets/list_ops.py` makes the list, from TF Serving 2.12 on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from tensorflow.core.protobuf import saved_model_pb2

WANTED = "2.12"
"""The TF Serving that every export is to load in: the oldest in the list."""


def graph_ops(saved_model: Path) -> set[str]:
    """Names of all ops in a SavedModel's graph and functions.

    Only ops are looked at: attributes that an op got later are passed over by an older TensorFlow.
    """
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


def newer_ops(ops: Iterable[str]) -> dict[str, str | None]:
    """Those of the ops that TF Serving 2.12 lacks, and the first that has each; None for none."""
    first = _first_versions()
    found = {op: first.get(op) for op in sorted(ops)}
    return {op: version for op, version in found.items() if version != WANTED}


def tf_serving_version(ops: Iterable[str]) -> str | None:
    """The first TF Serving from which on all have the ops, such as "2.12"; None for none."""
    versions = [WANTED, *newer_ops(ops).values()]
    known = [version for version in versions if version is not None]
    return max(known, key=_as_numbers) if len(known) == len(versions) else None


def newest_listed() -> str:
    """The newest TF Serving in the list."""
    return max(_first_versions().values(), key=_as_numbers)


@functools.cache
def _first_versions() -> dict[str, str]:
    listing = resources.files("kbert.assets").joinpath("tf_serving_ops.txt").read_text("utf-8")
    first: dict[str, str] = {}
    version = ""
    for line in listing.splitlines():
        if line.startswith("["):
            version = line.strip("[]")
        else:
            first[line] = version
    return first


def _as_numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
