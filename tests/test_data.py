"""kbert.text_files and kbert.data: how files are read, what is refused, how rows are split."""

from __future__ import annotations

import csv
import gc
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbert import text_files
from kbert.config import DataOptions
from kbert.data import Columns, DataSet, read_dataset, read_split
from kbert.errors import InputError
from kbert.text_files import LIST_SEPARATOR, Source, read_rows

REAL_DATA = Path(__file__).parents[1] / "../shared/data"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def write_parquet(folder: Path, columns: dict | pa.Table, name: str = "train.parquet") -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pyarrow.parquet.write_table(table, folder / name)
    return folder / name


def read(train: Path, *, labelled: bool = True, seed: int = 0, **options) -> DataSet:
    """The data set of a training file alone, unless the options say more."""
    options = {"validation_fraction": 0.0, "test_fraction": 0.0} | options
    given = DataOptions(train=str(train), **options)
    return read_dataset(given, columns_of(given, labelled=labelled), seed=seed)


def columns_of(options: DataOptions, *, labelled: bool = True) -> Columns:
    """Texts, and a class."""
    return Columns(tuple(options.text_columns), options.label_column if labelled else None)


def refusal(train: Path, **options) -> str:
    """The one line with which a training file is refused, the folder left out."""
    with pytest.raises(InputError) as caught:
        read(train, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{train.parent}/", "")


def rows(
    path: Path, *columns: str, label: str | None = None, encoding: str = "utf-8"
) -> list[tuple[str, ...]]:
    """All rows of a file, as tuples."""
    source = Source(path, columns or ("text",), label, encoding)
    batches = list(source.batches())
    assert all(batch.schema.types == [pa.string()] * batch.num_columns for batch in batches)
    assert all(0 < batch.num_rows <= text_files.BATCH_ROWS for batch in batches)
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


LABELLED = "text,label\nred,a\ngreen,b\nblue,a\n"


# Reading


def test_csv_values_stay_as_written(tmp_path):
    written = 'text,label\nNA,007\n"null",true\n1.0,"NaN"\n"",-\n'
    path = write(tmp_path, "train.csv", written)
    assert rows(path, "text", "label") == [
        ("NA", "007"),
        ("null", "true"),
        ("1.0", "NaN"),
        ("", "-"),
    ]


def test_csv_quoted_fields_hold_commas_quotes_and_new_lines(tmp_path):
    path = write(tmp_path, "train.csv", 'text,label\r\n"a, ""b""\r\nc",x\r\n\r\nd "e" f,y\r\n')
    assert rows(path, label="label") == [('a, "b"\r\nc', "x"), ('d "e" f', "y")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_csv_line_ends(tmp_path, end, last):
    path = write(tmp_path, "train.csv", end.join(["text,label", "red,a", "blue,b", ""][: 3 + last]))
    assert rows(path, label="label") == [("red", "a"), ("blue", "b")]


def test_columns_come_in_the_order_asked(tmp_path):
    path = write(tmp_path, "train.csv", "id,label,b,a\n1,x,two,one\n")
    assert rows(path, "a", "b", label="label") == [("one", "two", "x")]


def test_unused_columns_may_share_a_name(tmp_path):
    path = write(tmp_path, "train.csv", "text,label,,\nred,a,,\nblue,b,,\n")
    assert read(path).labels == ("a", "b")


def test_batches_are_small_and_in_file_order(tmp_path):
    texts = [f"text {number}" for number in range(10_000)]
    path = write(tmp_path, "train.csv", "\n".join(["text", *texts]))
    source = Source(path, ("text",), None)
    assert [batch.num_rows for batch in source.batches()] == [4096, 4096, 1808]
    assert rows(path) == [(text,) for text in texts]


def test_tsv_with_bare_quotes_is_one_row_a_line(tmp_path):
    path = write(tmp_path, "train.tsv", 'text\tlabel\n"he said\ta\nshe " too\tb\n"all" right\ta\n')
    assert rows(path, label="label") == [
        ('"he said', "a"),
        ('she " too', "b"),
        ('"all" right', "a"),
    ]


def test_tsv_quotes_that_would_swallow_lines_are_characters(tmp_path):
    path = write(tmp_path, "train.tsv", 'text\tlabel\n"he said\ta\nand left"\tb\n')
    assert rows(path, label="label") == [('"he said', "a"), ('and left"', "b")]


def test_tsv_written_as_csv_is_unquoted(tmp_path):
    path = write(tmp_path, "train.tsv", 'text\tlabel\n"""he"" \tsaid"\ta\n"two\nlines"\tb\n')
    assert rows(path, label="label") == [('"he" \tsaid', "a"), ("two\nlines", "b")]


def test_jsonl_labels_read_as_json_writes_them(tmp_path):
    values = ["x", 1, True, -(10**20)]
    lines = [json.dumps({"text": "t", "label": value}) for value in values]
    path = write(tmp_path, "train.jsonl", "\n".join([*lines[:2], "", "  ", *lines[2:]]))
    assert [label for _, label in rows(path, label="label")] == ["x", "1", "true", str(-(10**20))]


def test_jsonl_lists_are_no_garbage(tmp_path):
    """Python would search for it for each 700 lists."""
    many = json.dumps({"text": "a", "label": "x", "other": [[]] * 100_000})
    path = write(tmp_path, "train.jsonl", f"{many}\n" * 3)
    searches = []
    gc.callbacks.append(lambda phase, _: searches.append(phase))
    try:
        assert rows(path, label="label") == [("a", "x")] * 3
    finally:
        gc.callbacks.pop()
    assert len(searches) < 100
    assert gc.isenabled()


def test_jsonl_line_separators_within_texts(tmp_path):
    text = "a\u2028b\u0085c d"
    path = write(tmp_path, "train.ndjson", json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert rows(path) == [(text,)]


def test_txt_is_one_text_a_line_without_blank_ones(tmp_path):
    path = write(tmp_path, "train.txt", '\ufeffone, "two"\r\n\r\n  \nthree\tfour\n five')
    assert rows(path, "line") == [('one, "two"',), ("three\tfour",), (" five",)]
    dataset = read(path, labelled=False, text_column="line")
    assert dataset.splits["train"].rows.tolist() == [0, 1, 2]
    assert dataset.splits["train"].labels is None
    assert dataset.labels == ()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_parquet_string_types(tmp_path, kind):
    column = pa.array(["red", None, "blue"]).cast(kind)
    assert rows(write_parquet(tmp_path, {"text": column})) == [("red",), ("",), ("blue",)]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array([3, 4], pa.int8()), ["3", "4"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([3, 4]).dictionary_encode(), ["3", "4"]),
    ],
)
def test_parquet_labels_may_be_numbers_and_booleans(tmp_path, values, wanted):
    path = write_parquet(tmp_path, {"other": [1, 2], "text": ["red", "blue"], "label": values})
    assert [label for _, label in rows(path, label="label")] == wanted


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16", "utf-16-le", "cp1252"])
def test_encodings_also_across_chunks(tmp_path, monkeypatch, extension, encoding):
    monkeypatch.setattr(text_files, "CHUNK", 7)
    texts = ["é à la", "猫と狗 𠮷"] if encoding != "cp1252" else ["é à la", "ß"]
    lines = ["text", *texts] if extension in ("csv", "tsv") else texts
    if extension == "jsonl":
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path = write(tmp_path, f"train.{extension}", "\n".join(lines).encode(encoding))
    assert rows(path, encoding=encoding) == [(text,) for text in texts]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_byte_order_mark_is_dropped(tmp_path, encoding):
    path = write(tmp_path, "train.csv", "\ufefftext\n\ufeffred\n".encode(encoding))
    assert rows(path, encoding=encoding) == [("\ufeffred",)]


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "txt"])
def test_long_texts(tmp_path, extension):
    text = 'a "b" ' * 500_000  # 3 MB, over several chunks
    content = {"jsonl": json.dumps({"text": text}), "txt": text}
    quoted = 'text\n"{}"\n'.format(text.replace('"', '""'))
    path = write(tmp_path, f"train.{extension}", content.get(extension, quoted))
    assert rows(path) == [(text,)]


