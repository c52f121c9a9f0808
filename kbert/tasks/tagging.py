"""A tag for each word, such as the names and dates in it; and by option a label of the whole."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.calibration import softmax
from kbert.config import Config, EncoderConfig, TaggingOptions
from kbert.data import Columns
from kbert.entities import OUTSIDE, check_tags, described, entity_figures, tag_inside
from kbert.errors import InputError
from kbert.evaluation_tables import overall_table
from kbert.heads import joint_classifier, token_classifier
from kbert.losses import IGNORED, TagLoss, cross_entropy
from kbert.metrics import TagAccuracy
from kbert.preprocessing import WordPieceTokenizer
from kbert.preprocessing.alignment import (
    first_places,
    joined_spans,
    opens_span,
    span_of,
    text_words,
)
from kbert.preprocessing.ragged import numbers_in_rows, with_splits
from kbert.tasks.inputs import TextInputs
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task
from kbert.text_files import LIST_SEPARATOR

TAGS, INTENT = "tags", "intent"
"""Outputs of the model that has both."""
ROUNDING = 2e-5
"""How far our logits and the reference's may be apart, over the largest of them."""


class Tagging(Task):
    """Tags of words in BIO: state of the first word piece -> dropout -> dense -> softmax.

    As HuggingFace's BertForTokenClassification. With an intent column the model has a second head,
    [CLS] pooled -> dropout -> dense, and is trained by the sum of both losses (Chen et al. 2019).

    A row's tokens, joined by a space, are read as a client's text is, and divided into words as
    `kbert.preprocessing.alignment.text_words` divides it. So a token may be several words ("st." is
    "st" and "."): the first one with a word piece has the token's tag, the others I-TYPE after
    B-TYPE and I-TYPE, and O after O. What a client is answered about is what was trained. A token
    is measured by the first of its words.

    Words that the model does not read, since max_length cuts them off or since they have no word
    piece of their own (an accent alone, the "MASK" of "[MASK]"), train nothing, and are O.
    """

    default_metric = "val_f1"
    headline = ("f1", "precision", "recall", "intent_accuracy", "sentence_accuracy")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Tokens, their tags, and the intent if there is one."""
        options: TaggingOptions = config.task
        texts = tuple(config.data.text_columns)
        if len(texts) != 1:
            raise InputError(
                "data.text_column: tagging reads one column, that of the tokens; received "
                f"{', '.join(texts)}."
            )
        answers = (options.tags_column, *filter(None, [options.intent_column]))
        check = functools.partial(check_tags, tokens=texts[0], tags=options.tags_column)
        lists = (*texts, options.tags_column)
        return Columns(texts, targets=answers, lists=lists, named=answers, check=check)

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        self.options: TaggingOptions = config.task
        self.tokenizer = tokenizer
        self.labels = learned.names[self.options.tags_column]
        self.intents = learned.names.get(self.options.intent_column or "", ())
        self.columns_read = self.columns(config)
        self.max_length = config.data.max_length
        self.inputs = TextInputs(config, tokenizer)
        self.packer = self.inputs.packer
        self.encoding_key = [self.inputs.encoding_key, self.labels, self.intents]
        index = {label: number for number, label in enumerate(self.labels)}
        self.inside = [index.get(tag_inside(label), IGNORED) for label in self.labels]
        """Which tag the further words of a token have, by the tag of the token."""

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Tokens, or whole texts, to ids."""
        return self.inputs.encode([_spaced(texts[0])])

    def encode_targets(
        self, texts: list[tf.Tensor], targets: list[tf.Tensor]
    ) -> list[tf.RaggedTensor]:
        """What each word piece is to be answered.

        Returns:
            Of each piece the tag, `IGNORED` where there is none to be learnt; and of each piece
            that a token is measured by the number of the token in its row, else -1; both
            (batch, pieces). With intents that of the row, -1 for one that is not known: (batch, 1).
        """
        text = _spaced(texts[0])
        _, places, _ = self.tokenizer.tokenize_with_offsets(text)
        _, words = text_words(text, self.tokenizer)
        tokens = joined_spans(tf.strings.split(texts[0], LIST_SEPARATOR))
        token = span_of(places, tokens) + 1  # of all rows, (pieces,); 0 for none

        def of_token(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(tf.concat([[IGNORED], values], 0), token)

        first = _index(tf.strings.split(targets[0], LIST_SEPARATOR).values, self.labels)
        further = tf.where(first < 0, IGNORED, tf.gather(self.inside, tf.maximum(first, 0)))
        is_first = opens_span(places, tokens)
        tags = tf.where(is_first, of_token(first), of_token(further))
        tags = tf.where(opens_span(places, words), tags, IGNORED)
        numbers = tf.where(is_first, of_token(numbers_in_rows(tokens.starts)), -1)
        found = [with_splits(part, places.row_splits) for part in (tags, numbers)]
        intents = [_index(column, self.intents)[:, tf.newaxis] for column in targets[1:]]
        return [*found, *map(tf.RaggedTensor.from_tensor, intents)]

    def batch(self, rows: Rows, seed: tf.Tensor) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Packed inputs, targets and weights; with intents these are dictionaries by output.

        Targets are int32 (batch, length, 2): the tag and the number of the token that is measured
        by it, `IGNORED` and -1 for none; and of intents (batch,). Weights are 1, or 0 where there
        is none to be learnt.
        """
        del seed
        inputs = self.inputs.pack(rows.segments)
        room = tf.shape(inputs["token_ids"])[1] - 2  # beside [CLS] and [SEP]
        parts = [
            tf.pad(part.to_tensor(none)[:, :room], [[0, 0], [1, 1]], constant_values=none)
            for part, none in zip(rows.targets, (IGNORED, -1), strict=False)
        ]
        tags, weights = tf.stack(parts, axis=-1), tf.cast(parts[0] >= 0, tf.float32)
        if not self.intents:
            return inputs, tags, weights
        intent = rows.targets[2].values
        targets = {TAGS: tags, INTENT: tf.maximum(intent, 0)}
        return inputs, targets, {TAGS: weights, INTENT: tf.cast(intent >= 0, tf.float32)}

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder and heads, to logits float32 (batch, length, tags); or also of intents."""
        if not self.intents:
            encoder.get_layer("pooler").trainable = False  # nothing that is learnt goes through it
            return token_classifier(encoder, config, num_labels=len(self.labels), dtype=dtype)
        return joint_classifier(
            encoder, config, num_tags=len(self.labels), num_intents=len(self.intents), dtype=dtype
        )

    def loss(self) -> keras.losses.Loss | dict[str, keras.losses.Loss]:
        """Cross-entropy, a mean over words; and of intents, a mean over rows."""
        return {TAGS: TagLoss(), INTENT: cross_entropy()} if self.intents else TagLoss()

    def metrics(self) -> dict[str, Any]:
        """Accuracy over words, and over rows where there are intents."""
        tags = TagAccuracy(name="accuracy")
        if not self.intents:
            return {"weighted_metrics": [tags]}
        intent = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        return {"weighted_metrics": {TAGS: [tags], INTENT: [intent]}}

    def outputs(
        self, predicted: Any, targets: Any, weights: Any
    ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """tag_index and token, ragged: of each token that is read, and its number in the row.

        loss and words (batch,): the sum over words that are learnt, in nats, and their number.
        With intents intent_index, intent_score, and intent_loss, 0 for one that is not known.
        """
        if self.intents:
            found = self._tag_outputs(predicted[TAGS], targets[TAGS], weights[TAGS])
            scores = tf.nn.softmax(predicted[INTENT])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                targets[INTENT], predicted[INTENT]
            )
            return found | {
                "intent_index": tf.argmax(scores, -1, output_type=tf.int32),
                "intent_score": tf.reduce_max(scores, -1),
                "intent_loss": losses * weights[INTENT],
            }
        return self._tag_outputs(predicted, targets, weights)

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """Figures of entities, tokens, and with intents of these and of whole rows.

        All of `kbert.entities.entity_figures`; token_accuracy; loss, the mean over words (and the
        mean over rows of intents); rows and tokens. With intents intent_accuracy, and
        sentence_accuracy: of rows whose tags and intent are all right.
        """
        answers = gold.read([self.options.tags_column, *self._intent_columns])
        tags = [cell.split(LIST_SEPARATOR) for cell in answers[self.options.tags_column]]
        predicted = self._predicted(outputs, tags)
        right = [np.array(ours) == theirs for ours, theirs in zip(predicted, tags, strict=True)]
        words = max(1.0, float(outputs["words"].sum()))
        figures = {
            "rows": len(tags),
            "tokens": sum(map(len, tags)),
            "loss": float(outputs["loss"].sum(dtype=np.float64) / words),
            "token_accuracy": float(np.concatenate(right).mean()),
            **entity_figures(tags, predicted),
        }
        for column in self._intent_columns:
            is_right = np.array(self.intents)[outputs["intent_index"]] == answers[column]
            whole = [row.all() for row in right] & is_right
            figures["loss"] += float(outputs["intent_loss"].mean(dtype=np.float64))
            figures["intent_accuracy"] = float(is_right.mean())
            figures["sentence_accuracy"] = float(whole.mean())
        return figures

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """The overall figures, and those of each type of entity."""
        columns = ("", "precision", "recall", "f1", "support")
        rows = [
            (kind, *(of[name] for name in columns[1:])) for kind, of in metrics["per_type"].items()
        ]
        return [overall_table(metrics), Table("entities by type", columns, rows)]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """Tokens, tags and predicted tags of each row, divided by spaces; and the intents."""
        column = self.options.tags_column
        answers = gold.read([*self.columns_read.texts, column, *self._intent_columns])
        tags = [cell.split(LIST_SEPARATOR) for cell in answers[column]]
        tokens = answers[self.columns_read.texts[0]]
        columns = {
            "tokens": [cell.replace(LIST_SEPARATOR, " ") for cell in tokens],
            "tags": list(map(" ".join, tags)),
            "prediction": list(map(" ".join, self._predicted(outputs, tags))),
        }
        for name in self._intent_columns:
            indices = outputs["intent_index"]
            columns["intent"] = answers[name]
            columns["intent_prediction"] = [self.intents[index] for index in indices]
            columns["intent_score"] = [f"{score:.9g}" for score in outputs["intent_score"]]
        return columns

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: text to its words, their labels, scores and places; and the intent."""

        @tf.function  # so that both signatures share one graph of it
        def read(text: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.RaggedTensor]:
            ids, places, _ = self.tokenizer.tokenize_with_offsets(text)
            return self.inputs.pack([ids]), places

        def preprocess(text: tf.Tensor) -> dict[str, tf.Tensor]:
            return read(text)[0]

        def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
            inputs, places = read(text)
            predicted = model(inputs, training=False)
            if not self.intents:
                return self._answers(text, places, predicted)
            scores = tf.nn.softmax(predicted[INTENT])
            return self._answers(text, places, predicted[TAGS]) | {
                "intent": tf.gather(tf.constant(self.intents), tf.argmax(scores, -1)),
                "intent_score": tf.reduce_max(scores, -1),
            }

        return {
            "serving_default": Signature(("text",), serve),
            "preprocess": Signature(("text",), preprocess),
        }

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """The tokens joined by a space, as one text."""
        return {"text": [cell.replace(LIST_SEPARATOR, " ") for cell in columns[0]]}

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """Lists of words, labels, scores, starts and ends, and entities as "TYPE: text"."""
        names = ("words", "labels", "scores", "starts", "ends")
        present = answers["starts"] >= 0
        columns = {
            name: [row[has].tolist() for row, has in zip(answers[name], present, strict=True)]
            for name in names
        }
        rows = zip(*(columns[name] for name in ("words", "labels", "starts", "ends")), strict=True)
        columns["entities"] = [described(*row) for row in rows]
        for name in ("intent", "intent_score") if self.intents else ():
            columns[name] = answers[name].tolist()
        return columns

    def reference(self) -> Reference:
        """BertForTokenClassification; the intent is ours alone.

        Where two of its logits are so near each other that rounding decides, labels are not
        compared.
        """

        def answers(rows: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
            found = [self._answer_of(window) for (window,) in rows]
            width = max(len(row["words"]) for row in found)
            fill = {"words": "", "labels": "", "scores": 0.0, "starts": -1, "ends": -1}
            columns = {
                name: np.array([[*row[name], *[none] * (width - len(row[name]))] for row in found])
                for name, none in fill.items()
            }
            if min(row["margin"] for row in found) < ROUNDING:
                del columns["labels"]
            return columns

        return Reference(
            "BertForTokenClassification", answers, output=TAGS if self.intents else None
        )

    def _answer_of(self, window: dict[str, np.ndarray]) -> dict[str, Any]:
        """What is to be served for one text, by HuggingFace's logits and offsets; and the least
        margin between the two largest logits, over the largest of all."""
        words, spans = text_words(tf.constant([str(window["texts"][0])]), self.tokenizer)
        starts, ends = (part.values.numpy().tolist() for part in spans)
        logits, places = window["logits"][1:-1], window["offset_mapping"][1:-1, 0]
        found: dict[str, Any] = {
            "words": [word.decode() for word in words.values.numpy()],
            "labels": [OUTSIDE] * len(starts),
            "scores": [0.0] * len(starts),
            "starts": starts,
            "ends": ends,
            "margin": np.inf,
        }
        for word, (start, end) in enumerate(zip(starts, ends, strict=True)):
            for piece in np.flatnonzero((places >= start) & (places < end))[:1]:
                scores = softmax(logits[piece].astype(np.float64))
                found["labels"][word] = self.labels[scores.argmax()]
                found["scores"][word] = scores.max()
                gap = np.diff(np.sort(logits[piece])[-2:]).min(initial=np.inf)
                margin = gap / max(1.0, float(np.abs(logits).max()))
                found["margin"] = min(found["margin"], margin)
        return found

    def _tag_outputs(
        self, logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor
    ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        tags, tokens = tf.unstack(targets, axis=-1)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(tags, 0), logits)
        found = tf.argmax(logits, -1, output_type=tf.int32)
        return {
            "tag_index": tf.ragged.boolean_mask(found, tokens >= 0),
            "token": tf.ragged.boolean_mask(tokens, tokens >= 0),
            "loss": tf.reduce_sum(losses * weights, axis=-1),
            "words": tf.reduce_sum(weights, axis=-1),
        }

    def _answers(
        self, text: tf.Tensor, places: tf.RaggedTensor, logits: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Words of texts (batch,), by where their word pieces start and the logits of these."""
        words, spans = text_words(text, self.tokenizer)
        firsts = first_places(places, spans).to_tensor(-1)  # (batch, words)
        is_read = (firsts >= 0) & (firsts < tf.shape(logits)[1] - 2)
        at = tf.where(is_read, firsts + 1, 0)  # after [CLS]
        index = tf.gather(tf.argmax(logits, -1), at, batch_dims=1)
        scores = tf.gather(tf.reduce_max(tf.nn.softmax(logits), -1), at, batch_dims=1)
        starts = spans.starts.to_tensor(-1)
        unread = tf.where(starts >= 0, OUTSIDE, "")
        return {
            "words": words.to_tensor(""),
            "labels": tf.where(is_read, tf.gather(tf.constant(self.labels), index), unread),
            "scores": tf.where(is_read, scores, 0.0),
            "starts": starts,
            "ends": spans.ends.to_tensor(-1),
        }

    def _predicted(
        self, outputs: dict[str, np.ndarray], tags: Sequence[Sequence[str]]
    ) -> list[list[str]]:
        """The predicted tag of each token of rows; tags are read for their number."""
        rows = [[OUTSIDE] * len(row) for row in tags]
        for row, tokens, found in zip(rows, outputs["token"], outputs["tag_index"], strict=True):
            for token, index in zip(tokens, found, strict=True):
                row[token] = self.labels[index]
        return rows

    @property
    def _intent_columns(self) -> tuple[str, ...]:
        column = self.options.intent_column
        return () if column is None else (column,)


def _spaced(texts: tf.Tensor) -> tf.Tensor:
    """Tokens as texts, (batch,)."""
    return tf.strings.regex_replace(texts, LIST_SEPARATOR, " ")


def _index(values: tf.Tensor, names: tuple[str, ...]) -> tf.Tensor:
    """Which of the names each value is, int32 (values,); `IGNORED` for none."""
    is_name = values[:, tf.newaxis] == tf.constant(names)[tf.newaxis]
    index = tf.argmax(is_name, axis=-1, output_type=tf.int32)
    return tf.where(tf.reduce_any(is_name, axis=-1), index, IGNORED)
