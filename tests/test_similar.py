"""Nearest neighbours against a plain sort, files of texts, and the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.errors import InputError
from kbert.sentence_encoder import file_vectors, load_sentence_encoder
from kbert.similar import main, nearest, similarity
from kbert.text_files import open_texts

pytestmark = pytest.mark.usefixtures("no_cache")
TEXTS = ("the cat sat", "a dog ran .", "good dogs", "the cats sat", "", "bad .")


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    path = tmp_path / "faq.csv"
    lines = ["number,question", *(f"{row},{text}" for row, text in enumerate(TEXTS))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@given(
    rows=st.integers(1, 40),
    queries=st.integers(1, 3),
    top=st.integers(1, 45),
    block=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_nearest_is_a_plain_sort(rows: int, queries: int, top: int, block: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    # whole numbers, so that some are the same and some are zeros
    vectors = generator.integers(-1, 2, (rows, 3)).astype("float32")
    asked = generator.normal(size=(queries, 3)).astype("float32")
    found, cosines = nearest(vectors, asked, top=top, block_rows=block)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked, axis=1)[:, np.newaxis]
    theirs = asked.astype("float64") @ vectors.T / np.maximum(lengths, 1e-12)
    assert found.shape == cosines.shape == (queries, min(top, rows))
    np.testing.assert_allclose(cosines, -np.sort(-theirs, axis=1)[:, :top], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(theirs, found, axis=1), cosines, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in found.tolist())


def test_equal_vectors_come_in_their_order() -> None:
    found, _ = nearest(np.ones((7, 2), "float32"), np.ones((1, 2), "float32"), top=4, block_rows=3)
    assert found.tolist() == [[0, 1, 2, 3]]


def test_vectors_do_not_depend_on_their_company(tiny_checkpoint: Path) -> None:
    encoder = load_sentence_encoder(tiny_checkpoint)
    together = encoder(TEXTS)
    assert together.shape == (6, 12) and encoder([]).shape == (0, 12)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder([text])[0], vector, atol=1e-5)


def test_vectors_of_a_file_are_kept(faq: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    encoder = load_sentence_encoder(tiny_checkpoint)
    source = open_texts(faq, ("question",), encoding="utf-8")
    told: list[int] = []
    options = {"rows": 6, "cache_dir": str(tmp_path / "kept"), "report": told.append}
    first = file_vectors(encoder, source, **options)
    np.testing.assert_allclose(first, encoder(TEXTS), atol=1e-6)
    assert told == [6]
    np.testing.assert_array_equal(file_vectors(encoder, source, **options), first)
    assert told == [6]  # nothing was computed
    bias = encoder.model.weights[-1]
    bias.assign(bias + 1)
    file_vectors(encoder, source, **options)
    assert told == [6, 6]  # another model
    assert len(list((tmp_path / "kept" / "vectors").iterdir())) == 2


def test_checkpoints_files_count(minilm: Path) -> None:
    encoder = load_sentence_encoder(minilm)
    assert encoder.packer.max_length == 256
    vectors = encoder(["A cat sat.", "The cat is sitting.", "Shares fell."])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert similarity(minilm, "A cat sat.", "The cat is sitting.") == pytest.approx(
        float(vectors[0] @ vectors[1]), abs=1e-6
    )
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > vectors[0] @ vectors[2]


def test_two_texts(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_checkpoint), "the cat sat", "the cat sat"]) == 0
    assert capsys.readouterr().out == "1.0000\n"


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_rows_nearest_to_queries(
    faq: Path, tiny_checkpoint: Path, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"found.{ending}"
    words = [str(tiny_checkpoint), "--texts", str(faq), "--data.text_column", "question"]
    queries = ["--query", "good dogs", "the cat sat", "--top", "2", "--output", str(path)]
    assert main([*words, *queries]) == 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file)) if ending == "csv" else list(map(json.loads, file))
    assert [(row["query"], int(row["rank"])) for row in rows] == [
        ("good dogs", 1), ("good dogs", 2), ("the cat sat", 1), ("the cat sat", 2),
    ]  # fmt: skip
    assert [(int(row["row"]), row["text"]) for row in rows[::2]] == [
        (3, "good dogs"), (1, "the cat sat"),
    ]  # fmt: skip
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)


def test_table(faq: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tiny_checkpoint), "--texts", str(faq), "--data.text_column", "question"]
    assert main([*words, "--query", "bad .", "--top", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("nearest to: bad ." in line for line in lines)
    assert sum(any(text and text in line for text in TEXTS) for line in lines) >= 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one"], "two texts are compared, received 1"),
        (["one", "two", "--query", "q"], "--query needs a file"),
        (["--texts", "faq.csv"], "--query is missing"),
        (["one", "--texts", "faq.csv", "--query", "q"], "leave the other texts out"),
        (["--texts", "faq.csv", "--query", "q", "--top", "0"], "--top must be at least 1"),
        (["--texts", "faq.csv", "--query", "q", "--output", "a.xls"], "ends in .jsonl or .csv"),
        (["--texts", "none.csv", "--query", "q"], "there is no such file; correct --texts"),
        (["--texts", "faq.csv", "--query", "q"], "no column 'text'; name one of"),
    ],
)
def test_what_is_not_clear_is_one_line(
    faq: Path,
    tiny_checkpoint: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(faq.parent)
    assert main([str(tiny_checkpoint), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_runs_make_no_vectors(tmp_path: Path) -> None:
    options = "data: {train: a.csv}\nmodel: {vocab: v.txt}\ntask: {name: classification}\n"
    (tmp_path / "config.yaml").write_text(f"{options}output: run\n", encoding="utf-8")
    (tmp_path / "metrics.json").write_text('{"train": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="the task classification, which makes no vectors"):
        load_sentence_encoder(tmp_path)
