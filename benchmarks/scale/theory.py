"""What a training step costs in theory: its floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of a classifier and a batch; those of MiniLM-L6 where nothing else is said."""

    batch: int = 32
    """Texts."""
    length: int = 32
    """Tokens of each."""
    layers: int = 6
    hidden: int = 384
    """Width of the states; the feed-forward layer is four times as wide."""
    classes: int = 10


def operations(sizes: Sizes) -> float:
    """Floating-point operations of a step's matrix products, forwards and backwards.

    A product with a matrix of weights costs 2 a weight and token forwards and twice that backwards,
    once for the weights and once for the states. Attention has two products of the states with
    each other, (length, width) by (width, length) and back.
    """
    tokens = sizes.batch * sizes.length
    weights = sizes.layers * 12 * sizes.hidden**2  # 4 of the attention, 8 of the feed-forward layer
    attention = sizes.layers * 2 * sizes.length * sizes.hidden  # a token, forwards and halved
    head = sizes.batch * (sizes.hidden**2 + sizes.hidden * sizes.classes)  # pooler and classifier
    return 6.0 * (tokens * (weights + attention) + head)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power of the size that the cost grows with, from the first to the last of them."""
    return math.log(costs[-1] / costs[0]) / math.log(sizes[-1] / sizes[0])