def test_extension_in_capitals(tmp_path):
    assert read(write(tmp_path, "TRAIN.CSV", LABELLED)).labels == ("a", "b")


def test_digest_changes_with_bytes_columns_and_encoding(tmp_path):
    path = write(tmp_path, "train.csv", LABELLED)
    twin = write(tmp_path, "twin.csv", LABELLED)
    other = write(tmp_path, "other.csv", LABELLED + "more,a\n")
    source = Source(path, ("text",), "label")
    assert source.digest == Source(twin, ("text",), "label").digest
    different = [
        source,
        Source(other, ("text",), "label"),
        Source(path, ("text",), None),
        Source(path, ("label",), "text"),
        Source(path, ("text", "label"), None),
        Source(path, ("text",), "label", "cp1252"),
    ]
    assert len({item.digest for item in different}) == len(different)


# Round trips of any text

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
TABLES = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20)


def as_csv(table: list[tuple[str, str]], delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("a", "b"), *table])
    return file.getvalue()


@given(table=TABLES)
@settings(max_examples=150)
def test_round_trip(table):
    lines = [json.dumps({"b": b, "a": a}, ensure_ascii=len(a) % 2 == 0) + "\n" for a, b in table]
    columns = {"a": [a for a, _ in table], "b": [b for _, b in table]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in (
            write(folder, "table.csv", as_csv(table)),
            write(folder, "table.jsonl", "".join(lines)),
            write_parquet(folder, columns),
        ):
            assert rows(path, "a", label="b") == table


PLAIN = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\r\n"), max_size=20
)


