"""A whole run: data -> task -> (search) -> fit -> evaluate -> export, in one output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import yaml

from kbert.batches import EncodedSplit, encode_split
from kbert.config import Config, TrainOptions, as_dict, as_yaml, differences
from kbert.data import DataSet, read_dataset, require_files
from kbert.errors import InputError
from kbert.evaluation import collect, write_predictions
from kbert.export import export
from kbert.loading import resolve
from kbert.monitor import TensorBoardMonitor
from kbert.preprocessing import tokenizer_from_files, tokenizer_from_vocabulary_file
from kbert.saving import save_checkpoint
from kbert.tasks import task_class
from kbert.tasks.task import Task
from kbert.terminal import ProgressReport, print_table
from kbert.training import Interrupted, copy_weights, fit, new_model, save_weights
from kbert.whole_files import written_whole

SMOKE_ROWS = 64
NOISY_LOGS = ("absl", "tensorflow", "httpx", "huggingface_hub")
UNCOMPARED = ("resume", "debug", "output")  # what may differ when a run goes on


def run(config: Config) -> int:
    """Do what the options say; the exit status.

    Raises:
        InputError: a file, an option, a checkpoint or the output folder cannot be used.
    """
    _set_up_logging(debug=config.debug)
    tf.config.experimental.enable_op_determinism()
    folder = Path(config.output)
    if _is_finished(folder, config):
        print(f"{folder} is finished: see {folder / 'metrics.json'}.")
        return 0
    task, splits, checkpoint = _prepare(config)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / "config.yaml", as_yaml(config))
    try:
        with _saying_once("kbert.loading"):
            _train_and_export(config, task, splits, checkpoint, folder)
    except Interrupted:
        print(f"stopped; the same command goes on from {folder / 'checkpoints'}.")
        return 130
    except InputError:
        if is_new and not (folder / "checkpoints").exists():  # nothing worth keeping
            shutil.rmtree(folder)
        raise
    return 0


def _set_up_logging(*, debug: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("kbert").setLevel(logging.DEBUG if debug else logging.INFO)
    for noisy in NOISY_LOGS:
        logging.getLogger(noisy).setLevel(logging.ERROR)


@contextlib.contextmanager
def _saying_once(name: str) -> Iterator[None]:
    """Every trial of a search loads the same checkpoint: what was loaded is said once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not (message in said or said.add(message))

    logging.getLogger(name).addFilter(is_new)
    try:
        yield
    finally:
        logging.getLogger(name).removeFilter(is_new)


