"""Exact match and F1 of answers, as SQuAD's published script counts them, for English and Chinese.

Needs neither TensorFlow nor Keras.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
CHINESE = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f])")
# the brackets, stops and the like of Chinese: those of SQuAD's script are ASCII alone
PUNCTUATION = re.compile(
    f"[{re.escape(string.punctuation)}\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\ufe30-\ufe4f]"
)


def answer_tokens(answer: str) -> list[str]:
    """The words that count: in lower case, without punctuation and articles.

    Each Chinese character is a word.
    """
    text = PUNCTUATION.sub("", answer.lower())
    return CHINESE.sub(r" \1 ", ARTICLES.sub(" ", text)).split()


def exact_match(answer: str, expected: str) -> float:
    """1 where both have the same words, else 0."""
    return float(answer_tokens(answer) == answer_tokens(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the answer's words, each counted as often as it is.

    Where one has no words, 1 if the other has none either.
    """
    words, wanted = answer_tokens(answer), answer_tokens(expected)
    if not words or not wanted:
        return float(words == wanted)
    return 2 * (Counter(words) & Counter(wanted)).total() / (len(words) + len(wanted))


def answer_figures(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """exact_match and f1, means over the rows.

    Args:
        answers: What was answered, a text a row.
        expected: What should have been, at least one row.
    """
    pairs = list(zip(answers, expected, strict=True))
    return {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "f1": sum(token_f1(*pair) for pair in pairs) / len(pairs),
    }
