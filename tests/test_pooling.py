"""Pooling: the published formulas of sentence-transformers in torch, and what must not matter."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from parity import assert_same_outputs, hf_config, random_inputs, torch_model, torch_outputs

import kbert
from kbert.huggingface import encoder_config, load_weights
from kbert.pooling import POOLINGS, PairSimilarity, pooling_layer

torch = pytest.importorskip("torch")
BY_POOLING = pytest.mark.parametrize("pooling", POOLINGS)


def torch_pooled(states, mask, pooling: str):
    """As sentence_transformers.models.Pooling does it."""
    states, mask = torch.as_tensor(states), torch.as_tensor(mask)
    expanded = mask.unsqueeze(-1).expand(states.size()).float()
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(expanded == 0, float("-inf")).max(dim=1).values
    return (states * expanded).sum(1) / torch.clamp(expanded.sum(1), min=1e-9)


@BY_POOLING
def test_pooled_states_are_torchs(pooling: str) -> None:
    config = hf_config()
    reference = torch_model("BertModel", config)
    encoder = kbert.build_encoder(encoder_config(config.to_dict()))
    tensors = {name: value.numpy() for name, value in reference.state_dict().items()}
    load_weights(encoder, tensors, source="torch")
    inputs = random_inputs(31, num_segments=3)
    theirs = torch_pooled(
        torch_outputs(reference, inputs).last_hidden_state, inputs["padding_mask"], pooling
    )
    ours = pooling_layer(pooling)(
        encoder(inputs)["sequence_output"], padding_mask=inputs["padding_mask"]
    )
    assert_same_outputs(ours, theirs)
    assert_same_outputs(
        keras.layers.UnitNormalization()(ours), torch.nn.functional.normalize(theirs, dim=1)
    )


@pytest.mark.parametrize("pooling", POOLINGS)
@given(length=st.integers(1, 6), padding=st.integers(0, 5), seed=st.integers(0, 1000))
def test_padding_does_not_matter(pooling: str, length: int, padding: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(3, length + padding, 5)).astype("float32") - 3
    mask = np.tile(np.arange(length + padding) < length, (3, 1)).astype("int32")
    layer = pooling_layer(pooling)
    short = layer(states[:, :length], padding_mask=mask[:, :length])
    np.testing.assert_allclose(layer(states, padding_mask=mask), short, rtol=1e-6)


@BY_POOLING
def test_half_precision_is_pooled_in_float32(pooling: str) -> None:
    states = tf.cast(tf.fill((1, 300, 2), 1.0 / 3), "bfloat16")
    pooled = pooling_layer(pooling)(states, padding_mask=tf.ones((1, 300), tf.int32))
    assert pooled.dtype == tf.float32
    np.testing.assert_allclose(pooled, np.asarray(states, "float32")[:, 0], rtol=1e-6)


@BY_POOLING
def test_symbolic_shapes_are_real_ones(pooling: str) -> None:
    states = keras.Input((None, 7))
    mask = keras.Input((None,), dtype="int32")
    vectors = pooling_layer(pooling)(states, padding_mask=mask)
    assert vectors.shape == (None, 7)
    model = keras.Model([states, mask], PairSimilarity()(vectors))
    assert model.output.shape == (None, 1)
    assert model([np.ones((4, 3, 7)), np.ones((4, 3), "int32")]).shape == (2, 1)


def test_similarity_is_torchs_cosine() -> None:
    vectors = np.random.default_rng(0).normal(size=(10, 6)).astype("float32") * 7
    theirs = torch.nn.functional.cosine_similarity(
        torch.tensor(vectors[:5]), torch.tensor(vectors[5:])
    )
    assert_same_outputs(PairSimilarity()(vectors)[:, 0], theirs)


@BY_POOLING
def test_real_checkpoint(minilm: Path, pooling: str) -> None:
    transformers = pytest.importorskip("transformers")
    texts = ["A cat sat on the mat.", "", "Shares fell on Monday; nobody knows why they did so."]
    encoded = transformers.BertTokenizerFast.from_pretrained(minilm)(
        texts, padding=True, return_tensors="pt"
    )
    model = transformers.BertModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        states = model(**encoded).last_hidden_state
    theirs = torch_pooled(states, encoded["attention_mask"], pooling)
    encoder = kbert.load_encoder(minilm)
    mask = encoded["attention_mask"].numpy()
    inputs = {"token_ids": encoded["input_ids"].numpy(), "padding_mask": mask}
    ours = encoder({**inputs, "segment_ids": np.zeros_like(mask)})["sequence_output"]
    assert_same_outputs(pooling_layer(pooling)(ours, padding_mask=mask), theirs)
