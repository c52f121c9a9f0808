"""A Transformer decoder over the states of an encoder, as a functional Keras model."""

from __future__ import annotations

import keras
import keras_nlp
import tensorflow as tf
from keras import ops

from kbert.config import EncoderConfig
from kbert.encoder import (
    Attention,
    BlockParts,
    Dropout,
    PositionEmbedding,
    SelfAttention,
    TokenEmbedding,
    activation_function,
)


def build_decoder(
    config: EncoderConfig,
    *,
    dtype: str | keras.DTypePolicy = "float32",
    name: str = "decoder",
) -> keras.Model:
    """A Transformer decoder with new weights, whose output layer is its token embedding.

    Inputs are a dictionary of `target_ids` int32 (batch, target length), which begin with a start
    token, of `encoder_states` (batch, source length, hidden) and their `padding_mask` int32 (1 at
    tokens). Output are float32 logits (batch, target length, vocabulary) of the token that follows
    each. Blocks normalise first, which learns faster than BERT's order from new weights.

    Args:
        config: Sizes and constants; the vocabulary is that of the target, max_sequence_length the
            most tokens of a target, and hidden_dim that of the encoder.
        dtype: Keras' dtype policy of what comes before the logits.
        name: Name of the model.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """
    target_ids = keras.Input((None,), dtype="int32", name="target_ids")
    states = keras.Input((None, config.hidden_dim), dtype=dtype_of(dtype), name="encoder_states")
    padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
    embedding = TokenEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        pad_token_id=None,
        embeddings_initializer=_initializer(config),
        dtype=dtype,
        name="target_embedding",
    )
    hidden = embedding(target_ids)
    positions = PositionEmbedding(
        config.max_sequence_length,
        initializer=_initializer(config),
        dtype=dtype,
        name="target_positions",
    )
    hidden = keras.layers.Add(dtype=dtype, name="target_add")([hidden, positions(hidden)])
    hidden = _layer_norm(config, dtype, "target_layer_norm")(hidden)
    hidden = Dropout(config.dropout, dtype=dtype, name="target_dropout")(hidden)
    for index in range(config.num_layers):
        block = _block(config, dtype, f"decoder_layer_{index}")
        hidden = block(hidden, states, encoder_padding_mask=padding_mask)
    hidden = _layer_norm(config, dtype, "decoder_layer_norm")(hidden)
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(
        embedding(hidden, reverse=True)
    )
    inputs = {
        "target_ids": target_ids,
        "encoder_states": states,
        "padding_mask": padding_mask,
    }
    return keras.Model(inputs, logits, name=name)


@keras.saving.register_keras_serializable("kbert")
class CausalAttention(SelfAttention):
    """Attention to what came before, with a cache that grows by each call.

    The cache is (batch, 2, heads, length, head_dim), keys and values of what came before, ready
    for the product; that of `keras_nlp.layers.CachedMultiHeadAttention` has one length for all
    steps, and is transposed at each.
    """

    def call(
        self,
        query,
        value,
        attention_mask=None,
        cache=None,
        cache_update_index=None,
        training=None,
    ):
        """Output (batch, length, hidden); with a cache, the longer cache as well."""
        if cache is None:
            return super().call(query, value, attention_mask=attention_mask, training=training)
        parts = self._query_dense, self._key_dense, self._value_dense
        query, key, value = self._project(query, *parts)
        cache = ops.concatenate([cache, ops.stack([key, value], axis=1)], axis=3)
        output, _ = self._attend(query, cache[:, 0], cache[:, 1], attention_mask, training)
        return output, cache


@keras.saving.register_keras_serializable("kbert")
class CrossAttention(Attention):
    """Attention of a decoder to the states of an encoder.

    The cache is (batch, 2, heads, source length, head_dim) and stays as it is. The queries may be
    several a source, one after the other, (batch * beams, 1, hidden): then the beams of a source
    attend as if they were positions, and nothing of the source is repeated.
    """

    def call(
        self,
        query,
        value,
        attention_mask=None,
        cache=None,
        cache_update_index=None,
        training=None,
    ):
        """Output (batch, length, hidden); with a cache, the cache as well."""
        if cache is None:
            key, value = self._project(value, self._key_dense, self._value_dense)
            (query,) = self._project(query, self._query_dense)
            return self._attend(query, key, value, attention_mask, training)[0]
        shape = ops.shape(query)
        query = ops.reshape(query, (ops.shape(cache)[0], -1, shape[-1]))
        (query,) = self._project(query, self._query_dense)
        output, _ = self._attend(query, cache[:, 0], cache[:, 1], attention_mask, training)
        return ops.reshape(output, shape), cache

    def new_cache(self, value):
        """The cache of states (batch, source length, hidden)."""
        return ops.stack(self._project(value, self._key_dense, self._value_dense), axis=1)


