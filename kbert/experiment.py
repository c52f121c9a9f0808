"""From options to all that a training depends on; data and tokenised texts are shared."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from kbert.batches import EncodedSplit, encode_split
from kbert.config import Config, EncoderConfig, MonitorOptions
from kbert.data import DataSet, Split, read_dataset, read_unlabelled, require_files
from kbert.errors import InputError
from kbert.learned import learn
from kbert.lineage import data_digests
from kbert.loading import resolve
from kbert.preprocessing import (
    WordPieceTokenizer,
    tokenizer_from_files,
    tokenizer_from_vocabulary_file,
)
from kbert.tasks import task_class
from kbert.tasks.task import Learned, Task
from kbert.training import (
    Progress,
    check_best_metric,
    copy_weights,
    fit,
    model_config,
    new_model,
)

SMOKE_ROWS = 64
_Rows = tuple[dict[str, EncodedSplit], tuple[EncodedSplit, ...]]  # with labels, and without


@dataclass(frozen=True)
class Experiment:
    """One configuration, ready to be trained."""

    config: Config
    task: Task
    splits: dict[str, EncodedSplit]
    """train, and validation and test where there are any."""
    checkpoint: Path | None
    """Folder in HuggingFace layout; None for a model from scratch."""
    unlabelled: tuple[EncodedSplit, ...] = ()
    """Rows without labels, of a file each, of which a student learns what its teacher says."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        train = self.config.train
        return math.ceil(len(self.splits["train"]) / train.batch_size) * train.epochs

    def check(self) -> None:
        """InputError if the model has too few positions, blocks or heads, if there is no metric of
        that name, not the validation split that is needed, or no such model of HuggingFace's."""
        model = model_config(self.task, self.checkpoint, self.config.model, self.config.train)
        _check_attention(self.config.monitor, model)
        check_best_metric(self.task, self.splits.get("validation"), self.config.train)
        validation = self.splits.get("validation", ())
        outside = len(validation.outside) if validation else 0
        self.task.check_validation(len(validation), outside)
        reference = self.task.reference()
        if self.config.export.huggingface and (reference is None or reference.of_encoder):
            raise InputError(
                "export.huggingface: transformers has no model of this task; leave it out."
            )

    def new_model(self) -> keras.Model:
        """The task's model as training starts with it."""
        return new_model(self.task, self.checkpoint, self.config.model, self.config.train)

    def train(
        self,
        model: keras.Model,
        *,
        folder: Path | None,
        callbacks: Sequence[keras.callbacks.Callback],
        until_epoch: int | None = None,
    ) -> Progress:
        """`kbert.training.fit` with the experiment's task, splits and options."""
        return fit(
            model,
            self.task,
            self.splits["train"],
            self.splits.get("validation"),
            self.config.train,
            folder=folder,
            callbacks=list(callbacks),
            until_epoch=until_epoch,
        )

    def exact_model(self, model: keras.Model) -> keras.Model:
        """The same weights in float32, whatever they were trained in: to measure and export."""
        return self.model_in("float32", model)

    def model_in(self, precision: str, model: keras.Model) -> keras.Model:
        """The same weights, computed in a train.precision."""
        found = self.in_precision(precision).new_model()
        if self.task.has_features:  # then the classifier is all that was trained
            copy_weights(model.get_layer("classifier"), found.get_layer("classifier"))
        else:
            copy_weights(model, found)
        return found

    def take(self, rows: np.ndarray) -> Experiment:
        """The same with some of the training rows, by their position."""
        splits = {**self.splits, "train": self.splits["train"].take(rows)}
        return dataclasses.replace(self, splits=splits)

    def for_one_epoch(self) -> Experiment:
        """The same for one epoch, without measuring."""
        train = dataclasses.replace(self.config.train, epochs=1, best_metric=None, patience=0)
        config = dataclasses.replace(self.config, train=train)
        return dataclasses.replace(self, config=config, splits={"train": self.splits["train"]})

    def in_float32(self) -> Experiment:
        """The same, computed in float32 by one device."""
        return self.in_precision("float32")

    def in_precision(self, precision: str) -> Experiment:
        """The same, computed in a train.precision by one device."""
        train = dataclasses.replace(self.config.train, precision=precision, strategy="none")
        return dataclasses.replace(self, config=dataclasses.replace(self.config, train=train))


