from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.example.example_pb2 import Example

from serve.errors import Code, ServingError
from serve.loader import Loader
from serve.metrics import Metrics
from serve.servable import Servable
from serve.signatures import CLASSIFY, REGRESS, type_name

TIMEOUT = 30.0


class RecordingSession:
    """A session that notes the time-outs it is given, and answers with what it was built with."""

    def __init__(self, *results: np.ndarray) -> None:
        self.results = list(results)
        self.timeouts: list[float | None] = []

    def run(self, feeds: object, fetches: object, *, timeout: float | None = None) -> list:
        self.timeouts.append(timeout)
        return self.results

    def close(self) -> None:
        pass


def load(path: Path, *, metrics: Metrics | None = None, **options: Any) -> Servable:
    return Loader(metrics=metrics or Metrics(), **options)("model", path, 1)


def serialised(x: float, s: str = "a") -> bytes:
    example = Example()
    example.features.feature["x"].float_list.value.append(x)
    example.features.feature["s"].bytes_list.value.append(s.encode())
    return example.SerializeToString()


@pytest.fixture(scope="module")
def half(exports: dict[str, Path]) -> Iterator[Servable]:
    servable = load(exports["half_plus_two"])
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def pair(exports: dict[str, Path]) -> Iterator[Servable]:
    servable = load(exports["pair"])
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def examples(exports: dict[str, Path], metrics: Metrics) -> Iterator[Servable]:
    servable = load(exports["examples"], metrics=metrics)
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def strict(exports: dict[str, Path]) -> Iterator[Servable]:
    """`examples` with --enable_signature_method_name_check."""
    servable = load(exports["examples"], check_method_names=True)
    yield servable
    servable.close()


def error_of(servable: Servable, *args: object, **kwargs: object) -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        servable.predict(*args, **kwargs)
    return caught.value.code, caught.value.message


def test_predict(half: Servable):
    assert half.input_types("") == {"x": "float"}
    assert half.input_types("absent") is None
    np.testing.assert_array_equal(half.predict({"x": np.float32([[1], [2]])})["y"], [[2.5], [3]])


def test_static_shapes_are_not_checked(half: Servable):
    outputs = half.predict({"x": np.float32([1, 2, 5])})  # the signature says [-1, 1]
    np.testing.assert_array_equal(outputs["y"], [2.5, 3, 4.5])


def test_strings_scalar_and_with_zeros(exports: dict[str, Path]):
    servable = load(exports["text"])
    outputs = servable.predict(
        {"text": np.array([b"a\0", b""], dtype=object)}, output_filter=["text_bytes"]
    )
    assert outputs["text_bytes"].tolist() == [b"a\0", b""]
    scalar = servable.predict(
        {"text": np.array(b"\xff\0", dtype=object)}, output_filter=["text_bytes"]
    )
    assert scalar["text_bytes"].dtype == object
    assert scalar["text_bytes"].item() == b"\xff\0"
    servable.close()


def test_output_filter(pair: Servable):
    inputs = {"a": np.float32([2]), "b": np.float32([3])}
    assert list(pair.predict(inputs)) == ["product", "sum"]
    assert list(pair.predict(inputs, output_filter=["sum"])) == ["sum"]
    assert error_of(pair, inputs, output_filter=["sum", "sum"]) == (
        Code.INVALID_ARGUMENT,
        "duplicate output tensor alias: sum",
    )
    assert error_of(pair, inputs, output_filter=["Y"]) == (
        Code.INVALID_ARGUMENT,
        "output tensor alias not found in signature: Y Outputs expected to be in the set "
        "{product,sum}.",
    )


def test_inputs_that_do_not_fit(pair: Servable):
    one = np.float32([1])
    assert error_of(pair, {"a": one}) == (
        Code.INVALID_ARGUMENT,
        "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
        "Missing but required: {b}.",
    )
    code, message = error_of(pair, {"a": one, "z": one})
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("Signature input alias: b(feed name: serving_default_b:0) not found")
    assert error_of(pair, {"a": one, "b": np.int32([1])}) == (
        Code.INVALID_ARGUMENT,
        "Expects arg[1] to be float but int32 is provided",
    )
    assert error_of(pair, {"a": one, "b": one}, signature_name="absent") == (
        Code.FAILED_PRECONDITION,
        'Serving signature key "absent" not found.',
    )


