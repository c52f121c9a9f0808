"""Masked words: continued pre-training on raw text, perplexity, fill-mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.config import Config, EncoderConfig, MaskedLMOptions
from kbert.data import Columns
from kbert.heads import masked_lm, pretraining
from kbert.losses import cross_entropy
from kbert.preprocessing import (
    BertPacker,
    PackedSizes,
    SentencePairer,
    TokenMasker,
    WordPieceTokenizer,
)
from kbert.preprocessing.filling import filled_in
from kbert.preprocessing.packing import room_for_texts
from kbert.preprocessing.windows import cut
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task

NEXT_SENTENCE, MASKED = "next_sentence", "masked_lm"
"""The model's outputs, where it has both."""
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


@keras.saving.register_keras_serializable(package="kbert")
class PieceCrossEntropy(keras.losses.SparseCategoricalCrossentropy):
    """Of hidden pieces, the first of the two numbers of each target."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return super().call(y_true[..., 0], y_pred)


@keras.saving.register_keras_serializable(package="kbert")
class PieceAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """Of hidden pieces, the first of the two numbers of each target."""

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        super().update_state(y_true[..., 0], y_pred, sample_weight)


class MaskedLM(Task):
    """A distribution over the vocabulary for each masked word piece.

    As HuggingFace's BertForMaskedLM, with the decoder tied to the token embedding. Masks are
    drawn anew in every epoch (15%; of these 80% [MASK], 10% a random piece, 10% unchanged). Texts
    over max_length are cut into consecutive windows, each a row of the model. With next_sentence
    as BertForPreTraining: each window is cut in two, half of which get another text's second part.
    """

    meets_any_token = True
    encoder_does_most = False
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
        self.max_length = config.data.max_length
        self.encoding_key = [len(config.data.text_columns), tokenizer.get_config()]
        self.num_segments = 2 if self.options.next_sentence else 1
        self.packer = CutPacker(
            max_length=self.max_length,
            num_texts=self.num_segments,
            name="packer",
            **tokenizer.packing_ids,
        )
        self.masker = TokenMasker(
            vocabulary_size=tokenizer.vocabulary_size,
            mask_token_id=tokenizer.mask_token_id,
            special_token_ids=(
                tokenizer.cls_token_id,
                tokenizer.sep_token_id,
                tokenizer.pad_token_id,
            ),
            continuation_token_ids=(
                tokenizer.continuation_token_ids if self.options.whole_words else ()
            ),
            mask_rate=self.options.mask_rate,
            name="masker",
        )
        self.pairer = SentencePairer(
            vocabulary_size=tokenizer.vocabulary_size,
            end_token_ids=[
                number
                for number, token in enumerate(tokenizer.vocabulary)
                if token in SENTENCE_ENDS
            ],
            continuation_token_ids=tokenizer.continuation_token_ids,
            name="pairer",
        )

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: all columns joined by a space, one segment."""
        return [self.tokenizer(tf.strings.join(texts, separator=" "))]

    def batch(self, rows: Rows, seed: tf.Tensor) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Masked inputs with mask_positions, targets and weights.

        Targets are int32 (windows, masks, 2): the hidden piece, and the number in the batch of the
        text that the window is of. Weights are (windows, masks). With next_sentence both are by
        the name of the output, and those of the second are (windows,).
        """
        (text,) = rows.segments
        windows, texts = cut(text, room_for_texts(self.max_length, self.num_segments))
        if not self.options.next_sentence:
            return self._masked((windows,), texts, seed)
        seeds = tf.unstack(tf.random.split(seed, 2))
        pairs = self.pairer(windows, texts, seeds[0])
        inputs, targets, weights = self._masked(pairs.segments, texts, seeds[1])
        return (
            inputs,
            {MASKED: targets, NEXT_SENTENCE: pairs.labels},
            {MASKED: weights, NEXT_SENTENCE: pairs.weights},
        )

    def _masked(
        self, segments: tuple[tf.RaggedTensor, ...], texts: tf.Tensor, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        packed = self.packer(segments)
        masked = self.masker(packed, seed)
        positions, weights = positions_of(masked["weights"] > 0)
        hidden = tf.gather(masked["labels"], positions, batch_dims=1)
        targets = tf.stack([hidden, tf.broadcast_to(texts[:, tf.newaxis], tf.shape(hidden))], -1)
        inputs = {**packed, "token_ids": masked["token_ids"], "mask_positions": positions}
        return inputs, targets, weights

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder and heads, to logits float32 (windows, masks, vocabulary), and (windows, 2)."""
        if not self.options.next_sentence:
            encoder.get_layer("pooler").trainable = False  # nothing that is learnt goes through it
            return masked_lm(encoder, config, dtype=dtype)
        model = pretraining(encoder, config, dtype=dtype)
        outputs = {name: model.output[f"{name}_logits"] for name in (MASKED, NEXT_SENTENCE)}
        return keras.Model(model.input, outputs, name="pretraining")

    def loss(self) -> keras.losses.Loss | dict[str, keras.losses.Loss]:
        """Cross-entropy, the mean over masked pieces; and that over windows."""
        masked = PieceCrossEntropy(from_logits=True, reduction="mean_with_sample_weight")
        if not self.options.next_sentence:
            return masked
        return {MASKED: masked, NEXT_SENTENCE: cross_entropy()}

    def metrics(self) -> dict[str, Any]:
        """Accuracy over masked pieces; and that over windows."""
        masked = [PieceAccuracy(name="accuracy")]
        if not self.options.next_sentence:
            return {"weighted_metrics": masked}
        following = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        return {"weighted_metrics": {MASKED: masked, NEXT_SENTENCE: following}}

    def outputs(self, predicted: Any, targets: Any, weights: Any) -> dict[str, tf.Tensor]:
        """Sums over each text's masked pieces, (batch,): loss in nats, hits, pieces.

        With next_sentence those over its windows, too.
        """
        masked, texts = tf.unstack(by_name(targets)[MASKED], axis=-1)
        found = _sums(by_name(predicted)[MASKED], masked, by_name(weights)[MASKED])
        sums = dict(zip(("loss", "hits", "pieces"), found, strict=True))
        if self.options.next_sentence:
            columns = (values[NEXT_SENTENCE][:, tf.newaxis] for values in (targets, weights))
            pairs = _sums(predicted[NEXT_SENTENCE][:, tf.newaxis], *columns)
            names = (f"{NEXT_SENTENCE}_{name}" for name in ("loss", "hits", "pairs"))
            sums |= dict(zip(names, pairs, strict=True))
        # a text has one window at least, and one place for a mask
        return {name: tf.math.segment_sum(values, texts[:, 0]) for name, values in sums.items()}

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """Loss, perplexity and accuracy over masked pieces, with masks that never change.

        With next_sentence loss and accuracy over pairs, too, which are drawn once for all.
        """
        del gold
        sums = {name: float(values.sum(dtype=np.float64)) for name, values in outputs.items()}
        pieces = max(1.0, sums["pieces"])
        figures = {
            "loss": sums["loss"] / pieces,
            "perplexity": float(np.exp(sums["loss"] / pieces)),
            "accuracy": sums["hits"] / pieces,
            "masked_pieces": int(sums["pieces"]),
        }
        if self.options.next_sentence:
            pairs = max(1.0, sums[f"{NEXT_SENTENCE}_pairs"])
            for name, of in (("loss", "loss"), ("accuracy", "hits")):
                figures[f"{NEXT_SENTENCE}_{name}"] = sums[f"{NEXT_SENTENCE}_{of}"] / pairs
        return {**figures, "rows": len(outputs["loss"])}

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
            predicted = model({**inputs, "mask_positions": positions}, training=False)
            top = tf.math.top_k(tf.nn.softmax(by_name(predicted)[MASKED]), self.options.top_k)
            present = weights > 0
            answers = {
                "token": tf.gather(tf.constant(self.tokenizer.vocabulary), top.indices),
                "token_id": top.indices,
                "score": top.values,
            }
            filling_up = {"token": "", "token_id": -1, "score": 0.0}
            return {
                **{
                    name: tf.where(present[:, :, tf.newaxis], values, filling_up[name])
                    for name, values in answers.items()
                },
                "sequence": filled_in(
                    inputs["token_ids"], positions, present, top.indices, tokenizer=self.tokenizer
                ),
            }

        ranked_by = {name: "score" for name in ("token", "token_id", "sequence")}
        return {
            "serving_default": Signature(("text",), serve, ranked_by),
            "preprocess": Signature(("text",), preprocess),
        }

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """For each [MASK] of a text the pieces, ids, scores and filled-in texts, as lists."""
        present = answers["token_id"][:, :, 0] >= 0  # (texts, masks)
        return {
            name: [row[masks].tolist() for row, masks in zip(answers[name], present, strict=True)]
            for name in ("token", "token_id", "score", "sequence")
        }

    def check_request(self, inputs: Mapping[str, Sequence[str]]) -> tuple[int, str] | None:
        """The first text without a [MASK] that the model would see, and what to do."""
        mask = self.tokenizer.mask_token
        token_ids = self.packer(self.encode([tf.constant(inputs["text"], tf.string)]))["token_ids"]
        is_seen = np.any(token_ids == self.tokenizer.mask_token_id, axis=1)
        if is_seen.all():
            return None
        row = int(np.argmin(is_seen))
        if mask not in inputs["text"][row]:
            return row, f"no {mask} in the text; write one for each word piece to fill in."
        return row, (
            f"no {mask} within the first {self.max_length} word pieces (data.max_length); "
            "shorten the text."
        )

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """The columns joined by a space, and a [MASK] in front, where it is never truncated."""
        mask = self.tokenizer.mask_token
        return {"text": [" ".join([mask, *texts]) for texts in zip(*columns, strict=True)]}

    def reference(self) -> Reference:
        """BertForMaskedLM, which next sentences do not matter to."""

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


