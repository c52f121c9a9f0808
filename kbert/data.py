"""Files of texts as columns, splits and a label vocabulary.

A file is read as a stream of record batches; what stays in memory is a few numbers a row: its
number, its label and a hash of its texts. How each kind of file is read:

* .csv: fields may be wrapped in double quotes, and then hold commas and new lines.
* .tsv: likewise when the quotes of the whole file are balanced so; otherwise (GLUE's files hold
  bare quotes) one row a line, quotes being ordinary characters.
* .jsonl, .ndjson: one object a line; its columns are the keys of the first one.
* .parquet: string columns.
* .txt: one text a line, for tasks without labels.

Every value stays as it is written ("007", "NA", "1.0"). JSON and Parquet labels may also be
integers and booleans, which read as JSON writes them: 1, true. Blank lines are no rows. A cell
that holds several items (words, their tags, labels) is a list in JSON and Parquet, or a string
that is divided; both read as one string with `LIST_SEPARATOR` between the items.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from kbert.config import DataOptions
from kbert.errors import InputError

logger = logging.getLogger(__name__)

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")
BATCH_ROWS = 4096
LARGEST_ROW = 1 << 23  # bytes; pyarrow wants a row of a CSV file within one block
CHUNK = 1 << 20  # bytes
LIST_SEPARATOR = "\x1f"
"""Stands between the items of a cell that holds several; Unicode's "unit separator"."""
END_OF_FILE = "\x1ekbert: end of file\x1e"  # a last row that an unclosed quote would swallow


@dataclass(frozen=True)
class LearnedVocabulary:
    """A WordPiece vocabulary that is to be learnt from a column of the training rows."""

    column: str
    size: int
    """Entries, at most."""
    lowercase: bool


@dataclass(frozen=True)
class Columns:
    """What a task reads of each row."""

    texts: tuple[str, ...]
    """What the model is given."""
    label: str | None = None
    """One label, or number, a row; a test file may lack it."""
    label_kind: Literal["class", "number"] = "class"
    outside: str | None = None
    """Label of rows that are of no class; they are kept apart from the others."""
    targets: tuple[str, ...] = ()
    """Further columns of answers to learn."""
    lists: tuple[str, ...] = ()
    """Those of texts and targets that hold several items a row."""
    separator: str | None = None
    """What divides the items where a cell is a string and no list; None for white space."""
    named: tuple[str, ...] = ()
    """Targets whose values, or items, are names to be learnt."""
    blank: tuple[str, ...] = ()
    """Targets that may be empty."""
    vocabularies: tuple[LearnedVocabulary, ...] = ()
    check: Callable[[Mapping[str, list[str]]], tuple[int, str] | None] | None = None
    """Looks at some rows of texts and targets, by column: the index of the first bad row, and what
    is wrong with it and what to do; None where all are good."""


@dataclass(frozen=True)
class Source:
    """One file, seen through some of its columns."""

    path: Path
    text_columns: tuple[str, ...]
    label_column: str | None
    encoding: str = "utf-8"
    other_columns: tuple[str, ...] = ()
    """Columns to look at, not to learn from: all plain values read as strings."""
    target_columns: tuple[str, ...] = ()
    """Columns of answers, as strings; numbers read as JSON writes them."""
    list_columns: tuple[str, ...] = ()
    """Those of the columns that hold several items a row."""
    separator: str | None = None
    """What divides them in a string; None for white space."""
    label_kind: Literal["class", "number"] = "class"

    @property
    def columns(self) -> tuple[str, ...]:
        """The text columns, then the label column, the target columns, and the others."""
        label = (self.label_column,) if self.label_column is not None else ()
        return self.text_columns + label + self.target_columns + self.other_columns

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's bytes and of all that texts and labels depend on."""
        key = [
            self.path.suffix.lower(), self.text_columns, self.label_column, self.encoding,
            self.target_columns, self.list_columns, self.separator,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(key).encode())
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in file order, as string columns without nulls, up to `BATCH_ROWS` at a time.

        Raises:
            InputError: the file cannot be read as what its name says.
        """
        for columns in _READERS[self.path.suffix.lower()](self):
            columns = [column.fill_null("") for column in columns]
            batch = pa.RecordBatch.from_arrays(columns, names=list(self.columns))
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)

    @cached_property
    def _is_quoted(self) -> bool:
        """Whether double quotes wrap fields of this CSV or TSV file."""
        return self.path.suffix.lower() == ".csv" or _has_balanced_quotes(self)


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of a file."""

    source: Source
    rows: np.ndarray
    """int64 (rows,): numbers of the rows in the file, from 0, ascending."""
    labels: np.ndarray | None
    """int32 (rows,): index of each row's label in `DataSet.labels`; or float32 (rows,): its number;
    None without labels."""
    outside: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64: numbers of the rows with the label `Columns.outside`, which `rows` leave out."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """The splits of a run, and what is known of them before any model is built."""

    splits: dict[str, Split]
    """train, validation and test: those that there are."""
    labels: tuple[str, ...]
    """Sorted names of the training labels; () when the task has none."""
    duplicates: dict[str, int]
    """Exact duplicates, all text columns being equal. "train": rows that repeat an earlier row
    of that split; "train/test": rows of the second split whose texts stand in the first."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Sorted values, or items, of the training file in each of `Columns.named`."""


