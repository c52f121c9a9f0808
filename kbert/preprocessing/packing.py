"""Ids of one or two texts as rows that BERT reads: [CLS] a [SEP], or [CLS] a [SEP] b [SEP]."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import keras
import numpy as np
import tensorflow as tf

from kbert.errors import InputError

Truncation = Literal["longest_first", "only_first", "only_second", "do_not_truncate"]


class PackedSizes(NamedTuple):
    """What some texts, or pairs of them, become when a packer packs them, each int64 (texts,)."""

    rows: np.ndarray
    """Rows of the model."""
    tokens: np.ndarray
    """Tokens of these rows together, special ones included, padding not."""
    longest: np.ndarray
    """Tokens of the longest of these rows."""
    is_whole: np.ndarray
    """Whether no token of the text is left out, bool."""


@keras.saving.register_keras_serializable(package="kbert")
class BertPacker(keras.layers.Layer):
    """Packs one or two texts as BERT reads them: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

    Rows are padded to the longest of the batch. Too long ones are cut at the end of a text, as
    HuggingFace's `truncation` of the same name does:

    * "longest_first": of the longer text, then of both evenly.
    * "only_first", "only_second": of that text. Where HuggingFace raises an error, because the
      other text alone is too long, that text is left out and the other one cut.
    * "do_not_truncate": nowhere.

    Example:

    >>> packer = BertPacker(max_length=6, cls_token_id=2, sep_token_id=3, pad_token_id=0)
    >>> packer((tf.ragged.constant([[5, 6], []], dtype=tf.int32),))["token_ids"].numpy().tolist()
    [[2, 5, 6, 3], [2, 3, 0, 0]]

    Args:
        max_length: The most tokens of a row, special tokens included; None with
            "do_not_truncate", and only then.
        truncation: Where to cut.
        cls_token_id, sep_token_id, pad_token_id: See `WordPieceTokenizer`.

    Raises:
        InputError: If max_length is too small, or does not go with truncation.
    """

    def __init__(
        self,
        *,
        max_length: int | None,
        cls_token_id: int,
        sep_token_id: int,
        pad_token_id: int,
        truncation: Truncation = "longest_first",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if truncation not in get_args(Truncation):
            raise InputError(
                f"truncation must be one of {', '.join(get_args(Truncation))}. "
                f"Received: {truncation}"
            )
        if (max_length is None) != (truncation == "do_not_truncate"):
            raise InputError(
                "max_length must be None with truncation do_not_truncate, else a number. "
                f"Received: {max_length} with {truncation}"
            )
        if max_length is not None and max_length < 2:
            raise InputError(f"max_length must hold [CLS] and [SEP]. Received: {max_length}")
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.pad_token_id = pad_token_id
        self.built = True

    def call(self, segments: Sequence[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """Packs a batch.

        Args:
            segments: One or two ragged int32 tensors, (batch, tokens of the text).

        Returns:
            token_ids, segment_ids (0: first text and padding, 1: second text) and padding_mask
            (1: token, 0: padding), all int32, (batch, longest row of the batch).

        Raises:
            InputError: If max_length is too small for the special tokens, or the second text is
                to be cut and there is none.
        """
        check_segments(segments)
        lengths = [tf.cast(segment.row_lengths(), tf.int32) for segment in segments]
        if self.max_length is not None:
            room = room_for_texts(self.max_length, len(segments))
            lengths = _truncate(lengths, room, self.truncation)
        starts = [tf.cast(segment.row_starts(), tf.int32) for segment in segments]
        return pack_rows(
            [segment.values for segment in segments],
            starts,
            lengths,
            cls_token_id=self.cls_token_id,
            sep_token_id=self.sep_token_id,
            pad_token_id=self.pad_token_id,
        )

    def sizes(self, lengths: Sequence[np.ndarray]) -> PackedSizes:
        """What texts of these lengths become.

        Args:
            lengths: For one or two texts a row, number of tokens, int64 (rows,).
        """
        tokens = np.sum(lengths, axis=0) + 1 + len(lengths)
        is_whole = tokens <= (np.inf if self.max_length is None else self.max_length)
        packed = np.where(is_whole, tokens, self.max_length or 0)
        return PackedSizes(np.ones_like(packed), packed, packed, is_whole)

    def compute_output_spec(self, segments: Sequence[keras.KerasTensor]) -> dict[str, Any]:
        names = ("token_ids", "segment_ids", "padding_mask")
        shape = (segments[0].shape[0], None)
        return {name: keras.KerasTensor(shape, dtype="int32") for name in names}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "truncation": self.truncation,
            "cls_token_id": self.cls_token_id,
            "sep_token_id": self.sep_token_id,
            "pad_token_id": self.pad_token_id,
        }


def check_segments(segments: Sequence[tf.RaggedTensor]) -> None:
    """Raises a ValueError if these are not one or two ragged tensors."""
    if isinstance(segments, tf.RaggedTensor) or len(segments) not in (1, 2):
        raise ValueError("segments must be a tuple of one or two ragged tensors.")


def room_for_texts(max_length: int, num_texts: int) -> int:
    """Returns how many tokens a row has beside the special ones, of which there are texts + 1.

    Raises:
        InputError: If it cannot hold the special tokens.
    """
    if max_length < num_texts + 1:
        raise InputError(
            f"max_length must hold the {num_texts + 1} special tokens of {num_texts} texts. "
            f"Received: {max_length}"
        )
    return max_length - num_texts - 1


def pack_rows(
    values: Sequence[tf.Tensor],
    starts: Sequence[tf.Tensor],
    lengths: Sequence[tf.Tensor],
    *,
    cls_token_id: int,
    sep_token_id: int,
    pad_token_id: int,
) -> dict[str, tf.Tensor]:
    """Packs slices of ids.

    Args:
        values: For each text, the ids of all rows after each other, (tokens,).
        starts: For each text, where the slice of a row starts, int32, (rows,).
        lengths: For each text, how long the slice of a row is, int32, (rows,).
        cls_token_id, sep_token_id, pad_token_id: The special tokens.

    Returns:
        token_ids, segment_ids and padding_mask, int32, (rows, longest row).
    """
    num_special = len(values) + 1
    row_lengths = (tf.add_n(list(lengths)) + num_special)[:, tf.newaxis]
    longest = tf.reduce_max(tf.concat([[[num_special]], row_lengths], 0))
    positions = tf.range(longest)[tf.newaxis, :]  # (1, longest)
    is_token = positions < row_lengths

    token_ids = tf.where(is_token, sep_token_id, pad_token_id)
    token_ids = tf.where(positions == 0, cls_token_id, token_ids)
    start = tf.constant([[1]])
    for ids, first, length in zip(values, starts, lengths, strict=True):
        end = start + length[:, tf.newaxis]
        is_inside = (positions >= start) & (positions < end)
        places = tf.where(is_inside, first[:, tf.newaxis] + positions - start, 0)
        # The extra value is there to be gathered where a batch has no tokens at all.
        ids = tf.concat([tf.cast(ids, tf.int32), [0]], 0)
        token_ids = tf.where(is_inside, tf.gather(ids, places), token_ids)
        start = end + 1
    second_start = lengths[0][:, tf.newaxis] + 2
    return {
        "token_ids": token_ids,
        "segment_ids": tf.cast(is_token & (positions >= second_start), tf.int32),
        "padding_mask": tf.cast(is_token, tf.int32),
    }


def _truncate(lengths: list[tf.Tensor], room: int, truncation: Truncation) -> list[tf.Tensor]:
    """Cuts one or two lengths (batch,) to a sum of at most `room`."""
    if truncation == "only_second" and len(lengths) == 1:
        raise InputError("truncation only_second cuts the second text, and there is none.")
    if len(lengths) == 1:
        return [tf.minimum(lengths[0], room)]
    first, second = lengths
    if truncation == "only_first":
        second = tf.minimum(second, room)
        return [tf.minimum(first, room - second), second]
    if truncation == "only_second":
        first = tf.minimum(first, room)
        return [first, tf.minimum(second, room - first)]
    return _truncate_longest_first(first, second, room)


def _truncate_longest_first(first: tf.Tensor, second: tf.Tensor, room: int) -> list[tf.Tensor]:
    """Cuts as HuggingFace does.

    The shorter text stays whole if it fits into half of the room; else both get half, and an odd
    token goes to the longer one, to the second where they are equal.
    """
    longer_half = room - room // 2
    first_half = tf.where(first > second, longer_half, room // 2)
    return [
        tf.minimum(first, tf.maximum(first_half, room - second)),
        tf.minimum(second, tf.maximum(room - first_half, room - first)),
    ]
