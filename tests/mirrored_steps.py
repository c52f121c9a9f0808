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
        "texts": write("texts.tsv", ["text\tlabel", *texts * 9][:27]),
        "pairs": write("pairs.tsv", ["a\tb\tlabel", *pairs * 9][:27]),
        "tags": write("tags.tsv", ["text\ttags\tintent", *tags * 9][:27]),
        "answers": write("answers.tsv", ["question\tcontext\tanswer", *answers * 13]),
        "labels": write("labels.tsv", ["text\tlabel", *labels * 9][:27]),
        "translations": write("translations.tsv", ["text\ttarget\tlabel", *pairs * 9][:27]),
    }
    two = ["--data.text_column", "[a, b]"]
    kinds = {
        "classification": ("texts", ["--task.class_weights", "balanced"]),
        "windows": ("texts", ["--data.max_length", "6", "--data.stride", "1"]),
        "in parts": ("texts", ["--train.accumulate", "2", "--task.class_weights", "balanced"]),
        "low rank": ("texts", ["--train.lora_rank", "2", "--train.rematerialize", "true"]),
        "features": ("texts", ["--task", "features"]),
        "regression": ("pairs", ["--task", "regression", *two]),
        "embedding": ("pairs", ["--task", "embedding", *two]),
        "multi_label": ("labels", ["--task", "multi_label"]),
        "masked_lm": ("texts", ["--task", "masked_lm", "--task.mask_rate", "0.4"]),
        "next_sentence": ("texts", ["--task", "masked_lm", "--task.next_sentence", "true"]),
        "tagging": ("tags", ["--task", "tagging", "--task.intent_column", "intent"]),
        "question_answering": (
            "answers",
            ["--task", "question_answering", "--data.text_column", "[question, context]",
             "--data.max_length", "10"],
        ),
        "translation": ("translations", ["--task", "translation", "--task.decoder_layers", "1"]),
    }  # fmt: skip
    return {name: ["--data.train", files[file], *words] for name, (file, words) in kinds.items()}


def trained(experiment: Any) -> tuple[keras.Model, dict[str, float]]:
    model = experiment.new_model()
    progress = experiment.train(model, folder=None, callbacks=[])
    return model, progress.history[0]


def compare(words: list[str]) -> dict[str, Any]:
    """How far an epoch by two replicas is from that by one device."""
    from kbert.config import parse
    from kbert.experiment import Materials
    from kbert.trained_part import trained_part

    fixed = [str(word) for pair in EPOCH.items() for word in pair]
    config = parse([
        *fixed, *words, "--model.checkpoint", CHECKPOINT, "--output", str(FOLDER / "run"),
        "--data.cache_dir", str(FOLDER / "cache"),
        "--data.validation_fraction", "0", "--data.test_fraction", "0",
    ])  # fmt: skip
    experiment = trained_part(Materials(config).experiment(config))
    train = dataclasses.replace(config.train, strategy="mirrored")
    mirrored = dataclasses.replace(experiment, config=dataclasses.replace(config, train=train))
    (one, figures), (two, theirs) = trained(experiment), trained(mirrored)
    weights = {
        ours.path: float(np.abs(ours.numpy() - other.numpy()).max())
        for ours, other in zip(one.weights, two.weights, strict=True)
        if not ours.path.endswith("key/bias")  # its gradient is rounding alone
    }
    return {
        "figures": figures,
        "of two": theirs,
        "worst": max(weights, key=lambda path: weights[path]),
        "apart": max(weights.values()),
        "replicas": two.replicas.count,
        "rows": len(experiment.splits["train"]),
    }


def main() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device, device])
    tf.config.experimental.enable_op_determinism()
    chosen = {name: of for name, of in cases().items() if name in sys.argv[3:] or not sys.argv[3:]}
    print(json.dumps({name: compare(words) for name, words in chosen.items()}, indent=1))


if __name__ == "__main__":
    main()
