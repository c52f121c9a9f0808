"""Load a SavedModel as TF Serving does and answer texts: run in a fresh process, by its path.

    python session_check.py SAVED_MODEL INPUTS.json OUTPUTS.npz

Needs TensorFlow and TF Text alone, of any version from 2.12, and nothing of kbert.
INPUTS.json is {"input name": ["text", ...]}; OUTPUTS.npz gets the outputs by their names.
"""

import json
import sys

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers its ops)


def main(saved_model: str, inputs_file: str, outputs_file: str) -> None:
    with open(inputs_file, encoding="utf-8") as file:
        inputs = json.load(file)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], saved_model)
        signature = meta_graph.signature_def["serving_default"]
        feeds = {
            signature.inputs[name].name: np.array([text.encode() for text in texts], object)
            for name, texts in inputs.items()
        }
        fetches = {name: tensor.name for name, tensor in signature.outputs.items()}
        outputs = session.run(fetches, feeds)
    np.savez(outputs_file, **{name: _plain(array) for name, array in outputs.items()})


def _plain(array: np.ndarray) -> np.ndarray:
    """Strings as a fixed-width array: npz files take no objects without pickle."""
    return np.array(array.tolist(), np.bytes_) if array.dtype == object else array


if __name__ == "__main__":
    main(*sys.argv[1:])