def test_an_input_with_a_default_may_be_left_out(exports: dict[str, Path]):
    servable = load(exports["default"])
    assert servable.predict({"a": np.float32([1])})["sum"] == [11]
    assert servable.predict({"a": np.float32([1]), "b": np.float32([2])})["sum"] == [3]
    assert error_of(servable, {"a": np.float32([1]), "z": np.float32([1])}) == (
        Code.INVALID_ARGUMENT,
        "Inputs contains invalid name. Used request inputs: a, request input: a,z",
    )
    assert error_of(servable, {"b": np.float32([1])}) == (
        Code.INVALID_ARGUMENT,
        "Signature input alias: a(feed name: serving_default_a:0) not found in request and no "
        "default value provided. Inputs expected to be in the request {b}, or default input alias "
        "set: b",
    )
    servable.close()


def test_errors_of_operations_keep_their_code(half: Servable):
    code, message = error_of(half, {"x": np.float32([1])}, signature_name="triples")
    assert code is Code.INVALID_ARGUMENT
    assert "Input to reshape is a tensor with 1 values" in message


def test_time_outs_reach_the_session(half: Servable):
    session = RecordingSession(np.float32([1]))
    servable = Servable(1, session, half.signatures)
    servable.predict({"x": np.float32([1])}, timeout=TIMEOUT)
    servable.predict({"x": np.float32([1])})
    assert session.timeouts == [TIMEOUT, None]


def test_outputs_may_share_a_tensor(exports: dict[str, Path]):
    servable = load(exports["tensorflow_1"], tags=["old"])
    outputs = servable.predict({"words": np.array([b"market"], dtype=object)})
    assert [list(outputs), outputs["ids"], outputs["again"]] == [["again", "ids"], [101], [101]]
    servable.close()


# --- classify, regress, both ---------------------------------------------------------------


def test_classify(examples: Servable):
    outputs = examples.classify([serialised(0.25), serialised(0.5, "b")], signature_name="classify")
    assert outputs["classes"].tolist() == [[b"a", b"rest"], [b"b", b"rest"]]
    np.testing.assert_array_equal(outputs["scores"], np.float32([[0.25, 0.75], [0.5, 0.5]]))
    # the default signature; its method name is wrong, which TF Serving ignores
    assert list(examples.classify([serialised(0.25)])) == ["classes", "scores"]
    assert list(examples.classify([b""], signature_name="only_scores")) == ["scores"]
    assert list(examples.classify([b""], signature_name="only_classes")) == ["classes"]


def test_regress(examples: Servable):
    batch = [serialised(0.25), serialised(1)]
    values = examples.regress(batch, signature_name="regress")  # (batch, 1) in the graph
    assert values.dtype == np.float32
    assert values.tolist() == [0.5, 2]
    assert examples.regress(batch, signature_name="flat_regress").tolist() == [0.75, 3]


