"""The heads and their losses against transformers: logits, losses, gradients, names, types."""

from __future__ import annotations

import copy
import json
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from parity import (
    GRADIENT_TOLERANCE,
    HEADS,
    arrays,
    assert_round_trip,
    assert_same_outputs,
    largest_gradient_difference,
    our_gradients,
    our_head,
    random_inputs,
    tf_model,
    tf_outputs,
    torch_gradients,
    torch_loss,
    torch_model,
)

import kbert
from kbert import heads, huggingface, losses
from kbert.checkpoint_files import open_tensors, write_safetensors
from kbert.config import EncoderConfig
from kbert.encoder import build_encoder
from kbert.errors import InputError
from kbert.huggingface import load_weights, named_tensors

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

CONFIG = EncoderConfig(31, 20, 1, 4, 37, 13, 3, dropout=0.1)
INPUTS = random_inputs(31, num_segments=3)  # (5, 11)
MASK_POSITIONS = np.array([[3, 1], [0, 0], [2, 10], [5, 0], [7, 7]], "int32")
BY_NAME = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
# One of each of HuggingFace's classes.
BY_KIND = pytest.mark.parametrize(
    "head", {head.kind: head for head in HEADS}.values(), ids=lambda head: head.kind
)


def new_model(name: str, config: EncoderConfig = CONFIG, dtype: str = "float32") -> keras.Model:
    encoder = build_encoder(config, dtype=dtype)
    return heads.build_model(encoder, config, head=name, num_labels=5, dtype=dtype)


def inputs_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {name: {**INPUTS, "mask_positions": MASK_POSITIONS}[name] for name in model.input}


@BY_NAME
def test_loss_and_gradients_are_torchs(head):
    # Without dropout training is a function of its inputs.
    config = head.config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    reference = torch_model(head.kind, config)
    model = our_head(head, config)
    assert load_weights(model, arrays(reference), source="torch").unexpected == ()
    labels = head.labels(INPUTS, 31)
    logits = head.our_logits(model, INPUTS, training=True)
    theirs = torch_loss(reference, INPUTS, labels)
    loss, *their_logits = theirs.values()
    assert_same_outputs(logits, their_logits)
    assert_same_outputs(head.our_loss(logits, labels), loss)
    ours = our_gradients(
        model, lambda: head.our_loss(head.our_logits(model, INPUTS, training=True), labels)
    )
    exact = torch_gradients(copy.deepcopy(reference).double(), INPUTS, labels)
    for wanted in (torch_gradients(reference, INPUTS, labels), exact):
        difference, name = largest_gradient_difference(ours, wanted, exact)
        assert difference <= GRADIENT_TOLERANCE, name


@BY_KIND
def test_logits_are_tensorflows(head, tmp_path):
    pytest.importorskip("tf_keras")
    reference = tf_model(f"TF{head.kind}", head.config())
    reference.save_pretrained(tmp_path)
    model = our_head(head, head.config())
    report = load_weights(model, open_tensors(tmp_path / "tf_model.h5"), source="h5")
    assert report.unexpected == ()
    assert [name for name in report.missing if not name.startswith("pooler/")] == []
    assert_same_outputs(
        head.our_logits(model, INPUTS), list(tf_outputs(reference, INPUTS).values())
    )


@BY_KIND
@pytest.mark.parametrize("tied", [True, False])
def test_load_model_builds_what_config_json_names(head, tied, tmp_path, caplog):
    reference = torch_model(head.kind, head.config(tie_word_embeddings=tied))
    reference.save_pretrained(tmp_path)
    with caplog.at_level(logging.DEBUG, logger="kbert"):
        model = kbert.load_model(tmp_path)
    assert caplog.messages[-1].splitlines()[1].split() == ["tensor", "shape", "fate", "reason"]
    assert model.name == huggingface.HEADS[head.kind]
    labels = head.labels(INPUTS, 31)
    _, *logits = torch_loss(reference, INPUTS, labels).values()
    assert_same_outputs(head.our_logits(model, INPUTS), logits)
    assert any(v.path == "masked_lm_head/output_kernel" for v in model.weights) == (
        not tied and head.kind in ("BertForMaskedLM", "BertForPreTraining")
    )


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_own_decoder_is_written_and_read_again(kind, tmp_path):
    head = next(head for head in HEADS if head.kind == kind)
    config = head.config(tie_word_embeddings=False)
    reference = torch_model(kind, config)
    model = our_head(head, config)
    load_weights(model, arrays(reference), source="torch")
    exported = named_tensors(model)
    theirs = arrays(reference)
    for name in theirs:
        if name != "cls.predictions.decoder.bias":  # another name of cls.predictions.bias
            np.testing.assert_array_equal(exported[name], theirs[name], err_msg=name)
    again = our_head(head, config)
    load_weights(again, exported, source="ours")
    assert_round_trip(model, again)


