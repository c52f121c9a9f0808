"""Replays the requests that a SavedModel brings along, before it takes others.

The first run of a graph is slow: memory is allocated, kernels are chosen. The file is
assets.extra/tf_serving_warmup_requests, a TFRecord file of PredictionLog, as in TensorFlow Serving.
"""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serve import inference
from serve.errors import Code, ServingError, invalid_argument
from serve.metrics import Metrics
from serve.servable import Servable

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000
ANSWERS = {
    "predict_log": inference.predict,
    "classify_log": inference.classify,
    "regress_log": inference.regress,
    "multi_inference_log": inference.multi_inference,
}

log = logging.getLogger(__name__)


def warm_up(servable: Servable, export_path: Path, *, metrics: Metrics) -> None:
    """Sends a model the requests of its warm-up file, if it has one.

    Args:
        servable: the model.
        export_path: the SavedModel.
        metrics: take the time as model_warmup_latency.

    Raises:
        ServingError: the file cannot be read, has too many records, or a request fails.
    """
    path = export_path / WARMUP_FILE
    if not path.exists():
        return
    start = time.perf_counter()
    num_records, status = 0, "OK"
    try:
        for record in _read_records(path):
            _replay(servable, record, path)
            num_records += 1
            if num_records > MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}"
                )
    except ServingError as error:
        status = f"{error.code.name}: {error.message}"
        raise
    finally:
        microseconds = (time.perf_counter() - start) * 1e6
        metrics.model_warmup_latency.observe(microseconds, str(export_path), status)
    log.info("warmed up with %d requests of %s", num_records, path)


def _read_records(path: Path) -> Iterator[bytes]:
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            yield bytes(record.numpy())
    except tf.errors.OpError as error:
        # without the name of the operation before it and after it
        message = re.sub(r"^\{\{.*?\}\} | \[Op:.*", "", str(error.message))
        if isinstance(error, tf.errors.DataLossError):
            message += ". Please verify your warmup data is in TFRecord format."
        raise ServingError(Code(error.error_code), message) from None


def _replay(servable: Servable, record: bytes, path: Path) -> None:
    prediction_log = prediction_log_pb2.PredictionLog()
    try:
        prediction_log.ParseFromString(record)
    except DecodeError:
        text = record.decode("utf-8", "replace")
        raise invalid_argument(f"Failed to parse warmup record: {text} from {path}") from None
    kind = prediction_log.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in ANSWERS:
        number = prediction_log.DESCRIPTOR.fields_by_name[kind].number
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
    ANSWERS[kind](servable, getattr(prediction_log, kind).request)
