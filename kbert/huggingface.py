"""HuggingFace's names for a BERT, and ours: one table, read one way to import, the other to export.

A variable's path here is the name of its layer and what follows, such as
"transformer_layer_0/self_attention_layer/query/kernel", wherever in a model the layer is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kbert.checkpoint_files import TensorFile
from kbert.config import EncoderConfig
from kbert.errors import InputError
from kbert.load_report import Entry, Fate, LoadReport, shortened

# HuggingFace's module, our layer; {} is the number of the Transformer block.
MODULES = (
    ("embeddings.word_embeddings", "token_embedding"),
    ("embeddings.position_embeddings", "position_embedding"),
    ("embeddings.token_type_embeddings", "segment_embedding"),
    ("embeddings.LayerNorm", "embeddings_layer_norm"),
    ("encoder.layer.{}.attention.self.query", "transformer_layer_{}/self_attention_layer/query"),
    ("encoder.layer.{}.attention.self.key", "transformer_layer_{}/self_attention_layer/key"),
    ("encoder.layer.{}.attention.self.value", "transformer_layer_{}/self_attention_layer/value"),
    (
        "encoder.layer.{}.attention.output.dense",
        "transformer_layer_{}/self_attention_layer/attention_output",
    ),
    (
        "encoder.layer.{}.attention.output.LayerNorm",
        "transformer_layer_{}/self_attention_layer_norm",
    ),
    ("encoder.layer.{}.intermediate.dense", "transformer_layer_{}/feedforward_intermediate_dense"),
    ("encoder.layer.{}.output.dense", "transformer_layer_{}/feedforward_output_dense"),
    ("encoder.layer.{}.output.LayerNorm", "transformer_layer_{}/feedforward_layer_norm"),
    ("pooler.dense", "pooler"),
    ("classifier", "classifier"),
    ("cls.predictions.transform.dense", "masked_lm_head/intermediate_dense"),
    ("cls.predictions.transform.LayerNorm", "masked_lm_head/intermediate_layer_norm"),
    ("cls.predictions", "masked_lm_head"),
    ("cls.seq_relationship", "next_sentence"),
    ("qa_outputs", "qa_outputs"),
)

# Our variable's own name, HuggingFace's. A kernel is (in, out) with us and in tf_model.h5, and
# (out, in) in torch's files.
LEAVES = {
    "embeddings": "weight",
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "output_bias": "bias",
    "output_kernel": "decoder.weight",
}

# config.json's key, ours.
SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
}
RATES = {
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
# config.json's hidden_act, ours; a function with two names is exported by the first.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python": "gelu",
    "swish": "silu",
}

# config.json's architecture (after "TF" where it has that), the model of `kbert.heads`.
HEADS = {
    "BertModel": "encoder",
    "BertForSequenceClassification": "sequence_classifier",
    "BertForTokenClassification": "token_classifier",
    "BertForQuestionAnswering": "question_answering",
    "BertForNextSentencePrediction": "next_sentence",
    "BertForMaskedLM": "masked_lm",
    "BertForPreTraining": "pretraining",
}

MOST_NEW_LABELS = 100_000
"""Of a classifier that a checkpoint has no weights for."""
WORDS = "embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
# Tensors that repeat another one, unless the masked-LM head has a decoder of its own.
COPIES = {DECODER: WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}
CONSTANTS = ("embeddings.position_ids", "embeddings.token_type_ids")


def encoder_config(hf_config: Mapping[str, Any]) -> EncoderConfig:
    """Translates the content of a `config.json`.

    Raises:
        InputError: it is not a plain BERT encoder, or a value is missing or of a wrong type.
    """
    _refuse_other_models(hf_config)
    values: dict[str, Any] = {}
    for key, name in SIZES.items():
        if key in hf_config:
            values[name] = _number(hf_config, key, int, "a whole number")
        elif key not in ("max_position_embeddings", "type_vocab_size"):
            raise InputError(f"config.json: {key} is missing.")
    for key, name in RATES.items():
        if key in hf_config:
            values[name] = float(_number(hf_config, key, (int, float), "a number"))
    values |= _head_values(hf_config)
    pad_token_id = hf_config.get("pad_token_id", 0)
    known = type(pad_token_id) is int and 0 <= pad_token_id < values["vocabulary_size"]
    values["pad_token_id"] = pad_token_id if known else None
    activation = hf_config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"config.json: hidden_act {activation!r} is unknown; known are {known}.")
    values["activation"] = ACTIVATIONS[activation]
    try:
        return EncoderConfig(**values)
    except InputError as error:
        raise InputError(f"config.json: {error}") from None


def bert_config(config: EncoderConfig, *, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The content of a `config.json`: `encoder_config` and `labels` read backwards.

    Args:
        config: Sizes and constants of the encoder.
        labels: Names of the classes of a classifier, in order.
    """
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    values: dict[str, Any] = {"model_type": "bert", "hidden_act": names[config.activation]}
    values |= {key: getattr(config, name) for key, name in {**SIZES, **RATES}.items()}
    same = ("pad_token_id", "classifier_dropout", "tie_word_embeddings")
    values |= {"position_embedding_type": "absolute", **{key: getattr(config, key) for key in same}}
    if labels is not None:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    return values


