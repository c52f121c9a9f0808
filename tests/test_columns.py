"""kbert.data: columns beyond a text and its class, as tasks ask for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from kbert.config import DataOptions
from kbert.data import Columns, DataSet, read_dataset
from kbert.errors import InputError
from kbert.text_files import LIST_SEPARATOR, Source, read_rows

TAGGED = Columns(("tokens",), targets=("tags",), lists=("tokens", "tags"), named=("tags",))
ROWS = [
    {"tokens": ["the", "cat"], "tags": ["O", "B-animal"]},
    {"tokens": ["ran"], "tags": ["O"]},
]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, columns: Columns, **options) -> DataSet:
    given = DataOptions(train=str(path), validation_fraction=0, test_fraction=0, **options)
    return read_dataset(given, columns, seed=0)


def cells(dataset: DataSet, name: str) -> list[str]:
    source = dataset.splits["train"].source
    return [cell for batch in source.batches() for cell in batch.column(name).to_pylist()]


def refusal(path: Path, columns: Columns, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(path, columns, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_lists_of_json(tmp_path: Path) -> None:
    dataset = read(write_rows(tmp_path / "a.jsonl", ROWS), TAGGED)
    assert cells(dataset, "tokens") == ["the\x1fcat", "ran"]
    assert dataset.names == {"tags": ("B-animal", "O")}
    assert dataset.labels == () and dataset.splits["train"].labels is None


def test_lists_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    dataset = read(path, TAGGED)
    assert cells(dataset, "tags") == ["O\x1fB-animal", "O"]


def test_items_of_a_string_are_divided_by_white_space(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("tokens\ttags\n the  cat \tO B-animal\nran\tO\n", encoding="utf-8")
    assert cells(read(path, TAGGED), "tokens") == ["the\x1fcat", "ran"]


def test_items_of_a_string_are_divided_by_a_separator(tmp_path: Path) -> None:
    columns = Columns(
        ("text",), targets=("kinds",), lists=("kinds",), separator=",", named=("kinds",),
        blank=("kinds",),
    )  # fmt: skip
    path = tmp_path / "a.csv"
    path.write_text('text,kinds\nred,"a b, c"\ngreen,\nblue,c\n', encoding="utf-8")
    dataset = read(path, columns)
    assert cells(dataset, "kinds") == ["a b\x1fc", "", "c"]
    assert dataset.names == {"kinds": ("a b", "c")}


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("", "item 2 of the list is empty"),
        (" ", "item 2 of the list is empty"),
        (f"a{LIST_SEPARATOR}b", "item 2 of the list holds U+001F"),
    ],
)
def test_items_that_cannot_be(tmp_path: Path, item: str, problem: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"tokens": ["the", item], "tags": ["O", "O"]}])
    assert refusal(path, TAGGED) == f"a.jsonl: row 1, column 'tokens': {problem}; correct it."


def test_an_item_that_is_a_list(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"tokens": [["the"]], "tags": ["O"]}])
    assert "must be a string, integer or boolean, is '[\"the\"]'" in refusal(path, TAGGED)


def test_an_empty_answer(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [ROWS[0], {"tokens": ["the"], "tags": []}])
    assert "1 row with an empty answer (column 'tags'), the first is row 2" in refusal(path, TAGGED)


def test_a_column_that_is_missing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"tokens": ["the"]}])
    expected = "a.jsonl: no column 'tags'; name one of 'tokens' by the task's options."
    assert refusal(path, TAGGED) == expected


def test_the_task_names_a_bad_row(tmp_path: Path) -> None:
    def check(columns: Mapping[str, list[str]]) -> tuple[int, str] | None:
        assert set(columns) == {"tokens", "tags"}
        return (columns["tokens"].index("ran"), "ran is a verb; leave it out.")

    columns = Columns(("tokens",), targets=("tags",), lists=("tokens", "tags"), check=check)
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    assert refusal(path, columns) == "a.jsonl: row 2: ran is a verb; leave it out."


NUMBERS = Columns(("text",), "score", label_kind="number")


def test_numbers(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl", [{"text": "a", "score": 1.5}, {"text": "b", "score": 2}]
    )
    split = read(path, NUMBERS, label_column="score").splits["train"]
    assert split.labels is not None and split.labels.dtype == np.float32
    assert split.labels.tolist() == [1.5, 2.0]
    csv = tmp_path / "a.csv"
    csv.write_text("text,score\na, 1e-3\nb,-2\n", encoding="utf-8")
    labels = read(csv, NUMBERS, label_column="score").splits["train"].labels
    np.testing.assert_allclose(labels, [1e-3, -2])
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "score": [0.25]}), parquet)
    assert read(parquet, NUMBERS, label_column="score").splits["train"].labels.tolist() == [0.25]


@pytest.mark.parametrize("value", ["much", "nan", "inf"])
def test_what_is_no_number(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,score\na,1\nb,{value}\n", encoding="utf-8")
    assert refusal(path, NUMBERS, label_column="score") == (
        f"a.csv: row 2, column 'score': must be a number, is '{value}'; correct it."
    )


def test_rows_with_numbers_are_drawn(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": str(i), "score": i} for i in range(20)])
    given = DataOptions(
        train=str(path), validation_fraction=0.25, test_fraction=0, label_column="score"
    )
    splits = read_dataset(given, NUMBERS, seed=0).splits
    assert (len(splits["train"].rows), len(splits["validation"].rows)) == (15, 5)
    assert splits["validation"].labels.tolist() == splits["validation"].rows.tolist()


def test_the_digest_knows_the_targets(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    plain = Source(path, ("tokens",), None, list_columns=("tokens",))
    tagged = Source(path, ("tokens",), None, target_columns=("tags",), list_columns=("tokens",))
    assert plain.digest != tagged.digest


def test_read_rows_of_a_list_column(tmp_path: Path) -> None:
    source = read(write_rows(tmp_path / "a.jsonl", ROWS), TAGGED).splits["train"].source
    assert read_rows(source, np.array([1, 0]), ["tags"]) == {"tags": ["O", "O\x1fB-animal"]}
