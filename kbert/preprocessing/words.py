"""Normalises text and splits it into words, as BertNormalizer and BertPreTokenizer do, in graph.

pieces of text -> code points -> entries of `kbert.assets.normalizer` -> characters of words. Each
character keeps its place in the text, as the reference counts it.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kbert.assets import normalizer
from kbert.assets.normalizer import NormalizerTable
from kbert.preprocessing.ragged import count_at, ranges, row_numbers


class Words(NamedTuple):
    """The words of a batch of pieces, and the normalised characters that they consist of."""

    texts: tf.Tensor  # string, (words,)
    splits: tf.Tensor  # int64, (pieces + 1,): number of words before each piece and the end
    codes: tf.Tensor  # int32, (characters,)
    code_splits: tf.Tensor  # int64, (words + 1,): number of characters before each word
    places: tf.Tensor  # int32, (characters,): number of code points before it, pieces joined
    place_splits: tf.Tensor  # int64, (pieces + 1,): number of code points before each piece

    @property
    def lengths(self) -> tf.Tensor:
        """Number of characters of each word, int64, (words,)."""
        return self.code_splits[1:] - self.code_splits[:-1]

    @property
    def num_places(self) -> tf.Tensor:
        """Number of code points of each piece, int64, (pieces,)."""
        return self.place_splits[1:] - self.place_splits[:-1]


def split_into_words(
    pieces: tf.Tensor, is_special: tf.Tensor, *, table: NormalizerTable, alone_mask: int
) -> Words:
    """Normalises pieces and splits them into words.

    Args:
        pieces: string, (pieces,).
        is_special: bool, (pieces,): what is one word, spelt as it stands.
        table: The normaliser.
        alone_mask: The flags of a character that is a word of its own.
    """
    place_splits, codes = code_points(pieces)
    piece_starts = count_at(place_splits[:-1], tf.size(codes))
    starts_piece = piece_starts > 0
    entries = look_up(codes, table)
    entries = tf.cond(
        tf.reduce_any(is_special),
        lambda: _keep_special(entries, codes, piece_starts, is_special),
        lambda: entries,
    )
    word_numbers = _number_words(entries, starts_piece, alone_mask)
    end = tf.constant([np.iinfo(np.int32).max])
    first_numbers = tf.gather(tf.concat([word_numbers, end], 0), place_splits)
    entries, places = tf.cond(
        tf.reduce_any((entries >= 0) & has(entries, normalizer.SEQUENCE | normalizer.RANK_MASK)),
        lambda: _expand(entries, starts_piece, table),
        lambda: (entries, tf.range(tf.size(entries))),
    )
    kept = tf.where((entries >= 0) & ~is_white_space(entries))[:, 0]
    codes = tf.gather(entries, kept) & normalizer.VALUE_MASK
    places = tf.gather(places, kept)
    texts, code_splits, word_numbers = _join(codes, tf.gather(word_numbers, places))
    splits = tf.searchsorted(word_numbers, first_numbers, out_type=tf.int64)
    return Words(texts, splits, codes, code_splits, places, place_splits)


def characters_of_bytes(
    words: Words, word_of_token: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the code points that tokens were made of.

    Args:
        words: Words.
        word_of_token: int32, (tokens,).
        starts: int64, (tokens,): bytes of the word before the token.
        ends: int64, (tokens,): bytes of the word up to the token's end.

    Returns:
        Starts and ends, int32, (tokens,), in code points of the piece.
    """
    limits = tf.constant([[0x80, 0x800, 0x10000]])
    num_bytes = 1 + tf.math.count_nonzero(words.codes[:, tf.newaxis] >= limits, 1, dtype=tf.int32)
    byte_splits = tf.concat([[0], tf.cumsum(num_bytes)], 0)
    word_starts = tf.gather(byte_splits, tf.gather(words.code_splits, word_of_token))
    place_of_byte = tf.repeat(words.places, num_bytes)
    first = tf.gather(place_of_byte, word_starts + tf.cast(starts, tf.int32))
    last = tf.gather(place_of_byte, word_starts + tf.cast(ends, tf.int32) - 1)
    piece = tf.gather(row_numbers(words.splits), word_of_token)
    piece_starts = tf.cast(tf.gather(words.place_splits, piece), tf.int32)
    return first - piece_starts, last + 1 - piece_starts


