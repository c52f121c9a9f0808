"""Splits of texts and a label vocabulary, from files of `kbert.text_files`.

What stays in memory is a few numbers a row: its number, its label and a hash of its texts.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from kbert.config import DataOptions
from kbert.errors import InputError
from kbert.shards import Shards, data_source, files_of
from kbert.text_files import (
    LIST_SEPARATOR,
    Source,
    column_names,
    counted,
    open_texts,
    refuse_nul,
    require_codec,
    require_column,
    require_file,
    require_plain_texts,
    require_rows,
    shortened,
)

logger = logging.getLogger(__name__)


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
        InputError: a file is missing, empty, or of an unknown extension, or a folder or pattern
            names none.
    """
    for role in ("train", "validation", "test"):
        name = getattr(options, role)
        if name is not None:
            for file in files_of(data_source(name, f"--data.{role}")):
                require_file(file, f"--data.{role}")


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
    path: Path | str, options: DataOptions, columns: Columns, labels: tuple[str, ...]
) -> Split:
    """All rows of one file, for a model that is trained; the training file is not looked at.

    Args:
        path: The file, or files, which may lack the label column.
        options: Its encoding.
        columns: What is read of it.
        labels: Sorted names of the training labels.

    Raises:
        InputError: a file that cannot be read, or a label that is not among the labels.
    """
    scan = _scan(_open_source(str(path), "test", options, columns), columns)
    return _split(scan, np.arange(len(scan.hashes)), columns, labels, "the training data")


def read_unlabelled(path: Path, options: DataOptions, columns: Columns) -> Split:
    """All rows of a file of texts without labels.

    Args:
        path: The file.
        options: Its encoding.
        columns: What a task reads; only the texts are read of the file.

    Raises:
        InputError: a file that cannot be read, or an empty text.
    """
    require_file(path, "--distill.unlabelled")
    lists = [name for name in columns.texts if name in columns.lists]
    source = open_texts(path, columns.texts, encoding=options.encoding, lists=lists)
    return Split(source, np.arange(len(_scan(source, Columns(columns.texts)).hashes)), None)


# Opening: does the file exist, and has it the columns?


def _open_source(file: str, role: str, options: DataOptions, columns: Columns) -> Source:
    texts, label, option = columns.texts, columns.label, f"--data.{role}"
    path = data_source(file, option)
    if label in texts:
        raise InputError(
            f"--data.label_column: {label!r} is a text column too; the label must be another one."
        )
    for one in files_of(path):
        require_file(one, option)
    require_codec(options.encoding)
    if path.suffix.lower() == ".txt":
        require_plain_texts(path, texts, [name for name in (label, *columns.targets) if name])
        return Source(path, texts, None, options.encoding)
    there = column_names(Source(path, texts, label, options.encoding))
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
    for part in source.parts:
        there = column_names(part)
        for name in source.columns:
            require_column(part.path, there, name, by=f" by {_option_of(columns, name)}")
    return source


def _option_of(columns: Columns, name: str) -> str:
    if name in columns.texts:
        return "--data.text_column"
    return "--data.label_column" if name == columns.label else "the task's options"


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
            is_whole = not isinstance(source.path, Shards)
            first = f"row {self.first + 1}" if is_whole else source.told(self.first)
            raise InputError(
                f"{source.path}: {counted(self.count, 'row')} with an empty {what} "
                f"({_quote_columns(columns)}), the first is {first}; fill "
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
        refuse_nul(source, batch, start)
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
    require_rows(source, start)
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
                f"{source.told(start + row)}, column {source.label_column!r}: must be a "
                f"number, is {shortened(string)}; correct it."
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
            counted(len(rows), "row"),
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
        raise InputError(f"{source.told(start + bad[0])}: {bad[1]}")


def _is_blank(column: pa.Array) -> np.ndarray:
    blank = pc.or_(pc.equal(pc.binary_length(column), 0), pc.utf8_is_space(column))
    return blank.to_numpy(zero_copy_only=False)


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
            f"{scan.source.told(row)}, column {scan.source.label_column!r}: the label "
            f"{shortened(scan.names[scan.codes[row]])} is not in {origin} "
            f"({counted(int(unknown.sum()), 'row')} with such labels); correct them, or add "
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
                f"{train.source.path}: {counted(total, 'row')}, too few to hold out "
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
    # np.unique and np.isin take half a minute of millions of rows, sorting them takes a second
    ascending = {name: np.sort(found) for name, found in hashes.items()}
    train = ascending["train"]
    counts = {"train": int((train[1:] == train[:-1]).sum())}
    for first, second in itertools.combinations(ascending, 2):
        counts[f"{first}/{second}"] = _count_found(ascending[second], ascending[first])
    return counts


def _count_found(wanted: np.ndarray, ascending: np.ndarray) -> int:
    """How many of some numbers are among others, which are sorted and at least one."""
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return int((ascending[places] == wanted).sum())


def _quote_columns(columns: Sequence[str]) -> str:
    noun = "columns" if len(columns) > 1 else "column"
    return f"{noun} {', '.join(map(repr, columns))}"
