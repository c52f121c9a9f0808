"""The BERT encoder as a functional Keras model, from `keras_nlp.layers` blocks."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

import keras
import keras_nlp
import tensorflow as tf
from keras import ops

from kbert.config import EncoderConfig
from kbert.errors import InputError
from kbert.precision import (
    BFloat16Products,
    Bounds,
    Dense,
    own_operands,
    product,
    projection,
    shared_operands,
)


def build_encoder(
    config: EncoderConfig,
    *,
    dtype: str | keras.DTypePolicy = "float32",
    name: str = "encoder",
) -> keras.Model:
    """A BERT encoder with new weights.

    Inputs are a dictionary of int32 tensors `token_ids`, `segment_ids` and `padding_mask` (1 at
    tokens, 0 at padding), each (batch, length). Outputs are a dictionary of `sequence_output`
    (batch, length, hidden) and `pooled_output` (batch, hidden); `attention_encoder` gives the
    attention as well.

    `encoder.get_layer("token_embedding")` is the `ReversibleEmbedding` that a masked-LM head ties.

    Args:
        config: Sizes and constants.
        dtype: Keras' dtype policy, such as "float32" or "mixed_bfloat16".
        name: Name of the model.

    Example:
        >>> encoder = build_encoder(EncoderConfig(100, 16, 2, 2, 64))
        >>> ids = np.array([[2, 7, 3, 0]])
        >>> encoder({"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids > 0})

    Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
    """
    inputs = {
        key: keras.Input((None,), dtype="int32", name=key)
        for key in ("token_ids", "segment_ids", "padding_mask")
    }
    hidden = _embeddings(config, inputs, dtype)
    for index in range(config.num_layers):
        block = TransformerBlock(
            config.intermediate_dim,
            config.num_heads,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation=activation_function(config.activation),
            layer_norm_epsilon=config.layer_norm_epsilon,
            kernel_initializer=_initializer(config),
            dtype=dtype,
            name=f"transformer_layer_{index}",
        )
        hidden = block(hidden, padding_mask=inputs["padding_mask"])
    pooler = Pooler(
        config.hidden_dim,
        activation="tanh",
        kernel_initializer=_initializer(config),
        dtype=dtype,
        name="pooler",
    )
    outputs = {"sequence_output": hidden, "pooled_output": pooler(hidden)}
    return Encoder(inputs, outputs, name=name)


@keras.saving.register_keras_serializable("kbert")
class Encoder(keras.Model):
    """The functional model, that can compute parts of a batch side by side.

    TensorFlow's threads share the work of one kernel, and wait for each other in each of a block's
    hundred; rows that know nothing of each other need not wait.
    """

    parts = 1
    """Of how many equal parts a batch is, each computed by a thread of its own."""
    rows_by_length = 0
    """Of how many rows of alike lengths a part is; 0 for parts in the order of the rows."""

    def call(self, inputs, training=None, mask=None):
        if self.rows_by_length:
            return self._call_by_length(inputs, training)
        if self.parts == 1:
            return super().call(inputs, training=training, mask=mask)
        inputs = {name: tf.convert_to_tensor(tensor) for name, tensor in inputs.items()}
        rows = tf.shape(inputs["token_ids"])[0]
        bounds = [part * rows // self.parts for part in range(self.parts + 1)]
        with shared_operands():
            outputs = [
                super(Encoder, self).call(
                    {name: tensor[start:end] for name, tensor in inputs.items()}, training=training
                )
                for start, end in itertools.pairwise(bounds)
            ]
        return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *outputs)

    def _call_by_length(self, inputs, training):
        """The longest rows first, a part at a time, without padding that no row of a part needs.

        States of padding that is left out are 0.
        """
        inputs = {name: tf.convert_to_tensor(tensor) for name, tensor in inputs.items()}
        rows, length = tf.unstack(tf.shape(inputs["padding_mask"]))
        places = tf.where(inputs["padding_mask"] > 0, tf.range(1, length + 1), 0)
        used = tf.reduce_max(places, axis=1)
        order = tf.argsort(used, direction="DESCENDING", stable=True)
        parts = tf.maximum(rows // self.rows_by_length, 1)

        def compute(part, sequences, pooled):
            chosen = order[part * rows // parts : (part + 1) * rows // parts]
            longest = tf.reduce_max(tf.concat([[1], tf.gather(used, chosen)], 0))
            outputs = super(Encoder, self).call(
                {name: tf.gather(tensor, chosen)[:, :longest] for name, tensor in inputs.items()},
                training=training,
            )
            padding = [[0, 0], [0, length - longest], [0, 0]]
            states = tf.pad(outputs["sequence_output"], padding)
            return (
                part + 1,
                sequences.write(part, states),
                pooled.write(part, outputs["pooled_output"]),
            )

        dtypes = {name: tensor.dtype for name, tensor in self.output.items()}
        arrays = [
            tf.TensorArray(dtypes[name], size=parts, infer_shape=False, element_shape=shape)
            for name, shape in (
                ("sequence_output", [None, None, self.output["sequence_output"].shape[-1]]),
                ("pooled_output", [None, self.output["pooled_output"].shape[-1]]),
            )
        ]
        _, sequences, pooled = tf.while_loop(
            lambda part, *arrays: part < parts, compute, (0, *arrays)
        )
        places = tf.math.invert_permutation(order)
        return {
            "sequence_output": tf.gather(sequences.concat(), places),
            "pooled_output": tf.gather(pooled.concat(), places),
        }


def encoders_of(model: keras.Model) -> list[Encoder]:
    """The encoders in a model, or the model itself; every task's has one."""
    return [layer for layer in (model, *model.layers) if isinstance(layer, Encoder)]


def compute_in_parts(model: keras.Model, parts: int) -> None:
    """Have the encoder of a model, or the model itself, compute so many parts of a batch each."""
    for encoder in encoders_of(model):
        encoder.parts = parts


@contextlib.contextmanager
def computed_in_parts(model: keras.Model, parts: int) -> Iterator[None]:
    """Inside, the encoders of a model compute so many parts of a batch each."""
    encoders = encoders_of(model)
    before = [encoder.parts for encoder in encoders]
    compute_in_parts(model, parts)
    try:
        yield
    finally:
        for encoder, as_before in zip(encoders, before, strict=True):
            encoder.parts = as_before


@contextlib.contextmanager
def computed_by_length(model: keras.Model, rows: int) -> Iterator[None]:
    """Inside, the encoders of a model compute so many rows of alike lengths at a time."""
    encoders = encoders_of(model)
    for encoder in encoders:
        encoder.rows_by_length = rows
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.rows_by_length = 0


def rematerialize(model: keras.Model) -> None:
    """Have the blocks of the encoder of a model, or of the model itself, compute themselves again
    for their gradient."""
    for encoder in encoders_of(model):
        for block in transformer_blocks(encoder):
            block.rematerializes = True


def attention_encoder(encoder: keras.Model) -> keras.Model:
    """The same encoder, which gives the attention of its layers as well.

    It is made of the encoder's own layers: what trains one trains the other. The encoder itself
    stays as it is.

    Args:
        encoder: What `build_encoder` or `load_encoder` gave, or `model.get_layer("encoder")` of a
            model with a head.

    Returns:
        A model of the encoder's inputs to its outputs and `attention_scores`: a list of one tensor
        (batch, heads, length, length) a layer, whose rows sum to one.

    Example:
        >>> model = kbert.load_model("path/to/checkpoint")
        >>> outputs = kbert.attention_encoder(model.get_layer("encoder"))(inputs)
        >>> outputs["attention_scores"][0][0, 3]  # of the first layer's fourth head, first text
    """
    inputs = encoder.input
    hidden = encoder.get_layer("embeddings_dropout").output
    scores = []
    for block in transformer_blocks(encoder):
        hidden, layer_scores = _BlockWithScores(block)(hidden, inputs["padding_mask"])
        scores.append(layer_scores)
    outputs = {
        "sequence_output": hidden,
        "pooled_output": encoder.get_layer("pooler")(hidden),
        "attention_scores": scores,
    }
    return keras.Model(inputs, outputs, name="attention_encoder")


def transformer_blocks(encoder: keras.Model) -> list[TransformerBlock]:
    """The blocks of an encoder, the first one first."""
    return [layer for layer in encoder.layers if isinstance(layer, TransformerBlock)]


def activation_function(name: str):
    """The function of an `EncoderConfig.activation`, as a Keras layer takes it."""
    ours = {"gelu": gelu, "gelu_new": gelu_new}
    return ours[name] if name in ours else keras.activations.get(name)


@keras.saving.register_keras_serializable("kbert")
def gelu(inputs):
    """The exact GELU, by erf as torch has it; Keras' own is by erfc, at twice the time."""
    return inputs * (0.5 * (1 + tf.math.erf(inputs * 2**-0.5)))


@tf.custom_gradient
def _gelu_in_training(inputs):
    """`gelu`, whose gradient keeps two intermediate results where TensorFlow's own makes ten."""
    area = 0.5 * (1 + tf.math.erf(inputs * 2**-0.5))  # of the normal distribution, up to the input

    def gradient(upstream):
        density = (2 * math.pi) ** -0.5 * tf.exp(-0.5 * tf.square(inputs))
        return upstream * (area + inputs * density)

    return inputs * area, gradient


@keras.saving.register_keras_serializable("kbert")
def gelu_new(inputs):
    """GELU in its tanh form; Keras' own "gelu" is the exact one."""
    return keras.activations.gelu(inputs, approximate=True)


@keras.saving.register_keras_serializable("kbert")
class Dropout(keras.layers.Layer):
    """Dropout of half the cost of Keras' own, with its random state called after the layer.

    It draws 16 random bits an element, so the rate is rounded to 1/65536. Keras numbers seed
    generators through the whole process, and the paths of their variables would depend on what
    was built before.

    Args:
        rate: Share of the elements set to zero in training, in [0, 1).
        seed: Integer for a random state of its own.
    """

    def __init__(self, rate: float, *, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.supports_masking = True
        if rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed, name=f"{self.name}_seed")

    drawn_seed = None
    """What to draw numbers from instead of the next seed, while a block computes itself again."""

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        size = tf.size(inputs)
        seed = self.seed_generator.next() if self.drawn_seed is None else self.drawn_seed
        seed = tf.cast(seed, tf.int32)
        # Limits of None ask for all of int32; TensorFlow's annotation does not know.
        words = tf.random.stateless_uniform(
            [(size + 1) // 2],
            seed,
            minval=None,  # pyright: ignore[reportArgumentType]
            maxval=None,
            dtype=tf.int32,
        )
        numbers = tf.reshape(tf.bitcast(words, tf.int16), [-1])[:size]  # in [-32768, 32767]
        dropped = round(self.rate * 65536)
        kept = tf.reshape(numbers >= tf.constant(dropped - 32768, tf.int16), tf.shape(inputs))
        return inputs * (tf.cast(kept, inputs.dtype) * (65536 / (65536 - dropped)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("kbert")
class TokenEmbedding(keras_nlp.layers.ReversibleEmbedding):
    """A `keras_nlp.layers.ReversibleEmbedding` whose lookups do not train the row of padding.

    As torch's `padding_idx`: in a loss over all positions, such as that of question answering,
    padding has a gradient.

    Args:
        input_dim: Size of the vocabulary.
        output_dim: Width of the embedding.
        pad_token_id: The row; None for no such row.
        **kwargs: What the parent takes.
    """

    def __init__(self, input_dim, output_dim, *, pad_token_id: int | None = 0, **kwargs):
        super().__init__(input_dim, output_dim, **kwargs)
        self.pad_token_id = pad_token_id

    def call(self, inputs, reverse=False, training=None):
        if reverse and isinstance(self.dtype_policy, BFloat16Products) and self.tie_weights:
            states = tf.reshape(inputs, (-1, inputs.shape[-1]))
            table = tf.convert_to_tensor(self.embeddings)
            logits = product(states, table, self.dtype_policy, transpose_right=True)
            return tf.reshape(logits, (*tf.unstack(tf.shape(inputs)[:-1]), self.input_dim))
        if reverse:
            return super().call(inputs, reverse=True)
        # Of the variable, not of its value: once the optimizer has written rows of it (see
        # `kbert.optimizers.AdamW`), TensorFlow copies the table for each time it is read.
        outputs = tf.cast(tf.gather(self.embeddings.value, inputs), self.compute_dtype)
        if not training or self.pad_token_id is None:
            return outputs
        is_padding = ops.expand_dims(ops.equal(inputs, self.pad_token_id), -1)
        return ops.where(is_padding, ops.stop_gradient(outputs), outputs)

    def get_config(self):
        return {**super().get_config(), "pad_token_id": self.pad_token_id}


@keras.saving.register_keras_serializable("kbert")
class PositionEmbedding(keras_nlp.layers.PositionEmbedding):
    """Learned position embedding that says which length it was given when it is too long."""

    def call(self, inputs, **kwargs):
        length = inputs.shape[-2]
        if length is not None and length > self.sequence_length:
            raise InputError(
                f"The encoder takes at most {self.sequence_length} positions (its "
                f"max_sequence_length), received a length of {length}."
            )
        return super().call(inputs, **kwargs)


class Attention(keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with the fewest and largest products.

    Keras projects by einsum, which TensorFlow's CPU kernels run as a batched product at a sixth of
    the speed of a plain one; here what is projected from the same states is one plain product.
    Keras selects by the mask before and after its softmax; here it is added once. Variables are
    those of the parent.
    """

    int8: Bounds = {}
    """Of the products that are computed in 8 bits, see `projection`."""
    adds_in_bfloat16 = False
    """Whether biases are in bfloat16, see `kbert.quantization.add_in_bfloat16`."""

    def _build_attention(self, rank):
        self._dropout_layer = Dropout(self._dropout, dtype=self.dtype_policy, name="dropout")

    def _project(self, inputs, *parts: keras.layers.Layer):
        """What each dense layer makes of (batch, length, hidden): (batch, heads, length, dim)."""
        batch, length, hidden = ops.shape(inputs)
        names = " ".join(part.name for part in parts)
        flat = projection(ops.reshape(inputs, (-1, hidden)), self, names, parts)
        split = ops.reshape(flat, (batch, length, len(parts), self.num_heads, self.key_dim))
        return ops.unstack(ops.transpose(split, (2, 0, 3, 1, 4)), num=len(parts), axis=0)

    def _attend(self, query, key, value, attention_mask, training):
        """Output (batch, length, hidden) and scores (batch, heads, length, keys).

        attention_mask: (batch, length or 1, keys), 0 where none is paid.
        """
        query = query * ops.cast(self.key_dim**-0.5, query.dtype)
        scores = product(query, key, self.dtype_policy, transpose_right=True)
        if attention_mask is not None:
            # As torch's: the lowest number swallows any score, so that a row of nothing but padding
            # attends evenly. Half of it where it would overflow into infinity.
            lowest = -3e4 if scores.dtype == "float16" else tf.as_dtype(scores.dtype).min
            padding = 1 - ops.cast(attention_mask, scores.dtype)
            scores = scores + ops.expand_dims(padding * lowest, 1)
        scores = tf.nn.softmax(scores)  # Keras' own warns where there is one key
        dropped = self._dropout_layer(scores, training=training)
        context = ops.transpose(product(dropped, value, self.dtype_policy), (0, 2, 1, 3))
        batch, length = ops.shape(context)[:2]
        width = self.num_heads * self.key_dim
        context = ops.reshape(context, (-1, width))
        output = projection(context, self, "output", [self._output_dense])
        return ops.reshape(output, (batch, length, output.shape[-1])), scores


@keras.saving.register_keras_serializable("kbert")
class SelfAttention(Attention):
    """Attention of a sequence to itself."""

    def call(
        self,
        query,
        value,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        **kwargs,
    ):
        """`value` is `query`.

        query: (batch, length, hidden); attention_mask: (batch, length or 1, length), 0 at padding.
        """
        projected = self._project(query, self._query_dense, self._key_dense, self._value_dense)
        output, scores = self._attend(*projected, attention_mask, training)
        return (output, scores) if return_attention_scores else output


@keras.saving.register_keras_serializable("kbert")
class FeedForward(Dense):
    """The first layer of a feed-forward part, the largest results of a block.

    A custom gradient only in training: what is exported has plain operations.
    """

    @property
    def has_gelu(self):
        return self.activation is gelu

    def activate(self, inputs, training):
        if training and self.activation is gelu:
            return _gelu_in_training(inputs)
        return super().activate(inputs, training)


class BlockParts:
    """Of a Transformer block of keras_nlp: its layers, by what the block was made with.

    The parents' `build` has one dropout rate and Keras' attention. This class, and `build` of the
    blocks that inherit it, are the one place that knows their private attributes;
    tests/test_encoder.py and tests/test_decoder.py compare ours and theirs.

    Args:
        intermediate_dim: Width of the feed-forward layer.
        num_heads: Number of attention heads.
        attention_dropout: Dropout of the attention's probabilities; `dropout` is for the rest.
        **kwargs: What the parent takes.
    """

    def __init__(self, intermediate_dim, num_heads, *, attention_dropout=0.0, **kwargs):
        super().__init__(intermediate_dim, num_heads, **kwargs)
        self.attention_dropout = attention_dropout

    def get_config(self):
        return {**super().get_config(), "attention_dropout": self.attention_dropout}

    def _build_attention(
        self, part: str, kind: type[Attention], name: str, shape, value_shape
    ) -> None:
        """Attention, with the normalisation and the dropout of this part of the block."""
        attention = kind(
            num_heads=self.num_heads,
            key_dim=shape[-1] // self.num_heads,
            dropout=self.attention_dropout,
            kernel_initializer=self._new_initializer(),
            dtype=self.dtype_policy,
            name=name,
        )
        attention.build(shape, value_shape)
        setattr(self, f"_{part}_layer", attention)  # first: weights keep their order in checkpoints
        self._build_norm_and_dropout(part, shape)

    def _build_feedforward(self, shape) -> None:
        """The two dense layers, with their normalisation and their dropout."""
        self._feedforward_intermediate_dense = FeedForward(
            self.intermediate_dim,
            activation=self.activation,
            kernel_initializer=self._new_initializer(),
            dtype=self.dtype_policy,
            name="feedforward_intermediate_dense",
        )
        self._feedforward_intermediate_dense.build(shape)
        self._feedforward_output_dense = Dense(
            shape[-1],
            kernel_initializer=self._new_initializer(),
            dtype=self.dtype_policy,
            name="feedforward_output_dense",
        )
        self._feedforward_output_dense.build((*shape[:-1], self.intermediate_dim))
        self._build_norm_and_dropout("feedforward", shape)

    def _build_norm_and_dropout(self, part: str, shape) -> None:
        norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=f"{part}_layer_norm"
        )
        norm.build(shape)
        dropout = Dropout(self.dropout, dtype=self.dtype_policy, name=f"{part}_dropout")
        setattr(self, f"_{part}_layer_norm", norm)
        setattr(self, f"_{part}_dropout", dropout)

    def _new_initializer(self) -> keras.initializers.Initializer:
        """A new one a layer: an initialiser gives equal numbers each time it is called."""
        return self.kernel_initializer.clone()


@keras.saving.register_keras_serializable("kbert")
class TransformerBlock(BlockParts, keras_nlp.layers.TransformerEncoder):
    """A `keras_nlp.layers.TransformerEncoder` with the attention of this module; see BlockParts."""

    rematerializes = False
    """Whether training keeps nothing but the block's input, and computes the rest again for the
    gradient, from the same random numbers."""

    def call(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
    ):
        def compute(inputs):
            return super(TransformerBlock, self).call(
                inputs,
                padding_mask=padding_mask,
                attention_mask=attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
            )

        if not (training and self.rematerializes):
            return compute(inputs)
        attention = self._self_attention_layer
        dropouts = (
            attention._dropout_layer, self._self_attention_dropout, self._feedforward_dropout
        )  # fmt: skip
        dropouts = [layer for layer in dropouts if layer.rate > 0]
        seeds = [of.seed_generator.next() for of in dropouts]

        def compute_from_seeds(inputs):
            # What it makes of weights is its own, too: gradients go to them through nothing else.
            with own_operands(), _drawn_seeds(dropouts, seeds):
                return compute(inputs)

        return tf.recompute_grad(compute_from_seeds)(inputs)

    def build(self, inputs_shape):
        """Makes the layers that the parent's `call` uses, under the names it gives them."""
        self._build_attention(
            "self_attention", SelfAttention, "self_attention_layer", inputs_shape, inputs_shape
        )
        self._build_feedforward(inputs_shape)
        self.built = True

    @property
    def dense_layers(self) -> list[keras.layers.Layer]:
        """Those of the attention, then those of the feed-forward part."""
        attention = self._self_attention_layer
        return [
            attention._query_dense,
            attention._key_dense,
            attention._value_dense,
            attention._output_dense,
            self._feedforward_intermediate_dense,
            self._feedforward_output_dense,
        ]

    @property
    def projecting_layers(self) -> tuple[SelfAttention, FeedForward, Dense]:
        """The layers that compute the products of the block with weights, in their order."""
        return (
            self._self_attention_layer,
            self._feedforward_intermediate_dense,
            self._feedforward_output_dense,
        )

    def compute_output_spec(self, inputs, return_attention_scores=False, **kwargs):
        batch, length, _ = inputs.shape
        output = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        shape = (batch, self.num_heads, length, length)
        return output, keras.KerasTensor(shape, dtype=self.compute_dtype)


class _BlockWithScores(keras.layers.Layer):
    """A block that is there already, and gives its attention's scores at every call.

    In a functional model all calls of one layer must have as many outputs as its first.
    """

    def __init__(self, block: TransformerBlock):
        super().__init__(name=f"{block.name}_with_scores", dtype=block.dtype_policy)
        self.block = block
        self.built = True

    def call(self, hidden, padding_mask):
        return self.block(hidden, padding_mask=padding_mask, return_attention_scores=True)

    def compute_output_spec(self, hidden, padding_mask):
        return self.block.compute_output_spec(hidden, return_attention_scores=True)


@contextlib.contextmanager
def _drawn_seeds(dropouts: Sequence[Dropout], seeds: Sequence[tf.Tensor]) -> Iterator[None]:
    """Inside, each draws its numbers from its seed."""
    for layer, seed in zip(dropouts, seeds, strict=True):
        layer.drawn_seed = seed
    try:
        yield
    finally:
        for layer in dropouts:
            layer.drawn_seed = None


@keras.saving.register_keras_serializable("kbert")
class Pooler(keras.layers.Dense):
    """A dense layer over the first token: (batch, length, hidden) -> (batch, units)."""

    def call(self, inputs, training=None):
        return super().call(inputs[:, 0], training=training)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)


def _embeddings(config: EncoderConfig, inputs: dict, dtype):
    """Sum of token, position and segment embeddings, normalised: (batch, length, hidden)."""
    tokens = TokenEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        pad_token_id=config.pad_token_id,
        embeddings_initializer=_initializer(config),
        dtype=dtype,
        name="token_embedding",
    )(inputs["token_ids"])
    positions = PositionEmbedding(
        config.max_sequence_length,
        initializer=_initializer(config),
        dtype=dtype,
        name="position_embedding",
    )(tokens)
    segments = keras.layers.Embedding(
        config.num_segments,
        config.hidden_dim,
        embeddings_initializer=_initializer(config),
        dtype=dtype,
        name="segment_embedding",
    )(inputs["segment_ids"])
    hidden = keras.layers.Add(dtype=dtype, name="embeddings_add")([tokens, positions, segments])
    hidden = keras.layers.LayerNormalization(
        epsilon=config.layer_norm_epsilon, dtype=dtype, name="embeddings_layer_norm"
    )(hidden)
    return Dropout(config.dropout, dtype=dtype, name="embeddings_dropout")(hidden)


def _initializer(config: EncoderConfig) -> keras.initializers.Initializer:
    """A new one a layer: an initialiser gives equal numbers each time it is called."""
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)
