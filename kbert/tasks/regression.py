"""A number for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert import losses
from kbert.config import Config, EncoderConfig
from kbert.data import Columns
from kbert.heads import sequence_classifier
from kbert.metrics import Pearson
from kbert.preprocessing import WordPieceTokenizer
from kbert.regression import regression_report
from kbert.tasks.inputs import TextInputs
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task


class Regression(Task):
    """A number for a text (or for a pair): pooled [CLS] state -> dropout -> dense.

    As HuggingFace's BertForSequenceClassification with one label: the numbers are learnt as they
    are, by squared error.
    """

    default_metric = "val_pearson"
    headline = ("pearson", "spearman", "mae")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Texts and a number."""
        return Columns(
            tuple(config.data.text_columns), config.data.label_column, label_kind="number"
        )

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        del learned
        self.tokenizer = tokenizer
        self.max_length = config.data.max_length
        self.inputs = TextInputs(config, tokenizer)
        self.packer = self.inputs.packer
        self.encoding_key = self.inputs.encoding_key

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: one segment for one column, two for more."""
        return self.inputs.encode(texts)

    def batch(
        self, rows: Rows, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Packed inputs, numbers (batch, 1), weights of 1 (batch,)."""
        del seed
        numbers = tf.cast(rows.labels, tf.float32)
        return self.inputs.pack(rows.segments), numbers[:, tf.newaxis], tf.ones_like(numbers)

    def examples(
        self, batch: tuple[dict[str, tf.Tensor], Any, Any], start: tf.Tensor, end: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Some texts of a batch, with all of their windows."""
        return self.inputs.examples(batch, start, end)

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder and head, to numbers float32 (batch, 1)."""
        pooling = self.inputs.window_pooling
        return sequence_classifier(
            encoder, config, num_labels=1, window_pooling=pooling, dtype=dtype
        )

    def loss(self) -> keras.losses.Loss:
        """The mean squared error."""
        return losses.regression()

    def teacher_loss(self, temperature: float) -> keras.losses.Loss:
        """The mean squared error to the teacher's numbers, which have no temperature."""
        del temperature
        return losses.regression()

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Pearson's correlation; the loss is the mean squared error."""
        return {"metrics": [Pearson()]}

    def outputs(
        self, predicted: tf.Tensor, targets: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The value of each row, (batch,)."""
        del targets, weights
        return {"value": predicted[:, 0]}

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """All of `kbert.regression.regression_report`; nothing without numbers."""
        return {} if gold.labels is None else regression_report(gold.labels, outputs["value"])

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """One of all figures."""
        return [Table("predicted numbers", tuple(metrics), [tuple(metrics.values())])]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """The value, nine digits."""
        del gold
        return {"prediction": [f"{value:.9g}" for value in outputs["value"]]}

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: text (or text_a, text_b ...) to value.

        regress: the same texts as features of tf.train.Example, to the value as `outputs`.
        """
        names = self.inputs.names
        preprocess = tf.function(self.inputs.preprocess)  # one graph of it for all signatures

        @tf.function
        def serve(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"value": model(preprocess(*texts), training=False)[:, 0]}

        def regress(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"outputs": serve(*self.inputs.of_examples(examples))["value"]}

        return {
            "serving_default": Signature(names, serve),
            "preprocess": Signature(names, preprocess),
            "regress": Signature(("inputs",), regress, method="regress"),
        }

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Each column is an input."""
        return self.inputs.requests(columns)

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """The value."""
        return {"prediction": answers["value"].tolist()}

    def reference(self) -> Reference:
        """BertForSequenceClassification of one label."""
        return self.inputs.reference(lambda logits: {"value": logits[:, 0]}, "regression")
