"""The encoder by itself: its outputs, its names, its types, and what it shares with keras_nlp."""

from __future__ import annotations

import subprocess
import sys

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from parity import assert_same_outputs, random_inputs

from kbert.config import EncoderConfig
from kbert.encoder import (
    Dropout,
    FeedForward,
    TransformerBlock,
    activation_function,
    attention_encoder,
    build_encoder,
    compute_in_parts,
    computed_by_length,
)
from kbert.errors import InputError
from kbert.heads import sequence_classifier
from kbert.precision import BFloat16Products, kept_operands

CONFIG = EncoderConfig(
    vocabulary_size=31,
    hidden_dim=20,
    num_layers=3,
    num_heads=4,
    intermediate_dim=37,
    max_sequence_length=13,
    num_segments=3,
    dropout=0.1,
    attention_dropout=0.2,
)
INPUTS = random_inputs(31, num_segments=3)  # (5, 11)


@pytest.fixture(scope="module")
def encoder() -> keras.Model:
    keras.utils.set_random_seed(3)
    return build_encoder(CONFIG)


def test_outputs(encoder):
    outputs = encoder(INPUTS)
    assert set(outputs) == {"sequence_output", "pooled_output"}
    assert outputs["sequence_output"].shape == (5, 11, 20)
    assert outputs["pooled_output"].shape == (5, 20)
    assert encoder.name == "encoder"


def test_a_lookup_reads_no_table(encoder):
    """It would be copied each time, where the optimizer writes rows of it."""
    handle = encoder.get_layer("token_embedding").embeddings.value.handle
    compute = tf.function(lambda inputs: encoder(inputs, training=True))
    graph = compute.get_concrete_function(INPUTS).graph
    (captured,) = [inside for outside, inside in graph.captures if outside is handle]
    assert [operation.type for operation in captured.consumers()] == ["ResourceGather"]


def test_attention_scores(encoder):
    scores = attention_encoder(encoder)(INPUTS)["attention_scores"]
    assert [layer.shape for layer in scores] == [(5, 4, 11, 11)] * 3
    for layer in scores:
        np.testing.assert_allclose(np.sum(layer, -1), 1.0, atol=1e-6)
        at_padding = INPUTS["padding_mask"][:, None, None, :] == 0
        assert np.max(np.where(at_padding, layer, 0)) == 0


def test_attention_scores_change_no_output(encoder):
    before = encoder.get_config()
    with_scores = attention_encoder(encoder)
    outputs = with_scores(INPUTS)
    outputs.pop("attention_scores")
    assert_same_outputs(outputs, encoder(INPUTS), tolerance=0)
    assert encoder.get_config() == before
    assert {id(v) for v in with_scores.variables} == {id(v) for v in encoder.variables}


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_attention_scores_of_a_model_that_is_trained(dtype):
    keras.utils.set_random_seed(3)
    encoder = build_encoder(CONFIG, dtype=dtype)
    model = sequence_classifier(encoder, CONFIG, num_labels=2, dtype=dtype)
    made_before = attention_encoder(model.get_layer("encoder"))
    untrained = made_before(INPUTS)["attention_scores"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss)
    model.train_on_batch(INPUTS, np.array([0, 1, 1, 0, 1]))
    outputs = attention_encoder(model.get_layer("encoder"))(INPUTS)
    assert_same_outputs(made_before(INPUTS), outputs, tolerance=0)
    scores = outputs.pop("attention_scores")
    assert_same_outputs(outputs, model.get_layer("encoder")(INPUTS), tolerance=0)
    assert np.abs(np.asarray(scores[0], "float32") - np.asarray(untrained[0], "float32")).max() > 0
    for layer in scores:
        assert layer.dtype == outputs["sequence_output"].dtype
        # Eleven numbers of eight bits each are rounded in bfloat16.
        atol = 1e-6 if dtype == "float32" else 1e-2
        np.testing.assert_allclose(np.sum(np.asarray(layer, "float32"), -1), 1.0, atol=atol)


@pytest.mark.parametrize("kind", ["bool", "int64", "float32"])
def test_padding_mask_of_any_type(encoder, kind):
    inputs = {**INPUTS, "padding_mask": INPUTS["padding_mask"].astype(kind)}
    assert_same_outputs(encoder(inputs), encoder(INPUTS), tolerance=0)


