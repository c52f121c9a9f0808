"""Masked words: which are hidden, what is asked, what is answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kbert.config import parse
from kbert.evaluation import losses_by_output
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
    ids, texts = np.moveaxis(targets.numpy(), -1, 0)
    np.testing.assert_array_equal(ids[present], np.take_along_axis(whole, places, 1)[present])
    assert not np.isin(ids[present], [0, 2, 3]).any()
    assert (texts == np.arange(60)[:, np.newaxis]).all()
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
    assert served["sequence"][2].numpy().tolist() == [[b""] * 5] * 2
    # "##s" and "##ly" join the word before, specials are left out
    texts = [f"the {w.decode()} sat".replace(" ##", "") for w in words if w[:1] != b"["]
    kept = [text for text in served["sequence"][0, 0].numpy() if text.count(b" ") == 2]
    assert {text.decode() for text in kept} <= set(texts)
    first = served["token"][1, 1, 0].numpy().decode()
    expected = f"a [MASK] {first}".replace(" ##", "")
    assert served["sequence"][1, 1, 0].numpy().decode() == expected


LONG = ["the cats sat not ran . a dog ran", "bad", "", "good dog . " * 15, "cat " * 21]


def task_of(words: list[str], checkpoint: Path, *more: str) -> MaskedLM:
    config = parse([*words, "--task", "masked_lm", "--task.mask_rate", "0.5", *more])
    return MaskedLM(config, tokenizer_from_files(checkpoint), Learned())


def batch_of(task: MaskedLM, texts: list[str], seed: tuple[int, int] = (1, 2)):
    segments = task.encode([tf.constant(texts)])
    return task.batch(Rows(segments, tf.zeros([len(texts)], tf.int32), []), tf.constant(seed))


def test_whole_words_are_an_option(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    for option, together in (("true", True), ("false", False)):
        task = task_of(tiny_options, tiny_checkpoint, "--task.whole_words", option)
        inputs, _, weights = batch_of(task, ["the dogs"] * 100)  # [CLS] the dog ##s [SEP]
        places = [set(row[kept > 0]) for row, kept in zip(inputs["mask_positions"].numpy(),
                                                         weights.numpy(), strict=True)]  # fmt: skip
        assert all((2 in row) == (3 in row) for row in places) == together


def test_long_texts_are_windows(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    task = task_of(tiny_options, tiny_checkpoint)
    inputs, targets, weights = batch_of(task, LONG)
    # 10 pieces a row beside [CLS] and [SEP]: 10, 1, 0, 45, 21 of them
    texts = targets[:, 0, 1].numpy().tolist()
    assert texts == [0, 1, 2, 3, 3, 3, 3, 3, 4, 4, 4]
    restored = inputs["token_ids"].numpy().copy()
    places, kept = inputs["mask_positions"].numpy(), weights.numpy() > 0
    for row, (ids, at, here) in enumerate(zip(targets.numpy()[..., 0], places, kept, strict=True)):
        restored[row, at[here]] = ids[here]
    found = [[] for _ in LONG]
    for text, ids in zip(texts, restored, strict=True):
        assert ids[0] == 2
        found[text] += ids[1 : ids.tolist().index(3)].tolist()
    assert found == task.encode([tf.constant(LONG)])[0].to_list()


@pytest.mark.parametrize("next_sentence", ["false", "true"])
def test_sizes_are_those_of_the_windows(
    tiny_options: list[str], tiny_checkpoint: Path, next_sentence: str
) -> None:
    task = task_of(tiny_options, tiny_checkpoint, "--task.next_sentence", next_sentence)
    sizes = task.packer.sizes([task.encode([tf.constant(LONG)])[0].row_lengths().numpy()])
    inputs, targets, _ = batch_of(task, LONG)
    if next_sentence == "true":  # whose lengths are drawn
        texts = targets["masked_lm"][:, 0, 1].numpy()
    else:
        texts, held = targets[:, 0, 1].numpy(), inputs["padding_mask"].numpy().sum(axis=1)
        for row in range(len(LONG)):
            assert sizes.tokens[row] == held[texts == row].sum()
            assert sizes.longest[row] == held[texts == row].max()
    assert sizes.rows.tolist() == np.bincount(texts).tolist()
    assert sizes.is_whole.all()


@pytest.mark.parametrize("next_sentence", ["false", "true"])
def test_outputs_are_sums_of_each_text(
    tiny_options: list[str], tiny_checkpoint: Path, next_sentence: str
) -> None:
    words = ["--task.next_sentence", next_sentence]
    task = task_of(tiny_options, tiny_checkpoint, *words)
    config = parse([*tiny_options, "--task", "masked_lm", *words])
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    inputs, targets, weights = batch_of(task, LONG)
    predicted = model(inputs)
    outputs = {name: t.numpy() for name, t in task.outputs(predicted, targets, weights).items()}
    assert {values.shape for values in outputs.values()} == {(5,)}
    pairs = next_sentence == "true"
    masked = {"targets": targets, "weights": weights, "logits": predicted}
    if pairs:
        masked = {name: values["masked_lm"] for name, values in masked.items()}
    for text in range(5):
        rows = masked["targets"].numpy()[:, 0, 1] == text
        here = masked["weights"].numpy()[rows] > 0
        ids = masked["targets"].numpy()[rows][here][:, 0]
        logits = masked["logits"].numpy()[rows][here].astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss = -np.take_along_axis(logs, ids[:, np.newaxis], 1).sum()
        assert outputs["loss"][text] == pytest.approx(loss, abs=1e-4)
        assert outputs["hits"][text] == (logits.argmax(-1) == ids).sum()
        assert outputs["pieces"][text] == len(ids)
    if pairs:
        # the texts of one piece, or none, and the last window of the last text are no pairs
        assert outputs["next_sentence_pairs"].tolist() == [1, 0, 0, 5, 3]
        labels, kept = targets["next_sentence"].numpy(), weights["next_sentence"].numpy() > 0
        hits = predicted["next_sentence"].numpy().argmax(-1)[kept] == labels[kept]
        assert outputs["next_sentence_hits"].sum() == hits.sum()
    figures = task.score(outputs, Gold(None, lambda columns: {}))
    assert ("next_sentence_accuracy" in figures) == ("next_sentence_loss" in figures) == pairs
    assert figures["rows"] == 5
    losses = losses_by_output(task.loss(), targets, predicted, weights)
    names = ("loss", "next_sentence_loss")[: len(losses)]
    np.testing.assert_allclose([figures[name] for name in names], losses, rtol=1e-5)


def test_pairs_have_two_segments(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    task = task_of(tiny_options, tiny_checkpoint, "--task.next_sentence", "true")
    inputs, targets, weights = batch_of(task, ["the cat sat . a dog ran", "good dog . bad"] * 20)
    ids, segments = inputs["token_ids"].numpy(), inputs["segment_ids"].numpy()
    assert ((ids == 3).sum(1) >= 2).all()  # a piece drawn by chance may be a third one
    labels = targets["next_sentence"].numpy()
    assert 5 < labels.sum() < 35
    assert weights["next_sentence"].numpy().all()
    lengths = segments.sum(1)  # the second part and its [SEP]
    own = np.tile([4, 2], 20)
    assert (lengths[labels == 0] == own[labels == 0]).all()
    assert set(lengths[labels == 1]) <= {2, 4}


@pytest.mark.parametrize("next_sentence", ["false", "true"])
def test_every_trained_weight_has_a_gradient(
    tiny_options: list[str], tiny_checkpoint: Path, next_sentence: str
) -> None:
    words = ["--task.next_sentence", next_sentence]
    task = task_of(tiny_options, tiny_checkpoint, *words)
    config = parse([*tiny_options, "--task", "masked_lm", *words])
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    inputs, targets, weights = batch_of(task, ["the cat sat .", "a good dog ran"] * 8)
    with tf.GradientTape() as tape:
        loss = sum(losses_by_output(task.loss(), targets, model(inputs), weights))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    pooler = any("pooler" in v.path for v in model.trainable_variables)
    assert pooler == (next_sentence == "true")


def test_requests_without_a_mask_are_named(task: MaskedLM) -> None:
    assert task.check_request({"text": ["a [MASK]", "[MASK]"]}) is None
    row, problem = task.check_request({"text": ["a [MASK]", "a cat", "dog"]})
    assert (row, problem[:25]) == (1, "no [MASK] in the text; wr")
    row, problem = task.check_request({"text": ["a [MASK]", "the cat " * 9 + "[MASK]"]})
    assert (row, problem[:43]) == (1, "no [MASK] within the first 12 word pieces (")


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
