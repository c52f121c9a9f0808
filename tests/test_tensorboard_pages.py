"""What a person sees of a real run: TensorBoard's pages and report.html, in a real browser."""

from __future__ import annotations

import csv
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from browser import Board, chromium, console_errors, projector, tensorboard, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util import tensor_util

import train
from kbert.monitor import read_scalars

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NAME = "news-1"
"""Of the run, as TensorBoard has it."""
LABELS = ("R&D <i>", "a/b 100%", "体育")
WORDS = {"R&D <i>": "not bad", "a/b 100%": "good dog", "体育": "好人"}
VECTORS = ("vectors_start", "vectors_trained")


def write_texts(path: Path) -> None:
    """96 texts with marks of HTML and Markdown; each seventh has the words of another class."""
    generator = np.random.default_rng(0)
    lines = [("text", "label")]
    for index in range(96):
        words = WORDS[LABELS[(index + (index % 7 == 0)) % 3]]
        common = " ".join(generator.choice(["the", "cats", "sat", "ran"], index % 4))
        lines.append((f"{words} {common}, 第{index}条 <b>*a*|b</b>", LABELS[index % 3]))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)


def read_table(path: Path, *, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run goes."""
    return tmp_path_factory.mktemp("pages") / "news"


@pytest.fixture(scope="module")
def board(output: Path) -> Iterator[Board]:
    """TensorBoard, which is there before the run: it starts while that trains."""
    with tensorboard(output / "tensorboard") as board:
        yield board


@pytest.fixture(scope="module")
def browser(board: Board) -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(output: Path, browser: Browser, tiny_checkpoint: Path) -> Path:
    """The folder of a finished run; its texts are beside it."""
    write_texts(output.parent / "texts.csv")
    options = {
        "--data.train": output.parent / "texts.csv",
        "--data.validation_fraction": 0.2,
        "--data.test_fraction": 0.2,
        "--data.max_length": 12,
        "--data.cache_dir": output.parent / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 2,
        "--train.batch_size": 8,
        "--train.learning_rate": 1e-2,
        "--monitor.every_steps": 2,
        "--monitor.histograms": "true",
        "--export.enabled": "false",
        "--output": output,
    }
    assert train.main([str(word) for pair in options.items() for word in pair]) == 0
    return output


@functools.cache
def texts_of(run: Path) -> dict[str, str]:
    """The texts by the number of their row."""
    rows = read_table(run.parent / "texts.csv")
    return {str(number): row["text"] for number, row in enumerate(rows, 1)}


def figures(run: Path, split: str) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))[split]


def curves(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Points that were written, by run and tag."""
    logs = run / "tensorboard"
    found = {path: read_scalars(path) for path in (logs / NAME, *(logs / NAME).iterdir())}
    return {str(path.relative_to(logs)): tags for path, tags in found.items() if tags}


@functools.cache
def events(run: Path, name: str) -> EventAccumulator:
    """What TensorBoard's own reader finds."""
    found = EventAccumulator(str(run / "tensorboard" / NAME / name))
    found.Reload()
    return found


def metadata(run: Path, name: str) -> list[dict[str, str]]:
    """Label, prediction, text of each validation row."""
    path = run / "tensorboard" / NAME / name / "metadata.tsv"
    return read_table(path, delimiter="\t")


@pytest.fixture(scope="module")
def loaded(run: Path, board: Board, browser: Browser) -> tuple[Page, list[str]]:
    """TensorBoard's page, and the errors of its console."""
    board.wait()
    until(lambda: has_read_all(board), board.log)
    page = browser.new_page()
    page.set_default_timeout(30_000)
    errors = console_errors(page)
    page.goto(board.url)
    return page, errors


def has_read_all(board: Board) -> bool:
    """Whether TensorBoard has come to the end of each run's events."""
    train, validation = f"{NAME}/train", f"{NAME}/validation"
    if not {NAME, train, validation, *(f"{NAME}/{name}" for name in VECTORS)} <= {*board.runs()}:
        return False
    tag = "weights/classifier/bias"
    if tag not in board.get("histograms/tags").get(train, {}):
        return False
    return (
        len(board.get("histograms/histograms", run=train, tag=tag)) == 2
        and "attention/layer_1/text_0" in board.get("images/tags").get(validation, {})
        and board.rows()[NAME]["sessions"][0]["status"] == "STATUS_SUCCESS"
    )


@pytest.fixture
def page(request: pytest.FixtureRequest, loaded: tuple[Page, list[str]]) -> Iterator[Page]:
    """At the address that the test has for a parameter."""
    page, errors = loaded
    # so high that all of it is drawn; but the projector's points are drawn without a graphics card
    page.set_viewport_size({"width": 1400, "height": 400 if request.param == "projector" else 2000})
    page.evaluate("address => { location.hash = address }", request.param)
    yield page
    assert not errors


def at(address: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [address], indirect=True)


def group(page: Page, name: str) -> Locator:
    """The heading of a group of tags."""
    return page.locator("button.heading").filter(has=page.get_by_title(name, exact=True))


@at("timeseries")
def test_time_series(page: Page, run: Path) -> None:
    """Training and validation in one chart, each at its last step."""
    chart = page.locator("scalar-card").filter(has=page.get_by_text("accuracy", exact=True)).first
    for name in ("train", "validation"):
        step, value = curves(run)[f"{NAME}/{name}"]["accuracy"][-1]
        row = chart.locator("tb-data-table-content-row").filter(has_text=f"{NAME}/{name}")
        row.get_by_text(f"{value:.4g}", exact=True).first.wait_for()
        row.get_by_text(str(step), exact=True).wait_for()


@at("scalars")
def test_scalars(page: Page, run: Path) -> None:
    """All groups of tags; where the mouse is over a chart, the points that were written."""
    written = curves(run)
    tags = set().union(*written.values())
    for name in {tag.split("/")[0] for tag in tags}:
        group(page, name).wait_for()
    assert group(page, "loss").count() == 1
    for name in ("f1", "loss"):
        group(page, name).click()
    for label in LABELS:
        page.get_by_text(f"tag: f1/{label}", exact=True).wait_for()
    page.get_by_text("tag: loss", exact=True).wait_for()
    card = page.locator("tf-scalar-card").filter(has=page.get_by_text("tag: accuracy", exact=True))
    card.locator("tf-line-chart-data-loader").hover()
    tip = page.locator("vz-line-chart-tooltip tbody tr")
    for name in (f"{NAME}/train", f"{NAME}/validation"):
        row = tip.filter(has_text=name)
        row.wait_for()
        _, _, _, value, step, *_ = row.locator("td").all_inner_texts()
        assert float(value) == pytest.approx(dict(written[name]["accuracy"])[int(step)], abs=1e-3)


@at("custom_scalars")
def test_custom_scalars(page: Page, run: Path) -> None:
    """Charts of the layout, each with the curves that its expressions find in all runs."""
    (event,) = events(run, ".").Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    tags = [tag for tags in curves(run).values() for tag in tags]
    page.locator("tf-custom-scalar-multi-line-chart-card").first.wait_for()
    for category in layout.category:
        group(page, category.title).wait_for()
        pane = page.locator("tf-category-paginated-view").filter(has=group(page, category.title))
        cards = pane.locator("tf-custom-scalar-multi-line-chart-card")
        for chart in category.chart:
            found = sum(any(re.match(of, tag) for of in chart.multiline.tag) for tag in tags)
            assert found > 0
            card = cards.filter(has=page.get_by_text(chart.title, exact=True))
            card.get_by_text(f"Matches ({found})").wait_for()


@at("hparams")
def test_hparams(page: Page, run: Path) -> None:
    """A row with the options, and with the figures of metrics.json."""
    options = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    measured = figures(run, "validation")
    names = ("batch_size", "epochs", "learning_rate")
    expected = {name: options["train"][name] for name in names}
    expected["max_length"] = options["data"]["max_length"]
    expected |= {f"final/{name}": measured[name] for name in ("accuracy", "loss")}
    boxes = page.locator("tf-hparams-query-pane paper-checkbox")
    for name in expected:  # the page begins with the first five of each kind
        box = boxes.filter(has=page.get_by_text(name, exact=True))
        box.wait_for()
        if box.get_attribute("aria-checked") == "false":
            box.click()
    table = page.locator("tf-hparams-table-view")
    for name in expected:
        table.get_by_text(name, exact=True).wait_for()
    row = row_of_table(table)
    assert row["Trial ID"] == NAME
    assert row["checkpoint"] == options["model"]["checkpoint"]
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-4)


