"""The export's checks: a version that fails them never appears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kbert.config import parse
from kbert.errors import InputError
from kbert.export import ExportError, check_answers, check_ops, export, graph_ops
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks.classification import Classification
from kbert.tasks.task import Signature
from kbert.training import new_model


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory):
    words = ["--data.train", "none.csv", "--model.checkpoint", tiny_checkpoint, "--output", "none"]
    config = parse([*map(str, words), "--data.max_length", "20", "--data.text_column", "[a, b]"])
    task = Classification(
        config, tokenizer_from_files(tiny_checkpoint), ("no", "yes", "好"), np.array([1, 1, 1])
    )
    model = new_model(task, tiny_checkpoint, config.model, config.train)
    folder = tmp_path_factory.mktemp("export") / "pairs"
    return model, task, export(model, task, folder, version=3)


def test_only_the_version_is_there(exported) -> None:
    _, _, path = exported
    assert path.name == "3"
    assert [entry.name for entry in path.parent.iterdir()] == ["3"]
    assert (path / "assets" / "labels.txt").read_text("utf-8") == "no\nyes\n好\n"


def test_ops_are_those_of_old_tf_serving(exported) -> None:
    _, _, path = exported
    ops = graph_ops(path)
    assert {"FastWordpieceTokenizeWithOffsets", "MatMul"} <= ops
    check_ops(path)


def test_an_unknown_op_is_named(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, path = exported
    monkeypatch.setattr("kbert.export.graph_ops", lambda _: {"MatMul", "NewFancyOp"})
    with pytest.raises(ExportError, match="TF Serving 2.12 has no op NewFancyOp"):
        check_ops(path)


def test_a_version_is_not_overwritten(exported) -> None:
    model, task, path = exported
    with pytest.raises(InputError, match="choose another --export.version"):
        export(model, task, path.parent, version=3)


def test_another_answer_is_an_error(exported) -> None:
    model, task, path = exported
    right = task.signatures(model)["serving_default"]
    assert check_answers(path, right) <= 1e-5

    def wrong(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = right.function(*texts)
        return {**answers, "probabilities": answers["probabilities"] + 1e-3}

    with pytest.raises(ExportError, match="probabilities is off by 1.00e-03"):
        check_answers(path, Signature(right.inputs, wrong))


def test_a_failed_check_leaves_nothing(exported, tmp_path: Path, monkeypatch) -> None:
    model, task, _ = exported
    monkeypatch.setattr("kbert.export.graph_ops", lambda _: {"NewFancyOp"})
    with pytest.raises(ExportError):
        export(model, task, tmp_path / "pairs", version=1)
    assert list((tmp_path / "pairs").iterdir()) == []
