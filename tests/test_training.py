"""Exact resume, early stopping, frozen layers, divergence."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy

from kbert import training
from kbert.batches import encode_split
from kbert.checkpoints import latest_checkpoint, states
from kbert.config import parse
from kbert.data import read_dataset
from kbert.encoder import Encoder
from kbert.errors import InputError
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks import task_class
from kbert.tasks.task import Learned
from kbert.training import (
    Diverged,
    Interrupted,
    Watcher,
    fit,
    new_model,
    read_progress,
    rows_that_occur,
)

LAYERS_IN_FLOAT16 = [
    "--train.frozen_layers",
    "1",
    "--train.layer_decay",
    "0.5",
    "--train.precision",
    "float16",
]

IN_PARTS = [
    "--train.batch_size",
    "16",
    "--train.compile",
    "parallel",
    "--train.precision",
    "bfloat16_products",
]


class Setting:
    """A tiny task with its splits, to train as often as a test likes."""

    def __init__(self, words: list[str], checkpoint: Path) -> None:
        self.config = parse(words)
        self.checkpoint = checkpoint
        kind = task_class(self.config.task.name)
        dataset = read_dataset(self.config.data, kind.columns(self.config), seed=0)
        tokenizer = tokenizer_from_files(checkpoint)
        self.task = kind(self.config, tokenizer, Learned(dataset.labels, np.array([3, 1])))
        self.splits = {
            name: encode_split(split, self.task, cache_dir=self.config.data.cache_dir)
            for name, split in dataset.splits.items()
        }

    def new_model(self) -> keras.Model:
        return new_model(self.task, self.checkpoint, self.config.model, self.config.train)

    def train(
        self,
        folder: Path | None,
        *callbacks: keras.callbacks.Callback,
        until_epoch: int | None = None,
    ):
        model = self.new_model()
        progress = fit(
            model,
            self.task,
            self.splits["train"],
            self.splits["validation"],
            self.config.train,
            folder=folder,
            callbacks=list(callbacks),
            until_epoch=until_epoch,
        )
        return model, progress


class Stop(keras.callbacks.Callback):
    """Raises a signal, by default that of Ctrl-C, after a number of steps."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.step = step
        self.number = number

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            signal.raise_signal(self.number)


class StopInValidation(Watcher):
    """Raises SIGTERM at the end of an epoch's last step, just before its validation."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if int(self.model.optimizer.iterations) == self.steps:
            signal.raise_signal(signal.SIGTERM)


class Spoil(keras.callbacks.Callback):
    """Makes a weight infinite after a number of steps, as a rate that is far too high does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            variable = self.model.trainable_variables[-1]
            variable.assign(variable + np.inf)


def assert_same_weights(ours: keras.Model, theirs: keras.Model) -> None:
    for left, right in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(left.numpy(), right.numpy(), err_msg=left.path)


@pytest.mark.parametrize(
    ("task", "steps", "more"),
    [
        ("classification", (4, 11, 13), []),
        ("masked_lm", (15,), []),
        ("classification", (13,), LAYERS_IN_FLOAT16),
        ("classification", (4, 8), IN_PARTS),
    ],
)
def test_stopped_and_resumed_is_the_same_to_the_bit(
    tiny_options: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    steps: tuple[int, ...],
    more: list[str],
) -> None:
    """Stopped in mid-epoch, at its end and again in the next; eleven steps an epoch."""
    monkeypatch.setattr(training, "MOST_ROWS", 1.0)  # a table of the rows that occur, too
    words = [*tiny_options, "--task", task, "--train.best_metric", "loss", *more]
    setting = Setting(words, tiny_checkpoint)
    whole, progress = setting.train(tmp_path / "whole")
    for step in steps:
        keras.utils.set_random_seed(step)  # another process starts from another state
        with pytest.raises(Interrupted):
            setting.train(tmp_path / "parts", Stop(step))
    resumed, resumed_progress = setting.train(tmp_path / "parts")
    assert_same_weights(whole, resumed)
    assert resumed_progress.history == progress.history
    assert resumed_progress.best_epoch == progress.best_epoch


