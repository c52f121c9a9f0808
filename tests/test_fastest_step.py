"""What train.precision auto and train.compile auto become."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from kbert import fastest_step as module
from kbert import run
from kbert.config import EncoderConfig, TrainOptions, as_yaml, parse
from kbert.fastest_step import fastest_step, parts_of

MODEL = EncoderConfig(1000, 32, 4, 4, 64)
ASKED = [("auto", "auto"), ("float32", "auto"), ("auto", "graph"), ("auto", "auto")]


@pytest.fixture(autouse=True)
def threads_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test before this one has asked TensorFlow for."""
    monkeypatch.setattr(module, "has_one_thread_a_kernel", lambda: False)


def test_with_one_thread_a_kernel_a_step_is_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_one_thread_a_kernel", lambda: True)
    monkeypatch.setattr(module, "_seconds", lambda *_, **__: 1.0)
    for tokens in (1e6, 1e12):
        found = fastest_step(TrainOptions(), MODEL, tokens=tokens, length=20)
        assert (found.precision, found.compile) == ("float32", "parallel")


@pytest.mark.parametrize(("precision", "compile"), ASKED)
def test_a_short_training_is_not_measured(precision: str, compile: str, caplog) -> None:
    options = TrainOptions(precision=precision, compile=compile)
    found = fastest_step(options, MODEL, tokens=1e6, length=20)
    assert (found.precision, found.compile) == ("float32", "graph")
    assert not caplog.records


@pytest.mark.parametrize(("precision", "compile"), ASKED)
def test_what_is_auto_is_measured(
    precision: str, compile: str, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    measured = []
    seconds = module._seconds

    def spied(config, *way, **sizes):
        measured.append(way)
        assert config.num_layers == 1
        assert sizes == {"rows": 16, "length": 20}
        assert seconds(config, *way, **sizes) > 0
        return {"float32": 2.0, "bfloat16_products": 1.5}[way[0]] * (1 + (way[1] == "graph"))

    monkeypatch.setattr(module, "_seconds", spied)
    options = TrainOptions(precision=precision, compile=compile, batch_size=16)
    found = fastest_step(options, MODEL, tokens=1e9, length=19.6)
    ways = {"precision": precision, "compile": compile}
    wanted = {"precision": "bfloat16_products", "compile": "parallel"}
    for name, asked in ways.items():
        assert getattr(found, name) == (wanted[name] if asked == "auto" else asked)
    assert len(measured) == len(set(measured)) == 2 ** list(ways.values()).count("auto")
    assert f"{found.precision} {found.compile} it is" in caplog.text


def test_what_is_hardly_faster_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module,
        "_seconds",
        lambda config, precision, *_, **__: 1.0 - 0.04 * (precision != "float32"),
    )
    found = fastest_step(TrainOptions(), MODEL, tokens=1e9, length=20)
    assert (found.precision, found.compile) == ("float32", "graph")


def test_what_was_asked_for_stays() -> None:
    options = TrainOptions(precision="bfloat16", compile="xla")
    assert fastest_step(options, MODEL, tokens=1e12, length=20) is options


def test_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    for batch_size, parts in ((1, 1), (15, 1), (16, 2), (32, 4), (500, 4)):
        options = TrainOptions(batch_size=batch_size, compile="parallel")
        assert parts_of(options) == parts
        assert parts_of(dataclasses.replace(options, compile="graph")) == 1


def test_a_run_goes_on_as_it_was_measured(tiny_options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = parse(tiny_options)
    assert run._as_begun(folder, config) == config
    measured = dataclasses.replace(config.train, precision="bfloat16_products", compile="parallel")
    folder.mkdir()
    text = as_yaml(dataclasses.replace(config, train=measured))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    assert run._as_begun(folder, config).train == measured
    asked = parse([*tiny_options, "--train.precision", "float32"])
    assert run._as_begun(folder, asked).train.precision == "float32"
    assert run._as_begun(folder, asked).train.compile == "parallel"
    for spoilt in ("", "[", "train: 3", "\0"):
        (folder / "config.yaml").write_text(spoilt, encoding="utf-8")
        assert run._as_begun(folder, config) == config


@pytest.mark.parametrize(("xla", "compile"), [("true", "xla"), ("false", "graph")])
def test_a_file_of_an_older_kbert(
    tiny_options: list[str], tmp_path: Path, xla: str, compile: str
) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(f"train:\n  xla: {xla}\n", encoding="utf-8")
    assert parse(["--config", str(file), *tiny_options]).train.compile == compile
