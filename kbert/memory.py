"""Give back what a training leaves behind, so that twenty take the memory of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
from tensorflow.python.framework import ops


@contextlib.contextmanager
def released() -> Iterator[None]:
    """On leaving, forget the models of Keras' session and the graphs of functions traced inside.

    TensorFlow registers the gradient of each custom gradient that is traced, and never drops it
    (tensorflow/python/ops/custom_gradient.py, `_graph_mode_decorator`); it holds the graph around.
    Keras' optimizers trace one with every training step, in the all-reduce of the gradients. The
    registry is private: a test fails when it is no longer there or no longer needed.
    """
    gradients = ops.gradient_registry._registry
    before = set(gradients)
    try:
        yield
    finally:
        for name in set(gradients) - before:
            if name.startswith("CustomGradient-"):
                del gradients[name]
        keras.utils.clear_session()  # collects garbage too
