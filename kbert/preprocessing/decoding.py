"""Ids become text again, as the WordPiece decoder of HuggingFace's tokenizers joins them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kbert.assets import normalizer

PREFIX = "##"
# What tokenizers' decoder tidies, in this order, in each token with the space before it, and
# transformers then in the whole text.
REPLACEMENTS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# Brackets, stops and the like, full-width forms among them but no full-width letters and digits.
CHINESE_PUNCTUATION = ((0x3000, 0x303F), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40))
CHINESE_PUNCTUATION += ((0xFF5B, 0xFF65), (0xFE30, 0xFE4F))
# Chinese has these in pairs ("……") and around each other; other languages have them too.
SHARED_PUNCTUATION = "“”‘’…—·"
NEITHER, SHARED, CHINESE = range(3)

# What is written without the spaces that stand around every punctuation mark after `join_tokens`:
# patterns of RE2 and what takes their place, in this order.
TIGHT = (
    (r"([\pL\pN]) - (und|oder|bzw|and|or) ", r"\1- \2 "),  # "Rot- und Weißwein"
    *((r"([\pL\pN“”]) ([-/_@’]) ([\pL\pN])", r"\1\2\3"),) * 2,  # twice: "a - b - c"
    (r"(\pN)([.,]) (\pN{3})\b", r"\1\2\3"),
    (r"(\pN) : (\pN)", r"\1:\2"),
    (r'" ([^"]*[^" ]) "', r'"\1"'),
    (r"„ ([^“”]*[^“” ]) ([“”])", r"„\1\2"),
    (r"“ ([^“”]*[^“” ]) ”", r"“\1”"),
    (r"([(\[{«]) ", r"\1"),
    (r" ([)\]}»:;%…])", r"\1"),
    (r"([$€£#]) (\pN)", r"\1\2"),
)


class Spellings(NamedTuple):
    """How the tokens of a vocabulary are written in a text; arrays of (vocabulary,)."""

    first: np.ndarray  # string: at the start of a text
    later: np.ndarray  # string: elsewhere, the space before it included
    joined: np.ndarray  # string: elsewhere, where there is no space before it
    start_kinds: np.ndarray  # int32: NEITHER, SHARED or CHINESE, of the first character
    end_kinds: np.ndarray  # int32: the same of the last character


def spellings(vocabulary: Sequence[str]) -> Spellings:
    """Returns how the tokens of a vocabulary are written."""
    bodies = [token.removeprefix(PREFIX) for token in vocabulary]
    later = [
        _tidy(body if token.startswith(PREFIX) else f" {body}")
        for token, body in zip(vocabulary, bodies, strict=True)
    ]
    return Spellings(
        first=np.array([_tidy(token).encode() for token in vocabulary], object),
        later=np.array([text.encode() for text in later], object),
        joined=np.array([_tidy(body).encode() for body in bodies], object),
        start_kinds=np.array([_kind(body[:1]) for body in bodies], np.int32),
        end_kinds=np.array([_kind(body[-1:]) for body in bodies], np.int32),
    )


def clean_up_spaces(texts: tf.Tensor) -> tf.Tensor:
    """Removes spaces before punctuation and in English contractions, "do n't"; of any shape."""
    for old, new in REPLACEMENTS:
        if old != " do not":  # which tokenizers alone tidies
            texts = tf.strings.regex_replace(texts, re.escape(old), new)
    return texts


def tighten(texts: tf.Tensor) -> tf.Tensor:
    """Removes the spaces that nobody writes around hyphens, quotes and brackets; of any shape.

    What `WordPieceTokenizer.decode` gives is HuggingFace's, "T - Shirt" and "( so )" in it.
    """
    for pattern, rewrite in TIGHT:
        texts = tf.strings.regex_replace(texts, pattern, rewrite)
    return texts


def join_tokens(
    ids: tf.Tensor, rows: tf.Tensor, num_rows: tf.Tensor, *, spelt: Spellings, is_chinese: bool
) -> tf.Tensor:
    """Joins tokens to texts.

    Args:
        ids: Integers, (tokens,), all of them of the vocabulary.
        rows: Integers, (tokens,): the text of each token, ascending.
        num_rows: The number of texts.
        spelt: The vocabulary.
        is_chinese: Whether to leave out spaces that Chinese has not.

    Returns:
        string, (num_rows,).
    """
    texts = tf.gather(tf.constant(spelt.later, tf.string), ids)
    if is_chinese:
        previous = tf.concat([ids[:1], ids[:-1]], 0)
        kinds = tf.gather(spelt.end_kinds, previous) + tf.gather(spelt.start_kinds, ids)
        joined = tf.gather(tf.constant(spelt.joined, tf.string), ids)
        texts = tf.where(kinds >= CHINESE, joined, texts)
    is_first = tf.concat([[True], rows[1:] != rows[:-1]], 0)[: tf.size(ids)]
    texts = tf.where(is_first, tf.gather(tf.constant(spelt.first, tf.string), ids), texts)
    return tf.strings.unsorted_segment_join(texts, rows, num_rows)


def _tidy(text: str) -> str:
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return text


def _kind(character: str) -> int:
    """Returns the kind of a character; of "" it is NEITHER."""
    if not character:
        return NEITHER
    code = ord(character)
    if character in SHARED_PUNCTUATION:
        return SHARED
    if any(first <= code <= last for first, last in CHINESE_PUNCTUATION):
        return CHINESE
    table = normalizer.load_table(False, False)
    start = table.block_starts[code >> normalizer.BLOCK_BITS]
    entry = table.entries[start + (code & normalizer.BLOCK_SIZE - 1)]
    return CHINESE if entry & normalizer.CHINESE else NEITHER
