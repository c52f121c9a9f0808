"""What a person sees of a run: TensorBoard's pages in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tensorflow as tf
from browser import chromium, console_errors, projector, tensorboard

from kbert.monitor import (
    EventFile,
    HyperparameterDescription,
    describe_charts,
    describe_search,
    end_trial,
    exactly,
    histogram,
    image,
    pr_curve,
    scalar,
    start_trial,
    text,
    write_graph,
    write_projector,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

LABELS = ("体育", "R&D", "a/b 100%")
RUNS = ("news/train", "news/validation")
STEPS = range(10, 110, 10)
EPOCHS = (50, 100)
GOLD = np.arange(60) % 3
PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(3), 60)
PNG = tf.io.encode_png(np.arange(24 * 18, dtype=np.uint8).reshape(12, 12, 3)).numpy()


def accuracy(run: str, step: int) -> float:
    return step / 160 - (0 if run == "news/train" else 0.0625)


def write_curves(folder: Path) -> None:
    """Training and validation, with what comes of an epoch."""
    for run in RUNS:
        events = EventFile(folder / run)
        for step in STEPS:
            values = {"accuracy": accuracy(run, step), "loss": 1 / step}
            values |= {f"f1/{label}": 0.5 for label in LABELS}
            events.write([scalar(tag, value) for tag, value in values.items()], step=step)
    for step in EPOCHS:
        events.write(
            [
                *(
                    pr_curve(f"pr/{label}", row == GOLD, PROBABILITIES[:, row], title=f"of {label}")
                    for row, label in enumerate(LABELS)
                ),
                image("confusion", PNG),
                text("worst", "| text | gold |\n|---|---|\n| 这个<b>电影</b>不好看 | 体育 |"),
                histogram("weights/encoder", PROBABILITIES),
            ],
            step=step,
        )


def graph() -> tf.compat.v1.GraphDef:
    with tf.Graph().as_default() as found:
        token_ids = tf.compat.v1.placeholder(tf.float32, (None, 8), name="token_ids")
        with tf.name_scope("encoder"):
            vectors = tf.matmul(token_ids, tf.ones((8, 4)), name="attention")
        with tf.name_scope("classifier"):
            tf.nn.softmax(vectors, name="probabilities")
    return found.as_graph_def()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    per_class = [("F1", [exactly(f"f1/{label}") for label in LABELS])]
    describe_charts(
        folder / "news/train",
        {"fit": [("loss", ["loss$"]), ("accuracy", ["accuracy$"])], "classes": per_class},
    )
    write_graph(folder / "news/train", graph())
    write_curves(folder)
    for name in ("before", "after"):
        vectors = np.random.default_rng(len(name)).normal(size=(60, 16))
        metadata = {
            "label": [LABELS[row] for row in GOLD],
            "text": [f"第{row}条\t新闻" for row in range(60)],
        }
        write_projector(folder / "news/projector", name, vectors, metadata)
    describe_search(
        folder, [HyperparameterDescription("batch_size", values=(16, 32))], ["accuracy"]
    )
    start_trial(folder / "news", "trial 00", {"batch_size": 16})
    end_trial(folder / "news", "completed", figures={"accuracy": 0.9375})
    return folder


@pytest.fixture(scope="module")
def loaded(logs: Path) -> Iterator[tuple[Page, list[str]]]:
    """TensorBoard's page, and the errors of its console."""
    with tensorboard(logs) as board, chromium() as browser:  # they start side by side
        board.wait()
        page = browser.new_page()
        page.set_default_timeout(30_000)
        errors = console_errors(page)
        page.goto(board.url)
        yield page, errors


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


@at("timeseries")
def test_time_series(page: Page) -> None:
    """Training and validation in one chart, at the last step."""
    chart = page.locator("scalar-card").filter(has_text="accuracy").first
    for run in RUNS:
        row = chart.locator("tb-data-table-content-row").filter(has_text=run)
        row.get_by_text(f"{accuracy(run, STEPS[-1]):.4g}").wait_for()
        row.get_by_text(str(STEPS[-1]), exact=True).wait_for()


@at("scalars")
def test_scalars(page: Page) -> None:
    page.get_by_role(
        "button", name="loss", exact=True
    ).click()  # only the first three groups are open
    for tag in ("accuracy", "loss", *(f"f1/{label}" for label in LABELS)):
        page.get_by_text(f"tag: {tag}", exact=True).wait_for()
    card = page.locator("tf-scalar-card").filter(has_text="tag: accuracy")
    card.locator("tf-line-chart-data-loader").hover()
    tip = page.locator("vz-line-chart-tooltip tbody tr")
    for run in RUNS:
        row = tip.filter(has_text=run)
        row.wait_for()
        _, _, _, value, step, *_ = row.locator("td").all_inner_texts()
        assert int(step) in STEPS
        assert float(value) == pytest.approx(accuracy(run, int(step)), abs=1e-3)


