"""Texts, or pairs of texts, on their way to BERT: what tasks that read them alike share."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kbert.config import Config, Pooling, ProblemType
from kbert.preprocessing import BertPacker, BertWindowPacker, WordPieceTokenizer
from kbert.tasks.task import Reference

MOST_WINDOWS = 64
"""Of a text, whose end beyond them is cut off: neither a text nor a request takes all memory."""


class TextInputs:
    """One text, or a pair, as [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

    Columns beyond the second are joined to the second segment by a space, in the graph, so that a
    client sends columns and never joins.

    With data.stride a text that is too long becomes up to `MOST_WINDOWS` windows that overlap, of a
    pair the second text, and a model pools their answers (`kbert.window_pooling`).

    Args:
        config: Options of the run.
        tokenizer: Strings to word-piece ids.
    """

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer) -> None:
        self.tokenizer = tokenizer
        self.names = input_names(len(config.data.text_columns))
        """Names of the served inputs."""
        self.encoding_key = [self.names, tokenizer.get_config()]
        self.stride = config.data.stride
        self.window_pooling: Pooling | None = (
            None if self.stride is None else config.task.window_pooling
        )
        """How the answers to a text's windows become one; None where texts are truncated."""
        self.packer = _packer(config, tokenizer)

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: one segment for one column, two for more."""
        segments = [texts[0]]
        if len(texts) > 1:
            segments.append(tf.strings.join(texts[1:], separator=" "))
        return [self.tokenizer(segment) for segment in segments]

    def pack(self, segments: list[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """Ids to the model's inputs: the encoder's and, with windows, the `rows` they are of."""
        packed = self.packer(segments)
        packed.pop("starts", None)
        return packed

    def examples(
        self, batch: tuple[dict[str, tf.Tensor], Any, Any], start: tf.Tensor, end: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Some texts of a batch with all of their windows, as `Task.examples`."""
        inputs, targets, weights = batch
        texts = tf.nest.map_structure(lambda tensor: tensor[start:end], (targets, weights))
        if self.stride is None:
            return {name: tensor[start:end] for name, tensor in inputs.items()}, *texts
        first, last = tf.unstack(tf.searchsorted(inputs["rows"], tf.stack([start, end])))
        windows = {name: tensor[first:last] for name, tensor in inputs.items()}
        return {**windows, "rows": windows["rows"] - start}, *texts

    def preprocess(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Strings to the model's inputs."""
        return self.pack(self.encode(list(texts)))

    def of_examples(self, examples: tf.Tensor) -> list[tf.Tensor]:
        """The texts of serialised tf.train.Example (batch,), features by the names of the inputs.

        Returns:
            One tensor (batch,) an input, in their order.
        """
        features = dict.fromkeys(self.names, tf.io.FixedLenFeature([], tf.string))
        texts = tf.io.parse_example(examples, features)
        return [texts[name] for name in self.names]

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Each column is an input."""
        return {name: list(texts) for name, texts in zip(self.names, columns, strict=True)}

    def reference(
        self, answers: Callable[[np.ndarray], dict[str, np.ndarray]], problem_type: ProblemType
    ) -> Reference:
        """BertForSequenceClassification of the same texts, windows pooled.

        Args:
            answers: What serving_default should give, from the logits (texts, classes).
            problem_type: What the logits mean.
        """
        pool = np.max if self.window_pooling == "max" else np.mean

        def of_windows(rows: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
            logits = [pool([window["logits"] for window in row], axis=0) for row in rows]
            return answers(np.stack(logits))

        is_pair = self.stride is not None and len(self.names) > 1
        return Reference(
            "BertForSequenceClassification",
            of_windows,
            problem_type,
            truncation="only_second" if is_pair else "longest_first",
            stride=self.stride,
            max_windows=MOST_WINDOWS,
        )


def _packer(config: Config, tokenizer: WordPieceTokenizer) -> BertPacker | BertWindowPacker:
    special = tokenizer.packing_ids
    max_length, stride = config.data.max_length, config.data.stride
    if stride is None:
        return BertPacker(max_length=max_length, name="packer", **special)
    return BertWindowPacker(
        max_length=max_length, stride=stride, max_windows=MOST_WINDOWS, name="packer", **special
    )


def input_names(columns: int) -> tuple[str, ...]:
    """Names of the served inputs: text for one column, text_a, text_b, text_c ... for more."""
    if columns == 1:
        return ("text",)
    return tuple(f"text_{letter}" for letter in string.ascii_lowercase[:columns])
