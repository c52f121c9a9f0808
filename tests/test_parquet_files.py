"""Parquet footers, and what becomes of the process that looks at them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
from hostile_files.texts import parquet_levels

from kbert import parquet_files
from kbert.parquet_files import DamagedFooter, TextColumn, text_columns

COLUMNS = {
    "text": ["red" * 10, "blue"] * 100,
    "a.b": ["red" * 10, "blue"] * 100,
    "words": [["red", "blue"], []] * 100,
    "number": [1, 2] * 100,
    "other": ["x", "y"] * 100,
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.parquet"
    pa.parquet.write_table(
        pa.table(COLUMNS), path, use_dictionary=["a.b", "words.list.element"], row_group_size=64
    )
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    parquet_levels(tmp_path)
    return tmp_path / "train.parquet"


def test_text_columns(good: Path) -> None:
    found = text_columns(good, ("text", "a.b", "words", "number"))
    assert set(found) == {"text", "a.b", "words.list.element"}
    assert [column.has_dictionary for column in found.values()] == [False, True, True]
    of_values = (30 + 4 + 4 + 4) / 2  # with its length, in 4 bytes; pages have headers too
    assert of_values < found["text"].mean_size < of_values + 20
    assert found["a.b"].mean_size < of_values


def test_no_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.ParquetWriter(path, pa.schema({"text": pa.string()})).close()
    assert text_columns(path, ("text",)) == {"text": TextColumn(False, 0.0)}


def test_a_footer_that_ends_the_process(good: Path, damaged: Path) -> None:
    """The next file has a new one."""
    for _ in range(2):
        with pytest.raises(DamagedFooter, match="^pyarrow ends at it: Definition level histogram"):
            text_columns(damaged, ("text",))
        assert text_columns(good, ("other",)) == {"other": TextColumn(False, pytest.approx(5, 1))}


def test_pyarrow_ends_the_process_still(damaged: Path) -> None:
    """Once it raises instead, no process of its own is needed for footers."""
    code = "import sys, pyarrow.parquet as pq; pq.read_metadata(sys.argv[1]).row_group(0).column(0)"
    process = subprocess.run([sys.executable, "-c", code, str(damaged)], capture_output=True)
    assert process.returncode == -6


def test_an_idle_process_has_ended(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = subprocess.PIPE
    idle = subprocess.Popen([sys.executable, "-c", ""], stdin=pipe, stdout=pipe, stderr=pipe)
    idle.wait()
    parquet_files._end_all()
    monkeypatch.setattr(parquet_files, "_process", idle)
    assert set(text_columns(good, ("text",))) == {"text"}
    parquet_files._end_all()


def test_no_zombie_is_left(good: Path) -> None:
    """Of a process that ends by itself, while nobody asks."""
    text_columns(good, ("text",))
    process = psutil.Process(parquet_files._process.pid)
    process.terminate()
    until = time.monotonic() + 60
    while process.is_running() and time.monotonic() < until:  # a zombie is running, to psutil
        time.sleep(0.05)
    assert not process.is_running()
    parquet_files._end_all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not end"),
        (b"PAR1", "does not end"),
        (b"PAR1\x05\0\0\0PAR1", "does not end"),
        (b"PAR1abc\x03\0\0\0PAR1", "."),
        (b"PAR1abc\x03\0\0\0PARE", "does not end"),
    ],
)
def test_no_footer(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DamagedFooter, match=message):
        text_columns(path, ("text",))
