"""Integrated gradients against the integral, words against the texts, attention by its tokens."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import assert_same_outputs, random_inputs

from kbert.attribution import attentions, explain, integrated_gradients, logits_of_embeddings
from kbert.config import EncoderConfig, parse
from kbert.encoder import PositionEmbedding, TokenEmbedding, attention_encoder, build_encoder
from kbert.heads import sequence_classifier
from kbert.preprocessing import WordPieceTokenizer, tokenizer_from_files
from kbert.tasks.classification import Classification
from kbert.tasks.task import Learned, Rows

CONFIG = EncoderConfig(31, 20, 3, 4, 37, 13, 3, dropout=0.1)
SMALL = EncoderConfig(24, 12, 2, 3, 21, 33)
INPUTS = random_inputs(31, num_segments=3)  # (5, 11)
CLASSES = np.array([0, 1, 2, 0, 1])
BASELINE = np.where(np.arange(11) % 4, 0, INPUTS["token_ids"])
LABELS = ("no", "yes", "好")
# Scripts of all kinds: Korean falls into its letters, accents are taken off and put into order,
# "[MASK]" is one piece, and "dogsly" three.
STRANGE = (
    *(
        "dogsly",
        "Good",
        "cats.",
        "好人",
        "한국어",
        "안녕",
        "é",
        "e\u0301\u0323",
        "\ufb01",
        "\u0323",
    ),
    *(
        "\ufb01",
        "\u0323",
        "\u1e9b\u0323",
        "👩\u200d👧",
        "ไทย",
        "हिन्दी",
        "[MASK]",
        "[SEP]",
        "x" * 101,
    ),
    *(" ", "\u3000", "\0", "\u00ad", "\n"),
)
TEXTS = st.text() | st.lists(st.sampled_from(STRANGE)).map("".join)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return with_far_weights(sequence_classifier(build_encoder(CONFIG), CONFIG, num_labels=3))


@pytest.fixture(scope="module")
def make(tiny_checkpoint):
    def make_task(columns: int = 1, *, max_length: int = 12, vocabulary=None) -> Classification:
        names = ["abcde"[index] for index in range(columns)]
        words = ["--data.train", "none.csv", "--model.checkpoint", "none", "--output", "none"]
        words += [
            "--data.max_length",
            str(max_length),
            "--data.text_column",
            f"[{', '.join(names)}]",
        ]
        tokenizer = tokenizer_from_files(tiny_checkpoint)
        if vocabulary:
            tokenizer = WordPieceTokenizer(vocabulary)
        return Classification(parse(words), tokenizer, Learned(LABELS, np.ones(3, int)))

    return make_task


@pytest.fixture(scope="module")
def small_model() -> keras.Model:
    """For the vocabulary of the tiny checkpoint, and for that with Korean letters."""
    return with_far_weights(sequence_classifier(build_encoder(SMALL), SMALL, num_labels=3))


@pytest.fixture(scope="module")
def linear() -> keras.Model:
    return linear_model(SMALL)


def with_far_weights(model: keras.Model) -> keras.Model:
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "seed" not in variable.path:
            variable.assign(variable + generator.normal(0, 0.3, variable.shape))
    return model


def linear_model(config: EncoderConfig) -> keras.Model:
    """A classifier of the mean of the embeddings, with the layers' names of an encoder."""
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "segment_ids", "padding_mask")
    }
    width = config.hidden_dim
    tokens = TokenEmbedding(config.vocabulary_size, width, name="token_embedding")
    embedded = tokens(inputs["token_ids"])
    positions = PositionEmbedding(config.max_sequence_length, name="position_embedding")(embedded)
    segments = keras.layers.Embedding(config.num_segments, width, name="segment_embedding")
    parts = [embedded, positions, segments(inputs["segment_ids"])]
    hidden = keras.layers.Add(name="embeddings_add")(parts)
    hidden = keras.layers.Activation("linear", name="embeddings_layer_norm")(hidden)
    pooled = keras.layers.GlobalAveragePooling1D(name="pooler")(hidden)
    encoder = keras.Model(inputs, {"pooled_output": pooled}, name="encoder")
    return with_far_weights(sequence_classifier(encoder, config, num_labels=3))


def logits_beyond(model, inputs, baseline_ids, classes) -> np.ndarray:
    """logit(text) - logit(baseline) of the classes, (batch,)."""
    with_baseline = {**inputs, "token_ids": baseline_ids}
    logits = [np.asarray(model(given, training=False)) for given in (inputs, with_baseline)]
    return (logits[0] - logits[1])[np.arange(len(classes)), classes]


# The integral


def test_logits_of_embeddings(model):
    before = model.get_config()
    embeddings = model.get_layer("encoder").get_layer("token_embedding")(INPUTS["token_ids"])
    logits = logits_of_embeddings(model, embeddings, INPUTS["segment_ids"], INPUTS["padding_mask"])
    assert_same_outputs(logits, model(INPUTS), tolerance=1e-6)
    assert model.get_config() == before


