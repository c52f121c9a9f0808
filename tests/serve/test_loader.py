import gc
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serve import loader
from serve.errors import Code, ServingError
from serve.loader import Loader
from serve.metrics import Metrics
from serve.session import ModelSession

WORDS = {"words": np.array([b"market", b"the", b"?"], dtype=object)}


class Batching:
    """Stands in for BatchScheduler and BatchingSession: runs each request, and takes note."""

    def __init__(self) -> None:
        self.parameters: Any = None
        self.events: list[Any] = []

    def wrap(
        self, session: ModelSession, signatures: Mapping[str, Any], *, parameters: Any = None
    ) -> "Batching":
        self.session = session
        self.parameters = parameters
        assert "serving_default" in signatures
        self.events.append("wrap")
        return self

    def run(self, feeds: Any, fetches: Any, *, timeout: float | None = None) -> list[np.ndarray]:
        self.events.append("run")
        return self.session.run(feeds, fetches, timeout=timeout)

    def close(self) -> None:
        self.events.append("close")
        self.session.close()


@pytest.fixture
def copy_of(exports: dict[str, Path], tmp_path: Path):
    """A function that copies an export, to be changed."""

    def copy_of(name: str) -> Path:
        return Path(shutil.copytree(exports[name], tmp_path / name))

    return copy_of


def load(path: Path, **options: Any):
    return Loader(metrics=options.pop("metrics", None) or Metrics(), **options)("model", path, 7)


def error_of(path: Path, **options: Any) -> tuple[Code, str]:
    with pytest.raises(ServingError) as caught:
        load(path, **options)
    assert "\n" not in caught.value.message
    return caught.value.code, caught.value.message


def test_load(exports: dict[str, Path]):
    servable = load(exports["pair"], inter_op_threads=1, intra_op_threads=1)
    assert servable.version == 7
    assert "serving_default" in servable.signatures
    assert servable.predict({"a": np.float32([1]), "b": np.float32([2])})["sum"] == [3]
    servable.close()


def test_threads_are_those_of_the_session(exports: dict[str, Path]):
    servable = load(exports["pair"], inter_op_threads=3, intra_op_threads=2)
    config = servable._session._session._config
    assert config.inter_op_parallelism_threads == 3
    assert config.intra_op_parallelism_threads == 2
    servable.close()


def test_tensorflow_1_with_assets_and_an_init_op(exports: dict[str, Path]):
    servable = load(exports["tensorflow_1"], tags=["old"])
    assert servable.predict(WORDS)["ids"].tolist() == [101, 100, 99]
    servable.close()


def test_unknown_tags(exports: dict[str, Path]):
    code, message = error_of(exports["tensorflow_1"])
    assert code is Code.NOT_FOUND
    assert "serve" in message
    assert "could not be found in SavedModel, with available tags" in message


@pytest.mark.parametrize(
    ("file", "text", "code", "words"),
    [
        ("notes.txt", "", Code.NOT_FOUND, "SavedModel file does not exist"),
        ("saved_model.pb", "no protocol buffer", Code.UNKNOWN, "Cannot parse file"),
    ],
)
def test_what_is_no_saved_model(tmp_path: Path, file: str, text: str, code: Code, words: str):
    (tmp_path / file).write_text(text)
    actual_code, message = error_of(tmp_path)
    assert actual_code is code
    assert words in message


def rename_an_operation(path: Path) -> None:
    file = path / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    saved_model.meta_graphs[0].graph_def.node[0].op = "TFText>NoSuchOp"
    file.write_bytes(saved_model.SerializeToString())


def test_an_unknown_operation(copy_of: Any, monkeypatch: pytest.MonkeyPatch):
    path = copy_of("pair")
    rename_an_operation(path)
    _, message = error_of(path)
    assert "TFText>NoSuchOp" in message
    assert "tensorflow_text, which has" not in message
    monkeypatch.setattr(loader, "_import_text_ops", lambda: "no module")
    _, message = error_of(path)
    assert (
        "tensorflow_text, which has the text operations, cannot be imported: no module" in message
    )


def test_missing_variables(copy_of: Any):
    path = copy_of("half_plus_two")
    shutil.rmtree(path / "variables")
    error_of(path)


# --- batching ------------------------------------------------------------------------------


def test_batching_by_the_scheduler_of_the_server(exports: dict[str, Path]):
    scheduler = Batching()
    servable = load(exports["tensorflow_1"], tags=["old"], scheduler=scheduler)
    assert servable.predict(WORDS)["ids"].tolist() == [101, 100, 99]
    servable.close()
    assert scheduler.events == ["wrap", "run", "close"]  # the server stops it


def test_batching_by_the_file_of_the_model(copy_of: Any):
    path = copy_of("pair")
    server = Batching()
    load(path, scheduler=server, per_model_batching=True).close()
    assert server.events == []  # no file: not batched
    (path / "batching_params.pbtxt").write_text("max_batch_size { value: 5 }")
    load(path, per_model_batching=True).close()  # no --enable_batching: not batched
    servable = load(path, scheduler=server, per_model_batching=True)
    servable.predict({"a": np.float32([1]), "b": np.float32([2])})
    servable.close()
    assert server.events == ["wrap", "run", "close"]
    assert server.parameters.max_batch_size.value == 5
    (path / "batching_params.pbtxt").write_text("max_batch_size: 5")
    code, message = error_of(path, scheduler=server, per_model_batching=True)
    assert code is Code.INVALID_ARGUMENT
    assert "batching_params.pbtxt: Error parsing text-format" in message


def test_a_signature_that_cannot_be_read_takes_the_queues_away(copy_of: Any):
    path = copy_of("pair")
    file = path / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    saved_model.meta_graphs[0].signature_def["serving_default"].inputs["a"].dtype = 0
    file.write_bytes(saved_model.SerializeToString())
    scheduler = Batching()
    with pytest.raises(TypeError):
        load(path, scheduler=scheduler)
    assert scheduler.events == ["wrap", "close"]


# --- warm-up -------------------------------------------------------------------------------


@pytest.fixture
def broken(copy_of: Any, write_records: Any) -> Path:
    """A model whose warm-up asks for a signature that it does not have."""
    record = prediction_log_pb2.PredictionLog()
    record.predict_log.request.model_spec.signature_name = "no"
    path = copy_of("pair")
    write_records(path, [record.SerializeToString()])
    return path


def test_a_warm_up_that_fails_fails_the_load_and_frees_the_model(broken: Path):
    scheduler = Batching()
    assert error_of(broken, scheduler=scheduler) == (
        Code.FAILED_PRECONDITION,
        'Serving signature key "no" not found.',
    )
    assert scheduler.events == ["wrap", "close"]
    session = weakref.ref(scheduler.session)
    del scheduler
    gc.collect()
    assert session() is None


def test_warm_up_may_be_switched_off(broken: Path):
    load(broken, warm_up=False).close()
