"""Files of texts, of any size, as streams of columns of strings.

How each kind of file is read:

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

However large a file, memory is bounded: no row, no line and no text is larger than `LARGEST_ROW`.
Compressed files are not unpacked (Parquet's own compression is).
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gc
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from kbert.errors import InputError
from kbert.parquet_files import DamagedFooter, require_footer, text_columns
from kbert.shards import DataFile, DataSource, Shards, opened

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")
BATCH_ROWS = 4096
BATCH_SIZE = 1 << 24  # characters of lines, bytes of Parquet's texts, about, of which a batch is
LARGEST_ROW = 1 << 23
"""Bytes of a row of a CSV or TSV file, which pyarrow wants within one block, and of a text of a
Parquet file; characters of a line."""
MOST_COLUMNS = 10_000
MOST_UNPACKED = 1000
"""Times the size of a Parquet file that its texts may have, where they have over `SMALL`."""
SMALL = 1 << 31  # bytes
CHUNK = 1 << 20  # bytes
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip (as Excel's .xlsx is)",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh91AY&SY": "bzip2",
}
"""What compressed files begin with."""
LIST_SEPARATOR = "\x1f"
"""Stands between the items of a cell that holds several; Unicode's "unit separator"."""
END_OF_FILE = "\x1ekbert: end of file\x1e"  # a last row that an unclosed quote would swallow

