"""A frozen BERT makes features, once and on disk; a linear classifier is trained on them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kbert.batches import (
    EncodedSplit,
    RaggedColumn,
    cache_root,
    evaluation_batches,
    evaluation_order,
)
from kbert.evaluation import Evaluator
from kbert.experiment import Experiment
from kbert.heads import linear_classifier
from kbert.logistic import fit_logistic
from kbert.training import Progress, ValidationPass, model_config
from kbert.whole_files import written_whole

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cached files
BATCH_SIZE = 32


@dataclass(frozen=True)
class FeatureExperiment(Experiment):
    """The part of an experiment with a frozen encoder that is trained: a linear classifier."""

    seconds: float
    """What the features of the rows took; nearly nothing where they were cached."""

    def new_model(self) -> keras.Model:
        """A new classifier: features, float32 (batch, hidden), to logits (batch, classes)."""
        options = self.config
        keras.utils.set_random_seed(options.train.seed)
        config = model_config(self.task, self.checkpoint, options.model, options.train)
        return linear_classifier(config, num_labels=len(self.task.labels))

    def train(
        self,
        model: keras.Model,
        *,
        folder: Path | None,
        callbacks: Sequence[keras.callbacks.Callback],
        until_epoch: int | None = None,
    ) -> Progress:
        """`kbert.training.fit`, or scikit-learn's logistic regression as a single epoch."""
        if self.config.task.classifier == "scikit-learn":
            progress = self._fit_logistic(model, callbacks)
        else:
            progress = super().train(
                model, folder=folder, callbacks=callbacks, until_epoch=until_epoch
            )
        progress.elapsed += self.seconds
        return progress

    def _fit_logistic(
        self, model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]
    ) -> Progress:
        model.compile("sgd")  # callbacks look at its steps, of which there are none
        watched = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=1, steps=0)
        watched.on_epoch_begin(0)
        began = time.perf_counter()
        rows = {name: (_features_of(of), of.labels) for name, of in self.splits.items()}
        weights = self.task.class_weights
        found = fit_logistic(
            *rows["train"], class_weights=weights, validation=rows.get("validation")
        )
        model.get_layer("classifier").set_weights(found)
        seconds = time.perf_counter() - began
        figures, _ = Evaluator(model, self.task, self.splits["train"]).validate()
        if "validation" in self.splits:
            evaluator = Evaluator(model, self.task, self.splits["validation"])
            ValidationPass(evaluator, callbacks).on_epoch_end(0, figures)
        watched.on_epoch_end(0, figures)
        return Progress(
            epoch=1,
            history=[figures],
            best_epoch=0,
            examples=len(self.splits["train"]),
            seconds=seconds,
            elapsed=time.perf_counter() - began,
        )


def trained_part(experiment: Experiment) -> Experiment:
    """What of an experiment is trained: all of it, or a classifier on the features of its rows.

    Features are computed in float32 and kept under the cache folder, by the file, its rows and
    their word pieces, the weights of the encoder and the layers that make them.
    """
    if not experiment.task.has_features:
        return experiment
    began = time.monotonic()
    model = experiment.in_float32().new_model()
    encoder = FeatureModel(keras.Model(model.input, model.get_layer("classifier_dropout").input))
    splits = {name: _with_features(experiment, name, encoder) for name in experiment.splits}
    return FeatureExperiment(
        experiment.config,
        experiment.task.on_features(),
        splits,
        experiment.checkpoint,
        seconds=time.monotonic() - began,
    )


class FeatureModel:
    """What makes features: a model of word pieces to vectors, float32 (batch, hidden)."""

    def __init__(self, model: keras.Model) -> None:
        self.vectors = tf.function(
            lambda inputs: model(inputs, training=False), reduce_retracing=True
        )
        self.hidden_dim = model.output.shape[-1]
        self.digest = _digest(model)


def _digest(model: keras.Model) -> str:
    """SHA-256 of the kinds of a model's layers and of its weights."""
    kinds = [type(layer).__name__ for layer in model.layers]
    digest = hashlib.sha256(json.dumps(kinds).encode())
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


def _with_features(experiment: Experiment, name: str, model: FeatureModel) -> EncodedSplit:
    """A split with a vector a row in place of its word pieces."""
    task, data, split = experiment.task, experiment.config.data, experiment.splits[name]
    source = None if split.source is None else split.source.digest
    rows = hashlib.sha256(np.ascontiguousarray(split.rows)).hexdigest()
    made_of = [source, rows, task.encoding_key, data.max_length]
    key = hashlib.sha256(json.dumps([FORMAT, made_of, model.digest], sort_keys=True).encode())
    path = cache_root(data.cache_dir) / "features" / f"{key.hexdigest()[:32]}.npy"
    if not path.exists():
        logger.info("computing the features of the %s split, %s rows", name, f"{len(split):,}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            _write_features(beside, experiment, split, model)
    of_file = np.zeros(split.rows[-1] + 1, np.int64)  # vectors of each row of the file
    of_file[split.rows] = 1
    column = RaggedColumn(np.load(path, mmap_mode="r"), np.r_[0, np.cumsum(of_file)])
    return dataclasses.replace(split, segments=(column,))


def _write_features(
    path: Path, experiment: Experiment, split: EncodedSplit, model: FeatureModel
) -> None:
    """Write the vectors of a split, float32 (rows, hidden), in the order of its rows."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, (len(split), model.hidden_dim))
    task = experiment.task
    places = evaluation_order(split, task, batch_size=BATCH_SIZE)
    batches = evaluation_batches(split, task, batch_size=BATCH_SIZE)
    for rows, (inputs, _, _) in zip(places, batches, strict=True):
        array[rows] = model.vectors(inputs)
    array.flush()


def _features_of(split: EncodedSplit) -> np.ndarray:
    return split.segments[0].gather(split.rows)[0]
