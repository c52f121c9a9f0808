"""The export's checks: a version that fails them never appears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kbert.certificate import PLACE, read_certificate
from kbert.errors import InputError
from kbert.export import ExportError, check_ops, export, graph_ops


def test_only_the_version_is_there(exported_pairs) -> None:
    _, _, path = exported_pairs
    assert path.name == "3"
    assert [entry.name for entry in path.parent.iterdir()] == ["3"]
    assert (path / "assets" / "labels.txt").read_text("utf-8") == "no\nyes\n好\n"
    assert read_certificate(path / PLACE).problem() == ""


def test_it_carries_its_lineage(exported_pairs, tiny_checkpoint: Path) -> None:
    _, _, path = exported_pairs
    text = (path / "assets.extra" / "lineage.json").read_text("utf-8")
    content = json.loads(text)
    assert content["run"] == "pairs-3"
    assert content["checkpoint"]["name"] == tiny_checkpoint.name
    assert text == json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def test_ops_are_those_of_old_tf_serving(exported_pairs) -> None:
    _, _, path = exported_pairs
    ops = graph_ops(path)
    assert {"FastWordpieceTokenizeWithOffsets", "MatMul"} <= ops
    check_ops(path)


def test_an_unknown_op_is_named(exported_pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, path = exported_pairs
    monkeypatch.setattr("kbert.export.graph_ops", lambda _: {"MatMul", "NewFancyOp"})
    with pytest.raises(ExportError, match="TF Serving 2.12 has no op NewFancyOp"):
        check_ops(path)


def test_a_version_is_not_overwritten(exported_pairs) -> None:
    model, task, path = exported_pairs
    with pytest.raises(InputError, match="choose another --export.version"):
        export(model, task, path.parent, version=3, lineage={})


@pytest.mark.parametrize("failing", ["check_ops", "certify"])
def test_a_failed_check_leaves_nothing(
    exported_pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise ExportError("it differs")

    model, task, _ = exported_pairs
    monkeypatch.setattr(f"kbert.export.{failing}", fail)
    with pytest.raises(ExportError, match="it differs"):
        export(model, task, tmp_path / "pairs", version=1, lineage={})
    assert list((tmp_path / "pairs").iterdir()) == []
