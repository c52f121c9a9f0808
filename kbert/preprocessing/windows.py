"""Texts that are too long for one row, as several rows that overlap."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.errors import InputError
from kbert.preprocessing.packing import PackedSizes, check_segments, pack_rows, room_for_texts
from kbert.preprocessing.ragged import row_numbers, with_splits


@keras.saving.register_keras_serializable(package="kbert")
class BertWindowPacker(keras.layers.Layer):
    """Packs one or two texts as `BertPacker` does, the last one in overlapping windows.

    A text that fits is one row. Of one that does not, each row holds as many tokens as fit, the
    first `stride` of them those that the row before it ended with, as HuggingFace's
    `return_overflowing_tokens=True` and `stride` do with `truncation="only_first"` (one text) or
    "only_second" (two). Where HuggingFace raises an error, because a first text leaves no room for
    stride + 1 tokens of a second one that does not fit, the first one is cut to leave that.

    Example:

    >>> packer = BertWindowPacker(
    ...     max_length=4, stride=1, cls_token_id=2, sep_token_id=3, pad_token_id=0)
    >>> packed = packer((tf.ragged.constant([[5, 6, 7], [8]], dtype=tf.int32),))
    >>> packed["token_ids"].numpy().tolist()
    [[2, 5, 6, 3], [2, 6, 7, 3], [2, 8, 3, 0]]
    >>> packed["rows"].numpy().tolist(), packed["starts"].numpy().tolist()
    ([0, 0, 1], [0, 1, 0])

    Args:
        max_length: The most tokens of a row, special tokens included.
        stride: How many tokens a row shares with the one before it.
        max_windows: The most rows of a text, whose end is cut off; None for any number.
        cls_token_id, sep_token_id, pad_token_id: See `WordPieceTokenizer`.

    Raises:
        InputError: If a row has no room for one more token than stride.
    """

    def __init__(
        self,
        *,
        max_length: int,
        stride: int,
        max_windows: int | None = None,
        cls_token_id: int,
        sep_token_id: int,
        pad_token_id: int,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if stride < 0:
            raise InputError(f"stride must not be negative. Received: {stride}")
        self.max_length = max_length
        self.stride = stride
        self.max_windows = max_windows
        self._room(num_texts=1)
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.pad_token_id = pad_token_id
        self.supports_jit = False  # the number of windows depends on the texts
        self.built = True

    def call(self, segments: Sequence[tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """Packs a batch.

        Args:
            segments: One or two ragged int32 tensors, (batch, tokens of the text).

        Returns:
            token_ids, segment_ids and padding_mask as of `BertPacker`, (windows, longest window).
            rows, (windows,): the number in the batch of the text that a window is of, ascending.
            starts, (windows,): how many tokens of the last text are before the window. All int32.

        Raises:
            InputError: If two texts have no room for one more token than stride.
        """
        check_segments(segments)
        row_lengths = [tf.cast(segment.row_lengths(), tf.int32) for segment in segments]
        rows, starts, lengths = self.place(row_lengths)
        firsts = [tf.gather(tf.cast(text.row_starts(), tf.int32), rows) for text in segments]
        firsts[-1] += starts
        packed = pack_rows(
            [segment.values for segment in segments],
            firsts,
            lengths,
            cls_token_id=self.cls_token_id,
            sep_token_id=self.sep_token_id,
            pad_token_id=self.pad_token_id,
        )
        return packed | {"rows": rows, "starts": starts}

    def place(self, lengths: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Where windows stand in texts of these lengths.

        Args:
            lengths: Number of tokens of each text, int32 (batch,); one or two tensors.

        Returns:
            rows and starts as of `call`; and how many tokens of each text a window holds, int32
            (windows,), special tokens left out.

        Raises:
            InputError: As `call`.
        """
        room, lengths = self._room(len(lengths)), list(lengths)
        if len(lengths) == 2:
            is_too_long = tf.add_n(lengths) > room
            shortened = tf.minimum(lengths[0], room - self.stride - 1)
            lengths[0] = tf.where(is_too_long, shortened, lengths[0])
        window_lengths = room - sum(lengths[:-1], tf.zeros_like(lengths[-1]))
        rows, starts = _place_windows(lengths[-1], window_lengths, self.stride, self.max_windows)
        held = [tf.gather(length, rows) for length in lengths]
        held[-1] = tf.minimum(held[-1] - starts, tf.gather(window_lengths, rows))
        return rows, starts, held

    def sizes(self, lengths: Sequence[np.ndarray]) -> PackedSizes:
        """What texts of these lengths become, as `BertPacker.sizes`."""
        rows, starts, held = self.place([tf.constant(length, tf.int32) for length in lengths])
        rows, starts, parts = rows.numpy(), starts.numpy(), [part.numpy() for part in held]
        tokens = np.sum(parts, axis=0, dtype=np.int64) + 1 + len(lengths)
        first = np.flatnonzero(np.diff(rows, prepend=-1))
        read = np.zeros(len(first), np.int64)
        np.maximum.at(read, rows, starts + np.sum(parts, axis=0))
        return PackedSizes(
            np.diff(first, append=len(tokens)),
            np.add.reduceat(tokens, first),
            np.maximum.reduceat(tokens, first),
            read == np.sum(lengths, axis=0),
        )

    def compute_output_spec(self, segments: Sequence[keras.KerasTensor]) -> dict[str, Any]:
        names = ("token_ids", "segment_ids", "padding_mask")
        packed = {name: keras.KerasTensor((None, None), dtype="int32") for name in names}
        places = {name: keras.KerasTensor((None,), dtype="int32") for name in ("rows", "starts")}
        return packed | places

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "stride": self.stride,
            "max_windows": self.max_windows,
            "cls_token_id": self.cls_token_id,
            "sep_token_id": self.sep_token_id,
            "pad_token_id": self.pad_token_id,
        }

    def _room(self, num_texts: int) -> int:
        room = room_for_texts(self.max_length, num_texts)
        if room <= self.stride:
            raise InputError(
                f"stride must be below the {room} tokens that a row of max_length "
                f"{self.max_length} has for text. Received: {self.stride}"
            )
        return room


def cut(text: tf.RaggedTensor, length: int) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Cuts texts into consecutive windows, which share nothing.

    Args:
        text: Ragged, (batch, tokens of the text).
        length: The most tokens of a window.

    Returns:
        The windows, ragged, (windows, tokens), and the number in the batch of the text that each
        is of, int32, (windows,), ascending; an empty text is one empty window.
    """
    lengths = tf.cast(text.row_lengths(), tf.int32)
    rows, starts = _place_windows(lengths, tf.fill(tf.shape(lengths), length), 0, None)
    firsts = tf.gather(text.row_splits, rows) + tf.cast(starts, text.row_splits.dtype)
    return with_splits(text.values, tf.concat([firsts, text.row_splits[-1:]], 0)), rows


def _place_windows(
    lengths: tf.Tensor, window_lengths: tf.Tensor, stride: int, most: int | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the row and the start of each window, (windows,), for lengths of (batch,)."""
    # A text that fits needs no step, and its window may be no longer than stride.
    steps = tf.maximum(window_lengths - stride, 1)
    rest = tf.maximum(lengths - window_lengths, 0)
    counts = 1 + (rest + steps - 1) // steps
    if most is not None:
        counts = tf.minimum(counts, most)
    splits = tf.concat([[0], tf.cumsum(counts)], 0)
    rows = row_numbers(splits)
    numbers = tf.range(tf.size(rows)) - tf.gather(splits, rows)
    return rows, numbers * tf.gather(steps, rows)