def row_of_table(table: Locator) -> dict[str, str]:
    """The cells of a table of one row, by the heading above each."""
    places = table.locator("vaadin-grid-cell-content").evaluate_all(
        """cells => cells.filter(cell => cell.innerText.trim()).map(cell => [
            cell.assignedSlot.parentElement.tagName,
            cell.getBoundingClientRect().x,
            cell.innerText.trim()
        ])"""
    )
    headings = {x: text for tag, x, text in places if tag == "TH"}
    return {headings[x]: text for tag, x, text in places if tag == "TD"}


@at("pr_curves")
def test_pr_curves(page: Page, run: Path) -> None:
    """A curve a class; where the mouse is over one, the counts that were written."""
    for label in LABELS:
        tag = page.get_by_text(f"tag: precision_recall/{label}", exact=True)
        card = page.locator("tf-pr-curve-card").filter(has=tag)
        card.get_by_text(label, exact=True).wait_for()
        event = events(run, "validation").Tensors(f"precision_recall/{label}")[-1]
        card.get_by_text(f"step {event.step}").wait_for()
    card.locator("vz-line-chart2").hover()  # the last one
    row = page.locator("vz-line-chart-tooltip tbody tr")
    row = row.filter(has_text=f"{NAME}/validation", has=page.locator("td:nth-child(9)"))
    row.wait_for()
    _, _, threshold, precision, recall, *counts = row.locator("td").all_inner_texts()
    shown = [*map(int, counts), float(precision), float(recall)]
    written = tensor_util.make_ndarray(event.tensor_proto)  # (6, thresholds)
    assert shown == pytest.approx(written[:, round(200 * float(threshold))].tolist(), abs=1e-3)
    true, _, _, missed, *_ = shown
    gold = [row["label"] for row in metadata(run, "vectors_trained")]
    assert true + missed == gold.count(label)


