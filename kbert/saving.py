"""Models and tokenisers as checkpoints in HuggingFace layout: `kbert.loading` read backwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import keras
import numpy as np

from kbert import huggingface
from kbert.checkpoint_files import write_h5, write_safetensors
from kbert.config import EncoderConfig, ProblemType
from kbert.encoder import activation_function
from kbert.errors import InputError
from kbert.tokenizer_files import write_tokenizer_files
from kbert.whole_files import sync, sync_all

if TYPE_CHECKING:
    from kbert.preprocessing import WordPieceTokenizer

Format = Literal["safetensors", "h5"]


@dataclass(frozen=True)
class Architecture:
    """A class of HuggingFace's, by the heads it has beside the encoder."""

    name: str
    heads: frozenset[str]
    """First parts of the names of its tensors."""
    has_pooler: bool = True
    of_tokens: bool = False
    """Whether its classifier sees each token."""


ARCHITECTURES = (
    Architecture("BertModel", frozenset()),
    Architecture("BertForSequenceClassification", frozenset({"classifier"})),
    Architecture(
        "BertForTokenClassification", frozenset({"classifier"}), has_pooler=False, of_tokens=True
    ),
    Architecture("BertForQuestionAnswering", frozenset({"qa_outputs"}), has_pooler=False),
    Architecture("BertForNextSentencePrediction", frozenset({"cls.seq_relationship"})),
    Architecture("BertForMaskedLM", frozenset({"cls.predictions"}), has_pooler=False),
    Architecture("BertForPreTraining", frozenset({"cls.predictions", "cls.seq_relationship"})),
)


def save_checkpoint(
    model: keras.Model,
    folder: str | Path,
    *,
    tokenizer: WordPieceTokenizer,
    labels: Sequence[str] | None = None,
    problem_type: ProblemType | None = None,
    formats: Sequence[Format] = ("safetensors", "h5"),
    files: Callable[[EncoderConfig], Mapping[str, str]] = lambda config: {},
) -> None:
    """Writes a model and its tokeniser as a checkpoint that transformers and kbert open.

    The folder holds config.json, vocab.txt, tokenizer.json, tokenizer_config.json and the weights
    as they are: model.safetensors for `Bert*.from_pretrained`, tf_model.h5 (where half precision
    is widened) for `TFBert*.from_pretrained`, which prefers the former: pass it
    `use_safetensors=False`, or write "h5" alone. The folder is written beside its place and
    renamed, so that it is there whole or not at all.

    Args:
        model: An encoder of `kbert.encoder`, or a model that nests one and has the heads of one
            of `ARCHITECTURES`. Sizes and constants are read from its layers.
        folder: Folder to make; it may be there if it is empty.
        tokenizer: The tokeniser of the model's inputs.
        labels: Names of a classifier's classes, in order; LABEL_0, LABEL_1 ... if there are none.
        problem_type: What a sequence classifier's logits mean to transformers' losses.
        formats: Weight files to write.
        files: Content of further files, by path in the folder, for the sizes of the encoder.

    Raises:
        InputError: the folder is not empty or cannot be made, or the model is not one that
            transformers has, or labels or tokeniser are not this model's.

    Example:
        >>> encoder = kbert.load_encoder("bert-base-uncased")
        >>> tokenizer = kbert.load_tokenizer("bert-base-uncased")
        >>> kbert.save_checkpoint(encoder, "copy", tokenizer=tokenizer)
    """
    if not formats or set(formats) - set(get_args(Format)):
        raise InputError(f"formats: must be some of {get_args(Format)}, received {formats!r}.")
    sizes = config_from_layers(model)
    architecture, tensors = _tensors(model)
    config = _config(sizes, architecture, tokenizer, _labels(model, architecture, labels))
    if problem_type is not None:
        _check_problem_type(problem_type, architecture)
        config["problem_type"] = problem_type
    with _folder_written_whole(Path(folder).expanduser()) as beside:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (beside / "config.json").write_text(text, encoding="utf-8")
        for name, content in files(sizes).items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            (beside / name).write_text(content, encoding="utf-8")
        write_tokenizer_files(
            beside, tokenizer.get_config(), max_length=config["max_position_embeddings"]
        )
        if "safetensors" in formats:
            write_safetensors(beside / "model.safetensors", tensors)
        if "h5" in formats:
            write_h5(beside / "tf_model.h5", huggingface.h5_tensors(tensors, architecture.name))


