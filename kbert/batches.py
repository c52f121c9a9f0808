"""From the rows of a split to batches: tokenise once, order by (seed, epoch), bucket by length.

What a batch holds depends on data, vocabulary, seed and epoch alone, so that a run that was
stopped goes on with the very rows that were next.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from kbert.data import Split
from kbert.preprocessing import PackedSizes
from kbert.preprocessing.threads import map_in_threads
from kbert.tasks.task import Gold, Rows, Task
from kbert.text_files import Source, read_rows
from kbert.whole_files import sync_all

logger = logging.getLogger(__name__)

ROWS_A_CALL = 1024  # texts that a core tokenises at a time
FORMAT = 2  # of the cached files
MOST_TOKENS = 8192  # of a batch for evaluation: larger ones are no faster a token
SEGMENT, TARGET = "segment", "target"  # beginnings of the names of cached files
GROUPS = (4, 8, 16, 32, 64)  # batches among which rows are sorted by length
LEAST_GROUPS = 2  # in an epoch, so that who comes together with whom changes
PADDING = 0.03  # of all positions: the fewest batches are taken that have no more
SAMPLE = 1 << 20  # rows, at most, by which padding is judged


@dataclass(frozen=True)
class RaggedColumn:
    """Ragged int32 ids of all rows of a file, mapped from disk."""

    values: np.ndarray
    """Ids of all rows after each other, int32 (tokens,); or float32 (vectors, hidden)."""
    offsets: np.ndarray
    """Where each row starts, and where the last one ends, int64 (rows + 1,)."""

    def __len__(self) -> int:
        """Number of rows of the file."""
        return len(self.offsets) - 1

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Number of ids of each of the rows, int64."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and lengths of some rows: int32 (tokens,), int64 (len(rows),)."""
        parts = [self.row(row) for row in rows]
        lengths = np.array([len(part) for part in parts], np.int64)
        return (np.concatenate(parts) if parts else self.values[:0]), lengths

    def row(self, row: int) -> np.ndarray:
        """Ids of one row."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """The ids of all rows, so many at a time."""
        for start in range(0, len(self.values), size):
            yield self.values[start : start + size]

    @property
    def spec(self) -> tf.TensorSpec:
        """Of the ids of any number of rows."""
        return tf.TensorSpec([None, *self.values.shape[1:]], self.values.dtype)


class JoinedColumn:
    """Columns of several files as one, without a copy: rows count on from file to file.

    Args:
        parts: One column a file, all of one kind.
    """

    def __init__(self, parts: Sequence[RaggedColumn]) -> None:
        self.parts = parts
        self.firsts = np.cumsum([0, *map(len, parts)])
        self.of_rows = np.concatenate([np.diff(part.offsets) for part in parts])
        self.spec = parts[0].spec

    def __len__(self) -> int:
        """Number of rows of all files."""
        return len(self.of_rows)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """As `RaggedColumn.lengths`."""
        return self.of_rows[rows]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `RaggedColumn.gather`."""
        files = np.searchsorted(self.firsts, rows, side="right") - 1
        places = zip(files, rows - self.firsts[files], strict=True)
        found = [self.parts[file].row(row) for file, row in places]
        return np.concatenate(found or [self.parts[0].values[:0]]), self.of_rows[rows]

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """As `RaggedColumn.chunks`."""
        for part in self.parts:
            yield from part.chunks(size)


Column = RaggedColumn | JoinedColumn


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of a split as word-piece ids, one ragged column a segment."""

    segments: tuple[Column, ...]
    rows: np.ndarray
    """Row numbers in the file, int64 (rows,)."""
    labels: np.ndarray | None
    """Class index of each row, int32 (rows,), or its number, float32 (rows,)."""
    source: Source | None = None
    """The file; None where the ids are of no file."""
    targets: tuple[Column, ...] = ()
    """What `Task.encode_targets` made of the answers."""
    outside: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    """Numbers of the rows of the split that are of no class, which `rows` leave out, int64."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Number of word pieces of each row, all segments together, int64 (rows,)."""
        return np.sum([segment.lengths(self.rows) for segment in self.segments], axis=0)

    @property
    def longest(self) -> np.ndarray:
        """Length of each row's texts together, or of a target that is longer, int64 (rows,).

        Rows of which it is alike have little padding in a batch, in texts and in targets: of
        translations 9%, where by the texts alone the targets would have 47%.
        """
        targets = [target.lengths(self.rows) for target in self.targets]
        return np.max([self.lengths, *targets], axis=0)

    def take(self, positions: np.ndarray) -> EncodedSplit:
        """Some of the rows, by their position in the split."""
        labels = None if self.labels is None else self.labels[positions]
        return dataclasses.replace(self, rows=self.rows[positions], labels=labels)

    @property
    def out_of_scope(self) -> EncodedSplit:
        """The rows that are of no class, as rows without a label."""
        return dataclasses.replace(self, rows=self.outside, labels=None, outside=self.outside[:0])

    @property
    def gold(self) -> Gold:
        """What the rows should be answered."""
        return Gold(self.labels, self._read)

    def _read(self, columns: Sequence[str]) -> dict[str, list[str]]:
        if self.source is None:
            raise ValueError("These rows are of no file.")
        return read_rows(self.source, self.rows, columns)


