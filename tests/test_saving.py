"""Checkpoints that transformers opens: every model, both weight files, the tokeniser, errors."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import assert_round_trip, random_inputs

import kbert
from kbert import heads, loading
from kbert.config import EncoderConfig
from kbert.encoder import build_encoder
from kbert.errors import InputError
from kbert.huggingface import HEADS, bert_config, encoder_config
from kbert.preprocessing import WordPieceTokenizer
from kbert.saving import config_from_layers, save_checkpoint
from kbert.tokenizer_files import read_tokenizer_files, write_tokenizer_files

ROOT = Path(__file__).resolve().parents[1]
LABELS = ["good", "bad", "好"]
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
TEXTS = ["The cats sat.", "好人 [MASK] not  BAD", "ÀÉ dogsly", "", "unheard [SEP] of"]


def config_of(**values) -> EncoderConfig:
    """Odd sizes; four rows more than the vocabulary has tokens."""
    return EncoderConfig(23, 12, 2, 3, 21, **{"max_sequence_length": 33, **values})


def some_model(head: str, **values) -> keras.Model:
    """A model of a head whose weights are far from their initial ones."""
    config = config_of(**values)
    model = heads.build_model(build_encoder(config), config, head=head, num_labels=3)
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "float" in variable.dtype:
            variable.assign(variable + generator.normal(0, 0.3, variable.shape))
    return model


@pytest.fixture(scope="module")
def tokenizer(vocabulary) -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary)


# To transformers and back


def theirs(kind: str, **values):
    """A model of transformers with weights far from their initial ones."""
    import transformers

    labels = LABELS if kind.endswith(CLASSIFIERS) else None
    sizes = bert_config(config_of(activation="gelu_new", layer_norm_epsilon=1e-3), labels=labels)
    config = transformers.BertConfig(**{**sizes, **values})
    if not kind.startswith("TF"):
        import torch

        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        return model
    model = getattr(transformers, kind)(config)
    model.build_in_name_scope()
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + 0.3 * generator.normal(size=weight.shape))
    return model


def arrays_of(model) -> dict[str, np.ndarray]:
    if hasattr(model, "state_dict"):
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {weight.name.partition("/")[2]: weight.numpy() for weight in model.weights}


def assert_opens_as(model, folder: Path) -> None:
    """transformers finds all keys and no others, and each weight equal to the bit."""
    is_torch = hasattr(model, "state_dict")
    options = {} if is_torch else {"use_safetensors": False}
    again, info = type(model).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    expected, received = arrays_of(model), arrays_of(again)
    assert list(received) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("framework", ["", "TF"], ids=["torch", "tensorflow"])
def test_round_trip(kind, framework, tokenizer, tmp_path):
    """HuggingFace -> kbert -> HuggingFace, by model.safetensors and by tf_model.h5."""
    pytest.importorskip("torch")
    pytest.importorskip("tf_keras" if framework else "transformers")
    model = theirs(framework + kind)
    model.save_pretrained(tmp_path / "theirs", safe_serialization=not framework)
    ours = loading.load_model(tmp_path / "theirs")
    labels = LABELS if kind.endswith(CLASSIFIERS) else None
    save_checkpoint(ours, tmp_path / "ours", tokenizer=tokenizer, labels=labels)
    assert_opens_as(model, tmp_path / "ours")
    config = type(model).config_class.from_pretrained(tmp_path / "ours")
    assert config.architectures == [kind]
    assert (labels is None) or config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("kind", HEADS)
def test_tf_model_h5_is_transformers_own(kind, tokenizer, tmp_path):
    """The same layers, names and numbers as in the file that save_pretrained writes."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tf_keras")
    save_checkpoint(some_model(HEADS[kind]), tmp_path / "ours", tokenizer=tokenizer)
    model = getattr(transformers, f"TF{kind}").from_pretrained(
        tmp_path / "ours", use_safetensors=False
    )
    model.save_pretrained(tmp_path / "theirs")
    received, expected = (layers_of(tmp_path / name / "tf_model.h5") for name in ("ours", "theirs"))
    assert {layer: set(weights) for layer, weights in received.items()} == {
        layer: set(weights) for layer, weights in expected.items() if "dropout" not in layer
    }
    for layer, weights in received.items():
        for name, array in weights.items():
            np.testing.assert_array_equal(expected[layer][name], array, err_msg=name)


