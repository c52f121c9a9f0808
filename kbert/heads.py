"""The heads of BERT: a functional encoder in, a functional model to float32 logits out.

Each is that of the model of the same purpose in HuggingFace's transformers, and the names of its
layers are what `kbert.huggingface` translates.
"""

from __future__ import annotations

import keras
import keras_nlp
from keras import ops

from kbert.config import EncoderConfig, Pooling
from kbert.encoder import Dropout, activation_function
from kbert.errors import InputError
from kbert.pooling import PoolingName, pooling_layer
from kbert.window_pooling import WindowPooling

HEADS = (
    "encoder",
    "sequence_classifier",
    "token_classifier",
    "question_answering",
    "next_sentence",
    "masked_lm",
    "pretraining",
)
"""What `build_model` builds."""


def build_model(
    encoder: keras.Model,
    config: EncoderConfig,
    *,
    head: str,
    num_labels: int,
    dtype: str | keras.DTypePolicy = "float32",
) -> keras.Model:
    """The encoder with a head that is known by its name.

    Args:
        encoder: Functional encoder of `kbert.encoder`.
        config: Its sizes and constants.
        head: Name of a function below, or "encoder" for the encoder as it is.
        num_labels: Classes of a classifier.
        dtype: Keras' dtype policy of what comes before the logits.

    Raises:
        InputError: there is no such head.
    """
    match head:
        case "encoder":
            return encoder
        case "sequence_classifier":
            return sequence_classifier(encoder, config, num_labels=num_labels, dtype=dtype)
        case "token_classifier":
            return token_classifier(encoder, config, num_labels=num_labels, dtype=dtype)
        case "question_answering":
            return question_answering(encoder, config)
        case "next_sentence":
            return next_sentence(encoder, config)
        case "masked_lm":
            return masked_lm(encoder, config, dtype=dtype)
        case "pretraining":
            return pretraining(encoder, config, dtype=dtype)
    raise InputError(f"head must be one of {', '.join(HEADS)}, received {head!r}.")


def sequence_classifier(
    encoder: keras.Model,
    config: EncoderConfig,
    *,
    num_labels: int,
    window_pooling: Pooling | None = None,
    dtype: str | keras.DTypePolicy = "float32",
) -> keras.Model:
    """Classes, or numbers, of whole texts: pooled [CLS] state -> dropout -> dense.

    Args:
        encoder: Functional encoder of `kbert.encoder`.
        config: Its sizes and constants.
        num_labels: Classes; 1 for a regression.
        window_pooling: For texts in windows: how their logits become one; None where each row is
            a text.
        dtype: Keras' dtype policy of what comes before the logits.

    Returns:
        A model of the encoder's inputs to logits (batch, labels). With windows the encoder's
        inputs are (windows, length), and `rows`, int32 (windows,), says which text each is of.
    """
    pooled = _classifier_dropout(config, dtype)(_outputs(encoder)["pooled_output"])
    logits = _dense(config, num_labels, "classifier")(pooled)
    if window_pooling is None:
        return keras.Model(encoder.input, logits, name="sequence_classifier")
    rows = keras.Input((), dtype="int32", name="rows")
    logits = WindowPooling(window_pooling, dtype="float32", name="window_pooling")(logits, rows)
    return keras.Model({**encoder.input, "rows": rows}, logits, name="sequence_classifier")


def token_classifier(
    encoder: keras.Model,
    config: EncoderConfig,
    *,
    num_labels: int,
    dtype: str | keras.DTypePolicy = "float32",
) -> keras.Model:
    """Classes of tokens: states -> dropout -> dense; arguments as `sequence_classifier`.

    Returns:
        A model of the encoder's inputs to logits (batch, length, labels).
    """
    states = _classifier_dropout(config, dtype)(_outputs(encoder)["sequence_output"])
    logits = _dense(config, num_labels, "classifier")(states)
    return keras.Model(encoder.input, logits, name="token_classifier")


def joint_classifier(
    encoder: keras.Model,
    config: EncoderConfig,
    *,
    num_tags: int,
    num_intents: int,
    dtype: str | keras.DTypePolicy = "float32",
) -> keras.Model:
    """`token_classifier`, and classes of whole texts: pooled [CLS] state -> dropout -> dense.

    Args:
        encoder: Functional encoder of `kbert.encoder`.
        config: Its sizes and constants.
        num_tags: Classes of tokens.
        num_intents: Classes of texts.
        dtype: Keras' dtype policy of what comes before the logits.

    Returns:
        A model of the encoder's inputs to a dictionary of logits: `tags` (batch, length, tags) and
        `intent` (batch, intents).
    """
    states = _outputs(encoder)
    tokens = _classifier_dropout(config, dtype)(states["sequence_output"])
    pooled = _classifier_dropout(config, dtype, name="intent_dropout")(states["pooled_output"])
    logits = {
        "tags": _dense(config, num_tags, "classifier")(tokens),
        "intent": _dense(config, num_intents, "intent_classifier")(pooled),
    }
    return keras.Model(encoder.input, logits, name="joint_classifier")


