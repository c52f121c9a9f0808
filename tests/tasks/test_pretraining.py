"""Pre-training by train.py: from scratch with a learnt vocabulary, and as the start of a task."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import train
from kbert.loading import load_encoder
from kbert.tokenizer_files import read_vocabulary
from serve.client import predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer

LINES = [
    "The cats sat on the mat. The dogs ran after them!",
    "今天天气很好。我们去公园散步，看见很多猫！",
    "a good cat, a bad dog",
    "猫和狗都很好",
] * 20


def run(options: dict[str, object]) -> int:
    return train.main([str(word) for pair in options.items() for word in pair] + ["--smoke"])


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def test_from_scratch(lines: Path, tmp_path: Path) -> None:
    options = {
        "--task": "masked_lm",
        "--task.next_sentence": "true",
        "--data.train": lines,
        "--data.max_length": 16,
        "--data.cache_dir": tmp_path / "cache",
        "--model.vocab_size": 150,
        "--model.hidden_dim": 8,
        "--model.num_layers": 1,
        "--export.huggingface": "true",
        "--output": tmp_path / "words",
    }
    assert run(options) == 0
    metrics = json.loads((tmp_path / "words" / "metrics.json").read_text())
    figures = metrics["test"]
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))
    assert 0 <= figures["next_sentence_accuracy"] <= 1
    assert figures["next_sentence_loss"] > 0
    vocabulary = read_vocabulary(tmp_path / "words" / "huggingface" / "vocab.txt")
    assert len(vocabulary) <= 150
    assert {"[MASK]", "猫", "，", "cat", "##s", "the"} < set(vocabulary)
    config = json.loads((tmp_path / "words" / "huggingface" / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    assert config["vocab_size"] == len(vocabulary)
    base = (tmp_path / "words" / "export" / "words").resolve()
    with LocalServer([ModelConfig("words", base)]) as server:
        url = f"http://{server.rest_address}/v1/models/words"
        answers = predict_rest(url, {"text": ["the [MASK] sat", "我们去[MASK]园[MASK]步", "no"]})
    assert answers["sequence"].shape == answers["score"].shape == (3, 2, 5)
    assert (answers["token_id"][:, 0] >= 0).all(axis=1).tolist() == [True, True, False]
    assert answers["sequence"][1, 0, 0].endswith("园[MASK]步")


def test_a_classification_starts_from_it(
    lines: Path, tiny_checkpoint: Path, tiny_csv: Path, tmp_path: Path, caplog
) -> None:
    common = {"--data.max_length": 12, "--data.cache_dir": tmp_path / "cache"}
    words = {
        "--task": "masked_lm",
        "--data.train": lines,
        "--model.checkpoint": tiny_checkpoint,
        "--train.learning_rate": 1e-2,
        "--export.huggingface": "true",
        "--export.enabled": "false",
        "--output": tmp_path / "pre",
        **common,
    }
    with caplog.at_level(logging.WARNING, "kbert.loading"):
        assert run(words) == 0
    assert "masked_lm_head" in caplog.text  # that the checkpoint has no head, and it is new
    pretrained = tmp_path / "pre" / "huggingface"
    trained = safetensors.numpy.load_file(tmp_path / "pre" / "checkpoints" / "model.safetensors")
    before = {v.path: v.numpy() for v in load_encoder(tiny_checkpoint).weights}
    after = {v.path: v.numpy() for v in load_encoder(pretrained).weights if "pooler" not in v.path}
    moved = [not np.array_equal(before[path], values) for path, values in after.items()]
    assert sum(moved) > len(moved) / 2
    for path, values in after.items():
        np.testing.assert_array_equal(values, trained[path])
    classes = {
        "--data.train": tiny_csv,
        "--model.checkpoint": pretrained,
        "--train.learning_rate": 1e-9,
        "--export.enabled": "false",
        "--output": tmp_path / "moods",
        **common,
    }
    assert run(classes) == 0
    started = safetensors.numpy.load_file(tmp_path / "moods" / "checkpoints" / "model.safetensors")
    for path, values in after.items():
        np.testing.assert_allclose(values, started[path], atol=1e-6)
