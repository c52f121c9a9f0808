"""How alike texts are, and a file's nearest to a query: `python -m kbert.similar --help`.

Exit status 0: it is answered; 2: bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.command import finish
from kbert.errors import InputError
from kbert.progress import ProgressBar
from kbert.whole_files import written_whole
from serve.command_line import OneLineParser
from serve.startup import import_tensorflow_quietly

if TYPE_CHECKING:
    from kbert.text_files import Source

EPILOG = """\
The cosine of two texts, by a checkpoint in HuggingFace layout, a model of the hub or a run:

  python -m kbert.similar all-MiniLM-L6-v2 "A cat sat." "The cat is sitting."

The rows of a file that are nearest to a text; the file's vectors are kept for the next time:

  python -m kbert.similar runs/embedding --texts faq.csv --data.text_column question \\
      --query "I forgot my key" --top 3
"""
BLOCK_ROWS = 1 << 14  # vectors that are compared at a time


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer what the command line asks; the exit status."""
    options = _parse(arguments)
    return finish("kbert.similar", lambda: _answer(options), debug=options.debug)


def _answer(options: argparse.Namespace) -> None:
    _check(options)
    # TensorFlow is imported from here on: --help and a wrong option are answered at once
    import_tensorflow_quietly()
    if options.texts is None:
        revision = vars(options)["model.revision"]
        print(f"{similarity(options.model, *options.pair, revision=revision):.4f}")
    else:
        _search(options)


def similarity(model: str | Path, first: str, second: str, *, revision: str | None = None) -> float:
    """The cosine of the vectors of two texts.

    Args:
        model: A run of the task embedding, a checkpoint's folder, or the id of one on the hub.
        first: A text.
        second: Another one.
        revision: Branch, tag or commit on the hub.

    Raises:
        InputError: the model cannot be used.
    """
    from kbert.sentence_encoder import load_sentence_encoder

    one, other = _unit(load_sentence_encoder(model, revision=revision)([first, second]))
    return float(one @ other)