@at("images")
def test_images(page: Page, run: Path) -> None:
    """The pictures as they were written: of each epoch, of some texts."""
    written = events(run, "validation")
    tags = written.Tags()["images"]
    assert {tag.split("/")[0] for tag in tags} == {"attention", "confusion_matrix", "reliability"}
    group(page, "reliability").click()  # only the first groups are open
    for tag in tags:
        loader = page.locator("tf-image-loader")
        loader = loader.filter(has=page.get_by_text(f"tag: {tag}", exact=True))
        loader.get_by_text(str(written.Images(tag)[-1].step), exact=True).wait_for()
        picture = loader.locator("img")
        picture.wait_for()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
        address = picture.evaluate("image => image.src")
        assert page.request.get(address).body() == written.Images(tag)[-1].encoded_image_string
        if not tag.startswith("attention"):
            slider = loader.locator("paper-slider[role=slider]")
            assert slider.get_attribute("aria-valuemax") == "1"  # two epochs


@at("text")
def test_worst_losses(page: Page, run: Path) -> None:
    """Of both epochs; those of the last one are the validation rows, the costliest first."""
    loader = page.locator("tf-text-loader")
    loader = loader.filter(has=page.get_by_text("tag: worst_losses", exact=True))
    steps = [event.step for event in events(run, "validation").Tensors("worst_losses")]
    assert len(steps) == 2
    for step in steps:
        loader.get_by_text(f"step {step}", exact=True).wait_for()
    table = loader.locator("table").first
    cells = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    rows = [tuple(cell[index] for index in (1, 2, 6)) for cell in cells]
    assert sorted(rows) == sorted(tuple(row.values()) for row in metadata(run, "vectors_trained"))
    assert "体育" in {gold for gold, _, _ in rows}
    assert [cell[6] for cell in cells] == [texts_of(run)[cell[0]] for cell in cells]
    losses = [float(cell[5]) for cell in cells]
    assert losses == sorted(losses, reverse=True)
    assert np.mean(losses) == pytest.approx(figures(run, "validation")["loss"], abs=1e-3)


@at("text")
def test_options(page: Page, run: Path) -> None:
    loader = page.locator("tf-text-loader")
    loader = loader.filter(has=page.get_by_text("tag: options", exact=True))
    shown = loader.locator("code").inner_text()
    assert shown.strip() == (run / "config.yaml").read_text(encoding="utf-8").strip()


@at("histograms")
def test_histograms(page: Page, run: Path) -> None:
    """Of weights and gradients, with as many numbers as there are."""
    for name in ("gradients", "weights"):
        tag = f"{name}/classifier/kernel"
        written = events(run, "train").Tensors(tag)
        loader = page.locator("tf-histogram-loader")
        loader = loader.filter(has=page.get_by_text(f"tag: {tag}", exact=True))
        steps = loader.locator("vz-histogram-timeseries g.histogram")
        steps.nth(1).wait_for(state="attached")
        assert steps.count() == len(written) == 2
        bins = loader.locator("vz-histogram-timeseries").evaluate("chart => chart._data")
        assert [of["step"] for of in bins] == [event.step for event in written]
        for of in bins:
            assert sum(part["y"] for part in of["bins"]) == pytest.approx(12 * len(LABELS))


