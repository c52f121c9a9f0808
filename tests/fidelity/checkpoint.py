"""Claims."""

from __future__ import annotations

from fidelity.claims import Claim

CLAIMS: list[Claim] = []
