"""Low-rank additions: trained alone, merged in the end, plain BERT to everyone else."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from test_training import Setting, Stop, assert_same_weights

import kbert
import train
from kbert.batches import training_batches
from kbert.certificate import PLACE, read_certificate
from kbert.checkpoints import latest_checkpoint
from kbert.config import parse
from kbert.errors import InputError
from kbert.lora import add_low_rank, merge_low_rank
from kbert.training import Interrupted

LORA = ["--train.lora_rank", "3", "--train.learning_rate", "1e-2"]
KERNELS = (
    "self_attention_layer/query",
    "self_attention_layer/key",
    "self_attention_layer/value",
    "self_attention_layer/attention_output",
    "feedforward_intermediate_dense",
    "feedforward_output_dense",
)

HEADS = {"pooler/kernel", "pooler/bias", "classifier/kernel", "classifier/bias"}


def logits(model: keras.Model, setting: Setting) -> np.ndarray:
    batches = training_batches(
        setting.splits["train"], setting.task, batch_size=16, seed=0, epoch=0
    )
    inputs, *_ = next(iter(batches))
    return model(inputs, training=False).numpy()


def values(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: variable.numpy() for variable in model.weights}


def randomize(model: keras.Model) -> None:
    """Give every addition a second factor, as training does."""
    generator = np.random.default_rng(1)
    for variable in model.trainable_weights:
        if variable.path.endswith("lora_b"):
            variable.assign(generator.normal(0, 0.3, variable.shape))


@pytest.mark.parametrize("precision", ["float32", "bfloat16_products", "bfloat16"])
def test_additions_begin_at_the_checkpoint(
    tiny_options: list[str], tiny_checkpoint: Path, precision: str
) -> None:
    setting = Setting([*tiny_options, "--train.precision", precision], tiny_checkpoint)
    model = setting.new_model()
    before = logits(model, setting)
    add_low_rank(model, rank=3, alpha=6.0, seed=0)
    np.testing.assert_array_equal(logits(model, setting), before)
    trained = {variable.path: variable.shape for variable in model.trainable_weights}
    additions = {path: shape for path, shape in trained.items() if "/lora_" in path}
    kernels = {path.rpartition("/")[0] for path in additions}
    assert kernels == {f"transformer_layer_{index}/{name}" for index in (0, 1) for name in KERNELS}
    assert additions["transformer_layer_1/feedforward_output_dense/lora_a"] == (21, 3)
    assert additions["transformer_layer_1/self_attention_layer/query/lora_b"] == (3, 12)
    assert set(trained) - set(additions) == HEADS


def test_merged_is_what_was_added(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    """To the model, and beside sums written by hand."""
    setting = Setting(tiny_options, tiny_checkpoint)
    model = setting.new_model()
    plain = values(model)
    add_low_rank(model, rank=3, alpha=7.5, seed=0)
    randomize(model)
    added = values(model)
    with_additions = logits(model, setting)
    merge_low_rank(model)
    assert [v.path for v in model.weights] == list(plain)
    np.testing.assert_allclose(logits(model, setting), with_additions, atol=2e-5)
    for block in ("transformer_layer_0", "transformer_layer_1"):
        for name in KERNELS:
            path = f"{block}/{name}"
            a, b = added[f"{path}/lora_a"], added[f"{path}/lora_b"]
            kernel = plain[f"{path}/kernel"]
            wanted = kernel + (2.5 * a @ b).reshape(kernel.shape)
            merged = values(model)[f"{path}/kernel"]
            np.testing.assert_allclose(merged, wanted, atol=1e-6, err_msg=path)


def test_what_was_traced_stays_right(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    """A callback's graph of the model outlives the additions that it knows of."""
    setting = Setting(tiny_options, tiny_checkpoint)
    model = setting.new_model()
    add_low_rank(model, rank=2, alpha=4.0, seed=0)
    traced = tf.function(lambda inputs: model(inputs, training=False))
    inputs, *_ = next(
        iter(training_batches(setting.splits["train"], setting.task, batch_size=4, seed=0, epoch=0))
    )
    traced(inputs)
    randomize(model)
    before = traced(inputs)
    merge_low_rank(model)
    np.testing.assert_allclose(traced(inputs), before, atol=2e-5)


def test_only_additions_and_head_are_trained(
    tiny_options: list[str], tiny_checkpoint: Path
) -> None:
    """In the graph of parts side by side, which share what they make of weights."""
    words = [*tiny_options, *LORA, "--train.frozen_layers", "1", "--train.epochs", "1"]
    words += ["--train.compile", "parallel", "--train.batch_size", "16"]
    setting = Setting(words, tiny_checkpoint)
    before = values(setting.new_model())
    after = values(setting.train(None)[0])
    assert list(after) == list(before), "merged, the model is plain"
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    heads = {
        f"{name}/{weight}" for name in ("pooler", "classifier") for weight in ("kernel", "bias")
    }
    assert changed == heads | {f"transformer_layer_1/{name}/kernel" for name in KERNELS}


