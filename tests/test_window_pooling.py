"""Window pooling: against torch's segment reduction, gradients, graphs, empty batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kbert.errors import InputError
from kbert.window_pooling import WindowPooling

POOLINGS = ("mean", "max")


def _windows(counts: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values (windows, 3) and the text of each window."""
    values = np.random.default_rng(seed).normal(size=(sum(counts), 3)).astype(np.float32)
    return values, np.repeat(np.arange(len(counts), dtype=np.int32), counts)


@pytest.mark.parametrize("pooling", POOLINGS)
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_values_and_gradients_are_torchs(pooling: str, counts: list[int], seed: int) -> None:
    torch = pytest.importorskip("torch")
    values, rows = _windows(counts, seed)
    factors = np.random.default_rng(seed + 1).normal(size=(len(counts), 3)).astype(np.float32)
    variable = tf.Variable(values)
    with tf.GradientTape() as tape:
        pooled = WindowPooling(pooling)(variable, tf.constant(rows))
        total = tf.reduce_sum(pooled * factors)
    leaf = torch.tensor(values, requires_grad=True)
    theirs = torch.segment_reduce(leaf, pooling, lengths=torch.tensor(counts))
    (theirs * torch.tensor(factors)).sum().backward()
    np.testing.assert_allclose(pooled, theirs.detach(), atol=1e-6)
    gradient = tf.convert_to_tensor(tape.gradient(total, variable))
    np.testing.assert_allclose(gradient, leaf.grad, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_one_window_a_text_changes_nothing(pooling: str) -> None:
    values, rows = _windows([1, 1, 1, 1])
    np.testing.assert_array_equal(WindowPooling(pooling)(values, rows), values)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_functional_model_takes_more_windows_than_texts(pooling: str) -> None:
    values = keras.Input((3,), name="values")
    rows = keras.Input((), dtype="int32", name="rows")
    pooled = WindowPooling(pooling, name="pooling")(keras.layers.Dense(2)(values), rows)
    assert pooled.shape == (None, 2)
    model = keras.Model({"values": values, "rows": rows}, pooled)
    traced = tf.function(lambda inputs: model(inputs, training=False), reduce_retracing=True)
    for counts in ([2, 1, 3], [5], []):
        numbers, texts = _windows(counts)
        inputs = {"values": tf.constant(numbers), "rows": tf.constant(texts)}
        answers = traced(inputs)
        assert answers.shape == (len(counts), 2)
        np.testing.assert_array_equal(answers, model(inputs))


def test_fit_takes_the_targets_of_texts() -> None:
    values = keras.Input((3,), name="values")
    rows = keras.Input((), dtype="int32", name="rows")
    logits = keras.layers.Dense(2, use_bias=False)(values)
    model = keras.Model([rows, values], WindowPooling("mean")(logits, rows))
    model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    numbers, texts = _windows([2, 3])
    targets = np.ones((2, 2), np.float32)
    kernel = model.weights[0].numpy()
    means = np.stack([numbers[:2].mean(axis=0), numbers[2:].mean(axis=0)])
    error = means @ kernel - targets
    dataset = tf.data.Dataset.from_tensors(((texts, numbers), targets))
    model.fit(dataset, verbose=0)
    expected = kernel - 0.1 * means.T @ error / 2  # of the mean over the four numbers
    np.testing.assert_allclose(model.weights[0], expected, atol=1e-6)


def test_config_makes_the_same_layer() -> None:
    layer = WindowPooling("max", name="windows")
    assert WindowPooling.from_config(layer.get_config()).get_config() == layer.get_config()
    assert not layer.weights


def test_wrong_pooling() -> None:
    with pytest.raises(InputError, match="mean, max. Received: sum"):
        WindowPooling("sum")
