"""Checkpoints in HuggingFace layout, from a folder or the hub, as tokeniser and encoder."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from kbert import heads, huggingface
from kbert.checkpoint_files import (
    INDEX_ENDING,
    WEIGHT_FILES,
    WHOLE_FILES,
    find_weights,
    open_tensors,
    read_index,
)
from kbert.config import EncoderConfig
from kbert.encoder import build_encoder
from kbert.errors import InputError
from kbert.foreign_files import read_object, refuse_links_out

if TYPE_CHECKING:
    from kbert.preprocessing import WordPieceTokenizer

TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# how states become one vector; few checkpoints have them
SENTENCE_FILES = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
READ = ("*.json", "*/config.json", "*.txt", *(f"*{Path(name).suffix}" for name in WHOLE_FILES))
"""What is read of a checkpoint's folder, and more."""

_log = logging.getLogger(__name__)


def resolve(source: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a checkpoint, fetched from the hub when it is not a folder.

    Args:
        source: A folder, or the id of a model on the hub: "name" or "organisation/name".
            HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are the hub client's own.
        revision: Branch, tag or commit on the hub; a folder has none.
        weights: Whether to fetch the weights too; the tokeniser needs none.

    Raises:
        InputError: there is no such folder, model, revision or file, or no connection; or a file
            is a symbolic link out of its folder.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() and source:
        if revision is not None:
            raise InputError(f"{source}: this is a folder, only a model of the hub has a revision.")
        refuse_links_out(folder, READ)
        return folder
    if folder.exists() and source:
        raise InputError(f"{source}: a checkpoint is a folder, this is a file.")
    if isinstance(source, Path) or not _is_hub_id(source):
        raise InputError(f"{source or repr(source)}: there is no such folder.")
    return _fetch(source, revision, weights)


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> WordPieceTokenizer:
    """The tokeniser of a checkpoint.

    Raises:
        InputError: as `resolve`; or the tokeniser's files cannot be used.
    """
    from kbert.preprocessing import tokenizer_from_files

    return tokenizer_from_files(resolve(source, revision=revision, weights=False))


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str | keras.DTypePolicy = "float32",
) -> keras.Model:
    """The encoder of a checkpoint with its weights; what was loaded is logged.

    Args:
        source: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.
        dtype: Keras' dtype policy.

    Raises:
        InputError: as `resolve`, `read_encoder_config` and `load_checkpoint_weights`.
    """
    folder = resolve(source, revision=revision)
    config = read_encoder_config(folder)
    encoder = build_encoder(config, dtype=dtype)
    load_checkpoint_weights(encoder, folder)
    return encoder


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str | keras.DTypePolicy = "float32",
    head: str | None = None,
) -> keras.Model:
    """The model of a checkpoint with its head and its weights.

    Args:
        source: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.
        dtype: Keras' dtype policy; logits are float32.
        head: A function of `kbert.heads` by its name, or "encoder"; by default what the
            architectures of config.json name. Weights the checkpoint lacks are new.

    Raises:
        InputError: as `load_encoder`; or an architecture or a head that is not supported.
    """
    folder = resolve(source, revision=revision)
    config, content = read_encoder_config(folder), read_config(folder)
    path = find_weights(folder)
    tensors = open_tensors(path)
    if huggingface.has_own_decoder(tensors):
        config = dataclasses.replace(config, tie_word_embeddings=False)
    try:
        head = huggingface.head(content) if head is None else head
        labels = huggingface.num_labels(content)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    if head.endswith("_classifier"):
        huggingface.check_labels(labels, tensors, source=str(path))
    encoder = build_encoder(config, dtype=dtype)
    model = heads.build_model(encoder, config, head=head, num_labels=labels, dtype=dtype)
    load_checkpoint_weights(model, folder)
    return model


