"""Figures of what a model does: what is drawn where, and that drawing never fails or warns."""

from __future__ import annotations

import io
import itertools
import math
import time
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from kbert.evaluation_plots import (
    plot_attention,
    plot_confusion,
    plot_curves,
    plot_lengths,
    plot_reliability,
)
from kbert.plots import png, svg

BINS = {
    "edges": [0, 0.25, 0.5, 0.75, 1],
    "confidence": [None, 0.4, 0.7, 0.9],
    "accuracy": [None, 0.5, 0.6, 0.8],
    "counts": [0, 10, 20, 70],
    "ece": 0.1,
}
AFTER = {**BINS, "confidence": [math.nan, 0.4, 0.65, 0.8], "ece": 0.02}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixels(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(png(figure))) as image:
        return np.asarray(image.convert("RGB"))


def cells(axes: Axes) -> dict[tuple[int, int], str]:
    """The texts in a matrix by (row, column)."""
    found = {}
    for text in axes.texts:
        column, row = text.get_position()
        found[int(row), int(column)] = text.get_text()
    return found


def names(axes: Axes) -> tuple[list[str], list[str]]:
    return tuple([label.get_text() for label in ticks] for ticks in (
        axes.get_yticklabels(), axes.get_xticklabels()))  # fmt: skip


def within(figure: Figure) -> bool:
    """Whether all texts of a drawn figure are inside it."""
    pixels(figure)
    wide, high = figure.canvas.get_width_height()
    boxes = [axis.get_tightbbox() for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    titles = [*(axes.title for axes in figure.axes), *figure.texts]
    boxes += [text.get_window_extent() for text in titles]
    return all(
        box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high
        for box in boxes
        if box is not None  # of an axis that has no texts
    )


def test_rows_of_confusions_are_labels() -> None:
    figure = plot_confusion([[6, 3, 0], [0, 0, 0], [1, 0, 9]], ["a", "b", "c"])
    (axes,) = figure.axes
    assert cells(axes) == {(0, 0): "6", (0, 1): "3", (2, 0): "1", (2, 2): "9"}
    assert names(axes) == (["a", "b", "c"], ["a", "b", "c"])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("label", "prediction")
    assert figure.get_suptitle() == "15 of 19 rows right (78.9%)"
    assert axes.yaxis_inverted()  # the first row is above
    assert pixels(figure).shape == (600, 800, 3)


def test_confusions_are_coloured_by_their_share_of_the_row() -> None:
    axes = plot_confusion([[900, 100], [1, 9]], ["a", "b"]).axes[0]
    colours = np.asarray(axes.images[0].get_array()).astype(int)[..., :3]
    assert np.array_equal(colours[0, 0], colours[1, 1])
    assert np.array_equal(colours[0, 1], colours[1, 0])
    assert colours[0, 0, 2] > colours[0, 0, 0]  # blue
    assert colours[0, 1, 0] > colours[0, 1, 2]  # orange


def test_of_many_classes_those_with_most_confusions_are_shown() -> None:
    counts = np.diag(np.full(150, 50))
    counts[140, 3] = 7
    counts[5, 77] = 2
    figure = plot_confusion(counts, [f"intent {index}" for index in range(150)])
    (axes,) = figure.axes
    assert "the 25 of 150 classes with the most confusions" in figure.get_suptitle()
    assert "7,500 of 7,509 rows right" in figure.get_suptitle()
    shown, _ = names(axes)
    assert len(shown) == 25
    assert {"intent 3", "intent 5", "intent 77", "intent 140"} < set(shown)
    assert shown == sorted(shown, key=lambda name: int(name.split()[1]))
    assert cells(axes)[shown.index("intent 140"), shown.index("intent 3")] == "7"
    assert within(figure)


@pytest.mark.parametrize(
    "classes",
    [
        ["only"],
        ["no", "yes"],
        ["体育新闻", "财经", "房产家居装修", "テクノロジー", "한국어 정치"],
        ["$5", "$x_{$", "🤗", "a\nb", "", "_under", "<b>&amp;</b>", "W" * 200, "模" * 200],
        [f"comp.sys.ibm.pc.hardware.thing{index}" for index in range(20)],
        [f"class {index}" for index in range(25)],
    ],
    ids=lambda classes: str(len(classes)),
)
@pytest.mark.parametrize("scale", [0, 7, 123456789])
def test_whatever_the_classes_their_names_have_room(classes: list[str], scale: int) -> None:
    counts = np.full((len(classes), len(classes)), scale)
    figure = plot_confusion(counts, classes)
    assert within(figure)
    svg(figure, title="confusions")
    (axes,) = figure.axes
    assert len(set(names(axes)[0])) == len(classes)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        extents = [tick.get_window_extent() for tick in ticks]
        if not ticks or ticks[0].get_rotation() != 45:  # boxes of slanted ones do overlap
            pairs = itertools.pairwise(box for box in extents if box.width)
            assert not any(one.overlaps(other) for one, other in pairs)
    for text in axes.texts[:3]:  # counts stay in their cells
        assert text.get_window_extent().width < axes.get_window_extent().width / len(classes)


def test_confusions_need_a_row_and_a_column_a_name() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\); there are 3 names"):
        plot_confusion(np.zeros((2, 3)), ["a", "b", "c"])