def test_padding_changes_nothing(encoder):
    short = {name: array[:, :4] for name, array in INPUTS.items()}
    short["padding_mask"] = np.ones_like(short["padding_mask"])
    padded = {name: np.pad(array, ((0, 0), (0, 6))) for name, array in short.items()}
    ours = encoder(padded)
    assert_same_outputs(
        [ours["sequence_output"][:, :4], ours["pooled_output"]],
        [encoder(short)["sequence_output"], encoder(short)["pooled_output"]],
        tolerance=1e-6,
    )


def test_nothing_but_padding_attends_evenly():
    """As torch's: no score is left in the sum with the lowest number, however large it is."""
    encoder = build_encoder(CONFIG)
    for variable in encoder.weights:
        variable.assign(3 * keras.random.normal(variable.shape))
    inputs = {**INPUTS, "padding_mask": np.zeros((5, 11), "int32")}
    for layer in attention_encoder(encoder)(inputs)["attention_scores"]:
        np.testing.assert_allclose(layer, np.full((5, 4, 11, 11), 1 / 11), rtol=1e-6)


def test_activations_are_the_exact_and_the_tanh_form():
    values = np.linspace(-4, 4, 41, dtype="float32")
    exact = [0.5 * x * (1 + float(tf.math.erf(x / np.sqrt(2)))) for x in values]
    tanh = 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))
    assert_same_outputs(activation_function("gelu")(values), exact, tolerance=1e-6)
    assert_same_outputs(activation_function("gelu_new")(values), tanh, tolerance=1e-6)
    assert np.abs(exact - tanh).max() > 1e-4


def test_too_long(encoder):
    inputs = {name: np.zeros((1, 14), "int32") for name in INPUTS}
    with pytest.raises(InputError, match="at most 13 positions .* received a length of 14"):
        encoder(inputs)


def test_initial_weights():
    config = EncoderConfig(500, 64, 1, 4, 256, initializer_range=0.05)
    for variable in build_encoder(config).weights:
        leaf = variable.path.split("/")[-1]
        values = np.asarray(variable)
        if leaf in ("kernel", "embeddings"):
            # Keras cuts the normal distribution at two standard deviations.
            assert np.abs(values).max() <= 0.1, variable.path
            assert 0.03 < values.std() < 0.055, variable.path
        else:
            np.testing.assert_array_equal(values, 1.0 if leaf == "gamma" else 0.0)


