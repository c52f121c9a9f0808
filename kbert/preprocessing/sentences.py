"""Pairs of texts for next-sentence prediction."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kbert.preprocessing.ragged import row_numbers, with_splits


class SentencePairs(NamedTuple):
    """Two segments a row, and whether the second follows the first."""

    segments: tuple[tf.RaggedTensor, tf.RaggedTensor]  # int32, (batch, tokens)
    labels: tf.Tensor  # int32, (batch,): 0 where it follows, 1 where it is another text's
    weights: tf.Tensor  # float32, (batch,): 0 where a text is too short to be two


@keras.saving.register_keras_serializable(package="kbert")
class SentencePairer(keras.layers.Layer):
    """Cuts each text in two, and gives half of them the second part of another text.

    The cut is after the sentence end that is nearest to the middle; in a text without one, before
    the word that is. As in BERT's pre-training (Devlin et al. 2019) a second part stays with the
    probability 1/2, and else is one of another text of the batch.

    Args:
        vocabulary_size: Number of tokens.
        end_token_ids: Tokens that end a sentence.
        continuation_token_ids: Tokens that go on with a word, which no part begins with.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        end_token_ids: Sequence[int],
        continuation_token_ids: Sequence[int],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.end_token_ids = tuple(end_token_ids)
        self.continuation_token_ids = tuple(continuation_token_ids)
        self.supports_jit = False  # ragged
        self.built = True

    def call(self, text: tf.RaggedTensor, rows: tf.Tensor, seed: tf.Tensor) -> SentencePairs:
        """Makes pairs; they are a function of the arguments alone.

        Args:
            text: Ragged int32, (batch, tokens).
            rows: Which of them are parts of one text, and so never exchanged: the same number.
            seed: Two integers, (2,).
        """
        starts, ends = text.row_splits[:-1], text.row_splits[1:]
        cuts = self._cuts(text)
        is_pair = (cuts > starts) & (cuts < ends)
        cuts = tf.where(is_pair, cuts, ends)
        count = tf.size(rows)
        seeds = tf.unstack(tf.random.split(seed, 2))
        step = tf.random.stateless_uniform(
            [count], seeds[0], minval=1, maxval=tf.maximum(count, 2), dtype=tf.int32
        )
        others = (tf.range(count) + step) % tf.maximum(count, 1)
        may_change = is_pair & tf.gather(is_pair, others) & (tf.gather(rows, others) != rows)
        is_other = may_change & (tf.random.stateless_uniform([count], seeds[1]) < 0.5)
        source = tf.where(is_other, others, tf.range(count))
        return SentencePairs(
            (
                _slices(text.values, starts, cuts),
                _slices(text.values, tf.gather(cuts, source), tf.gather(ends, source)),
            ),
            tf.cast(is_other, tf.int32),
            tf.cast(is_pair, tf.float32),
        )

    def _cuts(self, text: tf.RaggedTensor) -> tf.Tensor:
        """Returns where each second part begins among all tokens, int64, (batch,)."""
        splits = text.row_splits
        starts, ends = splits[:-1], splits[1:]
        row_of_token = row_numbers(splits)
        size = tf.size(text.values, out_type=tf.int64)
        twice_middle = tf.gather(starts + ends, row_of_token)
        far = tf.abs(2 * tf.range(size) - twice_middle)
        # what is not wanted is further away than all that is
        after_end = tf.concat([[False], self._is(self.end_token_ids, text.values)[:-1]], 0)[:size]
        continues = self._is(self.continuation_token_ids, text.values)
        far += 2 * size * (tf.cast(~after_end, tf.int64) + 2 * tf.cast(continues, tf.int64))
        is_first = tf.equal(tf.range(size), tf.gather(starts, row_of_token))
        far = tf.where(is_first, far + 8 * size, far)
        nearest = tf.math.unsorted_segment_min(far, row_of_token, tf.size(starts))
        is_nearest = tf.equal(far, tf.gather(nearest, row_of_token))
        places = tf.where(is_nearest, tf.range(size), size)
        # of two that are as near the first; the end of a text without tokens
        found = tf.math.unsorted_segment_min(places, row_of_token, tf.size(starts))
        return tf.minimum(found, ends)

    def _is(self, token_ids: Sequence[int], values: tf.Tensor) -> tf.Tensor:
        table = np.zeros(self.vocabulary_size, bool)
        table[list(token_ids)] = True
        return tf.gather(tf.constant(table), values)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "end_token_ids": list(self.end_token_ids),
            "continuation_token_ids": list(self.continuation_token_ids),
        }


def _slices(values: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> tf.RaggedTensor:
    """Returns values[start:end] for each start and end, ragged, (batch, None)."""
    places = tf.raw_ops.RaggedRange(starts=starts, limits=ends, deltas=1)
    return with_splits(tf.gather(values, places.rt_dense_values), places.rt_nested_splits)
