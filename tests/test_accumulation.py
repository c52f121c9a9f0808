"""A step in parts is the step of the whole batch."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_training import Setting, Stop, assert_same_weights

from kbert import training
from kbert.accumulation import AccumulatingModel, accumulating
from kbert.batches import training_batches
from kbert.config import parse
from kbert.errors import InputError
from kbert.experiment import Experiment, Materials
from kbert.training import Interrupted, rows_that_occur


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def words_of(task: str, folder: Path) -> list[str]:
    """Options of a task whose rows weigh unequally, or whose examples are several rows."""
    pairs = ["the cat sat .\tthe dog ran .\t1", "good cats ran\tbad\t3", "the dog\ta dog .\t5"]
    words = {
        "classification": ["--task.class_weights", "balanced"],
        "windows": ["--data.max_length", "8", "--data.stride", "1"],
        "masked_lm": ["--task", "masked_lm", "--task.mask_rate", "0.4"],
        "next_sentence": ["--task", "masked_lm", "--task.next_sentence", "true"],
        "embedding": ["--task", "embedding", "--data.text_column", "[a, b]"],
        "tagging": ["--task", "tagging", "--task.intent_column", "intent"],
        "question_answering": ["--task", "question_answering", "--data.max_length", "10"],
    }[task]
    if task == "embedding":
        file = write(folder / "pairs.tsv", ["a\tb\tlabel", *pairs * 9])
    elif task == "tagging":
        rows = ["the cat sat\tO B-X O\tgo", "good\tB-Y\tstop", "a dog ran . bad\tO B-X O O B-Y\tgo"]
        file = write(folder / "tags.tsv", ["text\ttags\tintent", *rows * 9])
    elif task == "question_answering":
        rows = ["cat sat\tthe good cat sat . a dog ran .\tgood cat", "ran\ta bad dog ran\tdog"]
        file = write(folder / "answers.tsv", ["question\tcontext\tanswer", *rows * 13])
        words += ["--data.text_column", "[question, context]"]
    else:
        return words
    return [*words, "--data.train", str(file)]


class Recorder(keras.optimizers.SGD):
    """Keeps the gradients of a step, and changes nothing."""

    def __init__(self, rows: dict[str, np.ndarray]) -> None:
        super().__init__(0.0)
        self.rows = rows
        self.found: dict[str, np.ndarray] = {}

    def apply(self, grads, trainable_variables=None) -> None:
        for grad, variable in zip(grads, trainable_variables, strict=True):
            assert isinstance(grad, tf.IndexedSlices) or variable.path not in self.rows
            self.found[variable.path] = tf.convert_to_tensor(grad).numpy()


def one_step(model: keras.Model, experiment: Experiment, rows: dict[str, np.ndarray]):
    """Gradients and metrics of the first batch."""
    task, options = experiment.task, experiment.config.train
    model.compile(Recorder(rows), loss=task.loss(), run_eagerly=True, **task.metrics())
    batches = training_batches(
        experiment.splits["train"], task, batch_size=options.batch_size, seed=0, epoch=0
    )
    figures = model.train_step(next(iter(batches)))
    return model.optimizer.found, {name: float(value) for name, value in figures.items()}


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("classification", 3),
        ("windows", 2),
        ("masked_lm", 3),
        ("next_sentence", 3),
        ("embedding", 3),
        ("tagging", 100),  # there are but 7 rows
        ("question_answering", 3),
    ],
)
def test_parts_are_the_whole(
    tiny_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    parts: int,
) -> None:
    """Gradients, losses and metrics of a batch of 7 rows."""
    monkeypatch.setattr(training, "MOST_ROWS", 1.0)  # a table of the rows that occur, too
    words = [*tiny_options, *words_of(task, tmp_path), "--model.dropout", "0"]
    config = parse([*words, "--train.batch_size", "7"])
    experiment = Materials(config).experiment(config)
    model = experiment.new_model()
    rows = rows_that_occur(model, experiment.task, experiment.splits["train"], config.train)
    assert bool(rows) == (experiment.config.task.name != "masked_lm")
    wanted, figures = one_step(model, experiment, rows)
    found, same_figures = one_step(accumulating(model, experiment.task, parts), experiment, rows)
    assert found.keys() == wanted.keys() == {v.path for v in model.trainable_variables}
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for path, gradient in wanted.items():  # those of key/bias, for one, are rounding alone
        within = 1e-5 * np.abs(gradient).max() + 1e-7 * largest
        np.testing.assert_allclose(found[path], gradient, atol=within, err_msg=path)
    assert same_figures == pytest.approx(figures, rel=1e-5)


IN_PARTS = ["--train.accumulate", "3", "--train.checkpoint_steps", "2", "--train.batch_size", "16"]


def test_a_run_in_parts_is_the_run(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """In the graph, to the last batch of an epoch, with clipping, each part by cores side by side;
    stopped and resumed to the bit."""
    words = [*tiny_options, *IN_PARTS, "--model.dropout", "0", "--train.clip_norm", "0.5"]
    words += ["--train.compile", "parallel", "--train.epochs", "1"]
    whole, expected = Setting([*words, "--train.accumulate", "1"], tiny_checkpoint).train(None)
    setting = Setting(words, tiny_checkpoint)
    parts, progress = setting.train(tmp_path / "whole")
    assert isinstance(parts, AccumulatingModel)
    assert int(parts.optimizer.iterations) == int(whole.optimizer.iterations) == 6
    assert progress.history[0] == pytest.approx(expected.history[0], rel=1e-4)
    for ours, theirs in zip(parts.weights, whole.weights, strict=True):
        if not ours.path.endswith("key/bias"):  # its gradient is rounding alone
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-5, err_msg=ours.path)
    with pytest.raises(Interrupted):
        setting.train(tmp_path / "stopped", Stop(3))
    resumed, _ = setting.train(tmp_path / "stopped")
    assert_same_weights(parts, resumed)


def test_each_part_drops_others(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    """Four equal rows in two parts: one part's dropout is not the other's."""
    experiment = Setting([*tiny_options, "--model.dropout", "0.5"], tiny_checkpoint)
    model = accumulating(experiment.new_model(), experiment.task, 2)
    seen = []
    call = model.call

    def kept(inputs, training=None, mask=None):
        seen.append(call(inputs, training=training, mask=mask))
        return seen[-1]

    model.call = kept
    task = experiment.task
    model.compile(Recorder({}), loss=task.loss(), run_eagerly=True, **task.metrics())
    ids = tf.constant([[2, 7, 3]] * 4)
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": tf.ones_like(ids)}
    model.train_step((inputs, tf.one_hot([0] * 4, 2), tf.ones(4)))
    assert [of.shape[0] for of in seen] == [2, 2]
    assert not np.allclose(seen[0], seen[1])


def test_what_cannot_be(tiny_options: list[str]) -> None:
    for words, message in (
        (["9"], r"train.accumulate must be at most train.batch_size \(8\), received 9"),
        (["2", "--train.compile", "xla"], "train.compile xla goes without train.accumulate"),
    ):
        with pytest.raises(InputError, match=message):
            parse([*tiny_options, "--train.accumulate", *words])
