"""Answers as spans of a context: where they stand in word pieces, and which one a model means.

    logits of windows -> span_candidates -> best_answers -> text, score, characters of each row

The rules are those of transformers' `pipeline("question-answering")`, which answers with whole
words and lets spans that read the same add up. All of it is core TensorFlow, for the served graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

CANDIDATES = 12
"""Spans of each window that may be, or add to, the answer: the pipeline's 2 * top_k + 10."""
NOWHERE = -1
"""Start and end of the answer where a context has no word pieces."""


class Candidates(NamedTuple):
    """The best spans of each window, best first, each (windows, candidates)."""

    scores: tf.Tensor
    """float32: probability of the start times that of the end; -1 where there is no span."""
    firsts: tf.Tensor
    """int32: the word piece that the span's first word begins with, counted along the context."""
    lasts: tf.Tensor
    """int32: the word piece that the span's last word ends with."""


def continuations(vocabulary: Sequence[str]) -> np.ndarray:
    """Whether a piece goes on with the word of the piece before it, bool (vocabulary,)."""
    return np.array([piece.startswith("##") for piece in vocabulary])


def answer_pieces(
    piece_starts: tf.RaggedTensor, piece_ends: tf.RaggedTensor, answers: tf.Tensor
) -> tf.Tensor:
    """The word pieces that cover an answer.

    Args:
        piece_starts, piece_ends: Characters of each piece of a context, int32 (batch, pieces).
        answers: First character of the answer and the one after its last, int32 (batch, 2).

    Returns:
        First and last piece, int32 (batch, 2); the last is before the first where there is none.
    """
    firsts = tf.reduce_sum(tf.cast(piece_ends <= answers[:, :1], tf.int32), axis=1)
    ends = tf.reduce_sum(tf.cast(piece_starts < answers[:, 1:], tf.int32), axis=1)
    return tf.stack([firsts, ends - 1], axis=1)