@given(table=st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=20))
@settings(max_examples=100)
def test_round_trip_of_tsv(table):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "table.tsv", as_csv(table, "\t"))
        assert rows(path, "a", "b") == table


# Refusals: the file


def test_no_training_file():
    with pytest.raises(InputError, match=r"^--data\.train is missing: name the training file\.$"):
        read_dataset(DataOptions(), columns_of(DataOptions()), seed=0)


def test_missing_file(tmp_path):
    message = refusal(tmp_path / "train.csv")
    assert message == "train.csv: there is no such file; correct --data.train."


def test_empty_folder(tmp_path):
    (tmp_path / "train.csv").mkdir()
    message = refusal(tmp_path / "train.csv")
    assert message == "train.csv: there are no files there; correct --data.train."


def test_unknown_extension(tmp_path):
    assert refusal(write(tmp_path, "train.xlsx", "x")) == (
        "train.xlsx: unknown extension '.xlsx'; convert it to "
        ".csv, .tsv, .jsonl, .ndjson, .parquet, .txt."
    )


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_empty_file(tmp_path, extension):
    message = refusal(write(tmp_path, f"train.{extension}", ""), labelled=False)
    assert message == f"train.{extension}: the file is empty; give a file with rows."


@pytest.mark.parametrize("content", ["\n\n", "\ufeff"])
@pytest.mark.parametrize("extension", ["csv", "jsonl"])
def test_nothing_but_blank_lines(tmp_path, extension, content):
    message = refusal(write(tmp_path, f"train.{extension}", content))
    assert message == f"train.{extension}: the file is empty; give a file with rows."


@pytest.mark.parametrize("content", ["text,label", "text,label\n", "text,label\r\n\r\n"])
def test_header_only(tmp_path, content):
    message = refusal(write(tmp_path, "train.csv", content))
    assert message == "train.csv: the file has no rows; give a file with rows."


def test_parquet_without_rows(tmp_path):
    path = write_parquet(tmp_path, {"text": pa.array([], pa.string())})
    assert refusal(path, labelled=False) == (
        "train.parquet: the file has no rows; give a file with rows."
    )


def test_corrupt_parquet(tmp_path):
    message = refusal(write(tmp_path, "train.parquet", "PAR1 and nothing"))
    assert message.startswith("train.parquet: not a readable Parquet file (")
    assert message.endswith("); write it again.")


def test_parquet_with_a_damaged_page(tmp_path):
    texts = np.random.default_rng(0).bytes(20_000).hex()
    path = write_parquet(tmp_path, {"text": [texts[i : i + 40] for i in range(0, 40_000, 40)]})
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    assert "not a readable Parquet file" in refusal(path, labelled=False)


def test_parquet_text_that_is_not_utf8(tmp_path):
    bad = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    message = refusal(write_parquet(tmp_path, {"text": bad}), labelled=False)
    assert message.startswith("train.parquet: not a readable Parquet file (")


def test_txt_has_no_labels(tmp_path):
    assert refusal(write(tmp_path, "train.txt", "red\n")) == (
        "train.txt: a .txt file has no labels; use .csv, .tsv, .jsonl, .ndjson, .parquet with a "
        "column 'label'."
    )


def test_txt_has_one_column(tmp_path):
    path = write(tmp_path, "train.txt", "red\n")
    assert refusal(path, labelled=False, text_column=["a", "b"]) == (
        "train.txt: a .txt file has one text a row, not 2; name one column by --data.text_column."
    )


# Refusals: bytes


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "no such\0"])
def test_unknown_encoding(tmp_path, encoding):
    message = refusal(write(tmp_path, "train.csv", LABELLED), encoding=encoding)
    assert message == (
        f"--data.encoding: unknown encoding {encoding!r}; use a name that Python knows, such as "
        "utf-8, gb18030, utf-16 or cp1252."
    )


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_undecodable_bytes_that_are_gb18030(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text_files, "CHUNK", chunk)
    path = write(tmp_path, "train.csv", "text,label\nred,a\n中文,b\n".encode("gb18030"))
    assert refusal(path) == (
        "train.csv: line 3, byte 17 of the file: not in utf-8; Excel writes such files in China: "
        "try --data.encoding gb18030."
    )
    assert read(path, encoding="gb18030").labels == ("a", "b")


