"""Measure a finished run's model on any split or file: `python -m kbert.evaluate --help`.

Exit status 0: it is measured; 2: bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbert.command import finish
from kbert.errors import InputError
from kbert.foreign_files import read_object
from serve.command_line import OneLineParser
from serve.startup import import_tensorflow_quietly

if TYPE_CHECKING:
    import numpy as np

    from kbert.finished_run import FinishedRun, Part
    from kbert.tasks.task import Table

EPILOG = """\
The run's own test split again, or another one, with slices by a column of its file:

  python -m kbert.evaluate runs/news
  python -m kbert.evaluate runs/news --split validation --slice_by source --slice_by year

A file that came later; without labels its predictions are written:

  python -m kbert.evaluate runs/news --data.test later.csv
  python -m kbert.evaluate runs/news --data.test later.jsonl --data.text_column body
"""
OVERRIDES = ("data.text_column", "data.label_column", "data.encoding")
METRICS, PREDICTIONS = "metrics.json", "predictions.csv"


@dataclass(frozen=True)
class Measured:
    """What there is to say of some rows."""

    metrics: dict[str, Any]
    """As a split's block of metrics.json, with reliability and slices; {} without labels."""
    tables: list[Table]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line names; the exit status."""
    options = _parse(arguments)
    return finish("kbert.evaluate", lambda: _evaluate(options), debug=options.debug)


def _evaluate(options: argparse.Namespace) -> None:
    # TensorFlow is imported from here on: --help and a wrong option are answered at once
    import_tensorflow_quietly()
    overrides = {name: getattr(options, name) for name in ("data.test", *OVERRIDES)}
    evaluate(
        Path(options.run),
        split=options.split,
        overrides={name: value for name, value in overrides.items() if value is not None},
        slice_by=options.slice_by,
        output=None if options.output is None else Path(options.output),
    )


def evaluate(
    folder: Path,
    *,
    split: str = "test",
    overrides: Mapping[str, str] | None = None,
    slice_by: Sequence[str] = (),
    output: Path | None = None,
) -> Path:
    """Measure a finished run's model, print the tables, write metrics.json and predictions.csv.

    Args:
        folder: The run.
        split: Which of the run's splits, where overrides name no file.
        overrides: data.test, a file to measure instead; and how its columns and its encoding
            differ from the run's: data.text_column, data.label_column, data.encoding.
        slice_by: Columns of the file by which to slice as well.
        output: Folder to write, whole; by default FOLDER/evaluation/NAME of the split or file.

    Returns:
        The folder that is written.

    Raises:
        InputError: the run, the file or a column cannot be used.
    """
    # TensorFlow and Keras are not needed for --help
    import tensorflow as tf

    from kbert.evaluation import collect, collect_outside, write_predictions
    from kbert.evaluation_tables import verdict_line
    from kbert.finished_run import open_run
    from kbert.terminal import print_table
    from kbert.text_files import read_rows

    tf.config.experimental.enable_op_determinism()  # as the run itself was measured
    overrides = dict(overrides or {})
    file = overrides.get("data.test")
    if overrides and file is None:
        raise InputError(f"--{next(iter(overrides))} needs a file: name it by --data.test.")
    name = split if file is None else Path(file).name
    output = output or folder / "evaluation" / name
    _require_replaceable(output)
    run = open_run(folder, [word for option in overrides.items() for word in _words(*option)])
    part = run.part(split) if file is None else run.part_of_file()
    _require_same_file(output, str(part.source.path))
    _require_labels(part, overrides, slice_by)
    columns = read_rows(part.source, part.split.rows, slice_by)
    model, task = run.model(part.experiment), part.experiment.task
    outputs = collect(model, task, part.split)
    outside = collect_outside(model, task, part.split)
    measured = _measure(run, part, outputs, columns, outside=outside)
    for table in measured.tables:
        print_table(dataclasses.replace(table, title=f"{name}: {table.title}"))
    if line := verdict_line(measured.metrics, name):
        print(line)
    with _replaced(output) as beside:
        write_predictions(beside / PREDICTIONS, task, part.split, outputs, outside=outside)
        if measured.metrics:
            told = {"run": str(folder), "file": str(part.source.path), **measured.metrics}
            text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
            (beside / METRICS).write_text(text + "\n", encoding="utf-8")
    print(f"written: {output}")
    return output


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="kbert.evaluate",
        description="Measures a finished run's model on any split or file.",
        epilog=EPILOG,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--data.test", metavar="FILE", help="a file to measure")
    which.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        default="test",
        help="a split of the run (test)",
    )
    parser.add_argument(
        "--data.text_column", metavar="COLUMN", help="FILE's text column, or [A, B] for a pair"
    )
    parser.add_argument("--data.label_column", metavar="COLUMN", help="FILE's label column")
    parser.add_argument("--data.encoding", metavar="NAME", help="FILE's encoding")
    parser.add_argument(
        "--slice_by",
        metavar="COLUMN",
        action="extend",
        nargs="+",
        default=[],
        help="figures by the values of these columns of the file as well",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help=f"folder of {METRICS} and {PREDICTIONS} (RUN/evaluation/NAME of split or file)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _words(option: str, value: str) -> tuple[str, str]:
    return f"--{option}", value


def _require_labels(part: Part, overrides: Mapping[str, str], slice_by: Sequence[str]) -> None:
    """InputError if something is asked that needs labels where there are none."""
    if not part.experiment.task.labels:
        if slice_by:
            raise InputError("--slice_by: the run's task has no classes; leave it out.")
    elif part.split.labels is None:
        if "data.label_column" in overrides:
            name = overrides["data.label_column"]
            raise InputError(f"{part.source.path}: no column {name!r} (--data.label_column).")
        if slice_by:
            raise InputError(f"--slice_by: {part.source.path} has no labels to measure by.")


def _measure(
    run: FinishedRun,
    part: Part,
    outputs: Mapping[str, np.ndarray],
    columns: Mapping[str, Sequence[str]],
    *,
    outside: Mapping[str, np.ndarray] | None,
) -> Measured:
    """Figures and tables of some rows, which may have no labels and whose task no classes."""
    from kbert.evaluation import appraise

    task, labels = part.experiment.task, part.split.labels
    if task.classifies and labels is None:
        print(f"{part.source.path} has no labels: its {len(part.split):,} rows are only predicted")
        return Measured({}, [])
    baseline = _baseline(run, part) if task.classifies else None
    temperature = run.fitted.get("temperature")
    metrics = appraise(
        task,
        part.split.gold,
        dict(outputs),
        baseline=baseline,
        temperature=temperature,
        outside=outside,
    )
    tables = task.tables(metrics)
    if task.classifies and labels is not None:
        from kbert.calibration import reliability, softmax
        from kbert.evaluation_tables import calibration_tables, slices_table

        probabilities = softmax(outputs["logits"], task.temperature)
        metrics["reliability"] = reliability(labels, probabilities).as_dict()
        metrics["slices"] = _slices(part, outputs, baseline, columns)
        tables += [slices_table(name, rows) for name, rows in metrics["slices"].items()]
        tables += calibration_tables(metrics)
    return Measured(metrics, tables)


def _baseline(run: FinishedRun, part: Part) -> np.ndarray | None:
    """The probabilities that the run's linear model gives, (rows, classes)."""
    path = run.folder / "baseline.safetensors"
    if not path.exists():
        return None
    from kbert.baseline import Baseline

    return Baseline.load(path).probabilities(part.linear)


