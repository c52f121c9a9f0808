"""Hides tokens for masked language modelling."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.errors import InputError


@keras.saving.register_keras_serializable(package="kbert")
class TokenMasker(keras.layers.Layer):
    """Hides tokens for masked language modelling, as BERT was trained (Devlin et al. 2019).

    Each position that is neither padding nor a special token is selected with the probability
    `mask_rate`, independently of the others, as HuggingFace's `DataCollatorForLanguageModeling`
    does: a row may have none. Of the selected, `mask_token_rate` become [MASK],
    `random_token_rate` a token drawn from the whole vocabulary; the rest stays.

    Tokens that continue a word are selected with it, where `continuation_token_ids` names them: by
    the same probability words are selected as a whole (Devlin's later "whole word masking"). What
    becomes of each token is still its own chance, as in the original.

    Example:

    >>> masker = TokenMasker(vocabulary_size=10, mask_token_id=4, special_token_ids=range(5))
    >>> token_ids = tf.constant([[2, 7, 8, 9, 3]])
    >>> masked = masker({"token_ids": token_ids, "padding_mask": tf.ones_like(token_ids)}, [1, 2])
    >>> sorted(masked)
    ['labels', 'token_ids', 'weights']

    Args:
        vocabulary_size, mask_token_id, special_token_ids: See `WordPieceTokenizer`.
        continuation_token_ids: Tokens that are selected with the one before them; () for none.
        mask_rate: Probability of a position, or of a word, to be selected.
        mask_token_rate: Share of the selected that become [MASK].
        random_token_rate: Share of the selected that become a random token.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        mask_token_id: int,
        special_token_ids: Sequence[int],
        continuation_token_ids: Sequence[int] = (),
        mask_rate: float = 0.15,
        mask_token_rate: float = 0.8,
        random_token_rate: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not 0 < mask_rate <= 1:
            raise InputError(f"mask_rate must be above 0 and at most 1. Received: {mask_rate}")
        if min(mask_token_rate, random_token_rate) < 0 or mask_token_rate + random_token_rate > 1:
            raise InputError(
                "mask_token_rate and random_token_rate must be shares that sum up to at most 1. "
                f"Received: {mask_token_rate}, {random_token_rate}"
            )
        self.vocabulary_size = vocabulary_size
        self.mask_token_id = mask_token_id
        self.special_token_ids = tuple(special_token_ids)
        self.continuation_token_ids = tuple(continuation_token_ids)
        self.mask_rate = mask_rate
        self.mask_token_rate = mask_token_rate
        self.random_token_rate = random_token_rate
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Masks a batch; the result is a function of its arguments alone.

        Args:
            inputs: token_ids and padding_mask of `BertPacker`; other entries are not read.
            seed: Two integers, (2,).

        Returns:
            token_ids, int32, with tokens hidden; labels, int32, the token_ids that came in; and
            weights, float32, 1 at selected positions, else 0. All (batch, length).
        """
        token_ids = inputs["token_ids"]
        shape = tf.shape(token_ids)
        seeds = tf.unstack(tf.random.split(seed, 3))
        special = tf.constant(self.special_token_ids, token_ids.dtype)
        is_special = tf.reduce_any(token_ids[..., tf.newaxis] == special, -1)
        may_be_hidden = tf.cast(inputs["padding_mask"], tf.bool) & ~is_special
        is_selected = may_be_hidden & (self._chances(token_ids, seeds[0]) < self.mask_rate)

        choice = tf.random.stateless_uniform(shape, seeds[1])
        becomes_mask = is_selected & (choice < self.mask_token_rate)
        becomes_random = is_selected & (choice >= 1.0 - self.random_token_rate)
        random_ids = tf.random.stateless_uniform(
            shape, seeds[2], maxval=self.vocabulary_size, dtype=token_ids.dtype
        )
        masked = tf.where(becomes_random, random_ids, token_ids)
        return {
            "token_ids": tf.where(becomes_mask, self.mask_token_id, masked),
            "labels": token_ids,
            "weights": tf.cast(is_selected, tf.float32),
        }

    def _chances(self, token_ids: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns a number in [0, 1) for each token, the same in a word, (batch, length)."""
        chances = tf.random.stateless_uniform(tf.shape(token_ids), seed)
        if not self.continuation_token_ids:
            return chances
        continues = np.zeros(self.vocabulary_size, bool)
        continues[list(self.continuation_token_ids)] = True
        # a row may begin inside a word
        is_start = ~tf.gather(tf.constant(continues), token_ids)
        is_start |= tf.range(tf.shape(token_ids)[1]) == 0
        word_of_token = tf.cumsum(tf.cast(is_start, tf.int32), axis=1) - 1
        return tf.gather(chances, word_of_token, batch_dims=1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "mask_token_id": self.mask_token_id,
            "special_token_ids": list(self.special_token_ids),
            "continuation_token_ids": list(self.continuation_token_ids),
            "mask_rate": self.mask_rate,
            "mask_token_rate": self.mask_token_rate,
            "random_token_rate": self.random_token_rate,
        }
