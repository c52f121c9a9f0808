import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from serve.errors import Code, ServingError
from serve.loader import Loader
from serve.metrics import Metrics
from serve.servable import Servable
from serve.signatures import CLASSIFY, REGRESS
from serve.warmup import WARMUP_FILE, warm_up

WriteRecords = Callable[[Path, Sequence[bytes]], None]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def examples(exports: dict[str, Path], metrics: Metrics) -> Iterator[Servable]:
    servable = Loader(metrics=metrics)("model", exports["examples"], 1)
    yield servable
    servable.close()


def predict_log(signature_name: str = "neither") -> PredictionLog:
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "the name does not matter"
    request.model_spec.signature_name = signature_name
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto([b""]))
    return log


def error_of(servable: Servable, path: Path, metrics: Metrics) -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        warm_up(servable, path, metrics=metrics)
    return caught.value.code, caught.value.message


def test_all_kinds_of_requests(
    examples: Servable, metrics: Metrics, tmp_path: Path, write_records: WriteRecords
):
    classify, regress, both = PredictionLog(), PredictionLog(), PredictionLog()
    classify.classify_log.request.input.example_list.examples.add()
    regress.regress_log.request.model_spec.signature_name = "regress"
    regress.regress_log.request.input.example_list_with_context.examples.add()
    request = both.multi_inference_log.request
    request.input.example_list.examples.add()
    for signature_name, method in (("classify", CLASSIFY), ("regress", REGRESS)):
        task = request.tasks.add(method_name=method)
        task.model_spec.name = "any"
        task.model_spec.signature_name = signature_name
    logs = [predict_log(), classify, regress, both, PredictionLog()]
    write_records(tmp_path, [log.SerializeToString() for log in logs])
    warm_up(examples, tmp_path, metrics=metrics)
    for api in ("Predict", "Classify", "Regress", "MultiInference"):
        assert metrics.runtime_latency.count("model", api, "TF1") == 1
    assert metrics.model_warmup_latency.count(str(tmp_path), "OK") == 1


def test_no_file_is_no_error(examples: Servable, tmp_path: Path):
    metrics = Metrics()
    warm_up(examples, tmp_path, metrics=metrics)
    assert metrics.model_warmup_latency.samples() == []


def test_a_failing_request(
    examples: Servable, metrics: Metrics, tmp_path: Path, write_records: WriteRecords
):
    write_records(tmp_path, [predict_log("no").SerializeToString()])
    message = 'Serving signature key "no" not found.'
    assert error_of(examples, tmp_path, metrics) == (Code.FAILED_PRECONDITION, message)
    status = f"FAILED_PRECONDITION: {message}"
    assert metrics.model_warmup_latency.count(str(tmp_path), status) == 1


def test_runs_of_a_session_are_not_replayed(
    examples: Servable, metrics: Metrics, tmp_path: Path, write_records: WriteRecords
):
    log = PredictionLog()
    log.session_run_log.request.SetInParent()
    write_records(tmp_path, [log.SerializeToString()])
    assert error_of(examples, tmp_path, metrics) == (
        Code.UNIMPLEMENTED,
        "Unsupported log_type for warmup: 5",
    )


def test_multi_inference_without_tasks(
    examples: Servable, metrics: Metrics, tmp_path: Path, write_records: WriteRecords
):
    log = PredictionLog()
    log.multi_inference_log.request.SetInParent()
    write_records(tmp_path, [log.SerializeToString()])
    assert error_of(examples, tmp_path, metrics)[0] is Code.INVALID_ARGUMENT


def test_no_more_than_1000_records(
    examples: Servable, metrics: Metrics, tmp_path: Path, write_records: WriteRecords
):
    empty = PredictionLog().SerializeToString()
    write_records(tmp_path, [empty] * 1000)
    warm_up(examples, tmp_path, metrics=metrics)
    write_records(tmp_path, [empty] * 1001)
    assert error_of(examples, tmp_path, metrics) == (
        Code.INVALID_ARGUMENT,
        "Number of warmup records exceeds the maximum (1000) at "
        f"{tmp_path}/assets.extra/tf_serving_warmup_requests",
    )


def test_a_record_that_is_no_log(
    examples: Servable, metrics: Metrics, tmp_path: Path, write_records: WriteRecords
):
    write_records(tmp_path, [b"malformed_record\xff"])
    code, message = error_of(examples, tmp_path, metrics)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("Failed to parse warmup record: malformed_record")


def test_a_file_that_is_no_tfrecord(examples: Servable, metrics: Metrics, tmp_path: Path):
    (tmp_path / WARMUP_FILE).parent.mkdir()
    (tmp_path / WARMUP_FILE).write_bytes(b"this is no TFRecord file at all")
    assert error_of(examples, tmp_path, metrics) == (
        Code.DATA_LOSS,
        "corrupted record at 0 (Is this even a TFRecord file?). Please verify your warmup data is "
        "in TFRecord format.",
    )


def test_a_file_that_is_cut_off(
    examples: Servable, metrics: Metrics, tmp_path: Path, write_records: WriteRecords
):
    write_records(tmp_path, [predict_log().SerializeToString()] * 2)
    whole = (tmp_path / WARMUP_FILE).read_bytes()
    (tmp_path / WARMUP_FILE).write_bytes(whole[:-3])
    assert error_of(examples, tmp_path, metrics)[0] is Code.DATA_LOSS


def test_the_loader_warms_up(exports: dict[str, Path], tmp_path: Path, write_records: WriteRecords):
    path = Path(shutil.copytree(exports["examples"], tmp_path / "1"))
    write_records(path, [predict_log().SerializeToString()])
    metrics = Metrics()
    servable = Loader(metrics=metrics)("model", path, 1)
    assert metrics.model_warmup_latency.count(str(path), "OK") == 1
    assert metrics.runtime_latency.count("model", "Predict", "TF1") == 1
    servable.predict({"inputs": np.array([b""], dtype=object)}, signature_name="neither")
    servable.close()