def require_files(options: DataOptions) -> None:
    """Check at once, before anything slow, that there are files of the names given.

    Raises:
        InputError: a file is missing, empty, a folder, or of an unknown extension.
    """
    for role in ("train", "validation", "test"):
        file = getattr(options, role)
        if file is not None:
            require_file(Path(file), f"--data.{role}")


def read_dataset(options: DataOptions, columns: Columns, *, seed: int) -> DataSet:
    """Read and check the files of a run once, and split their rows.

    A split without a file is drawn from the training file, stratified by label, unless its
    fraction is 0. A test file may lack the label column.

    Args:
        options: Which files.
        columns: What is read of them.
        seed: Seed of the rows drawn; the same seed draws the same rows.

    Raises:
        InputError: a file that cannot be read, or data that cannot be trained on.
    """
    if options.train is None:
        raise InputError("--data.train is missing: name the training file.")
    train = _scan(_open_source(options.train, "train", options, columns), columns)
    scans = {"train": train}
    rows: dict[str, np.ndarray] = {}
    fractions = {}
    for name in ("validation", "test"):
        file, fraction = getattr(options, name), getattr(options, f"{name}_fraction")
        if file is not None:
            scans[name] = _scan(_open_source(file, name, options, columns), columns)
            _tell_new_names(scans[name], train, columns)
            rows[name] = np.arange(len(scans[name].hashes))
        elif fraction > 0:
            fractions[name] = fraction
    labels = tuple(sorted(set(train.names) - {columns.outside}))
    if train.codes is not None and len(labels) < 2:
        raise InputError(
            f"{train.source.path}: every row has the label {next(iter(train.names))!r} (column "
            f"{columns.label!r}); training needs two labels or more."
        )
    rows |= _draw(train, fractions, seed)
    names = [name for name in ("train", "validation", "test") if name in rows]
    splits, hashes = {}, {}
    for name in names:
        scan = scans.get(name, train)
        splits[name] = _split(scan, rows[name], columns, labels, str(train.source.path))
        hashes[name] = scan.hashes[rows[name]]
    target_names = {name: tuple(sorted(found)) for name, found in train.target_names.items()}
    return DataSet(splits, labels, _count_duplicates(hashes), target_names)


def read_split(
    path: Path, options: DataOptions, columns: Columns, labels: tuple[str, ...]
) -> Split:
    """All rows of one file, for a model that is trained; the training file is not looked at.

    Args:
        path: The file, which may lack the label column.
        options: Its encoding.
        columns: What is read of it.
        labels: Sorted names of the training labels.

    Raises:
        InputError: a file that cannot be read, or a label that is not among the labels.
    """
    scan = _scan(_open_source(str(path), "test", options, columns), columns)
    return _split(scan, np.arange(len(scan.hashes)), columns, labels, "the training data")


def read_rows(source: Source, rows: np.ndarray, columns: Sequence[str]) -> dict[str, list[str]]:
    """The values of some columns of some rows, of any type, as strings.

    The file is read up to the last of the rows; what stays in memory is what is returned.

    Args:
        source: The file; the columns need not be its text or label columns.
        rows: Numbers of the rows, from 0, in any order, which is kept.
        columns: Names of the columns.

    Returns:
        The values of each column, one a row. JSON and Parquet numbers and booleans read as they
        are written there, a missing value as "", the items of a list column of the source with
        `LIST_SEPARATOR` between them.

    Raises:
        InputError: there is no such column, it holds lists or the like, or the file cannot be
            read any more or has fewer rows.
    """
    wanted = _look_at(source, columns)
    found: dict[str, list[str]] = {name: [] for name in wanted.columns}
    ascending, places = np.unique(rows, return_inverse=True)
    start = taken = 0
    for batch in wanted.batches() if found and len(ascending) else ():
        until = int(np.searchsorted(ascending, start + batch.num_rows))
        part = batch.take(pa.array(ascending[taken:until] - start, pa.int64()))
        for name, values in found.items():
            values += part.column(name).to_pylist()
        start, taken = start + batch.num_rows, until
        if taken == len(ascending):
            break
    if found and taken < len(ascending):
        raise InputError(
            f"{source.path}: {_count(start, 'row')}, and row {ascending[-1] + 1} is wanted: the "
            "file has changed since it was read; bring the old one back."
        )
    return {name: [values[place] for place in places] for name, values in found.items()}


