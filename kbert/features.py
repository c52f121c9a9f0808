"""A frozen BERT makes features, once and on disk; a linear classifier is trained on them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from kbert.batches import EncodedSplit, cache_root
from kbert.distribution import scope_of
from kbert.evaluation import Evaluator
from kbert.experiment import Experiment
from kbert.heads import linear_classifier
from kbert.logistic import fit_logistic
from kbert.row_vectors import VectorModel, cached_vectors
from kbert.training import Progress, ValidationPass, Watcher, model_config, trainable


@dataclass(frozen=True)
class FeatureExperiment(Experiment):
    """The part of an experiment with a frozen encoder that is trained: a linear classifier."""

    seconds: float = 0.0
    """What the features of the rows took; nearly nothing where they were cached."""

    def new_model(self) -> keras.Model:
        """A new classifier: features, float32 (batch, hidden), to logits (batch, classes)."""
        options = self.config
        keras.utils.set_random_seed(options.train.seed)
        config = model_config(self.task, self.checkpoint, options.model, options.train)
        with scope_of(options.train):
            model = linear_classifier(config, num_labels=len(self.task.labels))
        return trainable(model, self.task, options.train)

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
        watchers = [one for one in callbacks if isinstance(one, Watcher)]
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
            ValidationPass(evaluator, watchers).on_epoch_end(0, figures)
        watched.on_epoch_end(0, figures)
        return Progress(
            epoch=1,
            history=[figures],
            best_epoch=0,
            examples=len(self.splits["train"]),
            seconds=seconds,
            elapsed=time.perf_counter() - began,
        )


def on_features(experiment: Experiment) -> Experiment:
    """What of an experiment with a frozen encoder is trained: a classifier on features of its rows.

    Features are computed in float32 and kept under the cache folder, by the file, its rows and
    their word pieces, the weights of the encoder and the layers that make them.
    """
    began = time.monotonic()
    model = experiment.in_float32().new_model()
    encoder = keras.Model(model.input, model.get_layer("classifier_dropout").input)
    digest, vectors = _digest(encoder), VectorModel(encoder)
    splits = {name: _with_features(experiment, name, vectors, digest) for name in experiment.splits}
    return FeatureExperiment(
        experiment.config,
        experiment.task.on_features(),
        splits,
        experiment.checkpoint,
        seconds=time.monotonic() - began,
    )


def _digest(model: keras.Model) -> str:
    """SHA-256 of the kinds of a model's layers and of its weights."""
    kinds = [type(layer).__name__ for layer in model.layers]
    digest = hashlib.sha256(json.dumps(kinds).encode())
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


def _with_features(
    experiment: Experiment, name: str, vectors: VectorModel, digest: str
) -> EncodedSplit:
    """A split with a vector a row in place of its word pieces."""
    split = experiment.splits[name]
    column = cached_vectors(
        split,
        experiment.task,
        digest,
        lambda: vectors,
        folder=cache_root(experiment.config.data.cache_dir) / "features",
        what=f"the features of the {name} split",
    )
    return dataclasses.replace(split, segments=(column,))


def _features_of(split: EncodedSplit) -> np.ndarray:
    return split.segments[0].gather(split.rows)[0]
