"""Entities from BIO tags, and how many of them were found: read and counted by seqeval.

Needs neither TensorFlow nor Keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_figures
from seqeval.scheme import IOB2

from kbert.text_files import LIST_SEPARATOR

OUTSIDE = "O"
BEGIN, INSIDE = "B-", "I-"


class Entity(NamedTuple):
    """Some words next to each other that are one thing."""

    type: str
    start: int
    """Number of its first word, from 0."""
    end: int
    """Number of the word after its last."""


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, as conlleval reads them.

    An I- without a B- of its type before it begins an entity.

    Args:
        tags: O, B-TYPE or I-TYPE, one a word.
    """
    return [Entity(kind, start, last + 1) for kind, start, last in get_entities(list(tags))]


def is_tag(tag: str) -> bool:
    """Whether this is O, B-TYPE or I-TYPE."""
    return tag == OUTSIDE or (tag.startswith((BEGIN, INSIDE)) and len(tag) > len(BEGIN))


def tag_inside(tag: str) -> str:
    """The tag of the words after the first of what has this tag: I-TYPE, or O."""
    return tag if tag == OUTSIDE else INSIDE + tag[len(BEGIN) :]


def check_tags(
    columns: Mapping[str, Sequence[str]], *, tokens: str, tags: str
) -> tuple[int, str] | None:
    """The first row whose tokens and tags do not go together, and what is wrong with it."""
    for row, cells in enumerate(zip(columns[tokens], columns[tags], strict=True)):
        words, given = (cell.split(LIST_SEPARATOR) for cell in cells)
        if len(words) != len(given):
            return row, (
                f"{len(words)} tokens (column {tokens!r}) and {len(given)} tags (column {tags!r}); "
                "give each token one tag."
            )
        if not all(map(str.strip, words)):
            return row, f"an empty token (column {tokens!r}); leave it out, with its tag."
        if wrong := [tag for tag in given if not is_tag(tag)]:
            return row, f"the tag {wrong[0]!r} (column {tags!r}) must be O, B-NAME or I-NAME."
    return None


def described(words: list[str], labels: list[str], starts: list[int], ends: list[int]) -> list[str]:
    """The entities of a text, each as "TYPE: words"."""
    described = []
    for kind, first, end in entities(labels):
        text = words[first]
        for word in range(first + 1, end):
            gap = "" if starts[word] == ends[word - 1] else " "
            text += gap + words[word]
        described.append(f"{kind}: {text}")
    return described


def entity_figures(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Precision, recall and F1 of entities: found are those of the same words and the same type.

    Args:
        gold: Tags of each sentence.
        predicted: Tags of the same words.

    Returns:
        precision, recall and f1 over all entities, as conlleval counts them; f1_strict, where an
        I- without its B- is no entity; entities, the number of those to be found; and per_type,
        precision, recall, f1 and support of each type among the gold or the predicted ones. What
        would be a division by zero is 0.
    """
    pair = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    kinds = sorted({kind for side in pair for tags in side for kind, _, _ in entities(tags)})
    if not kinds:
        nothing = dict.fromkeys(("precision", "recall", "f1", "f1_strict"), 0.0)
        return {**nothing, "entities": 0, "per_type": {}}
    zero: Any = 0  # which seqeval's annotation forgets
    overall: Any = precision_recall_fscore_support(*pair, average="micro", zero_division=zero)
    strict: Any = strict_figures(*pair, average="micro", zero_division=zero, scheme=IOB2)
    columns: Any = precision_recall_fscore_support(*pair, average=None, zero_division=zero)
    *shares, support = overall
    per_type = {
        kind: {**_named(found), "support": int(count)}
        for kind, *found, count in zip(kinds, *columns, strict=True)
    }
    found = {**_named(shares), "f1_strict": float(strict[2])}
    return {**found, "entities": int(support), "per_type": per_type}


def _named(shares: Sequence[float]) -> dict[str, float]:
    names = ("precision", "recall", "f1")
    return {name: float(share) for name, share in zip(names, shares, strict=True)}