def _is_finished(folder: Path, config: Config) -> bool:
    """Whether there is nothing left to do in the folder; InputError if it is another run's."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: this is a file.")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if config.resume == "never":
        raise InputError(f"--output {folder} is not empty: --resume never needs a new folder.")
    try:
        old = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"--output {folder} is not empty and holds no run (no config.yaml): name a new folder."
        ) from None
    new = {name: value for name, value in as_dict(config).items() if name not in UNCOMPARED}
    old = {name: value for name, value in old.items() if name not in UNCOMPARED}
    differing = differences(old, new)
    if differing:
        raise InputError(
            f"--output {folder} holds a run with other options ({'; '.join(differing)}): "
            "name a new folder."
        )
    return (folder / "metrics.json").exists()


def _prepare(config: Config) -> tuple[Task, dict[str, EncodedSplit], Path | None]:
    """Read and tokenise everything that the run depends on; nothing is written to its folder."""
    require_files(config.data)
    kind = task_class(config.task.name)
    checkpoint = None
    if config.model.checkpoint:
        checkpoint = resolve(config.model.checkpoint, revision=config.model.revision)
        tokenizer = tokenizer_from_files(checkpoint)
    else:
        vocab = Path(config.model.vocab)
        tokenizer = tokenizer_from_vocabulary_file(vocab, lowercase=config.model.lowercase)
    dataset = read_dataset(config.data, labelled=kind.labelled, seed=config.train.seed)
    counts = np.bincount(
        dataset.splits["train"].labels if kind.labelled else [], minlength=len(dataset.labels)
    )
    task = kind(config, tokenizer, dataset.labels, counts)
    splits = {
        name: encode_split(split, task, cache_dir=config.data.cache_dir)
        for name, split in dataset.splits.items()
    }
    if config.smoke:
        splits = {name: _first_rows(split) for name, split in splits.items()}
    _describe(dataset, splits, task)
    return task, splits, checkpoint


def _first_rows(split: EncodedSplit) -> EncodedSplit:
    return split.take(np.arange(min(SMOKE_ROWS, len(split))))


def _describe(dataset: DataSet, splits: dict[str, EncodedSplit], task: Task) -> None:
    rows = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    lengths = splits["train"].lengths
    print(
        f"rows: {rows}; {len(task.labels)} classes; word pieces a text: median "
        f"{int(np.median(lengths))}, 95% {int(np.percentile(lengths, 95))}, "
        f"longest {int(lengths.max())} (max_length {task.max_length})"
    )
    found = {name: count for name, count in dataset.duplicates.items() if count}
    if found:
        counts = ", ".join(f"{name} {count}" for name, count in found.items())
        print(f"exact duplicates: {counts}")


def _train_and_export(
    config: Config,
    task: Task,
    splits: dict[str, EncodedSplit],
    checkpoint: Path | None,
    folder: Path,
) -> None:
    def build(options: TrainOptions) -> keras.Model:
        return new_model(task, checkpoint, config.model, options)

    metrics: dict[str, Any] = {}
    options = config.train
    if config.search.tuner != "none":
        options = _search(config, task, splits, build, folder, metrics)
    model, progress = _fit(config, task, splits, build(options), options, folder)
    # measured and exported in float32, whatever it was trained in
    exact = build(dataclasses.replace(options, precision="float32"))
    copy_weights(model, exact)
    for name in ("validation", "test"):
        if name in splits:
            metrics[name] = _evaluate(exact, task, splits[name], name, folder)
    metrics["train"] = {
        "examples_per_second": progress.examples_per_second,
        "rows": len(splits["train"]),
        "epochs": progress.epoch,
        "best_epoch": None if progress.best_epoch is None else progress.best_epoch + 1,
        "history": progress.history,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
    }
    if config.export.enabled:
        base = (folder / "export" / config.export_name).resolve()
        if not (base / str(config.export.version)).exists():
            exported = export(exact, task, base, version=config.export.version)
            print(f"exported, and answered as the model does in a fresh process: {exported}")
    if config.export.huggingface:
        _save_for_huggingface(exact, task, folder / "huggingface")
    save_weights(exact, folder / "checkpoints" / "model.safetensors")
    # a folder with metrics.json is finished; what is dropped after it is needed no more
    _write_text(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    for state in (folder / "checkpoints").glob("step-*.safetensors"):
        state.unlink()


def _save_for_huggingface(model: keras.Model, task: Task, folder: Path) -> None:
    if folder.exists():  # it is written whole or not at all
        return
    reference = task.reference()
    if reference is None:
        raise InputError(
            "export.huggingface: transformers has no model of this task; leave it out."
        )
    save_checkpoint(
        model,
        folder,
        tokenizer=task.tokenizer,
        labels=task.labels or None,
        problem_type=reference.problem_type,
    )
    print(f"a checkpoint in HuggingFace layout: {folder}")


def _search(config, task, splits, build, folder, metrics) -> TrainOptions:
    from kbert.search import search  # keras-tuner takes a second to import

    outcome = search(
        build,
        task,
        splits["train"],
        splits.get("validation"),
        config.train,
        config.search,
        folder=folder / "search",
    )
    print_table(outcome.trials)
    columns = outcome.trials.columns
    metrics["search"] = [dict(zip(columns, row, strict=True)) for row in outcome.trials.rows]
    return outcome.options


def _fit(config, task, splits, model, options, folder):
    steps = math.ceil(len(splits["train"]) / options.batch_size) * options.epochs
    callbacks: list = [ProgressReport("train", total_steps=steps)]
    if config.monitor.tensorboard:
        callbacks.append(
            TensorBoardMonitor(
                folder / "tensorboard",
                every_steps=config.monitor.every_steps,
                options=as_yaml(config),
            )
        )
    try:
        progress = fit(
            model,
            task,
            splits["train"],
            splits.get("validation"),
            options,
            folder=folder / "checkpoints",
            callbacks=callbacks,
        )
    finally:
        for callback in callbacks:
            callback.close()
    return model, progress


def _evaluate(model, task: Task, split: EncodedSplit, name: str, folder: Path) -> dict:
    outputs = collect(model, task, split)
    scores = task.score(outputs, split.labels)
    if name == "test":
        write_predictions(folder / "predictions.csv", task, split, outputs)
        for table in scores.tables:
            print_table(dataclasses.replace(table, title=f"{name}: {table.title}"))
    return scores.metrics


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")