def labels(hf_config: Mapping[str, Any]) -> list[str] | None:
    """Class names of a `config.json` in order; None when it names none.

    Raises:
        InputError: id2label does not number its labels from 0.
    """
    id2label = hf_config.get("id2label")
    if id2label is None:
        return None
    try:
        by_index = {int(index): str(label) for index, label in id2label.items()}
        return [by_index[index] for index in range(len(id2label))]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"config.json: id2label must name labels 0, 1, 2, ..., received {id2label!r}."
        ) from None


def num_labels(hf_config: Mapping[str, Any]) -> int:
    """Width of a classifier: as many as id2label names, else num_labels, else 2.

    Raises:
        InputError: as `labels`; or num_labels is no whole number over 0.
    """
    names = labels(hf_config)
    count = hf_config.get("num_labels", 2) if names is None else len(names)
    if type(count) is not int or count < 1:
        raise InputError(
            f"config.json: num_labels must be a whole number over 0, received {count}."
        )
    return count


def head(hf_config: Mapping[str, Any]) -> str:
    """The value of `HEADS` that a `config.json` names in its architectures.

    Raises:
        InputError: it names none, or one that is not supported.
    """
    architectures = hf_config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InputError("config.json: architectures names no model; ask for a head.")
    name = str(architectures[0])
    if name.removeprefix("TF") not in HEADS:
        known = ", ".join(HEADS)
        raise InputError(f"config.json: architectures {name} is not supported; known are {known}.")
    return HEADS[name.removeprefix("TF")]


def check_sizes(config: EncoderConfig, tensors: Mapping[str, np.ndarray], *, source: str) -> None:
    """Checks that a `config.json` and the weights beside it are of one model; reads no tensor.

    Args:
        config: What the config.json says.
        tensors: Arrays by name, as `load_weights` takes them.
        source: What to call the checkpoint in messages.

    Raises:
        InputError: they are of other sizes, or of fewer blocks.
    """
    found = {_canonical_name(name): name for name in tensors}
    hidden, last = config.hidden_dim, f"encoder.layer.{config.num_layers - 1}"
    for canonical, shape in (
        (WORDS, (config.vocabulary_size, hidden)),
        ("embeddings.position_embeddings.weight", (config.max_sequence_length, hidden)),
        ("embeddings.token_type_embeddings.weight", (config.num_segments, hidden)),
        (f"{last}.attention.self.query.weight", (hidden, hidden)),
        (f"{last}.intermediate.dense.weight", (config.intermediate_dim, hidden)),
    ):
        name = found.get(canonical, found.get(DECODER) if canonical == WORDS else None)
        if name is None:
            raise InputError(f"{source}: has no {canonical}, which its config.json promises.")
        is_turned = "/" in name and canonical.endswith("dense.weight")
        if _shape(tensors, name) != (shape[::-1] if is_turned else shape):
            raise InputError(
                f"{source}: tensor {name} has shape {_shape(tensors, name)}, and its config.json "
                f"is of a model that needs {shape}."
            )


