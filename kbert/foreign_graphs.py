"""What the graph of a SavedModel may do: TensorFlow runs any, and some of its ops write files.

A graph is a program. What kbert exports computes, and does nothing else; a SavedModel that holds an
op by which it could read or write files, talk to other processes or run Python is not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from kbert.config import require_memory
from kbert.errors import InputError

MOST_GRAPH_BYTES = 1 << 28
"""Of saved_model.pb; that of a BERT has 2 MB, most of it the tables of the tokeniser."""
ACTING = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|PrintV2|ImmutableConst|FileSystem\w*|\w*PyFunc\w*|Debug\w*"
    r"|\w*SummaryWriter\w*|\w*Summary(File|Db)Writer|Write\w*Summary|\w*Reader(V2)?|\w*Dataset\w*"
    r"|(DTensor)?(Save|Restore)(Slices?|V2)?|DistributedSave|MergeV2Checkpoints|Rpc\w*"
    r"|CalibrationStatisticsSaver|XlaCustomCall\w*"
)
"""Ops that reach out of a graph. Tables that TensorFlow reads from a model's assets are left."""
OF_SAVING = {"SaveV2", "MergeV2Checkpoints", "RestoreV2"}
OF_RESTORING = {"RestoreV2"}
"""What a graph has for its own variables, in functions that nothing else calls."""


def refuse_acting_graph(saved_model: Path) -> None:
    """Check that a SavedModel only computes.

    Args:
        saved_model: Its folder.

    Raises:
        InputError: its graph cannot be read, or holds an op that acts; or its files are larger than
            the memory of this machine.
    """
    path = saved_model / "saved_model.pb"
    sizes = [file.stat().st_size for file in saved_model.rglob("*") if file.is_file()]
    require_memory(sum(sizes) // 4, f"{saved_model}: what it holds")
    if path.stat().st_size > MOST_GRAPH_BYTES:
        raise InputError(f"{path}: has over {MOST_GRAPH_BYTES >> 20} MiB, and was not read.")
    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path}: damaged ({error}); export the model again.") from None
    for meta_graph in content.meta_graphs:
        if (op := _acting_op(meta_graph)) is not None:
            raise InputError(
                f"{path}: holds the op {op}, by which it could act on this machine, and was not "
                "loaded; take an export of kbert."
            )


def _acting_op(meta_graph: Any) -> str | None:
    """The first op of a graph that acts; None where there is none."""
    graph, saver = meta_graph.graph_def, meta_graph.saver_def
    functions = {of.signature.name: of.node_def for of in graph.library.function}
    names = {saver.save_tensor_name.partition(":")[0], saver.restore_op_name} - _fetched(meta_graph)
    savers = [node for node in graph.node if node.name in names]
    restoring = _reached((of for of in savers if of.name == saver.restore_op_name), functions)
    saving = _reached(savers, functions)
    others = [node for node in graph.node if node.name not in names]
    others += [node for name in set(functions) - saving for node in functions[name]]
    elsewhere = _reached(others, functions) | set(meta_graph.object_graph_def.concrete_functions)
    ops = {node.op for node in graph.node}
    for name, nodes in functions.items():
        allowed: set[str] = set()
        if name in saving - elsewhere:
            allowed = OF_RESTORING if name in restoring else OF_SAVING
        ops |= {node.op for node in nodes} - allowed
    return next((op for op in sorted(ops) if ACTING.fullmatch(op)), None)


def _fetched(meta_graph: Any) -> set[str]:
    """Names of the nodes that a signature or another node asks for."""
    tensors = [name for node in meta_graph.graph_def.node for name in node.input]
    for signature in meta_graph.signature_def.values():
        tensors += [output.name for output in signature.outputs.values()]
    return {name.removeprefix("^").partition(":")[0] for name in tensors}


def _reached(nodes: Iterable[Any], functions: dict[str, Any]) -> set[str]:
    """Names of the functions that nodes call, and that those call."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        for name in _called(waiting.pop()):
            if name in functions and name not in found:
                found.add(name)
                waiting += functions[name]
    return found


def _called(node: Any) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
