"""Several files as one, of this machine and of another file system."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest

from kbert import shards
from kbert.config import DataOptions
from kbert.data import Columns, read_dataset
from kbert.errors import InputError
from kbert.lineage import data_digests
from kbert.shards import RemoteFile, Shards, data_source, digest_of
from kbert.text_files import read_rows

COLUMNS = Columns(("text",), "label")
ROWS = [(f"text {number}", "ab"[number % 2]) for number in range(7)]
PARTS = {"part-0": ROWS[:3], "part-1": ROWS[3:4], "part-10": [], "part-2": ROWS[4:]}


def write(folder: Path, name: str, rows: list[tuple[str, str]], extension: str) -> Path:
    path = folder / f"{name}.{extension}"
    if extension == "parquet":
        texts, labels = (pa.array([row[i] for row in rows], pa.string()) for i in (0, 1))
        pyarrow.parquet.write_table(pa.table({"text": texts, "label": labels}), path)
    elif extension == "jsonl":
        lines = [f'{{"text": "{text}", "label": "{label}"}}' for text, label in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        lines = ["text,label", *(",".join(row) for row in rows)]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in PARTS.items():
        write(tmp_path, name, rows, "csv")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-0.csv.crc").write_bytes(b"\0")
    return tmp_path


def options(train: Path | str) -> DataOptions:
    return DataOptions(train=str(train), validation_fraction=0, test_fraction=0)


def rows_of(train: Path | str) -> list[tuple[str, str]]:
    dataset = read_dataset(options(train), COLUMNS, seed=0)
    split = dataset.splits["train"]
    texts = read_rows(split.source, split.rows, ["text"])["text"]
    return [(text, dataset.labels[label]) for text, label in zip(texts, split.labels, strict=True)]


@pytest.mark.parametrize("extension", ["csv", "parquet", "jsonl"])
def test_files_in_the_order_of_their_names(tmp_path: Path, extension: str) -> None:
    """part-10 is before part-2, as it is for `ls`; and it has no rows, as Spark leaves some."""
    for name, rows in PARTS.items():
        if rows or extension != "jsonl":
            write(tmp_path, name, rows, extension)
    for train in (tmp_path, f"{tmp_path}/part-*.{extension}", f"{tmp_path}/part-?.{extension}"):
        assert rows_of(train) == ROWS


def test_rows_are_read_back_by_number(folder: Path) -> None:
    source = read_dataset(options(folder), COLUMNS, seed=0).splits["train"].source
    found = read_rows(source, np.array([6, 0, 3]), ["label", "text"])
    assert found == {"label": ["a", "a", "b"], "text": ["text 6", "text 0", "text 3"]}


def test_splits_are_those_of_one_file(folder: Path, tmp_path: Path) -> None:
    whole = write(tmp_path, "whole", ROWS, "parquet")
    drawn = [
        read_dataset(DataOptions(train=str(train), validation_fraction=0.3), COLUMNS, seed=1).splits
        for train in (whole, f"{folder}/part-*")
    ]
    for name, split in drawn[0].items():
        np.testing.assert_array_equal(split.rows, drawn[1][name].rows)


def test_digest(folder: Path) -> None:
    """Of all files in their order: what `sha256sum part-* | cut -c-64 | sha256sum` prints."""
    before = data_digests(options(folder))["train"]
    assert before == data_digests(options(f"{folder}/part-*.csv"))["train"]
    assert before != digest_of(folder / "part-0.csv")
    digest = read_dataset(options(folder), COLUMNS, seed=0).splits["train"].source.digest
    write(folder, "part-2", [("another text", "b"), *ROWS[5:]], "csv")
    assert data_digests(options(folder))["train"] != before
    assert read_dataset(options(folder), COLUMNS, seed=0).splits["train"].source.digest != digest


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("text", "b"), ("", "a")], "the first is {folder}/part-2.csv: row 2; fill in or remove"),
        ([("text", "b"), ("nul \0", "a")], "{folder}/part-2.csv: row 2, column 'text': a NUL byte"),
        ([("text", "b", "c")], "{folder}/part-2.csv: row 1 has 3 columns, the header 2"),
    ],
)
def test_a_bad_row_is_named_by_its_file(folder: Path, rows: list, message: str) -> None:
    write(folder, "part-2", rows, "csv")
    with pytest.raises(InputError) as caught:
        read_dataset(options(folder), COLUMNS, seed=0)
    assert message.format(folder=folder) in str(caught.value)


def test_a_file_without_the_column(folder: Path) -> None:
    (folder / "part-2.csv").write_text("text,labels\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"part-2.csv: no column 'label'; name one of 'text', 'la"):
        read_dataset(options(folder), COLUMNS, seed=0)


def test_what_names_no_files(folder: Path) -> None:
    for name in ("none-*.csv", "empty"):
        (folder / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="there are no files there; correct --data.train."):
            data_source(str(folder / name), "--data.train")
    (folder / "more.parquet").touch()
    with pytest.raises(InputError, match=r"files of several kinds \(.csv, .parquet\); name those"):
        data_source(str(folder), "--data.train")
    (folder / "part-2.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"part-2.csv: the file is empty"):
        rows_of(f"{folder}/part-*.csv")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    path = write(tmp_path, "texts[1]", ROWS, "csv")
    assert data_source(str(path), "--data.train") == path
    assert rows_of(path) == ROWS


def test_uri_of_this_machine(folder: Path) -> None:
    assert rows_of(f"file://{folder}/part-*.csv") == ROWS
    assert rows_of(f"file://{folder}") == ROWS
    assert rows_of(f"file://{folder}/part-0.csv") == ROWS[:3]
    one = data_source(f"file://{folder}/part-0.csv", "--data.train")
    assert isinstance(one, RemoteFile)
    assert digest_of(one) == digest_of(folder / "part-0.csv")
    with pytest.raises(InputError, match=r"file:///.*part-7.csv: there is no such file"):
        rows_of(f"file://{folder}/part-7.csv")


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    """Arrow's own file system in memory in place of a bucket: no path of this machine is right."""
    bucket = pa.fs._MockFileSystem()
    monkeypatch.setattr(shards, "_file_system", lambda uri: (bucket, uri.partition("://")[2]))
    bucket.create_dir("bucket/news/more", recursive=True)
    for name, rows in PARTS.items():
        path = write(tmp_path, name, rows, extension)
        with bucket.open_output_stream(f"bucket/news/{path.name}") as file:
            file.write(path.read_bytes())
        path.unlink()
    bucket.open_output_stream("bucket/news/_SUCCESS").close()
    for train in ("gs://bucket/news", "gs://bucket/news/", f"gs://bucket/news/part-*.{extension}"):
        assert rows_of(train) == ROWS
    source = data_source("gs://bucket/news", "--data.train")
    assert isinstance(source, Shards)
    assert [str(file) for file in source.files][0] == f"gs://bucket/news/part-0.{extension}"
    with pytest.raises(InputError, match="there is no such file"):
        rows_of("gs://bucket/other.csv")
    with pytest.raises(InputError, match="a pattern is for the names in one folder"):
        rows_of("gs://bucket/*/part-0.csv")


def test_a_file_system_that_nobody_knows() -> None:
    with pytest.raises(InputError, match=r"nowhere://a/b.csv: cannot be looked at \(.*nowhere"):
        rows_of("nowhere://a/b.csv")