def open_texts(
    path: Path,
    texts: Sequence[str],
    *,
    encoding: str,
    lists: Sequence[str] = (),
    others: Sequence[str] = (),
) -> Source:
    """A file of texts for a model that is trained.

    Args:
        path: The file, which `require_file` has seen.
        texts: Columns that the model is given.
        encoding: Of the file.
        lists: Those of the texts that hold several words a row.
        others: Columns to look at, which may be texts too.

    Raises:
        InputError: the file has no such columns, or there is no such encoding.
    """
    _require_codec(encoding)
    kept = tuple(name for name in others if name not in texts)
    source = Source(path, tuple(texts), None, encoding, kept, list_columns=tuple(lists))
    if path.suffix.lower() == ".txt":
        _require_plain_texts(path, Columns(source.text_columns))
        there = list(texts)
    else:
        there = _column_names(source)
    for name in source.columns:
        option = "--data.text_column" if name in texts else "--keep"
        _require_column(path, there, name, by=f" by {option}")
    return source


def count_rows(
    source: Source, check: Callable[[pa.RecordBatch], tuple[int, str] | None] = lambda batch: None
) -> int:
    """Look at every row of a file of texts, which may be empty ones.

    Args:
        source: The file.
        check: The first bad one of some rows, and what is wrong with it; None where all are good.

    Returns:
        How many rows it has.

    Raises:
        InputError: a row cannot be read or used, or there is none.
    """
    rows = 0
    for batch in source.batches():
        _refuse_nul(source, batch, rows)
        if (bad := check(batch)) is not None:
            raise InputError(f"{source.path}: row {rows + bad[0] + 1}: {bad[1]}")
        rows += batch.num_rows
    _require_rows(source, rows)
    return rows


# Opening: does the file exist, and has it the columns?


def _open_source(file: str, role: str, options: DataOptions, columns: Columns) -> Source:
    path, texts, label = Path(file), columns.texts, columns.label
    if label in texts:
        raise InputError(
            f"--data.label_column: {label!r} is a text column too; the label must be another one."
        )
    require_file(path, f"--data.{role}")
    _require_codec(options.encoding)
    if path.suffix.lower() == ".txt":
        _require_plain_texts(path, columns)
        return Source(path, texts, None, options.encoding)
    there = _column_names(Source(path, texts, label, options.encoding))
    if role == "test" and label not in there:
        label = None
    source = Source(
        path,
        texts,
        label,
        options.encoding,
        target_columns=columns.targets,
        list_columns=columns.lists,
        separator=columns.separator,
        label_kind=columns.label_kind,
    )
    for name in source.columns:
        _require_column(path, there, name, by=f" by {_option_of(columns, name)}")
    return source


def _option_of(columns: Columns, name: str) -> str:
    if name in columns.texts:
        return "--data.text_column"
    return "--data.label_column" if name == columns.label else "the task's options"


def _look_at(source: Source, columns: Sequence[str]) -> Source:
    """The same file, seen through other columns."""
    wanted = Source(
        source.path,
        (),
        None,
        source.encoding,
        tuple(dict.fromkeys(columns)),
        list_columns=source.list_columns,
        separator=source.separator,
    )
    is_text = source.path.suffix.lower() == ".txt"
    there = list(source.text_columns) if is_text else _column_names(wanted)
    for name in wanted.columns:
        _require_column(source.path, there, name)
    return wanted


def _require_column(path: Path, there: list[str], name: str, *, by: str = "") -> None:
    if name not in there:
        listed = ", ".join(map(repr, there))
        raise InputError(f"{path}: no column {name!r}; name one of {listed}{by}.")
    if there.count(name) > 1:
        raise InputError(f"{path}: {there.count(name)} columns are named {name!r}; rename one.")


def require_file(path: Path, option: str) -> None:
    """Check at once that there is a file of rows.

    Raises:
        InputError: it is missing, empty, a folder, or of an unknown extension.
    """
    known = ", ".join(EXTENSIONS)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; correct {option}.")
    if path.is_dir():
        raise InputError(f"{path}: a folder; {option} must name a file ({known}).")
    if path.suffix.lower() not in EXTENSIONS:
        raise InputError(f"{path}: unknown extension {path.suffix!r}; convert it to {known}.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); correct that.") from None
    if empty:
        raise InputError(f"{path}: the file is empty; give a file with rows.")


def _require_codec(encoding: str) -> None:
    try:
        " ".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError):
        raise InputError(
            f"--data.encoding: unknown encoding {encoding!r}; use a name that Python knows, such "
            "as utf-8, gb18030, utf-16 or cp1252."
        ) from None


