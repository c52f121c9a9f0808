"""Texts, or pairs of texts, into classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert import losses
from kbert.calibration import fit_temperature, softmax
from kbert.config import ClassificationOptions, Config, EncoderConfig
from kbert.data import Columns
from kbert.errors import InputError
from kbert.evaluation_tables import classes_tables, scope_table
from kbert.heads import sequence_classifier
from kbert.metrics import MacroF1, classes_report, cross_entropy
from kbert.preprocessing import WordPieceTokenizer
from kbert.scope import fit_threshold, is_in_scope
from kbert.tasks.inputs import TextInputs
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task

ROUNDING = 1e-6
"""What a probability may be off by, of float32 and another order of sums."""


class Classification(Task):
    """A label for a text (or for a pair): pooled [CLS] state -> dropout -> dense -> softmax.

    As HuggingFace's BertForSequenceClassification. With task.out_of_scope the answer to a text
    whose largest probability is under a threshold is that name, of index -1; logits, probabilities
    and the figures of the classes are as without it.
    """

    classifies = True
    default_metric = "val_accuracy"
    headline = ("accuracy", "f1_macro")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Texts and a label."""
        texts, options = tuple(config.data.text_columns), config.task
        return Columns(texts, config.data.label_column, outside=options.out_of_scope)

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        self.options: ClassificationOptions = config.task
        self.tokenizer = tokenizer
        self.labels = learned.labels
        self.max_length = config.data.max_length
        self.is_calibrated = self.options.calibrate
        self.inputs = TextInputs(config, tokenizer)
        self.packer = self.inputs.packer
        self.encoding_key = self.inputs.encoding_key
        self.class_weights = np.ones(len(self.labels), np.float32)
        if self.options.class_weights == "balanced":
            mean_count = learned.label_counts.sum() / len(self.labels)
            self.class_weights = (mean_count / learned.label_counts).astype(np.float32)

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: one segment for one column, two for more."""
        return self.inputs.encode(texts)

    def batch(
        self, rows: Rows, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Packed inputs, one-hot targets (batch, classes), class weights (batch,)."""
        del seed
        targets = tf.one_hot(rows.labels, len(self.labels))
        weights = tf.gather(self.class_weights, rows.labels)
        return self.inputs.pack(rows.segments), targets, weights

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
        """Softmax cross-entropy, a mean weighted by class weights."""
        return keras.losses.CategoricalCrossentropy(
            from_logits=True,
            label_smoothing=self.options.label_smoothing,
            reduction="mean_with_sample_weight",
        )

    def teacher_loss(self, temperature: float) -> keras.losses.Loss:
        """Kullback-Leibler divergence of the softened classes."""
        return losses.SoftenedCrossEntropy(temperature)

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Accuracy and macro-F1, each row counted once."""
        accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
        return {"metrics": [accuracy, MacroF1(len(self.labels))]}

    def outputs(
        self, predicted: tf.Tensor, targets: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """label_index (batch,), probabilities and logits (batch, classes)."""
        del targets, weights
        return self._answers(predicted)

    def check_validation(self, rows: int, outside: int) -> None:
        """A temperature is fitted on rows, a threshold on rows of no class as well."""
        if self.options.calibrate and not rows:
            raise InputError(
                "task.calibrate needs a validation split: data.validation or a fraction."
            )
        if self.options.out_of_scope is not None and not outside:
            raise InputError(
                "task.out_of_scope: its threshold is fitted on validation rows with the label "
                f"{self.options.out_of_scope!r}, and there are none; add some."
            )

    def fit_on_validation(
        self,
        outputs: dict[str, np.ndarray],
        gold: Gold,
        outside: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """The temperature, see `kbert.calibration.fit_temperature`; the threshold, see
        `kbert.scope.fit_threshold`, where there are rows of no class."""
        temperature = fit_temperature(outputs["logits"], gold.labels)
        fitted = {"temperature": temperature}
        if outside is not None:
            served = temperature if self.is_calibrated else 1.0
            ours, theirs = (
                softmax(of["logits"], served).astype(np.float32) for of in (outputs, outside)
            )
            fitted["threshold"] = fit_threshold(gold.labels, ours, theirs)
        return fitted

    def use_fitted(self, fitted: Mapping[str, Any]) -> bool:
        """Divide by the temperature, where the options ask for it, and reject by the threshold."""
        self.threshold = fitted.get("threshold", 0.0)
        if self.is_calibrated:
            self.temperature = fitted["temperature"]
        return self.is_calibrated

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """The loss, and all of `kbert.metrics.classes_report`; nothing without labels."""
        labels = gold.labels
        if labels is None:
            return {}
        # in float64, where no two classes tie that do not tie as logits
        probabilities = softmax(outputs["logits"], self.temperature)
        report = classes_report(labels, probabilities, self.labels)
        return {"loss": cross_entropy(outputs["logits"], labels), **report}

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """Those of `kbert.evaluation_tables`; none without labels."""
        if not metrics:
            return []
        block = metrics.get("out_of_scope")
        return [*classes_tables(metrics), *([] if block is None else [scope_table(block)])]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """The predicted class and a column p_CLASS for each class, nine digits."""
        del gold
        in_scope = is_in_scope(outputs["probabilities"], self.threshold)
        names = self._names(outputs["label_index"], in_scope)
        columns = {"prediction": names.tolist()}
        for index, label in enumerate(self.labels):
            columns[f"p_{label}"] = [f"{value:.9g}" for value in outputs["probabilities"][:, index]]
        return columns

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: text (or text_a, text_b ...) to label, probabilities, logits.

        classify: the same texts as features of tf.train.Example, to all classes and their scores.
        """

        names = self.inputs.names
        preprocess = tf.function(self.inputs.preprocess)  # one graph of it for all signatures

        @tf.function
        def answer(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._answers(model(preprocess(*texts), training=False))

        def serve(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
            answers = answer(*texts)
            label = tf.gather(tf.constant(self.labels), answers["label_index"])
            if self.options.out_of_scope is None:
                return {"label": label, **answers}
            in_scope = tf.reduce_max(answers["probabilities"], axis=-1) >= self.threshold
            answers["label_index"] = tf.where(in_scope, answers["label_index"], -1)
            return {"label": tf.where(in_scope, label, self.options.out_of_scope), **answers}

        def classify(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            scores = answer(*self.inputs.of_examples(examples))["probabilities"]
            classes = tf.broadcast_to(tf.constant(self.labels), tf.shape(scores))
            return {"classes": classes, "scores": scores}

        ranked_by = {"label": "logits", "label_index": "logits"}
        return {
            "serving_default": Signature(names, serve, ranked_by),
            "preprocess": Signature(names, preprocess),
            "classify": Signature(("inputs",), classify, method="classify"),
        }

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Each column is an input."""
        return self.inputs.requests(columns)

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """The predicted class and a column p_CLASS for each class."""
        columns = {"prediction": answers["label"].tolist()}
        for index, label in enumerate(self.labels):
            columns[f"p_{label}"] = answers["probabilities"][:, index].tolist()
        return columns

    def reference(self) -> Reference:
        """BertForSequenceClassification.

        Where rounding decides whether one of its answers is in scope, labels are not compared.
        """

        def answers(logits: np.ndarray) -> dict[str, np.ndarray]:
            index = logits.argmax(axis=-1).astype(np.int32)
            probabilities = softmax(logits, self.temperature)
            in_scope = is_in_scope(probabilities, self.threshold)
            found = {"probabilities": probabilities, "logits": logits}
            margins = np.abs(probabilities.max(axis=1) - self.threshold)
            if margins.min() > ROUNDING:
                found["label"] = self._names(index, in_scope)
                found["label_index"] = np.where(in_scope, index, -1)
            return found

        return self.inputs.reference(answers, "single_label_classification")

    def _names(self, label_index: np.ndarray, in_scope: np.ndarray) -> np.ndarray:
        """What is answered, (rows,)."""
        labels = np.array(self.labels, object)[label_index]
        return np.where(in_scope, labels, self.options.out_of_scope)

    def _answers(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "label_index": tf.argmax(logits, axis=-1, output_type=tf.int32),
            "probabilities": tf.nn.softmax(logits / self.temperature),
            "logits": logits,
        }
