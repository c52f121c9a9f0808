"""Answers of a SavedModel, or of HuggingFace's own model, by a script in a fresh process.

Nothing that this process holds can help the answers, and it needs neither TensorFlow nor torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from kbert.answers import Answers, without_padding

SERVING = "serving_default"
PREPROCESS = "preprocess"
NOT_INSTALLED = 3  # exit status of huggingface_check.py
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",  # this process may hold all memory of the GPUs
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "USE_TF": "0",  # transformers does without TensorFlow
}


class ProcessError(RuntimeError):
    """The script failed; the message is one line."""


class NotInstalledError(ProcessError):
    """A package that the script needs cannot be imported."""


def saved_model_answers(
    saved_model: Path,
    inputs: dict[str, list[str]],
    *,
    signature: str = SERVING,
    python: str = sys.executable,
) -> Answers:
    """What a SavedModel answers in the loader that TF Serving uses.

    Args:
        saved_model: Its folder.
        inputs: Texts by the name of the input.
        signature: The one that answers.
        python: Interpreter of the fresh process; it needs TensorFlow and TF Text.

    Raises:
        ProcessError: it does not load or answer.
    """
    words = [str(saved_model), signature, PREPROCESS]
    arrays = _run("session_check.py", words, inputs, python=python)
    ids = {
        name.removeprefix(f"{PREPROCESS}/"): array
        for name, array in arrays.items()
        if name.startswith(f"{PREPROCESS}/")
    }
    outputs = {name: decoded(array) for name, array in arrays.items() if "/" not in name}
    return Answers(without_padding(ids), outputs)


def huggingface_outputs(
    checkpoint: Path,
    architecture: str,
    segments: list[list[str]],
    *,
    max_length: int,
    truncation: str = "longest_first",
    stride: int | None = None,
    max_windows: int | None = None,
    python: str = sys.executable,
) -> tuple[list[list[dict[str, np.ndarray]]], dict[str, str]]:
    """What BertTokenizerFast and a torch model of transformers give, text by text.

    Args:
        checkpoint: Folder in HuggingFace layout.
        architecture: Class of transformers, such as BertForSequenceClassification.
        segments: The texts; a second list makes them pairs.
        max_length: Longest input in word pieces.
        truncation: Which text is cut where they are too long, in transformers' words.
        stride: Word pieces that windows share; None where texts are truncated.
        max_windows: How many windows of a text are answered; None for all.
        python: Interpreter of the fresh process; it needs torch and transformers.

    Returns:
        For each text, for each of its windows (one without a stride): input_ids and
        token_type_ids, int (length,), offset_mapping, int (length, 2), and all outputs of the
        model without the axis of the batch (of BertForMaskedLM at the masks only); and the
        versions of the packages.

    Raises:
        NotInstalledError: torch or transformers cannot be imported.
        ProcessError: anything else.
    """
    words = [str(checkpoint), architecture, str(max_length), truncation]
    words += [] if stride is None else [str(stride)]
    words += [] if stride is None or max_windows is None else [str(max_windows)]
    arrays = _run("huggingface_check.py", words, segments, python=python)
    versions = {name: str(arrays.pop(name)) for name in ("torch", "transformers")}
    found: list[dict[int, dict[str, np.ndarray]]] = [{} for _ in segments[0]]
    for key, array in arrays.items():
        row, window, name = key.split("/")
        found[int(row)].setdefault(int(window), {})[name] = array
    return [[windows[number] for number in sorted(windows)] for windows in found], versions


def decoded(array: np.ndarray) -> np.ndarray:
    """Bytes as `str` in an object array; other arrays as they are."""
    if array.dtype.kind not in "SO":  # fixed width, or objects
        return array
    decode = np.vectorize(lambda value: bytes(value).decode("utf-8", "replace"), otypes=[object])
    return decode(array)


def _run(script: str, words: list[str], texts: Any, *, python: str) -> dict[str, np.ndarray]:
    """Run a script as `SCRIPT INPUTS.json OUTPUTS.npz WORDS`; the arrays that it wrote."""
    with tempfile.TemporaryDirectory() as work:
        inputs, outputs = Path(work) / "inputs.json", Path(work) / "outputs.npz"
        inputs.write_text(json.dumps(texts), encoding="utf-8")
        # -P: the script's folder has modules that must not hide others of their names
        command = [python, "-P", str(Path(__file__).with_name(script)), words[0]]
        process = subprocess.run(
            [*command, str(inputs), str(outputs), *words[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **ENVIRONMENT},
        )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
            missing = process.returncode == NOT_INSTALLED
            raise (NotInstalledError if missing else ProcessError)(lines[-1])
        with np.load(outputs) as arrays:
            return dict(arrays)