def check_labels(count: int, tensors: Mapping[str, np.ndarray], *, source: str) -> None:
    """Checks that a `config.json` and the weights beside it have as many labels; reads no tensor.

    Args:
        count: What the config.json says.
        tensors: Arrays by name, as `load_weights` takes them.
        source: What to call the checkpoint in messages.

    Raises:
        InputError: the classifier is for another number; or there is none, and they are many.
    """
    name = next((name for name in tensors if _canonical_name(name) == "classifier.weight"), None)
    if name is None and count > MOST_NEW_LABELS:
        raise InputError(
            f"{source}: has no classifier, and its config.json tells {count:,} labels."
        )
    if name is not None and count not in _shape(tensors, name):
        raise InputError(
            f"{source}: tensor {name} has shape {_shape(tensors, name)}, and its config.json tells "
            f"{count:,} labels."
        )


def load_weights(
    model: keras.Model, tensors: Mapping[str, np.ndarray], *, source: str
) -> LoadReport:
    """Gives a model the weights of a HuggingFace checkpoint, or leaves it as it is and raises.

    Only tensors that the model takes are read, and what may be copies of them.

    Args:
        model: An encoder of `kbert.encoder`, or a model of `kbert.heads`.
        tensors: Arrays by name, of torch's naming or of tf_model.h5.
        source: What to call the checkpoint in messages.

    Raises:
        InputError: a tensor's shape is not the model's, the encoder's weights are not all there,
            a tensor stands there twice with different values, or the model's masked-LM head
            shares the token embedding and the checkpoint's does not.
    """
    found = _canonical_names(tensors)
    variables = dict(_variables(model))
    places = {path: name for path in variables if (name := _find(path, found, variables))}
    _require_encoder([path for path in variables if path not in places], source)
    _refuse_own_decoder(variables, tensors, source)
    for path, name in places.items():
        _check_shape(tensors, name, path, variables[path], source)
    _refuse_different(tensors, found, set(places.values()), source)
    arrays = {path: np.asarray(tensors[name]) for path, name in places.items()}
    for path, array in arrays.items():
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            name = places[path]
            raise InputError(f"{source}: tensor {name} holds {array.dtype}, weights are floats.")
    entries = tuple(_entries(tensors, found, variables, places))
    for path, array in arrays.items():  # nothing can fail any more
        variable = variables[path]
        transposed = _is_transposed(places[path], path)
        variable.assign((array.T if transposed else array).reshape(variable.shape))
    return LoadReport(source, entries)