@at("graphs")
def test_graphs(page: Page, run: Path) -> None:
    """The outermost names of the graph, and what is in the one that has most in it."""
    paths = [node.name.split("/") for node in events(run, "train").Graph().node]
    sizes = Counter(path[0] for path in paths)
    (scope, _), *_ = sizes.most_common()

    def named(name: str) -> Locator:
        return page.locator(f'g.node[data-name="{name}"]').first

    for name in {"token_ids", "segment_ids", "padding_mask", scope}:
        assert name in sizes
        named(name).wait_for()
    named(scope).dblclick()
    inner = {path[1] for path in paths if path[0] == scope and len(path) > 2}
    assert any("encoder" in name for name in inner)
    assert any("classifier" in name for name in inner)
    for name in inner:
        named(f"{scope}/{name}").wait_for()


@at("projector")
def test_projector(page: Page, run: Path) -> None:
    """The validation rows of both runs are really there, and are found by label and by text."""
    frame = projector(page)
    frame.get_by_text("Points:").wait_for()
    labels = {row["text"]: row["label"] for row in read_table(run.parent / "texts.csv")}
    for name in VECTORS:
        rows = metadata(run, name)
        assert len(rows) == figures(run, "validation")["rows"]
        assert [row["label"] for row in rows] == [labels[row["text"]] for row in rows]
        vectors = np.loadtxt(run / "tensorboard" / NAME / name / "vectors.tsv", ndmin=2)
        panel = frame.locator("vz-projector-data-panel")
        panel.evaluate("(panel, run) => { panel.selectedRun = run }", f"{NAME}/{name}")
        frame.get_by_text(f"Points: {len(rows)}").wait_for()
        frame.get_by_text("Dimension: 12").wait_for()
        matches = frame.locator("vz-projector-inspector-panel")
        search = matches.locator("input").first
        search.fill("体育")
        found = sum(row["label"] == "体育" for row in rows)
        matches.get_by_text(f"{found} matches").wait_for()
        matches.evaluate("panel => { panel.selectedMetadataField = 'text' }")
        search.fill(rows[-1]["text"])
        matches.get_by_text("1 match", exact=False).wait_for()
        search.fill("")
        matches.evaluate("panel => { panel.selectedMetadataField = 'label' }")
        points = frame.locator("vz-projector").evaluate(
            "page => page.dataSet.points.map(of => [of.metadata, Array.from(of.vector)])"
        )
        assert [of for of, _ in points] == rows
        np.testing.assert_allclose([vector for _, vector in points], vectors, atol=1e-5)
    frame.get_by_text("Total variance described").wait_for()


def test_report(browser: Browser, run: Path) -> None:
    """Each cell of the confusion matrix shows its texts, the costliest first; so do mistakes."""
    page = browser.new_context(offline=True).new_page()
    page.set_default_timeout(30_000)
    errors = console_errors(page)
    page.goto((run / "report.html").as_uri())
    accuracy = f"{figures(run, 'test')['accuracy']:.4f}"
    page.locator("#headline").get_by_text(accuracy, exact=True).first.wait_for()
    answers = read_table(run / "predictions.csv")
    answers.sort(key=lambda row: math.log(float(row[f"p_{row['label']}"])))
    texts = texts_of(run)
    assert any(row["label"] == "体育" != row["prediction"] for row in answers)
    lines = page.locator("#matrix tbody tr")
    assert lines.locator("th").all_inner_texts() == list(LABELS)
    for row, label in enumerate(LABELS):
        for column, prediction in enumerate(LABELS):
            both = (label, prediction)
            behind = [of for of in answers if (of["label"], of["prediction"]) == both]
            cell = lines.nth(row).locator("td").nth(column)
            assert cell.inner_text() == str(len(behind))
            if not behind:
                continue
            cell.get_by_role("button").click()
            cards = page.locator("#texts > li")
            assert cards.locator(".text").all_text_contents() == [texts[of["row"]] for of in behind]
            assert cards.locator(".facts > :first-child").all_inner_texts() == [
                f"test row {of['row']}" for of in behind
            ]
            told = page.locator("#texts-status").inner_text()
            assert label in told and prediction in told
    wrong = [texts[of["row"]] for of in answers if of["label"] != of["prediction"]]
    assert page.locator("#mistakes .text").all_text_contents() == wrong
    page.context.close()
    assert not errors
