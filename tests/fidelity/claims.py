"""What a claim is: a sentence, and how to measure whether it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was measured."""

    held: bool
    """Whether the claim holds."""
    measured: str
    """The count or the largest difference, with its unit: "0 of 3,336,189 differ"."""


@dataclass(frozen=True)
class Claim:
    """One line of `make fidelity`."""

    title: str
    """What is claimed, in a few words."""
    measure: Callable[[], Finding]
    """Measures it; whatever it raises is a miss."""


def counted(different: int, total: int, what: str = "") -> Finding:
    """A claim that nothing differs, of which there must be something."""
    measured = f"{different:,} of {total:,} {what}".rstrip()
    return Finding(different == 0 and total > 0, f"{measured} differ")


def bounded(largest: float, bound: float, cases: int) -> Finding:
    """A claim that the largest difference of some cases is within a bound."""
    held = largest <= bound and cases > 0
    return Finding(held, f"largest difference {largest:.2e} (bound {bound:.0e}), {cases:,} cases")