def layers_of(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Weights by layer and name, as Keras 2 looks them up."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    with h5py.File(path) as file:
        for layer in file.attrs["layer_names"]:
            names = file[layer].attrs["weight_names"]
            # Keras numbers the models of a process: tf_bert_model_1.
            layers[layer] = {
                re.sub(r"^([^/]+?)_\d+/", r"\1/", name): file[layer][name][()] for name in names
            }
    return layers


def test_untied_decoder(tokenizer, tmp_path):
    pytest.importorskip("torch")
    model = theirs("BertForMaskedLM", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "theirs")
    ours = loading.load_model(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"tf_model\.h5: cannot hold a masked-LM decoder"):
        save_checkpoint(ours, tmp_path / "ours", tokenizer=tokenizer)
    assert not (tmp_path / "ours").exists()
    save_checkpoint(ours, tmp_path / "ours", tokenizer=tokenizer, formats=["safetensors"])
    assert_opens_as(model, tmp_path / "ours")


def test_half_precision(tokenizer, tmp_path):
    """bfloat16 variables are written as they are, and widened in tf_model.h5."""
    encoder = build_encoder(config_of(), dtype="bfloat16")
    save_checkpoint(encoder, tmp_path / "ours", tokenizer=tokenizer)
    for name in ("model.safetensors", "tf_model.h5"):
        os.replace(tmp_path / "ours" / name, tmp_path / name)
        (tmp_path / "config.json").write_bytes((tmp_path / "ours/config.json").read_bytes())
        again = loading.load_encoder(tmp_path, dtype="bfloat16")
        for ours, read in zip(encoder.weights, again.weights, strict=True):
            np.testing.assert_array_equal(np.asarray(read), np.asarray(ours))
        (tmp_path / name).unlink()


def test_formats(tokenizer, tmp_path):
    encoder = some_model("encoder")
    common = {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    for formats, names in (
        (["h5"], {"tf_model.h5"}),
        (["safetensors"], {"model.safetensors"}),
        (["safetensors", "h5"], {"model.safetensors", "tf_model.h5"}),
    ):
        folder = tmp_path / "-".join(formats)
        save_checkpoint(encoder, folder, tokenizer=tokenizer, formats=formats)
        assert {path.name for path in folder.iterdir()} == common | names
        assert_round_trip(loading.load_encoder(folder), build_copy(encoder))
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tf_keras")
    _, info = transformers.TFBertModel.from_pretrained(tmp_path / "h5", output_loading_info=True)
    assert not any(info.values())


def build_copy(encoder: keras.Model) -> keras.Model:
    copy = build_encoder(config_from_layers(encoder))
    copy.set_weights(encoder.get_weights())
    return copy


# config.json


@settings(max_examples=20)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
    activation=st.sampled_from(["gelu", "gelu_new", "relu", "silu"]),
    rates=st.tuples(*[st.floats(0, 0.9)] * 3),
    epsilon=st.floats(1e-12, 1e-3),
    pad_token_id=st.one_of(st.none(), st.integers(0, 4)),
    tied=st.booleans(),
)
def test_config_from_layers(sizes, activation, rates, epsilon, pad_token_id, tied):
    """All of EncoderConfig stands in the layers."""
    width, depth, num_heads, intermediate, segments = sizes
    config = EncoderConfig(
        vocabulary_size=5,
        hidden_dim=width * num_heads,
        num_layers=depth,
        num_heads=num_heads,
        intermediate_dim=intermediate,
        max_sequence_length=width + 7,
        num_segments=segments,
        activation=activation,
        dropout=rates[0],
        attention_dropout=rates[1],
        layer_norm_epsilon=epsilon,
        initializer_range=epsilon + 0.01,
        pad_token_id=pad_token_id,
        classifier_dropout=None,
        tie_word_embeddings=tied,
    )
    assert config_from_layers(heads.masked_lm(build_encoder(config), config)) == config
    assert encoder_config(bert_config(config)) == config


def test_config_from_layers_of_a_classifier():
    config = config_of(classifier_dropout=0.4)
    model = heads.sequence_classifier(build_encoder(config), config, num_labels=2)
    assert config_from_layers(model) == config
    copy = keras.Model.from_config(model.get_config())
    assert config_from_layers(copy) == config


def test_config_json(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_checkpoint(
        some_model("sequence_classifier", classifier_dropout=0.25),
        tmp_path / "named",
        tokenizer=tokenizer,
        labels=LABELS,
        problem_type="multi_label_classification",
    )
    config = transformers.AutoConfig.from_pretrained(tmp_path / "named")
    assert config.architectures == ["BertForSequenceClassification"]
    assert config.id2label == {0: "good", 1: "bad", 2: "好"}
    assert config.label2id == {"good": 0, "bad": 1, "好": 2}
    assert config.problem_type == "multi_label_classification"
    assert config.classifier_dropout == 0.25
    save_checkpoint(some_model("token_classifier"), tmp_path / "plain", tokenizer=tokenizer)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "plain")
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert (config.problem_type, config.num_labels) == (None, 3)


# The tokeniser

SETTINGS = [
    {},
    {"lowercase": False},
    {"lowercase": True, "strip_accents": False},
    {"lowercase": False, "strip_accents": True, "tokenize_chinese_chars": False},
    {"additional_special_tokens": ["[CAT]", "[X]"]},
    {"pad_token": "[X]", "unknown_token": "[CAT]", "cls_token": "[MASK]", "mask_token": "[CLS]"},
]


@pytest.mark.parametrize("values", SETTINGS, ids=str)
def test_tokenizer(values, vocabulary, tmp_path):
    """AutoTokenizer gives our ids, and the file is the one it would have written itself."""
    transformers = pytest.importorskip("transformers")
    tokenizer = WordPieceTokenizer([*vocabulary, "[X]", "É", "[CAT]"], **values)
    write_tokenizer_files(tmp_path, tokenizer.get_config(), max_length=33)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "the [CAT] [X] sat É é"]
    assert (
        fast(texts, add_special_tokens=False)["input_ids"] == tokenizer(np.array(texts)).to_list()
    )
    pair = fast("the cat", "ran")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert pair["input_ids"] == [cls, 5, 6, sep, 9, sep]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert fast.model_max_length == 33
    for name in ("cls", "sep", "pad", "mask"):
        assert getattr(fast, f"{name}_token") == getattr(tokenizer, f"{name}_token")
    assert fast.unk_token == tokenizer.unknown_token
    fast.save_pretrained(tmp_path / "again")
    definition, again = (
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for folder in (tmp_path, tmp_path / "again")
    )
    assert definition == again
    assert isinstance(fast, transformers.BertTokenizerFast)


