"""python -m kbert.verify: exports, runs and live servers against a certificate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kbert.certificate import PLACE
from kbert.verify import main
from serve.model_config import ModelConfig
from serve.server import LocalServer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def path(exported_pairs) -> Path:
    """The exported version: RUN/export/pairs/3."""
    return exported_pairs[2]


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[LocalServer]:
    with LocalServer([ModelConfig("pairs", path.parent)]) as server:
        yield server


@pytest.fixture
def rest(server: LocalServer) -> str:
    return f"http://{server.rest_address}/v1/models/pairs"


@pytest.fixture
def tampered(path: Path, tmp_path: Path) -> Callable[[Callable[[dict], None]], str]:
    """A copy of the certificate in which something is changed."""

    def tamper(change: Callable[[dict], None]) -> str:
        content = json.loads((path / PLACE).read_text(encoding="utf-8"))
        change(content["probes"][5])
        (tmp_path / "parity.json").write_text(json.dumps(content), encoding="utf-8")
        return str(tmp_path / "parity.json")

    return tamper


def replace_bias(path: Path, added: float) -> None:
    """Add to the classifier's bias in a SavedModel, and leave all else."""
    prefix = str(path / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    names = sorted(reader.get_variable_to_shape_map())
    tensors = {name: reader.get_tensor(name) for name in names}
    biases = [name for name, array in tensors.items() if np.shape(array) == (3,)]
    assert biases
    for name in biases:
        tensors[name] = tensors[name] + np.array([added, 0, 0], np.float32)
    shutil.rmtree(path / "variables")
    (path / "variables").mkdir()
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )


def test_a_run_holds(path: Path, capsys) -> None:
    assert main([str(path.parents[2])]) == 0
    *rows, loads, summary = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["ids", "values", "python", "saved_model", "huggingface", "probe"]
    assert len(rows) == 1 + 32
    assert all(row.split()[:2] == ["same", "same"] for row in rows[1:])
    assert summary.startswith("32 probes, largest difference ")
    assert loads == "the export loads in TF Serving 2.12 and later"
    assert summary.endswith(", bound 1e-05: holds")


def test_other_weights_are_missed(path: Path, tmp_path: Path, capsys) -> None:
    base = tmp_path / "pairs"
    shutil.copytree(path, base / "3")
    shutil.copytree(path, base / "2")
    replace_bias(base / "3", 1e-3)
    assert main([str(base)]) == 1
    summary = capsys.readouterr().out.splitlines()[-1]
    assert "bound 1e-05: MISSED; compared with python, " in summary
    assert "is off by" in summary


def test_rest_and_grpc_hold(server: LocalServer, rest: str, path: Path, capsys) -> None:
    base = str(path.parent)
    assert main([rest, "--certificate", base]) == 0
    assert main([f"{rest}/versions/3/", "--certificate", str(path / PLACE)]) == 0
    assert main([f"grpc://{server.grpc_address}/pairs", "--certificate", base]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("holds")] == lines[34::35]


def test_masked_words_hold(exported_words, capsys) -> None:
    base = exported_words[2].parent
    with LocalServer([ModelConfig("words", base)]) as server:
        rest = f"http://{server.rest_address}/v1/models/words"
        assert main([rest, "--certificate", str(base)]) == 0
        assert main([f"grpc://{server.grpc_address}/words", "--certificate", str(base)]) == 0
    assert capsys.readouterr().out.count(": holds") == 2


