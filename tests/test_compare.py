"""Finished runs side by side: tables, paired tests, and what is refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kbert.compare import main
from kbert.config import as_dict, parse

ROOT = Path(__file__).resolve().parents[1]
LABELS = ["negative", "positive"]
BASELINE = {
    "accuracy": 0.7,
    "f1_macro": 0.65,
    "log_loss": 0.61,
    "rows": 40,
    "intervals": {"accuracy": [0.6, 0.8]},
}


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the folder of a finished run of 40 test rows, the last `wrong` of them wrong."""
    monkeypatch.chdir(tmp_path)

    def write(
        name: str,
        *words: str,
        wrong: int = 0,
        task: str = "classification",
        digest: str = "a",
        rows: range = range(1, 41),
        **test: object,
    ) -> Path:
        folder = Path(name)
        assets = folder / "export" / "news" / "1" / "assets.extra"
        assets.mkdir(parents=True)
        given = ["--task", task, "--data.train", "texts.csv", "--model.checkpoint", "bert"]
        options = as_dict(parse([*given, "--output", name, *words]))
        (folder / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        accuracy = 1 - wrong / len(rows)
        figures = {"accuracy": accuracy, "f1_macro": accuracy, "loss": 0.25, "rows": len(rows)}
        train = {"seconds": 61.4, "examples_per_second": 123.45, "learning_rate": 5e-5}
        metrics = {"validation": {"rows": 5}, "test": {**figures, **test}, "train": train}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        lineage = {"data": {"test": {"sha256": digest}}}
        (assets / "lineage.json").write_text(json.dumps(lineage), encoding="utf-8")
        if task == "classification":
            write_predictions(folder, rows, wrong)
        return folder

    return write


def write_predictions(folder: Path, rows: range, wrong: int) -> None:
    labels = [LABELS[row % 2] for row in rows]
    predictions = [LABELS[(row + (row > rows[-1] - wrong)) % 2] for row in rows]
    with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "label", "prediction", "p_negative", "p_positive"])
        writer.writerows(zip(rows, labels, predictions, rows, rows, strict=True))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def table(text: str) -> list[list[str]]:
    """Cells of the printed table, columns being at least two spaces apart."""
    lines = text.split("\n\n")[0].splitlines()
    found = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return [cells for cells in found if cells and not cells[0].startswith("─")]


def test_a_run_is_better(write_run: Callable, capsys) -> None:
    write_run("A", wrong=14)
    write_run("B", "--train.epochs", "5", wrong=2)
    assert main(["A", "B"]) == 0
    text = capsys.readouterr().out
    assert table(text) == [
        ["run", "task", "checkpoint", "epochs", "rows", "accuracy", "f1 macro", "log loss",
         "seconds", "rows/s"],
        ["A", "classification", "bert", "3", "40 test", "0.6500", "0.6500", "0.2500",
         "61", "123.5"],
        ["B", "classification", "bert", "5", "40 test", "0.9500", "0.9500", "0.2500",
         "61", "123.5"],
    ]  # fmt: skip
    assert "B and A, 40 test rows: both right 26, only A 0, only B 12, both wrong 2" in text
    # exact: 2 * 0.5**12; the interval is about 0.3 +- 1.96 * sqrt(0.3 * 0.7 / 40)
    assert "B is better by 30.0 points (17.5 to 45.0), p < 0.001: unlikely to be luck" in text


def test_the_first_run_is_better_by_little(write_run: Callable, capsys) -> None:
    write_run("A", wrong=1)
    write_run("B", wrong=3)
    write_run("C", wrong=1)
    assert main(["A", "B", "C"]) == 0
    text = capsys.readouterr().out
    assert "B and A, 40 test rows: both right 37, only A 2, only B 0, both wrong 1" in text
    assert "A is better by 5.0 points (0.0 to 12.5), p = 0.5: may well be luck" in text
    assert "C and A are right equally often (0.0 to 0.0), p = 1" in text
    assert "C and B" not in text


