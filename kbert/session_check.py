"""Load a SavedModel as TF Serving does and answer texts: run in a fresh process, by its path.

    python session_check.py SAVED_MODEL INPUTS.json OUTPUTS.npz [SIGNATURE ...]

Needs TensorFlow and TF Text alone, of any version from 2.12, and nothing of kbert.
INPUTS.json is {"input name": ["text", ...]}. OUTPUTS.npz gets the outputs of the first signature
(serving_default if none is named) by their names, those of others as SIGNATURE/NAME.
"""

import json
import sys

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers its ops)


def main(saved_model: str, inputs_file: str, outputs_file: str, *names: str) -> None:
    with open(inputs_file, encoding="utf-8") as file:
        inputs = json.load(file)
    arrays = {}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], saved_model)
        for index, name in enumerate(names or ["serving_default"]):
            outputs = _answer(session, meta_graph.signature_def[name], inputs)
            prefix = f"{name}/" if index else ""
            arrays |= {f"{prefix}{key}": _plain(array) for key, array in outputs.items()}
    np.savez(outputs_file, **arrays)


def _answer(session, signature, inputs: dict) -> dict:
    feeds = {
        signature.inputs[name].name: np.array([text.encode() for text in texts], object)
        for name, texts in inputs.items()
    }
    fetches = {name: tensor.name for name, tensor in signature.outputs.items()}
    return session.run(fetches, feeds)


def _plain(array: np.ndarray) -> np.ndarray:
    """Strings as a fixed-width array: npz files take no objects without pickle."""
    return np.array(array.tolist(), np.bytes_) if array.dtype == object else array


if __name__ == "__main__":
    main(*sys.argv[1:])