def test_reliability_shows_bins_that_have_rows() -> None:
    figure = plot_reliability(**BINS)
    points, rows = figure.axes
    diagonal, line = points.lines
    assert np.array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert np.allclose(line.get_xydata(), [[0.4, 0.5], [0.7, 0.6], [0.9, 0.8]])
    assert points.get_title() == "expected calibration error 0.1000"
    assert list(rows.patches[0].get_data().values) == [0, 10, 20, 70]
    assert points.get_legend() is None
    assert within(figure)


def test_reliability_before_and_after_a_temperature() -> None:
    figure = plot_reliability(**BINS, after=AFTER)
    points, rows = figure.axes
    _, before, after = points.lines
    assert list(before.get_xdata()) == [0.4, 0.7, 0.9]
    assert list(after.get_xdata()) == [0.4, 0.65, 0.8]
    assert to_rgb(before.get_color()) != to_rgb(after.get_color())
    assert "0.1000; with the temperature 0.0200" in points.get_title()
    labels = [text.get_text() for text in points.get_legend().get_texts()]
    assert labels == ["as trained", "with the temperature"]
    assert len(rows.patches) == 2
    assert within(figure)


def test_reliability_without_rows_or_with_many() -> None:
    empty = {**BINS, "confidence": [None] * 4, "accuracy": [None] * 4, "counts": [0] * 4}
    assert within(plot_reliability(**empty))
    assert within(plot_reliability(**BINS | {"counts": [0, 10**6, 10**7, 5 * 10**6]}))


def attention(heads: int, length: int) -> np.ndarray:
    scores = np.random.default_rng(0).random((heads, length, length))
    return scores / scores.sum(axis=-1, keepdims=True)


def test_attention_has_a_panel_a_head() -> None:
    scores = attention(5, 4)
    figure = plot_attention(scores, ["[CLS]", "模型", "$x$", "[SEP]"], title="第一层 $1")
    pixels(figure)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"head {head}" for head in range(5)]
    for axes, expected in zip(panels, scores, strict=True):
        assert np.allclose(axes.images[0].get_array(), expected)  # rows are rows
        assert axes.images[0].norm is panels[0].images[0].norm  # colours mean the same in all
    assert names(panels[0])[0] == ["[CLS]", "模型", "$x$", "[SEP]"]
    assert names(panels[-1]) == (["[CLS]", "模型", "$x$", "[SEP]"],) * 2
    assert figure.get_suptitle() == "第一层 $1"


def test_attention_of_chosen_heads() -> None:
    scores = attention(4, 3)
    figure = plot_attention(scores, ["a", "b", "c"], title="layer 2", heads=[3, 1])
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["head 3", "head 1"]
    assert np.allclose(panels[0].images[0].get_array(), scores[3])


@pytest.mark.parametrize(("heads", "length"), [(1, 1), (1, 40), (2, 40), (2, 128)])
def test_tokens_of_attention_do_not_overlap(heads: int, length: int) -> None:
    tokens = [("word", "模型", "##ing", "한국", "W" * 50)[index % 5] for index in range(length)]
    figure = plot_attention(attention(heads, length), tokens, title="a long title " * 20)
    assert within(figure)
    first = figure.axes[0]
    assert len(first.get_yticks()) == (length if length <= 40 else 43)
    for ticks in (first.get_xticklabels(), first.get_yticklabels()):
        middles = [
            (box.x0 + box.x1, box.y0 + box.y1)
            for box in (tick.get_window_extent() for tick in ticks)
        ]
        for (x, y), (next_x, next_y) in itertools.pairwise(middles):
            assert max(abs(x - next_x), abs(y - next_y)) / 2 > 9  # dots; letters have 7 points


