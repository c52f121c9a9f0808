"""Answer texts, or the rows of a file of any size: `python -m kbert.predict --help`.

Exit status 0: all is answered; 2: bad input.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbert.command import finish
from kbert.errors import InputError
from serve.command_line import OneLineParser
from serve.startup import import_tensorflow_quietly

if TYPE_CHECKING:
    import pyarrow as pa

    from kbert.answer_files import Parts
    from kbert.predictor import Predictor
    from kbert.text_files import Source

EPILOG = """\
The rows of a file, into a file; the same command goes on where it was stopped:

  python -m kbert.predict runs/news --input big.csv --output out.parquet
  python -m kbert.predict runs/news --input big.csv --output out.csv --keep id date

Texts, answered on the terminal; those of a pair are divided by a tab:

  python -m kbert.predict runs/news "Shares fell on Monday." "The match ended 2 to 1."

Instead of a run, RUN may be an exported SavedModel or the folder of its versions.
"""
CHUNK_ROWS = 2048  # of a part: what is lost when the process is killed
SHOWN_VALUES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer what the command line names; the exit status."""
    options = _parse(arguments)
    work = _print_answers if options.input is None else _predict_file
    return finish(
        "kbert.predict",
        lambda: work(options),
        debug=options.debug,
        output=options.output,
        resumes=True,
    )


def predict_file(
    predictor: Predictor,
    source: Source,
    output: Path,
    *,
    keep: Sequence[str] = (),
    batch_size: int = 32,
) -> int:
    """Answer all rows of a file into another, in constant memory; go on with what is there.

    Args:
        predictor: What answers.
        source: The rows; the text columns are the inputs of the predictor, in their order.
        output: A .parquet, .csv or .jsonl; it appears when all rows are answered.
        keep: Columns of the source, which has them, that stand before the answers.
        batch_size: Rows that are computed at once.

    Returns:
        Number of rows.

    Raises:
        InputError: a row cannot be answered, or the parts that are there are of something else.
    """
    from kbert.answer_files import parts_of

    made_of = {
        "format": 1,
        "input": source.digest,
        "model": _model_digest(predictor),
        "keep": list(keep),
        "batch_size": batch_size,
    }
    with parts_of(output, made_of, lambda: _checked_rows(predictor, source)) as parts:
        if not parts.is_joined:
            _write_parts(parts, predictor, source, keep, batch_size)
            parts.join()
        parts.remove()
    return parts.rows


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="kbert.predict",
        description="Answers texts, or the rows of a file of any size, as a server would.",
        epilog=EPILOG,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run or of an export")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text to answer")
    parser.add_argument("--input", metavar="FILE", help="a file whose rows are answered")
    parser.add_argument("--output", metavar="FILE", help="a .parquet, .csv or .jsonl to write")
    parser.add_argument(
        "--keep",
        metavar="COLUMN",
        action="extend",
        nargs="+",
        default=[],
        help="columns of the input that stand in the output too",
    )
    parser.add_argument(
        "--data.text_column",
        metavar="COLUMN",
        help="the input's text column, or [A, B] for several (the run's)",
    )
    parser.add_argument("--data.encoding", metavar="NAME", help="the input's encoding (the run's)")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="rows that are computed at once (32)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if (options.input is None) == (not options.texts):
        parser.error("give texts, or a file by --input and one by --output")
    if (options.input is None) != (options.output is None):
        parser.error("--input and --output belong together")
    return options


def _load(options: argparse.Namespace) -> Predictor:
    # TensorFlow is imported from here on: --help and a wrong option are answered at once
    import_tensorflow_quietly()
    import tensorflow as tf

    from kbert.predictor import load

    tf.config.experimental.enable_op_determinism()  # as the run itself was measured
    return load(options.run)


# A file


def _predict_file(options: argparse.Namespace) -> None:
    from kbert.answer_files import require_output
    from kbert.text_files import require_file

    output, path = Path(options.output), Path(options.input)
    require_file(path, "--input")
    require_output(output)
    predictor = _load(options)
    keep = list(dict.fromkeys(options.keep))
    source = _source(predictor, path, keep, options)
    rows = predict_file(predictor, source, output, keep=keep, batch_size=options.batch_size)
    print(f"written: {output}, {rows:,} row{'s' if rows != 1 else ''}")


def _write_parts(
    parts: Parts, predictor: Predictor, source: Source, keep: Sequence[str], batch_size: int
) -> None:
    """Those that are not there."""
    from kbert.progress import ProgressBar

    bar, done = ProgressBar("predict", total=parts.rows, unit="row"), 0
    try:
        for table in _chunks(source, CHUNK_ROWS):
            if not parts.has(done):
                bar.update(done)
                texts = _texts(predictor, source, table)
                answers = predictor.answer_columns(texts, batch_size=batch_size)
                parts.write(done, _with_kept(table, done, keep, answers))
            done += len(table)
    finally:
        bar.close()
    if done != parts.rows:
        raise InputError(f"{source.path}: the file has changed meanwhile; remove {parts.folder}.")