def encode_split(split: Split, task: Task, *, cache_dir: str | None) -> EncodedSplit:
    """Tokenise the file of a split, or map what an earlier run has tokenised.

    Args:
        split: Rows of a file.
        task: Brings the tokeniser, by `task.encode`.
        cache_dir: Folder of tokenised data; None for the user's cache folder.
    """
    folder = _cache_folder(split.source, task, cache_dir)
    if not folder.exists():
        _encode_source(split.source, task, folder)
    columns = {
        kind: tuple(_read_column(path) for path in sorted(folder.glob(f"{kind}-*.ids")))
        for kind in (SEGMENT, TARGET)
    }
    return EncodedSplit(
        columns[SEGMENT],
        split.rows,
        split.labels,
        split.source,
        targets=columns[TARGET],
        outside=split.outside,
    )


def join(splits: Sequence[EncodedSplit]) -> EncodedSplit:
    """The rows of several splits after each other, as those of no file.

    Args:
        splits: Each of a file of its own, with equally many segments and targets, and all with
            labels or none.
    """
    counts = [len(split.segments[0]) for split in splits]
    firsts = np.cumsum([0, *counts[:-1]])
    rows = [split.rows + first for split, first in zip(splits, firsts, strict=True)]
    labels = [split.labels for split in splits if split.labels is not None]
    return EncodedSplit(
        tuple(map(JoinedColumn, zip(*(split.segments for split in splits), strict=True))),
        np.concatenate(rows),
        np.concatenate(labels) if labels else None,
        targets=tuple(map(JoinedColumn, zip(*(split.targets for split in splits), strict=True))),
    )


