"""Schedule, AdamW, a rate for each layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from test_training import Setting

from kbert import optimizers
from kbert.config import TrainOptions
from kbert.optimizers import (
    AdamW,
    WarmupLinear,
    groups_of_sizes,
    layer_factors,
    new_optimizer,
)

# of the two blocks of the tiny checkpoint, at a decay of a half
HALVES = {
    "token_embedding": 0.125,
    "position_embedding": 0.125,
    "segment_embedding": 0.125,
    "embeddings_layer_norm": 0.125,
    "transformer_layer_0": 0.25,
    "transformer_layer_1": 0.5,
    "pooler": 1.0,
    "classifier": 1.0,
}


class NumpyAdamW:
    """AdamW of one variable in float64, from the paper: https://arxiv.org/abs/1711.05101."""

    def __init__(self, value: np.ndarray, *, weight_decay: float) -> None:
        self.value = value.astype("float64")
        self.weight_decay = weight_decay
        self.step = 0
        self.mean = np.zeros(value.shape)
        self.square = np.zeros(value.shape)

    def apply(self, gradient: np.ndarray, *, rate: float) -> None:
        self.step += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        mean = self.mean / (1 - 0.9**self.step)
        square = self.square / (1 - 0.999**self.step)
        update = mean / (np.sqrt(square) + 1e-8) + self.weight_decay * self.value
        self.value = self.value - rate * update


def test_schedule_is_huggingfaces() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, 3, 11)
    ours = WarmupLinear(0.5, warmup_steps=3, total_steps=11)
    for step in range(12):
        assert float(ours(step)) == pytest.approx(theirs.get_last_lr()[0], abs=1e-7)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("layer_decay", ["1", "0.5"])
def test_only_matrices_decay(
    tiny_options: list[str], tiny_checkpoint: Path, layer_decay: str
) -> None:
    words = ["--task", "masked_lm", "--train.warmup", "0", "--train.weight_decay", "0.5"]
    words += ["--train.layer_decay", layer_decay]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    options = setting.config.train
    variables = setting.new_model().trainable_variables
    for variable in variables:
        variable.assign(variable + 1.0)  # new biases are 0, which no decay changes
    before = [variable.numpy() for variable in variables]
    optimizer = new_optimizer(options, total_steps=2)
    optimizer.apply([keras.ops.zeros_like(variable) for variable in variables], variables)
    for variable, old in zip(variables, before, strict=True):
        is_matrix = variable.path.endswith(("kernel", "embeddings"))
        assert np.array_equal(variable.numpy(), old) != is_matrix, variable.path


