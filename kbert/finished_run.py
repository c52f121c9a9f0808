"""A finished run's folder, opened again: its options, its model, its splits and other files."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kbert.batches import EncodedSplit, encode_split
from kbert.checkpoint_files import TensorFile, open_tensors
from kbert.config import Config, parse
from kbert.data import read_split
from kbert.errors import InputError
from kbert.experiment import Experiment, Materials, new_tokenizer
from kbert.foreign_files import malformed_told, read_object, refuse_links_out
from kbert.learned import read_learned
from kbert.loading import resolve
from kbert.search_space import with_values
from kbert.tasks import task_class
from kbert.tasks.task import Learned, Task
from kbert.text_files import Source

READ = ("*.json", "*.yaml", "*.csv", "*.safetensors", "checkpoints/*.safetensors", "evaluation/*")
"""What is read of a run's folder besides its export, and where evaluations are written."""
ADVICE = "bring the run's own file back"


@dataclass(frozen=True)
class Part:
    """Rows to measure, and what measures them."""

    experiment: Experiment
    split: EncodedSplit
    linear: EncodedSplit
    """The same rows in the word pieces of the linear model: those of the options as they stand,
    whatever checkpoint a search has chosen."""
    source: Source
    """The file of the rows."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run's folder says; see `open_run`."""

    folder: Path
    options: Config
    """As config.yaml holds them."""
    metrics: dict[str, Any]
    """What metrics.json holds."""

    @property
    def config(self) -> Config:
        """The options of the model that was kept: those of a search's winner."""
        search = self.metrics.get("search")
        if search is None:
            return self.options
        path = self.folder / "metrics.json"
        try:
            values = search["winner"]["hyperparameters"]
        except (TypeError, KeyError):
            raise InputError(
                f"{path}: the search is told as an older kbert did, without a winner."
            ) from None
        with malformed_told(path, advice=ADVICE):
            return with_values(self.options, values)

    @property
    def learned(self) -> Learned:
        """What the run knew of its training rows.

        Raises:
            InputError: it is told nowhere.
        """
        found = read_learned(self.folder)
        if found is not None:
            return found
        if task_class(self.options.task.name).columns(self.options).label is None:
            return Learned()
        path = self.folder / "metrics.json"
        with malformed_told(path, advice=ADVICE):
            for name in ("train", "test", "validation"):  # an older kbert has no other place
                if "labels" in self.metrics.get(name, {}):
                    labels = tuple(self.metrics[name]["labels"])
                    counts = self.metrics["train"].get("label_counts", [1] * len(labels))
                    return Learned(labels, np.array(counts, np.int64))
        raise InputError(
            f"{path}: it does not tell the labels; measure a split of the run by --split."
        )

    @property
    def fitted(self) -> dict[str, Any]:
        """What the task fitted on the validation split; {} where nothing.

        Raises:
            InputError: it is not told in numbers.
        """
        with malformed_told(self.folder / "metrics.json", advice=ADVICE):
            if "fitted" in self.metrics:
                return _numbers(self.metrics["fitted"])
            for block in (self.metrics, *map(self.metrics.get, ("test", "validation"))):
                if block and block.get("calibration"):  # an older kbert tells it there alone
                    return {"temperature": float(block["calibration"]["temperature"])}
        return {}

    def part(self, split: str) -> Part:
        """One of the run's own splits, its rows drawn again.

        Raises:
            InputError: there is no such split, or a file is gone or is not what it was.
        """
        # what measures needs no unlabelled texts, which may be gone
        distill = dataclasses.replace(self.options.distill, unlabelled=None)
        materials = Materials(dataclasses.replace(self.options, distill=distill))
        before = self.metrics["train"].get("files", materials.digests)
        if changed := [name for name, digest in materials.digests.items()
                       if before.get(name) != digest]:  # fmt: skip
            raise InputError(
                f"{getattr(self.options.data, changed[0])}: the file has changed since the run; "
                "bring the old one back, or name a file by --data.test."
            )
        experiment = materials.experiment(self.config)
        if split not in experiment.splits:
            raise InputError(
                f"--split {split}: the run has no such split; it has "
                f"{', '.join(experiment.splits)}."
            )
        return Part(
            experiment,
            experiment.splits[split],
            materials.experiment(self.options).splits[split],
            materials.dataset.splits[split].source,
        )

    def part_of_file(self) -> Part:
        """All rows of the file that is data.test; the run's own data files may be gone.

        Raises:
            InputError: the file, a column or a label of it cannot be used.
        """
        data, config = self.options.data, self.config
        columns = task_class(config.task.name).columns(self.options)
        split = read_split(str(data.test), data, columns, self.learned.labels)

        def encoded(options: Config) -> Experiment:
            experiment = self._without_data(options)
            rows = encode_split(split, experiment.task, cache_dir=data.cache_dir)
            return dataclasses.replace(experiment, splits={"test": rows})

        experiment = encoded(config)
        ours, theirs = config.model, self.options.model
        same = (ours.checkpoint, ours.vocab) == (theirs.checkpoint, theirs.vocab)
        linear = experiment if same else encoded(self.options)
        return Part(experiment, experiment.splits["test"], linear.splits["test"], split.source)

    def experiment_without_data(self) -> Experiment:
        """The task and the options of the model that was kept; the data files may be gone.

        Raises:
            InputError: the checkpoint or the vocabulary is gone.
        """
        return self._without_data(self.config)

    def _without_data(self, config: Config) -> Experiment:
        checkpoint = None
        if config.checkpoint:
            checkpoint = resolve(config.checkpoint, revision=config.model.revision)
        learned = self.learned
        tokenizer = new_tokenizer(config, checkpoint, learned)
        task: Task = task_class(config.task.name)(config, tokenizer, learned)
        return Experiment(config, task, {}, checkpoint)

    @property
    def weights(self) -> Path:
        """The file of the model that the run kept.

        Raises:
            InputError: it is gone.
        """
        path = self.folder / "checkpoints" / "model.safetensors"
        if not path.exists():
            raise InputError(f"{path}: there is no such file; the run's weights are gone.")
        return path

    def model(self, experiment: Experiment) -> keras.Model:
        """The model that the run kept, in float32; the task answers with what was fitted.

        Args:
            experiment: That of a `Part`.

        Raises:
            InputError: the weights are gone, damaged, or of another model.
        """
        tensors = open_tensors(self.weights)
        _require_sizes(tensors, self.learned)
        if self.fitted:
            with malformed_told(self.folder / "metrics.json", advice=ADVICE):
                experiment.task.use_fitted(self.fitted)
        try:
            with _without_load_report():
                model = experiment.in_float32().new_model()
        except InputError as error:
            raise InputError(f"{self.folder / 'config.yaml'}: {error}") from None
        _assign(model, tensors)
        return model


