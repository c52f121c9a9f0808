"""One loaded version of a model: its graph in a session, its signatures, and Predict.

The graph runs as it does in TensorFlow Serving: in a session, from the names of the tensors
that the signature gives. (`tf.saved_model.load` would refuse ranks that TF Serving accepts and
would always compute every output.)
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from serve.errors import Code, ServingError, invalid_argument
from serve.session import ModelSession

DEFAULT_SIGNATURE = "serving_default"


class Servable:
    """A SavedModel in memory. Any number of threads may call `predict` at once.

    Args:
        version: the number of its folder.
        session: runs the graph: a ModelSession, or one that batches.
        signatures: from the MetaGraphDef.
    """

    def __init__(
        self,
        version: int,
        session: ModelSession,
        signatures: Mapping[str, meta_graph_pb2.SignatureDef],
    ) -> None:
        self.version = version
        self.signatures = signatures
        self._session = session

    def input_types(self, signature_name: str) -> dict[str, str] | None:
        """Name -> type of the inputs of a signature ("" is the default); None if it is absent."""
        signature = self.signatures.get(signature_name or DEFAULT_SIGNATURE)
        if signature is None:
            return None
        return {name: type_name(info.dtype) for name, info in signature.inputs.items()}

    def predict(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        signature_name: str = "",
        output_filter: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
            inputs: one array a name; strings are object arrays of bytes. Inputs for which the
                signature has a default may be left out.
            signature_name: "" is "serving_default".
            output_filter: names of the outputs to compute; all when empty.

        Raises:
            ServingError: the inputs do not fit, or an operation of the graph fails.
        """
        signature_name = signature_name or DEFAULT_SIGNATURE
        signature = self.signatures.get(signature_name)
        if signature is None:
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.'
            )
        _check_input_count(signature, inputs)
        feeds = _feeds(signature, inputs)
        output_names = _output_names(signature, output_filter)
        fetches = tuple(signature.outputs[name].name for name in output_names)
        results = self._session.run(feeds, fetches)
        return dict(zip(output_names, results, strict=True))

    def close(self) -> None:
        """Frees the memory. No request may be running."""
        self._session.close()


def load_servable(path: Path, version: int) -> Servable:
    """Loads the graph tagged "serve" of the SavedModel in a version folder.

    Raises:
        ServingError: it cannot be loaded; the message is one line.
    """
    text_ops_problem = _import_text_ops()
    session = tf.compat.v1.Session(graph=tf.Graph())
    try:
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
    except Exception as error:  # the loader raises errors of many kinds for a broken model
        session.close()
        raise _load_error(error, text_ops_problem) from error
    # Copies: the MetaGraphDef holds the whole graph a second time and can go.
    signatures = {}
    for name, signature in meta_graph.signature_def.items():
        signatures[name] = meta_graph_pb2.SignatureDef()
        signatures[name].CopyFrom(signature)
    return Servable(version, ModelSession(session), signatures)


@functools.cache
def _import_text_ops() -> str:
    """Registers the operations of TF Text; gives the reason if that fails, else ""."""
    try:
        importlib.import_module("tensorflow_text")
    except (ImportError, tf.errors.OpError) as error:
        return _one_line(error)
    return ""


def _load_error(error: Exception, text_ops_problem: str) -> ServingError:
    message = _one_line(error)
    is_unknown_op = "Op type not registered" in message or "No op named" in message
    if is_unknown_op and text_ops_problem:
        message += (
            " (tensorflow_text, which has the text operations, cannot be imported: "
            f"{text_ops_problem}; install the tensorflow-text of the version of tensorflow)"
        )
    if "SavedModel file does not exist" in message:
        return ServingError(Code.NOT_FOUND, message)
    # An OpError brings the code of TensorFlow.
    return ServingError(Code(getattr(error, "error_code", None) or Code.UNKNOWN), message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def type_name(dtype: int | np.dtype | tf.DType) -> str:
    """TensorFlow's short name of a type, as it stands in messages: "float", not "float32"."""
    name = tf.as_dtype(dtype).name
    return {"float16": "half", "float32": "float", "float64": "double"}.get(name, name)


def _check_input_count(
    signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, np.ndarray]
) -> None:
    is_too_few = len(inputs) < len(signature.inputs) and not signature.defaults
    if not is_too_few and len(inputs) <= len(signature.inputs):
        return
    sent, known = set(inputs), set(signature.inputs)
    raise invalid_argument(
        f"input size does not match signature: {len(sent)}!={len(known)} "
        f"len({_braced(sent)}) != len({_braced(known)}). "
        f"Sent extra: {_braced(sent - known)}. "
        f"Missing but required: {_braced(known - sent)}."
    )


def _braced(names: set[str] | Mapping) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _feeds(
    signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Name of the fed tensor -> value, in the order of the input names."""
    feeds = {}
    for index, (name, info) in enumerate(sorted(signature.inputs.items())):
        if name in inputs:
            array = inputs[name]
        elif name in signature.defaults:
            array = tf.make_ndarray(signature.defaults[name])
        else:
            raise invalid_argument(
                f"Signature input alias: {name}(feed name: {info.name}) not found in request and "
                "no default value provided. Inputs expected to be in the request "
                f"{_braced(inputs)}, or default input alias set: "
                f"{','.join(sorted(signature.defaults))}"
            )
        expected, received = type_name(info.dtype), type_name(array.dtype)
        if expected != received:
            raise invalid_argument(
                f"Expects arg[{index}] to be {expected} but {received} is provided"
            )
        feeds[info.name] = array
    used = [name for name in inputs if name in signature.inputs]
    if len(used) != len(inputs):
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(used))}, "
            f"request input: {','.join(sorted(inputs))}"
        )
    return feeds


def _output_names(
    signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]
) -> list[str]:
    if not output_filter:
        return sorted(signature.outputs)
    for index, name in enumerate(output_filter):
        if name not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} Outputs expected to be in "
                f"the set {_braced(signature.outputs)}."
            )
        if name in output_filter[:index]:
            raise invalid_argument(f"duplicate output tensor alias: {name}")
    return list(output_filter)
