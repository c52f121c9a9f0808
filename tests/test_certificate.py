"""parity.json: written, read back, found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.answers import Answers
from kbert.certificate import (
    PLACE,
    Certificate,
    find_certificate,
    find_saved_model,
    read_certificate,
    write_certificate,
)
from kbert.errors import InputError

IDS = {"token_ids": [[2, 5, 3], [2, 3]], "segment_ids": [[0, 0, 0], [0, 0]]}


def certificate(probabilities: np.ndarray, texts: tuple[str, str] = ("a", "好")) -> Certificate:
    outputs = {
        "label": np.array(["yes", "好"], object),
        "label_index": np.array([1, 0], np.int32),
        "probabilities": probabilities,
    }
    answers = Answers(IDS, outputs)
    return Certificate(
        signature="serving_default",
        bound=1e-5,
        versions={"keras": "3"},
        inputs={"text": list(texts)},
        ranked_by={"label": "probabilities"},
        answers={"python": answers, "saved_model": answers, "huggingface": answers},
        huggingface="BertForSequenceClassification",
    )


def assert_equal(ours: Certificate, theirs: Certificate) -> None:
    assert list(ours.answers) == list(theirs.answers)
    for source, answers in theirs.answers.items():
        assert ours.answers[source].ids == answers.ids
        assert set(ours.answers[source].outputs) == set(answers.outputs)
        for name, array in answers.outputs.items():
            assert ours.answers[source].outputs[name].dtype == array.dtype
            np.testing.assert_array_equal(ours.answers[source].outputs[name], array)
    assert dataclasses.replace(ours, answers={}) == dataclasses.replace(theirs, answers={})


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(FLOATS, min_size=4, max_size=4), TEXTS, TEXTS)
def test_reads_back_bit_for_bit(tmp_path_factory, floats, first: str, second: str) -> None:
    path = tmp_path_factory.mktemp("certificate") / PLACE
    array = np.array(floats, np.float32).reshape(2, 2)
    write_certificate(path, certificate(array, (first, second)))
    assert_equal(read_certificate(path), certificate(array, (first, second)))
    again = path.read_bytes()
    write_certificate(path, read_certificate(path))
    assert path.read_bytes() == again


def test_content(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    written = certificate(np.array([[0.1, 0.9], [0.5, 0.5]], np.float32))
    served = Answers(IDS, {**written.answers["python"].outputs})
    served.outputs["probabilities"] = np.array([[0.1, 0.9], [0.5, 0.4375]], np.float32)
    written.answers["saved_model"] = served
    write_certificate(path, written)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["largest_difference"] == {"python": 0.0625, "huggingface": 0.0625}
    assert content["huggingface_missing"] is None
    assert content["outputs"]["label"] == {
        "type": "string",
        "ranked_by": "probabilities",
        "other_values": {"python": 0, "huggingface": 0},
    }
    assert content["outputs"]["probabilities"]["type"] == "float32"
    assert content["probes"][0] == {
        "inputs": {"text": "a"},
        **{
            source: {
                "token_ids": [2, 5, 3],
                "segment_ids": [0, 0, 0],
                "outputs": {"label": "yes", "label_index": 1, "probabilities": [0.1, 0.9]},
            }
            for source in ("python", "saved_model", "huggingface")
        },
    }
    assert "好" in path.read_text(encoding="utf-8")
    assert written.problem().startswith("probabilities is off by 6.25e-02")


def test_without_huggingface(tmp_path: Path) -> None:
    written = certificate(np.array([[0.1, 0.9], [0.5, 0.5]], np.float32))
    del written.answers["huggingface"]
    written = dataclasses.replace(written, huggingface="no torch")
    write_certificate(tmp_path / "parity.json", written)
    content = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert content["huggingface"] is None
    assert content["huggingface_missing"] == "no torch"
    assert_equal(read_certificate(tmp_path / "parity.json"), written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a certificate of format 1, but None"),
        ('{"format": 2}', "not a certificate of format 1, but 2"),
        ('{"format": 1}', "damaged (KeyError: 'probes')"),
        (
            '{"format": 1, "probes": [], "outputs": {}, "signature": 1, "bound": 1, "versions": 0}',
            "damaged (IndexError: ",
        ),
    ],
)
def test_what_is_no_certificate_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "parity.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_certificate(tmp_path / "parity.json")
    assert str(caught.value).startswith(f"{tmp_path / 'parity.json'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    write_certificate(path, certificate(np.ones((2, 2), np.float32)))
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["probes"][1]["python"]["outputs"]["label"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        read_certificate(path)
    with pytest.raises(InputError, match="No such file"):
        read_certificate(tmp_path / "none.json")


def test_newest_version_of_a_base_folder_and_of_a_run(tmp_path: Path) -> None:
    base = tmp_path / "run" / "export" / "news"
    for name in ("2", "10", "9", ".11.beside", "12", "１３"):
        (base / name).mkdir(parents=True)
        if name != "12":
            (base / name / "saved_model.pb").touch()
    newest = base / "10"
    assert find_saved_model(newest) == newest
    assert find_saved_model(base / "9") == base / "9"
    assert find_saved_model(base) == newest
    assert find_saved_model(tmp_path / "run") == newest
    with pytest.raises(InputError, match="parity.json is missing"):
        find_certificate(tmp_path / "run")
    (newest / PLACE).parent.mkdir()
    (newest / PLACE).touch()
    assert find_certificate(base) == find_certificate(newest / PLACE) == newest / PLACE


def test_no_model_or_several_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no SavedModel"):
        find_saved_model(tmp_path / "missing")
    for name in ("a", "b"):
        (tmp_path / "export" / name / "1").mkdir(parents=True)
        (tmp_path / "export" / name / "1" / "saved_model.pb").touch()
    with pytest.raises(InputError, match="has 2 exports; name one, such as .*a/1"):
        find_saved_model(tmp_path)
