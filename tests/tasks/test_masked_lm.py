"""Masked words: which are hidden, what is asked, what is answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kbert.config import parse
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks.masked_lm import MaskedLM, positions_of
from kbert.tasks.task import Gold, Learned, Rows
from kbert.training import new_model

MASKS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), max_size=5).map(
        lambda rows: np.array(rows, bool).reshape(-1, width)
    )
)


@given(MASKS)
def test_positions_are_those_of_the_mask(mask: np.ndarray) -> None:
    positions, weights = positions_of(tf.constant(mask))
    assert positions.shape == weights.shape
    assert positions.shape[1] >= 1
    for row, places, present in zip(mask, positions.numpy(), weights.numpy(), strict=True):
        assert places[present > 0].tolist() == np.flatnonzero(row).tolist()
        assert not places[present == 0].any()


@pytest.fixture
def task(tiny_options: list[str], tiny_checkpoint: Path) -> MaskedLM:
    config = parse([*tiny_options, "--task", "masked_lm", "--task.mask_rate", "0.5"])
    return MaskedLM(config, tokenizer_from_files(tiny_checkpoint), Learned())


def test_targets_are_the_hidden_pieces(task: MaskedLM) -> None:
    texts = ["the cats sat not ran", "a good dog ran .", "bad"] * 20
    segments = task.encode([tf.constant(texts)])
    whole = task.packer(segments)["token_ids"].numpy()
    inputs, targets, weights = task.batch(
        Rows(segments, tf.zeros(60, tf.int32), []), tf.constant([3, 4])
    )
    places = inputs["mask_positions"].numpy()
    present = weights.numpy() > 0
    np.testing.assert_array_equal(
        targets.numpy()[present], np.take_along_axis(whole, places, 1)[present]
    )
    assert not np.isin(targets.numpy()[present], [0, 2, 3]).any()
    hidden = np.take_along_axis(inputs["token_ids"].numpy(), places, 1)[present]
    assert 0.6 < (hidden == 4).mean() < 0.95  # 80% become [MASK]
    changed = inputs["token_ids"].numpy() != whole
    assert changed.sum() <= present.sum()
    again, _, _ = task.batch(Rows(segments, tf.zeros(60, tf.int32), []), tf.constant([3, 4]))
    other, _, _ = task.batch(Rows(segments, tf.zeros(60, tf.int32), []), tf.constant([3, 5]))
    np.testing.assert_array_equal(inputs["token_ids"], again["token_ids"])
    assert not np.array_equal(inputs["token_ids"], other["token_ids"])


def test_served_answers_are_the_largest_probabilities(
    task: MaskedLM, tiny_options: list[str], tiny_checkpoint: Path
) -> None:
    config = parse([*tiny_options, "--task", "masked_lm"])
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    served = task.signatures(model)["serving_default"].function(
        tf.constant(["the [MASK] sat", "a [MASK] [MASK]", "cat"])
    )
    assert served["token"].shape == (3, 2, 5)
    inputs = task.packer(task.encode([tf.constant(["the [MASK] sat"])]))
    logits = model({**inputs, "mask_positions": tf.constant([[2]])})[0, 0]
    order = np.argsort(-logits.numpy())[:5]
    assert served["token_id"][0, 0].numpy().tolist() == order.tolist()
    words = [task.tokenizer.vocabulary[index].encode() for index in order]
    assert served["token"][0, 0].numpy().tolist() == words
    np.testing.assert_allclose(
        served["score"][0, 0], tf.nn.softmax(logits).numpy()[order], atol=1e-6
    )
    assert served["token"][2].numpy().tolist() == [[b""] * 5] * 2


def test_every_trained_weight_has_a_gradient(
    task: MaskedLM, tiny_options: list[str], tiny_checkpoint: Path
) -> None:
    config = parse([*tiny_options, "--task", "masked_lm"])
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    segments = task.encode([tf.constant(["the cat sat .", "a good dog ran"] * 8)])
    inputs, targets, weights = task.batch(
        Rows(segments, tf.zeros([16], tf.int32), []), tf.constant([1, 2])
    )
    with tf.GradientTape() as tape:
        loss = task.loss()(targets, model(inputs), sample_weight=weights)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    assert not any("pooler" in v.path for v in model.trainable_variables)


def test_score_is_a_mean_over_pieces(task: MaskedLM) -> None:
    outputs = {
        "loss": np.array([6.0, 1.0, 0.0], np.float32),
        "hits": np.array([1.0, 1.0, 0.0], np.float32),
        "pieces": np.array([3.0, 1.0, 0.0], np.float32),
    }
    metrics = task.score(outputs, Gold(None, lambda columns: {}))
    assert metrics["loss"] == pytest.approx(7 / 4)
    assert metrics["perplexity"] == pytest.approx(np.exp(7 / 4))
    assert metrics["accuracy"] == pytest.approx(0.5)


def test_requests_have_a_mask(task: MaskedLM) -> None:
    columns = [["the cat", "好" * 50], ["sat", ""]]
    assert task.requests(columns) == {"text": ["[MASK] the cat sat", f"[MASK] {'好' * 50} "]}