def test_optimizer_is_torchs_adamw() -> None:
    torch = pytest.importorskip("torch")
    options = TrainOptions(weight_decay=0.1, warmup=0.0, learning_rate=0.05, clip_norm=0.0)
    kernel = keras.Variable([[1.0, -2.0]], name="kernel")
    bias = keras.Variable([0.5, 3.0], name="bias")
    ours = new_optimizer(options, total_steps=10)
    weights = [torch.nn.Parameter(torch.tensor(v.numpy())) for v in (kernel, bias)]
    groups = [
        {"params": weights[:1], "weight_decay": 0.1},
        {"params": weights[1:], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.05)
    generator = np.random.default_rng(0)
    for step in range(5):
        gradients = [generator.normal(size=v.shape).astype("float32") for v in (kernel, bias)]
        ours.apply([keras.ops.convert_to_tensor(g) for g in gradients], [kernel, bias])
        for group in theirs.param_groups:
            group["lr"] = 0.05 * (10 - step) / 10
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = torch.tensor(gradient)
        theirs.step()
    for variable, weight in zip((kernel, bias), weights, strict=True):
        np.testing.assert_allclose(variable.numpy(), weight.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "compiled",
    [lambda apply: apply, tf.function, lambda apply: tf.function(apply, jit_compile=True)],
    ids=["eager", "graph", "xla"],
)
@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 100.0])
def test_clipping_is_torchs(compiled: Callable, clip_norm: float) -> None:
    """Of a sparse gradient, too, in which a row comes three times."""
    torch = pytest.importorskip("torch")
    options = TrainOptions(weight_decay=0.0, warmup=0.0, clip_norm=clip_norm)
    rows = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    dense = np.zeros((5, 2), "float32")
    np.add.at(dense, [1, 3, 1, 1], rows)
    bias = np.array([0.5, -3.0], "float32")
    table, offset = keras.Variable(np.ones((5, 2))), keras.Variable([0.0, 0.0], name="bias")
    optimizer = new_optimizer(options, total_steps=10)
    optimizer.build([table, offset])

    def apply(rows, bias):
        slices = tf.IndexedSlices(rows, tf.constant([1, 3, 1, 1]), tf.constant([5, 2]))
        optimizer.apply([slices, bias], [table, offset])

    compiled(apply)(tf.constant(rows), tf.constant(bias))
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((5, 2), (2,))]
    for weight, gradient in zip(weights, (dense, bias), strict=True):
        weight.grad = torch.tensor(gradient)
    norm = torch.nn.utils.clip_grad_norm_(weights, clip_norm or float("inf"))
    assert float(optimizer.gradient_norm) == pytest.approx(float(norm), rel=1e-6)
    # the first moment is a tenth of the gradient after the first step
    seen = [optimizer._moments[index][0].numpy() * 10 for index in range(2)]
    for ours, weight in zip(seen, weights, strict=True):
        np.testing.assert_allclose(ours, weight.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("small", [0, optimizers.SMALL], ids=["in programs", "small"])
@pytest.mark.parametrize(
    "compiled",
    [lambda apply: apply, tf.function, lambda apply: tf.function(apply, jit_compile=True)],
    ids=["eager", "graph", "xla"],
)
def test_layerwise_is_numpys_adamw(
    tiny_options: list[str],
    tiny_checkpoint: Path,
    compiled: Callable,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three steps of warm-up and fall; biases and LayerNorm are not decayed."""
    monkeypatch.setattr(optimizers, "SMALL", small)
    words = ["--train.layer_decay", "0.5", "--train.weight_decay", "0.5", "--train.warmup", "0.4"]
    words += ["--train.learning_rate", "0.01", "--train.clip_norm", "0"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    variables = setting.new_model().trainable_variables
    generator = np.random.default_rng(0)
    theirs = []
    for variable in variables:
        variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        is_matrix = variable.path.endswith(("kernel", "embeddings"))
        theirs.append(NumpyAdamW(variable.numpy(), weight_decay=0.5 * is_matrix))
    ours = new_optimizer(setting.config.train, total_steps=5)
    ours.build(variables)
    apply = compiled(lambda gradients: ours.apply(gradients, variables))
    for rate in (0.0, 0.005, 0.01):
        gradients = [generator.normal(size=v.shape).astype("float32") for v in variables]
        apply([tf.constant(gradient) for gradient in gradients])
        for variable, their, gradient in zip(variables, theirs, gradients, strict=True):
            their.apply(gradient, rate=rate * HALVES[variable.path.split("/")[0]])
    for variable, their in zip(variables, theirs, strict=True):
        np.testing.assert_allclose(variable.numpy(), their.value, rtol=1e-6, err_msg=variable.path)


def test_updates_shrink_by_the_decay(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    """Weight decay too: what it takes is a share of the weight, here 1 everywhere."""
    words = ["--train.layer_decay", "0.5", "--train.warmup", "0", "--train.weight_decay", "0.5"]
    setting = Setting([*tiny_options, *words], tiny_checkpoint)
    variables = setting.new_model().trainable_variables
    gradients = [keras.ops.ones_like(variable) for variable in variables]
    for variable in variables:
        variable.assign(keras.ops.ones_like(variable))
    optimizer = new_optimizer(setting.config.train, total_steps=10)
    optimizer.apply(gradients, variables)
    name = "self_attention_layer/query/kernel"
    paths = [f"transformer_layer_0/{name}", f"transformer_layer_1/{name}", "classifier/kernel"]
    found = {variable.path: 1 - variable.numpy().mean() for variable in variables}
    lower, upper, head = (found[path] for path in paths)
    assert lower == pytest.approx(upper / 2, rel=1e-3)
    assert upper == pytest.approx(head / 2, rel=1e-3)


def test_layer_factors_of_what_is_not_frozen() -> None:
    paths = ["transformer_layer_2/a/kernel", "transformer_layer_3/a/kernel", "masked_lm_head/b"]
    assert layer_factors(paths, layer_decay=0.5) == (0.25, 0.5, 1.0)
    assert layer_factors(["pooler/kernel"], layer_decay=0.5) == (1.0,)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30), st.integers(1, 9))
def test_groups_hold_everything_once_in_equal_parts(sizes: list[int], count: int) -> None:
    groups = groups_of_sizes(sizes, count)
    assert sorted(place for group in groups for place in group) == list(range(len(sizes)))
    assert len(groups) == min(count, len(sizes)) and all(groups)
    sums = [sum(sizes[place] for place in group) for group in groups]
    assert max(sums) - min(sums) <= max(sizes)


START = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")


def train_table(compiled: Callable, rows: list[int] | None) -> list[np.ndarray]:
    """Five steps of a table in which rows 1, 3 and 4 occur, and of a kernel: both, and the norm."""
    options = TrainOptions(weight_decay=0.5, warmup=0.0, learning_rate=0.05)
    table = keras.Variable(START, name="embeddings")
    kernel = keras.Variable(np.ones((2, 2), "float32"), name="kernel")
    known = {} if rows is None else {table.path: rows}
    optimizer = new_optimizer(options, total_steps=10, rows=known)
    optimizer.build([table, kernel])

    def apply(values, indices, gradient):
        slices = tf.IndexedSlices(values, indices, tf.constant([7, 3]))
        optimizer.apply([slices, gradient], [table, kernel])

    step, draw = compiled(apply), np.random.default_rng(1)
    for _ in range(5):
        indices = tf.constant(draw.choice([1, 3, 4], size=4), tf.int32)
        drawn = (tf.constant(draw.normal(size=size), tf.float32) for size in ((4, 3), (2, 2)))
        values, gradient = drawn
        step(values, indices, gradient)
    if rows is not None:
        np.testing.assert_array_equal(table.numpy()[[0, 2, 5, 6]], START[[0, 2, 5, 6]])
    optimizer.settle()
    optimizer.settle()  # there is nothing left
    return [table.numpy(), kernel.numpy(), optimizer.gradient_norm.numpy()]


@pytest.mark.parametrize("small", [0, optimizers.SMALL], ids=["compiled", "small"])
@pytest.mark.parametrize("compiled", [lambda apply: apply, tf.function], ids=["eager", "graph"])
def test_rows_that_do_not_occur_are_only_decayed(
    compiled: Callable, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of an update of all rows, decay and clipping included."""
    monkeypatch.setattr(optimizers, "SMALL", small)
    for ours, theirs in zip(
        train_table(compiled, [1, 3, 4]), train_table(compiled, None), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)


def test_a_row_that_is_none_of_those_that_occur() -> None:
    table = keras.Variable(np.ones((5, 2)), name="embeddings")
    optimizer = new_optimizer(TrainOptions(), total_steps=10, rows={table.path: [1, 2]})
    slices = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([4]), tf.constant([5, 2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a row that is no row"):
        optimizer.apply([slices], [table])


def test_optimizer_is_read_back() -> None:
    options = TrainOptions(layer_decay=0.75, weight_decay=0.5)
    optimizer = new_optimizer(options, total_steps=10, rows={"embeddings": [1, 3]})
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is AdamW
    assert (again.layer_decay, again.decoupled_weight_decay) == (0.75, 0.5)
    assert again.get_config() == optimizer.get_config()
