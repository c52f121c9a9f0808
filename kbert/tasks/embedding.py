"""Texts into vectors, learnt from pairs of texts that somebody has scored."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert import losses
from kbert.config import Config, EmbeddingOptions, EncoderConfig
from kbert.data import Columns
from kbert.errors import InputError
from kbert.loading import resolve
from kbert.metrics import Pearson
from kbert.pooling import PairSimilarity, sentence_encoder
from kbert.preprocessing import BertPacker, PackedSizes, WordPieceTokenizer
from kbert.regression import regression_report
from kbert.sentence_transformers import (
    SentenceVectors,
    read_sentence_vectors,
    sentence_transformers_files,
)
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task

# as `kbert.pooling`, of one text without padding: (length, hidden) to (hidden,)
POOLED = {
    "mean": lambda states: states.mean(axis=0),
    "cls": lambda states: states[0],
    "max": lambda states: states.max(axis=0),
}


class Embedding(Task):
    """A vector for a text: states -> pooling (-> length 1); the cosine of two is their similarity.

    One encoder reads both texts of a pair, each for itself. Their cosine learns the score by
    squared error, the scores of the training rows being scaled to [0, 1], as sentence-transformers'
    CosineSimilarityLoss. Served is the vector of one text, and the similarity of two.
    """

    default_metric = "val_pearson"
    headline = ("spearman", "pearson")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Two texts and a score.

        Raises:
            InputError: there are not two text columns.
        """
        texts = tuple(config.data.text_columns)
        if len(texts) != 2:
            raise InputError(
                "data.text_column: the task embedding learns from pairs, so name two columns, "
                f"such as [premise, hypothesis]; received {list(texts)}."
            )
        return Columns(texts, config.data.label_column, label_kind="number")

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        self.tokenizer = tokenizer
        self.max_length = config.data.max_length
        self.encoding_key = ["each text", tokenizer.get_config()]
        self.lowest, self.highest = learned.number_range or (0.0, 1.0)
        if self.lowest == self.highest:
            raise InputError(
                f"data.label_column {config.data.label_column!r}: every training row has the score "
                f"{self.lowest:g}; training needs two scores or more."
            )
        vectors = _vectors(config)
        self.vectors = SentenceVectors(vectors.pooling, vectors.normalize, self.max_length)
        self.packer = StackedPacker(
            max_length=self.max_length,
            name="packer",
            **tokenizer.packing_ids,
        )

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids, one segment a text."""
        return [self.tokenizer(of) for of in texts]

    def batch(
        self, rows: Rows, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Inputs of 2 * batch rows, all first texts first; scores (batch, 1), weights (batch,)."""
        del seed
        scores = self._scaled(tf.cast(rows.labels, tf.float32))
        return self.packer(rows.segments), scores[:, tf.newaxis], tf.ones_like(scores)

    def examples(
        self, batch: tuple[dict[str, tf.Tensor], Any, Any], start: tf.Tensor, end: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Some pairs of a batch: their first texts, then their second ones."""
        inputs, targets, weights = batch
        second = tf.shape(targets)[0]
        both = {
            name: tf.concat([of[start:end], of[second + start : second + end]], axis=0)
            for name, of in inputs.items()
        }
        return both, targets[start:end], weights[start:end]

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder, pooling and cosine: inputs of 2 * batch rows to float32 (batch, 1)."""
        del config, dtype
        encoder.get_layer("pooler").trainable = False  # nothing that is learnt goes through it
        vectors = sentence_encoder(
            encoder, pooling=self.vectors.pooling, normalize=self.vectors.normalize
        )
        similarity = PairSimilarity(dtype="float32", name="similarity")(vectors.output)
        return keras.Model(encoder.input, similarity, name="embedding")

    def loss(self) -> keras.losses.Loss:
        """The mean squared error of the cosine."""
        return losses.regression()

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Pearson's correlation of cosine and score."""
        return {"metrics": [Pearson()]}

    def outputs(
        self, predicted: tf.Tensor, targets: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The similarity of each pair, (batch,)."""
        del targets, weights
        return {"similarity": predicted[:, 0]}

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """`kbert.regression.regression_report` of cosines and scaled scores; {} without scores."""
        if gold.labels is None:
            return {}
        return regression_report(self._scaled(gold.labels), outputs["similarity"])

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """One of all figures."""
        return [Table("cosine and score", tuple(metrics), [tuple(metrics.values())])]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """The similarity, nine digits."""
        del gold
        return {"similarity": [f"{value:.9g}" for value in outputs["similarity"]]}

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: text to embedding; similarity: text_a, text_b to their cosine."""
        vectors = vector_model(model)

        @tf.function  # so that serving_default and preprocess share one graph of it
        def preprocess(text: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.packer(self.encode([text]))

        def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"embedding": vectors(preprocess(text), training=False)}

        def compare(first: tf.Tensor, second: tf.Tensor) -> dict[str, tf.Tensor]:
            inputs = self.packer(self.encode([first, second]))
            return {"similarity": model(inputs, training=False)[:, 0]}

        return {
            "serving_default": Signature(("text",), serve),
            "preprocess": Signature(("text",), preprocess),
            "similarity": Signature(("text_a", "text_b"), compare),
        }

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """The first text of each pair, or the one that there is."""
        return {"text": list(columns[0])}

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """The vector, a list of numbers."""
        return {"embedding": answers["embedding"].tolist()}

    def reference(self) -> Reference:
        """BertModel, whose last states are pooled here; with sentence-transformers' files."""

        def answers(rows: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
            states = [window["last_hidden_state"].astype(np.float64) for (window,) in rows]
            vectors = np.stack([POOLED[self.vectors.pooling](of) for of in states])
            if self.vectors.normalize:
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            return {"embedding": vectors}

        def files(config: EncoderConfig) -> dict[str, str]:
            return sentence_transformers_files(self.vectors, hidden_dim=config.hidden_dim)

        return Reference("BertModel", answers, files=files)

    def _scaled(self, scores: Any) -> Any:
        """Scores of the data as cosines should be: [0, 1] over the range of the training rows."""
        return (scores - self.lowest) / (self.highest - self.lowest)


@keras.saving.register_keras_serializable("kbert")
class StackedPacker(BertPacker):
    """A `BertPacker` that packs each of the texts for itself: all first ones, all second ones."""

    def sizes(self, lengths: Sequence[np.ndarray]) -> PackedSizes:
        """What the texts of each row become together."""
        each = [super(StackedPacker, self).sizes([of]) for of in lengths]
        return PackedSizes(
            np.sum([of.rows for of in each], axis=0),
            np.sum([of.tokens for of in each], axis=0),
            np.max([of.longest for of in each], axis=0),
            np.all([of.is_whole for of in each], axis=0),
        )

    def call(self, segments: Sequence[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """Any number of ragged int32 (batch, None) to inputs of texts * batch rows."""
        return super().call([tf.concat(list(segments), axis=0)])


def vector_model(model: keras.Model) -> keras.Model:
    """The part of the task's model that makes vectors: any number of rows to (rows, hidden)."""
    return keras.Model(model.input, model.get_layer("similarity").input, name="sentence_encoder")


def _vectors(config: Config) -> SentenceVectors:
    """What the options say, and for what they leave open the checkpoint."""
    options: EmbeddingOptions = config.task
    found = SentenceVectors()
    is_open = options.pooling == "checkpoint" or options.normalize is None
    if is_open and config.model.checkpoint:
        found = _of_checkpoint(config.model.checkpoint, config.model.revision)
    return SentenceVectors(
        found.pooling if options.pooling == "checkpoint" else options.pooling,
        found.normalize if options.normalize is None else options.normalize,
    )


@functools.cache  # a search makes many tasks: a hub is asked, and a lack told, once
def _of_checkpoint(name: str, revision: str | None) -> SentenceVectors:
    return read_sentence_vectors(resolve(name, revision=revision, weights=False))