@pytest.mark.parametrize("chunk", [5, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_undecodable_bytes(tmp_path, monkeypatch, chunk, encoding):
    monkeypatch.setattr(text_files, "CHUNK", chunk)
    path = write(tmp_path, "train.jsonl", b'{"text": "red"}\n{"text": "\xff\xff"}\n')
    assert refusal(path, labelled=False, encoding=encoding) == (
        f"train.jsonl: line 2, byte 26 of the file: not in {encoding}; name the file's encoding "
        "by --data.encoding."
    )


def test_undecodable_end_of_file(tmp_path):
    path = write(tmp_path, "train.txt", "red\n猫".encode()[:-1])
    assert refusal(path, labelled=False).startswith("train.txt: line 2, byte 4 of the file: not in")


def test_utf16_is_recognised(tmp_path):
    assert refusal(write(tmp_path, "train.csv", LABELLED.encode("utf-16"))) == (
        "train.csv: line 1, byte 0 of the file: not in utf-8; its first bytes are those of "
        "UTF-16: try --data.encoding utf-16."
    )


def test_utf16_without_byte_order_mark(tmp_path):
    assert refusal(write(tmp_path, "train.csv", LABELLED), encoding="utf-16") == (
        "train.csv: not a text in utf-16; name the file's encoding by --data.encoding."
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,label\nred,a\nbl\0ue,b\n"),
        ("train.tsv", "text\tlabel\nred\ta\nbl\0ue\tb\n"),
        (
            "train.jsonl",
            '{"text": "red", "label": "a"}\n{"text": "bl\\u0000ue", "label": "b"}\n',
        ),
    ],
)
def test_nul_byte(tmp_path, name, content):
    assert refusal(write(tmp_path, name, content)) == (
        f"{name}: row 2, column 'text': a NUL byte; remove it, or name the file's encoding by "
        "--data.encoding."
    )


# Refusals: columns and rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "title,kind\nred,a\n"),
        ("train.tsv", "title\tkind\nred\ta\n"),
        ("train.jsonl", '{"title": "red", "kind": "a"}\n'),
    ],
)
def test_missing_column(tmp_path, name, content):
    path = write(tmp_path, name, content)
    assert refusal(path) == (
        f"{name}: no column 'text'; name one of 'title', 'kind' by --data.text_column."
    )
    assert refusal(path, text_column="title") == (
        f"{name}: no column 'label'; name one of 'title', 'kind' by --data.label_column."
    )


def test_missing_parquet_column(tmp_path):
    assert refusal(write_parquet(tmp_path, {"title": ["red"]})) == (
        "train.parquet: no column 'text'; name one of 'title' by --data.text_column."
    )


def test_missing_label_column_of_the_validation_file(tmp_path):
    validation = write(tmp_path, "valid.csv", "text\nred\n")
    message = refusal(write(tmp_path, "train.csv", LABELLED), validation=str(validation))
    assert message == "valid.csv: no column 'label'; name one of 'text' by --data.label_column."


def test_label_column_is_a_text_column(tmp_path):
    message = refusal(write(tmp_path, "train.csv", LABELLED), label_column="text")
    assert message == (
        "--data.label_column: 'text' is a text column too; the label must be another one."
    )


def test_duplicate_column_names(tmp_path):
    message = refusal(write(tmp_path, "train.csv", "text,label,text\nred,a,b\n"))
    assert message == "train.csv: 2 columns are named 'text'; rename one."
    table = pa.table([["red"], ["blue"], ["a"]], names=["text", "text", "label"])
    message = refusal(write_parquet(tmp_path, table))
    assert message == "train.parquet: 2 columns are named 'text'; rename one."


@pytest.mark.parametrize(
    ("line", "what"),
    [("green", "1 column, the header 2: 'green'"), ("g,b,x", "3 columns, the header 2: 'g,b,x'")],
)
def test_ragged_row(tmp_path, line, what):
    path = write(tmp_path, "train.csv", f'text,label\n\n"re\nd",a\n{line}\nblue,b\n')
    assert refusal(path) == (
        f"train.csv: row 2 has {what}; correct it, or wrap a text that holds a separator or new "
        "line in double quotes."
    )


