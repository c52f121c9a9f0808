"""A student and its teacher, from the loss to the exported run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from parity import assert_same_outputs

import kbert
import train
from kbert import losses
from kbert.batches import evaluation_batches, training_batches
from kbert.config import STUDENT, parse
from kbert.distillation import Teacher, beside_teacher, kept_layers
from kbert.errors import InputError
from kbert.experiment import Experiment, Materials
from kbert.loading import load_model
from kbert.tasks.distilled import Distilled
from kbert.trained_part import trained_part
from kbert.training import Interrupted

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [1.0, 1.0, -4.0]], np.float32)
THEIRS = np.array([[1.0, 0.0, 0.25], [-1.0, 5.0, 0.0], [-3.0, 2.0, 1.0]], np.float32)
LABELS = np.array([0, 2, 0])
LABELLED = np.array([1, 1, 0])
"""The last row has no label."""


def in_torch(labels_loss: torch.Tensor, teacher_loss: torch.Tensor, alpha: float) -> np.ndarray:
    """The mean over three rows of which the last has no label."""
    labelled = torch.tensor(LABELLED)
    return ((1 - alpha) * labels_loss * labelled + alpha * teacher_loss).mean().numpy()


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.9, 1.0), (0.0, 4.0), (1.0, 0.5)])
def test_loss_of_classes(alpha: float, temperature: float) -> None:
    ours, theirs = torch.tensor(LOGITS), torch.tensor(THEIRS)
    divergence = torch.nn.functional.kl_div(
        torch.log_softmax(ours / temperature, -1),
        torch.softmax(theirs / temperature, -1),
        reduction="none",
    ).sum(-1)
    expected = in_torch(
        torch.nn.functional.cross_entropy(ours, torch.tensor(LABELS), reduction="none"),
        temperature**2 * divergence,
        alpha,
    )
    loss = losses.DistillationLoss(
        keras.losses.CategoricalCrossentropy(from_logits=True),
        losses.SoftenedCrossEntropy(temperature),
        alpha=alpha,
    )
    found = loss(
        losses.join_distilled(np.eye(3, dtype="float32")[LABELS], THEIRS, LABELLED), LOGITS
    )
    assert_same_outputs(found, expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_of_any_number_of_classes(temperature: float) -> None:
    gold = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]], np.float32)
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    ours, theirs = torch.tensor(LOGITS), torch.tensor(THEIRS)
    softened = binary(ours / temperature, torch.sigmoid(theirs / temperature), reduction="none")
    of_labels = binary(ours, torch.tensor(gold), reduction="none").mean(-1)
    expected = in_torch(of_labels, temperature**2 * softened.mean(-1), 0.7)
    loss = losses.DistillationLoss(
        losses.multi_label(), losses.SoftenedBinaryCrossEntropy(temperature), alpha=0.7
    )
    assert_same_outputs(loss(losses.join_distilled(gold, THEIRS, LABELLED), LOGITS), expected)


def test_loss_of_numbers() -> None:
    gold, ours, theirs = (of[:, :1] for of in (np.float32(LABELS[:, None]), LOGITS, THEIRS))
    squares = [(torch.tensor(ours) - torch.tensor(of)).square().mean(-1) for of in (gold, theirs)]
    loss = losses.DistillationLoss(losses.regression(), losses.regression(), alpha=0.25)
    found = loss(losses.join_distilled(gold, theirs, LABELLED), ours)
    assert_same_outputs(found, in_torch(*squares, 0.25))


@pytest.fixture(scope="module")
def teacher(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> Path:
    """A finished run on the tiny file."""
    folder = tmp_path_factory.mktemp("teacher")
    words = [
        "--data.train",
        tiny_csv,
        "--data.max_length",
        12,
        "--data.cache_dir",
        folder / "cache",
    ]
    words += ["--model.checkpoint", tiny_checkpoint, "--train.batch_size", 8, "--train.epochs", 3]
    words += [
        "--train.learning_rate",
        3e-3,
        "--export.enabled",
        "false",
        "--output",
        folder / "run",
    ]
    words += ["--monitor.tensorboard", "false"]
    assert train.main([str(word) for word in words]) == 0
    return folder / "run"


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    path = tmp_path / "more.txt"
    path.write_text("the cat ran .\ngood dogs\na bad bad cat sat\n", encoding="utf-8")
    return path


@pytest.fixture
def student(tiny_options: list[str], teacher: Path) -> Callable[..., list[str]]:
    """Words of a command line for a student of the teacher."""

    def words_of(*more: object) -> list[str]:
        return [*tiny_options, "--distill.teacher", str(teacher), *map(str, more)]

    return words_of


def experiment_of(words: list[str]) -> Experiment:
    config = parse(words)
    return Materials(config).experiment(config)


def without_checkpoint(words: list[str]) -> list[str]:
    place = words.index("--model.checkpoint")
    return words[:place] + words[place + 2 :]


def test_teacher_speaks_once_of_each_row(
    student, teacher: Path, unlabelled: Path, tmp_path
) -> None:
    experiment = experiment_of(student("--distill.unlabelled", unlabelled))
    part = trained_part(experiment)
    rows = part.splits["train"]
    assert len(rows) == len(experiment.splits["train"]) + 3
    files = sorted((tmp_path / "cache" / "teachers").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    trained_part(experiment)
    trained_part(experiment_of(student("--distill.unlabelled", unlabelled, "--train.seed", "0")))
    assert [file.stat().st_mtime_ns for file in files] == times
    assert sorted((tmp_path / "cache" / "teachers").iterdir()) == files and len(files) == 2
    said = rows.targets[-2].gather(rows.rows)[0]
    texts = ["the cat ran .", "good dogs", "a bad bad cat sat"]
    asked = kbert.load(teacher).predict(texts)
    np.testing.assert_allclose(said[-3:], [answer["logits"] for answer in asked], atol=1e-5)
    assert rows.targets[-1].gather(rows.rows)[0].tolist() == [1] * (len(rows) - 3) + [0] * 3


def test_batches_of_a_student(student, unlabelled: Path) -> None:
    """Every row comes once, with its label if it has one, and with what the teacher says."""
    words = student("--distill.unlabelled", unlabelled, "--task.class_weights", "balanced")
    part = trained_part(experiment_of(words))
    rows, plain = part.splits["train"], part.task.measured
    batches = list(training_batches(rows, part.task, batch_size=8, seed=0, epoch=0))
    targets = np.concatenate([batch[1].numpy() for batch in batches])
    weights = np.concatenate([batch[2].numpy() for batch in batches])
    assert targets.shape == (len(rows), 5)
    is_labelled = targets[:, 4] == 1
    assert (~is_labelled).sum() == 3
    assert (weights[~is_labelled] == 1).all()
    labels = targets[is_labelled, :2].argmax(axis=1)
    np.testing.assert_array_equal(weights[is_labelled], plain.class_weights[labels])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(rows.labels[:-3]))
    said = rows.targets[-2].gather(rows.rows)[0]
    np.testing.assert_array_equal(np.sort(targets[:, 2:4], axis=0), np.sort(said, axis=0))


def test_without_weight_the_teacher_changes_nothing(student, tiny_options) -> None:
    distilled = trained_part(experiment_of(student("--distill.alpha", "0")))
    plain = experiment_of(tiny_options)
    found = []
    for experiment in (distilled, plain):
        model = experiment.new_model()
        progress = experiment.train(model, folder=None, callbacks=[])
        found.append((progress.history[-1], model.get_weights()))
    for name, value in found[1][0].items():
        assert found[0][0][name] == pytest.approx(value, abs=1e-6)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_metrics_are_of_labelled_rows(student, unlabelled: Path) -> None:
    part = trained_part(experiment_of(student("--distill.unlabelled", unlabelled)))
    assert isinstance(part.task, Distilled)
    accuracy, f1 = part.task.metrics()["metrics"]
    assert (accuracy.name, f1.name) == ("accuracy", "f1_macro")
    labels = losses.join_distilled(np.eye(3, dtype="float32")[LABELS], THEIRS, LABELLED)
    accuracy.update_state(labels, LOGITS)
    assert float(accuracy.result()) == 0.5
    accuracy.reset_state()
    assert float(accuracy.result()) == 0


class StopsAt(keras.callbacks.Callback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            raise Interrupted


def test_a_stopped_run_ends_with_the_same_bytes(student, unlabelled: Path, tmp_path: Path) -> None:
    words = student("--distill.unlabelled", unlabelled, "--train.checkpoint_steps", "3")

    def weights(folder: Path, *callbacks: keras.callbacks.Callback) -> list[np.ndarray]:
        experiment = trained_part(experiment_of(words))
        model = experiment.new_model()
        experiment.train(model, folder=folder, callbacks=callbacks)
        return model.get_weights()

    straight = weights(tmp_path / "straight")
    with pytest.raises(Interrupted):
        weights(tmp_path / "stopped", StopsAt(7))
    shutil.rmtree(tmp_path / "cache" / "teachers")  # what the teacher says is found again
    for ours, theirs in zip(weights(tmp_path / "stopped"), straight, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_layers_of_the_teacher(student, teacher: Path, unlabelled: Path, tmp_path: Path) -> None:
    """The whole way: a student of its teacher's first block, with rows that have no label."""
    words = without_checkpoint(student("--distill.layers", 1, "--distill.unlabelled", unlabelled))
    words += ["--distill.alpha", "0.9", "--train.epochs", "1"]
    assert train.main(words) == 0
    folder = tmp_path / "run"
    whole = Teacher(parse(words)).model()
    begun = load_model(folder / STUDENT)
    theirs = {variable.path: variable.numpy() for variable in whole.weights}
    assert len(begun.weights) < len(theirs)
    for variable in begun.weights:
        np.testing.assert_array_equal(variable.numpy(), theirs[variable.path], variable.path)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    of_teacher = json.loads((teacher / "metrics.json").read_text(encoding="utf-8"))
    for split in ("validation", "test"):
        found = metrics[split]["teacher"]
        assert found["accuracy"] == of_teacher[split]["accuracy"]
        assert 0 <= found["agreement"] <= 1
    moved = shutil.move(folder, tmp_path / "moved")
    shutil.rmtree(moved / "export")
    assert len(kbert.load(moved).predict(["good cat"])) == 1  # of its weights
    lineage = next((tmp_path / "moved").rglob("lineage.json"), None)
    assert lineage is None


def test_blocks_are_spread_evenly() -> None:
    assert kept_layers(6, of=12) == [0, 2, 4, 7, 9, 11]  # DistilBERT's
    assert kept_layers(3, of=6) == [0, 2, 5]
    assert kept_layers(1, of=6) == [0]
    assert kept_layers(4, of=4) == [0, 1, 2, 3]
