"""What a classifier looked at: the words that made a class likely, and the encoder's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from kbert.encoder import attention_encoder, transformer_blocks
from kbert.tasks.task import Task

# A MiniLM-L6 trained on sst2 leaves 1.5% of the logits' difference out at 20 steps, 0.2% at 32.
STEPS = 20
METHOD = (
    "integrated gradients of the predicted class's logit on the token embeddings, from a text of "
    f"[PAD] ({STEPS} steps)"
)
"""What `explain` does, for people."""
OF_WINDOWS = "; of a text in several windows, the one with the largest logit alone"
"""What it does besides, where texts are cut into windows."""
PIECES_A_CALL = 2048  # word pieces, of all points together, that are computed at a time
DIGITS = 4  # of a score

Word = tuple[int, int, float]
"""Where a word starts and ends, in characters, and its score."""


def integrated_gradients(
    model: keras.Model,
    inputs: dict[str, tf.Tensor],
    class_index: Sequence[int] | np.ndarray,
    *,
    baseline_ids: np.ndarray,
    steps: int = STEPS,
) -> np.ndarray:
    """How much each word piece adds to the logit of a class, against those of a baseline.

    The gradient of the logit is integrated on the straight way from the token embeddings of the
    baseline to those of the text; positions, segments and padding stay. The scores of a row sum to
    logit(text) - logit(baseline), but for the error of the integral. It is the mean at the middles
    of equal steps: Gauss and Legendre's rule was worse at up to 32 steps, since the gradient is
    largest, and far from a polynomial, in the middle of the way.

    Args:
        model: A model of `kbert.heads.sequence_classifier`; its precision is that of the scores.
        inputs: token_ids, segment_ids and padding_mask, int32 (batch, length).
        class_index: The class of each row, int (batch,).
        baseline_ids: The token_ids that a row is compared with, int (batch, length).
        steps: Steps of the integral.

    Returns:
        Scores, float64 (batch, length); 0 at padding and where the baseline is the text.

    Source: Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365.
    """
    embed = model.get_layer("encoder").get_layer("token_embedding")
    sum_of_gradients = _sum_of_gradients(model)
    fractions = np.float32((np.arange(steps) + 0.5) / steps)
    token_ids, segment_ids, mask = (
        np.asarray(inputs[name]) for name in ("token_ids", "segment_ids", "padding_mask")
    )
    scores = np.zeros(token_ids.shape)
    for row, length in enumerate(mask.sum(axis=1)):
        # Each row by itself, without its padding: the points of one are batch enough.
        start = tf.cast(embed(baseline_ids[row, :length]), tf.float32)  # (length, hidden)
        way = tf.cast(embed(token_ids[row, :length]), tf.float32) - start
        segments = tf.constant(segment_ids[row, :length], tf.int32)
        target = tf.constant(class_index[row], tf.int32)
        at_a_time = max(1, PIECES_A_CALL // length)
        for first in range(0, steps, at_a_time):
            points = fractions[first : first + at_a_time]
            gradient = sum_of_gradients(start, way, segments, target, points)
            scores[row, :length] += np.sum(np.float64(gradient * way), axis=-1) / steps
    return scores


def logits_of_embeddings(
    model: keras.Model, embeddings: tf.Tensor, segment_ids: tf.Tensor, padding_mask: tf.Tensor
) -> tf.Tensor:
    """What a sequence classifier gives, without dropout, for word pieces that are looked up.

    The layers are called one by one: a Keras model that begins at a tensor within another one
    leaves that one without a config to save.

    Args:
        model: A model of `kbert.heads.sequence_classifier` or `feature_classifier`.
        embeddings: Token embeddings, (batch, length, hidden).
        segment_ids, padding_mask: As the encoder takes them, int32 (batch, length).

    Returns:
        Logits, float32 (batch, classes).
    """
    encoder = model.get_layer("encoder")
    positions = encoder.get_layer("position_embedding")(embeddings)
    segments = encoder.get_layer("segment_embedding")(segment_ids)
    hidden = encoder.get_layer("embeddings_add")([embeddings, positions, segments])
    hidden = encoder.get_layer("embeddings_layer_norm")(hidden)
    for block in transformer_blocks(encoder):
        hidden = block(hidden, padding_mask=padding_mask)
    if "pooling" in {layer.name for layer in model.layers}:
        pooled = model.get_layer("pooling")(hidden, padding_mask=padding_mask)
    else:
        pooled = encoder.get_layer("pooler")(hidden)
    return model.get_layer("classifier")(pooled)


def explain(
    model: keras.Model,
    task: Task,
    texts: Sequence[tuple[str, ...]],
    class_index: Sequence[int] | np.ndarray,
    *,
    steps: int = STEPS,
) -> list[list[list[tuple[str, float]]]]:
    """The words of texts, with what each adds to the logit of a class, by integrated gradients.

    The baseline is the row with [PAD] for each word piece, but for [CLS] and [SEP]; it is attended
    to as a word is. ([MASK] in its place leaves a classifier less undecided.) The scores of a row
    sum to logit(text) - logit(baseline).

    Args:
        model: A model of `kbert.heads.sequence_classifier`.
        task: Its task, a classification: brings the tokeniser and the length.
        texts: The text columns of each row.
        class_index: The class of each row, int (rows,).
        steps: See `integrated_gradients`.

    Returns:
        For each row and each of its columns, the parts that the text consists of, with their
        scores of four digits. A part is a word, all its word pieces together, or what stands
        between words; that has the score 0, as has what was cut off for being too long. Of a text
        in windows that is all but the window with the largest logit of the class.
    """
    if not texts:
        return []
    segments = _segments(texts)
    tokens = [task.tokenizer.tokenize_with_offsets(tf.constant(segment)) for segment in segments]
    inputs = _batch(task, [ids for ids, _, _ in tokens])
    if "rows" in inputs:
        inputs = _most_telling(model, inputs, class_index)
    starts_of_last = inputs.get("starts", np.zeros(len(texts), np.int32))
    places = _places(inputs)
    baseline_ids = inputs["token_ids"].copy()
    for row, slices in enumerate(places):
        for place in slices:
            baseline_ids[row, place] = task.tokenizer.pad_token_id
    scores = integrated_gradients(
        model, inputs, class_index, baseline_ids=baseline_ids, steps=steps
    )
    explained = []
    for row, columns in enumerate(texts):
        words = []
        for number, (offsets, place) in enumerate(zip(tokens, places[row], strict=True)):
            first = starts_of_last[row] if number == len(tokens) - 1 else 0
            ids, starts, ends = (part[row].numpy().tolist()[first:] for part in offsets)
            pieces = [task.tokenizer.vocabulary[piece] for piece in ids]
            kept = scores[row, place].tolist()  # of fewer pieces, where the text was cut
            words.append(_words(zip(pieces, starts, ends, kept, strict=False)))
        explained.append(_by_column(columns, words))
    return explained


def attentions(
    model: keras.Model, task: Task, text: tuple[str, ...]
) -> tuple[list[str], list[np.ndarray]]:
    """What the layers of an encoder attend to in one row of texts.

    Args:
        model: A model with a head on the encoder.
        task: Its task: brings the tokeniser and the length.
        text: The text columns.

    Returns:
        The word pieces as the vocabulary spells them, with [CLS] and [SEP]; and for each layer the
        attention, float32 (heads, length, length), whose rows (from a piece) sum to one. Of a text
        in windows those of the first one.
    """
    encoder = model.get_layer("encoder")
    inputs = _batch(task, task.encode([tf.constant([column]) for column in text]))
    first = {name: inputs[name][:1] for name in encoder.input}
    scores = attention_encoder(encoder)(first)["attention_scores"]
    pieces = [task.tokenizer.vocabulary[piece] for piece in first["token_ids"][0]]
    return pieces, [tf.cast(layer[0], tf.float32).numpy() for layer in scores]


def _sum_of_gradients(model: keras.Model) -> Callable[..., tf.Tensor]:
    """The sum of a logit's gradients at points of a way, (length, hidden), for any length."""
    matrix, fractions = tf.TensorSpec((None, None)), tf.TensorSpec((None,))
    segment_ids, class_index = tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.int32)

    @tf.function(input_signature=[matrix, matrix, segment_ids, class_index, fractions])
    def sum_of_gradients(start, way, segment_ids, class_index, fractions):
        points = start + fractions[:, None, None] * way  # (points, length, hidden)
        shape = tf.shape(points)[:2]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(points)
            logits = logits_of_embeddings(
                model, points, tf.broadcast_to(segment_ids, shape), tf.ones(shape, tf.int32)
            )
            logit = logits[:, class_index]
        return tf.reduce_sum(tape.gradient(logit, points), 0)

    return sum_of_gradients


