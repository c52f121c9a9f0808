"""config.json of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_files.case import TERA, Case
from hostile_files.spoilers import changed, deep, grown, later, piped, write


def config(**values: Any) -> Callable[[Path], None]:
    return changed("config.json", **values)


BOTH = ("encoder", "model")
configs = [
    Case("config: empty", write("config.json", ""), BOTH),
    Case("config: a list", write("config.json", "[]"), BOTH),
    Case("config: not UTF-8", write("config.json", b"\xff\xfe\x00"), BOTH),
    Case("config: 200,000 levels", write("config.json", deep()), BOTH),
    Case("config: a value of 200,000 levels",
         write("config.json", '{"model_type": ' + deep() + "}"), BOTH),
    Case("config: 10 TB", grown("config.json", 10 * TERA), BOTH),
    Case("config: 200 MB of empty lists",
         later(lambda: write("config.json", "[" + "[]," * 70_000_000 + "0]")), BOTH, is_large=True),
    Case("config: a number of 100,000 digits",
         write("config.json", '{"hidden_size": ' + "9" * 100_000 + "}"), BOTH),
    Case("config: a pipe", piped("config.json"), BOTH),
    *(
        Case(f"config: {key} {value:.0e}", config(**{key: value}), BOTH)
        for key in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings",
                    "type_vocab_size", "intermediate_size", "num_attention_heads")
        for value in (10**9, 10**18)
    ),
    Case("config: all sizes 10**6, one head",
         config(num_hidden_layers=10**6, hidden_size=10**6, vocab_size=10**6, num_attention_heads=1,
                intermediate_size=10**6), BOTH),
    Case("config: num_labels 10**9",
         config(num_labels=10**9, architectures=["BertForSequenceClassification"]), ("model",)),
    Case("config: a million labels",
         later(lambda: config(id2label={str(number): "x" for number in range(10**6)},
                              architectures=["BertForSequenceClassification"])), ("model",)),
    Case("config: layer_norm_eps 10**400", config(layer_norm_eps=10**400), BOTH),
    Case("config: a model_type of a million characters", config(model_type="x" * 10**6), BOTH),
    *(
        Case(f"config: {key} {json.dumps(value)}", config(**{key: value}), BOTH)
        for key, value in (
            ("hidden_size", "12"), ("hidden_size", None), ("hidden_size", -12),
            ("hidden_size", 12.0), ("hidden_size", [12]), ("hidden_size", True),
            ("layer_norm_eps", "x"), ("layer_norm_eps", float("nan")),
            ("hidden_dropout_prob", float("inf")), ("hidden_dropout_prob", 1),
            ("hidden_act", ["gelu"]), ("hidden_act", {}), ("pruned_heads", {"0": [1]}),
            ("quantization_config", {"bits": 4}), ("tie_word_embeddings", "yes"),
            ("classifier_dropout", []), ("model_type", {}),
        )
    ),
    Case("config: architectures of numbers", config(architectures=[1]), ("model",)),
    Case("config: id2label a list", config(id2label=[1], architectures=["BertForMaskedLM"]),
         ("model",)),
    Case("config: auto_map, which asks for code", config(auto_map={"AutoModel": "evil.Model"}),
         ("encoder",), is_read=True),
]  # fmt: skip