def nearest(
    vectors: np.ndarray, queries: np.ndarray, *, top: int, block_rows: int = BLOCK_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors with the largest cosines, all of them being compared, a block at a time.

    Args:
        vectors: float32 (rows, hidden), in memory or on disk.
        queries: float32 (queries, hidden).
        top: How many to find for each query.
        block_rows: Vectors that are in memory at a time.

    Returns:
        Their rows, int64 (queries, top), and cosines, float32 (queries, top), falling; the first
        row first where they are equal. Fewer than `top` where there are fewer vectors.
    """
    queries = _unit(queries)
    rows = np.zeros((len(queries), 0), np.int64)
    cosines = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(vectors), block_rows):
        found = queries @ _unit(vectors[start : start + block_rows]).T
        numbers = np.arange(start, start + found.shape[1])
        rows = np.concatenate([rows, np.broadcast_to(numbers, found.shape)], axis=1)
        cosines = np.concatenate([cosines, found], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
        rows, cosines = (np.take_along_axis(kept, order, axis=1) for kept in (rows, cosines))
    return rows, cosines


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="kbert.similar",
        description="Tells how alike texts are, and which rows of a file are nearest to a text.",
        epilog=EPILOG,
    )
    model = "folder of a run of the task embedding or of a checkpoint, or a hub id"
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("pair", metavar="TEXT", nargs="*", help="two texts to compare")
    parser.add_argument("--texts", metavar="FILE", help="a file whose rows are searched")
    parser.add_argument(
        "--query",
        metavar="TEXT",
        action="extend",
        nargs="+",
        default=[],
        help="texts whose nearest rows of FILE are wanted",
    )
    parser.add_argument("--top", metavar="N", type=int, default=5, help="rows for each (5)")
    parser.add_argument("--output", metavar="OUT", help="a .jsonl or .csv to write, not to print")
    column = "FILE's text column (text)"
    parser.add_argument("--data.text_column", metavar="COLUMN", default="text", help=column)
    encoding = "FILE's encoding (utf-8)"
    parser.add_argument("--data.encoding", metavar="NAME", default="utf-8", help=encoding)
    cache = "folder that keeps FILE's vectors (kbert/ in the user's cache folder)"
    parser.add_argument("--data.cache_dir", metavar="DIR", help=cache)
    revision = "branch, tag or commit on the hub"
    parser.add_argument("--model.revision", metavar="NAME", help=revision)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """InputError if it is not clear what is asked."""
    if options.texts is None:
        if options.query or options.output:
            name = "query" if options.query else "output"
            raise InputError(f"--{name} needs a file: name it by --texts.")
        if len(options.pair) != 2:
            raise InputError(
                f"two texts are compared, received {len(options.pair)}; or name a file by --texts."
            )
        return
    if options.pair:
        raise InputError("--texts: a file is searched by --query; leave the other texts out.")
    if not options.query:
        raise InputError("--query is missing: give a text whose nearest rows are wanted.")
    if options.top < 1:
        raise InputError(f"--top must be at least 1, received {options.top}.")
    if options.output and Path(options.output).suffix.lower() not in _WRITERS:
        raise InputError(f"--output {options.output}: name a file that ends in .jsonl or .csv.")


def _search(options: argparse.Namespace) -> None:
    """Print or write the nearest rows of a file."""
    # TensorFlow and Keras are not needed for --help
    from kbert.sentence_encoder import file_vectors, load_sentence_encoder
    from kbert.text_files import count_rows, open_texts, require_file

    asked = vars(options)
    path = Path(options.texts)
    require_file(path, "--texts")
    column, encoding = asked["data.text_column"], asked["data.encoding"]
    source = open_texts(path, (column,), encoding=encoding)
    rows = count_rows(source)
    encoder = load_sentence_encoder(options.model, revision=asked["model.revision"])
    bar = ProgressBar(options.texts, total=rows, unit="row")
    with contextlib.closing(bar):
        vectors = file_vectors(
            encoder, source, rows=rows, cache_dir=asked["data.cache_dir"], report=bar.update
        )
    found = nearest(vectors, encoder(options.query), top=options.top)
    answers = list(_answers(source, options.query, *found))
    if options.output is None:
        _print(options.query, answers)
    else:
        with written_whole(Path(options.output)) as beside:
            _WRITERS[Path(options.output).suffix.lower()](beside, answers)
        print(f"written: {options.output}")


def _answers(
    source: Source, queries: Sequence[str], rows: np.ndarray, cosines: np.ndarray
) -> Iterator[dict[str, Any]]:
    """The rows of a file that were found, the nearest first for each query."""
    from kbert.text_files import read_rows

    (texts,) = read_rows(source, rows.ravel(), source.text_columns).values()
    places = itertools.product(range(len(queries)), range(rows.shape[1]))
    for (query, rank), text in zip(places, texts, strict=True):
        yield {
            "query": queries[query],
            "rank": rank + 1,
            "row": int(rows[query, rank]) + 1,
            "similarity": round(float(cosines[query, rank]), 6),
            "text": text,
        }


def _print(queries: Sequence[str], answers: Sequence[dict[str, Any]]) -> None:
    """A table for each query."""
    from kbert.tasks.task import Table
    from kbert.terminal import print_table

    columns = ("rank", "row", "similarity", "text")
    each = len(answers) // len(queries)
    for number, query in enumerate(queries):
        found = answers[number * each : (number + 1) * each]
        rows = [tuple(answer[name] for name in columns) for answer in found]
        print_table(Table(f"nearest to: {query}", columns, rows))


def _write_jsonl(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    path.write_text("".join(lines), encoding="utf-8")


def _write_csv(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, answers[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(answers)


_WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv}


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32; one of zeros stays."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())
