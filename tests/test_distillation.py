"""A student and its teacher, from the loss to the exported run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from materials import finish_untrained
from parity import assert_same_outputs

import kbert
import train
from kbert import losses
from kbert.batches import training_batches
from kbert.config import STUDENT, Config, DistillOptions, parse
from kbert.distillation import Teacher, beside_teacher, kept_layers, shallower
from kbert.errors import InputError
from kbert.evaluation import collect
from kbert.experiment import Experiment, Materials
from kbert.lineage import data_digests, lineage
from kbert.loading import load_model
from kbert.search_space import combinations, read_space
from kbert.tasks.distilled import Distilled
from kbert.trained_part import trained_part
from kbert.training import Interrupted
from kbert.trials import Objective
from kbert.tuner import TaskHyperModel

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
    words += ["--model.checkpoint", tiny_checkpoint]
    return finish_untrained([str(word) for word in words], folder / "run")


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


def test_without_weight_the_teacher_changes_nothing(student) -> None:
    """Loss and metrics of a batch are those of the task itself."""
    experiment = experiment_of(student("--distill.alpha", "0", "--task.class_weights", "balanced"))
    found = []
    for of in (trained_part(experiment), experiment):
        rows = training_batches(of.splits["train"], of.task, batch_size=16, seed=0, epoch=0)
        inputs, targets, weights = next(iter(rows))
        logits = np.arange(2 * len(weights), dtype=np.float32).reshape(-1, 2) % 5
        values = [of.task.loss()(targets, logits, sample_weight=weights)]
        for metric in of.task.metrics()["metrics"]:
            metric.update_state(targets, logits)
            values.append(metric.result())
        found.append((inputs["token_ids"], [float(value) for value in values]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)


def test_metrics_are_of_labelled_rows(student) -> None:
    config = parse(student())
    task = Distilled(Materials(config).experiment(config).task, config.distill)
    accuracy, f1 = task.metrics()["metrics"]
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
    words += ["--train.epochs", "1"]

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
    (tmp_path / "run" / STUDENT).mkdir(parents=True)  # of a command that was killed
    (tmp_path / "run" / STUDENT / "config.json").write_text("{}", encoding="utf-8")
    words += ["--train.epochs", "1", "--export.enabled", "false", "--monitor.tensorboard", "false"]
    assert train.main(words) == 0
    folder = tmp_path / "run"
    theirs = {of.path: of.numpy() for of in Teacher(parse(words)).model().weights}
    begun = load_model(folder / STUDENT)
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
    assert len(kbert.load(moved).predict(["good cat"])) == 1  # by its weights


def test_blocks_of_other_places_are_taken(student, teacher: Path) -> None:
    """The last block of a student is the last of its teacher."""
    found = Teacher(parse(student()))
    whole, small = found.model(), shallower(found, 2)
    for name in ("encoder", "classifier"):
        for ours, theirs in zip(
            small.get_layer(name).weights, whole.get_layer(name).weights, strict=True
        ):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    with pytest.raises(InputError, match="distill.layers 3 is over the 2 blocks of the teacher"):
        shallower(found, 3)


def test_blocks_are_spread_evenly() -> None:
    assert kept_layers(6, of=12) == [0, 2, 4, 7, 9, 11]  # DistilBERT's
    assert kept_layers(3, of=6) == [0, 2, 5]
    assert kept_layers(1, of=6) == [0]
    assert kept_layers(4, of=4) == [0, 1, 2, 3]


@pytest.mark.parametrize("task", ["multi_label", "regression", "classification"])
def test_numbers_of_a_student_like_its_teacher(
    task: str, tiny_options, unlabelled: Path, tmp_path: Path
) -> None:
    """With its weights they are the teacher's, also where a text is read in windows."""
    path = tmp_path / "rows.jsonl"
    labels: list = [["a"], ["a", "b"], [], ["c"]] if task == "multi_label" else [2, 2, 0, -1]
    texts = ["the cat", "a good dog sat .", "not bad", "dogs ran"]
    rows = [{"text": texts[row % 4], "label": labels[row % 4]} for row in range(24)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    words = [*tiny_options, "--task", task, "--data.train", str(path)]
    words += ["--data.max_length", "6", "--data.stride", "1"]
    teacher = finish_untrained(words, tmp_path / "teacher")
    words += ["--distill.teacher", str(teacher), "--distill.alpha", "1"]
    words += ["--distill.unlabelled", str(unlabelled), "--distill.temperature", "1"]
    experiment = experiment_of(words)
    part = trained_part(experiment)
    model = part.new_model()
    train_rows = part.splits["train"]
    (batch,) = training_batches(train_rows, part.task, batch_size=99, seed=0, epoch=0)
    inputs, targets, weights = batch
    assert len(weights) == len(experiment.splits["train"]) + 3
    _, theirs, labelled = losses.split_distilled(targets)
    assert int(labelled.numpy().sum()) == len(experiment.splits["train"])
    assert_same_outputs(model(inputs, training=False), theirs)  # same seed: the same new head
    loss = part.task.loss()(targets, model(inputs, training=False), sample_weight=weights)
    entropy = losses.multi_label()(1 / (1 + np.exp(-theirs)), theirs)
    assert float(loss) == pytest.approx(float(entropy) if task == "multi_label" else 0, abs=1e-6)
    for ours, plain in zip(
        *(of.metrics()["metrics"] for of in (part.task, experiment.task)), strict=True
    ):
        ours.update_state(targets, model(inputs, training=False))
        gold = losses.split_distilled(targets)[0][labelled == 1]
        plain.update_state(gold, model(inputs, training=False)[labelled == 1])
        assert float(ours.result()) == pytest.approx(float(plain.result()), nan_ok=True)
    split = experiment.splits["test"]
    found = beside_teacher(experiment, {"test": collect(model, experiment.task, split)})
    measured = json.loads((teacher / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert ("agreement" in found["test"]) == (task == "classification")
    for name in experiment.task.headline:
        assert found["test"][name] == pytest.approx(measured[name], nan_ok=True)


def test_trials_of_a_search(student, unlabelled: Path, tmp_path: Path) -> None:
    """Their options are the student's, and a share of the rows is one of all of them."""
    words = student("--distill.unlabelled", unlabelled, "--search.fraction", "0.5")
    words += [
        "--search.tuner",
        "grid",
        "--search.space",
        "{alpha: [0.2, 0.8], temperature: [1, 4]}",
    ]
    config = parse(words)
    space = read_space(config)
    assert len(list(combinations(space))) == 4
    materials = Materials(config)
    objective = Objective("val_accuracy", larger_is_better=True)
    hypermodel = TaskHyperModel(
        materials, config, space, objective, folder=tmp_path, tensorboard=None, report=None
    )
    trial = hypermodel.experiment({"alpha": 0.8, "temperature": 4.0})
    assert (trial.task.options.alpha, trial.task.options.temperature) == (0.8, 4.0)
    count = len(materials.experiment(config).splits["train"]) + 3
    assert len(trial.splits["train"]) == round(count / 2)
    with pytest.raises(InputError, match="no such hyper-parameter"):
        read_space(dataclasses.replace(config, distill=DistillOptions()))


def test_lineage_tells_what_files_hold(student, teacher: Path, unlabelled: Path) -> None:
    config = parse(student("--distill.unlabelled", unlabelled))
    experiment = experiment_of(student("--distill.unlabelled", unlabelled))
    digests = data_digests(config.data)

    def told(options: Config) -> dict:
        made = lineage(
            options, data=digests, rows={}, checkpoint=experiment.checkpoint, seed=0, trial=None,
            search=None,
        )  # fmt: skip
        return made["options"]["values"]

    found = told(config)["distill"]
    weights = teacher / "checkpoints" / "model.safetensors"
    assert found["teacher"] == {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert found["unlabelled"] == [
        {"format": ".txt", "sha256": hashlib.sha256(unlabelled.read_bytes()).hexdigest()}
    ]
    assert "distill" not in told(dataclasses.replace(config, distill=DistillOptions()))


def refused(words: list[str], capsys) -> str:
    """What train.py says of them in one line."""
    assert train.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    return error[0].removeprefix("train.py: error: ")


def test_bad_teachers(student, teacher: Path, tiny_options, tiny_csv, tmp_path, capsys) -> None:
    words = student("--output", tmp_path / "new")
    nowhere = ["--distill.teacher", str(tmp_path / "nowhere")]
    assert "nowhere: no run is there" in refused([*words, *nowhere], capsys)
    begun = shutil.copytree(teacher, tmp_path / "begun")
    (begun / "metrics.json").unlink()
    assert "the run is not finished" in refused([*words, "--distill.teacher", str(begun)], capsys)
    bare = shutil.copytree(teacher, tmp_path / "bare")
    shutil.rmtree(bare / "checkpoints")
    assert "weights are gone" in refused([*words, "--distill.teacher", str(bare)], capsys)
    other = tmp_path / "other.csv"
    text = tiny_csv.read_text("utf-8")
    other.write_text(text.replace("positive", "pleasant"), encoding="utf-8")
    said = refused([*words, "--data.train", str(other)], capsys)
    assert said.endswith(
        "its labels are others: the training file has 'pleasant', the teacher has not (2 in all); "
        "name another run."
    )
    other.write_text(text.replace("positive", "2").replace("negative", "1"), encoding="utf-8")
    said = refused([*words, "--data.train", str(other), "--task", "regression"], capsys)
    assert "its task is classification, not regression" in said
    other.write_text(text.replace("text,", "text,again,").replace(".,", ".,cat,"), encoding="utf-8")
    pair = ["--data.train", str(other), "--data.text_column", "[text, again]"]
    said = refused([*words, *pair], capsys)
    assert "it reads 1 text columns, not 2" in said
    said = refused([*without_checkpoint(words), "--distill.layers", "9"], capsys)
    assert "distill.layers 9 is over the 2 blocks of the teacher" in said
    assert not (tmp_path / "new").exists()


def test_bad_options(student, tiny_options, tmp_path: Path, capsys) -> None:
    assert "distill.alpha needs a teacher" in refused(
        [*tiny_options, "--distill.alpha", "0.7"], capsys
    )
    said = refused(student("--task", "masked_lm"), capsys)
    assert "masked_lm learns from no teacher, as classification, multi_label, regression do" in said
    said = refused(student("--distill.layers", "1"), capsys)
    assert "distill.layers and model.checkpoint exclude each other" in said
    assert "in [0, 1]" in refused(student("--distill.alpha", "1.5"), capsys)
    assert "over 0" in refused(student("--distill.temperature", "0"), capsys)
    said = refused(student("--distill.unlabelled", "none.txt"), capsys)
    assert "none.txt: there is no such file; correct --distill.unlabelled" in said
    other = tmp_path / "other.csv"
    other.write_text("words,more\ngood,1\n", encoding="utf-8")
    said = refused(student("--distill.unlabelled", other), capsys)
    assert "no column 'text'" in said
    other.write_text('text\ngood\n" "\n', encoding="utf-8")
    assert "empty text" in refused(student("--distill.unlabelled", other), capsys)
    said = refused(student("--distill.unlabelled", other, "--distill.alpha", "0"), capsys)
    assert "nothing is learnt of the teacher" in said