def test_ragged_row_far_down(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LARGEST_ROW", 512)
    path = write(tmp_path, "train.tsv", "text\tlabel\n" + "red\ta\n" * 5000 + "blue\n")
    assert refusal(path).startswith("train.tsv: row 5001 has 1 column, the header 2: 'blue'; ")


@pytest.mark.parametrize("content", ['1,red,"a\n2,blue,b\n', '1,"red,a\n2,blue,b\n', '"1,red,a\n'])
def test_quote_never_closed(tmp_path, content):
    path = write(tmp_path, "train.csv", "id,text,label\n0,green,a\n" + content)
    assert refusal(path) == (
        "train.csv: row 2: a double quote opens a field and is never closed; close it, and write "
        "quotes within a field twice."
    )


def test_quote_never_closed_before_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LARGEST_ROW", 512)
    path = write(tmp_path, "train.csv", LABELLED + 'red,"a\n' + "blue,b\n" * 500)
    message = refusal(path)
    assert message.startswith("train.csv: a row of over 512 bytes after row 3, the most that a row")
    assert message.endswith("or close the double quote that opens a field there.")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "green", }', "line 3, character 19: not JSON ("),
        ('{"text": "green"', "line 3, character 17: not JSON ("),
        ("[" * 100_000, "line 3: not JSON ("),
        ('["green"]', "line 3: not a JSON object but '[\"green\"]'"),
        ('{"text": 5, "label": "a"}', "row 2 (line 3), column 'text': must be a string, is '5'"),
        ('{"text": true, "label": "a"}', "row 2 (line 3), column 'text': must be a string, is"),
        ('{"text": ["x"], "label": "a"}', "row 2 (line 3), column 'text': must be a string, is"),
        ('{"label": "a"}', "row 2 (line 3): no key 'text'; add it."),
        ('{"text": "green"}', "row 2 (line 3): no key 'label'; add it."),
        (
            '{"text": "green", "label": 1.5}',
            "row 2 (line 3), column 'label': must be a string, integer or boolean, is '1.5'",
        ),
        (
            '{"text": "\\ud83d", "label": "a"}',
            "row 2 (line 3), column 'text': half of a surrogate pair in '\\ud83d'",
        ),
    ],
)
def test_bad_json(tmp_path, line, what):
    good = '{"text": "red", "label": "a"}\n'
    message = refusal(write(tmp_path, "train.jsonl", f"{good}\n{line}\n{good}"))
    assert message.startswith(f"train.jsonl: {what}")
    assert message.endswith(("; correct it.", "; write one object a line.", "add it.", "."))


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("text", [1, 2], "column 'text' holds int64, not strings; convert it."),
        ("text", [b"a", b"b"], "column 'text' holds binary, not strings; convert it."),
        (
            "label",
            [1.0, 2.0],
            "column 'label' holds double, not strings, integers or booleans; convert it.",
        ),
    ],
)
def test_parquet_column_that_is_not_string(tmp_path, column, values, wanted):
    columns = {"text": ["red", "blue"], "label": ["a", "b"]} | {column: values}
    assert refusal(write_parquet(tmp_path, columns)) == f"train.parquet: {wanted}"


def test_empty_texts_are_counted(tmp_path):
    path = write(tmp_path, "train.csv", "text,label\nred,a\n,b\n \u3000,b\nblue,b\n")
    assert refusal(path) == (
        "train.csv: 2 rows with an empty text (column 'text'), the first is row 2; fill in or "
        "remove."
    )


def test_empty_texts_are_counted_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BATCH_ROWS", 2)
    path = write_parquet(tmp_path, {"text": ["a", "b", "c", None, "", "d", " "]})
    assert refusal(path, labelled=False) == (
        "train.parquet: 3 rows with an empty text (column 'text'), the first is row 4; fill in or "
        "remove."
    )


def test_a_pair_may_lack_one_text(tmp_path):
    path = write(tmp_path, "train.csv", "a,b,label\nred,,x\n,blue,y\n")
    assert read(path, text_column=["a", "b"]).labels == ("x", "y")
    path = write(tmp_path, "train.jsonl", '{"a": "red", "b": null}\n{"a": null, "b": ""}\n')
    assert refusal(path, text_column=["a", "b"], labelled=False) == (
        "train.jsonl: 1 row with an empty text (columns 'a', 'b'), the first is row 2; fill in or "
        "remove."
    )


def test_empty_label(tmp_path):
    assert refusal(write(tmp_path, "train.csv", "text,label\nred,a\nblue,\n")) == (
        "train.csv: 1 row with an empty label (column 'label'), the first is row 2; fill in or "
        "remove."
    )


def test_single_class(tmp_path):
    assert refusal(write(tmp_path, "train.csv", "text,label\nred,a\nblue,a\n")) == (
        "train.csv: every row has the label 'a' (column 'label'); training needs two labels or "
        "more."
    )


@pytest.mark.parametrize("name", ["validation", "test"])
def test_label_that_training_lacks(tmp_path, name):
    other = write(tmp_path, "other.csv", "text,label\nred,b\nblue,c\npink,d\n")
    assert refusal(write(tmp_path, "train.csv", LABELLED), **{name: str(other)}) == (
        "other.csv: row 2, column 'label': the label 'c' is not in "
        "train.csv (2 rows with such labels); correct them, or add training rows."
    )


def test_too_few_rows_to_hold_out(tmp_path):
    path = write(tmp_path, "train.csv", "text,label\nred,a\nblue,b\n")
    assert refusal(path, validation_fraction=0.1) == (
        "train.csv: 2 rows, too few to hold out 0.1 of them: each label must keep a row for "
        "training; add rows, set --data.validation_fraction 0, or give --data.validation."
    )


# Labels and splits


