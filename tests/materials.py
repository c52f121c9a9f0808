"""What fixtures and tests are made of: a new model's export, the files of a package."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest


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
