"""Texts into those of another language: BERT reads, a new decoder writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_nlp
import numpy as np
import tensorflow as tf

from kbert.beam_search import BeamSearch
from kbert.config import Config, EncoderConfig, TranslationOptions
from kbert.data import Columns, LearnedVocabulary
from kbert.decoder import build_decoder
from kbert.errors import InputError
from kbert.losses import SmoothedCrossEntropy
from kbert.preprocessing import BertPacker, WordPieceTokenizer
from kbert.preprocessing.decoding import tighten
from kbert.tasks.inputs import TextInputs
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task
from kbert.translation_metrics import translation_figures


class Translation(Task):
    """A text in another language for a text: encoder -> decoder with cross-attention -> pieces.

    The source is read by the checkpoint's WordPiece; the target is written in a WordPiece
    vocabulary that was learnt from the training targets, begins with [CLS] and ends with [SEP].
    """

    generates = True
    encoder_does_most = False
    default_metric = "val_loss"
    headline = ("bleu", "chrf", "perplexity")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Texts, and the translation, which has a vocabulary to learn."""
        options: TranslationOptions = config.task
        learned = LearnedVocabulary(
            options.target_column, options.target_vocab_size, options.target_lowercase
        )
        return Columns(
            tuple(config.data.text_columns),
            targets=(options.target_column,),
            vocabularies=(learned,),
        )

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        self.options: TranslationOptions = config.task
        self.tokenizer = tokenizer
        self.max_length = config.data.max_length
        self.has_new_encoder = self.options.encoder == "random"
        self.inputs = TextInputs(config, tokenizer)
        self.packer = self.inputs.packer
        self.target_tokenizer = WordPieceTokenizer(
            learned.vocabularies[self.options.target_column],
            lowercase=self.options.target_lowercase,
            name="target_tokenizer",
        )
        self.target_packer = BertPacker(
            max_length=self.options.max_target_length + 1,
            name="target_packer",
            **self.target_tokenizer.packing_ids,
        )
        self.search = BeamSearch(
            beam_size=self.options.beam_size,
            length_penalty=self.options.length_penalty,
            start_token_id=self.target_tokenizer.cls_token_id,
            end_token_id=self.target_tokenizer.sep_token_id,
            max_length=self.options.max_target_length,
        )
        self.encoding_key = [self.inputs.encoding_key, self.target_tokenizer.get_config()]

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: one segment for one column, two for more."""
        return self.inputs.encode(texts)

    def encode_targets(
        self, texts: list[tf.Tensor], targets: list[tf.Tensor]
    ) -> list[tf.RaggedTensor]:
        """Translations to ids of their own vocabulary."""
        del texts
        return [self.target_tokenizer(targets[0])]

    def batch(
        self, rows: Rows, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Inputs with target_ids from [CLS] on, what follows each, and 1 where something does.

        The last three are (batch, target length), int32, int32 and float32.
        """
        del seed
        packed = self.target_packer(rows.targets)
        token_ids, mask = packed["token_ids"], packed["padding_mask"]
        inputs = {**self.inputs.pack(rows.segments), "target_ids": token_ids[:, :-1]}
        return inputs, token_ids[:, 1:], tf.cast(mask[:, 1:], tf.float32)

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder and decoder, to logits float32 (batch, target length, target vocabulary)."""
        encoder.get_layer("pooler").trainable = False  # nothing that is learnt goes through it
        target_ids = keras.Input((None,), dtype="int32", name="target_ids")
        if self.options.encoder == "frozen":  # it gives the same at every step: no dropout
            encoder.trainable = False
            states = encoder(encoder.input, training=False)["sequence_output"]
        else:
            states = encoder(encoder.input)["sequence_output"]
        decoder = build_decoder(self._decoder_config(config), dtype=dtype)
        logits = decoder(
            {
                "target_ids": target_ids,
                "encoder_states": states,
                "padding_mask": encoder.input["padding_mask"],
            }
        )
        return keras.Model({**encoder.input, "target_ids": target_ids}, logits, name="translator")

    def loss(self) -> keras.losses.Loss:
        """Cross-entropy with label smoothing, the mean over pieces."""
        return SmoothedCrossEntropy(self.options.label_smoothing)

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Accuracy and perplexity over pieces, given those before."""
        return {
            "weighted_metrics": [
                keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
                keras_nlp.metrics.Perplexity(from_logits=True, name="perplexity"),
            ]
        }

    def outputs(
        self, predicted: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Sums over each row's pieces, (batch,): loss in nats, not smoothed, hits, pieces."""
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, predicted)
        hits = tf.cast(tf.argmax(predicted, -1, output_type=tf.int32) == targets, tf.float32)
        return {
            "loss": tf.reduce_sum(loss * weights, axis=-1),
            "hits": tf.reduce_sum(hits * weights, axis=-1),
            "pieces": tf.reduce_sum(weights, axis=-1),
        }

    def generate(self, model: keras.Model, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """translation string (batch,) and its score float32 (batch,), by beam search."""
        read = ("token_ids", "segment_ids", "padding_mask")
        states = model.get_layer("encoder")({name: inputs[name] for name in read}, training=False)
        ids, scores = self.search(
            model.get_layer("decoder"), states["sequence_output"], inputs["padding_mask"]
        )
        texts = self.target_tokenizer.decode_chinese(ids, skip_special_tokens=True)
        return {"translation": tighten(texts), "score": scores}

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """Loss, perplexity and accuracy over pieces, and BLEU and chrF of what is generated."""
        names = ("loss", "hits", "pieces")
        sums = {name: outputs[name].sum(dtype=np.float64) for name in names}
        pieces = max(1.0, sums["pieces"])
        column = self.options.target_column
        return {
            **translation_figures(
                _strings(outputs["translation"]),
                gold.read([column])[column],
                lowercase=self.options.target_lowercase,
            ),
            "loss": float(sums["loss"] / pieces),
            "perplexity": float(np.exp(sums["loss"] / pieces)),
            "accuracy": float(sums["hits"] / pieces),
            "pieces": int(sums["pieces"]),
            "rows": len(outputs["loss"]),
        }

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """One of all numbers, one of how BLEU and chrF were computed."""
        numbers = {name: of for name, of in metrics.items() if isinstance(of, int | float)}
        signatures = {name: of for name, of in metrics.items() if isinstance(of, str)}
        return [
            Table("translation", tuple(numbers), [tuple(numbers.values())]),
            Table("sacrebleu", ("figure", "signature"), list(signatures.items())),
        ]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """The reference, the translation and its score, nine digits."""
        column = self.options.target_column
        return {
            "reference": gold.read([column])[column],
            "translation": _strings(outputs["translation"]),
            "score": [f"{score:.9g}" for score in outputs["score"]],
        }

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: text to translation and score."""
        names = self.inputs.names
        preprocess = tf.function(self.inputs.preprocess)  # one graph of it for both signatures

        def serve(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.generate(model, preprocess(*texts))

        return {
            "serving_default": Signature(names, serve),
            "preprocess": Signature(names, preprocess),
        }

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Each column is an input."""
        return self.inputs.requests(columns)

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """The translation and its score."""
        return {
            "translation": _strings(answers["translation"]),
            "score": answers["score"].tolist(),
        }

    def reference(self) -> Reference:
        """BertModel, for the ids that the encoder reads: the decoder is nobody else's."""
        return Reference("BertModel", lambda rows: {}, of_encoder=True)

    def _decoder_config(self, encoder: EncoderConfig) -> EncoderConfig:
        options = self.options
        heads = options.decoder_heads or encoder.num_heads
        if encoder.hidden_dim % heads:
            raise InputError(
                f"task.decoder_heads must divide the encoder's width {encoder.hidden_dim}, "
                f"received {heads}."
            )
        return dataclasses.replace(
            encoder,
            vocabulary_size=self.target_tokenizer.vocabulary_size,
            num_layers=options.decoder_layers,
            num_heads=heads,
            intermediate_dim=options.decoder_intermediate_dim or encoder.intermediate_dim,
            max_sequence_length=options.max_target_length,
            pad_token_id=None,
        )


def _strings(texts: np.ndarray) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts.tolist()]
