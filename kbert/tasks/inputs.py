"""Texts, or pairs of texts, on their way to BERT: what tasks that read them alike share."""

from __future__ import annotations

import string
from collections.abc import Sequence

import tensorflow as tf

from kbert.config import Config
from kbert.preprocessing import BertPacker, WordPieceTokenizer


class TextInputs:
    """One text, or a pair, as [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

    Columns beyond the second are joined to the second segment by a space, in the graph, so that a
    client sends columns and never joins.

    Args:
        config: Options of the run.
        tokenizer: Strings to word-piece ids.
    """

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer) -> None:
        self.tokenizer = tokenizer
        self.names = input_names(len(config.data.text_columns))
        """Names of the served inputs."""
        self.encoding_key = [self.names, tokenizer.get_config()]
        self.packer = BertPacker(
            max_length=config.data.max_length,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
            name="packer",
        )

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: one segment for one column, two for more."""
        segments = [texts[0]]
        if len(texts) > 1:
            segments.append(tf.strings.join(texts[1:], separator=" "))
        return [self.tokenizer(segment) for segment in segments]

    def pack(self, segments: list[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """Ids to the encoder's inputs."""
        return self.packer(segments)

    def preprocess(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Strings to the encoder's inputs."""
        return self.pack(self.encode(list(texts)))

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Each column is an input."""
        return {name: list(texts) for name, texts in zip(self.names, columns, strict=True)}


def input_names(columns: int) -> tuple[str, ...]:
    """Names of the served inputs: text for one column, text_a, text_b, text_c ... for more."""
    if columns == 1:
        return ("text",)
    return tuple(f"text_{letter}" for letter in string.ascii_lowercase[:columns])