class Materials:
    """The data of a run, read and tokenised once; experiments of any options are made from them.

    Options may differ in all that a search changes. Files, columns, fractions and the seed of the
    split are those of the first options.

    Args:
        config: Options of the run.

    Raises:
        InputError: a file, a column, a checkpoint or a vocabulary cannot be used.
    """

    def __init__(self, config: Config) -> None:
        require_files(config.data)
        self.config = config
        self.kind = task_class(config.task.name)
        self._checkpoints: dict[str, Path] = {}
        self._tokenizers: dict[tuple[str | None, str | None], WordPieceTokenizer] = {}
        self._encoded: dict[str, _Rows] = {}
        self.digests = data_digests(config.data)
        """SHA-256 of each file, as it was before it was read."""
        self.learned = Learned()
        if config.model.vocab_size is None:
            self._tokenizer(config)  # a wrong checkpoint is noticed before the data is read
        columns = self.kind.columns(config)
        self.dataset: DataSet = read_dataset(config.data, columns, seed=config.train.seed)
        self.unlabelled = [
            read_unlabelled(Path(file), config.data, columns)
            for file in config.distill.unlabelled_files
        ]
        self.learned = learn(self.dataset, columns, config)
        """What the task knows of the training rows."""

    def experiment(self, config: Config) -> Experiment:
        """Everything that a training with these options depends on."""
        task = self.kind(config, self._tokenizer(config), self.learned)
        splits, unlabelled = self._rows(task)
        return Experiment(config, task, splits, self._checkpoint(config), unlabelled)

    def _checkpoint(self, config: Config) -> Path | None:
        """The folder, which a hub is asked for once and not by every trial."""
        name = config.checkpoint
        if not name:
            return None
        if name not in self._checkpoints:
            self._checkpoints[name] = resolve(name, revision=config.model.revision)
        return self._checkpoints[name]

    def _tokenizer(self, config: Config) -> WordPieceTokenizer:
        key = (config.checkpoint, config.model.vocab)
        if key not in self._tokenizers:
            checkpoint = self._checkpoint(config)
            self._tokenizers[key] = new_tokenizer(config, checkpoint, self.learned)
        return self._tokenizers[key]

    def _rows(self, task: Task) -> _Rows:
        def encoded(split: Split) -> EncodedSplit:
            rows = encode_split(split, task, cache_dir=self.config.data.cache_dir)
            return _first_rows(rows) if self.config.smoke else rows

        key = json.dumps(task.encoding_key, sort_keys=True)
        if key not in self._encoded:
            splits = {name: encoded(split) for name, split in self.dataset.splits.items()}
            self._encoded[key] = splits, tuple(map(encoded, self.unlabelled))
        return self._encoded[key]


def _check_attention(options: MonitorOptions, model: EncoderConfig) -> None:
    for name, count in (("layers", model.num_layers), ("heads", model.num_heads)):
        asked = getattr(options, f"attention_{name}") or [0]
        if max(asked) >= count:
            raise InputError(
                f"monitor.attention_{name}: {max(asked)} is over {count - 1}, the last of the "
                f"model's {count} {name}."
            )


def new_tokenizer(config: Config, checkpoint: Path | None, learned: Learned) -> WordPieceTokenizer:
    """The checkpoint's tokeniser, or that of the vocabulary of a model from scratch."""
    if checkpoint is not None:
        return tokenizer_from_files(checkpoint)
    if learned.vocabulary:
        return WordPieceTokenizer(learned.vocabulary, lowercase=config.model.lowercase)
    return tokenizer_from_vocabulary_file(
        Path(str(config.model.vocab)), lowercase=config.model.lowercase
    )


def _first_rows(split: EncodedSplit) -> EncodedSplit:
    first = split.take(np.arange(min(SMOKE_ROWS, len(split))))
    return dataclasses.replace(first, outside=split.outside[:SMOKE_ROWS])