@at("custom_scalars")
def test_custom_scalars(page: Page) -> None:
    """Charts of the layout, each with the curves that its expressions find in both runs."""
    for group in ("fit", "classes"):
        page.get_by_text(group, exact=True).wait_for()
    cards = page.locator("tf-custom-scalar-multi-line-chart-card")
    for title, curves in {"loss": 2, "accuracy": 2, "F1": 6}.items():
        card = cards.filter(has=page.get_by_text(title, exact=True))
        card.get_by_text(f"Matches ({curves})").wait_for()


@at("hparams")
def test_hparams(page: Page) -> None:
    table = page.locator("tf-hparams-table-view")
    for cell in ("trial 00", "16.000", "0.93750"):
        table.get_by_text(cell, exact=True).first.wait_for()
    for column in ("batch_size", "accuracy"):
        table.get_by_text(column, exact=True).first.wait_for()


@at("pr_curves")
def test_pr_curves(page: Page) -> None:
    """A curve a class; where the mouse is over one, counts that are right for the threshold."""
    for label in LABELS:
        page.get_by_text(f"of {label}", exact=True).wait_for()
        page.get_by_text(f"tag: pr/{label}", exact=True).wait_for()
    card = page.locator("tf-pr-curve-card").filter(has_text=f"of {LABELS[1]}")
    card.get_by_text(f"step {EPOCHS[-1]}").wait_for()
    card.locator("vz-line-chart2").hover()
    row = page.locator("vz-line-chart-tooltip tbody tr").filter(has_text="news/validation")
    row = row.filter(has=page.locator("td:nth-child(9)"))
    row.wait_for()
    _, _, threshold, *_, true, false, _, missed = row.locator("td").all_inner_texts()
    found = PROBABILITIES[:, 1] >= float(threshold)
    gold = GOLD == 1
    assert int(true) == (found & gold).sum()
    assert int(false) == (found & ~gold).sum()
    assert int(missed) == (~found & gold).sum()


@at("images")
def test_images(page: Page) -> None:
    loader = page.locator("tf-image-loader").filter(has_text="tag: confusion")
    loader.get_by_text(str(EPOCHS[-1]), exact=True).wait_for()
    picture = loader.locator("img")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 12


@at("text")
def test_text(page: Page) -> None:
    """Of both epochs, in Chinese, with the table; HTML of a text is no HTML of the page."""
    loader = page.locator("tf-text-loader").filter(has_text="tag: worst")
    for step in EPOCHS:
        loader.get_by_text(f"step {step}", exact=True).wait_for()
    cells = loader.locator("td")
    assert cells.all_inner_texts() == ["这个<b>电影</b>不好看", "体育"] * 2


@at("histograms")
def test_histograms(page: Page) -> None:
    page.get_by_text("tag: weights/encoder", exact=True).wait_for()
    steps = page.locator("vz-histogram-timeseries g.histogram")
    steps.nth(1).wait_for(state="attached")
    assert steps.count() == len(EPOCHS)


@at("graphs")
def test_graphs(page: Page) -> None:
    nodes = page.locator("g.node")
    for name in ("token_ids", "encoder", "classifier"):
        nodes.filter(has_text=name).first.wait_for()
    nodes.filter(has_text="encoder").first.dblclick()
    nodes.filter(has_text="attention").first.wait_for()


@at("projector")
def test_projector(page: Page) -> None:
    """The points of both runs are really there, and are found by label and by text."""
    frame = projector(page)
    for run in ("before", "after"):
        panel = frame.locator("vz-projector-data-panel")
        panel.evaluate("(panel, run) => { panel.selectedRun = run }", f"news/projector/{run}")
        frame.get_by_text("Points: 60").wait_for()
        frame.get_by_text("Dimension: 16").wait_for()
        matches = frame.locator("vz-projector-inspector-panel")
        search = matches.locator("input").first
        search.fill("体育")
        matches.get_by_text("20 matches").wait_for()
        matches.evaluate("panel => { panel.selectedMetadataField = 'text' }")
        search.fill("第17条 新闻")
        matches.get_by_text("1 match", exact=False).wait_for()
        search.fill("")
        matches.evaluate("panel => { panel.selectedMetadataField = 'label' }")
    frame.get_by_text("Total variance described").wait_for()