def has_own_decoder(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether a checkpoint decodes masked words by another matrix than its token embedding."""
    found = {_canonical_name(name): name for name in tensors}
    if WORDS not in found or DECODER not in found:
        return False
    return not _are_equal(tensors, found[WORDS], found[DECODER])


def named_tensors(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights of a model by torch's names and in its shapes: `load_weights` read backwards.

    Variables that the table has no name for (heads of other kinds) are left out. A bare encoder
    has names without the prefix "bert.", as BertModel, a model with a head has it.
    """
    arrays = {}
    has_head = any(layer.name == "encoder" for layer in model.layers)
    for path, variable in _variables(model):
        name = _hf_name(path)
        if name is None:
            continue
        array = np.asarray(variable).reshape(_flat_shape(path, tuple(variable.shape)))
        in_bert = name.startswith(("embeddings.", "encoder.", "pooler."))
        prefix = "bert." if has_head and in_bert else ""
        arrays[prefix + name] = array.T if path.endswith("kernel") else array
    return arrays


def _entries(
    tensors: Mapping[str, np.ndarray],
    found: Mapping[str, str],
    variables: Mapping[str, keras.Variable],
    places: Mapping[str, str],
) -> Iterator[Entry]:
    """The account of a load, see `LoadReport`."""
    taken: dict[str, list[str]] = {}
    for path, name in places.items():
        taken.setdefault(name, []).append(path)
    for name in tensors:
        if name in taken:
            yield Entry(name, _shape(tensors, name), Fate.USED, f"to {', '.join(taken[name])}")
        else:
            yield Entry(name, _shape(tensors, name), *_why_left(name, tensors, found, set(taken)))
    for path, variable in variables.items():
        if path not in places:
            theirs = _hf_name(path)
            reason = f"the checkpoint has no {theirs}" if theirs else "unknown to HuggingFace"
            yield Entry(path, tuple(variable.shape), Fate.MISSING, reason)


def _why_left(
    name: str, tensors: Mapping[str, np.ndarray], found: Mapping[str, str], used: set[str]
) -> tuple[Fate, str]:
    canonical = _canonical_name(name)
    if canonical in CONSTANTS:
        return Fate.HARMLESS, "a constant"
    if found[canonical] in used:  # and is the same
        return Fate.HARMLESS, f"copy of {found[canonical]}"
    # no copy of a word embedding or of its bias is larger than it: what a file may be is unlimited
    is_small = math.prod(_shape(tensors, name)) <= max(
        (math.prod(_shape(tensors, name)) for name in used), default=0
    )
    if is_small and (other := found.get(COPIES.get(canonical, ""))):
        if _are_equal(tensors, name, other):
            return Fate.HARMLESS, f"copy of {other}"
        return Fate.UNEXPECTED, f"not in this model, and not the same as {other}"
    return Fate.UNEXPECTED, f"the model has no {_our_layer(canonical) or 'layer of this kind'}"


def _our_layer(canonical: str) -> str | None:
    """Our name of the layer that a tensor belongs to; None where the table has none."""
    for module, ours in MODULES:
        pattern = re.escape(module).replace(r"\{\}", r"(\d+)") + r"\."
        if match := re.match(pattern, canonical):
            return ours.format(*match.groups())
    return None


def _head_values(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if hf_config.get("classifier_dropout") is not None:
        rate = _number(hf_config, "classifier_dropout", (int, float), "a number")
        values["classifier_dropout"] = float(rate)
    tied = hf_config.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise InputError(
            f"config.json: tie_word_embeddings must be true or false, received {tied!r}."
        )
    return {**values, "tie_word_embeddings": tied}


def _refuse_other_models(hf_config: Mapping[str, Any]) -> None:
    plain = {
        "model_type": ("bert",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    }
    for key, accepted in plain.items():
        value = hf_config.get(key, accepted[0])
        if value not in accepted:
            raise InputError(
                f"config.json: {key} {value!r} is not supported, only a BERT encoder with "
                f"{key} {accepted[0]!r} is."
            )


def _number(hf_config: Mapping[str, Any], key: str, kind: type | tuple, wanted: str) -> Any:
    value = hf_config[key]
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value < 1 << 63:
        raise InputError(
            f"config.json: {key} must be {wanted}, 0 or over and under 2**63, received {value!r}."
        )
    return value


def _variables(model: keras.Model) -> Iterator[tuple[str, keras.Variable]]:
    """Weights of all layers with their path from the layer on, each variable once."""
    seen = set()
    for layer in _layers(model):
        for variable in layer.weights:
            if id(variable) not in seen:
                seen.add(id(variable))
                start = max(variable.path.find(f"{layer.name}/"), 0)
                yield variable.path[start:], variable


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Layers of a model and of the models nested in it, in order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _hf_name(path: str) -> str | None:
    """HuggingFace's name of a variable, in torch's manner and without the prefix "bert."."""
    layer, _, leaf = path.rpartition("/")
    number = re.match(r"transformer_layer_(\d+)/", layer)
    index = number.group(1) if number else ""
    for module, ours in MODULES:
        if ours.format(index) == layer and leaf in LEAVES:
            return f"{module.format(index)}.{LEAVES[leaf]}"
    return None


def _canonical_names(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Tensor by canonical name; the first where tf_model.h5 holds a shared tensor twice."""
    found: dict[str, str] = {}
    for name in tensors:
        found.setdefault(_canonical_name(name), name)
    return found


def _refuse_different(
    tensors: Mapping[str, np.ndarray], found: Mapping[str, str], used: set[str], source: str
) -> None:
    """InputError if a tensor that is used stands there a second time, and differs."""
    for name in tensors:
        first = found[_canonical_name(name)]
        if first != name and first in used and not _are_equal(tensors, first, name):
            raise InputError(
                f"{source}: {first} and {name} are two names of one tensor, and differ; keep one."
            )


def _are_equal(tensors: Mapping[str, np.ndarray], first: str, second: str) -> bool:
    """Whether two tensors have the same numbers; those of other shapes are not read."""
    if _shape(tensors, first) != _shape(tensors, second):
        return False
    return np.array_equal(tensors[first], tensors[second])


def _canonical_name(name: str) -> str:
    """A name of any of HuggingFace's files in today's torch manner, without "bert."."""
    if "/" in name:
        name = _name_from_h5(name)
    name = name.removeprefix("bert.")
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _name_from_h5(name: str) -> str:
    """bert/tf_bert_model/bert/pooler/dense/kernel:0 -> pooler.dense.weight."""
    *modules, leaf = name.partition(":")[0].split("/")
    roots = (
        "embeddings",
        "encoder",
        "pooler",
        "classifier",
        "qa_outputs",
        "mlm___cls",
        "nsp___cls",
    )
    starts = [index for index, module in enumerate(modules) if module in roots]
    modules = modules[starts[-1] :] if starts else modules
    leaf = leaf if "LayerNorm" in modules else LEAVES.get(leaf, leaf)
    joined = ".".join([*modules, leaf]).replace("layer_._", "layer.")
    return joined.replace("mlm___cls", "cls").replace("nsp___cls", "cls")


def _find(
    path: str, found: Mapping[str, str], variables: Mapping[str, keras.Variable]
) -> str | None:
    """The tensor for a variable, if need be under the name of its tied copy."""
    name = _hf_name(path)
    if name is None:
        return None
    if name == WORDS and "masked_lm_head/output_kernel" in variables:
        return found.get(name)  # the decoder is no copy of it
    stand_ins = {**COPIES, **{original: copy for copy, original in COPIES.items()}}
    return found.get(name, found.get(stand_ins.get(name, "")))


def _is_transposed(name: str, path: str) -> bool:
    """Whether a tensor is (out, in), as torch's are and embeddings, and our kernel (in, out)."""
    of_torch = "/" not in name or _canonical_name(name) == WORDS
    return path.endswith("kernel") and of_torch


def _flat_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a variable once heads and their width are one axis, as in HuggingFace's files."""
    if path.endswith("/attention_output/kernel"):
        return (shape[0] * shape[1], shape[2])  # (heads, head_dim, hidden)
    if path.endswith(("/query/kernel", "/key/kernel", "/value/kernel")):
        return (shape[0], shape[1] * shape[2])  # (hidden, heads, head_dim)
    if path.endswith(("/query/bias", "/key/bias", "/value/bias")):
        return (shape[0] * shape[1],)
    return shape


def _check_shape(
    tensors: Mapping[str, np.ndarray], name: str, path: str, variable: keras.Variable, source: str
) -> None:
    received = _shape(tensors, name)
    wanted = _flat_shape(path, tuple(variable.shape))
    wanted = wanted[::-1] if _is_transposed(name, path) else wanted
    if received != wanted:
        raise InputError(
            f"{source}: tensor {name} has shape {received}, the model needs {wanted} for {path}."
        )


def _shape(tensors: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    shape = tensors.shape(name) if isinstance(tensors, TensorFile) else np.shape(tensors[name])
    return tuple(shape)


def _require_encoder(missing: Sequence[str], source: str) -> None:
    """Heads and the pooler may be new, the rest of the encoder may not."""
    kept = ("token_embedding/", "position_embedding/", "segment_embedding/", "embeddings_")
    lost = [path for path in missing if path.startswith((*kept, "transformer_layer_"))]
    if lost:
        raise InputError(
            f"{source}: {len(lost)} weights of the encoder are not in the checkpoint: "
            f"{shortened([_hf_name(path) or path for path in lost])}."
        )


def _refuse_own_decoder(
    variables: Mapping[str, keras.Variable], tensors: Mapping[str, np.ndarray], source: str
) -> None:
    head = "masked_lm_head/output_bias" in variables
    if head and "masked_lm_head/output_kernel" not in variables and has_own_decoder(tensors):
        raise InputError(
            f"{source}: {DECODER} is not {WORDS}; for a decoder of its own config.json must say "
            '"tie_word_embeddings": false.'
        )


def h5_tensors(tensors: Mapping[str, np.ndarray], architecture: str) -> dict[str, np.ndarray]:
    """The tensors of `named_tensors` by the names and in the shapes of a tf_model.h5.

    Args:
        tensors: Arrays by torch's names.
        architecture: HuggingFace's class of the model, without its "TF": "BertForMaskedLM".

    Raises:
        InputError: a decoder of its own, which transformers' TensorFlow classes do not have.
    """
    if "cls.predictions.decoder.weight" in tensors:
        raise InputError(
            "tf_model.h5: cannot hold a masked-LM decoder that is not the token embedding; write "
            "model.safetensors alone."
        )
    # BertForMaskedLM -> tf_bert_for_masked_lm
    scope = re.sub("(?<=[a-z])(?=[A-Z])", "_", f"tf_{architecture}").lower()
    arrays = {}
    for name, array in tensors.items():
        layer, path = _h5_path(name)
        arrays[f"{layer}/{scope}/{path}"] = array.T if path.endswith("/kernel:0") else array
    if any(name.startswith("mlm___cls/") for name in arrays):
        # The head of TensorFlow's classes holds the embeddings, so they stand there as well.
        start = f"bert/{scope}/bert/embeddings/"
        embeddings = {name: array for name, array in arrays.items() if name.startswith(start)}
        arrays |= {f"mlm___cls/{name[5:]}": array for name, array in embeddings.items()}
    return arrays


def _h5_path(name: str) -> tuple[str, str]:
    """The layer and the path of a tensor: `_name_from_h5` read backwards.

    encoder.layer.0.output.dense.weight -> bert, bert/encoder/layer_._0/output/dense/kernel:0.
    """
    *modules, leaf = name.removeprefix("bert.").split(".")
    if modules[0] == "cls":
        modules[0] = "nsp___cls" if modules[1] == "seq_relationship" else "mlm___cls"
    if modules[0] in ("embeddings", "encoder", "pooler"):
        modules.insert(0, "bert")
    if modules[-1] == "LayerNorm":
        leaf = {"weight": "gamma", "bias": "beta"}[leaf]
    elif leaf == "weight" and modules[-1] in ("position_embeddings", "token_type_embeddings"):
        leaf = "embeddings"
    elif leaf == "weight" and modules[-1] != "word_embeddings":
        leaf = "kernel"
    return modules[0], "/".join([*modules, f"{leaf}:0"]).replace("/layer/", "/layer_._")


def unnamed_weights(model: keras.Model) -> list[str]:
    """Paths of the weights that HuggingFace's BERT has no place for, states of dropout apart."""
    return [
        path
        for path, variable in _variables(model)
        if _hf_name(path) is None and keras.backend.is_float_dtype(variable.dtype)
    ]
