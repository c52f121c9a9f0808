"""What reads bad folders: functions and commands, as people call them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np


def read_encoder(folder: Path) -> None:
    from kbert.loading import load_encoder

    load_encoder(folder)


def read_model(folder: Path) -> None:
    from kbert.loading import load_model

    load_model(folder)


def read_tokenizer(folder: Path) -> None:
    import tensorflow as tf

    from kbert.loading import load_tokenizer

    load_tokenizer(folder)(tf.constant(["the cat sat"]))


def read_sentences(folder: Path) -> None:
    from kbert.sentence_encoder import load_sentence_encoder

    load_sentence_encoder(folder)


def read_data(folder: Path) -> None:
    """The one file of a folder, as training reads it."""
    from kbert.config import DataOptions
    from kbert.data import Columns, read_dataset

    (file,) = folder.iterdir()
    options = DataOptions(train=str(file))
    label = None if file.suffix == ".txt" else "label"
    read_dataset(options, Columns(("text",), label), seed=0)


def read_texts(folder: Path) -> None:
    """The same file, as kbert.predict looks at it: its rows, and some of them again."""
    from kbert.text_files import count_rows, open_texts, read_rows, require_file

    (file,) = folder.iterdir()
    require_file(file, "--input")
    source = open_texts(file, ("text",), encoding="utf-8")
    read_rows(source, np.array([count_rows(source) - 1]), ("text",))


def predict(folder: Path) -> None:
    import kbert

    kbert.load(folder).predict(["the cat sat"])


def evaluate(folder: Path) -> None:
    texts = folder.parent / "texts.csv"
    texts.write_text("text,label\nthe cat,positive\na dog,negative\n")
    _main("kbert.evaluate", str(folder), "--data.test", str(texts))


def compare(folder: Path) -> None:
    _main("kbert.compare", str(folder), str(folder.parent / "good"))


def verify(folder: Path) -> None:
    _main("kbert.verify", str(folder))


def report(folder: Path) -> None:
    _main("kbert.report", str(folder))


READERS: dict[str, Callable[[Path], None]] = {
    "encoder": read_encoder,
    "model": read_model,
    "tokenizer": read_tokenizer,
    "sentences": read_sentences,
    "data": read_data,
    "texts": read_texts,
    "predict": predict,
    "evaluate": evaluate,
    "compare": compare,
    "verify": verify,
    "report": report,
}


def _main(module: str, *words: str) -> None:
    """A command; what it prints after an exit status of 2 as an InputError, as it was printed."""
    import importlib

    from kbert.errors import InputError

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = importlib.import_module(module).main(list(words))
    if status == 2:
        raise InputError(errors.getvalue().rstrip("\n"))
    if status:
        raise RuntimeError(f"exit status {status}")
