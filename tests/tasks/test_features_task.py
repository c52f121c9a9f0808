"""A frozen encoder: features once, a linear classifier on them, and one model of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

import train
from kbert.batches import evaluation_batches, evaluation_order
from kbert.config import parse
from kbert.errors import InputError
from kbert.evaluation import collect
from kbert.experiment import Experiment, Materials
from kbert.logistic import fit_logistic
from kbert.trained_part import trained_part
from kbert.training import Progress


@pytest.fixture
def make(tiny_options: list[str]) -> Callable[..., Experiment]:
    def make_experiment(*words: str) -> Experiment:
        config = parse([*tiny_options, "--task", "features", *words])
        return Materials(config).experiment(config)

    return make_experiment


def features_of(experiment: Experiment, name: str) -> np.ndarray:
    split = experiment.splits[name]
    return split.segments[0].gather(split.rows)[0]


def run(experiment: Experiment, folder: Path | None = None, until: int | None = None):
    model = experiment.new_model()
    return model, experiment.train(model, folder=folder, callbacks=[], until_epoch=until)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_are_pooled_states(make, pooling: str) -> None:
    experiment = make("--task.pooling", pooling, "--data.max_length", "8")
    assert (experiment.splits["train"].lengths > 6).any()  # some are cut
    found = features_of(trained_part(experiment), "train")
    split = experiment.splits["train"]
    encoder = experiment.new_model().get_layer("encoder")
    expected = []
    for inputs, _, _ in evaluation_batches(split, experiment.task, batch_size=1):
        states = encoder(inputs)["sequence_output"][0].numpy()  # of one text: without padding
        expected.append(states[0] if pooling == "cls" else states.mean(axis=0))
    order = np.concatenate(evaluation_order(split, experiment.task, batch_size=1))
    np.testing.assert_allclose(found[order], np.stack(expected), atol=1e-5)


def test_features_are_computed_once(make, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "features"
    first = trained_part(make())
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 3
    again = trained_part(make("--train.epochs", "5", "--train.seed", "0"))
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    np.testing.assert_array_equal(features_of(first, "test"), features_of(again, "test"))
    trained_part(make("--task.pooling", "cls"))
    trained_part(make("--data.max_length", "9"))
    assert len(list(cache.iterdir())) == 9


def test_the_whole_model_answers_as_its_two_parts(make) -> None:
    experiment = make("--train.learning_rate", "0.1")
    before = [weight.numpy() for weight in experiment.new_model().get_layer("encoder").weights]
    part = trained_part(experiment)
    classifier, progress = run(part)
    assert progress.epoch == 2 and progress.elapsed >= part.seconds
    whole = experiment.exact_model(classifier)
    assert not whole.get_layer("encoder").trainable_weights
    for weight, old in zip(whole.get_layer("encoder").weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    logits = collect(whole, experiment.task, experiment.splits["test"])["logits"]
    of_parts = collect(classifier, part.task, part.splits["test"])["logits"]
    np.testing.assert_allclose(logits, of_parts, atol=1e-5)
    assert np.ptp(logits) > 0.01


def test_a_training_that_was_stopped_goes_on(make, tmp_path: Path) -> None:
    words = ("--train.learning_rate", "0.1", "--train.epochs", "3")
    straight, _ = run(trained_part(make(*words)))
    _, half = run(trained_part(make(*words)), tmp_path / "checkpoints", until=1)
    assert half.epoch == 1
    resumed, progress = run(trained_part(make(*words)), tmp_path / "checkpoints")
    assert progress.epoch == 3
    for one, other in zip(resumed.get_layer("classifier").weights,
                          straight.get_layer("classifier").weights, strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, other)


def test_scikit_learns_classifier(make) -> None:
    part = trained_part(make("--task.classifier", "scikit-learn"))
    model, progress = run(part)
    assert isinstance(progress, Progress) and progress.epoch == 1
    labels = {name: split.labels for name, split in part.splits.items()}
    losses = {}
    for strength in (0.1, 1.0, 10.0, 100.0):
        found = LogisticRegression(C=strength, max_iter=1000)
        found.fit(features_of(part, "train"), labels["train"])
        chances = found.predict_log_proba(features_of(part, "validation"))
        loss = -chances[np.arange(len(chances)), labels["validation"]].mean()
        losses[loss] = found
    best = losses[min(losses)]
    ours = collect(model, part.task, part.splits["test"])["probabilities"]
    theirs = best.predict_proba(features_of(part, "test"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert progress.history[0]["val_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_scikit_learn_smooths_no_labels(make) -> None:
    with pytest.raises(InputError, match="task.label_smoothing: scikit-learn's classifier"):
        make("--task.classifier", "scikit-learn", "--task.label_smoothing", "0.1")


def test_classes_without_rows_are_unlikely() -> None:
    generator = np.random.default_rng(0)
    labels = np.array([0, 2, 3] * 10)
    features = generator.normal(size=(30, 4)) + labels[:, None]
    kernel, bias = fit_logistic(features, labels, class_weights=np.ones(5), validation=None)
    model = LogisticRegression(C=1.0, max_iter=1000).fit(features, labels)
    logits = features @ kernel + bias
    chances = tf.nn.softmax(logits[:, [0, 2, 3]]).numpy()
    np.testing.assert_allclose(chances, model.predict_proba(features), atol=1e-5)
    assert (bias[[1, 4]] < bias[[0, 2, 3]].min() - 3).all() and not kernel[:, [1, 4]].any()
    kernel, bias = fit_logistic(features, labels * 0, class_weights=np.ones(2), validation=None)
    assert not kernel.any() and bias.argmax() == 0


def test_transformers_has_no_such_model(tiny_options: list[str], capsys) -> None:
    assert train.main([*tiny_options, "--task", "features", "--export.huggingface", "true"]) == 2
    assert "export.huggingface: transformers has no model of this task" in capsys.readouterr().err
