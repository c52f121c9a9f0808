"""python -m kbert.predict: files of every kind, killed and gone on, errors, texts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kbert
import train
from kbert import answer_files, predict
from kbert.answer_files import Parts, parts_folder
from kbert.predict import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> Path:
    """A run with an export, of a column `body`."""
    folder = tmp_path_factory.mktemp("predict")
    lines = tiny_csv.read_text(encoding="utf-8").replace("text,label", "body,label")
    (folder / "train.csv").write_text(lines, encoding="utf-8")
    options = {
        "--data.train": folder / "train.csv",
        "--data.text_column": "body",
        "--data.max_length": 12,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 1,
        "--train.learning_rate": 3e-3,
        "--monitor.tensorboard": "false",
        "--export.name": "moods",
        "--output": folder / "run",
    }
    assert train.main([str(word) for pair in options.items() for word in pair]) == 0
    return folder / "run"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CHUNK_ROWS", 4)


def bodies(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    words = ["the", "cat", "dogs", "good", "bad", ".", "好"]
    return [" ".join(generator.choice(words, size)) for size in generator.integers(0, 9, count)]


def write_rows(path: Path, texts: list[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "body", "label"])
        writer.writerows((f"{i:03}", text, "abc"[i % 3]) for i, text in enumerate(texts))
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def ask(run: Path, source: Path, output: Path, *words: str) -> int:
    return main([str(run), "--input", str(source), "--output", str(output), *words])


def refusal(capsys, *words: object) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.startswith("kbert.predict: ") and message.count("\n") == 1
    return message


@pytest.mark.usefixtures("small_chunks")
def test_every_kind_of_file_says_the_same(finished: Path, tmp_path: Path, capsys) -> None:
    source = write_rows(tmp_path / "rows.csv", bodies(11))
    for ending in ("csv", "jsonl", "parquet"):
        assert ask(finished, source, tmp_path / f"out.{ending}", "--keep", "id", "label") == 0
    assert f"written: {tmp_path / 'out.csv'}, 11 rows" in capsys.readouterr().out
    columns = ["row", "id", "label", "prediction", "p_negative", "p_positive"]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == columns
    assert table.schema.field("p_negative").type == pa.float32()
    rows = table.to_pylist()
    assert [row["row"] for row in rows] == list(range(1, 12))
    assert [row["id"] for row in rows] == [f"{i:03}" for i in range(11)]
    expected = kbert.load(finished).predict(bodies(11))
    assert [row["prediction"] for row in rows] == [row["label"] for row in expected]
    served = [row["probabilities"] for row in expected]
    found = [[row["p_negative"], row["p_positive"]] for row in rows]
    np.testing.assert_allclose(found, served, atol=1e-5)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    from_json = [json.loads(line) for line in lines]
    assert [list(row) for row in from_json] == [columns] * 11
    for row, other in zip(from_json, read_csv(tmp_path / "out.csv"), strict=True):
        assert {name: str(value) for name, value in row.items()} == other
    assert [[np.float32(row["p_negative"])] for row in from_json] == [[row[0]] for row in found]
    assert not list(tmp_path.glob("*.parts"))


def test_every_kind_of_input_says_the_same(finished: Path, tmp_path: Path) -> None:
    texts = [text for text in bodies(9) if text]
    rows = [{"body": text} for text in texts]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("\n".join(["body", *texts]), encoding="gb18030")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    write_rows(tmp_path / "a.csv", texts)
    found = set()
    for path in sorted(tmp_path.glob("a.*")):
        output = tmp_path / f"{path.suffix[1:]}.out.csv"
        words = ("--data.encoding", "gb18030") if path.suffix == ".tsv" else ()
        assert ask(finished, path, output, *words) == 0
        found.add(output.read_bytes())
    assert len(found) == 1 and len(read_csv(tmp_path / "csv.out.csv")) == len(texts)


def test_a_bare_export_gives_its_outputs(finished: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.csv", bodies(3))
    export = finished / "export" / "moods"
    words = ("--data.text_column", "body", "--keep", "label")
    assert ask(export, source, tmp_path / "out.csv", *words) == 0
    rows = read_csv(tmp_path / "out.csv")
    names = ["row", "input_label", "label", "label_index", "logits", "probabilities"]
    assert list(rows[0]) == names
    expected = kbert.load(export).predict(bodies(3))
    for row, answer in zip(rows, expected, strict=True):
        assert row["label"] == answer["label"]
        assert json.loads(row["probabilities"]) == pytest.approx(answer["probabilities"], abs=1e-5)
    assert [row["input_label"] for row in rows] == ["a", "b", "c"]


@pytest.mark.usefixtures("small_chunks")
def test_lists_of_any_length(exported_words, tmp_path: Path) -> None:
    """Parts whose lists are all empty have no type of their own."""
    texts = ["a cat"] * 4 + ["[MASK] sat", "a [MASK] ran [MASK]"]
    (tmp_path / "rows.txt").write_text("\n".join(texts), encoding="utf-8")
    for ending in ("parquet", "csv", "jsonl"):
        assert ask(exported_words[2], tmp_path / "rows.txt", tmp_path / f"out.{ending}") == 0
    tokens = pq.read_table(tmp_path / "out.parquet").column("token").to_pylist()
    assert [len(masks) for masks in tokens] == [0, 0, 0, 0, 1, 2]
    assert [json.loads(row["token"]) for row in read_csv(tmp_path / "out.csv")] == tokens
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["token"] for line in lines] == tokens


def test_killed_at_any_moment_it_goes_on_to_the_same_file(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = bodies(41)
    source = write_rows(tmp_path / "rows.csv", texts)
    monkeypatch.setattr(predict, "CHUNK_ROWS", 2)
    for name in ("whole.csv", "whole.parquet"):
        assert ask(finished, source, tmp_path / name) == 0
    slow = (  # time enough to be killed in, between any two parts
        "import sys, time; from kbert import predict, answer_files as files;"
        "predict.CHUNK_ROWS = 2; write = files.Parts.write;"
        "files.Parts.write = lambda *words: (write(*words), time.sleep(0.05));"
        "sys.exit(predict.main(sys.argv[1:]))"
    )
    output = tmp_path / "out.csv"
    command = [sys.executable, "-c", slow, str(finished)]
    command += ["--input", str(source), "--output", str(output)]
    for wanted in (1, 7):
        process = subprocess.Popen(command, cwd=ROOT)
        while len(list(parts_folder(output).glob("*.arrow"))) < wanted:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
    kept = list(parts_folder(output).glob("*.arrow"))
    assert 7 <= len(kept) < 21
    # what is there is not computed again, and is what makes the file of any kind
    shutil.copytree(parts_folder(output), parts_folder(tmp_path / "out.parquet"))
    for path in (output, tmp_path / "out.parquet"):
        with monkeypatch.context() as patch:
            written: list[int] = []
            patch.setattr(Parts, "write", recording(written))
            assert ask(finished, source, path) == 0
        assert len(written) == 21 - len(kept)
        assert path.read_bytes() == (tmp_path / f"whole{path.suffix}").read_bytes()
        assert not parts_folder(path).exists()


def recording(starts: list[int]):
    """`Parts.write` that tells which parts it wrote."""
    write = Parts.write

    def recorded(parts: Parts, start: int, columns: dict) -> None:
        starts.append(start)
        write(parts, start, columns)

    return recorded


class Killed(BaseException):
    pass


@pytest.mark.usefixtures("small_chunks")
def test_killed_while_the_file_is_made(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    source, output = write_rows(tmp_path / "rows.csv", bodies(6)), tmp_path / "out.csv"

    def killed(path: Path, *_: object) -> None:
        path.write_text("half a file", encoding="utf-8")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(answer_files._WRITERS, ".csv", killed)
        with pytest.raises(Killed):
            ask(finished, source, output)
    assert not output.exists()
    replace = os.replace

    def killed_before(source: Path, target: Path) -> None:
        if target == output:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_before)
        with pytest.raises(Killed):
            ask(finished, source, output)
    assert not output.exists()

    def killed_amid(parts: Parts) -> None:
        next(parts.folder.glob("*.arrow")).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "remove", killed_amid)
        with pytest.raises(Killed):
            ask(finished, source, output)
    before = output.read_bytes()
    monkeypatch.setattr(Parts, "write", killed)  # nothing is computed again
    assert ask(finished, source, output) == 0
    assert output.read_bytes() == before and len(read_csv(output)) == 6
    assert not parts_folder(output).exists()
    message = refusal(capsys, finished, "--input", source, "--output", output)
    assert "out.csv: it is there already; remove it or name another" in message


@pytest.mark.usefixtures("small_chunks")
def test_parts_of_something_else_are_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    source, output = write_rows(tmp_path / "rows.csv", bodies(6)), tmp_path / "out.csv"
    monkeypatch.setattr(Parts, "join", lambda self: None)
    monkeypatch.setattr(Parts, "remove", lambda self: None)
    assert ask(finished, source, output) == 0
    command = [finished, "--input", source, "--output", output]
    message = refusal(capsys, *command, "--keep", "id")
    assert "out.csv.parts: begun with another keep; begin anew by removing this folder" in message
    message = refusal(capsys, *command, "--batch_size", "8", "--data.text_column", "label")
    assert "another input and another batch_size" in message
    export = finished / "export" / "moods"
    words = ["--data.text_column", "body"]
    message = refusal(capsys, export, *map(str, command[1:]), *words)
    assert "begun with another model" in message
    write_rows(source, bodies(7))
    assert "begun with another input" in refusal(capsys, *command)


def test_only_one_process_writes(finished: Path, tmp_path: Path, capsys) -> None:
    from kbert.answer_files import parts_of

    source, output = write_rows(tmp_path / "rows.csv", bodies(3)), tmp_path / "out.csv"
    with parts_of(output, {}, lambda: 3):
        message = refusal(capsys, finished, "--input", source, "--output", output)
    assert "out.csv: another process is writing it" in message


def test_bad_rows_are_named_before_anything_is_computed(
    finished: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a part was written")

    monkeypatch.setattr(Parts, "write", never)
    output, source = tmp_path / "out.csv", tmp_path / "rows.csv"
    command = [finished, "--input", source, "--output", output]
    write_rows(source, [*bodies(9), "a\0b"])
    assert "rows.csv: row 10, column 'body': a NUL byte" in refusal(capsys, *command)
    write_rows(source, bodies(3))
    source.write_bytes(source.read_bytes() + b"9,\xff,a\n")
    assert "rows.csv: line 5, byte" in refusal(capsys, *command)
    source.write_text("body,id\n", encoding="utf-8")
    assert "the file has no rows" in refusal(capsys, *command)
    source.write_text("id,id\n1,2\n", encoding="utf-8")
    assert "no column 'body'; name one of 'id', 'id' by --data.text" in refusal(capsys, *command)
    write_rows(source, bodies(3))
    assert "no column 'x'; name one of" in refusal(capsys, *command, "--keep", "x")
    words = ["--data.text_column", "[id, body]"]
    assert "name 1 by --data.text_column" in refusal(capsys, *command, *words)
    message = refusal(capsys, *command, "--data.encoding", "utf-99")
    assert "--data.encoding: unknown encoding 'utf-99'" in message
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_wrong_names_of_files(tmp_path: Path, capsys) -> None:
    """Told before TensorFlow is imported, and before the run is looked at."""
    source = write_rows(tmp_path / "rows.csv", bodies(3))
    command = [tmp_path / "none", "--input"]
    message = refusal(capsys, *command, tmp_path / "no.csv", "--output", "o.csv")
    assert "no.csv: there is no such file; correct --input." in message
    message = refusal(capsys, *command, source, "--output", tmp_path / "out.xlsx")
    assert "out.xlsx: unknown extension '.xlsx'; use .parquet, .csv, .jsonl" in message
    message = refusal(capsys, *command, source, "--output", tmp_path / "no" / "out.csv")
    assert "there is no folder" in message
    message = refusal(capsys, *command, source, "--output", source)
    assert "rows.csv: it is there already" in message
    message = refusal(capsys, *command, source, "--output", tmp_path / "out.csv")
    assert "none: there is no such folder" in message
    for words in (["x"], ["x", "a", "--input", "b"], ["x", "a", "--output", "b"]):
        with pytest.raises(SystemExit):
            main(words)


def test_texts_on_the_terminal(finished: Path, exported_pairs, capsys) -> None:
    assert main([str(finished), "the good cat", "a bad dog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["the good cat", "a bad dog"]
    answer = kbert.load(finished).predict(["the good cat"])[0]
    assert lines[1] == f"  prediction: {answer['label']}"
    assert lines[2:4] == [
        f"  p_{name}: {value:.4f}"
        for name, value in zip(("negative", "positive"), answer["probabilities"], strict=True)
    ]
    assert main([str(exported_pairs[2]), "the cat\tran"]) == 0
    assert capsys.readouterr().out.startswith("the cat | ran\n  label: ")
    assert "row 1 has 1 texts, the model takes 2" in refusal(capsys, exported_pairs[2], "a")


def test_a_long_answer_is_shortened() -> None:
    answer = {"prediction": "c7", **{f"p_{i}": i / 100 for i in range(30)}}
    lines = predict._lines(answer)
    assert lines[:2] == ["prediction: c7", "p_29: 0.2900"]
    assert lines[-2:] == ["p_25: 0.2500", "and 25 smaller"]
    shown = predict._lines({"embedding": [0.5] * 384, "token": [["a", "b"], ["c"]]})
    assert shown[0].endswith("0.5000, and 374 more")
    assert shown[1] == "token: [a, b], [c]"


def test_masked_words(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("the cat sat .\na dog ran .\n" * 20, encoding="utf-8")
    words = ["--task", "masked_lm", "--data.train", lines, "--output", tmp_path / "run"]
    words += ["--data.max_length", 12, "--data.cache_dir", tmp_path / "cache", "--smoke"]
    words += ["--model.checkpoint", tiny_checkpoint, "--export.enabled", "false"]
    assert train.main([str(word) for word in words]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "the [MASK] sat"]) == 0
    assert "  token: [" in capsys.readouterr().out
    message = refusal(capsys, tmp_path / "run", "the [MASK]", "a cat")
    assert message == (
        "kbert.predict: text 2: no [MASK] in the text; write one for each word piece to fill in.\n"
    )
    lines.write_text("a [MASK]\na cat\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    message = refusal(capsys, tmp_path / "run", "--input", lines, "--output", output)
    assert "lines.txt: row 2: no [MASK] in the text" in message
    lines.write_text("a [MASK]\n[MASK] cat [MASK]\n", encoding="utf-8")
    assert ask(tmp_path / "run", lines, output) == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [len(row["token"]) for row in rows] == [1, 2]


def test_help_is_quick() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "kbert.predict", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--keep COLUMN" in process.stdout
    assert "tensorflow" not in process.stderr and "pyarrow" not in process.stderr