def _require_plain_texts(path: Path, columns: Columns) -> None:
    answers = [name for name in (columns.label, *columns.targets) if name is not None]
    if answers:
        raise InputError(
            f"{path}: a .txt file has no labels; use {', '.join(EXTENSIONS[:-1])} with a column "
            f"{answers[0]!r}."
        )
    if len(columns.texts) > 1:
        raise InputError(
            f"{path}: a .txt file has one text a row, not {len(columns.texts)}; name one column by "
            "--data.text_column."
        )


def _column_names(source: Source) -> list[str]:
    """Names of all columns of a file, in order."""
    if source.path.suffix.lower() == ".parquet":
        with _open_parquet(source.path) as file:
            return file.schema_arrow.names
    if source.path.suffix.lower() in (".csv", ".tsv"):
        first: Iterable[str] | None = next(iter(_csv_rows(source, quoted=source._is_quoted)), None)
    else:
        first = next((record for _, record in _json_records(source)), None)
    if first is None:
        raise InputError(f"{source.path}: the file is empty; give a file with rows.")
    return list(first)


# Reading: bytes -> UTF-8 -> lines or fields -> string columns


def _utf8_chunks(source: Source) -> Iterator[bytes]:
    """The file in UTF-8, without byte-order mark; every byte is checked."""
    decoder = codecs.getincrementaldecoder(source.encoding)()
    position, lines, at_start = 0, 1, True
    with source.path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK)
            position += len(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                _refuse_encoding(source, error, position, lines)
            lines += text.count("\n")
            if at_start and text:
                text, at_start = text.removeprefix("\ufeff"), False
            if text:
                yield text.encode("utf-8")
            if not chunk:
                return


def _refuse_encoding(source: Source, error: UnicodeError, position: int, lines: int) -> NoReturn:
    """Say where the bytes are not in the encoding, and in which they may be.

    Args:
        source: The file.
        error: What its decoder raised.
        position: Number of bytes that the decoder was given.
        lines: Number of the line at which the bytes of `error` begin.
    """
    problem = f"{source.path}: not a text in {source.encoding}"
    if isinstance(error, UnicodeDecodeError):
        before = error.object[: error.start].decode(source.encoding, "replace")
        problem = (
            f"{source.path}: line {lines + before.count(chr(10))}, byte "
            f"{position - len(error.object) + error.start} of the file: not in {source.encoding}"
        )
    advice = "name the file's encoding by --data.encoding."
    if codecs.lookup(source.encoding).name == "utf-8":
        with source.path.open("rb") as file:
            marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        if marked and _decodes(source.path, "utf-16"):
            advice = "its first bytes are those of UTF-16: try --data.encoding utf-16."
        elif _decodes(source.path, "gb18030"):
            advice = "Excel writes such files in China: try --data.encoding gb18030."
    raise InputError(f"{problem}; {advice}") from None


def _decodes(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as file:
        try:
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeError:
            return False
    return True


class _Stream(io.RawIOBase):
    """Chunks of bytes as a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _buffered(chunks: Iterable[bytes]) -> io.BufferedReader:
    """A file whose `read` gives as many bytes as are asked for, as long as there are any."""
    return io.BufferedReader(_Stream(chunks), CHUNK)


def _lines(source: Source, newline: str | None) -> io.TextIOWrapper:
    return io.TextIOWrapper(_buffered(_utf8_chunks(source)), encoding="utf-8", newline=newline)


def _delimiter(source: Source) -> str:
    return "\t" if source.path.suffix.lower() == ".tsv" else ","


def _csv_rows(source: Source, *, quoted: bool) -> Iterator[list[str]]:
    """Rows by Python's own reader: exact but slow, for the header."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    lines = _lines(source, newline="")
    try:
        yield from filter(None, csv.reader(lines, delimiter=_delimiter(source), quoting=quoting))
    except csv.Error as error:
        raise InputError(
            f"{source.path}: the header cannot be read ({error}); correct it."
        ) from None


def _has_balanced_quotes(source: Source) -> bool:
    """Whether a TSV file is written as CSV is, its double quotes wrapping fields.

    That is so when every quoted field ends where a field may end. Where a quoted field spans
    lines although each line by itself has equally many columns, the lines are the rows.
    """
    if not any(b'"' in chunk for chunk in _utf8_chunks(source)):
        return False
    tabs, rows, widths = set(), 0, set()

    def lines() -> Iterator[str]:
        for line in _lines(source, newline=""):
            if line.strip("\r\n"):
                tabs.add(line.count("\t"))
                yield line

    limit = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(lines(), delimiter="\t", strict=True)
        for row in reader:
            rows += 1
            widths.add(len(row))
    except csv.Error:
        return False
    finally:
        csv.field_size_limit(limit)
    line_is_row = rows == reader.line_num and len(widths) == 1
    return line_is_row or len(tabs) > 1 or tabs == {0}


def _read_csv(source: Source) -> Iterator[list[pa.Array]]:
    quoted, delimiter = source._is_quoted, _delimiter(source)
    width = len(_column_names(source))
    last_row = f"\n{delimiter.join([END_OF_FILE] * width)}\n".encode()
    bad_rows: list[pyarrow.csv.InvalidRow] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    rows, complete = 0, False
    try:
        reader = pyarrow.csv.open_csv(
            _buffered(itertools.chain(_utf8_chunks(source), [last_row])),
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=LARGEST_ROW),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=refuse,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(source.columns),
                column_types=dict.fromkeys(source.columns, pa.string()),
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
        for batch in reader:
            if batch.num_rows and batch.column(0)[-1].as_py() == END_OF_FILE:
                batch, complete = batch.slice(0, batch.num_rows - 1), True
            rows += batch.num_rows
            yield _with_items(source, batch.columns)
    except pa.ArrowInvalid as error:
        _refuse_csv(source, error, bad_rows, rows)
    if not complete:
        _refuse_open_quote(source, f"row {rows}")


def _refuse_csv(
    source: Source, error: pa.ArrowInvalid, bad_rows: list[pyarrow.csv.InvalidRow], rows: int
) -> NoReturn:
    if not bad_rows:  # the one other error: a row that is larger than a block
        _refuse_open_quote(source, f"a row of over {LARGEST_ROW >> 20} MiB after row {rows}")
    row = bad_rows[0]
    number = (row.number or 0) - 1  # the header is number 1
    if END_OF_FILE in row.text:
        _refuse_open_quote(source, f"row {number}")
    raise InputError(
        f"{source.path}: row {number} has {_count(row.actual_columns, 'column')}, the header "
        f"{row.expected_columns}: {_shorten(row.text)}; correct it, or wrap a text that holds a "
        "separator or new line in double quotes."
    ) from None


def _refuse_open_quote(source: Source, place: str) -> NoReturn:
    raise InputError(
        f"{source.path}: {place}: a double quote opens a field and is never closed; close it, "
        "and write quotes within a field twice."
    ) from None


def _with_items(source: Source, columns: list[pa.Array]) -> list[pa.Array]:
    """String columns, with the items of those that hold several divided as `LIST_SEPARATOR`."""
    return [
        _divide(column, source.separator) if name in source.list_columns else column
        for name, column in zip(source.columns, columns, strict=True)
    ]


def _divide(column: pa.Array, separator: str | None) -> pa.Array:
    """Strings of items, which a separator or white space divides, as strings with ours."""
    if separator is None:
        parts = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column))
        return pc.binary_join(parts, LIST_SEPARATOR)
    joined = [
        LIST_SEPARATOR.join(filter(None, (item.strip() for item in cell.split(separator))))
        for cell in column.fill_null("").to_pylist()
    ]
    return pa.array(joined, pa.string())


