"""Checkpoints from folders and from a hub: what is fetched, what is loaded, what an error says."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
from hostile_files.weights import torch_weights
from parity import assert_round_trip, assert_same_outputs, random_inputs

import kbert
from kbert import huggingface, loading
from kbert.checkpoint_files import WEIGHT_FILES, open_tensors, write_safetensors
from kbert.config import EncoderConfig
from kbert.encoder import build_encoder
from kbert.errors import InputError
from kbert.saving import save_checkpoint

COMMITS = {"main": "a" * 40, "older": "b" * 40}


# Folders


def test_load_encoder(tiny_checkpoint, caplog):
    with caplog.at_level(logging.INFO, logger="kbert"):
        encoder = loading.load_encoder(tiny_checkpoint)
    assert caplog.messages == [f"{tiny_checkpoint}/model.safetensors: 39 tensors loaded."]
    tensors = open_tensors(tiny_checkpoint / "model.safetensors")
    embeddings = tensors["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(encoder.get_layer("token_embedding").embeddings, embeddings)
    inputs = random_inputs(19)
    again = loading.load_encoder(str(tiny_checkpoint))
    assert_same_outputs(encoder(inputs), again(inputs), tolerance=0)
    outputs = kbert.attention_encoder(again)(inputs)
    assert len(outputs.pop("attention_scores")) == 2
    assert_same_outputs(encoder(inputs), outputs, tolerance=0)
    half = loading.load_encoder(tiny_checkpoint, dtype="mixed_bfloat16")
    assert half(inputs)["pooled_output"].dtype == "bfloat16"


def test_load_checkpoint_weights_into_a_task_model(tiny_checkpoint, caplog):
    encoder = build_encoder(loading.read_encoder_config(tiny_checkpoint))
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in encoder.input}
    logits = keras.layers.Dense(3, name="classifier")(encoder(inputs)["pooled_output"])
    model = keras.Model(inputs, logits)
    report = loading.load_checkpoint_weights(model, tiny_checkpoint)
    assert report.missing == ("classifier/kernel", "classifier/bias")
    assert caplog.records[0].levelno == logging.WARNING
    assert_round_trip(encoder, loading.load_encoder(tiny_checkpoint))


def test_load_tokenizer(tiny_checkpoint):
    tokenizer = loading.load_tokenizer(tiny_checkpoint)
    assert tokenizer.vocabulary_size == 19


def test_read_encoder_config(tiny_checkpoint):
    config = loading.read_encoder_config(tiny_checkpoint)
    assert config == EncoderConfig(19, 12, 2, 3, 21, max_sequence_length=33)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config\.json: No such file or directory; a checkpoint needs"),
        ("{", r"config\.json: not JSON"),
        (b"\xff\xfe", r"config\.json: not UTF-8"),
        ("[1]", "must hold a JSON object, received list"),
        ('{"model_type": "gpt2"}', "model_type 'gpt2' is not supported"),
        ('{"model_type": "bert"}', "vocab_size is missing"),
    ],
)
def test_read_encoder_config_refuses(tmp_path, content, message):
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        loading.read_encoder_config(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_encoder_without_weights(tiny_checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"no weights, .* found: config\.json"):
        loading.load_encoder(tmp_path)


def test_resolve_a_folder(tiny_checkpoint, monkeypatch):
    assert loading.resolve(tiny_checkpoint) == tiny_checkpoint
    monkeypatch.chdir(tiny_checkpoint.parent)
    assert loading.resolve(tiny_checkpoint.name) == Path(tiny_checkpoint.name)
    monkeypatch.setenv("HOME", str(tiny_checkpoint.parent))
    assert loading.resolve(f"~/{tiny_checkpoint.name}") == tiny_checkpoint
    with pytest.raises(InputError, match="revision"):
        loading.resolve(tiny_checkpoint, revision="main")


@pytest.mark.parametrize(
    "source",
    [
        "./absent",
        "/absent/folder",
        "../absent",
        "a/b/c",
        "~/absent",
        "a/",
        "",
        "a b",
        "a\\b",
        "x//y",
    ],
)
def test_resolve_what_is_neither_folder_nor_id(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="there is no such folder"):
        loading.resolve(source)


def test_resolve_a_path_is_never_an_id(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        loading.resolve(Path("organisation/absent"))


def test_resolve_a_file(tiny_checkpoint):
    with pytest.raises(InputError, match="a checkpoint is a folder, this is a file"):
        loading.resolve(tiny_checkpoint / "config.json")


# The hub


@dataclass
class Hub:
    """A hub of files on loopback: {(name, revision): folder}, and what was asked of it."""

    models: dict[tuple[str, str], Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""
    lost: str = ""

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [line.split("/")[-1] for line in self.requests if line.startswith("GET")]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def log_message(self, *_) -> None:
            pass

        def _answer(self, *, with_content: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            name, _, rest = self.path.strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            revision = {commit: key for key, commit in COMMITS.items()}.get(revision, revision)
            if name == "org/unreached" or (hub.lost and file.endswith(hub.lost)):
                return self._refuse("Broken", status=507)  # not one the client tries again
            if name not in {known for known, _ in hub.models}:
                return self._refuse("RepoNotFound")
            if (name, revision) not in hub.models:
                return self._refuse("RevisionNotFound")
            path = hub.models[name, revision] / file
            if not path.is_file():
                return self._refuse("EntryNotFound", COMMITS[revision])
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMITS[revision])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def _refuse(self, code: str, commit: str | None = None, *, status: int = 404) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            if commit:
                self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()


WORKER = """
import json, sys
from kbert import loading
from kbert.errors import InputError
for line in sys.stdin:
    name, options = json.loads(line)
    try:
        answer = {"folder": str(loading.resolve(name, **options))}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """`loading.resolve` in a process of its own: the hub's client reads its options at import."""

    def __init__(self, hub: Hub, folder: Path, *, offline: bool) -> None:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(folder),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(Path(loading.__file__).parents[1]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, name: str, **options) -> dict[str, str]:
        self.process.stdin.write(json.dumps([name, options]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def online(hub, cache) -> Iterator[Worker]:
    worker = Worker(hub, cache, offline=False)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def offline(hub, cache) -> Iterator[Worker]:
    worker = Worker(hub, cache, offline=True)
    yield worker
    worker.close()


def test_hub_model_is_fetched_once_then_used_offline(hub, online, offline, tiny_checkpoint):
    hub.models["org/tiny", "main"] = tiny_checkpoint
    hub.requests.clear()
    folder = Path(online("org/tiny")["folder"])
    names = sorted(path.name for path in tiny_checkpoint.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    fetched = ["config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"]
    assert hub.fetched() == fetched
    assert_round_trip(loading.load_encoder(folder), loading.load_encoder(tiny_checkpoint))

    hub.requests.clear()
    assert online("org/tiny")["folder"] == str(folder)
    assert hub.requests == ["HEAD /org/tiny/resolve/main/config.json"]
    hub.requests.clear()
    assert offline("org/tiny")["folder"] == str(folder)
    assert hub.requests == []


def test_hub_revision(hub, online, tiny_checkpoint, tmp_path):
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    (tmp_path / "tf_model.h5").write_bytes(b"old weights")
    hub.models["revised", "main"] = tiny_checkpoint
    hub.models["revised", "older"] = tmp_path
    hub.requests.clear()
    for revision in ("older", COMMITS["older"]):
        folder = Path(online("revised", revision=revision)["folder"])
        assert folder.name == COMMITS["older"]
        assert (folder / "tf_model.h5").read_bytes() == b"old weights"
    assert hub.fetched() == ["config.json", "vocab.txt", "tf_model.h5"]
    assert online("revised", revision="absent") == {
        "error": "revised: no folder here, and from the hub at revision absent: no such revision."
    }


def test_hub_tokenizer_alone(hub, online, tiny_checkpoint):
    hub.models["words", "main"] = tiny_checkpoint
    folder = Path(online("words", weights=False)["folder"])
    names = ["config.json", "tokenizer_config.json", "vocab.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_hub_has_no_such_model(online):
    assert online("org/absent") == {
        "error": "org/absent: no folder here, and from the hub: no such model, or it needs a login."
    }


def test_hub_model_without_its_files(hub, online, tiny_checkpoint, tmp_path):
    hub.models["org/bare", "main"] = tmp_path
    error = "org/bare: the model on the hub has no config.json."
    assert online("org/bare") == {"error": error}
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    error = (
        "org/bare: the model on the hub has no model.safetensors or tf_model.h5 or "
        "pytorch_model.bin."
    )
    assert online("org/bare") == {"error": error}


def test_hub_out_of_reach(online, offline):
    start = "org/unreached: no folder here, and from the hub: "
    for worker, reason in (
        (online, r"http://127\.0\.0\.1:\d+ is not reached"),
        (offline, r"it is not asked \(HF_HUB_OFFLINE\)"),
    ):
        error = worker("org/unreached")["error"]
        assert re.fullmatch(f"{start}{reason}, and it is not cached\\.", error)


def test_hub_lost_between_two_files(hub, online, offline, tiny_checkpoint):
    """A file that may exist but was not reached is an error, not a model without that file."""
    hub.models["lost", "main"] = tiny_checkpoint
    hub.lost = "tokenizer_config.json"
    assert "is not reached, and it is not cached" in online("lost")["error"]
    assert "has no model.safetensors" in offline("lost")["error"]
    hub.lost = ""
    folder = online("lost")["folder"]
    hub.lost = "config.json"  # also tokenizer_config.json
    assert online("lost")["folder"] == folder
    hub.lost = ""


def test_hub_shards(hub, online, offline, tiny_checkpoint, tmp_path):
    tensors = open_tensors(tiny_checkpoint / "model.safetensors")
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: shards[index % 2] for index, name in enumerate(tensors)}
    for shard in shards:
        part = {name: tensors[name] for name in tensors if places[name] == shard}
        write_safetensors(tmp_path / shard, part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    hub.models["org/shards", "main"] = tmp_path
    hub.requests.clear()
    folder = Path(online("org/shards")["folder"])
    assert hub.fetched()[-3:] == ["model.safetensors.index.json", *shards]
    assert_round_trip(loading.load_encoder(folder), loading.load_encoder(tiny_checkpoint))
    assert offline("org/shards")["folder"] == str(folder)


def test_hub_lacks_a_shard(hub, online, tiny_checkpoint, tmp_path):
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}', encoding="utf-8")
    hub.models["org/half", "main"] = tmp_path
    error = "org/half: the model on the hub lacks model-1.safetensors, a shard of "
    assert online("org/half")["error"] == f"{error}model.safetensors.index.json."
    index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}', encoding="utf-8")
    hub.models["org/outside", "main"] = tmp_path
    hub.requests.clear()
    assert "a shard is a .safetensors file in the same folder" in online("org/outside")["error"]
    assert not any("secret" in request for request in hub.requests)


# Damage


def test_damage_found_late_leaves_the_model_as_it_was(tiny_checkpoint, tmp_path):
    """One tensor of a file that opens well cannot be read: none is loaded."""
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    names = list(open_tensors(tiny_checkpoint / "model.safetensors"))
    torch_weights(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(f"archive/data/{names.index('pooler.dense.weight')}").header_offset
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 1
    path.write_bytes(bytes(content))
    encoder = loading.load_encoder(tiny_checkpoint)
    for variable in encoder.weights:
        variable.assign(variable + 1)
    before = [np.asarray(variable) for variable in encoder.weights]
    with pytest.raises(InputError, match=r"\.bin, tensor pooler\.dense\.weight: .*damaged"):
        loading.load_checkpoint_weights(encoder, tmp_path)
    for variable, array in zip(encoder.weights, before, strict=True):
        np.testing.assert_array_equal(variable, array)


@pytest.mark.parametrize("kind", ["int32", "bool", "S4"])
def test_what_is_no_weight(tiny_checkpoint, kind):
    tensors = dict(open_tensors(tiny_checkpoint / "model.safetensors"))
    bias = "encoder.layer.1.output.dense.bias"
    tensors[bias] = np.ones(12, kind)
    encoder = loading.load_encoder(tiny_checkpoint)
    copy = [np.asarray(variable) + 1 for variable in encoder.weights]
    encoder.set_weights(copy)
    with pytest.raises(InputError, match=rf"tensor {bias} holds \S+, weights are floats"):
        huggingface.load_weights(encoder, tensors, source="a file")
    for variable, array in zip(encoder.weights, copy, strict=True):
        np.testing.assert_array_equal(variable, array)


@pytest.mark.parametrize("name", WEIGHT_FILES[1::2])
def test_load_encoder_from_shards_of_transformers(tiny_checkpoint, tmp_path, name):
    """What save_pretrained writes when a file may hold 2 kB."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    kind = "TFBertModel" if "h5" in name else "BertModel"
    pytest.importorskip("tf_keras") if "h5" in name else None
    source = tmp_path / "source"
    save_checkpoint(
        loading.load_encoder(tiny_checkpoint),
        source,
        tokenizer=loading.load_tokenizer(tiny_checkpoint),
    )
    options = {"use_safetensors": False} if "h5" in name else {}
    model = getattr(transformers, kind).from_pretrained(source, **options)
    target = tmp_path / "target"
    model.save_pretrained(target, max_shard_size="2KB", safe_serialization=name.startswith("model"))
    files = sorted(path.name for path in target.iterdir())
    assert name in files
    assert len(files) > 5
    assert_round_trip(loading.load_encoder(target), loading.load_encoder(tiny_checkpoint))
