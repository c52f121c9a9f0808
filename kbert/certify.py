"""Certify an export: probe texts answered in Python, by the SavedModel, by HuggingFace's model."""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from kbert.answers import BOUND, Answers, without_padding
from kbert.certificate import FLOAT32, Certificate
from kbert.errors import InputError
from kbert.fresh_process import (
    PREPROCESS,
    SERVING,
    NotInstalledError,
    ProcessError,
    decoded,
    huggingface_outputs,
    saved_model_answers,
)
from kbert.saving import save_checkpoint
from kbert.tasks.task import Signature, Task

REDUCED_BOUNDS = {"bfloat16": 0.1, "int8": 0.5}
"""Largest difference of each lower precision: a sign that a model does not bear it, no more. What
it costs is told by the figures."""
HUGGINGFACE_IDS = {"token_ids": "input_ids", "segment_ids": "token_type_ids"}
PROBES = (
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "It is the [MASK] of the town, and [MASK] knows it.",
    "Ça c'est un café à l'œuvre; naïve coöperation, Ångström, Straße",
    "e\u0301 decomposed and \u00e9 composed",
    "今天天气很好,我们去公园。",
    "中文 and English 混在一起 in one line",
    "日本語のテキスト、カタカナとひらがな",
    "한국어 문장입니다",
    "Привет, мир! Как дела?",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀 👩‍👩‍👧‍👦 🇨🇳 emoji and 👍🏽 skin",
    "tab\tnewline\nreturn\r no-break\u00a0zero\u200bwidth",
    "null \u0000 byte and \ufffd replacement",
    "[CLS] in the text [SEP] too [PAD] [UNK]",
    "UPPER CASE AND MiXeD CaSe",
    "$1,234.56 (50%) -- #hashtag @user http://a.b/c?d=e&f",
    "x" * 99,
    "y" * 100,
    "z" * 101,
    "don't can't won't it's",
    "１２３ ＡＢＣ ﬁ ½ ²",
    "\u2028line separator\u2029",
    "……——“”‘’《》",
    "the same the same the same " * 5,
    "long " * 600,
    "很长的文本" * 300,
)


class ExportError(RuntimeError):
    """The export does not answer as the model does, or does not load in TF Serving."""


@dataclass(frozen=True)
class Reduced:
    """A model that computes in a lower precision."""

    precision: str
    """The name of it, one of export.precision."""
    model: keras.Model
    """With the weights of the model in float32."""
    figures: dict[str, dict[str, float]]
    """The headline of a split, by precision, float32 first."""


def certify(
    saved_model: Path,
    model: keras.Model,
    task: Task,
    *,
    reduced: Reduced | None = None,
    python: str = sys.executable,
) -> Certificate:
    """Answer the probe texts in Python, by the SavedModel, and by HuggingFace's own model.

    Args:
        saved_model: Folder of the SavedModel.
        model: Model of the task in float32.
        task: Brings the signatures, and how HuggingFace's model answers.
        reduced: What the SavedModel was made of, where it is not in float32.
        python: Interpreter of the fresh processes.

    Raises:
        ExportError: the SavedModel's answers differ by more than 1e-5, or do not come.
        InputError: those of a lower precision differ by more than REDUCED_BOUNDS.
    """
    signatures = task.signatures(model)
    inputs = _probe_texts(signatures[SERVING].inputs)
    with ThreadPoolExecutor(max_workers=1) as pool:  # the processes start beside each other
        served = pool.submit(saved_model_answers, saved_model, inputs, python=python)
        answers = {"python": _python_answers(signatures, inputs)}
        found, huggingface, versions = _huggingface(model, task, inputs, saved_model.parent, python)
        try:
            answers["saved_model"] = served.result()
        except ProcessError as error:
            raise ExportError(f"{saved_model} does not load in a session: {error}") from None
    if found is not None:
        answers["huggingface"] = _in_the_types_of(answers["python"], found)
    certificate = Certificate(
        signature=SERVING,
        bound=BOUND if reduced is None else REDUCED_BOUNDS[reduced.precision],
        versions={**_versions(), **versions},
        inputs=inputs,
        ranked_by=dict(signatures[SERVING].ranked_by),
        answers=answers,
        huggingface=huggingface,
        precision=FLOAT32 if reduced is None else reduced.precision,
        figures={} if reduced is None else reduced.figures,
    )
    if problem := certificate.problem():
        if reduced is not None:
            raise InputError(
                f"export.precision {reduced.precision}: the model does not bear it, {problem}. "
                "The same command goes on with --export.precision float32."
            )
        raise ExportError(f"{saved_model}: {problem}.")
    return certificate


def _probe_texts(names: tuple[str, ...]) -> dict[str, list[str]]:
    """The probes for each input, in another order each, so that pairs are not twice the same."""
    return {name: list(PROBES[shift:] + PROBES[:shift]) for shift, name in enumerate(names)}


def _python_answers(signatures: dict[str, Signature], inputs: dict[str, list[str]]) -> Answers:
    found = {}
    for name in (SERVING, PREPROCESS):
        with tf.device("CPU"):  # as the other two: a GPU may round its products to TF32
            texts = [tf.constant(inputs[key]) for key in signatures[name].inputs]
            outputs = signatures[name].function(*texts)
        found[name] = {key: decoded(tensor.numpy()) for key, tensor in outputs.items()}
    return Answers(without_padding(found[PREPROCESS]), found[SERVING])


def _huggingface(
    model: keras.Model, task: Task, inputs: dict[str, list[str]], folder: Path, python: str
) -> tuple[Answers | None, str, dict[str, str]]:
    """The answers of HuggingFace's model, its class, its packages' versions; or None and why."""
    reference = task.reference()
    if reference is None:
        return None, "transformers has no such model", {}
    first, *others = inputs.values()
    segments = [first]
    if others:
        segments.append([" ".join(texts) for texts in zip(*others, strict=True)])
    try:
        # beside the export, where there is room for the weights
        with tempfile.TemporaryDirectory(prefix=".parity.", dir=folder) as checkpoint:
            save_checkpoint(
                reference.part_of(model),
                checkpoint,
                tokenizer=task.tokenizer,
                labels=None if reference.of_encoder else task.labels or None,
                problem_type=reference.problem_type,
                formats=("safetensors",),
            )
            rows, versions = huggingface_outputs(
                Path(checkpoint),
                reference.architecture,
                segments,
                max_length=task.max_length,
                truncation=reference.truncation,
                stride=reference.stride,
                max_windows=reference.max_windows,
                python=python,
            )
    except NotInstalledError as error:
        return None, str(error), {}
    except ProcessError as error:
        raise ExportError(f"{reference.architecture} does not answer: {error}") from None
    for texts, windows in zip(zip(*segments, strict=True), rows, strict=True):
        for window in windows:
            window["texts"] = np.array(texts, object)
    ids = {
        ours: [np.concatenate([window[theirs] for window in row]).tolist() for row in rows]
        for ours, theirs in HUGGINGFACE_IDS.items()
    }
    found = reference.answers(rows, model) if reference.with_model else reference.answers(rows)
    compared = "" if found else ", ids alone"
    return Answers(ids, found), reference.architecture + compared, versions


def _in_the_types_of(python: Answers, found: Answers) -> Answers:
    outputs = {
        name: array.astype(python.outputs[name].dtype) for name, array in found.outputs.items()
    }
    return Answers(found.ids, outputs)


def _versions() -> dict[str, str]:
    try:
        ours = version("kbert-finetune")
    except PackageNotFoundError:
        ours = "not installed"
    return {
        "kbert": ours,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "tensorflow_text": tf_text.__version__,
    }
