"""Load a SavedModel as TF Serving does and answer texts: run in a fresh process, by its path.

    python session_check.py SAVED_MODEL INPUTS.json OUTPUTS.npz [SIGNATURE ...]

Needs TensorFlow and TF Text alone, of any version from 2.12, and nothing of kbert.
INPUTS.json is {"input name": ["text", ...]}. OUTPUTS.npz gets the outputs of the first signature
(serving_default if none is named) by their names, those of others as SIGNATURE/NAME. Warm-up
requests that the SavedModel carries are answered first, as TF Serving does: one that fails ends it.
"""

import json
import os
import sys

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers its ops)
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.framework import tensor_pb2

WARMUP = ("assets.extra", "tf_serving_warmup_requests")
# What is read of tensorflow.serving.PredictionLog, whose package this process may lack: message ->
# field -> (its number, message in it, or "" for one that is left as bytes).
WARMUP_MESSAGES = {
    "Log": {"predict_log": (6, "Predict")},
    "Predict": {"request": (1, "Request")},
    "Request": {"model_spec": (1, "Spec"), "inputs": (2, "Input")},
    "Spec": {"signature_name": (3, "")},
    "Input": {"key": (1, ""), "value": (2, "")},
}


def main(saved_model: str, inputs_file: str, outputs_file: str, *names: str) -> None:
    with open(inputs_file, encoding="utf-8") as file:
        inputs = json.load(file)
    requests = _warmup_requests(os.path.join(saved_model, *WARMUP))
    arrays = {}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], saved_model)
        for name, feeds in requests:
            _run(session, meta_graph.signature_def[name], feeds)
        for index, name in enumerate(names or ["serving_default"]):
            outputs = _answer(session, meta_graph.signature_def[name], inputs)
            prefix = f"{name}/" if index else ""
            arrays |= {f"{prefix}{key}": _plain(array) for key, array in outputs.items()}
    np.savez(outputs_file, **arrays)


def _answer(session, signature, inputs: dict) -> dict:
    arrays = {
        name: np.array([text.encode() for text in texts], object) for name, texts in inputs.items()
    }
    return _run(session, signature, arrays)


def _run(session, signature, inputs: dict) -> dict:
    feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
    fetches = {name: tensor.name for name, tensor in signature.outputs.items()}
    return session.run(fetches, feeds)


def _warmup_requests(path: str) -> list:
    """Name of the signature and inputs of each request in a file, if there is one."""
    if not os.path.exists(path):
        return []
    log = _warmup_message()
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    requests = [log.FromString(record).predict_log.request for record in records]
    return [
        (
            request.model_spec.signature_name.decode() or "serving_default",
            {
                entry.key.decode(): tf.make_ndarray(tensor_pb2.TensorProto.FromString(entry.value))
                for entry in request.inputs
            },
        )
        for request in requests
    ]


def _warmup_message() -> type:
    field_of = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="warmup", package="warmup", syntax="proto3")
    for name, fields in WARMUP_MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, inner) in fields.items():
            is_repeated = field == "inputs"
            message.field.add(
                name=field,
                number=number,
                type=field_of.TYPE_MESSAGE if inner else field_of.TYPE_BYTES,
                type_name=f".warmup.{inner}" if inner else None,
                label=field_of.LABEL_REPEATED if is_repeated else field_of.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("warmup.Log"))


def _plain(array: np.ndarray) -> np.ndarray:
    """Strings as a fixed-width array: npz files take no objects without pickle."""
    return np.array(array.tolist(), np.bytes_) if array.dtype == object else array


if __name__ == "__main__":
    main(*sys.argv[1:])