@pytest.mark.parametrize(
    ("method", "signature_name", "message"),
    [
        ("classify", "no", "No signature was found with the name: no"),
        ("classify", "two_inputs", "Expected one input Tensor."),
        ("classify", "unnamed_input", "No classification inputs found in SignatureDef: inputs {"),
        (
            "classify",
            "neither",
            'Expected classification signature outputs to contain at least one of "classes" or '
            '"scores". Signature was: inputs {',
        ),
        (
            "classify",
            "flat_scores",
            "Expected Tensor shape: [batch_size num_classes] but got [2]",
        ),
        ("classify", "whole_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_INT32"),
        ("classify", "float_classes", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("classify", "short_scores", "Expected scores output batch size of 2. Got: 1"),
        (
            "classify",
            "narrow_scores",
            "Tensors class and score should match in dim_size(1). Got 2 vs. 1",
        ),
        ("regress", "no", "No signature was found with the name: no"),
        ("regress", "two_inputs", "Expected one input Tensor."),
        ("regress", "classify", "Expected one output Tensor."),
        ("regress", "unnamed_input", "No regression inputs found in SignatureDef: inputs {"),
        ("regress", "unnamed_regress", "No regression outputs found in SignatureDef: inputs {"),
        (
            "regress",
            "wide_regress",
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            "[2,2]",
        ),
        (
            "regress",
            "short_regress",
            "Input batch size did not match output batch size: 2 vs. 1",
        ),
        ("regress", "whole_regress", "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    ],
)
def test_what_cannot_classify_or_regress(
    examples: Servable, method: str, signature_name: str, message: str
):
    with pytest.raises(ServingError) as caught:
        getattr(examples, method)([serialised(1), serialised(2)], signature_name=signature_name)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.startswith(message)


def test_no_examples_and_broken_ones(examples: Servable):
    for method in (examples.classify, examples.regress):
        name = method.__name__
        with pytest.raises(ServingError, match="^Input is empty.$"):
            method([], signature_name=name)
        with pytest.raises(ServingError, match="Could not parse example input") as caught:
            method([b"no example"], signature_name=name)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_multi_inference(examples: Servable):
    tasks = [("regress", REGRESS), ("classify", CLASSIFY), ("flat_regress", REGRESS)]
    first, second, third = examples.multi_inference([serialised(0.25)], tasks)
    assert [first, third] == [[0.5], [0.75]]
    assert second["classes"].tolist() == [[b"a", b"rest"]]


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        (
            [("", CLASSIFY), ("serving_default", REGRESS)],
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: serving_default",
        ),
        (
            [("no", CLASSIFY)],
            Code.INVALID_ARGUMENT,
            "Requested signature not found in model graph: no",
        ),
        (
            [("regress", "tensorflow/serving/predict")],
            Code.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            [("regress", REGRESS), ("other_regress", REGRESS)],
            Code.INVALID_ARGUMENT,
            "Input tensor must be the same for all Signatures.",
        ),
        ([("regress", CLASSIFY)], Code.INVALID_ARGUMENT, "Expected classification signature"),
    ],
)
def test_multi_inference_refuses(
    examples: Servable, tasks: list[tuple[str, str]], code: Code, message: str
):
    with pytest.raises(ServingError) as caught:
        examples.multi_inference([serialised(1)], tasks)
    assert caught.value.code is code
    assert caught.value.message.startswith(message)


def test_method_names_are_checked_on_demand(strict: Servable, exports: dict[str, Path]):
    assert strict.regress([serialised(1)], signature_name="regress") == [2]
    for method, kind in ((strict.classify, "classification"), (strict.regress, "regression")):
        with pytest.raises(ServingError) as caught:
            method([serialised(1)])
        assert caught.value.message == (
            f"Expected {kind} signature method_name to be tensorflow/serving/{method.__name__}. "
            "Was: tensorflow/serving/predict"
        )
    odd = strict.signatures["regress"].__class__()
    odd.CopyFrom(strict.signatures["regress"])
    odd.method_name = "odd"
    servable = Servable(1, RecordingSession(), {"odd": odd}, check_method_names=True)
    assert error_of(servable, {}, signature_name="odd") == (
        Code.INTERNAL,
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: odd",
    )


def test_metrics_of_runs_and_examples(exports: dict[str, Path]):
    metrics = Metrics()
    servable = load(exports["examples"], metrics=metrics)
    servable.classify([serialised(1), serialised(2)], signature_name="classify")
    servable.regress([serialised(1)], signature_name="regress")
    inputs = {"inputs": np.array([serialised(1)], dtype=object)}
    servable.predict(inputs, signature_name="neither")
    servable.multi_inference([serialised(1)] * 3, [("regress", REGRESS)])
    for api in ("Predict", "Classify", "Regress", "MultiInference"):
        assert metrics.runtime_latency.count("model", api, "TF1") == 1
    assert metrics.request_example_count_total.value("model") == 6
    assert metrics.request_example_counts.count("model") == 3  # requests; predict has no examples
    servable.close()


def test_type_name():
    types = (tf.float32, np.dtype(np.float64), tf.half, np.dtype(object), tf.int32, 1)
    names = ["float", "double", "half", "string", "int32", "float"]
    assert [type_name(dtype) for dtype in types] == names