def _source(
    predictor: Predictor, path: Path, keep: Sequence[str], options: argparse.Namespace
) -> Source:
    """The input file, seen through the columns that are the model's inputs and those to keep."""
    from kbert.text_files import open_texts

    data = None if predictor.run is None else predictor.run.options.data
    named, encoding = getattr(options, "data.text_column"), getattr(options, "data.encoding")
    columns = list(predictor.inputs) if data is None else data.text_columns
    if named is not None:
        columns = [name.strip() for name in named.strip("[]").split(",")]
    if len(columns) != len(predictor.inputs):
        raise InputError(
            f"{path}: the model takes {', '.join(predictor.inputs)}, and the columns would be "
            f"{', '.join(columns)}; name {len(predictor.inputs)} by --data.text_column."
        )
    return open_texts(
        path,
        columns,
        encoding=encoding or (data.encoding if data else "utf-8"),
        lists=_list_columns(predictor, columns),
        others=keep,
    )


def _checked_rows(predictor: Predictor, source: Source) -> int:
    """Number of rows, none of which the model cannot answer."""
    from kbert.text_files import count_rows

    return count_rows(
        source, lambda batch: predictor.check_request(_texts(predictor, source, batch))
    )


def _chunks(source: Source, rows: int) -> Iterator[pa.Table]:
    """The rows of a file, so many at a time, however the file is read."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    count = 0
    for batch in source.batches():
        held.append(batch)
        count += len(batch)
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held, count = table.slice(rows).to_batches(), count - rows
    if count:
        yield pa.Table.from_batches(held)


def _texts(
    predictor: Predictor, source: Source, table: pa.Table | pa.RecordBatch
) -> dict[str, list[str]]:
    """The inputs of the model; the words of a list are joined by a space."""
    from kbert.text_files import LIST_SEPARATOR

    columns = zip(predictor.inputs, source.text_columns, strict=True)
    return {
        name: [text.replace(LIST_SEPARATOR, " ") for text in table.column(column).to_pylist()]
        if column in source.list_columns
        else table.column(column).to_pylist()
        for name, column in columns
    }


def _with_kept(
    table: pa.Table, start: int, keep: Sequence[str], answers: Mapping[str, list]
) -> dict[str, list]:
    """row, from 1, the kept columns and the answers; a kept one of an answer's name is input_X."""
    taken = {"row", *answers}
    kept = {
        f"input_{name}" if name in taken else name: table.column(name).to_pylist() for name in keep
    }
    return {"row": list(range(start + 1, start + 1 + len(table))), **kept, **answers}


def _list_columns(predictor: Predictor, columns: Sequence[str]) -> tuple[str, ...]:
    """Those of the columns that hold a list of words a row, as in training."""
    if predictor.run is None:
        return ()
    from kbert.tasks import task_class

    options = predictor.run.options
    trained = task_class(options.task.name).columns(options)
    return tuple(
        column
        for column, name in zip(columns, trained.texts, strict=False)
        if name in trained.lists
    )


def _model_digest(predictor: Predictor) -> str:
    """SHA-256 of what says which model answers, and in which columns."""
    paths = [predictor.source / "saved_model.pb", *predictor.source.glob("variables/*.index")]
    if predictor.run is not None:
        names = ("config.yaml", "metrics.json", "checkpoints/model.safetensors")
        paths += [predictor.run.folder / name for name in names]
    digest = hashlib.sha256()
    for path in filter(Path.exists, paths):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# Texts of the command line


def _print_answers(options: argparse.Namespace) -> None:
    predictor = _load(options)
    rows = [text.split("\t") if len(predictor.inputs) > 1 else text for text in options.texts]
    texts = predictor.columns(rows)
    if (bad := predictor.check_request(texts)) is not None:
        raise InputError(f"text {bad[0] + 1}: {bad[1]}")
    columns = predictor.answer_columns(texts, batch_size=options.batch_size)
    for number, row in enumerate(rows):
        print(row if isinstance(row, str) else " | ".join(row))
        for line in _lines({name: values[number] for name, values in columns.items()}):
            print(f"  {line}")


def _lines(answer: Mapping[str, Any]) -> list[str]:
    """An answer as lines; of more numbers than a few, as many classes have, the largest."""
    numbers = {name: value for name, value in answer.items() if isinstance(value, float)}
    shown = [f"{name}: {_shown(value)}" for name, value in answer.items() if name not in numbers]
    largest = sorted(numbers, key=lambda name: -numbers[name])
    if len(numbers) <= SHOWN_VALUES:
        largest = list(numbers)
    shown += [f"{name}: {_shown(numbers[name])}" for name in largest[:SHOWN_VALUES]]
    left = len(largest) - SHOWN_VALUES
    return shown if left <= 0 else [*shown, f"and {left} smaller"]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if not isinstance(value, list):
        return str(value)
    parts = [f"[{_shown(part)}]" if isinstance(part, list) else _shown(part) for part in value]
    left = len(parts) - 2 * SHOWN_VALUES
    return ", ".join(parts if left <= 0 else [*parts[: 2 * SHOWN_VALUES], f"and {left} more"])


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())
