"""Words of a text as a reader sees them, and the word pieces that they begin with, in the graph.

BERT's own words (`kbert.preprocessing.words`) end at every punctuation mark; these are "o'hare"
and "7:30".
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kbert.assets import normalizer
from kbert.preprocessing.ragged import (
    count_at,
    numbers_in_rows,
    ranges,
    row_numbers,
    with_splits,
)
from kbert.preprocessing.wordpiece import WordPieceTokenizer
from kbert.preprocessing.words import (
    code_points,
    has,
    is_cleaned,
    is_white_space,
    look_up,
    number_runs,
)


class Spans(NamedTuple):
    """Where words are in their texts, in code points; ragged int32, (batch, words)."""

    starts: tf.RaggedTensor
    ends: tf.RaggedTensor


def text_words(texts: tf.Tensor, tokenizer: WordPieceTokenizer) -> tuple[tf.RaggedTensor, Spans]:
    """Divides texts into words.

    Words end at white space. Chinese characters are words of their own where they are for the
    tokeniser, and so is each punctuation mark at an edge of a word, not inside it. What the
    tokeniser drops unseen (control characters, NUL) is part of no word but of one that it is
    inside of; accents are.

    Args:
        texts: string, (batch,), UTF-8; other bytes are U+FFFD, which is dropped unseen.
        tokenizer: Says which characters are white space, punctuation, Chinese, dropped.

    Returns:
        The words, ragged string (batch, words), and where they are.
    """
    splits, codes = code_points(texts)
    entries = look_up(codes, tokenizer.normalizer_table)
    starts_text = count_at(splits[:-1], tf.size(codes)) > 0
    numbers = _number_words(entries, starts_text, tokenizer.chinese_mask)
    kept = tf.where(~is_cleaned(entries) & ~is_white_space(entries))[:, 0]
    numbers = tf.gather(numbers, kept)
    differs = tf.not_equal(numbers[1:], numbers[:-1])
    starts = tf.boolean_mask(kept, tf.concat([[True], differs], 0)[: tf.size(kept)])
    ends = tf.boolean_mask(kept, tf.concat([differs, [True]], 0)[: tf.size(kept)]) + 1
    words = tf.raw_ops.UnicodeEncode(
        input_values=tf.gather(codes, ranges(starts, ends - starts)),
        input_splits=tf.concat([[0], tf.cumsum(ends - starts)], 0),
        output_encoding="UTF-8",
        errors="replace",
    )
    word_splits = tf.searchsorted(starts, splits, out_type=tf.int64)
    before = tf.gather(splits, row_numbers(word_splits))
    spans = (with_splits(tf.cast(part - before, tf.int32), word_splits) for part in (starts, ends))
    return with_splits(words, word_splits), Spans(*spans)


def joined_spans(items: tf.RaggedTensor) -> Spans:
    """Where items are in the text that joins those of a row by one character.

    Args:
        items: Ragged string, (batch, items).
    """
    lengths = tf.strings.length(items.values, unit="UTF8_CHAR")
    before = tf.cumsum(lengths + 1, exclusive=True)
    before_row = tf.gather(tf.concat([before, [0]], 0), items.row_starts())
    starts = before - tf.gather(before_row, row_numbers(items.row_splits))
    return Spans(items.with_values(starts), items.with_values(starts + lengths))


def span_of(places: tf.RaggedTensor, spans: Spans) -> tf.Tensor:
    """Finds the span that each place is in.

    Args:
        places: Characters of the texts, ragged int32, (batch, places).
        spans: Spans in the texts, ascending in each.

    Returns:
        Which of all spans, int32, (places of all texts,); -1 for none.
    """
    starts, ends = _across_texts(spans.starts), _across_texts(spans.ends)
    wanted = _across_texts(places)
    number = tf.searchsorted(starts, wanted, side="right")  # of spans that start before or there
    is_inside = wanted < tf.gather(tf.concat([[-1], ends], 0), number)
    return tf.where(is_inside, number - 1, -1)


def opens_span(places: tf.RaggedTensor, spans: Spans) -> tf.Tensor:
    """Returns whether each place is the first in its span, bool, (places of all texts,)."""
    firsts = first_places(places, spans).values
    first = tf.gather(tf.concat([[-1], firsts], 0), span_of(places, spans) + 1)
    return first == numbers_in_rows(places)


def first_places(places: tf.RaggedTensor, spans: Spans) -> tf.RaggedTensor:
    """Finds the first place in each span, such as the first word piece of each word.

    Args:
        places: Characters of the texts, ragged int32, (batch, places).
        spans: Spans in the texts, ascending in each.

    Returns:
        Its number among the places of its text, ragged int32, (batch, spans); -1 for none.
    """
    numbers, count = numbers_in_rows(places), tf.size(spans.starts.values)
    firsts = tf.math.unsorted_segment_min(numbers, span_of(places, spans), count)
    return spans.starts.with_values(tf.where(firsts == np.iinfo(np.int32).max, -1, firsts))


def _number_words(entries: tf.Tensor, starts_text: tf.Tensor, chinese_mask: int) -> tf.Tensor:
    """Returns a number for each code point: the same in a word, growing along the text."""
    is_alone = is_white_space(entries) | has(entries, chinese_mask)
    runs = number_runs(is_alone, starts_text)
    is_mark = has(entries, normalizer.ALONE)
    is_letter = tf.cast(~is_mark & ~is_cleaned(entries), tf.int32)
    letters = tf.math.unsorted_segment_sum(is_letter, runs, tf.size(runs) + 1)  # in each run
    letters_before = tf.cumsum(is_letter) - tf.gather(tf.cumsum(letters, exclusive=True), runs)
    is_edge = (letters_before == 0) | (letters_before == tf.gather(letters, runs))
    return number_runs(is_alone | (is_mark & is_edge), starts_text)


def _across_texts(places: tf.RaggedTensor) -> tf.Tensor:
    """Returns places of all texts, int64, such that those of a later text are larger."""
    rows = tf.cast(row_numbers(places.row_splits), tf.int64)
    return rows * 2**32 + tf.cast(places.values, tf.int64)