def test_masked_words_and_their_tied_decoder(
    tiny_options: list[str], tiny_checkpoint: Path
) -> None:
    """The decoder is the token embedding, which stays; the pooler has nothing to learn."""
    model = Setting([*tiny_options, "--task", "masked_lm"], tiny_checkpoint).new_model()
    add_low_rank(model, rank=3, alpha=6.0, seed=0)
    trained = {variable.path.partition("/")[0] for variable in model.trainable_weights}
    assert trained == {"masked_lm_head", "transformer_layer_0", "transformer_layer_1"}


def test_stopped_and_resumed_is_the_same_to_the_bit(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """And a checkpoint has what is trained, and nothing of what is not."""
    words = [*LORA, "--train.accumulate", "2", "--train.best_metric", "loss"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    whole, progress = setting.train(tmp_path / "whole")
    keras.utils.set_random_seed(7)  # another process starts from another state
    with pytest.raises(Interrupted):
        setting.train(tmp_path / "parts", Stop(13))
    names = set(safetensors.numpy.load_file(latest_checkpoint(tmp_path / "parts")))
    weights = {name.split("/", 2)[2] for name in names if name.startswith("model/")}
    assert not {path for path in weights if path.startswith(("token_embedding", "transformer"))
                and "/lora_" not in path and "seed" not in path}  # fmt: skip
    moments = [name for name in names if name.startswith("optimizer/") and "momentum" in name]
    assert len(moments) == 4 + 2 * 2 * len(KERNELS)
    resumed, resumed_progress = setting.train(tmp_path / "parts")
    assert_same_weights(whole, resumed)
    assert resumed_progress.history == progress.history
    best = safetensors.numpy.load_file(tmp_path / "parts" / "best.safetensors")
    assert "token_embedding/embeddings" not in best


@pytest.mark.parametrize("words", [LORA, ["--train.frozen_layers", "1"]])
def test_a_run_goes_on_from_its_own_weights_alone(
    tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path, words: list[str]
) -> None:
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    with pytest.raises(Interrupted):
        setting.train(tmp_path / "checkpoints", Stop(4))

    class Other(Setting):
        def new_model(self) -> keras.Model:
            model = super().new_model()
            kernel = model.get_layer("encoder").get_layer("position_embedding").weights[0]
            kernel.assign(kernel + 1e-3)
            return model

    with pytest.raises(InputError, match="the weights that stay as they are were others when the"):
        Other([*tiny_options, *words], tiny_checkpoint).train(tmp_path / "checkpoints")


def test_the_whole_path_ends_with_a_plain_bert(
    tiny_options: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By train.py, with all that saves memory: what is exported and certified, saved for
    HuggingFace and loaded again is one model, of the checkpoint's own names."""
    words = [*tiny_options, *LORA, "--train.epochs", "1", "--train.accumulate", "2"]
    words += ["--train.rematerialize", "true", "--export.huggingface", "true"]
    assert train.main([*words, "--monitor.tensorboard", "false"]) == 0
    assert "weights that are trained: 1,154, 27.2% of all" in caplog.text
    weights = safetensors.numpy.load_file(tmp_path / "run" / "checkpoints" / "model.safetensors")
    assert list(weights) == sorted(values(Setting(tiny_options, tiny_checkpoint).new_model()))
    before = kbert.load_model(tiny_checkpoint, head="encoder")
    saved = values(kbert.load_model(tmp_path / "run" / "huggingface"))
    assert set(saved) == set(weights)
    for path, value in weights.items():
        np.testing.assert_array_equal(saved[path], value, err_msg=path)
    for path, value in values(before).items():
        is_same = not path.endswith("kernel") and not path.startswith("pooler")
        assert np.array_equal(value, weights[path]) == is_same, path
    certificate = read_certificate(tmp_path / "run" / "export" / "run" / "1" / PLACE)
    assert set(certificate.answers) == {"python", "saved_model", "huggingface"}
    assert certificate.problem() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.lora_rank", "-1"], "train.lora_rank must be at least 0, received -1"),
        (["--train.lora_alpha", "8"], "train.lora_alpha needs train.lora_rank"),
        ([*LORA, "--train.lora_alpha", "0"], "train.lora_alpha must be over 0"),
        ([*LORA, "--task", "features"], "train.lora_rank: features fine-tunes no encoder"),
        (
            [*LORA, "--task", "translation", "--task.encoder", "frozen"],
            "train.lora_rank: task.encoder frozen fine-tunes no encoder",
        ),
    ],
)
def test_what_cannot_be(tiny_options: list[str], words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse([*tiny_options, *words])


def test_it_needs_a_checkpoint(tiny_options: list[str]) -> None:
    place = tiny_options.index("--model.checkpoint")
    words = [*tiny_options[:place], "--model.vocab_size", "40", *tiny_options[place + 2 :]]
    with pytest.raises(InputError, match="train.lora_rank needs model.checkpoint"):
        parse([*words, *LORA])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--train.frozen_layers", "2"],
            "train.lora_rank adds to no frozen block",
        ),
        (["--train.lora_rank", "13"], "train.lora_rank 13 is over 12, the rank of the"),
    ],
)
def test_what_the_model_has_no_room_for(
    tiny_options: list[str], tiny_checkpoint: Path, words: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Setting([*tiny_options, *LORA, *words], tiny_checkpoint).new_model()
