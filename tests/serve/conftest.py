"""Small real SavedModels, and one server of each kind on them for the tests that change nothing."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from serve.grpc_server import GrpcServer
from serve.loader import Loader
from serve.memory import set_aside_what_stays
from serve.metrics import Metrics
from serve.model_config import ModelConfig
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


def save_examples(path: Path) -> None:
    """Signatures that take tf.train.Example, with a float x and a string s: good and bad ones."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs, other = (tf.compat.v1.placeholder(tf.string, [None], name) for name in "io")
        features = {
            "x": tf.io.FixedLenFeature([], tf.float32, 0.0),
            "s": tf.io.FixedLenFeature([], tf.string, b"none"),
        }
        parsed = tf.io.parse_example(inputs, features)
        x, s = parsed["x"], parsed["s"]
        scores = tf.stack([x, 1 - x], axis=1)
        classes = tf.stack([s, tf.fill(tf.shape(s), "rest")], axis=1)
        doubled = x[:, None] * 2
        outputs = {  # signature -> its outputs
            "classify": {"classes": classes, "scores": scores},
            "serving_default": {"classes": classes, "scores": scores},
            "only_scores": {"scores": scores},
            "only_classes": {"classes": classes},
            "neither": {"y": scores},
            "flat_scores": {"scores": x},
            "whole_scores": {"scores": tf.cast(scores, tf.int32)},
            "float_classes": {"classes": scores},
            "short_scores": {"scores": scores[1:]},
            "narrow_scores": {"classes": classes, "scores": doubled},
            "regress": {"outputs": doubled},
            "flat_regress": {"outputs": x * 3},
            "wide_regress": {"outputs": scores},
            "short_regress": {"outputs": x[1:]},
            "whole_regress": {"outputs": tf.cast(x, tf.int64)},
            "unnamed_regress": {"y": doubled},
        }
        methods = {"classify": "classify", "regress": "regress"}
        signatures = {
            name: signature_of({"inputs": inputs}, tensors, methods.get(name, "predict"))
            for name, tensors in outputs.items()
        }
        signatures["two_inputs"] = signature_of({"inputs": inputs, "o": other}, {"scores": scores})
        signatures["unnamed_input"] = signature_of({"examples": inputs}, {"scores": scores})
        length = tf.strings.to_number(other)
        signatures["other_regress"] = signature_of({"inputs": other}, {"outputs": length})
        builder = tf.compat.v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()


def save_tensorflow_1(path: Path, folder: Path) -> None:
    """A table from an asset file and a variable, as TensorFlow 1 saved them; its tag is "old"."""
    vocabulary = folder / "vocabulary.txt"
    vocabulary.write_text("the\nmarket\n")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        asset = tf.constant(str(vocabulary))
        tf.compat.v1.add_to_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS, asset)
        initializer = tf.lookup.TextFileInitializer(
            asset,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        table = tf.lookup.StaticHashTable(initializer, default_value=-1)
        offset = tf.compat.v1.get_variable("offset", initializer=np.int64(100), use_resource=False)
        words = tf.compat.v1.placeholder(tf.string, [None], "words")
        ids = table.lookup(words) + offset
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["old"],
            {"serving_default": signature_of({"words": words}, {"ids": ids, "again": ids})},
            assets_collection=tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS),
            legacy_init_op=tf.compat.v1.tables_initializer(),
        )
        builder.save()
    vocabulary.unlink()  # what is served has its own copy


def signature_of(
    inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor], method: str = "predict"
) -> meta_graph_pb2.SignatureDef:
    info = tf.compat.v1.saved_model.build_tensor_info
    return meta_graph_pb2.SignatureDef(
        inputs={name: info(tensor) for name, tensor in inputs.items()},
        outputs={name: info(tensor) for name, tensor in outputs.items()},
        method_name=f"tensorflow/serving/{method}",
    )


def add_default(path: Path, name: str, value: object) -> None:
    """Lets an input of a saved model be left out."""
    file = path / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    signature = saved_model.meta_graphs[0].signature_def["serving_default"]
    signature.defaults[name].CopyFrom(tf.make_tensor_proto(value))
    file.write_bytes(saved_model.SerializeToString())


@pytest.fixture(scope="session", autouse=True)
def _quick_collections() -> None:
    """As the server does: each unload collects garbage."""
    set_aside_what_stays()


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> a SavedModel, to be copied into base paths.

    half_plus_three is a second version; in default, the input b of pair may be left out.
    """
    folder = tmp_path_factory.mktemp("exports")
    modules = {
        "half_plus_two": HalfPlusTwo(2.0),
        "half_plus_three": HalfPlusTwo(3.0),
        "pair": Pair(),
        "text": Text(),
    }
    for name, module in modules.items():
        tf.saved_model.save(module, str(folder / name), signatures=module.signatures)
    save_examples(folder / "examples")
    save_tensorflow_1(folder / "tensorflow_1", folder)
    shutil.copytree(folder / "pair", folder / "default")
    add_default(folder / "default", "b", [10.0])
    return {path.name: path for path in folder.iterdir()}


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
    """half (its version is 123), pair, text, examples and default, loaded."""
    root = tmp_path_factory.mktemp("models")
    names = ("half", "pair", "text", "examples", "default")
    for name in names:
        (root / name).mkdir()
        is_half = name == "half"
        publish("half_plus_two" if is_half else name, root / name, "00000123" if is_half else "1")
    configs = [ModelConfig(name, root / name) for name in names]
    load = Loader(metrics=Metrics())
    store = ModelStore(configs, load=load, poll_seconds=0, max_num_load_retries=0)
    store.start()
    store.wait_until_available()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def rest_address(store: ModelStore) -> Iterator[str]:
    server = RestServer(store, Metrics(), 0)
    server.start()
    yield server.address
    server.stop()


@pytest.fixture(scope="session")
def grpc_address(store: ModelStore) -> Iterator[str]:
    server = GrpcServer(store, Metrics(), 0)
    server.start()
    yield server.address
    server.stop()


@pytest.fixture(scope="session")
def write_records() -> Callable[[Path, Sequence[bytes]], None]:
    """A function that writes the warm-up file of a SavedModel: serialised PredictionLogs."""

    def write_records(export_path: Path, records: Sequence[bytes]) -> None:
        path = export_path / "assets.extra" / "tf_serving_warmup_requests"
        path.parent.mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)

    return write_records


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
