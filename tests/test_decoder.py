"""The decoder against torch's, and beam search against looking at every target there is."""

from __future__ import annotations

import itertools

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from parity import assert_same_outputs

from kbert.beam_search import BeamSearch
from kbert.config import EncoderConfig
from kbert.decoder import DecoderBlock, build_decoder, decoder_blocks, next_logits

START, END = 2, 3
CONFIG = EncoderConfig(
    vocabulary_size=6,
    hidden_dim=12,
    num_layers=2,
    num_heads=3,
    intermediate_dim=21,
    max_sequence_length=5,
)
SOURCE = (7, 4, 12)  # batch, length, hidden


def scattered(model: keras.Model, scale: float = 0.3) -> keras.Model:
    """The model with weights that are far from their first ones."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "seed" not in variable.path:
            variable.assign(variable + generator.normal(0, scale, variable.shape))
    return model


@pytest.fixture(scope="module")
def decoder() -> keras.Model:
    keras.utils.set_random_seed(0)
    return scattered(build_decoder(CONFIG))


@pytest.fixture(scope="module")
def states() -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).normal(size=SOURCE), tf.float32)


@pytest.fixture(scope="module")
def mask() -> tf.Tensor:
    return tf.sequence_mask([4, 1, 2, 4, 3, 3, 2], 4, tf.int32)


def search(beam_size: int, length_penalty: float, max_length: int = 5) -> BeamSearch:
    return BeamSearch(beam_size, length_penalty, START, END, max_length)


def full_logits(decoder, states, mask, targets: list[tuple[int, ...]]) -> np.ndarray:
    """Logits (targets, length, vocabulary) of targets of one length, for one source."""
    ids = tf.constant([(START, *target) for target in targets])
    rows = len(targets)
    inputs = {
        "target_ids": ids,
        "encoder_states": tf.repeat(states[tf.newaxis], rows, axis=0),
        "padding_mask": tf.repeat(mask[tf.newaxis], rows, axis=0),
    }
    return decoder(inputs, training=False).numpy().astype(np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def every_target(decoder, states, mask, max_length: int) -> dict[tuple[int, ...], float]:
    """Log-probability of each target that can end within max_length, for one source."""
    found = {}
    going_on = [token for token in range(CONFIG.vocabulary_size) if token != END]
    for length in range(max_length):
        targets = list(itertools.product(going_on, repeat=length))
        chances = log_softmax(full_logits(decoder, states, mask, targets))
        for target, chance in zip(targets, chances, strict=True):
            whole = (*target, END)
            found[whole] = sum(chance[place, token] for place, token in enumerate(whole))
    return found


def until_end(ids: np.ndarray) -> tuple[int, ...]:
    ids = ids.tolist()
    return tuple(ids[: ids.index(END) + 1]) if END in ids else (*ids, END)


def test_it_is_torchs_decoder(decoder, states, mask) -> None:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerDecoderLayer(
        12, 3, 21, 0.0, "gelu", 1e-12, batch_first=True, norm_first=True
    )
    norm = torch.nn.LayerNorm(12, 1e-12)
    theirs = torch.nn.TransformerDecoder(layer, 2, norm).eval()
    weights = {v.path.partition("/")[2] if v.path.startswith("decoder/") else v.path: v.numpy()
               for v in decoder.weights}  # fmt: skip
    for index, block in enumerate(theirs.layers):
        _give(block, weights, f"decoder_layer_{index}")
    _assign(theirs.norm, weights["decoder_layer_norm/gamma"], weights["decoder_layer_norm/beta"])
    ids = np.array([[2, 4, 5, 1], [2, 0, 3, 3], [2, 1, 1, 5]] * 2 + [[2, 5, 4, 4]])
    table = weights["target_embedding/embeddings"]
    hidden = table[ids] + weights["target_positions/embeddings"][:4]
    gamma, beta = (weights[f"target_layer_norm/{leaf}"] for leaf in ("gamma", "beta"))
    deviation = hidden.std(axis=-1, keepdims=True)
    hidden = (hidden - hidden.mean(axis=-1, keepdims=True)) / deviation * gamma + beta
    with torch.no_grad():
        out = theirs(
            torch.tensor(hidden, dtype=torch.float32),
            torch.tensor(states.numpy()),
            tgt_mask=torch.triu(torch.full((4, 4), -torch.inf), diagonal=1),
            memory_key_padding_mask=torch.tensor(mask.numpy() == 0),
        ).numpy()
    inputs = {"target_ids": tf.constant(ids), "encoder_states": states, "padding_mask": mask}
    assert_same_outputs(decoder(inputs, training=False), out @ table.T)


def _give(block, weights: dict[str, np.ndarray], name: str) -> None:
    """A block of torch the weights of ours."""
    import torch

    for theirs, ours in ((block.self_attn, "self_attention"), (block.multihead_attn,
                                                               "cross_attention")):  # fmt: skip
        parts = [f"{name}/{ours}/{part}" for part in ("query", "key", "value")]
        kernels = [weights[f"{part}/kernel"].reshape(12, 12).T for part in parts]
        biases = [weights[f"{part}/bias"].reshape(12) for part in parts]
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.tensor(np.concatenate(kernels)))
            theirs.in_proj_bias.copy_(torch.tensor(np.concatenate(biases)))
        output = f"{name}/{ours}/attention_output"
        kernel = weights[f"{output}/kernel"].reshape(12, 12).T
        _assign(theirs.out_proj, kernel, weights[f"{output}/bias"])
    for theirs, ours in ((block.linear1, "intermediate"), (block.linear2, "output")):
        dense = f"{name}/feedforward_{ours}_dense"
        _assign(theirs, weights[f"{dense}/kernel"].T, weights[f"{dense}/bias"])
    norms = ("self_attention", "cross_attention", "feedforward")
    for theirs, ours in zip((block.norm1, block.norm2, block.norm3), norms, strict=True):
        norm = f"{name}/{ours}_layer_norm"
        _assign(theirs, weights[f"{norm}/gamma"], weights[f"{norm}/beta"])


def _assign(module, weight: np.ndarray, bias: np.ndarray) -> None:
    import torch

    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        module.bias.copy_(torch.tensor(bias))


def test_a_block_is_the_one_of_keras_nlp(states, mask) -> None:
    hidden = tf.constant(np.random.default_rng(2).normal(size=(7, 5, 12)), tf.float32)
    options = {"normalize_first": True, "activation": "gelu", "layer_norm_epsilon": 1e-6}
    ours = DecoderBlock(21, 3, **options)
    theirs = keras_nlp.layers.TransformerDecoder(21, 3, **options)
    for block in (ours, theirs):
        block(hidden, states, encoder_padding_mask=mask)
    scattered(ours)
    by_name = {v.path.partition("/")[2]: v for v in ours.weights if "seed" not in v.path}
    for variable in theirs.weights:
        if "seed" not in variable.path:
            variable.assign(by_name.pop(variable.path.partition("/")[2]))
    assert not by_name
    assert_same_outputs(
        ours(hidden, states, encoder_padding_mask=mask),
        theirs(hidden, states, encoder_padding_mask=mask).numpy(),
    )


def test_steps_with_a_cache_give_the_logits_of_the_whole(decoder, states, mask) -> None:
    beams = np.random.default_rng(3).integers(0, 6, (7, 2, 4))
    blocks = decoder_blocks(decoder)
    caches = [block.new_self_cache(14) for block in blocks]
    cross_caches = [block.new_cross_cache(states) for block in blocks]
    last = tf.fill([7, 2], START)
    for step in range(5):
        logits, caches = next_logits(
            decoder, last, tf.constant(step), states, mask, caches, cross_caches
        )
        for row in range(7):
            begun = [tuple(beam[:step]) for beam in beams[row]]
            whole = full_logits(decoder, states[row], mask[row], begun)[:, -1]
            assert_same_outputs(logits[row], whole)
        last = tf.constant(beams[:, :, min(step, 3)], tf.int32)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_wide_search_finds_the_best_of_all(decoder, states, mask, penalty: float) -> None:
    ids, scores = tf.function(search(125, penalty, 4))(decoder, states, mask)
    for row in range(7):
        chances = every_target(decoder, states[row], mask[row], 4)
        by_score = {target: chance / len(target) ** penalty for target, chance in chances.items()}
        best = max(by_score, key=lambda target: by_score[target])
        assert until_end(ids[row].numpy()) == best
        assert scores[row].numpy() == pytest.approx(by_score[best], rel=1e-5)


def test_one_beam_is_greedy(decoder, states, mask) -> None:
    ids, scores = search(1, 1.0)(decoder, states, mask)
    lengths = set()
    for row in range(7):
        greedy: tuple[int, ...] = ()
        total, ends = 0.0, {}
        while len(greedy) < 5:
            chances = log_softmax(full_logits(decoder, states[row], mask[row], [greedy])[0, -1])
            whole = (*greedy, END)
            ends[whole] = (total + chances[END]) / len(whole)
            chances[END] = -np.inf
            greedy = (*greedy, int(chances.argmax()))
            total += chances.max()
        best = max(ends, key=lambda target: ends[target])
        assert until_end(ids[row].numpy()) == best
        assert scores[row].numpy() == pytest.approx(ends[best], rel=1e-5)
        lengths.add(len(best))
    assert len(lengths) > 1


def test_a_score_is_that_of_its_target(decoder, states, mask) -> None:
    ids, scores = search(2, 0.6)(decoder, states, mask)
    for row in range(7):
        found = until_end(ids[row].numpy())
        chances = log_softmax(full_logits(decoder, states[row], mask[row], [found[:-1]])[0])
        total = sum(chances[place, token] for place, token in enumerate(found))
        assert scores[row].numpy() == pytest.approx(total / len(found) ** 0.6, rel=1e-5)


def test_a_row_does_not_depend_on_its_batch(decoder, states, mask) -> None:
    run = tf.function(search(3, 0.6), reduce_retracing=True)
    ids, scores = run(decoder, states, mask)
    for row in range(7):
        length = int(mask[row].numpy().sum())  # nor on the padding
        alone = run(decoder, states[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_array_equal(alone[0][0], ids[row])
        np.testing.assert_allclose(alone[1][0], scores[row], rtol=1e-5)
    empty, none = run(decoder, states[:0], mask[:0])
    assert empty.shape == (0, 5) and none.shape == (0,)


def test_a_larger_penalty_makes_longer_targets(decoder, states, mask) -> None:
    lengths = []
    for penalty in (0.0, 1.0, 3.0):
        ids, _ = search(125, penalty)(decoder, states, mask)
        lengths.append(np.mean([len(until_end(row)) for row in ids.numpy()]))
    assert lengths[0] < lengths[1] < lengths[2]


def test_nothing_comes_from_behind(decoder, states, mask) -> None:
    ids = np.array([[2, 4, 5, 1]] * 7)
    changed = np.where(np.arange(4) < 2, ids, 0)
    inputs = {"encoder_states": states, "padding_mask": mask}
    logits = [decoder({"target_ids": tf.constant(part), **inputs}) for part in (ids, changed)]
    np.testing.assert_array_equal(logits[0][:, :2], logits[1][:, :2])
    assert np.abs(logits[0][:, 2:] - logits[1][:, 2:]).min() > 0


def test_computes_in_the_dtype_of_its_policy(states, mask) -> None:
    half = build_decoder(CONFIG, dtype="mixed_bfloat16")
    inputs = {"target_ids": tf.constant([[2, 4]] * 7), "padding_mask": mask}
    logits = half({**inputs, "encoder_states": tf.cast(states, tf.bfloat16)})
    assert logits.dtype == tf.float32
    assert {block.compute_dtype for block in decoder_blocks(half)} == {"bfloat16"}
