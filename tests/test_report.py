"""report.html: what it says of a run, and how it behaves in a real browser that is offline."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kbert.monitor import EventFile, scalar
from kbert.report import island, main, printable, write_report
from kbert.report_texts import fitting_rows, highlighted
from kbert.report_view import Run, data, metrics

CHROMIUM = Path("/usr/bin/chromium")
NEWS = ("business", "entertainment", "politics", "sports", "tech")
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "\"'`{{ 7 * 7 }}{% raw %} \x00 <!-- & &amp; \u2028 \ud800 \u202e ]]> "
    "<svg onload=window.hacked=3>"
)
SENTENCES = {
    "business": "Shares in the bank fell after it cut its forecast of profits for the year",
    "entertainment": "The film won three awards at a festival where its director was honoured",
    "politics": "The minister told parliament that the vote on the bill would be in spring",
    "sports": "The champion won the match in two sets and plays the final on Sunday",
    "tech": "The new phone has a faster chip and software that learns what its user types",
}


# A run folder by hand


def classes_report(labels: tuple[str, ...], gold: np.ndarray, predicted: np.ndarray) -> dict:
    """What metrics.json has of a split, the probability figures made up."""
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (gold, predicted), 1)
    accuracy = float(np.mean(gold == predicted))
    names = ("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "matthews",
             "roc_auc", "pr_auc")  # fmt: skip
    figures = {name: accuracy - 0.003 * place for place, name in enumerate(names)}
    figures |= {"log_loss": 0.21, "loss": 0.21, "brier": 0.11, "ece": 0.034, "rows": len(gold)}
    per_class = {}
    for index, label in enumerate(labels):
        hits, rows = int(counts[index, index]), int(counts[index].sum())
        precision, recall = hits / max(1, int(counts[:, index].sum())), hits / max(1, rows)
        f1 = 2 * precision * recall / ((precision + recall) or 1)
        figures_of_class = {"precision": precision, "recall": recall, "f1": f1, "roc_auc": None}
        per_class[label] = {**figures_of_class, "rows": rows}
    intervals = {name: [value - 0.02, value + 0.015] for name, value in figures.items()
                 if name != "rows"}  # fmt: skip
    return {
        **figures,
        "per_class": per_class,
        "confusion_matrix": counts.tolist(),
        "labels": list(labels),
        "intervals": intervals,
    }


def analysis_row(place: int, texts: list[str], gold: int, predicted: int) -> dict[str, Any]:
    right = gold == predicted
    return {
        "row": place + 1,
        "texts": texts,
        "label": gold,
        "prediction": predicted,
        "probability": 0.93,
        "label_probability": 0.93 if right else 0.01,
        "loss": 0.07 if right else 4.6 + 0.01 * (place % 37),
        "baseline": gold if place % 3 else predicted,
    }


def pieces(text: str) -> list[list[Any]]:
    """A text in words with made-up scores."""
    words = text.split(" ")
    last = len(words) - 1
    return [
        [word + (" " if index < last else ""), round(0.9 * np.sin(2.3 * index), 3)]
        for index, word in enumerate(words)
    ]


class Recipe:
    """What a run is made of; `write` puts it into a folder."""

    def __init__(
        self,
        *,
        labels: tuple[str, ...] = NEWS,
        columns: tuple[str, ...] = ("text",),
        rows: int = 212,
        wrong: int = 14,
        text: Callable[[int, int], str] | None = None,
        name: str = "news",
    ) -> None:
        generator = np.random.default_rng(0)
        self.labels, self.columns, self.name = labels, columns, name
        self.gold = generator.integers(len(labels), size=rows)
        self.predicted = self.gold.copy()
        for place in generator.choice(rows, wrong, replace=False):
            self.predicted[place] = (self.gold[place] + 1 + place % 2) % len(labels)
        self.baseline = self.gold.copy()
        self.baseline[generator.choice(rows, min(rows, 2 * wrong), replace=False)] = 0
        self.text = text or (lambda place, label: f"{SENTENCES[labels[label]]} ({place}).")
        self.paired = {"only_ours": 21, "only_baseline": 6, "p_value": 0.0059}

    def config(self, folder: Path) -> dict[str, Any]:
        column = self.columns[0] if len(self.columns) == 1 else list(self.columns)
        return {
            "task": {"name": "classification", "label_smoothing": 0.0},
            "data": {"train": "data/articles.csv", "validation": None, "test": None,
                     "text_column": column, "max_length": 128},
            "model": {"checkpoint": "sentence-transformers/all-MiniLM-L6-v2"},
            "train": {"epochs": 3, "learning_rate": 1e-4},
            "export": {"enabled": True, "name": self.name, "version": 1},
            "output": str(folder),
        }  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        figures = classes_report(self.labels, self.gold, self.predicted)
        figures["baseline"] = classes_report(self.labels, self.gold, self.baseline)
        figures["paired"] = self.paired
        figures["calibration"] = {
            "temperature": 1.42, "applied": True, "ece_before": 0.034, "ece_after": 0.012,
            "log_loss_before": 0.21, "log_loss_after": 0.19,
        }  # fmt: skip
        history = [
            {"loss": 0.9 / epoch, "accuracy": 1 - 0.3 / epoch, "f1_macro": 1 - 0.32 / epoch,
             "val_loss": 0.7 / epoch + 0.05 * epoch, "val_accuracy": 1 - 0.25 / epoch,
             "val_f1_macro": 1 - 0.27 / epoch}
            for epoch in range(1, 6)
        ]  # fmt: skip
        train = {"rows": 1701, "epochs": 5, "best_epoch": 4, "history": history, "seconds": 1234.0,
                 "peak_memory_bytes": 2_345_678_901, "examples_per_second": 71.3,
                 "learning_rate": 1e-4, "batch_size": 32, "seed": 0}  # fmt: skip
        return {"validation": figures, "test": figures, "train": train}

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for place, (gold, predicted) in enumerate(zip(self.gold, self.predicted, strict=True)):
            texts = [self.text(place, int(gold)) for _ in self.columns]
            found.append(analysis_row(place, texts, int(gold), int(predicted)))
        return found

    def analysis(self) -> dict[str, Any]:
        rows = self.rows()
        wrong = [row for row in rows if row["label"] != row["prediction"]]
        counts = np.bincount(self.gold, minlength=len(self.labels))
        edges = np.linspace(0, 1, 16)
        reliability = {"edges": edges.tolist(), "confidence": (edges[:-1] + 1 / 30).tolist(),
                       "accuracy": (edges[:-1] ** 0.8).tolist(),
                       "counts": [3 + index**2 for index in range(15)], "ece": 0.034}  # fmt: skip
        of_length = [
            {"slice": f"{low}-{low + 31} pieces", "rows": 40 + low, "accuracy": 0.9 + low / 1e3,
             "f1_macro": 0.88, "baseline_accuracy": 0.87}
            for low in (1, 33, 65, 97)
        ]  # fmt: skip
        return {
            "split": "test",
            "columns": list(self.columns),
            "labels": list(self.labels),
            "label_counts": {"train": (8 * counts + 5).tolist(), "validation": counts.tolist(),
                             "test": counts.tolist()},
            "lengths": {"edges": [*range(0, 325, 13)],
                        "counts": [int(200 * np.exp(-((x - 6) ** 2) / 40)) for x in range(24)],
                        "max_length": 128, "truncated": {"train": 412, "test": 51},
                        "rows": {"train": 1701, "validation": 212, "test": len(rows)}},
            "duplicates": {"train": 3, "train/test": 1, "validation": 0},
            "rows": rows,
            "mistakes": [
                {**row, "words": [pieces(text) for text in row["texts"]]}
                for row in sorted(wrong, key=lambda row: -row["loss"])[:50]
            ],
            "attribution": "integrated gradients of the predicted class's logit on the embeddings "
            "(32 steps)",
            "label_errors": [
                {"split": "test", "row": row["row"], "texts": row["texts"], "label": row["label"],
                 "suggested": row["prediction"], "probability": 0.97}
                for row in wrong[:7]
            ],
            "reliability": reliability,
            "reliability_after": {**reliability, "ece": 0.012,
                                  "accuracy": (edges[:-1] + 0.03).tolist()},
            "slices": {"length": of_length, "label": of_length[:2]},
        }  # fmt: skip

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        config = yaml.safe_dump(self.config(folder), sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        write_json(folder / "metrics.json", self.metrics())
        write_json(folder / "analysis.json", self.analysis())
        saved = folder / "export" / self.name / "1"
        write_json(saved / "assets.extra" / "lineage.json", made_of(self.name, len(self.gold)))
        (saved / "saved_model.pb").write_bytes(bytes(91_234_567 // 1000))
        curves = folder / "tensorboard" / f"{self.name}-1"
        for line in ("train", "validation"):
            file = EventFile(curves / line)
            for step in range(10, 260, 10):
                values = [scalar("loss", 2 / step**0.5), scalar("learning_rate", 1e-4 / step)]
                file.write(values, step=step)
        return folder


def made_of(name: str, rows: int) -> dict[str, Any]:
    """A lineage.json."""
    file = {"file": "articles.csv", "sha256": 8 * "ab12cd34"}
    return {
        "format": 1,
        "run": f"{name}-1",
        "created": "2026-11-25T23:12:43+00:00",
        "seed": 0,
        "data": {"train": {**file, "rows": 1701}, "validation": {**file, "rows": 212},
                 "test": {**file, "rows": rows}},
        "options": {"sha256": 8 * "0123abcd", "values": {}},
        "checkpoint": {"name": "all-MiniLM-L6-v2", "revision": None, "sha256": 8 * "feed0123"},
        "trial": None,
        "code": {"version": "0.1.0", "sha256": 8 * "beef4567",
                 "git": {"commit": 5 * "deadbeef", "is_dirty": True}},
        "versions": {"python": "3.11.7", "keras": "3.15.1", "tensorflow": "2.21.0"},
    }  # fmt: skip


def searched() -> dict[str, Any]:
    """ "search" of metrics.json."""
    spread = {split: {"accuracy": {"mean": mean, "deviation": 0.004}}
              for split, mean in (("validation", 0.97), ("test", 0.965))}  # fmt: skip
    trials = [
        {"trial": "2", "status": "completed", "score": 0.9387,
         "hyperparameters": {"learning_rate": 2e-4, "batch_size": 16}},
        {"trial": "0", "status": "completed", "score": 0.4811,
         "hyperparameters": {"learning_rate": 1e-4, "batch_size": 32}},
        {"trial": "1", "status": "failed", "score": None, "reason": "the loss is <NaN>",
         "hyperparameters": {"learning_rate": 2e-3, "dropout": 0.1}},
    ]  # fmt: skip
    return {
        "objective": "val_accuracy",
        "trials": trials,
        "winner": {**trials[0], "seeds": [1, 2, 3], "retrained": spread},
        "default": {**trials[1], "seeds": [1, 2, 3], "retrained": spread},
        "exported_seed": 2,
    }


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


# What the page says


class Page(HTMLParser):
    """The parts of a page that the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.island = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = "rows" if ("id", "rows") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "rows":
            self.island += data
        elif self.inside not in ("style", "script"):
            self.texts.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self, tag: str) -> list[str | None]:
        return [attributes.get("id") for attributes in self.all(tag)]