@pytest.mark.parametrize("values", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_tokenizer_is_read_back(values, name, vocabulary, tmp_path):
    """Also from vocab.txt or tokenizer.json alone."""
    tokenizer = WordPieceTokenizer([*vocabulary, "[X]", "\u2028", "[CAT]"], **values)
    write_tokenizer_files(tmp_path, tokenizer.get_config())
    expected = read_tokenizer_files(tmp_path)
    (tmp_path / name).unlink()
    assert read_tokenizer_files(tmp_path) == expected
    config = WordPieceTokenizer(**expected).get_config()
    ours = tokenizer.get_config()
    for values in (config, ours):
        values["additional_special_tokens"] = set(values["additional_special_tokens"])
        del values["name"]
    assert config == ours


def test_tokenizer_with_a_line_break(vocabulary, tmp_path):
    tokenizer = WordPieceTokenizer([*vocabulary, "a\nb"])
    with pytest.raises(InputError, match=r"'a\\nb' has a line break"):
        save_checkpoint(build_encoder(config_of()), tmp_path / "ours", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


# Errors leave nothing behind


def extended(model: keras.Model, *layers: keras.layers.Layer) -> keras.Model:
    outputs = [layer(model(model.input)["pooled_output"]) for layer in layers]
    return keras.Model(model.input, outputs)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: some_model("encoder"), {"labels": LABELS}, "BertModel has no classes"),
        (lambda: some_model("sequence_classifier"), {"labels": ["a"]}, "the model has 3 classes"),
        (lambda: some_model("sequence_classifier"), {"labels": ["a", "b", "a"]}, "different names"),
        (lambda: some_model("encoder"), {"problem_type": "regression"}, "BertModel has none"),
        (lambda: some_model("sequence_classifier"), {"problem_type": "x"}, "must be one of"),
        (lambda: some_model("encoder"), {"formats": []}, "formats: must be some of"),
        (lambda: some_model("encoder"), {"formats": ["bin"]}, "formats: must be some of"),
        (lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), {}, "no encoder"),
        (
            lambda: extended(some_model("encoder"), keras.layers.Dense(2, name="other")),
            {},
            "no place for other/kernel, other/bias",
        ),
        (
            lambda: extended(
                some_model("encoder"),
                keras.layers.Dense(2, name="classifier"),
                keras.layers.Dense(2, name="next_sentence"),
            ),
            {},
            r"has the heads classifier, cls\.seq_relationship, which no single model",
        ),
    ],
)
def test_what_cannot_be_saved(make, options, message, tokenizer, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        save_checkpoint(make(), tmp_path / "ours", **{"tokenizer": tokenizer, **options})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_tokenizer_of_another_model(vocabulary, tmp_path):
    large = WordPieceTokenizer([*vocabulary, *"bcdef"])
    with pytest.raises(InputError, match="has 24 tokens, the model only embeds 23"):
        save_checkpoint(build_encoder(config_of()), tmp_path / "ours", tokenizer=large)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty(tokenizer, tmp_path):
    encoder = build_encoder(config_of())
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="is not an empty folder"):
            save_checkpoint(encoder, folder, tokenizer=tokenizer)
    with pytest.raises(InputError, match="file/new: cannot be written"):
        save_checkpoint(encoder, tmp_path / "file" / "new", tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        save_checkpoint(encoder, folder, tokenizer=tokenizer)
        assert (folder / "config.json").exists()


@pytest.mark.parametrize("limit", [100, 2_000, 10_000, 30_000, 70_000])
def test_a_full_disk_leaves_nothing(limit, tokenizer, tmp_path):
    """No file may be larger than the limit: each file in turn cannot be written."""
    encoder = build_encoder(config_of())
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(InputError, match=r"ours: cannot be written \(.*too large") as caught:
            save_checkpoint(encoder, tmp_path / "ours", tokenizer=tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# Other environments

WITHOUT = """
import sys
from pathlib import Path
import numpy as np
import keras_nlp  # needs tokenizers itself

for name in [name for name in sys.modules if name.split(".")[0] == "tokenizers"]:
    del sys.modules[name]

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "tokenizers", "torch"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
import kbert
source, target = map(Path, sys.argv[1:])
tokenizer = kbert.load_tokenizer(source)
kbert.save_checkpoint(kbert.load_encoder(source), target, tokenizer=tokenizer)
try:
    import transformers
except ModuleNotFoundError:
    print(tokenizer(np.array(["the cats"])).to_list())
"""


def run(python: str | Path, code: str, *words: str | Path) -> str:
    """Output of a script in an interpreter that imports this kbert."""
    process = subprocess.run(
        [str(python), "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def test_without_transformers(tiny_checkpoint, tmp_path):
    """Folders are read and written where transformers and tokenizers cannot be imported."""
    output = run(sys.executable, WITHOUT, tiny_checkpoint, tmp_path / "ours")
    assert output.strip() == "[[5, 6, 12]]"
    assert_round_trip(
        loading.load_encoder(tmp_path / "ours"), loading.load_encoder(tiny_checkpoint)
    )


TRANSFORMERS_5 = """
import json, sys
import numpy as np
import torch, transformers
import kbert
from kbert.loading import load_model
folder, (texts, inputs) = sys.argv[1], json.loads(sys.argv[2])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model, info = transformers.BertForSequenceClassification.from_pretrained(
    folder, output_loading_info=True
)
with torch.no_grad():
    theirs = model.eval()(
        input_ids=torch.tensor(inputs["token_ids"]),
        token_type_ids=torch.tensor(inputs["segment_ids"]),
        attention_mask=torch.tensor(inputs["padding_mask"]),
    )
ours = load_model(folder)({name: np.array(rows, "int32") for name, rows in inputs.items()})
copy = folder + "/copy"
model.save_pretrained(copy)
tokenizer.save_pretrained(copy)
again = load_model(copy)({name: np.array(rows, "int32") for name, rows in inputs.items()})
print(json.dumps({
    "version": transformers.__version__,
    "loading": {name: sorted(map(str, keys)) for name, keys in info.items()},
    "labels": [model.config.id2label[index] for index in range(3)],
    "ids": tokenizer(texts, add_special_tokens=False)["input_ids"],
    "our_ids": kbert.load_tokenizer(folder)(np.array(texts)).to_list(),
    "copy_ids": kbert.load_tokenizer(copy)(np.array(texts)).to_list(),
    "max_length": tokenizer.model_max_length,
    "logits": theirs.logits.tolist(),
    "our_logits": np.asarray(ours).tolist(),
    "copy_logits": np.asarray(again).tolist(),
}))
"""


def transformers_5() -> Path:
    """The interpreter of the environment with transformers 5."""
    default = ROOT / ".venv-transformers5" / "bin" / "python"
    python = Path(os.environ.get("KBERT_TRANSFORMERS5_PYTHON", default))
    if not python.exists():
        pytest.skip(f"no environment with transformers 5 ({python} is not there)")
    return python


def test_transformers_5(tokenizer, tmp_path):
    model = some_model("sequence_classifier")
    save_checkpoint(model, tmp_path / "ours", tokenizer=tokenizer, labels=LABELS)
    inputs = random_inputs(23)
    rows = {name: array.tolist() for name, array in inputs.items()}
    output = run(transformers_5(), TRANSFORMERS_5, tmp_path / "ours", json.dumps([TEXTS, rows]))
    answer = json.loads(output.splitlines()[-1])
    assert answer["version"].startswith("5.")
    assert not any(answer["loading"].values()), answer["loading"]
    assert answer["labels"] == LABELS
    ids = tokenizer(np.array(TEXTS)).to_list()
    assert answer["ids"] == answer["our_ids"] == answer["copy_ids"] == ids
    assert answer["max_length"] == 33
    logits = np.asarray(model(inputs))
    for name in ("logits", "our_logits", "copy_logits"):
        np.testing.assert_allclose(answer[name], logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_public_name():
    assert kbert.save_checkpoint is save_checkpoint