def test_intervals_and_baselines(write_run: Callable, capsys) -> None:
    found = {"intervals": {"accuracy": [0.8, 0.99], "log_loss": [0.1, 0.3], "f1_macro": None},
             "log_loss": 0.2, "baseline": BASELINE,
             "paired": {"only_ours": 12, "only_baseline": 2, "p_value": 0.0129}}  # fmt: skip
    write_run("A", wrong=2, **found)
    write_run("B", wrong=3, baseline={**BASELINE, "intervals": None, "accuracy": 0.95},
              paired={"only_ours": 3, "only_baseline": 4, "p_value": 1.0})  # fmt: skip
    write_run("C", wrong=4, **{**found, "paired": {}})
    write_run("D", wrong=4)
    assert main(["A", "B", "C", "D", "--json", "all.json"]) == 0
    text = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for cells in table(text)}
    assert rows["A"][3:6] == ["0.9500 (0.8000 to 0.9900)", "0.9500", "0.2000 (0.1000 to 0.3000)"]
    assert rows["linear model of A, C"] == [
        "40 test", "0.7000 (0.6000 to 0.8000)", "0.6500", "0.6100",
    ]  # fmt: skip
    assert rows["linear model of B"] == ["40 test", "0.9500", "0.6500", "0.6100"]
    assert "A is better than its linear model by 25.0 points, p = 0.013: unlikely to be" in text
    assert "B is worse than its linear model by 2.5 points, p = 1: may well be luck" in text
    content = json.loads(Path("all.json").read_text(encoding="utf-8"))
    assert [run["run"] for run in content["runs"]] == ["A", "B", "C", "D"]
    assert content["runs"][0]["accuracy"] == {"value": 0.95, "interval": [0.8, 0.99]}
    assert content["runs"][0]["against_baseline"]["only_ours"] == 12
    assert [of["runs"] for of in content["baselines"]] == [["A", "C"], ["B"]]
    assert [(of["first"], of["run"]) for of in content["pairs"]] == [
        ("A", "B"), ("A", "C"), ("A", "D"),
    ]  # fmt: skip
    pair = content["pairs"][2]
    assert (pair["both_right"], pair["only_first"], pair["only_run"], pair["both_wrong"]) == (
        36, 2, 0, 2,
    )  # fmt: skip
    assert pair["difference"] == pytest.approx(-0.05)


def test_one_baseline_of_all(write_run: Callable, capsys) -> None:
    write_run("A", baseline=BASELINE)
    write_run("B", baseline=BASELINE)
    assert main(["A", "B"]) == 0
    assert [cells[0] for cells in table(capsys.readouterr().out)] == [
        "run", "A", "B", "linear model",
    ]  # fmt: skip


def test_options_that_a_search_has_found(write_run: Callable, capsys) -> None:
    write_run("A", "--train.warmup", "0.2")
    folder = write_run("B", "--search.tuner", "random", "--model.checkpoint", "/some/mini/bert")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["search"] = {"winner": {"hyperparameters": {"weight_decay": 0.05, "batch_size": 16}}}
    metrics["train"] |= {"batch_size": 16, "seed": 2}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert main(["A", "B"]) == 0
    head, first, second, *_ = table(capsys.readouterr().out)
    assert head[2:9] == [
        "checkpoint", "batch_size", "warmup", "weight_decay", "seed", "tuner", "rows",
    ]  # fmt: skip
    assert first[2:8] == ["bert", "32", "0.2", "0.01", "0", "none"]
    assert second[2:8] == ["mini/bert", "16", "0.1", "0.05", "2", "random"]


