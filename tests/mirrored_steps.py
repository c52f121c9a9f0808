"""One device and two replicas side by side, every task; `tests/test_distribution.py` runs it.

A process of its own: TensorFlow is told of its devices before it does anything. It prints, as JSON
by the name of a case, how far figures and weights are apart after an epoch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

FOLDER, CHECKPOINT = Path(sys.argv[1]), sys.argv[2]
AS_A_GRAPH = "tagging in parts, as a graph"
EPOCH = {"--data.max_length": 12, "--train.epochs": 1, "--train.batch_size": 5,
         "--train.learning_rate": 1e-3, "--model.dropout": 0, "--train.seed": 3}  # fmt: skip


def write(name: str, lines: list[str]) -> str:
    path = FOLDER / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def cases() -> dict[str, list[str]]:
    """Options of every task: rows that weigh unequally, examples of several rows, a last batch of
    one row, so that a replica has none."""
    texts = ["the cat sat .\tpositive", "good cats ran\tnegative", "the dog\tpositive"]
    pairs = ["the cat sat .\tthe dog ran .\t1", "good cats ran\tbad\t3", "the dog\ta dog .\t5"]
    tags = ["the cat sat\tO B-X O\tgo", "good\tB-Y\tstop", "a dog ran . bad\tO B-X O O B-Y\tgo"]
    answers = ["cat sat\tthe good cat sat . a dog ran .\tgood cat", "ran\ta bad dog ran\tdog"]
    labels = ["the cat sat .\tx,y", "good cats ran\ty", "the dog\t"]
    files = {
        "texts": write("texts.tsv", ["text\tlabel", *texts * 9][:12]),
        "pairs": write("pairs.tsv", ["a\tb\tlabel", *pairs * 9][:12]),
        "tags": write("tags.tsv", ["text\ttags\tintent", *tags * 9][:12]),
        "answers": write("answers.tsv", ["question\tcontext\tanswer", *answers * 13][:12]),
        "labels": write("labels.tsv", ["text\tlabel", *labels * 9][:12]),
        "translations": write("translations.tsv", ["text\ttarget\tlabel", *pairs * 9][:12]),
    }
    two = ["--data.text_column", "[a, b]"]
    kinds = {
        "classification": ("texts", ["--task.class_weights", "balanced"]),
        "windows": ("texts", ["--data.max_length", "6", "--data.stride", "1"]),
        "low rank": ("texts", ["--train.lora_rank", "2"]),
        "features": ("texts", ["--task", "features"]),
        "regression": ("pairs", ["--task", "regression", *two]),
        "embedding": ("pairs", ["--task", "embedding", *two]),
        "multi_label": ("labels", ["--task", "multi_label"]),
        "masked_lm": ("texts", ["--task", "masked_lm", "--task.mask_rate", "0.4"]),
        "next_sentence": ("texts", ["--task", "masked_lm", "--task.next_sentence", "true"]),
        "question_answering": (
            "answers",
            ["--task", "question_answering", "--data.text_column", "[question, context]",
             "--data.max_length", "10"],
        ),
        "translation": ("translations", ["--task", "translation", "--task.decoder_layers", "1"]),
        AS_A_GRAPH: ("tags", ["--task", "tagging", "--task.intent_column", "intent",
                                "--train.accumulate", "2", "--train.rematerialize", "true"]),
    }  # fmt: skip
    return {name: ["--data.train", files[file], *words] for name, (file, words) in kinds.items()}


def experiment_of(words: list[str]) -> Any:
    from kbert.config import parse
    from kbert.experiment import Materials
    from kbert.trained_part import trained_part

    fixed = [str(word) for pair in EPOCH.items() for word in pair]
    config = parse([
        *fixed, *words, "--model.checkpoint", CHECKPOINT, "--output", str(FOLDER / "run"),
        "--data.cache_dir", str(FOLDER / "cache"),
        "--data.validation_fraction", "0", "--data.test_fraction", "0",
    ])  # fmt: skip
    return trained_part(Materials(config).experiment(config))


def mirrored(experiment: Any) -> Any:
    train = dataclasses.replace(experiment.config.train, strategy="mirrored")
    config = dataclasses.replace(experiment.config, train=train)
    return dataclasses.replace(experiment, config=config)


def trained(
    experiment: Any, folder: Path | None = None, until_epoch: int | None = None
) -> tuple[keras.Model, dict[str, float]]:
    model = experiment.new_model()
    progress = experiment.train(model, folder=folder, callbacks=[], until_epoch=until_epoch)
    return model, progress.history[0]


def compare(words: list[str]) -> dict[str, Any]:
    """How far an epoch by two replicas is from that by one device."""
    experiment = experiment_of(words)
    before = {of.path: of.numpy() for of in experiment.new_model().weights}
    (one, figures), (two, theirs) = trained(experiment), trained(mirrored(experiment))
    # what moves all logits of a text alike has a gradient of rounding alone
    rounding = ("key/bias", "qa_outputs/bias")
    if "question_answering" in words:
        rounding += ("transformer_layer_1/feedforward_layer_norm/beta",)
    weights, moved = {}, {}
    for ours, other in zip(one.weights, two.weights, strict=True):
        if not ours.path.endswith(rounding):
            weights[ours.path] = float(np.abs(ours.numpy() - other.numpy()).max())
            moved[ours.path] = float(np.abs(ours.numpy() - before[ours.path]).max())
    return {
        "figures": without_parts(figures),
        "of two": without_parts(theirs),
        "worst": max(weights, key=lambda path: weights[path]),
        "apart": max(weights.values()),
        "moved": max(moved.values()),
        "replicas": two.replicas.count,
        "rows": len(experiment.splits["train"]),
    }


def without_parts(figures: dict[str, float]) -> dict[str, float]:
    """All but the losses of several outputs, which Keras weighs by rows in eager mode alone."""
    return {name: of for name, of in figures.items() if not name.endswith("_loss")}


def dropout(words: list[str]) -> dict[str, bool]:
    """Whether both replicas drop the same of equal rows; whether a resumed run is the whole one."""
    words = [*words, "--model.dropout", "0.5", "--train.epochs", "2"]
    experiment = mirrored(experiment_of(words))
    whole, _ = trained(experiment, FOLDER / "whole")
    trained(experiment, FOLDER / "parts", until_epoch=1)
    keras.utils.set_random_seed(7)  # another process starts from another state
    parts, _ = trained(experiment, FOLDER / "parts")
    pairs = zip(whole.weights, parts.weights, strict=True)
    same = all((ours.numpy() == theirs.numpy()).all() for ours, theirs in pairs)
    strategy = whole.replicas.strategy
    ids = tf.constant([[2, 7, 3]])
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": tf.ones_like(ids)}
    outputs = strategy.run(lambda: whole(inputs, training=True))
    left, right = (of.numpy() for of in strategy.experimental_local_results(outputs))
    return {"alike": bool(np.allclose(left, right)), "resumed": same}


def main() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device, device])
    tf.config.experimental.enable_op_determinism()
    found = {}
    for name, words in cases().items():
        # a graph takes ten times as long to trace as an epoch of such rows takes to compute
        tf.config.run_functions_eagerly(name != AS_A_GRAPH)
        found[name] = compare(words)
    tf.config.run_functions_eagerly(True)
    found["dropout"] = dropout(cases()["classification"])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
