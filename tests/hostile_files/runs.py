"""Folders of finished runs, with exports."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from materials import VOCABULARY
from safetensors.numpy import save_file

from hostile_files.case import CANARY, RUN, TERA, Case
from hostile_files.spoilers import changed, cut, deep, grown, later, linked, piped, write
from hostile_files.texts import endless
from hostile_files.weights import EVIL, header_of, raw_safetensors, tensors_of


def yaml_changed(text: str) -> Callable[[Path], None]:
    """config.yaml with more at its end."""

    def spoil(folder: Path) -> None:
        with (folder / "config.yaml").open("a") as file:
            file.write(text)

    return spoil


def laughs(folder: Path) -> None:
    """YAML of a few lines that would be 10**9 values."""
    lines = ["search:", "  space:", "    a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        lines.append(f"    a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    text = (folder / "config.yaml").read_text()
    kept = text[: text.index("search:")] + text[text.index("monitor:") :]
    (folder / "config.yaml").write_text(kept + "\n".join(lines) + "\n")


def metrics(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "metrics.json").read_text())
        change(content)
        (folder / "metrics.json").write_text(json.dumps(content))

    return spoil


def of_weights(spoil: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A run whose weights are spoilt, and which has no export to answer in their place."""

    def changed_too(folder: Path) -> None:
        shutil.rmtree(folder / "export")
        checkpoints = folder / "checkpoints"
        spoil(checkpoints)

    return changed_too


def run_terabytes(checkpoints: Path) -> None:
    shapes = {name: array.shape for name, array in tensors_of(checkpoints).items()}
    raw_safetensors(*header_of(**dict.fromkeys(shapes, (2**17, 2**17))))(checkpoints)


def wide_model(checkpoints: Path) -> None:
    """A model from scratch, of a width of 10**9."""
    words = checkpoints.with_name("vocab.txt")
    words.write_text("\n".join(VOCABULARY))
    sizes = f"model: {{checkpoint: null, vocab: {words}, hidden_dim: 1000000000}}\n"
    yaml_changed(sizes)(checkpoints.parent)


def renamed(checkpoints: Path) -> None:
    tensors = tensors_of(checkpoints)
    save_file({f"other/{name}": of for name, of in tensors.items()},
              checkpoints / "model.safetensors")  # fmt: skip


def reshaped(checkpoints: Path) -> None:
    tensors = tensors_of(checkpoints)
    save_file({name: of.ravel() for name, of in tensors.items()}, checkpoints / "model.safetensors")


