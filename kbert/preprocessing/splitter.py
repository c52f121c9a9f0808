"""TensorFlow Text's splitter of words, and the tables it reads, made so that it never differs.

One table is for plain text, which the splitter itself cuts into words; one is for words.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from kbert.tokenizer_files import MAX_WORD_CHARACTERS

MAX_CHARACTER_BYTES = 4  # UTF-8
PLAIN_TEXT = r"[\t\n\r\x20-\x7E]*"


def splitter(model: np.ndarray | None) -> tf_text.FastWordpieceTokenizer:
    """Returns what turns strings into int32 ids by a table."""
    return tf_text.FastWordpieceTokenizer(model_buffer=tf.constant(model), token_out_type=tf.int32)


def plain_text_model(vocabulary: Sequence[str], unknown_token: str) -> np.ndarray:
    """Returns the table for texts that match PLAIN_TEXT, uint8, in TensorFlow Text's format."""
    # With tokens that plain text cannot hold the splitter would differ from the reference
    # ("a b"), or fail for want of any other.
    tokens = [
        token if _is_plain(token) or token == unknown_token else _impossible(number)
        for number, token in enumerate(vocabulary)
    ]
    return _model(tokens, unknown_token, MAX_WORD_CHARACTERS, is_split=False)


def word_model(vocabulary: Sequence[str], unknown_token: str) -> np.ndarray:
    """Returns the table for words of at most MAX_WORD_CHARACTERS characters, likewise."""
    # The splitter refuses "" and NUL, which no word holds.
    tokens = [
        _impossible(number) if not token or "\0" in token else token
        for number, token in enumerate(vocabulary)
    ]
    max_bytes = MAX_WORD_CHARACTERS * MAX_CHARACTER_BYTES
    return _model(tokens, unknown_token, max_bytes, is_split=True)


def _model(
    vocabulary: list[str], unknown_token: str, max_bytes_per_word: int, *, is_split: bool
) -> np.ndarray:
    with tf.init_scope():
        splitter = tf_text.FastWordpieceTokenizer(
            vocabulary,
            max_bytes_per_word=max_bytes_per_word,
            unknown_token=unknown_token,
            no_pretokenization=is_split,
        )
        return splitter._model.numpy()  # there is no public accessor


def _is_plain(token: str) -> bool:
    """Returns whether a token can be found in a text that matches PLAIN_TEXT."""
    is_visible_character = len(token) == 1 and token.isprintable() and token != " "
    return token.isascii() and (token.removeprefix("##").isalnum() or is_visible_character)


def _impossible(number: int) -> str:
    """Returns a token that no normalised text holds, since U+E000 is dropped from texts."""
    return f"\ue000{number}"
