"""Masked words: continued pre-training on raw text, perplexity, fill-mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.config import Config, EncoderConfig, MaskedLMOptions
from kbert.data import Columns
from kbert.heads import masked_lm
from kbert.preprocessing import BertPacker, TokenMasker, WordPieceTokenizer
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table


class MaskedLM:
    """A distribution over the vocabulary for each masked word piece.

    As HuggingFace's BertForMaskedLM, with the decoder tied to the token embedding. Masks are
    drawn anew in every epoch (15%; of these 80% [MASK], 10% a random piece, 10% unchanged).
    """

    classifies = False
    generates = False
    default_metric = "val_loss"
    headline = ("loss", "perplexity", "accuracy")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Texts alone."""
        return Columns(tuple(config.data.text_columns))

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        del learned
        self.options: MaskedLMOptions = config.task
        self.tokenizer = tokenizer
        self.labels = ()
        self.max_length = config.data.max_length
        self.encoding_key = [len(config.data.text_columns), tokenizer.get_config()]
        self.packer = BertPacker(
            max_length=self.max_length,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
            name="packer",
        )
        self.masker = TokenMasker(
            vocabulary_size=tokenizer.vocabulary_size,
            mask_token_id=tokenizer.mask_token_id,
            special_token_ids=(
                tokenizer.cls_token_id,
                tokenizer.sep_token_id,
                tokenizer.pad_token_id,
            ),
            mask_rate=self.options.mask_rate,
            name="masker",
        )

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: all columns joined by a space, one segment."""
        return [self.tokenizer(tf.strings.join(texts, separator=" "))]

    def batch(
        self, rows: Rows, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Masked inputs with mask_positions, target ids and weights, each (batch, masks)."""
        packed = self.packer(rows.segments)
        masked = self.masker(packed, seed)
        positions, weights = positions_of(masked["weights"] > 0)
        targets = tf.gather(masked["labels"], positions, batch_dims=1)
        inputs = {**packed, "token_ids": masked["token_ids"], "mask_positions": positions}
        return inputs, targets, weights

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder and masked-LM head, to logits float32 (batch, masks, vocabulary)."""
        encoder.get_layer("pooler").trainable = False  # nothing that is learnt goes through it
        return masked_lm(encoder, config, dtype=dtype)

    def loss(self) -> keras.losses.Loss:
        """Cross-entropy, the mean over masked pieces."""
        return keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Accuracy over masked pieces."""
        return {"weighted_metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}

    def outputs(
        self, predicted: tf.Tensor, targets: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Sums over each row's masked pieces, (batch,): loss in nats, hits, pieces."""
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, predicted)
        hits = tf.cast(tf.argmax(predicted, -1, output_type=tf.int32) == targets, tf.float32)
        return {
            "loss": tf.reduce_sum(loss * weights, axis=-1),
            "hits": tf.reduce_sum(hits * weights, axis=-1),
            "pieces": tf.reduce_sum(weights, axis=-1),
        }

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """Loss, perplexity and accuracy over masked pieces, with masks that never change."""
        del gold
        sums = {name: values.sum(dtype=np.float64) for name, values in outputs.items()}
        pieces = max(1.0, sums["pieces"])
        return {
            "loss": float(sums["loss"] / pieces),
            "perplexity": float(np.exp(sums["loss"] / pieces)),
            "accuracy": float(sums["hits"] / pieces),
            "masked_pieces": int(sums["pieces"]),
            "rows": len(outputs["loss"]),
        }

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """One of all figures."""
        return [Table("masked words", tuple(metrics), [tuple(metrics.values())])]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """None: the answer to a text without [MASK] is no prediction."""
        del outputs, gold
        return {}

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: text with [MASK] to the top_k pieces for each [MASK]."""

        @tf.function  # so that both signatures share one graph of it
        def preprocess(text: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.packer(self.encode([text]))

        def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
            inputs = preprocess(text)
            positions, weights = positions_of(inputs["token_ids"] == self.tokenizer.mask_token_id)
            logits = model({**inputs, "mask_positions": positions}, training=False)
            top = tf.math.top_k(tf.nn.softmax(logits), self.options.top_k)
            pieces = tf.gather(tf.constant(self.tokenizer.vocabulary), top.indices)
            present = weights[:, :, tf.newaxis] > 0
            return {
                "token": tf.where(present, pieces, ""),
                "token_id": tf.where(present, top.indices, -1),
                "score": tf.where(present, top.values, 0.0),
            }

        ranked_by = {"token": "score", "token_id": "score"}
        return {
            "serving_default": Signature(("text",), serve, ranked_by),
            "preprocess": Signature(("text",), preprocess),
        }

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """For each [MASK] of a text the pieces, their ids and their scores, as lists."""
        present = answers["token_id"][:, :, 0] >= 0  # (texts, masks)
        return {
            name: [row[masks].tolist() for row, masks in zip(answers[name], present, strict=True)]
            for name in ("token", "token_id", "score")
        }

    def check_request(self, inputs: Mapping[str, Sequence[str]]) -> tuple[int, str] | None:
        """The first text without [MASK], which there is nothing to answer to."""
        mask = self.tokenizer.vocabulary[self.tokenizer.mask_token_id]
        for row, text in enumerate(inputs["text"]):
            if mask not in text:
                return row, f"no {mask} in the text; write one for each word piece to fill in."
        return None

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """The columns joined by a space, and a [MASK] in front, where it is never truncated."""
        mask = self.tokenizer.vocabulary[self.tokenizer.mask_token_id]
        return {"text": [" ".join([mask, *texts]) for texts in zip(*columns, strict=True)]}

    def reference(self) -> Reference:
        """BertForMaskedLM."""

        def answers(rows: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
            masks = max(1, *(len(window["logits"]) for (window,) in rows))
            shape = (len(rows), masks, self.options.top_k)
            token_ids, scores = np.full(shape, -1, np.int32), np.zeros(shape)
            for row, (found,) in enumerate(rows):
                top = tf.math.top_k(tf.nn.softmax(found["logits"].astype(np.float64)), shape[-1])
                token_ids[row, : len(top.indices)] = top.indices
                scores[row, : len(top.indices)] = top.values
            # "" is what the index -1 finds
            tokens = np.array([*self.tokenizer.vocabulary, ""], object)[token_ids]
            return {"token": tokens, "token_id": token_ids, "score": scores}

        return Reference("BertForMaskedLM", answers)


def positions_of(mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where each row of a mask is true.

    Args:
        mask: bool (batch, length).

    Returns:
        Positions, int32 (batch, most in a row, at least 1), padded by 0, and their weights,
        float32 of the same shape: 1 for a position, 0 for padding.
    """
    count = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
    width = tf.maximum(1, tf.reduce_max(tf.concat([count, [1]], axis=0)))
    # true positions first, in their order: a stable sort of "is not true"
    order = tf.argsort(tf.cast(tf.logical_not(mask), tf.int32), axis=1, stable=True)
    present = tf.sequence_mask(count, width)
    positions = tf.where(present, order[:, :width], 0)
    return positions, tf.cast(present, tf.float32)
