"""The report of `make fidelity` can miss: the claims themselves are measured there."""

from __future__ import annotations

import math

import pytest
from fidelity.claims import Claim, bounded, counted, report


@pytest.mark.parametrize(
    ("finding", "held", "measured"),
    [
        (counted(0, 1234, "texts"), True, "0 of 1,234 texts differ"),
        (counted(1, 1234), False, "1 of 1,234 differ"),
        (counted(0, 0), False, "0 of 0 differ"),
        (bounded(1e-5, 1e-5, 3), True, "largest difference 1.00e-05 (bound 1e-05), 3 cases"),
        (bounded(1.1e-5, 1e-5, 3), False, "largest difference 1.10e-05 (bound 1e-05), 3 cases"),
        (bounded(math.nan, 1e-5, 3), False, "largest difference nan (bound 1e-05), 3 cases"),
        (bounded(0.0, 1e-5, 0), False, "largest difference 0.00e+00 (bound 1e-05), 0 cases"),
    ],
)
def test_findings(finding, held: bool, measured: str, capsys) -> None:
    assert (finding.held, finding.measured) == (held, measured)
    assert report(Claim("all is well", lambda: finding)) == held
    line = capsys.readouterr().out
    assert line.startswith(f"{'holds ' if held else 'MISSED'} all is well: {measured}")


def test_what_cannot_be_measured_is_a_miss(capsys) -> None:
    assert not report(Claim("all is well", lambda: 1 / 0))
    assert "MISSED all is well: ZeroDivisionError: division by zero" in capsys.readouterr().out
