"""What a run learns of its training rows before there is a model: names and vocabularies."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kbert.batches import cache_root
from kbert.config import Config
from kbert.data import Columns, DataSet
from kbert.foreign_files import malformed_told, read_object
from kbert.tasks.task import Learned
from kbert.text_files import Source
from kbert.vocabulary import learn_vocabulary
from kbert.whole_files import written_whole

logger = logging.getLogger(__name__)

PLACE = "learned.json"
ADVICE = "bring the run's own back"


def learn(dataset: DataSet, columns: Columns, config: Config) -> Learned:
    """Labels, names and vocabularies of the training file, and the range of its numbers.

    Args:
        dataset: The splits of the run.
        columns: What its task reads.
        config: Options of the run.
    """
    train, model = dataset.splits["train"], config.model
    indices = train.labels if dataset.labels else []

    def vocabulary(names: tuple[str, ...], size: int, *, lowercase: bool) -> tuple[str, ...]:
        folder = cache_root(config.data.cache_dir) / "vocabularies"
        return _vocabulary(train.source, names, size, lowercase=lowercase, folder=folder)

    return Learned(
        dataset.labels,
        np.bincount(indices, minlength=len(dataset.labels)),
        dataset.names,
        {
            of.column: vocabulary((of.column,), of.size, lowercase=of.lowercase)
            for of in columns.vocabularies
        },
        vocabulary(columns.texts, model.vocab_size, lowercase=model.lowercase)
        if model.vocab_size
        else (),
        _range(train.labels) if columns.label_kind == "number" else None,
    )


def _range(numbers: np.ndarray | None) -> tuple[float, float] | None:
    return None if numbers is None else (float(numbers.min()), float(numbers.max()))


def _vocabulary(
    source: Source, names: tuple[str, ...], size: int, *, lowercase: bool, folder: Path
) -> tuple[str, ...]:
    """The vocabulary of some columns of a file, which is learnt once and kept in the folder."""
    key = json.dumps([source.digest, names, size, lowercase])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if not path.exists():
        logger.info("learning a vocabulary of %s from %s", ", ".join(names), source.path)
        texts = _texts(source, names)
        _write_json(path, learn_vocabulary(texts, size=size, lowercase=lowercase))
    return tuple(json.loads(path.read_text(encoding="utf-8")))


def write_learned(folder: Path, learned: Learned) -> None:
    """Write it into a run's folder."""
    content = {
        "labels": learned.labels,
        "label_counts": learned.label_counts.tolist(),
        "names": dict(learned.names),
        "vocabularies": dict(learned.vocabularies),
        "vocabulary": learned.vocabulary,
        "number_range": learned.number_range,
    }
    _write_json(folder / PLACE, content)


def read_learned(folder: Path) -> Learned | None:
    """What a run's folder tells; None where an older kbert wrote it.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / PLACE
    if not path.exists():
        return None
    content = read_object(path, advice=ADVICE)
    with malformed_told(path, advice=ADVICE):
        return Learned(
            _strings(content["labels"]),
            np.array(content["label_counts"], np.int64),
            {name: _strings(found) for name, found in content["names"].items()},
            {name: _strings(found) for name, found in content["vocabularies"].items()},
            _strings(content["vocabulary"]),
            _pair(content.get("number_range")),
        )


def _strings(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("names are a list of strings")
    return tuple(values)


def _pair(numbers: list[float] | None) -> tuple[float, float] | None:
    return None if numbers is None else (float(numbers[0]), float(numbers[1]))


def _texts(source: Source, names: tuple[str, ...]) -> Iterator[list[str]]:
    for batch in source.batches():
        for name in names:
            yield batch.column(name).to_pylist()


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside:
        beside.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
