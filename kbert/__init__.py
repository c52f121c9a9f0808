"""kbert: fine-tune a Keras 3 BERT, measure it, export it for TF Serving.

The names below are imported when they are first used: importing keras_nlp takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "BertPacker": "kbert.preprocessing",
    "BertWindowPacker": "kbert.preprocessing",
    "InputError": "kbert.errors",
    "Predictor": "kbert.predictor",
    "TokenMasker": "kbert.preprocessing",
    "WordPieceTokenizer": "kbert.preprocessing",
    "attention_encoder": "kbert.encoder",
    "build_encoder": "kbert.encoder",
    "load": "kbert.predictor",
    "load_encoder": "kbert.loading",
    "load_model": "kbert.loading",
    "load_sentence_encoder": "kbert.sentence_encoder",
    "load_tokenizer": "kbert.loading",
    "save_checkpoint": "kbert.saving",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kbert' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