def open_run(folder: Path, overrides: Sequence[str] = ()) -> FinishedRun:
    """The run of a folder.

    Args:
        folder: What `--output` of train.py was.
        overrides: Options that replace those of config.yaml, as words of a command line.

    Raises:
        InputError: there is no run, it is not finished, or an option is wrong.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise InputError(f"{folder}: no run is there (no config.yaml); name a run's folder.")
    refuse_links_out(folder, READ)
    words = ["--config", str(path), "--output", str(folder)]  # it may have been moved since
    try:
        trained = len(parse(words).data.text_columns)
    except InputError as error:
        named = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise InputError(named) from None
    options = parse([*words, *overrides])
    if len(options.data.text_columns) != trained:
        raise InputError(
            f"--data.text_column: the run was trained on {trained} text column"
            f"{'s' if trained != 1 else ''}, not {len(options.data.text_columns)}; name as many."
        )
    if not (folder / "metrics.json").exists():
        raise InputError(
            f"{folder}: the run is not finished (no metrics.json); the command that began it goes "
            "on."
        )
    metrics = read_object(folder / "metrics.json", advice=ADVICE)
    if not isinstance(metrics.get("train"), dict):
        raise InputError(f"{folder / 'metrics.json'}: not the figures of a run; {ADVICE}.")
    return FinishedRun(folder, options, metrics)


def _numbers(fitted: Any) -> dict[str, Any]:
    """Numbers by name, or by name and label."""
    for value in fitted.values():
        for number in value.values() if isinstance(value, dict) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TypeError(f"{number!r} is no number")
    return fitted


def _require_sizes(tensors: TensorFile, learned: Learned) -> None:
    """Check that a model of what a run has learned is one of its weights, before it is made.

    Raises:
        InputError: it tells of more labels, or of larger vocabularies, than there are weights for.
    """
    sizes = {size for name in tensors for size in tensors.shape(name)}
    vocabularies = (learned.vocabulary, *learned.vocabularies.values())
    for names in (learned.labels, *learned.names.values(), *vocabularies):
        if len(names) > max(sizes, default=0):
            raise InputError(
                f"{tensors.path}: has weights for {max(sizes, default=0):,} names at most, and the "
                f"run's learned.json tells {len(names):,}; {ADVICE}."
            )


def _assign(model: keras.Model, tensors: TensorFile) -> None:
    """Give a model the weights that stand under its paths, all or none.

    Raises:
        InputError: one is missing or damaged, or has another shape.
    """
    arrays = []
    for variable in model.weights:
        shape = tensors.shape(variable.path) if variable.path in tensors else None
        if shape != tuple(variable.shape):
            raise InputError(
                f"{tensors.path}: has {variable.path} of shape {shape}, and the run's options are "
                f"of a model that needs {tuple(variable.shape)}; {ADVICE}."
            )
        arrays.append(tensors[variable.path])
    for variable, array in zip(model.weights, arrays, strict=True):
        variable.assign(array)


@contextlib.contextmanager
def _without_load_report() -> Iterator[None]:
    """What the checkpoint lacks is of no interest where a run's weights replace all of it."""
    log = logging.getLogger("kbert.loading")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
