"""How a checkpoint makes one vector of a text, in the files of sentence-transformers.

`modules.json` lists what comes after the encoder: a pooling, whose folder holds a config.json, and
perhaps a normalisation. Files of all of its versions are read; those that are written, all read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbert.errors import InputError
from kbert.foreign_files import read_json
from kbert.pooling import POOLINGS, PoolingName

MODULES = "modules.json"
LENGTH = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
# since its version 6 a config.json says pooling_mode, before it had a key for each pooling
OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ADVICE = "use another checkpoint, or train it with a --task.pooling and --task.normalize"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentenceVectors:
    """What becomes of the states of a text's tokens."""

    pooling: PoolingName = "mean"
    normalize: bool = False
    """Whether the pooled vector is divided by its length."""
    max_length: int | None = None
    """Longest text in word pieces, [CLS] and [SEP] included; None for what the encoder takes."""


def read_sentence_vectors(folder: Path) -> SentenceVectors:
    """What the files of a checkpoint folder say; without a modules.json the mean as it is.

    A line of the log says so where there is none.

    Raises:
        InputError: a file cannot be read, or it asks for what is not done here.
    """
    if not (folder / MODULES).exists():
        _log.warning(
            "%s says not how to pool (no %s): the mean of the states, not normalised",
            folder,
            MODULES,
        )
        return SentenceVectors()
    modules = _read(folder / MODULES, list)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
    ):
        raise InputError(
            f"{folder / MODULES}: {', '.join(kinds)} is no encoder, pooling and normalisation; "
            f"{ADVICE}."
        )
    _refuse_prompt(folder / PROMPTS)
    place = modules[1].get("path")
    if not isinstance(place, str) or place in ("", "..") or place != Path(place).name:
        raise InputError(
            f"{folder / MODULES}: the path {place!r} is no folder of the checkpoint; {ADVICE}."
        )
    return SentenceVectors(
        _pooling(folder / place / "config.json"),
        normalize="Normalize" in kinds,
        max_length=_max_length(folder / LENGTH),
    )


def sentence_transformers_files(vectors: SentenceVectors, *, hidden_dim: int) -> dict[str, str]:
    """What to write beside a checkpoint of BertModel so that SentenceTransformer opens it.

    Args:
        vectors: What becomes of the encoder's states.
        hidden_dim: Width of the encoder.

    Returns:
        Content of each file by its path in the folder.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if vectors.normalize:
        modules.append(("2_Normalize", "Normalize"))
    pooling = {"word_embedding_dimension": hidden_dim}
    pooling |= {key: vectors.pooling == name for key, name in OLD_KEYS.items()}
    contents: dict[str, Any] = {
        MODULES: [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": pooling,
        LENGTH: {"max_seq_length": vectors.max_length, "do_lower_case": False},
    }
    return {path: json.dumps(content, indent=2) + "\n" for path, content in contents.items()}


def _pooling(path: Path) -> PoolingName:
    content = _read(path, dict)
    chosen = content.get("pooling_mode")
    if chosen is None:
        chosen = [name for key, name in OLD_KEYS.items() if content.get(key)] or ["mean"]
    names = chosen if isinstance(chosen, list) else [chosen]
    if len(names) != 1 or names[0] not in POOLINGS:
        raise InputError(
            f"{path}: pools by {' and '.join(map(str, names))}, which is none of "
            f"{', '.join(POOLINGS)}; {ADVICE}."
        )
    return names[0]


def _max_length(path: Path) -> int | None:
    length = _read(path, dict).get("max_seq_length") if path.exists() else None
    if length is not None and (type(length) is not int or length < 2):
        raise InputError(f"{path}: max_seq_length must be a number over 1, received {length!r}.")
    return length


def _refuse_prompt(path: Path) -> None:
    """Words that sentence-transformers puts before every text, unless it is told otherwise."""
    content = _read(path, dict) if path.exists() else {}
    name, prompts = content.get("default_prompt_name"), content.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, Mapping) else None
    if prompt:
        raise InputError(
            f"{path}: {prompt!r} is to stand before every text, which is not done here; {ADVICE}."
        )


def _read(path: Path, kind: type) -> Any:
    """The content of a JSON file: a dictionary, or a list of them."""
    content = read_json(path, advice=ADVICE)
    items = content if isinstance(content, list) else [content]
    if not isinstance(content, kind) or not all(isinstance(item, Mapping) for item in items):
        raise InputError(f"{path}: not a file of sentence-transformers; {ADVICE}.")
    return content