def _read_text(source: Source) -> Iterator[list[pa.Array]]:
    lines = (line.rstrip("\n") for line in _lines(source, newline=None))
    texts = filter(str.strip, lines)
    while block := list(itertools.islice(texts, BATCH_ROWS)):
        yield [pa.array(block, pa.string())]


def _read_json(source: Source) -> Iterator[list[pa.Array]]:
    records = _json_records(source)
    rows = 0
    while block := list(itertools.islice(records, BATCH_ROWS)):
        yield [_json_column(source, name, block, rows) for name in source.columns]
        rows += len(block)


def _json_records(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank."""
    for number, line in enumerate(_lines(source, newline="\n"), start=1):
        if line.isspace():
            continue
        try:
            record = json.loads(line.rstrip("\n"))
        except (ValueError, RecursionError) as error:
            problem = getattr(error, "msg", str(error))
            at = f", character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            raise InputError(
                f"{source.path}: line {number}{at}: not JSON ({problem}); write one object a line."
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                f"{source.path}: line {number}: not a JSON object but {_shorten(line.strip())}; "
                "write one object a line."
            )
        yield number, record


def _json_column(
    source: Source, name: str, block: list[tuple[int, dict[str, Any]]], start: int
) -> pa.Array:
    if name in source.list_columns:
        return _json_items(source, name, block, start)
    try:
        return pa.array([record[name] for _, record in block], pa.string())
    except (KeyError, pa.ArrowException, UnicodeEncodeError):
        strings = []
        for row, (line, record) in enumerate(block, start=start):
            place = f"{source.path}: {_place(row, line)}"
            if name not in record:
                raise InputError(f"{place}: no key {name!r}; add it.") from None
            kinds = _json_kinds(source, name)
            strings.append(_json_string(record[name], kinds, f"{place}, column {name!r}"))
        return pa.array(strings, pa.string())


def _json_items(
    source: Source, name: str, block: list[tuple[int, dict[str, Any]]], start: int
) -> pa.Array:
    cells = []
    for row, (line, record) in enumerate(block, start=start):
        place = f"{source.path}: {_place(row, line)}"
        if name not in record:
            raise InputError(f"{place}: no key {name!r}; add it.")
        place = f"{place}, column {name!r}"
        if not isinstance(record[name], list):
            string = _json_string(record[name], (), place)
            cells += _divide(pa.array([string or ""], pa.string()), source.separator).to_pylist()
            continue
        items = [_json_string(item, (int,), place) for item in record[name]]
        cells.append(_joined(items, place))
    return pa.array(cells, pa.string())


def _joined(items: list[str | None], place: str) -> str:
    """Items of a list as one string."""
    for number, item in enumerate(items, start=1):
        if not item or item.isspace() or LIST_SEPARATOR in item:
            wrong = "is empty" if not (item or "").strip() else "holds U+001F"
            raise InputError(f"{place}: item {number} of the list {wrong}; correct it.")
    return LIST_SEPARATOR.join(item or "" for item in items)


def _json_kinds(source: Source, name: str) -> tuple[type, ...]:
    """What a column may hold besides strings and null."""
    is_number = name == source.label_column and source.label_kind == "number"
    if name in source.other_columns or name in source.target_columns or is_number:
        return (int, float)
    return (int,) if name == source.label_column else ()


def _json_string(value: Any, kinds: tuple[type, ...], place: str) -> str | None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            problem = f"{place}: half of a surrogate pair in {_shorten(value)}"
            raise InputError(f"{problem}; write the whole character.") from None
        return value
    if value is None:
        return None
    if isinstance(value, kinds):
        return json.dumps(value)
    names = {(): "a string", (int,): "a string, integer or boolean"}
    wanted = names.get(kinds, "a string, number or boolean")
    raise InputError(f"{place}: must be {wanted}, is {_shorten(json.dumps(value))}; correct it.")


def _open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        _refuse_parquet(path, error)


def _refuse_parquet(path: Path, error: Exception) -> NoReturn:
    problem = " ".join(str(error).split())
    raise InputError(f"{path}: not a readable Parquet file ({problem}); write it again.") from None


def _read_parquet(source: Source) -> Iterator[list[pa.Array]]:
    with _open_parquet(source.path) as file:
        for name in source.columns:
            _require_string_type(source, name, file.schema_arrow.field(name).type)
        batches = file.iter_batches(BATCH_ROWS, columns=list(source.columns), use_threads=False)
        try:
            for batch in batches:
                columns = [_parquet_strings(source, name, batch) for name in source.columns]
                for column in columns:
                    column.validate(full=True)  # UTF-8
                yield columns
        except (pa.ArrowException, OSError) as error:
            _refuse_parquet(source.path, error)


def _parquet_strings(source: Source, name: str, batch: pa.RecordBatch) -> pa.Array:
    column = batch.column(name)
    if name not in source.list_columns:
        return column.cast(pa.string())
    if not _is_list(column.type):
        return _divide(column.cast(pa.string()), source.separator)
    cells = column.to_pylist()
    place = f"{source.path}: column {name!r}"
    return pa.array([_joined(cell or [], place) for cell in cells], pa.string())


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _require_string_type(source: Source, name: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if name in source.list_columns and _is_list(kind):
        value = kind.value_type
    is_number = name == source.label_column and source.label_kind == "number"
    plain = name in source.other_columns or name in source.target_columns or is_number
    if plain and not pa.types.is_nested(value):
        return
    is_label = name == source.label_column
    tests = [pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view]
    if is_label:
        tests += [pa.types.is_integer, pa.types.is_boolean]
    if not any(test(value) for test in tests):
        wanted = "strings, integers or booleans" if is_label else "strings"
        raise InputError(f"{source.path}: column {name!r} holds {kind}, not {wanted}; convert it.")


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


# Scanning: one pass over a file, which checks every row and keeps numbers only


@dataclass(frozen=True, eq=False)
class _Scan:
    source: Source
    hashes: np.ndarray  # uint64 (rows,), of all texts of a row
    codes: np.ndarray | None  # int32 (rows,), indices into names
    names: tuple[str, ...]  # labels in the order of their first row
    numbers: np.ndarray | None  # float32 (rows,), where the labels are numbers
    target_names: dict[str, set[str]]  # of each target column that has names


class _EmptyRows:
    """Counts rows that lack something, to name the first of them."""

    def __init__(self) -> None:
        self.count, self.first = 0, 0

    def add(self, empty: np.ndarray, start: int) -> None:
        if not self.count and empty.any():
            self.first = start + int(empty.argmax())
        self.count += int(empty.sum())

    def refuse(self, source: Source, what: str, columns: Sequence[str]) -> None:
        if self.count:
            raise InputError(
                f"{source.path}: {_count(self.count, 'row')} with an empty {what} "
                f"({_quote_columns(columns)}), the first is row {self.first + 1}; fill "
                "in or remove."
            )


def _scan(source: Source, columns: Columns) -> _Scan:
    hashes, codes = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    numbers = [np.zeros(0, np.float32)]
    names: dict[str, int] = {}
    target_names: dict[str, set[str]] = {name: set() for name in columns.named}
    answers = (source.label_column, *source.target_columns)
    wanted = [name for name in answers if name is not None and name not in columns.blank]
    no_text, no_answer = _EmptyRows(), {name: _EmptyRows() for name in wanted}
    start = 0
    for batch in source.batches():
        _refuse_nul(source, batch, start)
        texts = batch.columns[: len(source.text_columns)]
        no_text.add(np.logical_and.reduce([_is_blank(column) for column in texts]), start)
        hashes.append(_hash(texts))
        for name, empty in no_answer.items():
            empty.add(_is_blank(batch.column(name)), start)
        if source.label_column is not None:
            labels = batch.column(source.label_column)
            if columns.label_kind == "number":
                numbers.append(_numbers(source, labels, start))
            else:
                codes.append(_codes(labels, names))
        for name, found in target_names.items():
            found.update(_names(batch.column(name), is_list=name in columns.lists))
        _check_rows(source, columns, batch, start)
        start += batch.num_rows
    _require_rows(source, start)
    no_text.refuse(source, "text", source.text_columns)
    for name, empty in no_answer.items():
        empty.refuse(source, "label" if name == source.label_column else "answer", [name])
    has_label, is_number = source.label_column is not None, columns.label_kind == "number"
    return _Scan(
        source,
        np.concatenate(hashes),
        np.concatenate(codes) if has_label and not is_number else None,
        tuple(names),
        np.concatenate(numbers) if has_label and is_number else None,
        target_names,
    )


def _codes(labels: pa.Array, names: dict[str, int]) -> np.ndarray:
    """Index of each label in `names`, which grows; int32 (rows,)."""
    encoded = labels.dictionary_encode()
    indices = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
    return np.array(indices, np.int32)[encoded.indices.to_numpy()]


def _numbers(source: Source, labels: pa.Array, start: int) -> np.ndarray:
    """Labels as float32 (rows,); an empty one, which is refused later, is 0."""
    strings = pc.utf8_trim_whitespace(labels)
    numbers = np.zeros(len(strings), np.float32)
    for row, string in enumerate(strings.to_pylist()):
        try:
            numbers[row] = float(string or 0)
        except ValueError:
            numbers[row] = np.nan
        if not np.isfinite(numbers[row]):
            raise InputError(
                f"{source.path}: row {start + row + 1}, column {source.label_column!r}: must be a "
                f"number, is {_shorten(string)}; correct it."
            )
    return numbers


def _names(column: pa.Array, *, is_list: bool) -> list[str]:
    """The different values of a column, or the different items of its lists."""
    found = pc.unique(column).to_pylist()
    if not is_list:
        return [name for name in found if name]
    return [item for cell in found for item in cell.split(LIST_SEPARATOR) if item]


def _tell_new_names(scan: _Scan, train: _Scan, columns: Columns) -> None:
    """Warn of rows with names that the training file lacks, which no model will answer."""
    for name, found in scan.target_names.items():
        new = found - train.target_names[name]
        if not new:
            continue
        cells = itertools.chain.from_iterable(
            batch.column(name).to_pylist() for batch in scan.source.batches()
        )
        items = (cell.split(LIST_SEPARATOR) if name in columns.lists else [cell] for cell in cells)
        rows = [row for row, row_items in enumerate(items, start=1) if new & set(row_items)]
        logger.warning(
            "%s: %s with a value of column %r that %s lacks, the first is row %d; such rows "
            "stay, and count as wrong.",
            scan.source.path,
            _count(len(rows), "row"),
            name,
            train.source.path,
            rows[0],
        )


def _check_rows(source: Source, columns: Columns, batch: pa.RecordBatch, start: int) -> None:
    """What only the task knows to be wrong."""
    if columns.check is None:
        return
    names = (*source.text_columns, *source.target_columns)
    bad = columns.check({name: batch.column(name).to_pylist() for name in names})
    if bad is not None:
        raise InputError(f"{source.path}: row {start + bad[0] + 1}: {bad[1]}")


def _require_rows(source: Source, rows: int) -> None:
    if rows == 0:
        raise InputError(f"{source.path}: the file has no rows; give a file with rows.")


def _is_blank(column: pa.Array) -> np.ndarray:
    blank = pc.or_(pc.equal(pc.binary_length(column), 0), pc.utf8_is_space(column))
    return blank.to_numpy(zero_copy_only=False)


def _refuse_nul(source: Source, batch: pa.RecordBatch, start: int) -> None:
    for name, column in zip(source.columns, batch.columns, strict=True):
        found = pc.match_substring(column, "\0").to_numpy(zero_copy_only=False)
        if found.any():
            raise InputError(
                f"{source.path}: row {start + int(found.argmax()) + 1}, column {name!r}: a NUL "
                "byte; remove it, or name the file's encoding by --data.encoding."
            )


def _hash(columns: list[pa.Array]) -> np.ndarray:
    """64 bits a row: among 5 million rows a chance of one in a million for one false duplicate."""
    whole = pc.binary_join_element_wise(*columns, "\0") if len(columns) > 1 else columns[0]
    digests = [
        hashlib.blake2b(text, digest_size=8).digest()
        for text in whole.cast(pa.binary()).to_pylist()
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


# Splitting


def _split(
    scan: _Scan, rows: np.ndarray, columns: Columns, labels: tuple[str, ...], origin: str
) -> Split:
    """Some rows of a file, with those of no class apart."""
    found = _labels(scan, labels, origin, outside=columns.outside)
    if found is None:
        return Split(scan.source, rows, None)
    is_outside = np.zeros(len(rows), bool) if columns.outside is None else found[rows] < 0
    if is_outside.all():
        raise InputError(
            f"{scan.source.path}: every row has the label {columns.outside!r}, which is no class; "
            "add rows of the classes."
        )
    inside = rows[~is_outside]
    return Split(scan.source, inside, found[inside], rows[is_outside])


def _labels(
    scan: _Scan, labels: tuple[str, ...], origin: str, *, outside: str | None
) -> np.ndarray | None:
    """Of each row its number, float32, or its index, int32, in the sorted training labels, which
    come from `origin`, and -1 for `outside`; None where there are none."""
    if scan.codes is None:
        return scan.numbers
    index = {name: position for position, name in enumerate(labels)}
    table = np.array([index.get(name, -1) for name in scan.names], np.int32)
    indices = table[scan.codes]
    unknown = (indices < 0) & np.array([name != outside for name in scan.names])[scan.codes]
    if unknown.any():
        row = int(unknown.argmax())
        raise InputError(
            f"{scan.source.path}: row {row + 1}, column {scan.source.label_column!r}: the label "
            f"{_shorten(scan.names[scan.codes[row]])} is not in {origin} "
            f"({_count(int(unknown.sum()), 'row')} with such labels); correct them, or add "
            "training rows."
        )
    return indices


def _draw(train: _Scan, fractions: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Stratified rows of the training file for each fraction, and "train": all the others.

    Every class keeps a row in train.
    """
    total = len(train.hashes)
    codes = np.zeros(total, np.int32) if train.codes is None else train.codes
    counts = np.bincount(codes)
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(total)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    rank = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)  # within its class
    taken = np.zeros_like(counts)
    parts = {}
    for name, fraction in fractions.items():
        size = max(1, round(total * fraction))
        sizes = _shares(counts, size, counts - 1 - taken, generator)
        if sizes.sum() == 0:
            raise InputError(
                f"{train.source.path}: {_count(total, 'row')}, too few to hold out "
                f"{fraction:g} of them: each label must keep a row for training; add rows, "
                f"set --data.{name}_fraction 0, or give --data.{name}."
            )
        drawn = (rank >= np.repeat(taken, counts)) & (rank < np.repeat(taken + sizes, counts))
        parts[name] = np.sort(by_class[drawn])
        taken += sizes
    parts["train"] = np.sort(by_class[rank >= np.repeat(taken, counts)])
    return parts