def test_decoders_that_differ_are_kept(tmp_path):
    """Even where config.json does not say so, as transformers 5 does; 4 would lose one of them."""
    head = next(head for head in HEADS if head.kind == "BertForMaskedLM")
    untied = torch_model(head.kind, head.config(tie_word_embeddings=False))
    write_safetensors(tmp_path / "model.safetensors", arrays(untied))
    content = {**head.config().to_dict(), "architectures": [head.kind]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    _, logits = torch_loss(untied, INPUTS, head.labels(INPUTS, 31)).values()
    assert_same_outputs(head.our_logits(kbert.load_model(tmp_path), INPUTS), [logits])


def test_own_decoder_begins_as_the_embedding_where_there_is_none(tmp_path):
    """TFBertForMaskedLM writes none, whatever config.json says."""
    head = next(head for head in HEADS if head.kind == "BertForMaskedLM")
    reference = tf_model("TFBertForMaskedLM", head.config(tie_word_embeddings=False))
    reference.save_pretrained(tmp_path)
    model = kbert.load_model(tmp_path)
    words, kernel = (
        next(np.asarray(v) for v in model.weights if v.path == path)
        for path in ("token_embedding/embeddings", "masked_lm_head/output_kernel")
    )
    np.testing.assert_array_equal(kernel, words.T)
    assert_same_outputs(
        head.our_logits(model, INPUTS), list(tf_outputs(reference, INPUTS).values())
    )


def test_another_head_than_that_of_config_json(tmp_path):
    torch_model("BertForPreTraining", HEADS[7].config()).save_pretrained(tmp_path)
    model = kbert.load_model(tmp_path, head="sequence_classifier", dtype="mixed_bfloat16")
    assert model.get_layer("classifier").units == 2
    assert model(INPUTS).dtype == "float32"
    assert kbert.load_model(tmp_path, head="encoder")(INPUTS)["pooled_output"].shape == (5, 20)
    with pytest.raises(InputError, match="head must be one of encoder, .* received 'tagger'"):
        kbert.load_model(tmp_path, head="tagger")


# By themselves


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", heads.HEADS)
def test_outputs(name, dtype):
    shapes = {
        "sequence_classifier": (5, 5),
        "token_classifier": (5, 11, 5),
        "question_answering": (5, 2, 11),
        "next_sentence": (5, 2),
        "masked_lm": (5, 2, 31),
    }
    model = new_model(name, dtype=dtype)
    outputs = model(inputs_of(model))
    if name == "pretraining":
        wanted = {"masked_lm_logits": (5, 2, 31), "next_sentence_logits": (5, 2)}
        assert {key: array.shape for key, array in outputs.items()} == wanted
    elif name != "encoder":
        assert outputs.shape == shapes[name]
    if name != "encoder":
        assert {array.dtype.name for array in tf.nest.flatten(outputs)} == {"float32"}


def test_masked_lm_answers_at_its_positions():
    model = new_model("masked_lm")
    everywhere = HEADS[5].our_logits(model, INPUTS)[0]
    picked = model({**INPUTS, "mask_positions": MASK_POSITIONS})
    assert_same_outputs(picked, tf.gather(everywhere, MASK_POSITIONS, batch_dims=1), tolerance=1e-6)


@pytest.mark.parametrize(("classifier_dropout", "rate"), [(None, 0.1), (0.0, 0.0), (0.4, 0.4)])
def test_dropout_of_classifiers(classifier_dropout, rate):
    config = EncoderConfig(**{**vars(CONFIG), "classifier_dropout": classifier_dropout})
    for name in ("sequence_classifier", "token_classifier"):
        assert new_model(name, config).get_layer("classifier_dropout").rate == rate


def test_padding_does_not_train_its_row():
    """In a loss over all positions; as torch's padding_idx, and unlike TFBert."""
    inputs = {**INPUTS, "token_ids": INPUTS["token_ids"] * INPUTS["padding_mask"]}
    for pad_token_id, moves in ((0, False), (None, True)):
        model = new_model(
            "question_answering", EncoderConfig(**{**vars(CONFIG), "pad_token_id": pad_token_id})
        )
        row = next(v for v in model.trainable_variables if v.path == "token_embedding/embeddings")
        with tf.GradientTape() as tape:
            loss = losses.SpanLoss()(np.zeros((5, 2)), model(inputs, training=True))
        gradient = tf.convert_to_tensor(tape.gradient(loss, row.value))
        assert (np.abs(gradient[0]).max() > 0) == moves
        assert np.abs(gradient[1:]).max() > 0


# Losses


def test_a_loss_of_nothing_is_zero():
    logits = np.ones((2, 3), "float32")
    assert float(losses.cross_entropy()(np.full(2, losses.IGNORED), logits)) == 0
    assert float(losses.SpanLoss()(np.full((2, 2), 9), np.ones((2, 2, 3), "float32"))) == 0


def test_weights_of_rows():
    """A row of weight 0 is as if it were not there."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4, 2, 7)).astype("float32")
    spans = generator.integers(0, 7, (4, 2))
    weights = np.array([1.0, 0.0, 1.0, 1.0], "float32")
    kept = weights > 0
    for loss, labels, given in (
        (losses.SpanLoss(), spans, logits),
        (losses.cross_entropy(), spans[:, 0], logits[:, 0]),
        (losses.multi_label(), spans % 2, logits[:, :, 0]),
        (losses.regression(), spans, logits[:, :, 0]),
    ):
        weighted = loss(labels, given, sample_weight=weights)
        assert float(weighted) == pytest.approx(float(loss(labels[kept], given[kept])), abs=1e-6)