def by_name(of: Any) -> dict[str, Any]:
    """What is given for each output, by name; that of masked words alone comes without one."""
    return of if isinstance(of, dict) else {MASKED: of}


def _sums(
    logits: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss, hits and weights of each row, summed over its places, float32 (rows,).

    Args:
        logits: float32 (rows, places, classes).
        classes: int32 (rows, places).
        weights: float32 (rows, places).
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
    hits = tf.cast(tf.argmax(logits, -1, output_type=tf.int32) == classes, tf.float32)
    return tuple(tf.reduce_sum(values * weights, axis=-1) for values in (loss, hits, 1.0))


@keras.saving.register_keras_serializable("kbert")
class CutPacker(BertPacker):
    """A `BertPacker` of the windows that texts are cut into.

    Args:
        num_texts: Texts of a packed row, 2 with next sentences; sizes are then those before
            another text's second part takes the place of its own.
        **kwargs: What a `BertPacker` takes.
    """

    def __init__(self, *, num_texts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_texts = num_texts

    def sizes(self, lengths: Sequence[np.ndarray]) -> PackedSizes:
        """What texts of these lengths become: nothing of them is left out."""
        special, length = self.num_texts + 1, np.sum(lengths, axis=0)
        room = room_for_texts(self.max_length, self.num_texts)
        windows = np.maximum(1, -(-length // room))
        return PackedSizes(
            windows,
            length + windows * special,
            np.minimum(length, room) + special,
            np.ones(len(length), bool),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_texts": self.num_texts}