@keras.saving.register_keras_serializable("kbert")
class DecoderBlock(BlockParts, keras_nlp.layers.TransformerDecoder):
    """A `keras_nlp.layers.TransformerDecoder` with the attention of this module; see BlockParts."""

    def build(self, decoder_sequence_shape, encoder_sequence_shape):
        """Makes the layers that the parent's `call` uses, under the names it gives them."""
        self._decoder_sequence_shape = decoder_sequence_shape
        self._encoder_sequence_shape = encoder_sequence_shape
        shape = decoder_sequence_shape
        self._build_attention("self_attention", CausalAttention, "self_attention", shape, shape)
        self._build_attention(
            "cross_attention", CrossAttention, "cross_attention", shape, encoder_sequence_shape
        )
        self._build_feedforward(shape)
        self.built = True

    def step(self, hidden, states, padding_mask, self_cache, cross_cache):
        """One more position of each row.

        Args:
            hidden: (batch * beams, 1, hidden).
            states: What `new_cross_cache` was made of, (batch, source length, hidden).
            padding_mask: (batch, source length), 1 at tokens.
            self_cache: Keys and values of the positions before, see `CausalAttention`.
            cross_cache: What `new_cross_cache` gave.

        Returns:
            Output (batch * beams, 1, hidden), and the cache with the new position.
        """
        hidden, self_cache, _ = self(
            hidden,
            states,
            encoder_padding_mask=padding_mask,
            self_attention_cache=self_cache,
            cross_attention_cache=cross_cache,
            use_causal_mask=False,  # the cache holds nothing of what comes after
        )
        return hidden, self_cache

    def new_cross_cache(self, states):
        """Keys and values of states (batch, source length, hidden), see `CrossAttention`."""
        return self._cross_attention_layer.new_cache(states)

    def new_self_cache(self, rows):
        """The cache of no positions, of so many rows."""
        head_dim = self._self_attention_layer.key_dim
        return ops.zeros((rows, 2, self.num_heads, 0, head_dim), dtype=self.compute_dtype)

    def compute_output_spec(self, decoder_sequence, encoder_sequence=None, **kwargs):
        return keras.KerasTensor(decoder_sequence.shape, dtype=self.compute_dtype)


def next_logits(
    decoder: keras.Model,
    last: tf.Tensor,
    step: tf.Tensor,
    states: tf.Tensor,
    padding_mask: tf.Tensor,
    self_caches: list[tf.Tensor],
    cross_caches: list[tf.Tensor],
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Logits of the token that comes next, of one new position only.

    Args:
        decoder: What `build_decoder` gave.
        last: The newest token of each beam of each source, int32 (batch, beams).
        step: Its position, int32 ().
        states: The encoder's, (batch, source length, hidden).
        padding_mask: (batch, source length), 1 at tokens.
        self_caches: Of each block `new_self_cache`, or what the call before gave.
        cross_caches: Of each block, `new_cross_cache` of the states.

    Returns:
        Float32 (batch, beams, vocabulary), and the longer self_caches.
    """
    embedding = decoder.get_layer("target_embedding")
    hidden = embedding(tf.reshape(last, [-1, 1]))  # (batch * beams, 1, hidden)
    hidden += decoder.get_layer("target_positions")(hidden, start_index=step)
    hidden = decoder.get_layer("target_layer_norm")(hidden)
    longer = []
    caches = zip(self_caches, cross_caches, strict=True)
    for block, (self_cache, cross_cache) in zip(decoder_blocks(decoder), caches, strict=True):
        hidden, cache = block.step(hidden, states, padding_mask, self_cache, cross_cache)
        longer.append(cache)
    hidden = decoder.get_layer("decoder_layer_norm")(hidden)
    logits = tf.cast(embedding(hidden, reverse=True), tf.float32)
    return tf.reshape(logits, [*tf.unstack(tf.shape(last)), logits.shape[-1]]), longer


def decoder_blocks(decoder: keras.Model) -> list[DecoderBlock]:
    """The blocks of a decoder, the first one first."""
    return [layer for layer in decoder.layers if isinstance(layer, DecoderBlock)]


def dtype_of(policy: str | keras.DTypePolicy) -> str:
    """The dtype that layers of a policy compute in."""
    return keras.dtype_policies.get(policy).compute_dtype


def _block(config: EncoderConfig, dtype: str | keras.DTypePolicy, name: str) -> DecoderBlock:
    return DecoderBlock(
        config.intermediate_dim,
        config.num_heads,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation=activation_function(config.activation),
        layer_norm_epsilon=config.layer_norm_epsilon,
        kernel_initializer="glorot_uniform",
        normalize_first=True,
        dtype=dtype,
        name=name,
    )


def _layer_norm(
    config: EncoderConfig, dtype: str | keras.DTypePolicy, name: str
) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(
        epsilon=config.layer_norm_epsilon, dtype=dtype, name=name
    )


def _initializer(config: EncoderConfig) -> keras.initializers.Initializer:
    """A new one a layer: an initialiser gives equal numbers each time it is called."""
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)
