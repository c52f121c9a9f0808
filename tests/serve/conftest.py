"""Small real SavedModels, and one server of each kind on them for the tests that change nothing."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
import tensorflow as tf

from serve.grpc_server import GrpcServer
from serve.model_store import ModelStore
from serve.rest_server import RestServer


class HalfPlusTwo(tf.Module):
    """x -> y = x / 2 + offset, and three more signatures that end in trouble."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = tf.Variable(offset)

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def serving_default(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * 0.5 + self.offset}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def total(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def uneven(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"a": x, "b": x[1:]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def triples(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reshape(x, [-1, 3])}

    @property
    def signatures(self) -> dict[str, Callable]:
        names = ("serving_default", "total", "uneven", "triples")
        return {name: getattr(self, name) for name in names}


class Pair(tf.Module):
    """a, b -> their sum and their product."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="a"),
            tf.TensorSpec([None], tf.float32, name="b"),
        ]
    )
    def serving_default(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"sum": a + b, "product": a * b}

    @property
    def signatures(self) -> dict[str, Callable]:
        return {"serving_default": self.serving_default}


class Text(tf.Module):
    """text -> label, the text itself as bytes, and two probabilities."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serving_default(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        is_good = tf.strings.regex_full_match(text, ".*good.*")
        good = tf.where(is_good, 0.75, 0.1)
        return {
            "label": tf.where(is_good, "gut", "schläft"),
            "text_bytes": tf.identity(text),
            "probabilities": tf.stack([good, 1 - good], axis=-1),
        }

    @property
    def signatures(self) -> dict[str, Callable]:
        return {"serving_default": self.serving_default}


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> a SavedModel, to be copied into base paths. half_plus_three is a second version."""
    folder = tmp_path_factory.mktemp("exports")
    modules = {
        "half_plus_two": HalfPlusTwo(2.0),
        "half_plus_three": HalfPlusTwo(3.0),
        "pair": Pair(),
        "text": Text(),
    }
    for name, module in modules.items():
        tf.saved_model.save(module, str(folder / name), signatures=module.signatures)
    return {name: folder / name for name in modules}


@pytest.fixture(scope="session")
def publish(exports: dict[str, Path]) -> Callable[[str, Path, str], None]:
    """A function that publishes an export as a version, as the README tells: copy, rename."""

    def publish(export: str, base_path: Path, version: str) -> None:
        unfinished = base_path / "next"
        shutil.copytree(exports[export], unfinished)
        unfinished.rename(base_path / version)

    return publish


@pytest.fixture(scope="session")
def store(
    publish: Callable[[str, Path, str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelStore]:
    """half (its version is 123), pair and text, loaded."""
    root = tmp_path_factory.mktemp("models")
    for name, export in {"half": "half_plus_two", "pair": "pair", "text": "text"}.items():
        (root / name).mkdir()
        publish(export, root / name, "00000123" if name == "half" else "1")
    store = ModelStore({name: root / name for name in ("half", "pair", "text")}, poll_seconds=0)
    store.start()
    store.wait_until_available()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def rest_address(store: ModelStore) -> Iterator[str]:
    server = RestServer(store, 0)
    server.start()
    yield server.address
    server.stop()


@pytest.fixture(scope="session")
def grpc_address(store: ModelStore) -> Iterator[str]:
    server = GrpcServer(store, 0)
    server.start()
    yield server.address
    server.stop()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """A function that waits for a condition, and fails after 15 seconds."""
    pause = threading.Event()

    def wait_until(is_reached: Callable[[], bool]) -> None:
        for _ in range(750):
            if is_reached():
                return
            pause.wait(0.02)
        pytest.fail("waited 15 seconds in vain")

    return wait_until