@pytest.mark.parametrize(
    ("shape", "heads", "message"),
    [
        ((2, 3, 4), None, r"\(2, 3, 4\); there are 3 tokens"),
        ((3, 3), None, r"\(3, 3\); there are 3 tokens"),
        ((2, 3, 3), [2], r"0 to 1, and one at least: \[2\]"),
        ((2, 3, 3), [-1], r"0 to 1, and one at least: \[-1\]"),
        ((2, 3, 3), [], r"0 to 1, and one at least: \[\]"),
    ],
)
def test_attention_that_does_not_fit(
    shape: tuple[int, ...], heads: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plot_attention(np.zeros(shape), ["a", "b", "c"], title="", heads=heads)


def test_a_line_has_its_colour_in_every_panel() -> None:
    figure = plot_curves(
        {
            "loss": {"train": [(1, 0.9), (2, 0.5)], "_验证": [(1, 1.0), (2, math.nan), (3, 0.7)]},
            "准确率 $": {"_验证": [(1, 0.5), (2, 0.6)]},
        },
        steps="step",
    )
    pixels(figure)
    loss, accuracy = figure.axes
    assert [axes.get_title() for axes in (loss, accuracy)] == ["loss", "准确率 $"]
    assert loss.lines[0].get_xydata().tolist() == [[1, 0.9], [2, 0.5]]
    assert loss.lines[1].get_xydata().tolist() == [[1, 1.0], [3, 0.7]]
    assert accuracy.lines[0].get_color() == loss.lines[1].get_color() != loss.lines[0].get_color()
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "_验证"]
    assert loss.get_xlabel() == "step"


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"a": {}},
        {"a": {"x": []}, "b": {"x": [(1, math.inf)]}},
        {"a": {"x": [(3, 1.0)]}},
        {f"chart {i}": {f"line {j}": [(1, i), (2, j)] for j in range(25)} for i in range(7)},
    ],
    ids=lambda curves: f"{len(curves)} charts",
)
def test_whatever_the_curves_a_picture_comes_out(curves: dict) -> None:
    figure = plot_curves(curves)
    assert pixels(figure).size
    assert len(figure.axes) == len(curves)
    assert svg(figure, title="curves").count("<text") >= len(curves)


def test_lengths_beyond_the_limit_are_marked() -> None:
    figure = plot_lengths([0, 10, 20, 30], [5, 10, 5], max_length=19)
    (axes,) = figure.axes
    assert axes.get_title() == "max_length 19: 25.0% of the rows are longer"
    every, beyond = (patch.get_data() for patch in axes.patches)
    assert (list(every.values), list(every.edges)) == ([5, 10, 5], [0, 10, 20, 30])
    assert (list(beyond.values), list(beyond.edges)) == ([5], [20, 30])
    assert axes.lines[0].get_xdata()[0] == 20
    assert within(figure)


def test_a_bin_that_the_limit_splits() -> None:
    axes = plot_lengths([0, 10, 20], [10, 10], max_length=14).axes[0]
    assert axes.get_title() == "max_length 14: 25.0% of the rows are longer"
    assert list(axes.patches[1].get_data().edges) == [15, 20]
    axes = plot_lengths([0, 10, 20], [10, 10], max_length=14, truncated=3).axes[0]
    assert axes.get_title() == "max_length 14: 15.0% of the rows are longer"


@pytest.mark.parametrize(
    ("edges", "counts", "limit", "title"),
    [
        ([0, 10, 20], [10, 10], 512, "no row is longer"),
        ([0, 1], [0], 5, "no row is longer"),
        ([50, 60], [3], 5, "100.0% of the rows are longer"),
        ([0, 10, 20], [10**6, 1], 9, "<0.1% of the rows are longer"),
    ],
)
def test_lengths_on_one_side_of_the_limit(
    edges: list[int], counts: list[int], limit: int, title: str
) -> None:
    figure = plot_lengths(edges, counts, max_length=limit)
    assert within(figure)
    assert figure.axes[0].get_title() == f"max_length {limit}: {title}"


def test_pictures_of_an_epoch_are_fast() -> None:
    counts = np.full((10, 10), 3)
    classes = [f"class {index}" for index in range(10)]

    def seconds() -> float:
        began = time.process_time()  # others may use the machine
        png(plot_confusion(counts, classes))
        png(plot_reliability(**BINS, after=AFTER))
        return time.process_time() - began

    seconds()  # matplotlib finds its fonts
    assert min(seconds() for _ in range(3)) < 0.5