def _segments(texts: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """The first columns, and all further ones joined by a space, as a classification does."""
    segments = [[columns[0] for columns in texts]]
    if len(texts[0]) > 1:
        segments.append([" ".join(columns[1:]) for columns in texts])
    return segments


def _batch(task: Task, segments: list[tf.RaggedTensor]) -> dict[str, np.ndarray]:
    """The encoder's inputs, int32 (rows, length)."""
    return {name: tensor.numpy() for name, tensor in task.packer(segments).items()}


def _most_telling(
    model: keras.Model, inputs: dict[str, np.ndarray], class_index: Sequence[int] | np.ndarray
) -> dict[str, np.ndarray]:
    """Of each text the window with the largest logit of its class."""
    embed = model.get_layer("encoder").get_layer("token_embedding")
    chosen = []
    for row, index in enumerate(class_index):
        windows = np.flatnonzero(inputs["rows"] == row)
        if len(windows) > 1:
            ids, segment_ids, mask = (
                tf.constant(inputs[name][windows])
                for name in ("token_ids", "segment_ids", "padding_mask")
            )
            logits = logits_of_embeddings(model, embed(ids), segment_ids, mask)[:, index]
            windows = windows[np.argmax(logits)[None]]
        chosen.append(windows[0])
    return {name: values[chosen] for name, values in inputs.items()}


def _places(inputs: dict[str, np.ndarray]) -> list[list[slice]]:
    """Where the word pieces of a row's segments stand: [CLS] a [SEP], or [CLS] a [SEP] b [SEP]."""
    places = []
    for segment_ids, mask in zip(inputs["segment_ids"], inputs["padding_mask"], strict=True):
        first_end, end = mask.sum() - segment_ids.sum() - 1, mask.sum() - 1
        first, second = slice(1, first_end), slice(first_end + 1, end)
        places.append([first, second] if segment_ids.any() else [first])
    return places


def _words(pieces: Iterable[tuple[str, int, int, float]]) -> list[Word]:
    """Joins the pieces (token, start, end, score) of each word.

    Pieces that share a character are joined too: a Korean syllable may be cut into its letters.
    """
    words: list[Word] = []
    for token, start, end, score in pieces:
        continues = token.startswith("##")
        while words and (continues or start < words[-1][1]):
            last_start, last_end, last_score = words.pop()
            start, end, score = min(start, last_start), max(end, last_end), score + last_score
            continues = False
        words.append((start, end, score))
    return words


def _by_column(columns: tuple[str, ...], words: list[list[Word]]) -> list[list[tuple[str, float]]]:
    """The parts of each column, from the words of the segments that they were joined to."""
    explained = [list(_parts(columns[0], words[0]))]
    start = 0
    for column in columns[1:]:
        end = start + len(column)
        inside = [
            (word_start - start, min(word_end, end) - start, score)
            for word_start, word_end, score in words[1]
            if start <= word_start < end
        ]
        explained.append(list(_parts(column, inside)))
        start = end + 1
    return explained


def _parts(text: str, words: list[Word]) -> Iterator[tuple[str, float]]:
    """The words and what stands between them."""
    done = 0
    for start, end, score in words:
        if start > done:
            yield text[done:start], 0.0
        yield text[start:end], round(score, DIGITS) + 0.0  # no -0.0
        done = end
    if done < len(text):
        yield text[done:], 0.0
