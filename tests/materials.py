"""What fixtures and tests are made of: a checkpoint, a file of texts, a new model's export."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest

WORDS = (
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "good",
    "bad",
    "##s",
    "##ly",
    "a",
    "not",
    ".",
    "好",
    "人",
)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)


def write_tiny_checkpoint(folder: Path) -> Path:
    """A BERT of odd sizes in HuggingFace layout; weights at std 0.3 show what 0.02 hides."""
    import keras

    from kbert.checkpoint_files import write_safetensors
    from kbert.config import EncoderConfig
    from kbert.encoder import build_encoder
    from kbert.huggingface import bert_config, named_tensors

    config = EncoderConfig(
        vocabulary_size=len(VOCABULARY),
        hidden_dim=12,
        num_layers=2,
        num_heads=3,
        intermediate_dim=21,
        max_sequence_length=33,
    )
    keras.utils.set_random_seed(0)
    encoder = build_encoder(config)
    generator = np.random.default_rng(0)
    for variable in encoder.weights:
        variable.assign(variable + generator.normal(0, 0.3, variable.shape))
    write_safetensors(folder / "model.safetensors", named_tensors(encoder))
    (folder / "config.json").write_text(json.dumps(bert_config(config)), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8")
    return folder


def write_tiny_csv(path: Path) -> Path:
    """101 texts of one to nine words; good is positive, bad is negative."""
    generator = np.random.default_rng(0)
    lines = ["text,label"]
    for index in range(101):
        word, label = (("good", "positive"), ("bad", "negative"))[index % 2]
        words = [*generator.choice(["the", "cat", "dogs", "sat", "ran"], index % 9), word, "."]
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def export_untrained(
    checkpoint: Path,
    base: Path,
    *words: str,
    labels: tuple[str, ...] = (),
    names: dict[str, tuple[str, ...]] | None = None,
):
    """A new model, its task, and the folder of its exported version 3 in a base folder."""
    from kbert.config import parse
    from kbert.export import export
    from kbert.lineage import lineage
    from kbert.preprocessing import tokenizer_from_files
    from kbert.tasks import task_class
    from kbert.tasks.task import Learned
    from kbert.training import new_model

    files = ["--data.train", "none.csv", "--output", "none", "--model.checkpoint", str(checkpoint)]
    config = parse([*files, "--export.name", base.name, "--export.version", "3", *words])
    learned = Learned(labels, np.ones(len(labels), int), names or {})
    task = task_class(config.task.name)(config, tokenizer_from_files(checkpoint), learned)
    model = new_model(task, checkpoint, config.model, config.train)
    generator = np.random.default_rng(1)
    for variable in model.layers[-1].weights:
        variable.assign(variable + generator.normal(0, 0.3, variable.shape))
    made = lineage(
        config,
        data={"train": 64 * "0"},
        rows={"train": 1},
        checkpoint=checkpoint,
        seed=0,
        trial=None,
        search=None,
    )
    return model, task, export(model, task, base, version=3, lineage=made)


def finish_untrained(words: list[str], folder: Path) -> Path:
    """The folder of a run that is finished, but for its model, which is new."""
    from kbert.config import as_yaml, parse
    from kbert.evaluation import measure
    from kbert.experiment import Materials
    from kbert.learned import write_learned
    from kbert.training import save_weights

    config = parse([*words, "--output", str(folder)])
    materials = Materials(config)
    experiment = materials.experiment(config)
    model = experiment.new_model()
    save_weights(model, folder / "checkpoints" / "model.safetensors")
    (folder / "config.yaml").write_text(as_yaml(config), encoding="utf-8")
    write_learned(folder, materials.learned)
    metrics = {name: measure(model, experiment.task, of) for name, of in experiment.splits.items()}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def installed_folder(package: str, ending: str) -> Path:
    """The folder of an installed package's file; the test is skipped without it."""
    try:
        found = [file for file in files(package) or () if str(file).endswith(ending)]
    except PackageNotFoundError:
        pytest.skip(f"the package {package} is not installed")
    return Path(str(found[0].locate())).parent