def code_points(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes texts (texts,): row splits int64 (texts + 1,), code points int32 (codes,).

    Bytes that are not UTF-8 are as many U+FFFD as `bytes.decode(errors="replace")` gives.
    """
    return tf.raw_ops.UnicodeDecode(
        input=texts,
        input_encoding="UTF-8",
        errors="replace",
        replacement_char=0xFFFD,
        replace_control_characters=False,
    )


def look_up(codes: tf.Tensor, table: NormalizerTable) -> tf.Tensor:
    """Returns the normaliser's entries (codes,), their VALUE made absolute."""
    blocks = tf.bitwise.right_shift(codes, normalizer.BLOCK_BITS)
    block_starts = tf.gather(table.block_starts, blocks)
    entries = tf.gather(table.entries, block_starts + (codes & normalizer.BLOCK_SIZE - 1))
    value = (entries + codes) & normalizer.VALUE_MASK
    return entries & ~normalizer.VALUE_MASK | value


def has(entries: tf.Tensor, bits: int) -> tf.Tensor:
    """Returns whether entries have one of the bits."""
    return tf.not_equal(entries & bits, 0)


def is_white_space(entries: tf.Tensor) -> tf.Tensor:
    """Returns whether entries stand for white space."""
    value = entries & (normalizer.VALUE_MASK | normalizer.SEQUENCE | normalizer.NONSTARTER)
    return tf.equal(value, normalizer.WHITE_SPACE)


def is_cleaned(entries: tf.Tensor) -> tf.Tensor:
    """Returns whether the reference drops a code point before NFD, not as an accent after it."""
    return (entries < 0) & has(entries, normalizer.NONSTARTER) & ~has(entries, normalizer.RANK_MASK)


def number_runs(is_alone: tf.Tensor, is_start: tf.Tensor) -> tf.Tensor:
    """Returns a number for each place, int32, from 0 or 1 on: one more where a run starts.

    Runs start where `is_start` says so, at what is alone, and after it.
    """
    after_alone = tf.concat([[False], is_alone[:-1]], 0)[: tf.size(is_alone)]
    return tf.cumsum(tf.cast(is_alone | after_alone | is_start, tf.int32))


def _keep_special(
    entries: tf.Tensor, codes: tf.Tensor, piece_starts: tf.Tensor, is_special: tf.Tensor
) -> tf.Tensor:
    """Makes each special piece one word, spelt as it stands."""
    piece_of_code = tf.cumsum(piece_starts) - 1
    # With NONSTARTER, which no white space has, a space inside a special token is not white space.
    spelt = codes | normalizer.NONSTARTER
    return tf.where(tf.gather(is_special, piece_of_code), spelt, entries)


def _number_words(entries: tf.Tensor, starts_piece: tf.Tensor, alone_mask: int) -> tf.Tensor:
    """Returns a number for each code point: the same in a word, growing along the text."""
    return number_runs(has(entries, alone_mask), is_white_space(entries) | starts_piece)


def _expand(
    entries: tf.Tensor, starts_piece: tf.Tensor, table: NormalizerTable
) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces sequences by their parts and puts combining marks into canonical order.

    Returns:
        entries: int32, (parts,).
        places: int32, (parts,): which of the entries that came in each one is counted as.
    """
    found = tf.where(has(entries, normalizer.SEQUENCE))[:, 0]
    rows = tf.gather(entries, found) & normalizer.VALUE_MASK
    lengths = tf.gather(table.sequence_lengths, rows)
    firsts = tf.cast(found, tf.int32) + tf.cumsum(lengths - 1, exclusive=True)
    num_parts = tf.size(entries) + tf.reduce_sum(lengths - 1)
    is_first = 1 - count_at(ranges(firsts + 1, lengths - 1), num_parts)
    source = tf.cumsum(is_first) - 1
    sequences = tf.gather(table.sequences, ranges(tf.gather(table.sequence_starts, rows), lengths))
    parts = tf.tensor_scatter_nd_update(
        tf.gather(entries, source), ranges(firsts, lengths)[:, tf.newaxis], sequences
    )
    return tf.cond(
        tf.reduce_any((parts >= 0) & has(parts, normalizer.RANK_MASK)),
        lambda: _sort_marks(parts, is_first, source, entries, starts_piece),
        lambda: (parts, source),
    )


def _sort_marks(
    parts: tf.Tensor,
    is_first: tf.Tensor,
    source: tf.Tensor,
    entries: tf.Tensor,
    starts_piece: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sorts the parts of each run of `entries` by RANK; what has no rank stays in front.

    The reference loses sight of what it moves: it says that the first part of each code point,
    wherever it got to, comes from the code point that is next in the text.
    """
    runs = tf.cumsum(tf.cast(starts_piece | ~has(entries, normalizer.NONSTARTER), tf.int64))
    ranks = tf.cast(parts & normalizer.RANK_MASK, tf.int64)  # below 2**31
    order = tf.argsort(tf.gather(runs, source) * 2**31 + ranks, stable=True)
    # Before NFD these are gone.
    cleaned = is_cleaned(entries)
    is_counted = is_first * tf.cast(~tf.gather(cleaned, source), tf.int32)
    counted = tf.cast(tf.where(~cleaned)[:, 0], tf.int32)
    # The 0 is for what is dropped in front of all else; its place is never asked for.
    places = tf.gather(tf.concat([[0], counted], 0), tf.cumsum(tf.gather(is_counted, order)))
    return tf.gather(parts, order), places


def _join(codes: tf.Tensor, word_numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Joins code points that share a number.

    Returns:
        texts: string, (words,).
        splits: int64, (words + 1,).
        word_numbers: int32, (words,), ascending.
    """
    num_codes = tf.size(codes, out_type=tf.int64)
    is_start = tf.not_equal(word_numbers[1:], word_numbers[:-1])
    is_start = tf.concat([[True], is_start], 0)[:num_codes]
    starts = tf.where(is_start)[:, 0]
    splits = tf.concat([starts, num_codes[tf.newaxis]], 0)
    texts = tf.raw_ops.UnicodeEncode(
        input_values=codes, input_splits=splits, output_encoding="UTF-8", errors="replace"
    )
    return texts, splits, tf.gather(word_numbers, starts)
