"""Classification: inputs, weights of classes, scores, predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kbert.config import parse
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks.classification import Classification
from kbert.tasks.inputs import input_names
from kbert.tasks.task import Gold, Learned, Rows


@pytest.fixture
def make(tiny_options: list[str], tiny_checkpoint: Path):
    def make_task(*words: str, labels: tuple[str, ...] = ("no", "yes")) -> Classification:
        config = parse([*tiny_options, *words])
        tokenizer = tokenizer_from_files(tiny_checkpoint)
        return Classification(config, tokenizer, Learned(labels, np.array([3, 1])))

    return make_task


def test_names_of_inputs() -> None:
    assert input_names(1) == ("text",)
    assert input_names(3) == ("text_a", "text_b", "text_c")


def test_one_column_is_one_segment(make) -> None:
    task = make()
    (segment,) = task.encode([tf.constant(["the cats sat", ""])])
    assert segment.to_list() == [[5, 6, 12, 8], []]
    inputs, targets, weights = task.batch(
        Rows([segment], tf.constant([1, 0]), []), tf.constant([0, 0])
    )
    assert inputs["token_ids"].numpy().tolist() == [[2, 5, 6, 12, 8, 3], [2, 3, 0, 0, 0, 0]]
    assert targets.numpy().tolist() == [[0, 1], [1, 0]]
    assert weights.numpy().tolist() == [1, 1]


def test_further_columns_are_joined_to_the_second(make) -> None:
    task = make("--data.text_column", "[a, b, c]")
    segments = task.encode([tf.constant([text]) for text in ("the cat", "sat", "dog .")])
    assert [segment.to_list() for segment in segments] == [[[5, 6]], [[8, 7, 16]]]
    inputs, _, _ = task.batch(Rows(segments, tf.constant([0]), []), tf.constant([0, 0]))
    assert inputs["token_ids"].numpy().tolist() == [[2, 5, 6, 3, 8, 7, 16, 3]]
    assert inputs["segment_ids"].numpy().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_balanced_weights_give_classes_equal_sums(make) -> None:
    task = make("--task.class_weights", "balanced")
    np.testing.assert_allclose(task.class_weights * [3, 1], [2, 2])


def test_loss_is_torchs(make) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    labels = np.array([0, 1, 1, 0, 1])
    for smoothing in (0.0, 0.1):
        task = make("--task.class_weights", "balanced", "--task.label_smoothing", str(smoothing))
        targets = np.eye(2, dtype="float32")[labels]
        ours = task.loss()(targets, logits, sample_weight=task.class_weights[labels])
        if smoothing == 0:  # torch weighs smoothed targets class by class
            theirs = torch.nn.functional.cross_entropy(
                torch.tensor(logits), torch.tensor(labels), weight=torch.tensor(task.class_weights)
            )
            assert float(ours) == pytest.approx(float(theirs), abs=1e-6)
        plain = task.loss()(targets, logits)
        theirs = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing
        )
        assert float(plain) == pytest.approx(float(theirs), abs=1e-6)


def test_predictions_have_nine_digits(make) -> None:
    task = make()
    outputs = {
        "label_index": np.array([1], np.int32),
        "probabilities": np.array([[0.1, 0.9]], np.float32),
    }
    columns = task.predictions(outputs, Gold(None, lambda columns: {}))
    assert columns == {"prediction": ["yes"], "p_no": ["0.100000001"], "p_yes": ["0.899999976"]}


def test_nothing_is_scored_without_labels(make) -> None:
    assert make().score({}, Gold(None, lambda columns: {})) == {}


def test_requests_have_the_columns(make) -> None:
    task = make("--data.text_column", "[a, b]")
    assert task.requests([["the cat", "sat"], ["dog", ""]]) == {
        "text_a": ["the cat", "sat"],
        "text_b": ["dog", ""],
    }
