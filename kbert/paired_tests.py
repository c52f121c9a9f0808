"""Two models on the same rows: is their difference more than luck?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

EXACT_ROWS = 25  # discordant rows from which on chi-squared is near enough
CHANCE = 0.05
"""A p-value from here on is no difference."""


@dataclass(frozen=True)
class McNemar:
    """On which rows only one of two models is right."""

    only_ours: int
    """Rows that only the first model gets right."""
    only_theirs: int
    """Rows that only the second one gets right."""
    p_value: float
    """How often two equally good models would differ as much, or more."""


@dataclass(frozen=True)
class Verdict:
    """Whether BERT beats the linear model beside it, in words."""

    kind: Literal["ahead", "tie", "behind"]
    title: str
    text: str


@dataclass(frozen=True)
class Difference:
    """A figure of one model less that of another, with an interval."""

    value: float
    low: float
    high: float


def mcnemar(ours_right: np.ndarray, theirs_right: np.ndarray) -> McNemar:
    """McNemar's test that two models are equally often right (McNemar 1947).

    Two-sided. Exact by the binomial distribution where fewer than 25 rows are discordant (one
    model right, the other wrong); from there on by chi-squared with Edwards' correction for
    continuity.

    Args:
        ours_right: Whether the first model is right, bool (rows,).
        theirs_right: Whether the second model is right about the same rows, bool (rows,).

    Raises:
        ValueError: the numbers of rows differ.
    """
    ours, theirs = np.asarray(ours_right, bool), np.asarray(theirs_right, bool)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"the rows must be the same, received {ours.shape} and {theirs.shape}")
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return McNemar(only_ours, only_theirs, _p_value(only_ours, only_theirs))


def verdict(paired: McNemar, *, rows: int, split: str) -> Verdict:
    """What McNemar's test of BERT (ours) and the linear model (theirs) comes to.

    Args:
        paired: The test.
        rows: Number of rows that it is of.
        split: Their name.
    """
    counts = (
        f"Of {rows:,} {split} texts, BERT alone is right on {paired.only_ours:,} and the linear "
        f"model alone on {paired.only_theirs:,} (McNemar's test, {p_text(paired.p_value)})."
    )
    if paired.p_value >= CHANCE:
        title = "BERT does not beat the linear model: a tie."
        rest = "So small a difference may be chance, and the linear model is far cheaper to serve."
        return Verdict("tie", title, f"{counts} {rest}")
    if paired.only_ours > paired.only_theirs:
        return Verdict("ahead", "BERT beats the linear model.", counts)
    rest = "Serve the linear model, or look for what is wrong with the training."
    return Verdict("behind", "The linear model beats BERT.", f"{counts} {rest}")


def p_text(p_value: float) -> str:
    """A p-value in three digits, never broken over two lines."""
    return "p\u00a0<\u00a00.001" if p_value < 0.001 else f"p\u00a0=\u00a0{p_value:.3g}"


def paired_bootstrap(
    figure: Callable[..., float],
    ours: np.ndarray,
    theirs: np.ndarray,
    *shared: np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> Difference:
    """The first model's figure less the second's, with a percentile interval by bootstrap.

    Each resample draws rows with replacement, the same ones for both models, so that rows that
    are hard for both do not widen the interval (Efron and Tibshirani 1993).

    Args:
        figure: Gets what a model says of some rows, then the same rows of each `shared`; gives a
            number.
        ours: What the first model says of each row, (rows, ...).
        theirs: What the second one says of the same rows, (rows, ...).
        *shared: What belongs to the rows whatever the model, such as labels, (rows, ...).
        seed: Seed of the rows drawn.
        resamples: How often rows are drawn.
        level: Share of the resamples within the interval.

    Raises:
        ValueError: there are no rows, or their numbers differ.

    Example:

    ```python
    def accuracy(predictions, labels):
        return float((predictions == labels).mean())

    paired_bootstrap(accuracy, ours, theirs, labels)
    ```
    """
    rows = {len(array) for array in (ours, theirs, *shared)}
    if len(rows) > 1 or 0 in rows:
        raise ValueError(f"the rows must be the same, and some: received {sorted(rows)}")

    def difference(of: Any) -> float:
        parts = [array[of] for array in shared]
        return figure(ours[of], *parts) - figure(theirs[of], *parts)

    generator, count = np.random.default_rng(seed), len(ours)
    found = [difference(generator.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(difference(slice(None))), float(low), float(high))


def _p_value(ours: int, theirs: int) -> float:
    from scipy.special import bdtr, chdtrc  # scipy.stats takes a second to import

    discordant = ours + theirs
    if discordant < EXACT_ROWS:
        return min(1.0, 2 * float(bdtr(min(ours, theirs), discordant, 0.5)))
    statistic = max(abs(ours - theirs) - 1, 0) ** 2 / discordant
    return float(chdtrc(1, statistic))
