"""export.precision bfloat16: what is written, what it loses, and that it says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import train
from kbert import verify
from kbert.certificate import PLACE, Certificate, read_certificate
from kbert.certify import REDUCED_BOUND


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reduced")
    options = {
        "--data.train": tiny_csv,
        "--data.max_length": 12,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 2,
        "--train.batch_size": 8,
        "--train.learning_rate": 3e-3,
        "--monitor.tensorboard": "false",
        "--export.name": "moods",
        "--export.precision": "bfloat16",
        "--output": folder / "run",
    }
    assert train.main([str(word) for pair in options.items() for word in pair]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def certificate(finished: Path) -> Certificate:
    return read_certificate(finished / "export" / "moods" / "1" / PLACE)


def test_products_have_weights_of_half_the_size(finished: Path) -> None:
    folder = finished / "export" / "moods" / "1" / "variables" / "variables"
    written = tf.train.load_checkpoint(str(folder))
    shapes, types = written.get_variable_to_shape_map(), written.get_variable_to_dtype_map()
    matrices = {name for name, shape in shapes.items() if shape in ([12, 36], [12, 21], [21, 12])}
    halves = {name for name, kind in types.items() if kind == tf.bfloat16}
    assert matrices and matrices <= halves


def test_the_certificate_tells_what_it_loses(finished: Path, certificate: Certificate) -> None:
    assert certificate.precision == "bfloat16"
    assert certificate.bound == REDUCED_BOUND
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    measured = {name: metrics["test"][name] for name in metrics["headline"]}
    assert certificate.figures["float32"] == measured
    assert certificate.figures["bfloat16"].keys() == measured.keys()
    served, exact = (certificate.answers[name].outputs for name in ("saved_model", "python"))
    differences = np.abs(served["logits"] - exact["logits"])
    assert 1e-5 < differences.max() <= REDUCED_BOUND * np.abs(exact["logits"]).max()


def test_it_is_verified_by_its_own_bound(finished: Path, capsys) -> None:
    assert verify.main([str(finished)]) == 0
    assert "bound 0.1: holds" in capsys.readouterr().out
    assert verify.main([str(finished), "--bound", "1e-5"]) == 1
