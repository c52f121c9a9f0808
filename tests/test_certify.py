"""What an export is compared with: Python, the SavedModel in a fresh process, HuggingFace."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kbert import certify as certify_module
from kbert import huggingface
from kbert.answers import Answers
from kbert.certificate import PLACE, Certificate, read_certificate
from kbert.certify import PROBES, ExportError, certify
from kbert.tasks.task import Signature

BertTokenizerFast = pytest.importorskip("transformers").BertTokenizerFast
pytest.importorskip("torch")


@pytest.fixture
def certificate(exported_pairs) -> Certificate:
    return read_certificate(exported_pairs[2] / PLACE)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, certificate: Certificate) -> None:
    """The SavedModel's answers are those of its certificate; no process is started."""
    found = certificate.answers["saved_model"]
    monkeypatch.setattr(certify_module, "saved_model_answers", lambda *_, **__: found)


def test_pairs_are_certified_by_all_three(exported_pairs, certificate: Certificate) -> None:
    model, task, path = exported_pairs
    content = json.loads((path / PLACE).read_text(encoding="utf-8"))
    assert content["huggingface"] == "BertForSequenceClassification"
    assert set(content["versions"]) == {
        "kbert", "keras", "tensorflow", "tensorflow_text", "torch", "transformers",
    }  # fmt: skip
    assert set(content["largest_difference"]) == {"python", "huggingface"}
    assert all(0 <= value <= 1e-5 for value in content["largest_difference"].values())
    assert list(certificate.inputs) == ["text_a", "text_b"]
    assert [sorted(texts) for texts in certificate.inputs.values()] == [sorted(PROBES)] * 2
    assert list(certificate.answers) == ["python", "saved_model", "huggingface"]
    texts = [tf.constant(texts) for texts in certificate.inputs.values()]
    again = task.signatures(model)["serving_default"].function(*texts)
    for answers in certificate.answers.values():
        np.testing.assert_allclose(
            answers.outputs["probabilities"], again["probabilities"], 0, 1e-5
        )
        assert set(answers.outputs["label"]) <= {"no", "yes", "好"}


def test_ids_are_those_of_the_reference_tokenizer(
    certificate: Certificate, tiny_checkpoint: Path
) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(tiny_checkpoint)
    texts = certificate.inputs.values()
    expected = tokenizer(*texts, truncation="longest_first", max_length=20)
    assert max(map(len, expected["input_ids"])) == 20  # some are truncated
    assert [2, 3, 3] in expected["input_ids"]  # an empty second text is one
    for answers in certificate.answers.values():
        assert answers.ids["token_ids"] == expected["input_ids"]
        assert answers.ids["segment_ids"] == expected["token_type_ids"]


def test_another_answer_in_python_is_an_error(
    exported_pairs, served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task, path = exported_pairs
    right = task.signatures(model)

    def wrong(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = right["serving_default"].function(*texts)
        return {**answers, "probabilities": answers["probabilities"] + 1e-3}

    signatures = {**right, "serving_default": Signature(task.inputs.names, wrong)}
    monkeypatch.setattr(task, "signatures", lambda _: signatures)
    monkeypatch.setattr(certify_module, "_huggingface", lambda *_: (None, "not asked", {}))
    with pytest.raises(ExportError, match="probabilities is off by 1.00e-03.* in Python"):
        certify(path, model, task)


def test_another_answer_of_huggingface_is_an_error(
    exported_pairs, served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task, path = exported_pairs
    tensors = huggingface.named_tensors

    def wrong(model):
        found = tensors(model)
        return {**found, "classifier.bias": found["classifier.bias"] + np.float32([0, 0, 1e-2])}

    monkeypatch.setattr(huggingface, "named_tensors", wrong)
    with pytest.raises(ExportError, match="probabilities is off by .* with HuggingFace"):
        certify(path, model, task)
    assert not list(path.parent.glob(".parity.*"))  # no checkpoint is left


def test_other_ids_of_huggingface_are_an_error(certificate: Certificate) -> None:
    found = certificate.answers["huggingface"]
    ids = {**found.ids, "token_ids": [[2, 3], *found.ids["token_ids"][1:]]}
    answers = {**certificate.answers, "huggingface": Answers(ids, found.outputs)}
    wrong = dataclasses.replace(certificate, answers=answers)
    assert wrong.problem() == "the ids of 1 of 32 probes differ, compared with HuggingFace"


@pytest.mark.usefixtures("own_processes")
def test_without_torch_the_reason_is_written(
    exported_pairs, served: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task, path = exported_pairs
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = certify(path, model, task)
    assert list(found.answers) == ["python", "saved_model"]
    assert found.huggingface == "ModuleNotFoundError: No module named torch"
    assert "torch" not in found.versions


def test_what_does_not_load_is_named(exported_pairs, tmp_path: Path) -> None:
    model, task, _ = exported_pairs
    with pytest.raises(ExportError, match="does not load in a session: .*OSError"):
        certify(tmp_path, model, task)


def test_masked_words_are_certified(exported_words) -> None:
    _, task, path = exported_words
    certificate = read_certificate(path / PLACE)
    assert certificate.huggingface == "BertForMaskedLM"
    outputs = certificate.answers["huggingface"].outputs
    masked = [text.count("[MASK]") for text in PROBES]
    assert (outputs["token_id"] >= 0).any(axis=-1).sum(axis=-1).tolist() == masked
    assert outputs["score"].shape == outputs["token"].shape == (32, 2, 5)
    assert (outputs["score"][masked.index(2)] > 1e-3).any(axis=-1).all()
    vocabulary = np.array([*task.tokenizer.vocabulary, ""], object)
    assert (vocabulary[outputs["token_id"]] == outputs["token"]).all()