def report_of(folder: Path) -> Path:
    """The report of a run, written if it is not there yet."""
    path = folder / "report.html"
    return path if path.exists() else write_report(folder)


def page_of(folder: Path) -> Page:
    return Page(report_of(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs news, words, pairs, chinese, intents, old, and masked."""
    base = tmp_path_factory.mktemp("runs")
    news = Recipe()
    news.write(base / "news")
    with_search = {**news.metrics(), "search": searched()}
    write_json(base / "news" / "metrics.json", with_search)
    (base / "news" / "search").mkdir()
    (base / "news" / "search" / "trials.csv").write_text(
        "trial,status,score,epochs,seconds\n0,completed,0.4811,2,30.1\n2,completed,0.9387,2,49.4\n"
    )
    chinese = {"财经": "央行宣布下调利率", "娱乐": "电影获得三项大奖", "体育": "冠军赢得了比赛"}
    words = list(chinese.values())
    Recipe(
        labels=tuple(chinese), name="新闻", text=lambda place, label: f"{words[label]}{place}"
    ).write(base / "chinese")
    pairs = Recipe(labels=("ham", "spam"), columns=("subject", "body"), name="mail",
                   text=lambda place, label: f"a letter {place}")  # fmt: skip
    pairs.paired = {"only_ours": 5, "only_baseline": 4, "p_value": 1.0}
    pairs.write(base / "pairs")
    many = Recipe(labels=tuple(f"intent {index}" for index in range(150)), rows=3000, wrong=700,
                  name="intents", text=lambda place, label: f"my card {place}")  # fmt: skip
    many.paired = {"only_ours": 3, "only_baseline": 44, "p_value": 1e-9}
    many.write(base / "intents")
    Recipe(name="old").write(base / "old")
    (base / "old" / "analysis.json").unlink()
    figures = Recipe().metrics()
    for name in ("intervals", "baseline", "paired", "calibration"):
        del figures["test"][name]
    write_json(base / "old" / "metrics.json", figures)
    masked = Recipe(name="masked")
    masked.write(base / "masked")
    (base / "masked" / "analysis.json").unlink()
    split = {
        "loss": 6.04,
        "perplexity": 420.7,
        "accuracy": 0.18,
        "masked_pieces": 2179,
        "rows": 692,
    }
    history = [{"loss": 6.8, "accuracy": 0.12, "val_loss": 6.1, "val_accuracy": 0.17}]
    figures = {"validation": split, "test": split, "train": {"rows": 5536, "history": history}}
    write_json(base / "masked" / "metrics.json", figures)
    options = {**masked.config(base / "masked"), "task": {"name": "masked_lm"}}
    (base / "masked" / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    return base


def test_every_section_has_its_entry_and_its_heading(runs: Path) -> None:
    page = page_of(runs / "news")
    sections = page.ids("section")
    assert sections == ["data", "curves", "metrics", "classes", "confusion", "mistakes",
                        "label_errors", "calibration", "slices", "search", "speed", "serving",
                        "options", "lineage"]  # fmt: skip
    links = [link["href"] for link in page.all("a")]
    assert links == ["#main", "#headline", *(f"#{name}" for name in sections)]
    for section in page.all("section"):
        assert section["aria-labelledby"] in page.ids("h2")
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_sections_without_data_are_left_out(runs: Path) -> None:
    page = page_of(runs / "old")
    assert page.ids("section") == ["data", "curves", "metrics", "classes", "confusion", "speed",
                                   "serving", "options", "lineage"]  # fmt: skip
    assert "No linear model was trained" in page.words
    assert not [of for of in page.all("button") if "data-row" in of]  # no texts to show
    masked = page_of(runs / "masked")
    assert masked.ids("section") == ["data", "curves", "metrics", "speed", "serving", "options",
                                     "lineage"]  # fmt: skip
    assert "420.70" in masked.words and "2,179 masked word pieces" in masked.words
    assert "linear model" not in masked.words and "[MASK]" in masked.words


def test_tables_have_captions_and_scopes(runs: Path) -> None:
    for name in ("news", "pairs", "intents", "old", "masked"):
        page = page_of(runs / name)
        assert len(page.all("caption")) == len(page.all("table"))
        assert all(heading.get("scope") for heading in page.all("th"))
        ids = [of["id"] for _, of in page.elements if "id" in of]
        assert len(ids) == len(set(ids))


def test_whether_bert_beats_the_linear_model(runs: Path) -> None:
    news, pairs, intents = (page_of(runs / name).words for name in ("news", "pairs", "intents"))
    assert "BERT beats the linear model." in news
    assert "BERT alone is right on 21 and the linear model alone on 6 (McNemar's test," in news
    assert "a tie." in pairs and "far cheaper to serve" in pairs
    assert "The linear model beats BERT." in intents and "p < 0.001" in intents


def test_commands_have_the_names_of_the_run(runs: Path) -> None:
    words = page_of(runs / "pairs").words
    export = runs / "pairs" / "export" / "mail"
    assert f"--model_name=mail --model_base_path={export} --port=8500" in words
    assert "http://localhost:8501/v1/models/mail:predict" in words
    assert "--model mail --input text_a='Text 1.' --input text_b='Text 2.'" in words
    assert '{"instances": [{"text_a": "Text 1.", "text_b": "Text 2."}]}' in words


def test_the_matrix_of_many_classes_is_cut_to_the_most_confused(runs: Path) -> None:
    text = report_of(runs / "intents").read_text(encoding="utf-8")
    page = Page(text)
    assert "The 30 of 150 classes with the most mistakes." in page.words
    matrix = text[text.index('<table id="matrix"') : text.index('id="texts-title"')]
    assert matrix.count('<th scope="row">') == 30
    pairs = text[text.index('id="pairs"') :]
    assert pairs[: pairs.index("</ol>")].count("<button") == 30


def test_a_winner_stands_beside_the_default(runs: Path) -> None:
    words = page_of(runs / "news").words
    assert "Trial 2 won." in words and "2 winner 0.9387 0.0002 16" in words
    assert "failed the loss is <NaN>" in words  # the reason, as text
    assert "0.9700 ± 0.0040" in words and "49.4 s" in words


def test_metrics_that_are_given_take_the_place_of_the_file(tmp_path: Path) -> None:
    figures = Recipe().metrics()
    figures["test"]["accuracy"] = 0.1234
    path = write_report(Recipe().write(tmp_path / "run"), metrics=figures)
    assert "0.1234" in path.read_text(encoding="utf-8")


# Hostile texts


def hostile(folder: Path) -> Path:
    """A run whose every text, label, column and name is an attack."""
    labels = (HOSTILE.replace("\x00", ""), "b" + HOSTILE, "c" + HOSTILE)
    recipe = Recipe(labels=labels, columns=(HOSTILE, "b" + HOSTILE), name="a'\"<b>&",
                    text=lambda place, label: f"{HOSTILE} {place}")  # fmt: skip
    recipe.write(folder)
    return folder


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    page = page_of(hostile(tmp_path / "run"))
    assert len(page.all("script")) == 2 and not page.all("img")
    assert not [of for _, of in page.elements if any(name.startswith("on") for name in of)]
    assert "{{ 7 * 7 }}" in page.words and "49 }}" not in page.words
    assert "\x00" not in page.words and "\u2400" in page.words
    rows = json.loads(page.island)["rows"]
    assert rows[0][1][0].startswith("</script><script>window.hacked = 1</script>")


def test_nothing_of_an_island_ends_its_script() -> None:
    text = "</script><!-- <script> ]]> & \u2028"
    found = island([text])
    assert json.loads(found) == [text]
    assert not set("<>&") & set(found)


def test_what_no_page_can_hold_becomes_a_sign() -> None:
    assert printable({"a\x00": ["\x1b\t\n", "\ud800好"]}) == {"a\u2400": ["\u241b\t\n", "\ufffd好"]}


# Texts behind cells, words that mattered


def test_rows_are_cut_to_the_room_the_costliest_of_each_cell_first() -> None:
    rows = [
        {"row": place, "texts": ["x" * 10], "label": 0, "prediction": place % 2, "loss": loss}
        for place, loss in enumerate((0.5, 5.0, 0.1, 4.0, 0.2, 3.0))
    ]
    assert [row[0] for row in fitting_rows(rows)] == [1, 3, 5, 0, 4, 2]
    assert [row[0] for row in fitting_rows(rows, room=30)] == [1, 3, 0]
    assert [row[0] for row in fitting_rows(rows, room=5)] == [1, 0]  # each cell has one


def test_faint_pieces_are_run_together_and_spaces_are_not_marked() -> None:
    found = highlighted([("The ", 0.0), ("cat ", 0.01), ("sat", -0.5), ("!", 1.0)], 1.0)
    assert [(of["text"], of["weight"]) for of in found] == [
        ("The cat ", 0.0),
        ("sat", -0.5),
        ("!", 1.0),
    ]
    found = highlighted([("good ", 2.0), ("x" * 1000, 0.0)], 2.0)
    assert found[0]["text"] == "good" and len(found[1]["text"]) < 300
    assert found[1]["text"].endswith("x …")


# The command


def test_the_command_writes_the_page(runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(runs / "old")]) == 0
    assert capsys.readouterr().out.strip() == str(runs / "old" / "report.html")


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def said(folder: Path) -> str:
        assert main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "there is no such folder" in said(tmp_path / "none")
    assert "holds no run (no config.yaml)" in said(tmp_path)
    (tmp_path / "config.yaml").write_text("task: {name: classification}\n")
    assert "is not finished (no metrics.json)" in said(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    assert "not JSON" in said(tmp_path)
    (tmp_path / "metrics.json").write_text("[]")
    assert "must hold a JSON object" in said(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    assert "not a YAML file" in said(tmp_path)


def test_a_report_needs_no_tensorflow(runs: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kbert.report import write_report; "
        f"write_report(Path({str(runs / 'news')!r})); "
        "print(sorted({'tensorflow', 'keras', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_a_large_run_is_quick_and_small(tmp_path: Path) -> None:
    recipe = Recipe(rows=10_000, wrong=1500, text=lambda place, label: f"银行{place} " * 70)
    recipe.write(tmp_path / "run")
    content = recipe.analysis()
    content["rows"] = [
        {**row, "texts": [row["texts"][0][:600]]}
        for row in sorted(content["rows"], key=lambda row: -row["loss"])[:2000]
    ]
    write_json(tmp_path / "run" / "analysis.json", content)
    write_report(tmp_path / "run")  # matplotlib's fonts are read by now
    began = time.process_time()  # others may use the machine
    path = write_report(tmp_path / "run")
    assert time.process_time() - began < 2
    assert path.stat().st_size < 5_000_000


# A real browser, offline


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a report from disk; at the end nothing must have gone wrong or out."""
    contexts, trouble, asked = [], [], []

    def open_report(folder: Path, **options: Any) -> Any:
        path = report_of(folder)
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert trouble == []
    assert all(url.startswith("file:") and url.endswith("/report.html") for url in asked)


def shown_rows(page: Any) -> list[str]:
    return [text.split("\n")[0].split("probability")[0].strip()
            for text in page.locator("#texts > li").all_inner_texts()]  # fmt: skip


def rows_behind(row: int, column: int) -> list[str]:
    found = [of for of in Recipe().rows() if (of["label"], of["prediction"]) == (row, column)]
    return [f"test row {of['row']}" for of in sorted(found, key=lambda of: -of["loss"])]


def test_a_click_on_a_cell_shows_its_texts(runs: Path, visit: Callable[..., Any]) -> None:
    page = visit(runs / "news")
    for row, column in ((4, 0), (2, 2), (1, 2)):
        name = f"{NEWS[row]}, predicted as {NEWS[column]}"
        page.locator("#matrix").get_by_role("button", name=name).click()
        assert shown_rows(page) == rows_behind(row, column) != []
        assert NEWS[row] in page.locator("#texts-status").inner_text()
    pressed = page.locator("#confusion [aria-pressed=true]").all()
    assert {(of.get_attribute("data-row"), of.get_attribute("data-column")) for of in pressed} == {
        ("1", "2")
    }
    first = page.locator("#pairs button").first
    first.click()
    place = int(first.get_attribute("data-row")), int(first.get_attribute("data-column"))
    assert shown_rows(page) == rows_behind(*place)


def test_cells_can_be_chosen_by_the_keyboard_alone(runs: Path, visit: Callable[..., Any]) -> None:
    page = visit(runs / "news")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#matrix') !== null"):
            break
    focused = "[document.activeElement.dataset.row, document.activeElement.dataset.column]"
    assert page.evaluate(focused) == ["0", "0"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    row, column = map(int, page.evaluate(focused))
    assert (row, column) != (0, 0) and row == 0
    assert shown_rows(page) == rows_behind(row, column)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    assert shown_rows(page) == rows_behind(0, 0)
    page.keyboard.press("Tab")  # one stop for the whole matrix
    assert page.evaluate("document.activeElement.closest('#matrix') === null")


def test_headings_sort_the_table_of_classes(runs: Path, visit: Callable[..., Any]) -> None:
    page = visit(runs / "news")
    table = page.locator("#classes table")
    heading = table.locator("th", has=page.get_by_role("button", name="recall"))

    def column(index: int) -> list[str]:
        return table.locator(f"tbody tr > :nth-child({index})").all_inner_texts()

    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(4) == sorted(column(4)) != sorted(column(4), reverse=True)
    assert page.locator("#announcer").inner_text() == "Sorted by recall, rising."
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(4) == sorted(column(4), reverse=True)
    table.get_by_role("button", name="class").click()
    assert column(1) == sorted(NEWS)
    assert table.locator("[aria-sort]").count() == 1


@pytest.mark.parametrize("name", ["news", "chinese", "pairs", "intents", "old", "masked"])
def test_a_phone_shows_it_without_scrolling_sideways(
    name: str, runs: Path, visit: Callable[..., Any]
) -> None:
    page = visit(runs / name, viewport={"width": 360, "height": 740})
    page.evaluate("document.querySelectorAll('details').forEach((of) => { of.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["news", "intents", "masked"])
def test_nothing_serious_is_found_by_axe(
    name: str, scheme: str, runs: Path, visit: Callable[..., Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe")
    page = visit(runs / name, color_scheme=scheme, bypass_csp=True)  # axe is put into the page
    page.evaluate("document.querySelectorAll('details').forEach((of) => { of.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    told = [(of["id"], of["impact"], of["nodes"][0]["html"][:200], of["nodes"][0]["failureSummary"])
            for of in found]  # fmt: skip
    assert [of for of in told if of[1] in ("serious", "critical", "moderate")] == []


def wait_until(holds: Callable[[], bool]) -> None:
    """wait_for_function would need the page's policy to allow eval."""
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_paper_shows_all(runs: Path, visit: Callable[..., Any]) -> None:
    page = visit(runs / "intents", viewport={"width": 700, "height": 1000})
    closed = "[...document.querySelectorAll('main details')].filter((of) => !of.open).length"
    hidden = """[...document.querySelectorAll('main .scroll, main .cards, main .text, main pre')]
        .filter((of) => of.checkVisibility() === false ||
            (of.scrollHeight > of.clientHeight + 1 && getComputedStyle(of).overflowY !== 'visible'))
        .map((of) => of.outerHTML.slice(0, 200))"""
    assert page.evaluate(closed) > 0
    page.emulate_media(media="print")
    wait_until(lambda: page.evaluate(closed) == 0)
    assert page.evaluate(hidden) == []
    assert not page.locator("nav").is_visible()
    page.emulate_media(media="screen")
    wait_until(lambda: page.evaluate(closed) > 0)
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_hostile_texts_run_nothing(tmp_path: Path, visit: Callable[..., Any]) -> None:
    page = visit(hostile(tmp_path / "run"), bypass_csp=True, viewport={"width": 360, "height": 740})
    for button in page.locator("#matrix button").all():
        button.click()
        assert page.locator("#texts .text").first.inner_text().startswith("</script><script>")
    for button in page.locator("button.sorter").all():
        button.click()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_policy_lets_no_other_script_run(runs: Path, visit: Callable[..., Any]) -> None:
    page = visit(runs / "old")
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert page.locator("#contents a[href='#data']").count() == 1
    assert page.evaluate("typeof showCell") == "function"  # ours ran


def test_figures_of_other_tasks_are_shown(tmp_path: Path) -> None:
    figures = {"pearson": 0.5, "mae": 0.25, "cut_words": 3, "rows": 7, "bleu": {"signature": "x"}}
    run = Run(tmp_path, {}, "", metrics={"test": figures, "validation": {"pearson": 0.75}})
    found = metrics(run)
    assert found is not None
    (group,) = found["groups"]
    shown = [(row["title"], row["arrow"], row["value"], row["other"]) for row in group["rows"]]
    assert shown == [
        ("pearson", "higher", 0.5, 0.75),
        ("mae", "lower", 0.25, None),
        ("cut words", None, 3, None),
    ]


def test_a_class_that_training_lacks_has_no_rows_elsewhere(tmp_path: Path) -> None:
    test = {"known": {"rows": 3}, "(not in training)": {"rows": 2}}
    measured = {
        "test": {"labels": [*test], "per_class": test},
        "validation": {"labels": ["known"], "per_class": {"known": {"rows": 5}}},
    }
    lineage = {"data": {"test": {"rows": 5}}}
    found = data(Run(tmp_path, {}, "", metrics=measured, lineage=lineage))["balance"]
    assert [(row["name"], row["counts"]) for row in found["labels"]] == [
        ("known", [5, 3]),
        ("(not in training)", [0, 2]),
    ]