def test_layers_do_not_start_equal(encoder):
    kernels = [
        np.asarray(variable).reshape(20, -1)
        for variable in encoder.weights
        if variable.path.endswith(("query/kernel", "key/kernel", "pooler/kernel"))
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == 7


def test_variable_paths_are_unique_and_stable(encoder):
    paths = [variable.path for variable in encoder.variables]
    assert len(set(paths)) == len(paths)
    keras.layers.Dropout(0.5)  # takes a number of Keras' own
    build_encoder(CONFIG)
    assert [variable.path for variable in build_encoder(CONFIG).variables] == paths
    assert "transformer_layer_2/self_attention_layer/dropout_seed/seed_generator_state" in paths
    assert all(
        not layer.name[-1].isdigit() or "transformer" in layer.name for layer in encoder.layers
    )


@pytest.mark.parametrize("value", [-1, 31])
def test_row_of_padding_is_in_the_vocabulary(value):
    with pytest.raises(InputError, match=f"pad_token_id must be in the vocabulary, .*{value}"):
        EncoderConfig(**{**vars(CONFIG), "pad_token_id": value})


def test_token_embedding_is_reversible(encoder):
    layer = encoder.get_layer("token_embedding")
    assert isinstance(layer, keras_nlp.layers.ReversibleEmbedding)
    logits = layer(np.ones((2, 20), "float32"), reverse=True)
    np.testing.assert_allclose(logits[0], np.asarray(layer.embeddings).sum(1), atol=1e-6)


def test_block_is_that_of_keras_nlp():
    """Fails when keras_nlp changes what `TransformerBlock.build` repeats."""
    keras.utils.set_random_seed(0)
    options = {"activation": "gelu", "dropout": 0.1, "layer_norm_epsilon": 1e-3}
    ours = TransformerBlock(37, 4, attention_dropout=0.3, name="block", **options)
    theirs = keras_nlp.layers.TransformerEncoder(37, 4, name="block", **options)
    hidden = keras.random.normal((5, 11, 20))
    mask = INPUTS["padding_mask"]
    ours.build(hidden.shape)
    theirs.build(hidden.shape)
    values = {variable.path: variable for variable in theirs.weights}
    assert {variable.path for variable in ours.weights} == set(values)
    for variable in ours.weights:
        values[variable.path].assign(keras.random.normal(variable.shape, stddev=0.3))
        variable.assign(values[variable.path])
    assert_same_outputs(
        ours(hidden, padding_mask=mask, return_attention_scores=True),
        theirs(hidden, padding_mask=mask, return_attention_scores=True),
        tolerance=1e-6,
    )
    rates = {layer.name: layer.rate for layer in _dropouts(ours)}
    assert rates == {"dropout": 0.3, "self_attention_dropout": 0.1, "feedforward_dropout": 0.1}
    assert len(_dropouts(theirs)) == 3


def _dropouts(layer) -> list:
    kinds = (Dropout, keras.layers.Dropout)
    return [inner for inner in layer._flatten_layers() if isinstance(inner, kinds)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate, compiled):
    dropout = Dropout(rate, seed=1)
    call = tf.function(dropout, jit_compile=True) if compiled else dropout
    ones = tf.ones((101, 33, 99))  # an odd number of elements
    dropped = np.asarray(call(ones, training=True))
    count = dropped.size
    deviation = 5 * np.sqrt(rate * (1 - rate) / count)
    assert abs(np.mean(dropped == 0) - rate) < deviation + 1 / 65536
    assert abs(dropped.mean() - 1) < deviation / (1 - rate)
    assert len(np.unique(dropped)) == 2
    assert np.any(dropped != np.asarray(call(ones, training=True)))


def test_dropout_is_independent_of_its_neighbours():
    kept = np.asarray(Dropout(0.5, seed=1)(tf.ones((400_000,)), training=True)) > 0
    for step in (1, 2, 4):
        assert abs(np.corrcoef(kept[:-step], kept[step:])[0, 1]) < 0.01


def test_dropout_without_training_or_rate():
    ones = tf.ones((3, 5))
    np.testing.assert_array_equal(Dropout(0.5)(ones), ones)
    assert Dropout(0.0).variables == []
    np.testing.assert_array_equal(Dropout(0.0)(ones, training=True), ones)


def test_training_uses_both_dropouts(encoder):
    first, second = (np.asarray(encoder(INPUTS, training=True)["pooled_output"]) for _ in range(2))
    assert np.abs(first - second).max() > 0
    config = {**vars(CONFIG), "dropout": 0.0}
    only_attention = build_encoder(EncoderConfig(**config))
    assert len(only_attention.non_trainable_variables) == 3
    config = {**vars(CONFIG), "dropout": 0.0, "attention_dropout": 0.0}
    neither = build_encoder(EncoderConfig(**config))
    assert neither.non_trainable_variables == []
    assert_same_outputs(neither(INPUTS, training=True), neither(INPUTS), tolerance=1e-6)


def test_all_weights_are_trained(encoder):
    with tf.GradientTape() as tape:
        outputs = encoder(INPUTS, training=True)
        loss = tf.reduce_sum(outputs["sequence_output"] ** 3) + tf.reduce_sum(
            outputs["pooled_output"]
        )
    for variable, gradient in zip(
        encoder.trainable_variables,
        tape.gradient(loss, encoder.trainable_variables),
        strict=True,
    ):
        gradient = tf.convert_to_tensor(gradient)
        # A bias of the keys adds the same to all scores of a row.
        if not variable.path.endswith("key/bias"):
            assert np.abs(gradient).max() > 0, variable.path


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(encoder, policy):
    half = build_encoder(CONFIG, dtype=policy)
    half.set_weights(encoder.get_weights())
    assert {variable.dtype for variable in half.trainable_variables} == {"float32"}
    outputs = half(INPUTS, training=False)
    assert outputs["sequence_output"].dtype == policy.removeprefix("mixed_")
    numbers = {name: tf.cast(array, tf.float32) for name, array in outputs.items()}
    assert_same_outputs(numbers, encoder(INPUTS), tolerance=0.03)
    half(INPUTS, training=True)


def operations(function, name: str) -> list[tf.Operation]:
    """Operations of a traced function, those of the functions it calls included, by their type."""
    graph = function.get_concrete_function().graph
    return [operation for operation in graph.get_operations() if operation.type == name]


def test_bfloat16_products(encoder):
    """Products alone are in bfloat16, forwards and backwards: all else is in float32."""
    half = build_encoder(CONFIG, dtype=BFloat16Products())
    half.set_weights(encoder.get_weights())
    outputs = half(INPUTS, training=False)
    assert {output.dtype for output in outputs.values()} == {tf.float32}
    exact = encoder(INPUTS, training=False)
    assert_same_outputs(outputs, exact, tolerance=0.03)
    assert np.abs(outputs["sequence_output"] - exact["sequence_output"]).max() > 1e-5
    weights = half.trainable_variables

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(half(INPUTS, training=True)["sequence_output"] ** 2)
        return tape.gradient(loss, [variable.value for variable in weights])

    for kind, count in (
        ("MatMul", 4 * CONFIG.num_layers),
        ("BatchMatMulV2", 2 * CONFIG.num_layers),
    ):
        found = [op for op in operations(gradients, kind) if op.outputs[0].dtype == tf.bfloat16]
        assert len(found) == 3 * count, kind  # forwards, and both gradients
    for kind in ("AddV2", "Softmax", "Erf", "Rsqrt"):
        assert tf.bfloat16 not in {op.outputs[0].dtype for op in operations(gradients, kind)}, kind
    assert {grad.dtype for grad in gradients() if grad is not None} == {tf.float32}


@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize("policy", ["float32", BFloat16Products()])
def test_in_parts(encoder, parts, policy):
    """More parts than rows, too; what the parts make of the weights they make once."""
    whole = build_encoder(CONFIG, dtype=policy)
    whole.set_weights(encoder.get_weights())
    weights = [variable.value for variable in whole.trainable_variables]

    def gradients() -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(whole(INPUTS, training=False)["sequence_output"] ** 3)
        found = tape.gradient(loss, weights)
        return [tf.convert_to_tensor(grad).numpy() for grad in found if grad is not None]

    outputs, as_one = whole(INPUTS, training=False), gradients()
    compute_in_parts(whole, parts)
    assert_same_outputs(whole(INPUTS, training=False), outputs, tolerance=1e-6)
    largest = max(np.abs(gradient).max() for gradient in as_one)
    tolerance = 1e-6 if policy == "float32" else 0.01  # a sum of parts is rounded again
    for ours, theirs in zip(gradients(), as_one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest)
    casts = operations(tf.function(lambda: whole(INPUTS, training=False)), "Cast")
    width, wide = CONFIG.hidden_dim, CONFIG.intermediate_dim
    kernels = [[width, 3 * width], [width, width], [width, wide], [wide, width]]
    of_weights = [cast for cast in casts if cast.outputs[0].shape.as_list() in kernels]
    assert len(of_weights) == (0 if policy == "float32" else 4 * CONFIG.num_layers)


@pytest.fixture(scope="module")
def by_length(encoder):
    """The encoder as a graph of any shape, which computes three rows of alike lengths a time."""
    specs = {name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}
    call = tf.function(lambda inputs: encoder(inputs, training=False), input_signature=[specs])
    with computed_by_length(encoder, 3):
        return call.get_concrete_function()


@given(lengths=st.lists(st.integers(0, 11), max_size=13))
def test_rows_of_alike_lengths_are_computed_together(encoder, by_length, lengths):
    generator = np.random.default_rng(len(lengths))
    shape = (len(lengths), max([4, *lengths]))
    kept = np.arange(shape[1]) < np.reshape(lengths, (-1, 1))
    inputs = {
        "token_ids": np.where(kept, generator.integers(1, 31, shape), 0).astype("int32"),
        "segment_ids": np.where(kept, generator.integers(0, 3, shape), 0).astype("int32"),
        "padding_mask": kept.astype("int32"),
    }
    assert encoder.rows_by_length == 0
    expected = encoder(inputs, training=False)
    outputs = by_length({name: tf.constant(array) for name, array in inputs.items()})
    filled = np.array(lengths, int) > 0  # a row of nothing but padding is not read
    for name in ("sequence_output", "pooled_output"):
        ours, theirs = np.array(outputs[name]), np.array(expected[name])
        assert ours.shape == theirs.shape
        seen = kept if name == "sequence_output" else filled
        np.testing.assert_allclose(ours[seen], theirs[seen], atol=2e-6)


def test_what_is_made_of_weights_is_kept_for_a_graph(encoder):
    def answers() -> dict[str, tf.Tensor]:
        return encoder(INPUTS, training=False)

    width = CONFIG.hidden_dim
    with kept_operands():
        kept = tf.function(answers).get_concrete_function()
        shapes = [tuple(variable.shape) for variable in kept.graph.variables]
        outputs = kept()
    assert shapes.count((width, 3 * width)) == CONFIG.num_layers
    assert (width, CONFIG.num_heads, width // CONFIG.num_heads) not in shapes
    assert_same_outputs(outputs, answers(), tolerance=1e-6)


def test_gelu_is_torchs():
    torch = pytest.importorskip("torch")
    numbers = np.linspace(-9, 9, 1001, dtype="float32")
    theirs = torch.nn.functional.gelu(torch.tensor(numbers)).numpy()
    np.testing.assert_allclose(activation_function("gelu")(numbers), theirs, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_gelu_in_training_is_the_same(training):
    layer = FeedForward(3, activation=activation_function("gelu"))
    layer.build((None, 2))
    layer.kernel.assign([[1, -1, 0.5], [2, 0.1, -3]])
    inputs = tf.constant(np.random.default_rng(0).normal(0, 2, (500, 2)), tf.float32)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(tf.square(outputs))
        return outputs, tape.gradient(loss, [layer.kernel.value, layer.bias.value])

    torch = pytest.importorskip("torch")
    states = torch.tensor(inputs.numpy())
    weights = [torch.tensor(weight.numpy(), requires_grad=True) for weight in layer.weights]
    theirs = torch.nn.functional.gelu(states @ weights[0] + weights[1])
    theirs.square().sum().backward()
    outputs, ours = gradients()
    np.testing.assert_allclose(outputs, theirs.detach().numpy(), atol=2e-6)
    for gradient, weight in zip(ours, weights, strict=True):
        np.testing.assert_allclose(gradient, weight.grad.numpy(), rtol=1e-5)
    graph = tf.function(layer).get_concrete_function(inputs, training=training).graph
    attributes = {name for operation in graph.get_operations() for name in operation.node_def.attr}
    assert ("_gradient_op_type" in attributes) == training  # what is exported has none


def test_compiles_in_xla(encoder):
    compiled = tf.function(encoder, jit_compile=True)
    inputs = {name: tf.constant(array) for name, array in INPUTS.items()}
    assert_same_outputs(compiled(inputs), encoder(INPUTS), tolerance=1e-6)
    compiled(inputs, training=True)


def test_saved_and_read_again(encoder, tmp_path):
    encoder.save(tmp_path / "encoder.keras")
    again = keras.models.load_model(tmp_path / "encoder.keras")
    assert_same_outputs(again(INPUTS), encoder(INPUTS), tolerance=0)


def test_paths_and_dropout_repeat_from_process_to_process():
    program = """if True:
        import keras, numpy as np
        from kbert.config import EncoderConfig
        from kbert.encoder import build_encoder
        keras.utils.set_random_seed(5)
        encoder = build_encoder(EncoderConfig(31, 20, 1, 4, 37))
        ids = np.ones((2, 5), "int32")
        inputs = {name: ids for name in ("token_ids", "segment_ids", "padding_mask")}
        print([variable.path for variable in encoder.variables])
        print(np.asarray(encoder(inputs, training=True)["pooled_output"]).tobytes().hex())
    """
    runs = [
        subprocess.run([sys.executable, "-c", start + program], capture_output=True, check=True)
        for start in ("", "import keras; keras.layers.Dropout(0.5)\n")
    ]
    assert runs[0].stdout == runs[1].stdout