def test_scores_sum_to_the_difference_of_logits(model):
    wanted = logits_beyond(model, INPUTS, BASELINE, CLASSES)
    errors = []
    for steps in (2, 4, 8, 16, 64):
        scores = integrated_gradients(model, INPUTS, CLASSES, baseline_ids=BASELINE, steps=steps)
        errors.append(np.abs(scores.sum(axis=1) - wanted).max())
    assert np.abs(wanted).max() > 0.4
    assert errors == sorted(errors, reverse=True), errors
    assert errors[-2] < 1e-2 and errors[-1] < 1e-3, errors


def test_scores_are_those_of_a_plain_loop(model):
    """The mean of gradients at the middles of many steps, one row and one step at a time."""
    scores = integrated_gradients(model, INPUTS, CLASSES, baseline_ids=BASELINE, steps=64)
    embed = model.get_layer("encoder").get_layer("token_embedding")
    for row in (1, 3):
        ids, segments, mask = (array[row : row + 1] for array in INPUTS.values())
        text, baseline = embed(ids), embed(BASELINE[row : row + 1])
        total = np.zeros(text.shape)
        for step in range(40):
            point = tf.Variable(baseline + (step + 0.5) / 40 * (text - baseline))
            with tf.GradientTape() as tape:
                logits = logits_of_embeddings(model, tf.identity(point), segments, mask)
                logit = logits[0, CLASSES[row]]
            total += np.asarray(tape.gradient(logit, point)) / 40
        expected = (total * np.asarray(text - baseline)).sum(axis=-1)[0]
        np.testing.assert_allclose(scores[row], expected, atol=1e-3)
        assert np.abs(expected).max() > 0.1


def test_many_pieces_are_split_into_calls(model, monkeypatch):
    whole = integrated_gradients(model, INPUTS, CLASSES, baseline_ids=BASELINE, steps=7)
    monkeypatch.setattr("kbert.attribution.PIECES_A_CALL", 30)
    parts = integrated_gradients(model, INPUTS, CLASSES, baseline_ids=BASELINE, steps=7)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_padding_and_what_is_in_the_baseline_have_no_score(model):
    scores = integrated_gradients(model, INPUTS, CLASSES, baseline_ids=BASELINE)
    is_nothing = (INPUTS["padding_mask"] == 0) | (INPUTS["token_ids"] == BASELINE)
    assert (scores[is_nothing] == 0).all()
    assert (scores[~is_nothing] != 0).all()


def test_of_a_linear_model_they_are_its_terms():
    """One step is exact: a piece has its share of the mean of the embeddings."""
    model = linear_model(CONFIG)
    scores = integrated_gradients(model, INPUTS, CLASSES, baseline_ids=BASELINE, steps=1)
    table = np.asarray(model.get_layer("encoder").get_layer("token_embedding").embeddings)
    kernel = np.asarray(model.get_layer("classifier").kernel)
    difference = table[INPUTS["token_ids"]] - table[BASELINE]
    mask = INPUTS["padding_mask"]
    shares = mask / mask.sum(axis=1, keepdims=True)
    terms = np.einsum("blh,hb->bl", difference, kernel[:, CLASSES]) * shares
    np.testing.assert_allclose(scores, terms, atol=1e-5)
    assert np.abs(terms).max() > 0.1


def test_in_mixed_precision():
    model = sequence_classifier(
        build_encoder(CONFIG, dtype="mixed_bfloat16"), CONFIG, num_labels=3, dtype="mixed_bfloat16"
    )
    exact = sequence_classifier(build_encoder(CONFIG), CONFIG, num_labels=3)
    with_far_weights(exact)
    for ours, theirs in zip(model.weights, exact.weights, strict=True):
        ours.assign(theirs)
    scores, expected = (
        integrated_gradients(each, INPUTS, CLASSES, baseline_ids=BASELINE)
        for each in (model, exact)
    )
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.9


# Words


def test_words_by_hand(make, small_model):
    task = make(max_length=8)
    text = "The  Cätsly, (not) dogs."
    ((parts,),) = explain(small_model, task, [(text,)], [1])
    # [CLS] the cat ##s ##ly , ( [SEP]
    assert [part for part, _ in parts] == ["The", "  ", "Cätsly", ",", " ", "(", "not) dogs."]
    assert [score == 0 for _, score in parts] == [False, True, False, False, True, False, True]
    inputs, _, _ = task.batch(
        Rows(task.encode([tf.constant([text])]), tf.constant([0]), []), tf.zeros(2)
    )
    baseline = np.array([[2, 0, 0, 0, 0, 0, 0, 3]])
    scores = integrated_gradients(small_model, inputs, [1], baseline_ids=baseline)[0]
    expected = [scores[1], 0, scores[2:5].sum(), scores[5], 0, scores[6], 0]
    np.testing.assert_allclose([score for _, score in parts], expected, atol=5.1e-5)
    assert scores[0] == scores[7] == 0


