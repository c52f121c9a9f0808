"""Texts, or pairs of texts, into any number of classes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.special import expit

from kbert import losses
from kbert.config import Config, EncoderConfig, MultiLabelOptions
from kbert.data import Columns
from kbert.errors import InputError
from kbert.evaluation_tables import class_table, overall_table
from kbert.heads import sequence_classifier
from kbert.metrics import MultiLabelF1
from kbert.multi_label import (
    DEFAULT_THRESHOLD,
    fit_thresholds,
    multi_label_report,
    threshold_logits,
)
from kbert.preprocessing import WordPieceTokenizer
from kbert.tasks.inputs import TextInputs
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task
from kbert.text_files import LIST_SEPARATOR

ROUNDING = 2e-5
"""How far our logits and the reference's may be apart, over the largest of them."""
UNKNOWN = "(not in training)"
"""The class of all labels that the training rows do not have, in figures."""


class MultiLabel(Task):
    """Labels of a text (or of a pair): pooled [CLS] state -> dropout -> dense -> sigmoid.

    As HuggingFace's BertForSequenceClassification for multi_label_classification. A class is
    chosen where its probability reaches the class's threshold, which is 0.5 until it is fitted on
    the validation split. A row without a label is of no class.
    """

    default_metric = "val_f1_micro"
    headline = ("f1_micro", "f1_macro", "subset_accuracy")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Texts and a list of labels, which may be empty."""
        labels, options = (config.data.label_column,), config.task
        return Columns(
            tuple(config.data.text_columns),
            targets=labels,
            lists=labels,
            separator=options.separator,
            named=labels,
            blank=labels,
        )

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        self.options: MultiLabelOptions = config.task
        self.tokenizer = tokenizer
        self.column = config.data.label_column
        self.labels = learned.names[self.column]
        if not self.labels:
            raise InputError(
                f"--data.label_column: no row of {config.data.train} has a label in "
                f"{self.column!r}; name another column."
            )
        self.max_length = config.data.max_length
        self.thresholds = np.full(len(self.labels), DEFAULT_THRESHOLD)
        self.inputs = TextInputs(config, tokenizer)
        self.packer = self.inputs.packer
        self.encoding_key = [self.inputs.encoding_key, self.labels]
        self.index = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(self.labels), tf.range(len(self.labels), dtype=tf.int32)
            ),
            default_value=-1,
        )

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: one segment for one column, two for more."""
        return self.inputs.encode(texts)

    def encode_targets(
        self, texts: list[tf.Tensor], targets: list[tf.Tensor]
    ) -> list[tf.RaggedTensor]:
        """The classes of each row by their index, int32 (batch, None)."""
        del texts
        items = tf.strings.split(targets[0], LIST_SEPARATOR)
        items = tf.ragged.boolean_mask(items, items != "")  # "" is split into itself
        return [items.with_values(self.index.lookup(items.values))]

    def batch(
        self, rows: Rows, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Packed inputs, 1 for each class of a row (batch, classes), weights of 1 (batch,)."""
        del seed
        indices = rows.targets[0].to_tensor(-1)  # -1 is no class
        targets = tf.reduce_sum(tf.one_hot(indices, len(self.labels)), axis=1)
        inputs = self.inputs.pack(rows.segments)
        return inputs, tf.minimum(targets, 1.0), tf.ones_like(targets[:, 0])

    def examples(
        self, batch: tuple[dict[str, tf.Tensor], Any, Any], start: tf.Tensor, end: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Some texts of a batch, with all of their windows."""
        return self.inputs.examples(batch, start, end)

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder and classifier, to logits float32 (batch, classes)."""
        return sequence_classifier(
            encoder,
            config,
            num_labels=len(self.labels),
            window_pooling=self.inputs.window_pooling,
            dtype=dtype,
        )

    def loss(self) -> keras.losses.Loss:
        """Binary cross-entropy, a mean over rows and classes."""
        return losses.multi_label()

    def teacher_loss(self, temperature: float) -> keras.losses.Loss:
        """Binary cross-entropy to the teacher's softened probabilities."""
        return losses.SoftenedBinaryCrossEntropy(temperature)

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Micro and macro F1 at a threshold of 0.5."""
        classes = len(self.labels)
        return {"metrics": [MultiLabelF1(classes), MultiLabelF1(classes, average="macro")]}

    def outputs(
        self, predicted: tf.Tensor, targets: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """chosen (bool), probabilities and logits, each (batch, classes)."""
        del targets, weights
        return self._answers(predicted)

    def fit_on_validation(
        self,
        outputs: dict[str, np.ndarray],
        gold: Gold,
        outside: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """The threshold of each class, see `kbert.multi_label.fit_thresholds`."""
        del outside
        thresholds = fit_thresholds(self._labelled(gold)[:, :-1], outputs["logits"])
        return {"thresholds": dict(zip(self.labels, thresholds.tolist(), strict=True))}

    def use_fitted(self, fitted: Mapping[str, Any]) -> bool:
        """Choose by the thresholds from now on."""
        self.thresholds = np.array([fitted["thresholds"][label] for label in self.labels])
        return True

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """All of `kbert.multi_label.multi_label_report`, and the thresholds by class.

        Labels that training does not have are a class of their own, which is never chosen.
        """
        labelled, names = self._labelled(gold), (*self.labels, UNKNOWN)
        chosen, logits = outputs["chosen"], outputs["logits"]
        if labelled[:, -1].any():
            chosen = np.pad(chosen, ((0, 0), (0, 1)))
            logits = np.pad(logits, ((0, 0), (0, 1)))
        else:
            labelled, names = labelled[:, :-1], self.labels
        report = multi_label_report(labelled, chosen, logits, names)
        for index, row in enumerate(report["per_class"].values()):
            threshold = self.thresholds[index].item() if index < len(self.labels) else None
            row |= {"threshold": threshold, "rows": row.pop("rows")}  # rows stay last
        return report

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """The overall figures, and those of each class."""
        return [overall_table(metrics), class_table(metrics)]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """The labels of the file and those that are predicted, and a column p_CLASS for each."""
        join = self.options.separator.join
        columns = {
            "label": [join(labels) for labels in self._read(gold)],
            "prediction": [
                join(self.labels[index] for index in np.flatnonzero(row))
                for row in outputs["chosen"]
            ],
        }
        for index, label in enumerate(self.labels):
            columns[f"p_{label}"] = [f"{value:.9g}" for value in outputs["probabilities"][:, index]]
        return columns

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: text (or text_a, text_b ...) to labels, probabilities, logits."""
        names = self.inputs.names
        preprocess = tf.function(self.inputs.preprocess)  # one graph of it for both signatures

        def serve(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
            answers = self._answers(model(preprocess(*texts), training=False))
            chosen = answers.pop("chosen")
            labels = tf.where(chosen, tf.constant(self.labels), "")
            # what is chosen first, in the order of the classes: a stable sort of "is not chosen"
            order = tf.argsort(tf.cast(tf.logical_not(chosen), tf.int32), axis=1, stable=True)
            return {"labels": tf.gather(labels, order, batch_dims=1), **answers}

        return {
            "serving_default": Signature(names, serve),
            "preprocess": Signature(names, preprocess),
        }

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Each column is an input."""
        return self.inputs.requests(columns)

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """The list of the labels that are chosen, and a column p_CLASS for each class."""
        rows = answers["labels"].tolist()
        columns: dict[str, list] = {"prediction": [list(filter(None, row)) for row in rows]}
        for index, label in enumerate(self.labels):
            columns[f"p_{label}"] = answers["probabilities"][:, index].tolist()
        return columns

    def reference(self) -> Reference:
        """BertForSequenceClassification for multi_label_classification.

        Where one of its logits is so near a threshold that rounding decides, labels are not
        compared.
        """

        def answers(logits: np.ndarray) -> dict[str, np.ndarray]:
            found = {"probabilities": expit(logits.astype(np.float64)), "logits": logits}
            margins = logits - threshold_logits(self.thresholds)
            if np.abs(margins).min() > ROUNDING * max(1.0, float(np.abs(logits).max())):
                labels = np.where(margins > 0, np.array(self.labels, object), "")
                order = np.argsort(margins <= 0, axis=1, kind="stable")
                found["labels"] = np.take_along_axis(labels, order, axis=1)
            return found

        return self.inputs.reference(answers, "multi_label_classification")

    def _answers(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """What is served, with `chosen` for the labels."""
        # logits are compared, which float32 tells apart where their probabilities are all 1
        least = tf.constant(threshold_logits(self.thresholds), tf.float32)
        return {
            "chosen": logits >= least,
            "probabilities": tf.sigmoid(logits),
            "logits": logits,
        }

    def _read(self, gold: Gold) -> list[list[str]]:
        """The labels of each row, as its file has them."""
        cells = gold.read((self.column,))[self.column]
        return [list(filter(None, cell.split(LIST_SEPARATOR))) for cell in cells]

    def _labelled(self, gold: Gold) -> np.ndarray:
        """1 for each class of a row, (rows, classes + 1): the last is of all that are unknown."""
        index = {label: place for place, label in enumerate(self.labels)}
        rows = self._read(gold)
        found = np.zeros((len(rows), len(self.labels) + 1), np.int64)
        for row, labels in enumerate(rows):
            found[row, [index.get(label, -1) for label in labels]] = 1
        return found