def read_encoder_config(folder: Path) -> EncoderConfig:
    """The sizes and constants that `config.json` of a checkpoint folder gives.

    Raises:
        InputError: it is missing, not JSON, or not of a BERT that can be loaded; or the weights
            beside it, if there are any, are of other sizes.
    """
    content = read_config(folder)
    try:
        config = huggingface.encoder_config(content)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        weights = find_weights(folder)
        # before a model is built, which would take the memory that config.json says
        huggingface.check_sizes(config, open_tensors(weights), source=str(weights))
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json` of a checkpoint folder.

    Raises:
        InputError: it is missing or not a JSON object.
    """
    return read_object(folder / "config.json", advice="a checkpoint needs its config.json")


def load_checkpoint_weights(model: keras.Model, folder: Path) -> huggingface.LoadReport:
    """Gives an encoder, or a model that nests one, the weights of a checkpoint folder.

    What was loaded is logged; at level DEBUG as a table of all tensors, too.

    Raises:
        InputError: no readable weights, or they are not this model's; the model is unchanged.
    """
    path = find_weights(folder)
    report = huggingface.load_weights(model, open_tensors(path), source=str(path))
    _log.log(logging.WARNING if report.missing else logging.INFO, "%s", report.summary())
    _log.debug("%s", report.table())
    return report


def _is_hub_id(source: str) -> bool:
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    return re.fullmatch(f"{part}(/{part})?", source) is not None


def _fetch(name: str, revision: str | None, weights: bool) -> Path:
    """Downloads config.json, the small files and the weights, or finds them cached."""
    _log.info("%s: no folder here, so it is looked for on the hub", name)
    config = _fetch_file(name, revision, "config.json")
    if config is None:
        raise InputError(f"{name}: the model on the hub has no config.json.")
    # By the commit all files are of one version, and cached ones need no connection.
    commit = config.parent.name
    for file in (*TOKENIZER_FILES, *SENTENCE_FILES):
        _fetch_file(name, commit, file)
    if weights:
        _fetch_weights(name, commit)
    return config.parent


def _fetch_weights(name: str, commit: str) -> None:
    """The preferred weight file that the model has; after an index, its shards."""
    for file in WEIGHT_FILES:
        path = _fetch_file(name, commit, file)
        if path is None:
            continue
        shards = sorted(set(read_index(path).values())) if file.endswith(INDEX_ENDING) else []
        for shard in shards:
            if _fetch_file(name, commit, shard) is None:
                raise InputError(f"{name}: the model on the hub lacks {shard}, a shard of {file}.")
        return
    raise InputError(f"{name}: the model on the hub has no {' or '.join(WHOLE_FILES)}.")


def _fetch_file(name: str, revision: str | None, file: str) -> Path | None:
    """A file of a model on the hub in the local cache; None when the model has none."""
    # Imported here: it takes a while, and most checkpoints are folders.
    from huggingface_hub import constants, errors, file_download

    try:
        known = file_download.try_to_load_from_cache(name, file, revision=revision)
        if known is file_download._CACHED_NO_EXIST and _is_commit(revision):
            return None
        return Path(file_download.hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError:
        # Neither reached nor cached. Online that is no reason to do without the file.
        if constants.HF_HUB_OFFLINE and file != "config.json":
            return None
        raise _no_model(name, revision, f"{_why_not_reached()}, and it is not cached") from None
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError:
        raise _no_model(name, revision, "no such revision") from None
    except errors.RepositoryNotFoundError:
        raise _no_model(name, revision, "no such model, or it needs a login") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise _no_model(name, revision, _reason(error)) from None


def _is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def _no_model(name: str, revision: str | None, reason: str) -> InputError:
    at_revision = f" at revision {revision}" if revision else ""
    return InputError(f"{name}: no folder here, and from the hub{at_revision}: {reason}.")


def _why_not_reached() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "it is not asked (HF_HUB_OFFLINE)"
    return f"{constants.ENDPOINT} is not reached"


def _reason(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split()).rstrip(".")