def test_labels_are_sorted_and_indexed(tmp_path):
    train = write(tmp_path, "train.csv", "text,label\nred,z\ngreen,B\nblue,z\npink,a\n")
    validation = write(tmp_path, "valid.tsv", "label\ttext\na\tone\nz\ttwo\n")
    test = write(tmp_path, "test.jsonl", '{"text": "three", "label": "B"}\n')
    dataset = read(train, validation=str(validation), test=str(test))
    assert dataset.labels == ("B", "a", "z")
    assert list(dataset.splits) == ["train", "validation", "test"]
    assert dataset.splits["train"].labels.tolist() == [2, 0, 2, 1]
    assert dataset.splits["validation"].labels.tolist() == [1, 2]
    assert dataset.splits["test"].labels.tolist() == [0]
    for split in dataset.splits.values():
        assert split.rows.tolist() == list(range(len(split.labels)))
        assert (split.rows.dtype, split.labels.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize(
    ("name", "content"), [("test.csv", "text\nred\nblue\n"), ("test.jsonl", '{"text": "red"}\n')]
)
def test_test_file_without_labels(tmp_path, name, content):
    test = write(tmp_path, name, content)
    split = read(write(tmp_path, "train.csv", LABELLED), test=str(test)).splits["test"]
    assert split.labels is None
    assert split.source.columns == ("text",)


def test_no_split_without_file_and_fraction(tmp_path):
    dataset = read(write(tmp_path, "train.csv", LABELLED))
    assert list(dataset.splits) == ["train"]
    assert dataset.duplicates == {"train": 0}


def test_a_file_goes_before_a_fraction(tmp_path):
    validation = write(tmp_path, "valid.csv", "text,label\nx,a\n")
    train = write(tmp_path, "train.csv", LABELLED)
    dataset = read(train, validation=str(validation), validation_fraction=0.5)
    assert dataset.splits["validation"].source.path == validation
    assert dataset.splits["train"].rows.tolist() == [0, 1, 2]


def labelled_file(folder: Path, counts: list[int]) -> Path:
    labels = np.repeat([f"c{index}" for index in range(len(counts))], counts)
    np.random.default_rng(0).shuffle(labels)
    lines = [f"text {number},{label}\n" for number, label in enumerate(labels)]
    return write(folder, "train.csv", "text,label\n" + "".join(lines))


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6).filter(
        lambda c: sum(c) > 2 * len(c)
    ),
    validation=st.sampled_from([0.0, 0.05, 0.1, 1 / 3]),
    test=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
)
@settings(max_examples=80)
def test_stratification(counts, validation, test):
    fractions = {"validation": validation, "test": test}
    with tempfile.TemporaryDirectory() as folder:
        dataset = read(
            labelled_file(Path(folder), counts), validation_fraction=validation, test_fraction=test
        )
    splits = dataset.splits
    every = np.concatenate([split.rows for split in splits.values()])
    assert sorted(every) == list(range(sum(counts)))
    assert all((np.diff(split.rows) > 0).all() for split in splits.values())
    classes = {name: np.bincount(s.labels, minlength=len(counts)) for name, s in splits.items()}
    assert (classes["train"] >= 1).all()
    for name, fraction in fractions.items():
        assert (name in splits) == (fraction > 0)
        if fraction and min(counts) * (1 - validation - test) > 4:  # no class is used up
            size = max(1, round(sum(counts) * fraction))
            quotas = size * np.array(counts) / sum(counts)
            assert len(splits[name].rows) == size
            assert (np.abs(classes[name] - quotas) < 1).all()


def test_stratification_is_like_scikit_learn(tmp_path):
    selection = pytest.importorskip("sklearn.model_selection")
    counts = [100, 57, 13, 31]
    split = read(labelled_file(tmp_path, counts), test_fraction=0.2).splits["test"]
    labels = np.repeat(np.arange(4), counts)
    _, theirs = selection.train_test_split(
        labels, test_size=len(split.rows), stratify=labels, random_state=0
    )
    assert np.bincount(split.labels).tolist() == np.bincount(theirs).tolist()


def test_rare_classes_take_turns(tmp_path):
    path = labelled_file(tmp_path, [5] * 40)
    drawn = read(path, validation_fraction=0.1, test_fraction=0.1).splits["validation"].labels
    assert len(set(drawn)) == len(drawn) == 20
    assert drawn.max() >= 30  # not only the first classes of the alphabet


def test_splits_are_drawn_by_seed(tmp_path):
    path = labelled_file(tmp_path, [60, 40])
    drawn = [
        read(path, validation_fraction=0.2, test_fraction=0.1, seed=seed).splits
        for seed in (1, 1, 2)
    ]
    for name in ("train", "validation", "test"):
        assert np.array_equal(drawn[0][name].rows, drawn[1][name].rows)
        assert not np.array_equal(drawn[0][name].rows, drawn[2][name].rows)


def test_unlabelled_rows_are_drawn_at_random(tmp_path):
    path = write(tmp_path, "train.txt", "".join(f"text {number}\n" for number in range(100)))
    splits = read(path, labelled=False, validation_fraction=0.1, test_fraction=0.25).splits
    assert {name: len(split.rows) for name, split in splits.items()} == {
        "train": 65,
        "validation": 10,
        "test": 25,
    }
    assert splits["validation"].rows.tolist() != list(range(10))


# Duplicates