def test_stopped_before_validation_it_goes_on_with_it(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Whoever sends SIGTERM does not wait for the validation of a large split."""
    setting = Setting([*tiny_options, "--train.best_metric", "loss"], tiny_checkpoint)
    whole, progress = setting.train(tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        setting.train(tmp_path / "parts", StopInValidation(11))
    assert caught.value.number == signal.SIGTERM
    stopped = read_progress(latest_checkpoint(tmp_path / "parts"))
    assert (stopped.epoch, stopped.step, stopped.history) == (0, 11, [])
    resumed, resumed_progress = setting.train(tmp_path / "parts")
    assert_same_weights(whole, resumed)
    assert resumed_progress.history == progress.history


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tiny_options: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kbert.training")
    setting = Setting([*tiny_options, "--train.checkpoint_steps", "3"], tiny_checkpoint)
    whole, _ = setting.train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        setting.train(tmp_path / "parts", Stop(8))
    content = states(tmp_path / "parts")[-1].read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for number, damaged in enumerate((content[:-1], flipped, b"")):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "parts", folder)
        before, newest = states(folder)
        newest.write_bytes(damaged)
        caplog.clear()
        resumed, _ = setting.train(folder)
        assert f"{newest}: is damaged" in caplog.text
        assert f"going on from {before.name}" in caplog.text
        assert_same_weights(whole, resumed)
    for path in states(folder):
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="no checkpoint is whole; remove the run's folder"):
        setting.train(folder)


def test_in_parts_by_epochs_is_the_same_to_the_bit(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As a search does that goes on with the best of its trials; the best epoch is the first."""
    words = ["--train.epochs", "3", "--train.best_metric", "accuracy"]
    setting = Setting([*tiny_options, *words, "--train.learning_rate", "1e-6"], tiny_checkpoint)
    whole, progress = setting.train(tmp_path / "whole")
    _, first = setting.train(tmp_path / "parts", until_epoch=1)
    assert first.epoch == len(first.history) == 1
    assert latest_checkpoint(tmp_path / "parts").name == "step-000000011.safetensors"
    parts, second = setting.train(tmp_path / "parts", until_epoch=7)  # there are but 3
    assert second.history == progress.history
    assert second.elapsed > first.elapsed
    assert_same_weights(whole, parts)
    ends = [latest_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    tensors = [safetensors.numpy.load_file(end) for end in ends]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        np.testing.assert_array_equal(tensor, tensors[1][name], err_msg=name)


def test_nothing_left_to_train(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A run that was killed after its last epoch has the weights of it."""
    setting = Setting(tiny_options, tiny_checkpoint)
    trained, _ = setting.train(tmp_path / "checkpoints")
    again, progress = setting.train(tmp_path / "checkpoints")
    assert_same_weights(trained, again)
    assert progress.epoch == 2


def test_progress_has_time_and_figures(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    setting = Setting(tiny_options, tiny_checkpoint)
    began = time.perf_counter()
    with pytest.raises(Interrupted):
        setting.train(tmp_path / "checkpoints", Stop(4))
    stopped = read_progress(latest_checkpoint(tmp_path / "checkpoints"))
    time.sleep(0.5)  # no time of the run
    _, progress = setting.train(tmp_path / "checkpoints")
    passed = time.perf_counter() - began
    assert progress.seconds < progress.elapsed < passed - 0.5
    assert 0 < stopped.elapsed < progress.elapsed
    assert progress.figures(setting.config.train) is progress.history[1]
    progress.best_epoch = 0
    for name, value in (("best_metric", "loss"), ("patience", 1)):
        options = dataclasses.replace(setting.config.train, **{name: value})
        assert progress.figures(options) is progress.history[0]


def test_a_seed_repeats_a_run(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    setting = Setting(tiny_options, tiny_checkpoint)
    first, _ = setting.train(None)
    second, _ = setting.train(None)
    assert_same_weights(first, second)
    setting.config.train.seed = 1
    third, _ = setting.train(None)
    assert not np.array_equal(first.weights[0].numpy(), third.weights[0].numpy())


def test_it_learns(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    """From the loss of a guess to almost none; at most one of the ten validation rows is wrong."""
    words = ["--train.epochs", "12", "--train.learning_rate", "3e-3", "--model.dropout", "0"]
    setting = Setting([*tiny_options, *words, "--train.seed", "3"], tiny_checkpoint)
    _, progress = setting.train(None)
    assert len(setting.splits["validation"]) == 10
    assert progress.history[-1]["val_accuracy"] > 0.85  # 9 of 10 is 0.89999998 in float32
    assert progress.history[-1]["accuracy"] > 0.95
    assert progress.history[-1]["loss"] < 0.5 * progress.history[0]["loss"]
    assert progress.examples_per_second > 0


def test_checkpoints_are_kept_by_count(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["--train.checkpoint_steps", "2", "--train.keep_checkpoints", "3"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    with pytest.raises(Interrupted):
        setting.train(tmp_path / "checkpoints", Stop(7))
    folder = tmp_path / "checkpoints"
    assert [int(path.stem.removeprefix("step-")) for path in states(folder)] == [4, 6, 7]
    progress = read_progress(latest_checkpoint(folder))
    assert (progress.epoch, progress.step) == (0, 7)


def test_best_weights_and_patience(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["--train.epochs", "9", "--train.patience", "1", "--train.best_metric", "accuracy"]
    setting = Setting([*tiny_options, *words, "--train.learning_rate", "1e-6"], tiny_checkpoint)
    for folder in (tmp_path / "checkpoints", None):
        model, progress = setting.train(folder)
        assert progress.stopped
        assert progress.epoch == progress.best_epoch + 2
        assert progress.best_value == max(row["val_accuracy"] for row in progress.history)
    assert (tmp_path / "checkpoints" / "best.safetensors").exists()
    restored = {v.path: v.numpy() for v in model.weights}
    again, _ = setting.train(tmp_path / "checkpoints")  # finished: nothing to do but to restore
    for variable in again.weights:
        np.testing.assert_array_equal(variable.numpy(), restored[variable.path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--train.best_metric", "beauty"],
            "there is no metric 'beauty'; there are loss, accuracy",
        ),
        (
            ["--train.patience", "1", "--data.validation_fraction", "0"],
            "train.patience needs a validation split",
        ),
    ],
)
def test_best_metric_that_cannot_be(
    tiny_options: list[str], tiny_checkpoint: Path, words: list[str], message: str
) -> None:
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    setting.splits.setdefault("validation", None)
    with pytest.raises(InputError, match=message):
        setting.train(None)


@pytest.mark.parametrize(
    ("step", "message", "newest"),
    [
        (9, "the weights are not finite after step 9 of epoch 1", 6),  # a checkpoint is due
        (11, "the weights are not finite after step 11 of epoch 1", 9),  # the end of the epoch
        (12, "the loss is nan at step 2 of epoch 2", 11),
    ],
)
def test_divergence_leaves_the_checkpoint_before(
    tiny_options: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    step: int,
    message: str,
    newest: int,
) -> None:
    words = ["--train.checkpoint_steps", "3", "--train.best_metric", "loss"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    with pytest.raises(Diverged) as caught:
        setting.train(tmp_path / "checkpoints", Spoil(step))
    end = "(train.learning_rate 0.001): lower the rate, or raise train.warmup."
    assert str(caught.value) == f"training diverged: {message} {end}"
    best = ["best.safetensors"] if newest == 11 else []
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    kept = [step for step in (newest - (newest % 3 or 3), newest) if step]
    assert names == [*best, *(f"step-{kept:09d}.safetensors" for kept in kept)]
    for path in (tmp_path / "checkpoints").iterdir():
        for name, tensor in safetensors.numpy.load_file(path).items():
            assert np.isfinite(tensor).all(), name


@pytest.mark.parametrize(
    ("task", "frozen"),
    [("classification", 1), ("classification", 2), ("masked_lm", 1), ("masked_lm", 0)],
)
def test_frozen_layers(
    tiny_options: list[str], tiny_checkpoint: Path, task: str, frozen: int
) -> None:
    """The decoder of masked_lm is the token embedding: it is frozen there as well."""
    words = ["--task", task, "--train.frozen_layers", str(frozen), "--train.epochs", "1"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    before = {variable.path: variable.numpy() for variable in setting.new_model().weights}
    model, _ = setting.train(None)
    still = ("token_embedding", "position_embedding", "segment_embedding", "embeddings_layer_norm")
    blocks = tuple(f"transformer_layer_{index}" for index in range(frozen))
    still = (*still, *blocks) if frozen else ()
    still = (*still, "pooler") if task == "masked_lm" else still
    assert len(before) == len(model.weights)
    for variable in model.weights:
        is_same = np.array_equal(variable.numpy(), before[variable.path])
        assert is_same == variable.path.startswith(still), variable.path


def test_more_frozen_layers_than_there_are(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    setting = Setting([*tiny_options, "--train.frozen_layers", "3"], tiny_checkpoint)
    with pytest.raises(InputError, match=r"train.frozen_layers 3 is over the 2 blocks of the mod"):
        setting.new_model()


def test_parallel_is_the_graph(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    words = [*tiny_options, *IN_PARTS, "--train.precision", "float32", "--model.dropout", "0"]
    whole, _ = Setting([*words, "--train.compile", "graph"], tiny_checkpoint).train(None)
    parts, _ = Setting(words, tiny_checkpoint).train(None)
    assert (whole.get_layer("encoder").parts, parts.get_layer("encoder").parts) == (1, 2)
    for ours, theirs in zip(parts.weights, whole.weights, strict=True):
        if not ours.path.endswith("key/bias"):  # its gradient is rounding alone
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-5, err_msg=ours.path)


@pytest.mark.parametrize("epochs", ["1", "3"])
def test_a_step_is_traced_once(
    tiny_options: list[str],
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: str,
) -> None:
    """Whatever the lengths of the batches, and however many epochs there are."""
    setting = Setting([*tiny_options, "--train.epochs", epochs], tiny_checkpoint)
    traced: dict[bool, int] = {True: 0, False: 0}
    call = Encoder.call

    def counted(self, inputs, training=None, mask=None):
        traced[bool(training)] += 1
        return call(self, inputs, training=training, mask=mask)

    model = setting.new_model()
    monkeypatch.setattr(Encoder, "call", counted)
    splits = setting.splits["train"], setting.splits["validation"]
    fit(model, setting.task, *splits, setting.config.train, folder=None, callbacks=[])
    assert traced == {True: 1, False: 1}


def test_rows_that_occur(
    tiny_options: list[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tiny_options, tiny_checkpoint)
    train, options = setting.splits["train"], setting.config.train
    model = setting.new_model()
    ids = {*setting.task.tokenizer.special_token_ids, *train.segments[0].values.tolist()}
    assert rows_that_occur(model, setting.task, train, options) == {}, "nearly all of them do"
    monkeypatch.setattr(training, "MOST_ROWS", len(ids) / setting.task.tokenizer.vocabulary_size)
    found = rows_that_occur(model, setting.task, train, options)
    assert {path: set(rows.tolist()) for path, rows in found.items()} == {
        "token_embedding/embeddings": ids
    }
    half = dataclasses.replace(options, precision="float16")
    assert rows_that_occur(model, setting.task, train, half) == {}
    model.get_layer("encoder").get_layer("token_embedding").trainable = False
    assert rows_that_occur(model, setting.task, train, options) == {}


def test_masked_words_may_be_any(
    tiny_options: list[str], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MOST_ROWS", 1.0)
    setting = Setting([*tiny_options, "--task", "masked_lm"], tiny_checkpoint)
    options = setting.config.train
    assert (
        rows_that_occur(setting.new_model(), setting.task, setting.splits["train"], options) == {}
    )


def test_precision_keeps_float32_variables(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    setting = Setting([*tiny_options, "--train.precision", "bfloat16"], tiny_checkpoint)
    model, progress = setting.train(None)
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert model.get_layer("encoder").get_layer("transformer_layer_0").compute_dtype == "bfloat16"
    assert np.isfinite(progress.history[-1]["loss"])


def test_max_length_over_positions(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    setting = Setting([*tiny_options, "--data.max_length", "34"], tiny_checkpoint)
    with pytest.raises(InputError, match="data.max_length 34 is over the 33 positions"):
        setting.train(None)