def feature_classifier(
    encoder: keras.Model,
    config: EncoderConfig,
    *,
    pooling: PoolingName,
    num_labels: int,
    dtype: str | keras.DTypePolicy = "float32",
) -> keras.Model:
    """Classes of whole texts by pooled states: pooling -> dropout -> dense.

    It is none of HuggingFace's. Arguments as `sequence_classifier`, and how states are pooled.

    Returns:
        A model of the encoder's inputs to logits (batch, labels).
    """
    states, mask = _outputs(encoder)["sequence_output"], encoder.input["padding_mask"]
    features = _classifier_dropout(config, dtype)(pooling_layer(pooling)(states, padding_mask=mask))
    logits = _dense(config, num_labels, "classifier")(features)
    return keras.Model(encoder.input, logits, name="feature_classifier")


def linear_classifier(config: EncoderConfig, *, num_labels: int) -> keras.Model:
    """What `feature_classifier` has after its pooling.

    Returns:
        A model of `features`, float32 (batch, hidden), to logits (batch, labels).
    """
    features = keras.Input((config.hidden_dim,), name="features")
    dropped = _classifier_dropout(config, "float32")(features)
    logits = _dense(config, num_labels, "classifier")(dropped)
    return keras.Model({"features": features}, logits, name="linear_classifier")


def question_answering(encoder: keras.Model, config: EncoderConfig) -> keras.Model:
    """Where an answer starts and where it ends, over all positions, padding included.

    Returns:
        A model of the encoder's inputs to logits (batch, 2, length): the start's, the end's.
    """
    logits = _dense(config, 2, "qa_outputs")(_outputs(encoder)["sequence_output"])
    return keras.Model(encoder.input, ops.swapaxes(logits, 1, 2), name="question_answering")


def next_sentence(encoder: keras.Model, config: EncoderConfig) -> keras.Model:
    """Whether the second text follows the first (class 0), or is a random one (class 1).

    Returns:
        A model of the encoder's inputs to logits (batch, 2).
    """
    logits = _dense(config, 2, "next_sentence")(_outputs(encoder)["pooled_output"])
    return keras.Model(encoder.input, logits, name="next_sentence")


def masked_lm(
    encoder: keras.Model, config: EncoderConfig, *, dtype: str | keras.DTypePolicy = "float32"
) -> keras.Model:
    """A distribution over the vocabulary at each of the positions asked for.

    The decoder is the token embedding, or a matrix of its own where `config.tie_word_embeddings`
    is false.

    Returns:
        A model of the encoder's inputs and `mask_positions`, int32 (batch, masks), to logits
        (batch, masks, vocabulary).
    """
    positions = keras.Input((None,), dtype="int32", name="mask_positions")
    logits = _masked_lm_logits(encoder, config, _outputs(encoder), positions, dtype)
    inputs = {**encoder.input, "mask_positions": positions}
    return keras.Model(inputs, logits, name="masked_lm")


def pretraining(
    encoder: keras.Model, config: EncoderConfig, *, dtype: str | keras.DTypePolicy = "float32"
) -> keras.Model:
    """`masked_lm` and `next_sentence` on one encoder.

    Returns:
        A model of the inputs of `masked_lm` to a dictionary of `masked_lm_logits` (batch, masks,
        vocabulary) and `next_sentence_logits` (batch, 2).
    """
    positions = keras.Input((None,), dtype="int32", name="mask_positions")
    states = _outputs(encoder)
    logits = {
        "masked_lm_logits": _masked_lm_logits(encoder, config, states, positions, dtype),
        "next_sentence_logits": _dense(config, 2, "next_sentence")(states["pooled_output"]),
    }
    inputs = {**encoder.input, "mask_positions": positions}
    return keras.Model(inputs, logits, name="pretraining")


def _outputs(encoder: keras.Model) -> dict[str, keras.KerasTensor]:
    return encoder(encoder.input)


def _masked_lm_logits(encoder: keras.Model, config: EncoderConfig, states, positions, dtype):
    """Logits (batch, masks, vocabulary) of states (batch, length, hidden) at the positions."""
    tied = config.tie_word_embeddings
    head = keras_nlp.layers.MaskedLMHead(
        vocabulary_size=config.vocabulary_size,
        token_embedding=encoder.get_layer("token_embedding") if tied else None,
        intermediate_activation=activation_function(config.activation),
        layer_norm_epsilon=config.layer_norm_epsilon,
        kernel_initializer=_initializer(config),
        dtype=dtype,
        name="masked_lm_head",
    )
    logits = head(states["sequence_output"], mask_positions=positions)
    return keras.layers.Activation("linear", dtype="float32", name="logits")(logits)


def _classifier_dropout(
    config: EncoderConfig, dtype: str | keras.DTypePolicy, name: str = "classifier_dropout"
) -> Dropout:
    rate = config.dropout if config.classifier_dropout is None else config.classifier_dropout
    return Dropout(rate, dtype=dtype, name=name)


def _dense(config: EncoderConfig, units: int, name: str) -> keras.layers.Dense:
    """A dense layer in float32, whatever the policy of the rest."""
    return keras.layers.Dense(
        units, kernel_initializer=_initializer(config), dtype="float32", name=name
    )


def _initializer(config: EncoderConfig) -> keras.initializers.Initializer:
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)