def test_duplicates_within_and_between_files(tmp_path):
    train = write(tmp_path, "train.csv", "text,label\nred,a\nred,b\nblue,a\nred,a\n")
    validation = write(tmp_path, "valid.csv", "text,label\nred,a\nred,a\npink,b\n")
    test = write(tmp_path, "test.csv", "text\npink\nblue\n Red\n")
    assert read(train, validation=str(validation), test=str(test)).duplicates == {
        "train": 2,
        "train/validation": 2,
        "train/test": 1,
        "validation/test": 1,
    }


def test_duplicates_need_all_texts_equal(tmp_path):
    path = write(tmp_path, "train.csv", "a,b\nxy,z\nx,yz\nxy,\n,xy\nx,yz\n")
    dataset = read(path, text_column=["a", "b"], labelled=False)
    assert dataset.duplicates == {"train": 1}


def test_duplicates_between_fractions(tmp_path):
    path = write(tmp_path, "train.txt", "same\n" * 10)
    dataset = read(path, labelled=False, validation_fraction=0.2)
    assert dataset.duplicates == {"train": 7, "train/validation": 2}


# Real files

REAL = [
    ("sst2", "tsv", "text", "label", (6_920, 872, 1_821), 2),
    ("spamassassin", "jsonl", ["subject", "body"], "label", (4_393, 549, 550), 2),
    ("clinc150", "jsonl", "text", "intent", (15_000, 3_000, 4_500), 150),
    ("thucnews", "csv", "title", "topic", (9_000, 1_000, 10_000), 10),
    ("chnsenticorp_hotel", "csv", "text", "label", (6_212, 776, 777), 2),
    ("mrpc", "tsv", ["sentence1", "sentence2"], "label", (3_576, 500, 1_725), 2),
    ("sick", "tsv", ["premise", "hypothesis"], "entailment", (4_500, 500, 4_927), 3),
    ("tatoeba_en_zh", "tsv", ["en", "zh"], None, (27_069, 1_048, 1_038), 0),
    ("atis", "jsonl", "intent", None, (4_478, 500, 893), 0),
    ("multi30k_en_de", "tsv", ["en", "de"], None, (29_000, 1_014, 1_000), 0),
]


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the folder ../shared/data is absent")
@pytest.mark.parametrize(("name", "extension", "text", "label", "sizes", "labels"), REAL)
def test_real_files(name, extension, text, label, sizes, labels):
    train, validation, test = (
        str(REAL_DATA / name / f"{split}.{extension}") for split in ("train", "valid", "test")
    )
    options = DataOptions(train=train, validation=validation, test=test, text_column=text)
    options.label_column = label or "label"
    dataset = read_dataset(options, columns_of(options, labelled=label is not None), seed=0)
    assert tuple(len(split.rows) for split in dataset.splits.values()) == sizes
    assert len(dataset.labels) == labels


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the folder ../shared/data is absent")
def test_quotes_of_a_real_tsv_file_are_not_part_of_its_texts():
    first = rows(REAL_DATA / "mrpc/train.tsv", "sentence1")[0][0]
    assert first.startswith('Amrozi accused his brother, whom he called "the witness", of')


# Some rows of a file


ROWS_OF_A_FILE = {
    "csv": 'id,text,price,label\n1,red,0.5,a\n2,"green, ""light""",,b\n3,blue,2,a\n',
    "tsv": 'id\ttext\tprice\tlabel\n1\tred\t0.5\ta\n2\tgreen, "light"\t\tb\n3\tblue\t2\ta\n',
    "jsonl": '{"id": 1, "text": "red", "price": 0.5, "label": "a"}\n\n'
    '{"id": 2, "text": "green, \\"light\\"", "price": null, "label": "b"}\n'
    '{"id": 3, "text": "blue", "price": 2, "label": "a"}\n',
}


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_of_some_rows(tmp_path, extension):
    if extension == "parquet":
        columns = {"id": [1, 2, 3], "text": ["red", 'green, "light"', "blue"]}
        path = write_parquet(tmp_path, columns | {"price": ["0.5", None, "2"]})
    else:
        path = write(tmp_path, f"train.{extension}", ROWS_OF_A_FILE[extension])
    source = Source(path, ("text",), None)
    found = read_rows(source, np.array([2, 0, 1, 0]), ["price", "text", "id"])
    assert found == {
        "price": ["2", "0.5", "", "0.5"],
        "text": ["blue", "red", 'green, "light"', "red"],
        "id": ["3", "1", "2", "1"],
    }
    assert read_rows(source, np.array([1]), []) == {}
    assert read_rows(source, np.zeros(0, int), ["id"]) == {"id": []}


@pytest.mark.parametrize("extension", ["tsv", "jsonl", "parquet"])
def test_rows_of_lists_have_their_items(tmp_path, extension):
    items = [["red", "light"], ["blue"]]
    if extension == "parquet":
        path = write_parquet(tmp_path, {"words": items})
    elif extension == "jsonl":
        lines = "".join(json.dumps({"words": row}) + "\n" for row in items)
        path = write(tmp_path, "train.jsonl", lines)
    else:
        path = write(tmp_path, "train.tsv", "words\nred  light\nblue\n")
    source = Source(path, ("words",), None, list_columns=("words",))
    found = read_rows(source, np.array([1, 0]), ["words"])
    assert found == {"words": ["blue", f"red{LIST_SEPARATOR}light"]}


