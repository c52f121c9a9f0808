"""Some of what `make hostile` reads in full: bad files are refused, and nothing of them runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hostile import _make_materials, _outcome
from hostile_files import CASES, RUN, Case

DANGEROUS = ("os.system", "os.mkdir", "a class to make", "writes a file", "prints into", "pickle")
"""Of runs, which take long to read: what would do something."""
CHOSEN = [
    case
    for case in CASES
    if not case.is_large and (case.start != RUN or any(words in case.name for words in DANGEROUS))
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    _make_materials(folder)
    return folder


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name.replace(" ", "-"))
def test_it_is_refused_or_read_as_it_should(case: Case, work: Path) -> None:
    outcome = _outcome(work, case, case.readers[0], io.StringIO())
    expected = "read" if case.is_read else "refused"
    slow = ("takes too long", "takes too much memory")  # make hostile's, on a machine at rest
    assert outcome.found in (expected, *slow), outcome
