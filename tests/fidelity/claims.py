"""What a claim is: a sentence, and how to measure whether it holds."""

from __future__ import annotations

import time
import traceback
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


def report(claim: Claim) -> bool:
    """Measure one claim and print its line; whether it held."""
    began = time.monotonic()
    try:
        finding = claim.measure()
    except Exception as error:  # a claim that cannot be measured does not hold
        traceback.print_exc()
        finding = Finding(False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    seconds = time.monotonic() - began
    verdict = "holds " if finding.held else "MISSED"
    print(f"{verdict} {claim.title}: {finding.measured} ({seconds:.0f} s)", flush=True)
    return finding.held
