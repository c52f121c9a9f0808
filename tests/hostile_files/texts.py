"""Files of texts: CSV, TSV, JSONL, Parquet, and what is compressed."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from hostile_files.case import NOTHING, TERA, Case
from hostile_files.spoilers import deep, grown, linked, write


def endless(name: str, head: str, *, quoted: bool = False) -> Callable[[Path], None]:
    """A first row of 10 GB, a hole."""

    def spoil(folder: Path) -> None:
        (folder / name).write_text(head + ('"' if quoted else ""))
        os.truncate(folder / name, 10 << 30)

    return spoil


def rows_of(name: str, row: str, count: int, head: str = "text,label\n") -> Callable[[Path], None]:
    """Many long rows."""

    def spoil(folder: Path) -> None:
        with (folder / name).open("w") as file:
            file.write(head)
            for number in range(count):
                file.write(row.replace("N", str(number % 2)))

    return spoil


def parquet(**columns: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        pa.parquet.write_table(pa.table(columns), folder / "train.parquet")

    return spoil


def parquet_misnamed(folder: Path) -> None:
    """A column whose name is not UTF-8."""
    path = folder / "train.parquet"
    columns = {"text": ["x", "y"], "label": ["a", "b"], "other": [1, 2]}
    pa.parquet.write_table(pa.table(columns), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"other", b"oth\xff\xfe"))


def parquet_levels(folder: Path) -> None:
    """A column that must have values, with the statistics of one that may lack them."""
    path = folder / "train.parquet"
    pa.parquet.write_table(pa.table({"text": ["x", "y"], "label": ["a", "b"]}), path)
    content = path.read_bytes()
    optional = bytes([0x25, 2, 0x18, 4]) + b"text"  # in Thrift: field 3, then 4, the name
    assert content.count(optional) == 1
    path.write_bytes(content.replace(optional, optional.replace(b"\2", b"\0")))


def parquet_footer(folder: Path) -> None:
    """A footer of 2 GB, which is there: a hole."""
    path = folder / "train.parquet"
    path.write_bytes(b"PAR1")
    os.truncate(path, 1 << 31)
    with path.open("ab") as file:
        file.write(struct.pack("<I", (1 << 31) - 4) + b"PAR1")


def parquet_bomb(size: int, compression: str) -> Callable[[Path], None]:
    """One text of so many bytes, which compress to nothing."""

    def spoil(folder: Path) -> None:
        places = pa.py_buffer(np.array([0, size, size + 1], np.int32))
        texts = pa.py_buffer(np.full(size + 1, ord("x"), np.uint8))
        column = pa.StringArray.from_buffers(2, places, texts)
        table = pa.table({"text": column, "label": ["a", "b"]})
        pa.parquet.write_table(
            table, folder / "train.parquet", compression=compression, use_dictionary=False,
            write_statistics=False,  # which would hold the text once more
        )  # fmt: skip

    return spoil


def parquet_dictionary(folder: Path) -> None:
    """4,000 rows of one text of 4 MB, which is stored once: 16 GB."""
    values = pa.array(["x" * (4 << 20), "y"])
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 2000), values)
    labels = pa.array(["a", "b"] * 2000)
    table = pa.table({"text": texts, "label": labels})
    pa.parquet.write_table(table, folder / "train.parquet", store_schema=False)


def packed(name: str, content: bytes) -> Callable[[Path], None]:
    return write(name, content)


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", content)
    return file.getvalue()


GOOD_CSV = "text,label\n" + "a cat,x\na dog,y\n" * 20
ROWS = ("data", "texts")
_cases = (
    Case("csv: a text of 10 GB", endless("train.csv", "text,label\n"), ROWS),
    Case("csv: a text of 10 GB in quotes", endless("train.csv", "text,label\n", quoted=True), ROWS),
    Case("csv: a header of 10 GB", endless("train.csv", "text,label"), ROWS),
    Case("csv: a header of 10 GB in quotes", endless("train.csv", "", quoted=True), ROWS),
    Case("csv: two million columns", write("train.csv", "a," * 2_000_000 + "text,label\n"), ROWS),
    Case("csv: one column 100,000 times",
         write("train.csv", ",".join(["text"] * 100_000) + ",label\n"), ROWS),
    Case("csv: a quote that is never closed",
         write("train.csv", 'text,label\n"a cat,x\n' + "a dog,y\n" * 100_000), ROWS),
    Case("csv: a quote that is never closed, 40 MB on",
         rows_of("train.csv", "a cat,N\n", 5_000_000, 'text,label\n"a,x\n'), ROWS, is_large=True),
    Case("csv: NUL bytes", write("train.csv", GOOD_CSV + "a\0b,x\n"), ROWS),
    Case("csv: UTF-8, then GB18030",
         write("train.csv", GOOD_CSV.encode() + "\u597d\u4eba,x\n".encode("gb18030")), ROWS),
    Case("csv: UTF-8, then UTF-16", write("train.csv", GOOD_CSV.encode() +
                                          "a,x\n".encode("utf-16")), ROWS),
    Case("csv: lone surrogates", write("train.csv", GOOD_CSV.encode() + b"\xed\xa0\x80,x\n"), ROWS),
    Case("csv: rows of other widths", write("train.csv", GOOD_CSV + "a,b,c,d\n"), ROWS),
    Case("csv: 200 texts of 7 MB", rows_of("train.csv", "x" * 7_000_000 + ",N\n", 200), ROWS,
         is_read=True, is_large=True),
    Case("tsv: a text of 10 GB", endless("train.tsv", "text\tlabel\n"), ROWS),
    Case("tsv: a text of 10 GB in quotes", endless("train.tsv", "text\tlabel\n", quoted=True),
         ROWS),
    Case("tsv: quotes around 4 GB of rows",
         rows_of("train.tsv", "a cat\tN\n" * 1000, 550_000, 'text\tlabel\n"a\tx\n'), ("texts",),
         is_read=True, is_large=True),
    Case("jsonl: a line of 10 GB", endless("train.jsonl", '{"text": "'), ROWS),
    Case("jsonl: a second line of 10 GB",
         endless("train.jsonl", '{"text": "a", "label": "x"}\n{"text": "'), ROWS),
    Case("jsonl: 200,000 levels", write("train.jsonl", deep() + "\n"), ROWS),
    Case("jsonl: a text of 200,000 levels", write("train.jsonl", '{"text": ' + deep() + "}\n"),
         ROWS),
    Case("jsonl: a number of 100,000 digits",
         write("train.jsonl", '{"text": ' + "9" * 100_000 + "}\n"), ROWS),
    Case("jsonl: 400 texts of 7 MB",
         rows_of("train.jsonl", '{"text": "' + "x" * 7_000_000 + '", "label": "N"}\n', 400, ""),
         ROWS, is_read=True, is_large=True),
    Case("jsonl: 400 lines of 1 MB of empty lists",
         rows_of("train.jsonl", '{"text": "a", "label": "N", "other": [' + "[]," * 330_000
                 + "[]]}\n", 400, ""), ROWS, is_read=True, is_large=True),
    Case("jsonl: NUL bytes", write("train.jsonl", '{"text": "a\\u0000b", "label": "x"}\n' * 9),
         ROWS),
    Case("txt: a line of 10 GB", endless("train.txt", "a cat\n"), ROWS),
    Case("txt: 400 lines of 7 MB", rows_of("train.txt", "x" * 7_000_000 + "\n", 400, ""), ROWS,
         is_read=True, is_large=True),
    Case("parquet: structs for texts",
         parquet(text=[{"a": "x"}, {"a": "y"}], label=["a", "b"]), ROWS),
    Case("parquet: lists of lists for texts", parquet(text=[[["x"]], [["y"]]], label=["a", "b"]),
         ROWS),
    Case("parquet: maps for labels",
         parquet(text=["x", "y"], label=pa.array([[("k", "v")], []],
                                                 pa.map_(pa.string(), pa.string()))), ("data",)),
    Case("parquet: bytes that are not UTF-8",
         parquet(text=pa.array([b"\xff", b"a"]), label=["a", "b"]), ROWS),
    Case("parquet: a column whose name is not UTF-8", parquet_misnamed, ROWS),
    Case("parquet: a text of 1.9 GB, zstd", parquet_bomb(1_900_000_000, "zstd"), ROWS,
         is_large=True),
    Case("parquet: a text of 1.9 GB, gzip", parquet_bomb(1_900_000_000, "gzip"), ROWS,
         is_large=True),
    Case("parquet: 16 GB of one text that is stored once", parquet_dictionary, ROWS),
    Case("parquet: no footer", write("train.parquet", b"PAR1" + bytes(1000)), ROWS),
    Case("parquet: a footer of 2 GB", write("train.parquet", b"PAR1" + bytes(1000)
                                           + struct.pack("<I", 2**31 - 1) + b"PAR1"), ROWS),
    Case("parquet: a footer of 2 GB that is there", parquet_footer, ROWS),
    Case("parquet: statistics that do not go with the column", parquet_levels, ROWS),
    Case("parquet: 10 TB", grown("train.parquet", 10 * TERA), ROWS),
    Case("gzip, as .csv.gz", packed("train.csv.gz", gzip.compress(GOOD_CSV.encode())), ROWS),
    Case("gzip, as .csv", packed("train.csv", gzip.compress(GOOD_CSV.encode())), ROWS),
    Case("gzip of 1 GB, as .jsonl",
         lambda folder: write("train.jsonl", gzip.compress(bytes(1 << 30), 1))(folder), ROWS,
         is_large=True),
    Case("zip, as .csv", packed("train.csv", zipped(GOOD_CSV.encode())), ROWS),
    Case("zip, as .zip", packed("train.zip", zipped(GOOD_CSV.encode())), ROWS),
    Case("zip, as .txt", packed("train.txt", zipped(GOOD_CSV.encode())), ("texts",)),
    Case("a pipe", lambda folder: os.mkfifo(folder / "train.csv"), ROWS),
    Case("a device", linked("train.csv", "/dev/zero"), ROWS),
)  # fmt: skip
data = [dataclasses.replace(case, start=NOTHING) for case in _cases]
