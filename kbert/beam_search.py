"""Beam search over a decoder, in the TensorFlow graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf

from kbert.decoder import DecoderBlock, decoder_blocks, next_logits


class _Search(NamedTuple):
    """Where a beam search stands, after so many steps."""

    step: tf.Tensor  # int32 ()
    last: tf.Tensor  # int32 (batch, beams): the newest token of what goes on
    sums: tf.Tensor  # float32 (batch, beams): its log-probability, the best first
    ids: tf.Tensor  # int32 (batch, beams, step): its tokens
    caches: list[tf.Tensor]  # of each block, (batch * beams, 2, heads, step, head_dim)
    best_scores: tf.Tensor  # float32 (batch,): of the best that has ended
    best_ids: tf.Tensor  # int32 (batch, max_length): its tokens, and the end token up to the end


@dataclass(frozen=True)
class BeamSearch:
    """The most probable target of each source, among those that begin as the best ones do.

    The score of a target is its log-probability over its number of tokens to the power of
    `length_penalty`, the end token included: 0 gives the log-probability, which short targets
    have high, 1 its mean over tokens. Every target ends: at `max_length` the end token comes
    whatever its probability. A search stops as soon as nothing that goes on can score higher than
    what has ended, so that a row's result does not depend on the others of its batch.

    Source: Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 7, with the penalty as
    HuggingFace's `generate` has it.
    """

    beam_size: int
    """Targets that go on at each step; 1 is greedy decoding."""
    length_penalty: float
    """Exponent, 0 or over."""
    start_token_id: int
    """Token that all targets begin with; it is not part of them."""
    end_token_id: int
    """Token that all targets end with."""
    max_length: int
    """Most tokens of a target, the end token included."""

    def __call__(
        self, decoder: keras.Model, states: tf.Tensor, padding_mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Decode inside the graph.

        Args:
            decoder: What `build_decoder` gave.
            states: The encoder's, (batch, source length, hidden).
            padding_mask: (batch, source length), 1 at tokens.

        Returns:
            Tokens int32 (batch, max_length), from the end of a target on filled up by the end
            token, and scores float32 (batch,).
        """
        blocks = decoder_blocks(decoder)
        cross_caches = [block.new_cross_cache(states) for block in blocks]

        def advance(*search) -> _Search:
            found = _Search(*search)
            logits, caches = next_logits(
                decoder, found.last, found.step, states, padding_mask, found.caches, cross_caches
            )
            return self._advance(found, logits, caches)

        start = self._start(blocks, tf.shape(states)[0])
        end = tf.while_loop(
            lambda *search: self._goes_on(_Search(*search)),
            advance,
            start,
            shape_invariants=_Search(
                *(part.shape for part in start[:3]),
                tf.TensorShape([None, self.beam_size, None]),
                [
                    tf.TensorShape([None, *cache.shape[1:3], None, cache.shape[4]])
                    for cache in start.caches
                ],
                *(part.shape for part in start[5:]),
            ),  # fmt: skip
        )
        return end.best_ids, end.best_scores

    def _start(self, blocks: list[DecoderBlock], batch: tf.Tensor) -> _Search:
        """All beams are alike: only the first one counts."""
        beams = self.beam_size
        first = tf.where(tf.range(beams) == 0, 0.0, -float("inf"))
        return _Search(
            step=tf.constant(0),
            last=tf.fill([batch, beams], self.start_token_id),
            sums=tf.tile(first[tf.newaxis], [batch, 1]),
            ids=tf.zeros([batch, beams, 0], tf.int32),
            caches=[block.new_self_cache(batch * beams) for block in blocks],
            best_scores=tf.fill([batch], -float("inf")),
            best_ids=tf.fill([batch, self.max_length], self.end_token_id),
        )

    def _goes_on(self, search: _Search) -> tf.Tensor:
        # log-probabilities only fall, and no length is over max_length
        bound = search.sums[:, 0] / self.max_length**self.length_penalty
        return (search.step < self.max_length) & tf.reduce_any(search.best_scores < bound)

    def _advance(self, search: _Search, logits: tf.Tensor, caches: list[tf.Tensor]) -> _Search:
        """The search after one more step, of logits (batch, beams, vocabulary)."""
        all_of_it = tf.reduce_logsumexp(logits, axis=-1)  # (batch, beams)
        best_scores, best_ids = self._end(search, logits[..., self.end_token_id] - all_of_it)
        # of each beam the best that goes on, one more in case that the end is among them
        count = min(self.beam_size + 1, logits.shape[-1])
        values, tokens = tf.math.top_k(logits, count)
        values = tf.where(tokens == self.end_token_id, -float("inf"), values)
        sums = (search.sums - all_of_it)[:, :, tf.newaxis] + values
        sums, found = tf.math.top_k(tf.reshape(sums, [-1, self.beam_size * count]), self.beam_size)
        tokens = tf.gather(tf.reshape(tokens, [-1, self.beam_size * count]), found, batch_dims=1)
        parents = found // count  # (batch, beams)
        ids = tf.gather(search.ids, parents, batch_dims=1)
        rows = parents + self.beam_size * tf.range(tf.shape(parents)[0])[:, tf.newaxis]
        return _Search(
            step=search.step + 1,
            last=tokens,
            sums=sums,
            ids=tf.concat([ids, tokens[:, :, tf.newaxis]], axis=2),
            caches=[tf.gather(cache, tf.reshape(rows, [-1])) for cache in caches],
            best_scores=best_scores,
            best_ids=best_ids,
        )

    def _end(self, search: _Search, end: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The best that has ended, when all beams may end by log-probabilities (batch, beams)."""
        length = tf.cast(search.step + 1, tf.float32)
        scores = (search.sums + end) / length**self.length_penalty
        best = tf.argmax(scores, axis=1, output_type=tf.int32)
        scores = tf.gather(scores, best, batch_dims=1)
        ids = tf.gather(search.ids, best, batch_dims=1)  # (batch, step)
        missing = [[0, 0], [0, self.max_length - search.step]]
        ids = tf.pad(ids, missing, constant_values=self.end_token_id)
        is_better = scores > search.best_scores
        return (
            tf.where(is_better, scores, search.best_scores),
            tf.where(is_better[:, tf.newaxis], ids, search.best_ids),
        )
