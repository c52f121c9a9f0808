"""Texts with answers in the places of their [MASK], as HuggingFace fills them in."""

import tensorflow as tf

from kbert.preprocessing.wordpiece import WordPieceTokenizer


def filled_in(
    token_ids: tf.Tensor,
    positions: tf.Tensor,
    present: tf.Tensor,
    answers: tf.Tensor,
    *,
    tokenizer: WordPieceTokenizer,
) -> tf.Tensor:
    """Puts each answer into the place of its [MASK].

    Of a text with one [MASK] special tokens are left out, the unknown token among them; one with
    several keeps the others, without its [CLS] and [SEP]. Chinese is written without spaces.

    Args:
        token_ids: int32, (batch, length), packed.
        positions: int32, (batch, masks): where each [MASK] is.
        present: bool, (batch, masks): whether there is one.
        answers: int32, (batch, masks, answers): ids of tokens.
        tokenizer: The vocabulary.

    Returns:
        string, (batch, masks, answers); "" where there is no [MASK].
    """
    found = tf.where(present)  # (found, 2)
    is_place = tf.range(tf.shape(token_ids)[1]) == tf.gather_nd(positions, found)[:, tf.newaxis]
    filled = tf.where(
        is_place[:, tf.newaxis],
        tf.gather_nd(answers, found)[:, :, tf.newaxis],
        tf.gather(token_ids, found[:, 0])[:, tf.newaxis],
    )  # (found, answers, length)
    is_single = tf.gather(tf.math.count_nonzero(present, 1) == 1, found[:, 0])
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    is_left_out = _is_one_of(ends, filled)
    is_left_out |= _is_one_of(tokenizer.special_token_ids, filled) & is_single[:, None, None]
    filled = tf.where(is_left_out, -1, filled)  # which no token has
    texts = tokenizer.decode_chinese(tf.reshape(filled, [-1, tf.shape(token_ids)[1]]))
    return _spread(tf.reshape(texts, [-1, tf.shape(answers)[2]]), present)


def _is_one_of(token_ids: tuple[int, ...], values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_any(values[..., tf.newaxis] == tf.constant(token_ids, values.dtype), -1)


def _spread(texts: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns the rows of texts (found, n) where something is present, (batch, masks, n)."""
    numbers = tf.cumsum(tf.cast(tf.reshape(present, [-1]), tf.int32), exclusive=True)
    numbers = tf.where(present, tf.reshape(numbers, tf.shape(present)), tf.shape(texts)[0])
    blank = tf.fill([1, tf.shape(texts)[1]], "")  # what the last number finds
    return tf.gather(tf.concat([texts, blank], 0), numbers)