def _shares(
    counts: np.ndarray, size: int, capacity: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """How many of `size` rows each class gives: in proportion, by largest remainder.

    Equal remainders are served in random order, and no class gives more than its capacity.
    """
    quotas = size * counts / counts.sum()
    shares = np.minimum(np.floor(quotas).astype(np.int64), capacity)
    ties = generator.random(len(counts))
    while (missing := min(size, capacity.sum()) - shares.sum()) > 0:
        remainders = np.where(shares < capacity, np.round(quotas - shares, 9), -np.inf)
        order = np.lexsort((ties, -remainders))[:missing]
        shares[order[shares[order] < capacity[order]]] += 1
    return shares


def _count_duplicates(hashes: dict[str, np.ndarray]) -> dict[str, int]:
    """Duplicates within train, and of each later split in each earlier one."""
    train = hashes["train"]
    counts = {"train": len(train) - len(np.unique(train))}
    for first, second in itertools.combinations(hashes, 2):
        counts[f"{first}/{second}"] = int(np.isin(hashes[second], hashes[first]).sum())
    return counts


# Wording of messages


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _quote_columns(columns: Sequence[str]) -> str:
    noun = "columns" if len(columns) > 1 else "column"
    return f"{noun} {', '.join(map(repr, columns))}"


def _place(row: int, line: int) -> str:
    """A row, from 0, as people count; with its line where blank lines shift it."""
    return f"row {row + 1}" if line == row + 1 else f"row {row + 1} (line {line})"


def _shorten(text: str, length: int = 40) -> str:
    """A quoted beginning of a text, on one line."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
