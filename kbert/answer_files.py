"""A file of answers that grows in parts beside it, and appears whole.

out.csv.parts/ holds a manifest of what is answered by what, and a file for every so many rows; each
is there whole or not at all, so that a process that was killed leaves nothing that is wrong. The
parts are Arrow files, whatever the ending of the file is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from kbert.errors import InputError
from kbert.whole_files import lock_file, sync, written_whole

MANIFEST, LOCK = "manifest.json", ".lock"
JOINED, COMPLETE = "joined", "complete"
GROUP_BYTES = 1 << 25  # of a row group of a Parquet file, in memory


class Parts:
    """The parts of a file of answers; `parts_of` makes it.

    Args:
        output: The file that they will be.
        rows: Rows of the whole.
    """

    def __init__(self, output: Path, rows: int) -> None:
        self.output = output
        self.folder = parts_folder(output)
        self.rows = rows

    def has(self, start: int) -> bool:
        """Whether the part is there that begins with a row, from 0."""
        return self._path(start).exists()

    def write(self, start: int, columns: Mapping[str, list]) -> None:
        """Write the part that begins with a row."""
        arrays = {name: _array(values) for name, values in columns.items()}
        with written_whole(self._path(start)) as beside:
            pyarrow.feather.write_feather(pa.table(arrays), beside, compression="lz4")

    @property
    def is_joined(self) -> bool:
        """Whether the file is there: the process was killed while it removed the parts."""
        return _is_joined(self.folder)

    def join(self) -> None:
        """Make the file of the parts."""
        paths = sorted(self.folder.glob("*.arrow"))
        schemas = []
        for path in paths:
            with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as part:
                schemas.append(part.schema)
        # what a part has nothing of, such as an item in a list, gives it no type
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        joined = self.folder / JOINED
        tables = (pyarrow.feather.read_table(path, memory_map=False).cast(schema) for path in paths)
        _WRITERS[self.output.suffix.lower()](joined, schema, tables)
        sync(joined)
        (self.folder / COMPLETE).touch()  # with nothing joined any more, it is in its place
        os.replace(joined, self.output)

    def remove(self) -> None:
        """Remove the parts, and then what says what they are of."""
        for path in self.folder.glob("*.arrow"):
            path.unlink()
        shutil.rmtree(self.folder)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:012d}.arrow"


def parts_folder(output: Path) -> Path:
    """Where the parts of a file are."""
    return output.with_name(f"{output.name}.parts")


@contextlib.contextmanager
def parts_of(
    output: Path, made_of: Mapping[str, Any], count_rows: Callable[[], int]
) -> Iterator[Parts]:
    """The parts of a file of answers, those of an earlier start among them.

    Args:
        output: The file.
        made_of: All that the answers depend on, as JSON.
        count_rows: Checks all rows and counts them; asked for once, before the first part.

    Raises:
        InputError: the parts are of something else, or another process is writing them.
    """
    folder = parts_folder(output)
    folder.mkdir(exist_ok=True)
    with lock_file(folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{output}: another process is writing it; wait for it.") from None
        if os.fstat(lock).st_nlink == 0:
            raise InputError(f"{output}: another process has just written it.")
        yield Parts(output, _begin(folder, made_of, count_rows))


def require_output(output: Path) -> None:
    """Check at once that a file of answers can be written, or gone on with.

    Raises:
        InputError: it is there already, is of an unknown extension or in no folder.
    """
    if output.suffix.lower() not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise InputError(f"--output {output}: unknown extension {output.suffix!r}; use {known}.")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}; make it.")
    if output.exists() and not _is_joined(parts_folder(output)):
        raise InputError(f"--output {output}: it is there already; remove it or name another.")


def _is_joined(folder: Path) -> bool:
    return (folder / COMPLETE).exists() and not (folder / JOINED).exists()


def _begin(folder: Path, made_of: Mapping[str, Any], count_rows: Callable[[], int]) -> int:
    """Rows of the whole, by the manifest that is there or is written now."""
    path = folder / MANIFEST
    if not path.exists():
        try:
            rows = count_rows()
        except InputError:
            shutil.rmtree(folder)  # there is nothing in it
            raise
        with written_whole(path) as beside:
            beside.write_text(json.dumps({**made_of, "rows": rows}, indent=2), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    others = [name for name, value in made_of.items() if found.get(name) != value]
    if others:
        raise InputError(
            f"{folder}: begun with another {' and another '.join(others)}; begin anew by removing "
            "this folder, or name another --output."
        )
    return found["rows"]


def _array(values: list) -> pa.Array:
    """A column; its floats are float32, as the model gives them."""
    array = pa.array(values)
    return array.cast(_with_floats(array.type, pa.float32()))


def _with_floats(kind: pa.DataType, wanted: pa.DataType) -> pa.DataType:
    """A type with all floats in it replaced by another."""
    if pa.types.is_list(kind):
        return pa.list_(_with_floats(kind.value_type, wanted))
    return wanted if pa.types.is_floating(kind) else kind


# The kinds of files


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    held: list[pa.Table] = []
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for table in tables:
            held.append(table)
            if sum(part.nbytes for part in held) > GROUP_BYTES:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))


def _write_csv(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Lists are JSON texts."""
    lists = [field.name for field in schema if pa.types.is_list(field.type)]
    kinds = [pa.string() if field.name in lists else field.type for field in schema]
    flat = pa.schema(list(zip(schema.names, kinds, strict=True)))
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    with pyarrow.csv.CSVWriter(path, flat, write_options=options) as writer:
        for table in tables:
            columns = {
                name: [_json(cell) for cell in _readable(column).to_pylist()]
                if name in lists
                else column
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
            writer.write_table(pa.table(columns, flat))


def _write_jsonl(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            columns = [_readable(column).to_pylist() for column in table.columns]
            for row in zip(*columns, strict=True):
                file.write(_json(dict(zip(schema.names, row, strict=True))) + "\n")


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose float32 are the float64 of the fewest digits that read back as them."""
    as_text = column.cast(_with_floats(column.type, pa.string()))
    return as_text.cast(_with_floats(column.type, pa.float64()))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_WRITERS: dict[str, Callable[[Path, pa.Schema, Iterator[pa.Table]], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
