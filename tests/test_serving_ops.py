"""From which TF Serving on a graph loads."""

from __future__ import annotations

import pytest

from kbert.serving_ops import newer_ops, newest_listed, tf_serving_version


@pytest.mark.parametrize(
    ("ops", "version"),
    [
        ((), "2.12"),
        (("MatMul", "FastWordpieceTokenizeWithOffsets", "ParseExampleV2"), "2.12"),
        (("MatMul", "DatasetFingerprint"), "2.16"),
        (("DatasetFingerprint", "TFText>RoundRobinTrim"), "2.20"),  # the later of the two
        (("TFText>RoundRobinTrim", "NewFancyOp"), None),
    ],
)
def test_first_version_that_has_all(ops: tuple[str, ...], version: str | None) -> None:
    assert tf_serving_version(ops) == version


def test_what_needs_more_is_named() -> None:
    assert newer_ops(("TFText>RoundRobinTrim", "NewFancyOp", "MatMul")) == {
        "NewFancyOp": None,
        "TFText>RoundRobinTrim": "2.20",
    }
    assert newest_listed() == "2.20"