def test_old_runs(write_run: Callable, capsys) -> None:
    """They lack options, intervals, the baseline and seconds; a search was a list of trials."""
    write_run("A")
    folder = write_run("B", "--train.layer_decay", "0.9")
    options = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    del options["train"]["layer_decay"], options["search"]["seeds"], options["monitor"]
    (folder / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    old = {"search": [{"trial": "0"}], "test": {"accuracy": 0.5}, "train": {}}
    (folder / "metrics.json").write_text(json.dumps(old), encoding="utf-8")
    for path in folder.glob("export/*/*/assets.extra/lineage.json"):
        path.unlink()
    assert main(["A", "B"]) == 0
    text = capsys.readouterr().out
    head, _, second = table(text)
    assert "layer_decay" not in head
    assert second == ["B", "classification", "bert", "test", "0.5000"]
    assert "p = 1" in text


def test_tasks_without_predictions(write_run: Callable, capsys) -> None:
    write_run("A", task="masked_lm")
    write_run("B", task="masked_lm", wrong=1)
    write_run("C")
    assert main(["A", "B"]) == 0
    text = capsys.readouterr().out
    assert len(table(text)) == 3
    assert "paired" not in text and "B and A" not in text
    assert main(["A", "C"]) == 0
    assert "C and A: no paired test: A has no predictions.csv" in capsys.readouterr().out


def test_validation_where_no_test_row_has_a_label(write_run: Callable, capsys) -> None:
    folder = write_run("A")
    metrics = {"validation": {"accuracy": 0.75, "rows": 8}, "test": {}, "train": {}}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    lines = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    unlabelled = [",".join([*line.split(",")[:1], *line.split(",")[2:]]) for line in lines]
    (folder / "predictions.csv").write_text("\n".join(unlabelled), encoding="utf-8")
    write_run("B")
    assert main(["A", "B"]) == 0
    text = capsys.readouterr().out
    assert table(text)[1][3:5] == ["8 validation", "0.7500"]
    assert "no paired test: the test rows of A have no labels" in text


def test_other_test_rows(write_run: Callable, capsys) -> None:
    write_run("A")
    write_run("file", digest="b")
    write_run("fewer", rows=range(1, 31))
    write_run("others", rows=range(3, 43))
    change(write_run("labels") / "predictions.csv", "5,positive", "5,other")
    assert main(["A", "file", "fewer", "others", "labels"]) == 0
    text = capsys.readouterr().out
    for line in (
        "file and A: no paired test: their test files differ (SHA-256 in the lineage",
        "fewer and A: no paired test: A has 40 test rows, fewer 30",
        "others and A: no paired test: their test rows are others: where A has row 1 of its "
        "file, others has row 3",
        "labels and A: no paired test: their test rows are others: row 5 has the labels "
        "'positive' and 'other'",
    ):
        assert line in text
    assert "McNemar" not in text


def test_labels_are_texts(write_run: Callable, capsys) -> None:
    for name in ("A", "B"):
        path = write_run(name) / "predictions.csv"
        text = path.read_text(encoding="utf-8").replace("positive", "007")
        text = text.replace("p_negative", '"p_a\nb, NA"').replace("negative", '"a\nb, NA"')
        path.write_text(text, encoding="utf-8")
    change(Path("B") / "predictions.csv", "007,007", "007,7")
    assert main(["A", "B"]) == 0
    assert "both right 39, only A 1, only B 0, both wrong 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "B: no run (no config.yaml)"),
        ("metrics.json", None, "B: the run is not finished (no metrics.json)"),
        ("config.yaml", "- [", "config.yaml: not a YAML file"),
        ("config.yaml", "a list", "config.yaml: holds no options, but str"),
        ("config.yaml", b"\xff", "config.yaml: not UTF-8"),
        ("metrics.json", "{", "metrics.json: not JSON ("),
        ("metrics.json", "[]", "metrics.json: must hold a JSON object"),
        ("predictions.csv", "", "predictions.csv: cannot be read"),
        ("predictions.csv", "row,label,prediction\n", "predictions.csv: not the predictions"),
        ("predictions.csv", "a,b\n1,2\n", "predictions.csv: not the predictions"),
        ("predictions.csv", "row,prediction\nx,a\n", "predictions.csv: cannot be read"),
        ("export/news/1/assets.extra/lineage.json", "{", "lineage.json: not JSON"),
    ],
)
def test_bad_input_is_one_line(
    write_run: Callable, file: str, content: str | bytes | None, message: str, capsys
) -> None:
    write_run("A")
    path = write_run("B") / file
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["A", "B"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("kbert.compare: ")
    assert message in error
    assert error.count("\n") == 1
    assert main(["A", "B", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_folder_for_json_that_is_missing(write_run: Callable, capsys) -> None:
    write_run("A")
    write_run("B")
    assert main(["A", "B", "--json", "none/all.json"]) == 2
    assert capsys.readouterr().err == (
        "kbert.compare: --json none/all.json: No such file or directory.\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: RUN"),
        (["A"], "name two runs or more"),
        (["A", "B", "./A"], "./A is named twice"),
        (["A", "B", "--j", "x"], "unknown flag: --j"),
    ],
)
def test_wrong_flags(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_is_quick() -> None:
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "kbert.compare", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0
    assert "--json FILE" in process.stdout
    assert time.monotonic() - began < 5  # a tenth of a second where nothing else runs


def test_no_tensorflow(write_run: Callable) -> None:
    folders = [str(write_run(name).resolve()) for name in ("A", "B")]
    code = (
        f"import sys; from kbert.compare import main; main({folders}); "
        "print({'tensorflow', 'keras', 'sklearn', 'torch'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "set()", process.stderr
