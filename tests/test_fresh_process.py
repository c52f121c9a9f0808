"""The scripts that check an export, each in a process of its own, as they run outside tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kbert import fresh_process
from kbert.certify import certify
from kbert.fresh_process import ProcessError, saved_model_answers

pytestmark = pytest.mark.usefixtures("own_processes")


def test_an_export_is_checked(exported_pairs) -> None:
    model, task, path = exported_pairs
    certificate = certify(path, model, task)
    assert certificate.problem() == ""
    assert set(certificate.answers) == {"python", "saved_model", "huggingface"}


def test_what_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=r"SavedModel file does not exist"):
        saved_model_answers(tmp_path, {"text": ["a"]})


def test_decoded() -> None:
    found = fresh_process.decoded(np.array([b"\xe5\xa5\xbd", b"a"], object))
    assert found.tolist() == ["好", "a"]
    numbers = np.array([1.0])
    assert fresh_process.decoded(numbers) is numbers
