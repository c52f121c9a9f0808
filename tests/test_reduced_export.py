"""export.precision bfloat16 and int8: what is written, what it loses, and that it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import train
from kbert import verify
from kbert.certificate import PLACE, Certificate, read_certificate
from kbert.certify import REDUCED_BOUNDS

TYPES = {"bfloat16": tf.bfloat16, "int8": tf.int8}


def options_of(checkpoint: Path, data: Path, folder: Path, precision: str) -> list[str]:
    options = {
        "--data.train": data,
        "--data.max_length": 12,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": checkpoint,
        "--train.epochs": 2,
        "--train.batch_size": 8,
        "--train.learning_rate": 3e-3,
        "--monitor.tensorboard": "false",
        "--export.name": "moods",
        "--export.precision": precision,
        "--output": folder / "run",
    }
    return [str(word) for pair in options.items() for word in pair]


@pytest.fixture(scope="module", params=TYPES)
def precision(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def finished(precision, tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(precision)
    assert train.main(options_of(tiny_checkpoint, tiny_csv, folder, precision)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def certificate(finished: Path) -> Certificate:
    return read_certificate(finished / "export" / "moods" / "1" / PLACE)


def test_products_have_smaller_weights(precision: str, finished: Path) -> None:
    folder = finished / "export" / "moods" / "1" / "variables" / "variables"
    written = tf.train.load_checkpoint(str(folder))
    shapes, types = written.get_variable_to_shape_map(), written.get_variable_to_dtype_map()
    matrices = {name for name, shape in shapes.items() if shape in ([12, 36], [12, 21], [21, 12])}
    smaller = {name for name, kind in types.items() if kind == TYPES[precision]}
    assert matrices and matrices <= smaller


def test_the_certificate_tells_what_it_loses(
    precision: str, finished: Path, certificate: Certificate
) -> None:
    assert certificate.precision == precision
    assert certificate.bound == REDUCED_BOUNDS[precision]
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    measured = {name: metrics["test"][name] for name in metrics["headline"]}
    assert certificate.figures["float32"] == measured
    assert certificate.figures[precision].keys() == measured.keys()
    served, exact = (certificate.answers[name].outputs for name in ("saved_model", "python"))
    differences = np.abs(served["logits"] - exact["logits"])
    assert 1e-5 < differences.max() <= certificate.bound * np.abs(exact["logits"]).max()


def test_it_is_verified_by_its_own_bound(precision: str, finished: Path, capsys) -> None:
    assert verify.main([str(finished)]) == 0
    assert f"bound {REDUCED_BOUNDS[precision]}: holds" in capsys.readouterr().out
    assert verify.main([str(finished), "--bound", "1e-5"]) == 1


def test_a_machine_without_such_products_is_told_of_at_once(
    tiny_checkpoint: Path, tiny_csv: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("kbert.run.is_supported", lambda: False)  # as on ARM
    assert train.main(options_of(tiny_checkpoint, tiny_csv, tmp_path, "int8")) == 2
    assert "export.precision int8: this TensorFlow has no such products" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_bear_it_can_be_exported_in_float32(
    tiny_checkpoint: Path, tiny_csv: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(REDUCED_BOUNDS, "int8", 1e-6)
    assert train.main(options_of(tiny_checkpoint, tiny_csv, tmp_path, "int8")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "export.precision int8: the model does not bear it, " in error
    assert train.main(options_of(tiny_checkpoint, tiny_csv, tmp_path, "float32")) == 0
    assert read_certificate(tmp_path / "run/export/moods/1" / PLACE).precision == "float32"
    assert "precision: float32" in (tmp_path / "run/config.yaml").read_text(encoding="utf-8")
