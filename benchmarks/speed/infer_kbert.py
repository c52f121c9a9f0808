"""Answers texts by an exported SavedModel, in rounds: `python infer_kbert.py SETTINGS`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from serve.startup import import_tensorflow_quietly  # noqa: E402

import_tensorflow_quietly()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_text  # noqa: E402, F401  the graph has its ops
from rounds import answer_in_rounds  # noqa: E402


def main() -> None:
    """Answer until nobody asks for more."""
    settings = json.loads(sys.argv[1])
    # TF Serving's --tensorflow_intra_op_parallelism=1, see docs/speed.md
    tf.config.threading.set_intra_op_parallelism_threads(1)
    answer_in_rounds(settings["file"], served(settings["saved_model"]))


def served(saved_model: str) -> Callable[[list[str]], np.ndarray]:
    """The signature as it is served: strings in, logits out, float32 (batch, classes)."""
    loaded = tf.saved_model.load(saved_model)
    serve = loaded.signatures["serving_default"]  # pyright: ignore
    return lambda texts: serve(text=tf.constant(texts))["logits"].numpy()


if __name__ == "__main__":
    main()