def epoch_order(lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Positions of the rows of each batch: shuffled, with rows of like length together.

    Rows are shuffled, sorted by length within groups of `group_batches` batches, cut into batches,
    and the batches are shuffled. A pure function of its arguments.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Rows a batch; only one batch can be smaller.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    group = batch_size * group_batches(lengths, batch_size=batch_size)
    batches = []
    for start in range(0, len(order), group):
        rows = order[start : start + group]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def group_batches(lengths: np.ndarray, *, batch_size: int) -> int:
    """Among how many batches rows are sorted, so that there is little padding: of `GROUPS`.

    As few as have at most `PADDING`, in rows drawn once and for all (of very many a sample); the
    more they are, the fewer rows come together in a batch.
    """
    order = np.random.default_rng(0).permutation(len(lengths))[:SAMPLE]
    tokens = lengths[order].sum()
    most = max(1, len(lengths) // (batch_size * LEAST_GROUPS))
    sizes = [*(size for size in GROUPS if size < most), min(most, GROUPS[-1])]
    for batches in sizes:
        positions = 0
        for start in range(0, len(order), batch_size * batches):
            group = -np.sort(-lengths[order[start : start + batch_size * batches]])
            rows = np.diff([*range(0, len(group), batch_size), len(group)])
            positions += int((group[::batch_size] * rows).sum())
        if tokens >= (1 - PADDING) * positions:
            break
    return batches


def length_order(lengths: np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """Positions of the rows of each batch, the longest first, for evaluation.

    Batches of long rows have fewer, so that none takes more memory than training does.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Most rows a batch; one of several has no more than `MOST_TOKENS` with padding.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, min(batch_size, MOST_TOKENS // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def evaluation_order(split: EncodedSplit, task: Task, *, batch_size: int) -> list[np.ndarray]:
    """Positions of the rows of each batch of `evaluation_batches`."""
    # texts that are cut, or read in windows, are of one length: windows spread over the batches
    return length_order(np.minimum(split.lengths, task.max_length), batch_size=batch_size)


def training_batches(
    split: EncodedSplit, task: Task, *, batch_size: int, seed: int, epoch: int, start: int = 0
) -> tf.data.Dataset:
    """(inputs, targets, weights) of one epoch, from its batch number `start` on."""
    longest = np.minimum(split.longest, task.max_length)
    order = epoch_order(longest, batch_size=batch_size, seed=seed, epoch=epoch)
    seeds = [(seed, epoch * len(order) + step) for step in range(len(order))]
    return _dataset(split, task, order[start:], seeds[start:])


def evaluation_batches(split: EncodedSplit, task: Task, *, batch_size: int) -> tf.data.Dataset:
    """(inputs, targets, weights) of every row, sorted by length; the same at every call."""
    order = evaluation_order(split, task, batch_size=batch_size)
    return _dataset(split, task, order, [(0, step) for step in range(len(order))])


def epoch_sizes(
    split: EncodedSplit, task: Task, *, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    """What the batches of `training_batches` hold, without making them.

    Returns:
        int64 (batches, 3): rows, tokens ([CLS] and [SEP] among them), and positions, which are
        tokens and padding.
    """
    order = epoch_order(
        np.minimum(split.longest, task.max_length), batch_size=batch_size, seed=seed, epoch=epoch
    )
    packed = packed_sizes(split, task)
    rows = np.array([len(positions) for positions in order], np.int64)
    starts, places = np.cumsum(rows) - rows, np.concatenate(order)
    tokens = np.add.reduceat(packed.tokens[places], starts)
    rows_of_model = np.add.reduceat(packed.rows[places], starts)
    longest = np.maximum.reduceat(packed.longest[places], starts)
    return np.stack([rows, tokens, rows_of_model * longest], axis=1)


def packed_sizes(split: EncodedSplit, task: Task) -> PackedSizes:
    """What the task's packer makes of each row."""
    return task.packer.sizes([segment.lengths(split.rows) for segment in split.segments])


def _dataset(
    split: EncodedSplit, task: Task, order: list[np.ndarray], seeds: list[tuple[int, int]]
) -> tf.data.Dataset:
    def generate() -> Iterator[tuple]:
        for positions, seed in zip(order, seeds, strict=True):
            rows = split.rows[positions]
            segments = tuple(segment.gather(rows) for segment in split.segments)
            targets = tuple(target.gather(rows) for target in split.targets)
            yield segments, labels[positions], targets, np.array(seed, np.int32)

    def pack(segments: tuple, labels: tf.Tensor, targets: tuple, seed: tf.Tensor) -> tuple:
        return task.batch(Rows(_ragged(segments), labels, _ragged(targets)), seed)

    labels = np.zeros(len(split), np.int32) if split.labels is None else split.labels
    signature = (
        tuple(_spec(segment) for segment in split.segments),
        tf.TensorSpec([None], labels.dtype),
        tuple(_spec(target) for target in split.targets),
        tf.TensorSpec([2], tf.int32),
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.map(pack)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(order))).prefetch(8)


def _spec(column: Column) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """Of what its `gather` gives."""
    return column.spec, tf.TensorSpec([None], tf.int64)


def _ragged(columns: tuple) -> list[tf.RaggedTensor]:
    return [tf.RaggedTensor.from_row_lengths(values, lengths) for values, lengths in columns]


def cache_root(cache_dir: str | None) -> Path:
    """The folder of all that is kept between runs; None for the user's own."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(cache_dir) if cache_dir else home / "kbert"


def _cache_folder(source: Source, task: Task, cache_dir: str | None) -> Path:
    key = json.dumps([FORMAT, source.digest, task.encoding_key], sort_keys=True)
    return cache_root(cache_dir) / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:32]


def _encode_source(source: Source, task: Task, folder: Path) -> None:
    """Write one pair of files a segment or target, beside, then under the name."""
    logger.info("tokenising %s", source.path)
    folder.parent.mkdir(parents=True, exist_ok=True)

    @functools.partial(tf.function, reduce_retracing=True)
    def encode(texts: list[tf.Tensor], targets: list[tf.Tensor]) -> tuple[list, list]:
        return task.encode(texts), task.encode_targets(texts, targets) if targets else []

    columns = (
        [
            [_strings(part.column(name)) for name in source.text_columns],
            [_strings(part.column(name)) for name in source.target_columns],
        ]
        for batch in source.batches()
        for part in (batch.slice(row, ROWS_A_CALL) for row in range(0, len(batch), ROWS_A_CALL))
    )
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        with _ColumnWriters(beside, SEGMENT) as texts, _ColumnWriters(beside, TARGET) as answers:
            for segments, targets in map_in_threads(lambda of: encode(*of), columns):
                texts.append(segments)
                answers.append(targets)
        sync_all(beside)
        try:
            beside.rename(folder)
        except OSError:  # another process was first; its files hold the same
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _strings(column) -> tf.Tensor:
    return tf.constant(column.to_numpy(zero_copy_only=False), tf.string)


class _ColumnWriters:
    """Append ragged batches to files, one pair of ids and offsets a column."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.files: list = []
        self.lengths: list[list[np.ndarray]] = []

    def __enter__(self) -> _ColumnWriters:
        return self

    def append(self, segments: list[tf.RaggedTensor]) -> None:
        for index, segment in enumerate(segments):
            if index == len(self.files):
                path = self.folder / f"{self.kind}-{index}.ids"
                self.files.append(open(path, "wb"))  # noqa: SIM115
                self.lengths.append([])
            self.files[index].write(segment.values.numpy().astype("<i4").tobytes())
            self.lengths[index].append(segment.row_lengths().numpy())

    def __exit__(self, *_: object) -> None:
        for index, file in enumerate(self.files):
            file.close()
            offsets = np.concatenate([[0], np.cumsum(np.concatenate(self.lengths[index]))])
            path = self.folder / f"{self.kind}-{index}.offsets.npy"
            np.save(path, offsets.astype(np.int64))


def _read_column(path: Path) -> RaggedColumn:
    offsets = np.load(path.with_name(f"{path.stem}.offsets.npy"))
    values = np.memmap(path, "<i4", "r") if offsets[-1] else np.zeros(0, np.int32)
    return RaggedColumn(values, offsets)