def config_from_layers(model: keras.Model) -> EncoderConfig:
    """Sizes and constants of an encoder, or of a model that nests one, from their layers.

    Raises:
        InputError: there is no encoder of `kbert.encoder`.
    """
    encoder = _find_encoder(model)
    words = encoder.get_layer("token_embedding")
    blocks = [layer for layer in encoder.layers if layer.name.startswith("transformer_layer_")]
    block = blocks[0]
    names: Any = {activation_function(name): name for name in huggingface.ACTIVATIONS.values()}
    return EncoderConfig(
        vocabulary_size=words.input_dim,
        hidden_dim=words.output_dim,
        num_layers=len(blocks),
        num_heads=block.num_heads,
        intermediate_dim=block.intermediate_dim,
        max_sequence_length=encoder.get_layer("position_embedding").sequence_length,
        num_segments=encoder.get_layer("segment_embedding").input_dim,
        activation=names[block.activation],
        dropout=block.dropout,
        attention_dropout=block.attention_dropout,
        layer_norm_epsilon=block.layer_norm_epsilon,
        initializer_range=block.kernel_initializer.stddev,
        pad_token_id=words.pad_token_id,
        **_head_constants(model, block.dropout),
    )


def _head_constants(model: keras.Model, dropout: float) -> dict[str, Any]:
    constants: dict[str, Any] = {}
    for layer in model.layers:
        if layer.name == "classifier_dropout" and layer.rate != dropout:
            constants["classifier_dropout"] = layer.rate
        elif layer.name == "masked_lm_head":
            constants["tie_word_embeddings"] = layer.token_embedding is not None
    return constants


def _find_encoder(model: keras.Model) -> Any:
    for candidate in (model, *model.layers):
        layers = candidate.layers if isinstance(candidate, keras.Model) else []
        if any(layer.name == "token_embedding" for layer in layers):
            return candidate
    raise InputError(f"The model {model.name!r} nests no encoder of kbert, so it cannot be saved.")


def _tensors(model: keras.Model) -> tuple[Architecture, dict[str, np.ndarray]]:
    """What to call the model, and its weights by torch's names."""
    if unnamed := huggingface.unnamed_weights(model):
        raise InputError(
            f"The model {model.name!r} cannot be saved for transformers, whose BERT has no place "
            f"for {', '.join(unnamed[:6])}."
        )
    named = huggingface.named_tensors(model)
    inner = {name.removeprefix("bert."): array for name, array in named.items()}
    encoder = tuple(name for name in inner if name.startswith(("embeddings.", "encoder.")))
    pooler = tuple(name for name in inner if name.startswith("pooler."))
    architecture = _architecture(model, [name for name in inner if name not in (*encoder, *pooler)])
    prefix = "bert." if architecture.heads else ""
    tensors = {}
    for name, array in inner.items():
        if architecture.has_pooler or name not in pooler:
            tensors[prefix + name if name in (*encoder, *pooler) else name] = array
    return architecture, tensors


def _architecture(model: keras.Model, names: Sequence[str]) -> Architecture:
    """The class that has these tensors beside the encoder's."""
    heads = {".".join(name.split(".")[: 1 + name.startswith("cls.")]) for name in names}
    of_tokens = "classifier" in heads and len(model.get_layer("classifier").input.shape) == 3
    for architecture in ARCHITECTURES:
        if architecture.heads == heads and architecture.of_tokens == of_tokens:
            return architecture
    raise InputError(
        f"The model {model.name!r} has the heads {', '.join(sorted(heads))}, which no single model "
        "of transformers has; save a model of one task."
    )


def _config(
    sizes: EncoderConfig,
    architecture: Architecture,
    tokenizer: WordPieceTokenizer,
    labels: Sequence[str] | None,
) -> dict[str, Any]:
    """The content of config.json."""
    if tokenizer.vocabulary_size > sizes.vocabulary_size:
        raise InputError(
            f"tokenizer: has {tokenizer.vocabulary_size} tokens, the model only embeds "
            f"{sizes.vocabulary_size}; give the tokeniser that the model was trained with."
        )
    content = huggingface.bert_config(sizes, labels=labels)
    return {"architectures": [architecture.name], **content}


def _labels(
    model: keras.Model, architecture: Architecture, labels: Sequence[str] | None
) -> list[str] | None:
    """Names of a classifier's classes; without a classifier None."""
    if "classifier" not in architecture.heads:
        if labels is not None:
            raise InputError(f"labels: {architecture.name} has no classes, leave them out.")
        return None
    classes = model.get_layer("classifier").units
    names = [f"LABEL_{index}" for index in range(classes)] if labels is None else list(labels)
    if len(names) != classes or len(set(names)) != classes:
        raise InputError(
            f"labels: the model has {classes} classes, which need as many different names; "
            f"received {names!r}."
        )
    return names


def _check_problem_type(problem_type: ProblemType, architecture: Architecture) -> None:
    if problem_type not in get_args(ProblemType):
        raise InputError(
            f"problem_type: must be one of {get_args(ProblemType)}, received {problem_type!r}."
        )
    if architecture.name != "BertForSequenceClassification":
        raise InputError(f"problem_type: {architecture.name} has none, leave it out.")


@contextlib.contextmanager
def _folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside another that takes its place once all is written; else nothing is left."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is not an empty folder; give the name of a new one.")
    folder = folder.absolute()
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        yield beside
        sync_all(beside)
        os.replace(beside, folder)
        sync(folder.parent)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: cannot be written ({reason}).") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