def window_labels(spans: tf.Tensor, packed: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Where the answer stands in each window: 0, that is [CLS], where not all of it does.

    Args:
        spans: First and last piece of the answer of each row, int32 (batch, 2).
        packed: What `BertWindowPacker` made of questions and contexts.

    Returns:
        Positions of the first and the last piece, int32 (windows, 2).
    """
    context = context_mask(packed)
    begins, shifts = _context_places(packed)
    ends = begins + tf.reduce_sum(tf.cast(context, tf.int32), axis=1)
    firsts, lasts = tf.unstack(tf.gather(spans, packed["rows"]) + shifts[:, tf.newaxis], axis=1)
    is_inside = (firsts >= begins) & (firsts <= lasts) & (lasts < ends)
    return tf.where(is_inside[:, tf.newaxis], tf.stack([firsts, lasts], axis=1), 0)


def context_mask(packed: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Which positions are of the context, bool (windows, length): all but the last of segment 1."""
    is_second = packed["segment_ids"] == 1
    return is_second & tf.pad(is_second[:, 1:], [[0, 0], [0, 1]])


def span_candidates(
    logits: tf.Tensor,
    packed: Mapping[str, tf.Tensor],
    *,
    is_continuation: np.ndarray,
    max_answer_length: int,
) -> Candidates:
    """The best spans of each window.

    Probabilities are over the context and [CLS], which no answer starts or ends at.

    Args:
        logits: Of the start and of the end, float32 (windows, 2, length).
        packed: What `BertWindowPacker` made of questions and contexts.
        is_continuation: See `continuations`.
        max_answer_length: The most pieces of a span, before it grows to whole words.
    """
    context = context_mask(packed)
    is_possible = tf.concat([tf.ones_like(context[:, :1]), context[:, 1:]], axis=1)
    # -10000 as in the pipeline: the exponential of it is 0
    starts, ends = tf.unstack(
        tf.nn.softmax(tf.where(is_possible[:, tf.newaxis, :], logits, -10000.0)), axis=1
    )
    scores, firsts, lasts = _best_spans(starts, ends, context, max_answer_length)

    continues = tf.gather(tf.constant(is_continuation), packed["token_ids"])
    after_context = tf.pad(context[:, :-1], [[0, 0], [1, 0]])
    begins_word = context & ~(continues & after_context)  # a window may begin within a word
    ends_word = context & ~tf.pad(context[:, 1:] & ~begins_word[:, 1:], [[0, 0], [0, 1]])
    _, shifts = _context_places(packed)
    firsts = _nearest_before(begins_word, firsts) - shifts[:, tf.newaxis]
    lasts = _nearest_after(ends_word, lasts) - shifts[:, tf.newaxis]
    return Candidates(scores, tf.where(scores < 0, 0, firsts), tf.where(scores < 0, 0, lasts))


def best_answers(packed: Mapping[str, tf.Tensor], candidates: Candidates) -> dict[str, tf.Tensor]:
    """The answer of each row from the candidates of its windows.

    The scores of candidates that are the same text, lower-cased, add up; the text of the largest
    sum is the answer, and stands where the first candidate of that text does.

    Args:
        packed: The `rows` of `BertWindowPacker`; `characters`, int32 (batch, most characters), the
            code points of the contexts; `piece_starts` and `piece_ends`, int32 (batch, most
            pieces), the first character of each piece and the one after its last.
        candidates: Of each window.

    Returns:
        answer, string, score, float32, start and end, int32, all (batch,): the answer is the
        characters from start up to end. Where a context has no pieces, "", 0, -1 and -1.
    """
    found = tf.where(candidates.scores >= 0)  # (spans, 2), best first within a window
    rows = tf.gather(packed["rows"], found[:, 0])
    scores, firsts, lasts = (tf.gather_nd(values, found) for values in candidates)
    starts = tf.gather_nd(packed["piece_starts"], tf.stack([rows, firsts], axis=1))
    ends = tf.gather_nd(packed["piece_ends"], tf.stack([rows, lasts], axis=1))
    texts = _texts(packed["characters"], rows, starts, ends)
    sums = _sums_of_texts(rows, texts, scores)
    size = tf.shape(packed["characters"])[0]
    best = tf.math.unsorted_segment_max(sums, rows, size)  # (batch,), below 0 where there is none
    is_best = tf.where(sums == tf.gather(best, rows))[:, 0]
    chosen = tf.math.unsorted_segment_min(is_best, tf.gather(rows, is_best), size)
    chosen = tf.where(best < 0, tf.size(texts, tf.int64), chosen)  # what is appended below
    return {
        "answer": tf.gather(tf.concat([texts, [""]], 0), chosen),
        "score": tf.maximum(best, 0.0),
        "start": tf.gather(tf.concat([starts, [NOWHERE]], 0), chosen),
        "end": tf.gather(tf.concat([ends, [NOWHERE]], 0), chosen),
    }


def _context_places(packed: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """The position that a window's context starts at, and what to add to a piece's number."""
    begins = tf.argmax(packed["segment_ids"], axis=1, output_type=tf.int32)
    return begins, begins - packed["starts"]


def _best_spans(
    starts: tf.Tensor, ends: tf.Tensor, context: tf.Tensor, max_length: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Scores, first and last positions of the best spans, each (windows, candidates).

    Only the spans of up to `max_length` pieces are computed: (windows, length, max_length).
    """
    length = tf.shape(starts)[1]
    places = tf.range(length)[:, tf.newaxis] + tf.range(max_length)
    padding = [[0, 0], [0, max_length - 1]]
    ends = tf.gather(tf.pad(ends, padding), places, axis=1)
    is_span = context[:, :, tf.newaxis] & tf.gather(tf.pad(context, padding), places, axis=1)
    scores = tf.where(is_span, starts[:, :, tf.newaxis] * ends, -1.0)
    scores = tf.reshape(scores, [-1, length * max_length])
    best = tf.math.top_k(scores, tf.minimum(CANDIDATES, length * max_length))
    firsts = best.indices // max_length
    return best.values, firsts, firsts + best.indices % max_length


def _nearest_before(mask: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """For each position, (windows, n), the last that is true up to it, of a mask over windows."""
    places = tf.where(mask, tf.range(tf.shape(mask)[1]), 0)[:, tf.newaxis, :]
    return tf.reduce_max(tf.where(places <= positions[:, :, tf.newaxis], places, 0), axis=2)


def _nearest_after(mask: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """For each position, (windows, n), the first that is true from it on."""
    length = tf.shape(mask)[1]
    places = tf.where(mask, tf.range(length), length)[:, tf.newaxis, :]
    return tf.reduce_min(tf.where(places >= positions[:, :, tf.newaxis], places, length), axis=2)


def _texts(characters: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """The characters of spans, string (spans,), of rows' characters (batch, most characters)."""
    before = rows * tf.shape(characters)[1]
    places = tf.ragged.range(before + starts, before + ends)
    codes = tf.gather(tf.reshape(characters, [-1]), places.values)
    return tf.strings.unicode_encode(places.with_values(codes), "UTF-8")


def _sums_of_texts(rows: tf.Tensor, texts: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """For each span the scores of its row's spans of the same text, together; (spans,)."""
    texts = tf.strings.regex_replace(texts, r"\x00", "\x01")  # a NUL would end what is lowered
    lowered = tf.strings.lower(texts, encoding="utf-8")
    keys = tf.strings.join([tf.strings.as_string(rows), lowered], separator=" ")
    _, groups = tf.unique(keys)
    return tf.gather(tf.math.unsorted_segment_sum(scores, groups, tf.size(groups)), groups)