def in_export(spoil: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The one export of a run, spoilt."""

    def spoil_it(folder: Path) -> None:
        (version,) = folder.glob("export/*/*/saved_model.pb")
        spoil(version.parent)

    return spoil_it


def certificate(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(version: Path) -> None:
        path = version / "assets.extra" / "parity.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return in_export(spoil)


def writes_a_file(version: Path) -> None:
    """A SavedModel whose signature writes a file and reads another."""
    import tensorflow as tf

    shutil.rmtree(version)
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.raw_ops.WriteFile(filename=str(CANARY), contents="x")]):
            secret = tf.io.read_file("/etc/hostname")
        return {"label": tf.fill(tf.shape(text), secret)}

    module.serve = serve
    tf.saved_model.save(module, str(version), signatures={"serving_default": serve})


def prints_to_a_file(version: Path) -> None:
    import tensorflow as tf

    shutil.rmtree(version)
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.print("x", output_stream=f"file://{CANARY}")
        return {"label": text}

    module.serve = serve
    tf.saved_model.save(module, str(version), signatures={"serving_default": serve})


def set_to(content: dict[str, Any], *keys: Any, value: Any) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


LOADS = ("predict", "evaluate")
ALL = ("predict", "evaluate", "compare", "report")
run_cases = [
    Case("run: good", lambda folder: None, (*ALL, "verify"), RUN, is_read=True),
    Case("config.yaml: empty", write("config.yaml", ""), ALL, RUN),
    Case("config.yaml: an option without a value", yaml_changed("train:\n  epochs:\n"), LOADS, RUN),
    Case("config.yaml: a list", write("config.yaml", "[]"), ALL, RUN),
    Case("config.yaml: not UTF-8", write("config.yaml", b"\xff\xfe"), ALL, RUN),
    Case("config.yaml: NUL bytes", write("config.yaml", bytes(100)), ALL, RUN),
    Case("config.yaml: 10 TB", grown("config.yaml", 10 * TERA), ALL, RUN),
    Case("config.yaml: a pipe", piped("config.yaml"), ALL, RUN),
    Case("config.yaml: a symlink out of the run", linked("config.yaml", "/etc/passwd"), ALL, RUN),
    Case("config.yaml: 3,000 levels", write("config.yaml", "a: " + "[" * 3000 + "]" * 3000), ALL,
         RUN),
    Case("config.yaml: 30,000 texts",
         yaml_changed("x: [" + ", ".join(["abc"] * 30_000) + "]\n"), ALL, RUN),
    Case("config.yaml: a billion laughs", laughs, ALL, RUN),
    *(
        Case(f"config.yaml: {tag.split()[0]}", yaml_changed(f"evil: !!python/{tag}\n"), ALL, RUN)
        for tag in (f"object/apply:os.system ['touch {CANARY}']",
                    f"object/new:os.mkdir ['{CANARY}']",
                    "name:os.system", "module:antigravity")
    ),
    Case("config.yaml: another file of options", yaml_changed("config: /etc/passwd\n"), LOADS, RUN),
    Case("config.yaml: an option that is not there", yaml_changed("evil: 1\n"), LOADS, RUN),
    Case("config.yaml: a class to make",
         yaml_changed("evil: {class_path: subprocess.Popen, init_args: {args: [touch, "
                      f"{CANARY}]}}}}\n"), LOADS, RUN),
    Case("config.yaml: options of wrong types", yaml_changed("data: [1]\ntask: 3\n"), LOADS, RUN),
    Case("config.yaml: a model of 10**9", of_weights(wide_model), LOADS, RUN),
    Case("config.yaml: export.name of another folder",
         yaml_changed("export: {name: ../../../../../../../../usr, version: lib}\n"), ("report",),
         RUN),
    Case("config.yaml: output of a thousand folders",
         yaml_changed("output: [1]\n"), ("report",), RUN),
    Case("metrics.json: empty", write("metrics.json", ""), ALL, RUN),
    Case("metrics.json: a list", write("metrics.json", "[]"), ALL, RUN),
    Case("metrics.json: not UTF-8", write("metrics.json", b"\xff"), ALL, RUN),
    Case("metrics.json: 200,000 levels", write("metrics.json", deep()), ALL, RUN),
    Case("metrics.json: 10 TB", grown("metrics.json", 10 * TERA), ALL, RUN),
    Case("metrics.json: 300 MB of empty lists",
         later(lambda: write("metrics.json", '{"train": {}, "x": [' + "[]," * 100_000_000 + "0]}")),
         ALL, RUN, is_large=True),
    Case("metrics.json: a pipe", piped("metrics.json"), ALL, RUN),
    *(
        Case(f"metrics.json: {'.'.join(map(str, keys))} {json.dumps(value)}",
             metrics(lambda content, keys=keys, value=value: set_to(content, *keys, value=value)),
             readers, RUN)
        for keys, value, readers in (
            (("train",), 1, LOADS),
            (("fitted",), [1], ("evaluate",)),
            (("fitted",), {"temperature": "x"}, ("evaluate",)),
            (("search",), 1, ("evaluate",)),
            (("search",), {"winner": {"hyperparameters": [1]}}, ("evaluate",)),
            (("search",), {"winner": {"hyperparameters": {"learning_rate": [1]}}}, ("evaluate",)),
            (("search",), {"winner": {"hyperparameters": {"checkpoint": 3}}}, ("evaluate",)),
            (("test",), [1], ("report",)),
            (("test", "accuracy"), "x", ("report",)),
            (("test", "labels"), 3, ("report",)),
            (("test", "per_class"), [1], ("report",)),
            (("test", "confusion_matrix"), {"a": 1}, ("report",)),
            (("headline",), 3, ("report",)),
            (("train", "history"), 3, ("report",)),
        )
    ),
    Case("learned.json: damaged", cut("learned.json", 0.5), ("evaluate",), RUN),
    Case("learned.json: labels of numbers", changed("learned.json", labels=[1, 2]), ("evaluate",),
         RUN),
    Case("learned.json: labels an object", changed("learned.json", labels={"a": 1}), ("evaluate",),
         RUN),
    Case("learned.json: counts of texts", changed("learned.json", label_counts=["x"]),
         ("evaluate",), RUN),
    Case("learned.json: 200,000 levels", write("learned.json", deep()), ("evaluate",), RUN),
    Case("learned.json: 10 TB", grown("learned.json", 10 * TERA), ("evaluate",), RUN),
    Case("learned.json: 10**6 labels",
         later(lambda: changed("learned.json", labels=[str(n) for n in range(10**6)],
                               label_counts=[1] * 10**6)), ("evaluate",), RUN),
    Case("analysis.json: a list", write("analysis.json", "[]"), ("report",), RUN),
    Case("analysis.json: 200,000 levels", write("analysis.json", deep()), ("report",), RUN),
    Case("analysis.json: mistakes of wrong types", changed("analysis.json", mistakes=[1]),
         ("report",), RUN),
    Case("analysis.json: a label of 10**9",
         changed("analysis.json", mistakes=[{"label": 10**9, "prediction": 0, "texts": ["x"],
                                             "row": 1}]), ("report",), RUN),
    Case("analysis.json: lengths of texts",
         changed("analysis.json", lengths={"counts": ["x"], "edges": ["y"], "max_length": 1}),
         ("report",), RUN),
    Case("trials.csv: a field of 10 GB",
         lambda folder: ((folder / "search").mkdir(), endless("search/trials.csv", "trial\n",
                                                              quoted=True)(folder)),
         ("report",), RUN),
    Case("tensorboard: damaged events",
         lambda folder: [path.write_bytes(path.read_bytes()[:-7] + b"\xff" * 999)
                         for path in folder.glob("tensorboard/*/*/*tfevents*")],
         ("report",), RUN, is_read=True),
    Case("predictions.csv: empty", write("predictions.csv", ""), ("compare",), RUN),
    Case("predictions.csv: rows that are no numbers",
         write("predictions.csv", "row,label,prediction\nx,a,b\n"), ("compare",), RUN),
    Case("predictions.csv: a field of 10 GB",
         endless("predictions.csv", "row,label,prediction\n1,", quoted=True), ("compare",), RUN),
    Case("predictions.csv: a symlink out of the run",
         linked("predictions.csv", "/etc/passwd"), ("compare",), RUN),
    Case("lineage.json: 200,000 levels",
         in_export(write("assets.extra/lineage.json", deep())), ("compare", "report"), RUN),
    Case("weights: cut", of_weights(cut("model.safetensors", 0.6)), LOADS, RUN),
    Case("weights: of another model", of_weights(renamed), LOADS, RUN),
    Case("weights: of other shapes", of_weights(reshaped), LOADS, RUN),
    Case("weights: terabytes", of_weights(run_terabytes), LOADS, RUN),
    Case("weights: a pickle",
         of_weights(write("model.safetensors", pickle.dumps(EVIL["os.system"], 2))), LOADS, RUN),
    Case("weights: a symlink out of the run",
         of_weights(linked("model.safetensors", "/etc/passwd")), LOADS, RUN),
    Case("baseline.safetensors: cut", cut("baseline.safetensors", 0.6), ("evaluate",), RUN),
    Case("baseline.safetensors: a pickle",
         write("baseline.safetensors", pickle.dumps(EVIL["os.system"], 2)), ("evaluate",), RUN),
    Case("baseline.safetensors: terabytes",
         lambda folder: _huge_baseline(folder), ("evaluate",), RUN),
    Case("saved_model.pb: empty", in_export(write("saved_model.pb", b"")), ("predict", "verify"),
         RUN),
    Case("saved_model.pb: cut", in_export(cut("saved_model.pb", 0.5)), ("predict", "verify"), RUN),
    Case("saved_model.pb: 10 TB", in_export(grown("saved_model.pb", 10 * TERA)),
         ("predict", "verify"), RUN),
    Case("variables: cut",
         in_export(cut("variables/variables.data-00000-of-00001", 0.5)), ("predict", "verify"),
         RUN),
    Case("saved model: writes a file", in_export(writes_a_file), ("predict",), RUN),
    Case("saved model: prints into a file", in_export(prints_to_a_file), ("predict",), RUN),
    Case("parity.json: 200,000 levels", in_export(write("assets.extra/parity.json", deep())),
         ("verify",), RUN),
    Case("parity.json: 10 TB", in_export(grown("assets.extra/parity.json", 10 * TERA)),
         ("verify",), RUN),
    *(
        Case(f"parity.json: {name}", certificate(change), ("verify",), RUN)
        for name, change in {
            "a type of 1 GB a value": lambda of: [
                set_to(output, "type", value="U250000000") for output in of["outputs"].values()
            ],
            "a type that is an object": lambda of: [
                set_to(output, "type", value={"a": 1}) for output in of["outputs"].values()
            ],
            "no probes": lambda of: set_to(of, "probes", value=[]),
            "probes of wrong types": lambda of: set_to(of, "probes", value=[1]),
            "a text that is a number": lambda of: set_to(
                of, "probes", 0, "inputs", value={"text": 1}
            ),
            "a bound that is a text": lambda of: set_to(of, "bound", value="x"),
            "ids of texts": lambda of: set_to(
                of, "probes", 0, "python", "token_ids", value="x"
            ),
            "a signature that is not there": lambda of: set_to(of, "signature", value="evil"),
            "ranked by a list": lambda of: [
                set_to(output, "ranked_by", value=["x"]) for output in of["outputs"].values()
            ],
            "no answers of the SavedModel": lambda of: [
                probe.pop("saved_model") for probe in of["probes"]
            ],
        }.items()
    ),
]  # fmt: skip


def _huge_baseline(folder: Path) -> None:
    from safetensors import safe_open

    path = folder / "baseline.safetensors"
    with safe_open(path, "np") as file:
        content: dict[str, Any] = {"__metadata__": file.metadata()}
        names = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kinds, end = {"int64": "I64", "float32": "F32", "float64": "F64"}, 0
    for name, array in names.items():
        shape = [2**20] * 2 if array.ndim == 2 else [2**20] * array.ndim
        size = int(np.prod(shape, dtype=object)) * array.itemsize
        content[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": shape,
            "data_offsets": [end, end + size],
        }
        end += size
    header = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + end)