T = TypeVar("T")
JSONRecord = tuple[int, int, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """One file, or several as one, seen through some of its columns."""

    path: DataSource
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
        """SHA-256 of the bytes of all files, and of what texts and labels depend on."""
        key = [
            self.path.suffix.lower(), self.text_columns, self.label_column, self.encoding,
            self.target_columns, self.list_columns, self.separator,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(key).encode())
        for part in self.parts:
            with part.path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    @property
    def parts(self) -> list[Source]:
        """One for each file."""
        if not isinstance(self.path, Shards):
            return [self]
        return [dataclasses.replace(self, path=file) for file in self.path.files]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in file order, as string columns without nulls, up to `BATCH_ROWS` at a time.

        Raises:
            InputError: the file cannot be read as what its name says.
        """
        for part in self.parts:
            for columns in _READERS[part.path.suffix.lower()](part):
                columns = [column.fill_null("") for column in columns]
                batch = pa.RecordBatch.from_arrays(columns, names=list(self.columns))
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)

    def told(self, row: int) -> str:
        """A row, from 0 in all files, by its file and its number there, as people count."""
        for part in self.parts[:-1]:
            rows = sum(batch.num_rows for batch in part.batches())
            if row < rows:
                return f"{part.path}: row {row + 1}"
            row -= rows
        return f"{self.parts[-1].path}: row {row + 1}"

    @cached_property
    def _is_quoted(self) -> bool:
        """Whether double quotes wrap fields of this CSV or TSV file."""
        return self.path.suffix.lower() == ".csv" or _has_balanced_quotes(self)


def require_file(path: DataFile, option: str) -> None:
    """Check at once that there is a file of rows.

    Raises:
        InputError: it is missing, empty, compressed, no plain file, or of an unknown extension.
    """
    known = ", ".join(EXTENSIONS)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; correct {option}.")
    if not path.is_file():  # a pipe can be read once, and a device has no end
        kind = "a folder" if path.is_dir() else "no plain file"
        raise InputError(f"{path}: {kind}; {option} must name a file ({known}).")
    try:
        with path.open("rb") as file:
            begin = file.read(max(map(len, COMPRESSED)))
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); correct that.") from None
    if not begin:
        raise InputError(f"{path}: the file is empty; give a file with rows.")
    for magic, name in COMPRESSED.items():
        if begin.startswith(magic):
            raise InputError(
                f"{path}: compressed by {name}, which is not read; unpack it, into {known}."
            )
    if path.suffix.lower() not in EXTENSIONS:
        raise InputError(f"{path}: unknown extension {path.suffix!r}; convert it to {known}.")


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
    require_codec(encoding)
    kept = tuple(name for name in others if name not in texts)
    source = Source(path, tuple(texts), None, encoding, kept, list_columns=tuple(lists))
    if path.suffix.lower() == ".txt":
        require_plain_texts(path, source.text_columns, ())
        there = list(texts)
    else:
        there = column_names(source)
    for name in source.columns:
        option = "--data.text_column" if name in texts else "--keep"
        require_column(path, there, name, by=f" by {option}")
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
        refuse_nul(source, batch, rows)
        if (bad := check(batch)) is not None:
            raise InputError(f"{source.told(rows + bad[0])}: {bad[1]}")
        rows += batch.num_rows
    require_rows(source, rows)
    return rows


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
            f"{source.path}: {counted(start, 'row')}, and row {ascending[-1] + 1} is wanted: the "
            "file has changed since it was read; bring the old one back."
        )
    return {name: [values[place] for place in places] for name, values in found.items()}


# Opening: has the file the columns?


def require_codec(encoding: str) -> None:
    """InputError if Python has no such encoding."""
    try:
        " ".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError):
        raise InputError(
            f"--data.encoding: unknown encoding {encoding!r}; use a name that Python knows, such "
            "as utf-8, gb18030, utf-16 or cp1252."
        ) from None


def require_plain_texts(path: DataSource, texts: Sequence[str], answers: Sequence[str]) -> None:
    """InputError if a .txt file is to have columns of answers, or several of texts."""
    if answers:
        raise InputError(
            f"{path}: a .txt file has no labels; use {', '.join(EXTENSIONS[:-1])} with a column "
            f"{answers[0]!r}."
        )
    if len(texts) > 1:
        raise InputError(
            f"{path}: a .txt file has one text a row, not {len(texts)}; name one column by "
            "--data.text_column."
        )


def column_names(source: Source) -> list[str]:
    """Names of all columns of a file, in order; of several files those of the first one."""
    source = source.parts[0]
    first: Iterable[str] | None
    if source.path.suffix.lower() == ".parquet":
        with _open_parquet(source.path) as file:
            first = file.schema_arrow.names
    elif source.path.suffix.lower() in (".csv", ".tsv"):
        first = next(iter(_csv_rows(source, quoted=source._is_quoted)), None)
    else:
        first = next((record for _, _, record in _json_records(source)), None)
    if first is None:
        raise InputError(f"{source.path}: the file is empty; give a file with rows.")
    names = list(first)
    if len(names) > MOST_COLUMNS:
        raise InputError(
            f"{source.path}: {len(names):,} columns, and a file may have {MOST_COLUMNS:,}; leave "
            "out those that are not needed."
        )
    return names


def require_column(path: DataSource, there: list[str], name: str, *, by: str = "") -> None:
    """InputError unless one column has the name; `by` says which option names it."""
    if name not in there:
        listed = ", ".join(map(repr, there))
        raise InputError(f"{path}: no column {name!r}; name one of {listed}{by}.")
    if there.count(name) > 1:
        raise InputError(f"{path}: {there.count(name)} columns are named {name!r}; rename one.")


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
    there = list(source.text_columns) if is_text else column_names(wanted)
    for name in wanted.columns:
        require_column(source.path, there, name)
    return wanted


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


def _decodes(path: DataSource, encoding: str) -> bool:
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


def _lines(source: Source, newline: str | None) -> Iterator[str]:
    """The lines of a file, with their ends; none is longer than `LARGEST_ROW`."""
    file = io.TextIOWrapper(_buffered(_utf8_chunks(source)), encoding="utf-8", newline=newline)
    number = 0
    while line := file.readline(LARGEST_ROW + 1):
        number += 1
        if len(line) > LARGEST_ROW:
            _refuse_line(source, number)
        yield line


def _with_line_ends(source: Source, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks in which no line is much longer than `LARGEST_ROW` characters could be."""
    number, size = 1, 0
    for chunk in chunks:
        last = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
        number += chunk.count(b"\n")
        size = size + len(chunk) if last < 0 else len(chunk) - last
        if size > 4 * LARGEST_ROW:  # UTF-8 has up to four bytes a character
            _refuse_line(source, number)
        yield chunk


def _refuse_line(source: Source, number: int) -> NoReturn:
    raise InputError(
        f"{source.path}: line {number} has over {LARGEST_ROW:,} characters, the most that a text "
        "and all else of its line may have; shorten it."
    )


def _blocks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of up to `BATCH_ROWS` items, and of fewer where they are large."""
    block: list[T] = []
    total = 0
    for item in items:
        block.append(item)
        total += size(item)
        if len(block) == BATCH_ROWS or total > BATCH_SIZE:
            yield block
            block, total = [], 0
    if block:
        yield block


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
    if not any(b'"' in chunk for chunk in _with_line_ends(source, _utf8_chunks(source))):
        return False
    tabs, rows, widths = set(), 0, set()

    def lines() -> Iterator[str]:
        for line in _lines(source, newline=""):
            if line.strip("\r\n"):
                tabs.add(line.count("\t"))
                yield line

    limit = csv.field_size_limit(LARGEST_ROW)
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
    width = len(column_names(source))
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
        raise InputError(
            f"{source.path}: a row of over {LARGEST_ROW:,} bytes after row {rows}, the most that a "
            "row may have; shorten its text, or close the double quote that opens a field there."
        ) from None
    row = bad_rows[0]
    number = (row.number or 0) - 1  # the header is number 1
    if END_OF_FILE in row.text:
        _refuse_open_quote(source, f"row {number}")
    raise InputError(
        f"{source.path}: row {number} has {counted(row.actual_columns, 'column')}, the header "
        f"{row.expected_columns}: {shortened(row.text)}; correct it, or wrap a text that holds a "
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
    for block in _blocks(filter(str.strip, lines), len):
        yield [pa.array(block, pa.string())]


def _read_json(source: Source) -> Iterator[list[pa.Array]]:
    wanted = set(source.columns)
    records = (
        (number, size, {name: of for name, of in record.items() if name in wanted})
        for number, size, record in _json_records(source)
    )
    rows = 0
    for block in _blocks(records, lambda record: record[1]):
        yield [_json_column(source, name, block, rows) for name in source.columns]
        rows += len(block)


def _json_records(source: Source) -> Iterator[JSONRecord]:
    """Line number, characters and object of each line that is not blank."""
    for number, line in enumerate(_lines(source, newline="\n"), start=1):
        if line.isspace():
            continue
        try:
            record = _json_value(line.rstrip("\n"))
        except (ValueError, RecursionError) as error:
            problem = getattr(error, "msg", str(error))
            at = f", character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            raise InputError(
                f"{source.path}: line {number}{at}: not JSON ({problem}); write one object a line."
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                f"{source.path}: line {number}: not a JSON object but {shortened(line.strip())}; "
                "write one object a line."
            )
        yield number, len(line), record


def _json_value(text: str) -> Any:
    """What JSON holds, without a search for garbage meanwhile: there are no cycles in it.

    Python searches for each 700 new lists or objects, and in all that it holds now and then: a line
    of 330,000 empty lists took 0.37 s with TensorFlow imported, and takes 0.03.
    """
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    finally:
        if is_enabled:
            gc.enable()


def _json_column(source: Source, name: str, block: list[JSONRecord], start: int) -> pa.Array:
    if name in source.list_columns:
        return _json_items(source, name, block, start)
    try:
        return pa.array([record[name] for _, _, record in block], pa.string())
    except (KeyError, pa.ArrowException, UnicodeEncodeError):
        strings = []
        for row, (line, _, record) in enumerate(block, start=start):
            place = f"{source.path}: {_place(row, line)}"
            if name not in record:
                raise InputError(f"{place}: no key {name!r}; add it.") from None
            kinds = _json_kinds(source, name)
            strings.append(_json_string(record[name], kinds, f"{place}, column {name!r}"))
        return pa.array(strings, pa.string())


def _json_items(source: Source, name: str, block: list[JSONRecord], start: int) -> pa.Array:
    cells = []
    for row, (line, _, record) in enumerate(block, start=start):
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
            problem = f"{place}: half of a surrogate pair in {shortened(value)}"
            raise InputError(f"{problem}; write the whole character.") from None
        return value
    if value is None:
        return None
    if isinstance(value, kinds):
        return json.dumps(value)
    names = {(): "a string", (int,): "a string, integer or boolean"}
    wanted = names.get(kinds, "a string, number or boolean")
    raise InputError(f"{place}: must be {wanted}, is {shortened(json.dumps(value))}; correct it.")


PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError, DamagedFooter)
"""What comes of a damaged file; UnicodeDecodeError of the names of its columns."""


def _open_parquet(
    path: DataSource, dictionaries: Sequence[str] = ()
) -> pyarrow.parquet.ParquetFile:
    """A Parquet file.

    Args:
        path: The file.
        dictionaries: Columns, by `ColumnSchema.path`, that are to stay dictionary-encoded: a text
            that is stored once may be that of all rows.
    """
    try:
        with path.open("rb") as file:
            require_footer(file)
        return pyarrow.parquet.ParquetFile(
            opened(path), buffer_size=CHUNK, pre_buffer=False, read_dictionary=list(dictionaries)
        )
    except PARQUET_ERRORS as error:
        _refuse_parquet(path, error)


def _refuse_parquet(path: DataSource, error: Exception) -> NoReturn:
    problem = " ".join(str(error).split())
    raise InputError(f"{path}: not a readable Parquet file ({problem}); write it again.") from None


def _read_parquet(source: Source) -> Iterator[list[pa.Array]]:
    rows = unpacked = 0
    with source.path.open("rb") as file:
        most = max(SMALL, MOST_UNPACKED * file.seek(0, os.SEEK_END))
    try:
        with _open_parquet(source.path) as file:
            for name in source.columns:
                _require_string_type(source, name, file.schema_arrow.field(name).type)
        dictionaries = _dictionary_columns(source)
        with _open_parquet(source.path, dictionaries) as file:
            batches = file.iter_batches(BATCH_ROWS, columns=list(source.columns), use_threads=False)
            for batch in batches:
                sizes = _row_sizes(source, batch, rows)
                unpacked += int(sizes.sum())
                if unpacked > most:
                    raise InputError(
                        f"{source.path}: its texts have over {most:,} bytes, {MOST_UNPACKED:,} "
                        "times what the file has; give it without the repeated rows."
                    )
                for part in _parts(batch, sizes):
                    columns = [_parquet_strings(source, name, part) for name in source.columns]
                    for column in columns:
                        column.validate(full=True)  # UTF-8
                    yield columns
                rows += len(batch)
    except PARQUET_ERRORS as error:
        _refuse_parquet(source.path, error)


def _dictionary_columns(source: Source) -> list[str]:
    """Those of the columns of texts that have dictionaries in a Parquet file.

    Raises:
        InputError: texts are too large on average: already the page that one is in would be.
        DamagedFooter: it is not what a footer can be.
    """
    assert not isinstance(source.path, Shards)
    columns = text_columns(source.path, source.columns)
    for name, column in columns.items():
        if column.mean_size > LARGEST_ROW:
            _refuse_long(source, f"column {name!r} has texts")
    return sorted(name for name, column in columns.items() if column.has_dictionary)


def _row_sizes(source: Source, batch: pa.RecordBatch, start: int) -> np.ndarray:
    """Bytes of each row of a batch once its texts are strings, int64 (rows,).

    Raises:
        InputError: a text is too long.
    """
    sizes = np.zeros(len(batch), np.int64)
    for name in source.columns:
        of_column = _string_sizes(batch.column(name))
        if len(of_column) and of_column.max() > LARGEST_ROW:
            row = start + int(of_column.argmax()) + 1
            _refuse_long(source, f"row {row}, column {name!r}: a text")
        sizes += of_column
    return sizes


def _parts(batch: pa.RecordBatch, sizes: np.ndarray) -> Iterator[pa.RecordBatch]:
    """A batch in parts of about `BATCH_SIZE`, whatever its rows take once they are strings."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(batch):
        most = BATCH_SIZE + (ends[first - 1] if first else 0)
        last = max(first + 1, int(np.searchsorted(ends, most)))
        yield batch.slice(first, last - first)
        first = last


def _string_sizes(column: pa.Array) -> np.ndarray:
    """Bytes of the strings of each row, int64 (rows,); 0 where there are none.

    Raises:
        pa.ArrowInvalid: a row of a dictionary's column has a value that is not in it.
    """
    if _is_list(column.type):
        rows = pc.list_parent_indices(column).to_numpy()
        items = _string_sizes(pc.list_flatten(column))
        return np.bincount(rows, weights=items, minlength=len(column)).astype(np.int64)
    if pa.types.is_dictionary(column.type):
        column.validate(full=True)  # that the values are there
        of_values = _string_sizes(column.dictionary)
        indices = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
        return of_values[indices] if len(of_values) else np.zeros(len(column), np.int64)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.binary_length(column).fill_null(0).to_numpy().astype(np.int64)
    return np.zeros(len(column), np.int64)


def _refuse_long(source: Source, what: str) -> NoReturn:
    raise InputError(
        f"{source.path}: {what} of over {LARGEST_ROW:,} bytes, the most that a text may have; "
        "shorten it."
    )


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
        value = value.value_type if pa.types.is_dictionary(value) else value
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


# What no row may be


def require_rows(source: Source, rows: int) -> None:
    """InputError if a file has none."""
    if rows == 0:
        raise InputError(f"{source.path}: the file has no rows; give a file with rows.")


def refuse_nul(source: Source, batch: pa.RecordBatch, start: int) -> None:
    """InputError if rows, whose first has the number `start`, hold a NUL byte."""
    for name, column in zip(source.columns, batch.columns, strict=True):
        found = pc.match_substring(column, "\0").to_numpy(zero_copy_only=False)
        if found.any():
            raise InputError(
                f"{source.told(start + int(found.argmax()))}, column {name!r}: a NUL "
                "byte; remove it, or name the file's encoding by --data.encoding."
            )


# Wording of messages


def counted(number: int, noun: str) -> str:
    """Such as "1 row" or "1,000 rows"."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _place(row: int, line: int) -> str:
    """A row, from 0, as people count; with its line where blank lines shift it."""
    return f"row {row + 1}" if line == row + 1 else f"row {row + 1} (line {line})"


def shortened(text: str, length: int = 40) -> str:
    """A quoted beginning of a text, on one line."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