def _slices(
    part: Part,
    outputs: Mapping[str, np.ndarray],
    baseline: np.ndarray | None,
    columns: Mapping[str, Sequence[str]],
) -> dict[str, list[dict[str, Any]]]:
    """Slices by length and label, and by columns of the file."""
    from kbert.analysis import slice_tables
    from kbert.slices import by_column, slice_table

    labels, names, predictions = (
        part.split.labels,
        part.experiment.task.labels,
        outputs["label_index"],
    )
    assert labels is not None
    theirs = None if baseline is None else baseline.argmax(axis=1)
    tables = slice_tables(part.split, predictions, names, baseline=theirs)
    for name, values in columns.items():
        tables[f"column {name}"] = slice_table(
            by_column(values), labels, predictions, num_classes=len(names), baseline=theirs
        )
    return tables


# The folder that is written


def _require_replaceable(folder: Path) -> None:
    """InputError if a folder holds anything but an earlier evaluation."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: this is a file; name a folder.")
    there = folder.iterdir() if folder.exists() else ()
    others = {path.name for path in there} - {METRICS, PREDICTIONS}
    if others:
        raise InputError(
            f"--output {folder}: it holds other things ({sorted(others)[0]}); name a new folder."
        )


def _require_same_file(folder: Path, file: str) -> None:
    """InputError if a folder holds what was measured of another file of that name."""
    try:
        before = read_object(folder / METRICS, advice="")["file"]
    except (InputError, KeyError):
        return
    if not isinstance(before, str) or Path(before).resolve() != Path(file).resolve():
        raise InputError(
            f"{folder}: it holds the figures of {before}; name another folder by --output."
        )


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A folder beside another that takes its place once it is written; else nothing is left."""
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; name another folder by --output.") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())
