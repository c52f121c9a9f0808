"""Texts, or pairs of texts, into classes by a linear classifier on a BERT that stays as it is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.config import Config, EncoderConfig
from kbert.heads import feature_classifier
from kbert.preprocessing import WordPieceTokenizer
from kbert.tasks.classification import Classification
from kbert.tasks.task import Learned, Reference


class Features(Classification):
    """A label for a text (or for a pair): pooled states of a frozen encoder -> dense -> softmax.

    A classification in all but its model and how that is trained: see `kbert.features`.
    """

    has_features = True
    encoder_does_most = False

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        super().__init__(config, tokenizer, learned)
        self.arguments = (config, tokenizer, learned)

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder, which is not trained, and classifier, to logits float32 (batch, classes)."""
        encoder.trainable = False
        pooling, classes = self.options.pooling, len(self.labels)
        return feature_classifier(encoder, config, pooling=pooling, num_labels=classes, dtype=dtype)

    def on_features(self) -> OnFeatures:
        """The same task for rows whose features are known."""
        return OnFeatures(*self.arguments)

    def reference(self) -> Reference:
        """BertModel, whose states are pooled and classified in numpy."""
        of_logits = super().reference().answers

        def answers(
            rows: list[list[dict[str, np.ndarray]]], model: keras.Model
        ) -> dict[str, np.ndarray]:
            kernel, bias = (weight.numpy() for weight in model.get_layer("classifier").weights)
            for window in (window for windows in rows for window in windows):
                states = window["last_hidden_state"]
                features = states[0] if self.options.pooling == "cls" else states.mean(axis=0)
                window["logits"] = features @ kernel + bias
            return of_logits(rows)

        return Reference("BertModel", answers, of_encoder=True, with_model=True)


class OnFeatures(Features):
    """The task for rows whose features are known: what is left to train is a linear classifier."""

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        super().__init__(config, tokenizer, learned)
        self.inputs = FeatureInputs()


class FeatureInputs:
    """Features in place of word pieces on their way to a model."""

    def pack(self, segments: list[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """One vector a row: float32 (batch, hidden)."""
        return {"features": segments[0].values}

    def examples(
        self, batch: tuple[dict[str, tf.Tensor], Any, Any], start: tf.Tensor, end: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Some rows of a batch, as `Task.examples`."""
        return tf.nest.map_structure(lambda tensor: tensor[start:end], batch)
