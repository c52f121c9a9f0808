"""The export's checks: a version that fails them never appears."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kbert.certificate import PLACE, read_certificate
from kbert.certify import PROBES
from kbert.errors import InputError
from kbert.export import ExportError, check_ops, export
from kbert.fresh_process import ProcessError, saved_model_answers
from kbert.serving_ops import graph_ops
from kbert.version_folders import LOCK
from kbert.warmup import WARMUP_PLACE, write_warmup
from kbert.whole_files import lock_file


def test_only_the_version_is_there(exported_pairs) -> None:
    _, _, path = exported_pairs
    assert path.name == "3"
    assert {entry.name for entry in path.parent.iterdir()} == {"3", LOCK}
    assert (path / "assets" / "labels.txt").read_text("utf-8") == "no\nyes\n好\n"
    assert read_certificate(path / PLACE).problem() == ""


@pytest.mark.parametrize("exported", ["exported_pairs", "exported_words"])
def test_each_weight_is_written_once(exported: str, request: pytest.FixtureRequest) -> None:
    model, _, path = request.getfixturevalue(exported)
    written = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    shapes = [tuple(shape) for shape in written.get_variable_to_shape_map().values() if shape]
    # query, key and value are one there
    assert sum(map(math.prod, shapes)) == sum(math.prod(weight.shape) for weight in model.weights)


def test_it_carries_its_lineage(exported_pairs, tiny_checkpoint: Path) -> None:
    _, _, path = exported_pairs
    text = (path / "assets.extra" / "lineage.json").read_text("utf-8")
    content = json.loads(text)
    assert content["run"] == "pairs-3"
    assert content["checkpoint"]["name"] == tiny_checkpoint.name
    assert text == json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def signature_defs(path: Path) -> dict:
    content = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    return dict(content.meta_graphs[0].signature_def)


def run(path: Path, signature: str, inputs: dict[str, list]) -> dict[str, np.ndarray]:
    """What a signature answers in a session, as TF Serving runs it."""
    definition = signature_defs(path)[signature]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
        fetches = {name: tensor.name for name, tensor in definition.outputs.items()}
        feeds = {definition.inputs[name].name: values for name, values in inputs.items()}
        return session.run(fetches, feeds)


def example(**features: str) -> bytes:
    message = tf.train.Example()
    for name, text in features.items():
        message.features.feature[name].bytes_list.value.append(text.encode())
    return message.SerializeToString()


@pytest.mark.parametrize("exported", ["exported_pairs", "exported_words"])
def test_it_loads_in_old_tf_serving(exported: str, request: pytest.FixtureRequest, caplog) -> None:
    _, _, path = request.getfixturevalue(exported)
    assert {"FastWordpieceTokenizeWithOffsets", "MatMul"} <= graph_ops(path)
    with caplog.at_level(logging.WARNING, logger="kbert.export"):
        assert check_ops(path) == "2.12"
    assert [record for record in caplog.records if record.name == "kbert.export"] == []
    assert read_certificate(path / PLACE).tf_serving == "2.12"


def test_newer_ops_are_a_warning(exported_pairs, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    _, _, path = exported_pairs
    monkeypatch.setattr("kbert.export.graph_ops", lambda _: {"MatMul", "TFText>RoundRobinTrim"})
    assert check_ops(path) == "2.20"
    assert caplog.messages == [
        "the export needs TF Serving 2.20 or later: TFText>RoundRobinTrim (2.20)"
    ]


def test_an_unknown_op_is_named(exported_pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, path = exported_pairs
    ops = {"MatMul", "NewFancyOp", "TFText>RoundRobinTrim"}
    monkeypatch.setattr("kbert.export.graph_ops", lambda _: ops)
    with pytest.raises(ExportError, match=r"no TF Serving from 2.12 to 2.20 has NewFancyOp\."):
        check_ops(path)


def test_methods_are_named_and_the_fingerprint_is_of_the_file(
    exported_pairs, exported_words, tmp_path: Path
) -> None:
    _, _, path = exported_pairs
    methods = {name: found.method_name for name, found in signature_defs(path).items()}
    assert methods["serving_default"] == methods["preprocess"] == "tensorflow/serving/predict"
    assert methods["classify"] == "tensorflow/serving/classify"
    assert "classify" not in signature_defs(exported_words[2])
    found = tf.saved_model.experimental.read_fingerprint(str(path))
    copy = shutil.copytree(path, tmp_path / "copy")
    content = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
    content.meta_graphs[0].signature_def["classify"].method_name = "tensorflow/serving/predict"
    (copy / "saved_model.pb").write_bytes(content.SerializeToString(deterministic=True))
    from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

    write_fingerprint(str(copy))
    other = tf.saved_model.experimental.read_fingerprint(str(copy))
    assert found.saved_model_checksum != other.saved_model_checksum
    write_fingerprint(str(shutil.copytree(path, tmp_path / "same")))
    same = tf.saved_model.experimental.read_fingerprint(str(tmp_path / "same"))
    assert found.saved_model_checksum == same.saved_model_checksum


def test_classify_gives_the_probabilities_of_all_classes(exported_pairs) -> None:
    _, _, path = exported_pairs
    texts = {"text_a": list(PROBES), "text_b": [*PROBES[1:], PROBES[0]]}
    served = run(path, "serving_default", texts)
    examples = [example(text_a=a, text_b=b) for a, b in zip(*texts.values(), strict=True)]
    answers = run(path, "classify", {"inputs": examples})
    np.testing.assert_array_equal(answers["scores"], served["probabilities"])
    assert answers["scores"].dtype == np.float32
    expected = [[b"no", b"yes", "好".encode()]] * len(PROBES)
    assert answers["classes"].tolist() == expected
    best = answers["scores"].argmax(axis=-1)
    rows = np.arange(len(PROBES))
    assert answers["classes"][rows, best].tolist() == served["label"].tolist()
    assert run(path, "classify", {"inputs": []})["classes"].shape == (0, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="text_b.*is required"):
        run(path, "classify", {"inputs": [example(text_a="cat")]})


def test_warm_up_requests_are_replayed(exported_pairs, tmp_path: Path) -> None:
    _, _, path = exported_pairs
    inputs = {"text_a": ["the cat"], "text_b": ["a dog"]}
    copy = shutil.copytree(path, tmp_path / "1")
    write_warmup(copy / WARMUP_PLACE, "pairs", [{"text_a": "the cat", "text_b": "好"}])
    assert saved_model_answers(copy, inputs).outputs["label"].shape == (1,)
    write_warmup(copy / WARMUP_PLACE, "pairs", [{"text_a": "the cat", "text": "好"}])
    with pytest.raises(ProcessError):
        saved_model_answers(copy, inputs)
    (copy / WARMUP_PLACE).write_bytes(b"these are not records" * 9)
    with pytest.raises(ProcessError, match="DataLoss"):
        saved_model_answers(copy, inputs)


def test_a_version_is_not_overwritten(exported_pairs) -> None:
    model, task, path = exported_pairs
    with pytest.raises(InputError, match="is there already: choose another version"):
        export(model, task, path.parent, version=3, lineage={})


@pytest.mark.parametrize("failing", ["check_ops", "certify"])
def test_a_failed_check_leaves_nothing(
    exported_pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ExportError("it differs")

    model, task, _ = exported_pairs
    monkeypatch.setattr(f"kbert.export.{failing}", fail)
    with pytest.raises(ExportError, match="it differs"):
        export(model, task, tmp_path / "pairs", version=1, lineage={})
    assert [entry.name for entry in (tmp_path / "pairs").iterdir()] == [LOCK]


@pytest.mark.parametrize("alive", [False, True])
def test_what_killed_exports_left_is_removed(
    exported_pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ExportError("it differs")

    model, task, _ = exported_pairs
    unfinished = {".exporting.1.a_b0c1d2", ".parity.a_b0c1d2"}
    others = {"2", ".3.incoming", "incoming"}
    base = tmp_path / "pairs"
    for name in unfinished | others:
        (base / name / "variables").mkdir(parents=True)
    monkeypatch.setattr("kbert.export._write", fail)
    with lock_file(base / LOCK) as lock:
        if alive:  # another export into the folder
            fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(ExportError, match="it differs"):
            export(model, task, base, version=4, lineage={})
    left = unfinished if alive else set()
    assert {entry.name for entry in base.iterdir()} == {LOCK, *others, *left}


def test_an_export_is_known_to_be_under_way(
    exported_pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: object, __: object, beside: Path) -> None:
        assert beside.name.startswith(".exporting.4.")
        with lock_file(base / LOCK) as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise ExportError("seen")

    model, task, _ = exported_pairs
    base = tmp_path / "pairs"
    monkeypatch.setattr("kbert.export._write", look)
    with pytest.raises(ExportError, match="seen"):
        export(model, task, base, version=4, lineage={})
