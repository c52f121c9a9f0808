"""A fine-tuned BERT for sequence classification, as the peers run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Infer = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Named ids, int64 (batch, length), to logits float32 (batch, classes)."""


def onnxruntime_model(checkpoint: Path, threads: int) -> Infer:
    """By ONNX Runtime in float32; the folder has a model.onnx."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(checkpoint / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(["logits"], inputs)[0]


def torch_model(checkpoint: Path, threads: int, precision: str = "float32") -> Infer:
    """By torch; the folder is in HuggingFace layout.

    Args:
        checkpoint: The folder.
        threads: As many as torch uses.
        precision: Name of torch's type of weights and of all that is computed.
    """
    import torch
    from transformers import BertForSequenceClassification

    torch.set_num_threads(threads)
    model = BertForSequenceClassification.from_pretrained(
        checkpoint, torch_dtype=getattr(torch, precision)
    ).eval()

    def infer(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(ids) for name, ids in inputs.items()}
            return model(**tensors)[0].float().numpy()

    return infer