def test_names_that_training_lacks_are_told(tmp_path, caplog):
    def file(name: str, *rows: tuple[str, str, str]) -> str:
        lines = "".join("\t".join(row) + "\n" for row in (("words", "tags", "kind"), *rows))
        return str(write(tmp_path, name, lines))

    train = file("train.tsv", ("a b", "O B-x", "ask"), ("c", "O", "tell"))
    test = file("test.tsv", ("a b", "B-x O", "ask"), ("b a", "O B-y", "do"), ("c", "I-x", "ask"))
    columns = Columns(
        ("words",), targets=("tags", "kind"), lists=("words", "tags"), named=("tags", "kind")
    )
    options = DataOptions(train=train, test=test, validation=train)
    dataset = read_dataset(options, columns, seed=0)
    assert dataset.names == {"tags": ("B-x", "O"), "kind": ("ask", "tell")}
    told = [record.getMessage().replace(f"{tmp_path}/", "") for record in caplog.records]
    lacks = "that train.tsv lacks, the first is row 2; such rows stay, and count as wrong."
    assert told == [
        f"test.tsv: 2 rows with a value of column 'tags' {lacks}",
        f"test.tsv: 1 row with a value of column 'kind' {lacks}",
    ]


def test_rows_of_a_text_file_have_the_name_of_the_text_column(tmp_path):
    source = Source(write(tmp_path, "train.txt", "one\n\ntwo\nthree\n"), ("line",), None)
    assert read_rows(source, np.array([2, 1]), ["line"]) == {"line": ["three", "two"]}
    with pytest.raises(InputError, match="no column 'id'; name one of 'line'\\.$"):
        read_rows(source, np.array([2, 1]), ["id"])


def test_rows_of_several_batches_and_nothing_after_the_last(tmp_path):
    lines = [json.dumps({"text": f"text {number}", "n": number}) for number in range(10_000)]
    path = write(tmp_path, "train.jsonl", "\n".join([*lines, "no JSON"]))
    wanted = np.random.default_rng(0).permutation(8_000)[:700]
    found = read_rows(Source(path, ("text",), None), wanted, ["n"])
    assert found["n"] == [str(number) for number in wanted]


def test_numbers_and_dates_of_parquet_read_as_strings(tmp_path):
    columns = {
        "text": ["red", "blue"],
        "score": [0.1, None],
        "good": [True, False],
        "when": pa.array([0, 1], pa.date32()),
        "list": [[1], [2]],
    }
    source = Source(write_parquet(tmp_path, columns), ("text",), None)
    assert read_rows(source, np.array([0, 1]), ["score", "good", "when"]) == {
        "score": ["0.1", ""],
        "good": ["true", "false"],
        "when": ["1970-01-01", "1970-01-02"],
    }
    with pytest.raises(InputError, match="column 'list' holds list<"):
        read_rows(source, np.array([0]), ["list"])


def test_wrong_columns_and_lost_rows_are_refused_in_one_line(tmp_path):
    path = write(tmp_path, "train.csv", ROWS_OF_A_FILE["csv"])
    source = Source(path, ("text",), "label")
    with pytest.raises(InputError) as caught:
        read_rows(source, np.array([0]), ["text", "nothing"])
    assert str(caught.value) == (
        f"{path}: no column 'nothing'; name one of 'id', 'text', 'price', 'label'."
    )
    with pytest.raises(InputError, match="3 rows, and row 5 is wanted: the file has changed"):
        read_rows(source, np.array([0, 4]), ["text"])


# One file for a trained model


def test_a_file_for_a_trained_model(tmp_path):
    path = write(tmp_path, "new.csv", "title,kind\nred,b\ngreen,a\n")
    options = DataOptions(train="gone.csv", text_column="title", label_column="kind")
    split = read_split(path, options, columns_of(options), ("a", "b", "c"))
    assert split.source == Source(path, ("title",), "kind")
    assert split.rows.tolist() == [0, 1]
    assert split.labels is not None and split.labels.tolist() == [1, 0]
    other = DataOptions(text_column="title")
    assert read_split(path, other, columns_of(other), ("a", "b")).labels is None
    assert read_split(path, options, columns_of(options, labelled=False), ()).labels is None


def test_a_label_that_training_did_not_have(tmp_path):
    path = write(tmp_path, "new.csv", "text,label\nred,a\ngreen,x\nblue,x\n")
    with pytest.raises(InputError) as caught:
        read_split(path, DataOptions(), columns_of(DataOptions()), ("a", "b"))
    assert str(caught.value) == (
        f"{path}: row 2, column 'label': the label 'x' is not in the training data (2 rows with "
        "such labels); correct them, or add training rows."
    )