def test_columns_beyond_the_second(make, small_model):
    rows = [("the cat", "dog", "good dogs"), ("", "", "not  a"), ("a", "", "")]
    first, second, third = explain(small_model, make(3), rows, [0, 1, 2])
    assert [[part for part, _ in column] for column in first] == [
        ["the", " ", "cat"], ["dog"], ["good", " ", "dogs"],
    ]  # fmt: skip
    assert [[part for part, _ in column] for column in second] == [[], [], ["not", "  ", "a"]]
    assert [[part for part, _ in column] for column in third] == [["a"], [], []]


def test_the_longer_text_is_cut(make, small_model):
    rows = [("good " * 9, "bad bad"), ("bad", "good " * 9), ("dog " * 9, "cat " * 9)]
    counts = [
        [sum(score != 0 for _, score in column) for column in columns]
        for columns in explain(small_model, make(2), rows, [0, 0, 0])
    ]
    assert counts == [[7, 2], [1, 8], [4, 5]]  # nine pieces and three special ones


def test_a_syllable_that_is_cut_into_letters_is_one_word(make, small_model, vocabulary):
    letters = ["\u1112", "##\u1161", "##\u11ab", "\u1161"]
    task = make(vocabulary=[*vocabulary, *letters])
    ((parts,),) = explain(small_model, task, [("한 cat",)], [0])
    assert [part for part, _ in parts] == ["한", " ", "cat"]


@settings(max_examples=30)
@given(
    rows=st.integers(1, 3).flatmap(
        lambda columns: st.lists(st.tuples(*columns * [TEXTS]), min_size=1, max_size=3)
    ),
    max_length=st.integers(4, 12),
)
def test_parts_are_the_text_and_sum_to_the_logit(make, vocabulary, linear, rows, max_length):
    letters = ["\u1112", "##\u1161", "##\u11ab", "##\u0323", "\u0323"]
    task = make(len(rows[0]), max_length=max_length, vocabulary=[*vocabulary, *letters])
    classes = [index % 3 for index in range(len(rows))]
    explained = explain(linear, task, rows, classes, steps=1)
    joined = [tuple("".join(part for part, _ in column) for column in row) for row in explained]
    assert joined == rows

    encoded = task.encode([tf.constant(list(column)) for column in zip(*rows, strict=True)])
    inputs, _, _ = task.batch(Rows(encoded, tf.zeros(len(rows), tf.int32), []), tf.constant([0, 0]))
    arrays = [inputs[name].numpy() for name in ("token_ids", "segment_ids", "padding_mask")]
    for row, (ids, segments, mask) in enumerate(zip(*arrays, strict=True)):
        count = mask.sum()
        first_end = count - segments.sum() - 1
        baseline = np.zeros(count, int)
        baseline[[0, first_end, count - 1]] = ids[[0, first_end, count - 1]]
        unpadded = {name: array[row : row + 1, :count].numpy() for name, array in inputs.items()}
        (difference,) = logits_beyond(linear, unpadded, baseline[None], [classes[row]])
        scores = [score for column in explained[row] for _, score in column]
        assert sum(scores) == pytest.approx(difference, abs=6e-5 * (1 + len(scores)))
        assert scores == [round(score, 4) for score in scores]


def test_nothing_to_explain(make, small_model):
    assert explain(small_model, make(), [], []) == []
    assert explain(small_model, make(), [("",)], [0]) == [[[]]]
    assert explain(small_model, make(), [(" \n",)], [0]) == [[[(" \n", 0.0)]]]


# Attention


def test_attentions(make, small_model):
    task = make(3)
    tokens, layers = attentions(small_model, task, ("the Dogs", "好", "xyz ."))
    assert tokens == ["[CLS]", "the", "dog", "##s", "[SEP]", "好", "[UNK]", ".", "[SEP]"]
    assert [(layer.shape, layer.dtype) for layer in layers] == [((3, 9, 9), np.float32)] * 2
    inputs = {
        "token_ids": np.array([[2, 5, 7, 12, 3, 17, 1, 16, 3]]),
        "segment_ids": np.array([[0, 0, 0, 0, 0, 1, 1, 1, 1]]),
        "padding_mask": np.ones((1, 9), int),
    }
    scores = attention_encoder(small_model.get_layer("encoder"))(inputs)["attention_scores"]
    assert_same_outputs([layer[np.newaxis] for layer in layers], scores, tolerance=1e-6)
    for layer in layers:
        np.testing.assert_allclose(layer.sum(axis=-1), 1, atol=1e-6)
