"""A fine-tuned BERT for sequence classification, as the peers run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Infer = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Named ids, int64 (batch, length), to logits float32 (batch, classes)."""


def onnxruntime_model(checkpoint: Path, threads: int, file: str = "model.onnx") -> Infer:
    """By ONNX Runtime; the folder has the file, in float32 or as `in_int8` writes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(checkpoint / file), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(["logits"], inputs)[0]


def in_int8(checkpoint: Path) -> str:
    """Write products with weights in int8 beside the folder's model.onnx, as ONNX Runtime's
    documentation advises for Transformers: inputs are rounded by what each batch has. The file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file = "model-int8.onnx"
    quantize_dynamic(
        checkpoint / "model.onnx",
        checkpoint / file,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return file


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