def test_without_huggingface_the_reason_is_printed(
    rest: str, path: Path, tmp_path: Path, capsys
) -> None:
    content = json.loads((path / PLACE).read_text(encoding="utf-8"))
    content.update(huggingface=None, huggingface_missing="no torch here")
    for probe in content["probes"]:
        del probe["huggingface"]
    (tmp_path / "parity.json").write_text(json.dumps(content), encoding="utf-8")
    assert main([rest, "--certificate", str(tmp_path) + "/parity.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ids", "values", "python", "saved_model", "probe"]
    assert "HuggingFace did not answer at the export: no torch here" in lines


def test_a_bound_of_ones_own(rest: str, path: Path, capsys) -> None:
    assert main([rest, "--certificate", str(path), "--bound", "1e-30"]) == 1
    assert "bound 1e-30: MISSED" in capsys.readouterr().out


def shift(probe: dict, source: str) -> None:
    probe[source]["outputs"]["logits"][1] += 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda probe: shift(probe, "python"), "compared with python, logits is off by"),
        (lambda probe: shift(probe, "saved_model"), "compared with saved_model, logits is off by"),
        (lambda probe: shift(probe, "huggingface"), "compared with huggingface, logits is off by"),
        (
            lambda probe: probe["python"]["outputs"].update(label="other"),
            "compared with python, label has 1 other values",
        ),
        (
            lambda probe: probe["huggingface"]["token_ids"].append(3),
            "compared with huggingface, the ids of 1 of 32 probes differ",
        ),
        (
            lambda probe: probe["inputs"].update(text_a="the good cat"),
            "compared with python, the ids of 1 of 32 probes differ",
        ),
    ],
)
def test_another_certificate_is_missed(
    rest: str, tampered: Callable, change: Callable, message: str, capsys
) -> None:
    assert main([rest, "--certificate", tampered(change)]) == 1
    *rows, summary = capsys.readouterr().out.splitlines()
    assert f"MISSED; {message}" in summary
    differing = [number for number, row in enumerate(rows[1:]) if "DIFFER" in row]
    assert differing in ([], [5])
    assert (differing == []) == ("is off by" in message)


def test_another_model_is_bad_input_or_missed(
    rest: str, path: Path, tmp_path: Path, capsys
) -> None:
    content = json.loads((path / PLACE).read_text(encoding="utf-8"))
    for probe in content["probes"]:
        probe["inputs"] = {"text": "a"}
    (tmp_path / "parity.json").write_text(json.dumps(content), encoding="utf-8")
    assert main([rest, "--certificate", str(tmp_path / "parity.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/missing"], "missing: no SavedModel, no folder of its versions, and no run"),
        (["http://127.0.0.1:9/v1/models/pairs"], "by --certificate"),
        (["http://127.0.0.1:9/v1/models/pairs", "--certificate", "{path}"], "no answer from"),
        (["grpc://127.0.0.1:9/pairs", "--certificate", "{path}"], "no answer from 127.0.0.1:9"),
        (["http://127.0.0.1:9/pairs", "--certificate", "{path}"], "an address is http://HOST"),
        (["ftp://127.0.0.1:9/pairs", "--certificate", "{path}"], "an address is http://HOST"),
        (["grpc://127.0.0.1:9", "--certificate", "{path}"], "an address is http://HOST"),
        (["{path}", "--certificate", "{tmp}/none.json"], "no SavedModel"),
        (["{path}", "--certificate", "{path}/saved_model.pb"], "saved_model.pb: not UTF-8"),
        (["{path}/parity.json", "--certificate", "{path}"], "no SavedModel"),
    ],
)
def test_bad_input_is_one_line(
    path: Path, tmp_path: Path, words: list[str], message: str, capsys
) -> None:
    arguments = [word.format(path=path, tmp=tmp_path) for word in words]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("kbert.verify: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_export_without_a_certificate(path: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "3").mkdir()
    shutil.copy(path / "saved_model.pb", tmp_path / "3")
    assert main([str(tmp_path)]) == 2
    assert "assets.extra/parity.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["a", "--bound", "-1"], ["a", "--bound", "nan"], ["a", "b"]])
def test_wrong_flags(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_is_quick() -> None:
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "kbert.verify", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0
    assert "grpc://HOST:PORT/NAME" in process.stdout
    assert time.monotonic() - began < 5  # a second where nothing else runs; TensorFlow takes more
