"""The figures of a search: what is drawn where, and that drawing never fails or warns."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kbert.plots import save_figure
from kbert.search_plots import plot_search
from kbert.trials import Objective, Trial, Value

ACCURACY = Objective("val_accuracy", larger_is_better=True)
LOSS = Objective("val_loss", larger_is_better=False)


def completed(name: str, score: float, seconds: float = 60.0, **values: Value) -> Trial:
    return Trial(name, "completed", values, score, {}, 3, seconds, None)


def failed(name: str, seconds: float = 60.0, **values: Value) -> Trial:
    return Trial(name, "failed", values, None, {}, 0, seconds, "training diverged")


def running(name: str, **values: Value) -> Trial:
    return Trial(name, "running", values, None, {}, 1, 30.0, None)


def marks(axes: Axes, label: str) -> list[list[float]]:
    """[x, y] of the marks with this label."""
    found = [marks for marks in axes.collections if marks.get_label() == label]
    return [list(point) for mark in found for point in np.asarray(mark.get_offsets())]


def line(axes: Axes, label: str) -> list[list[float]]:
    """[xs, ys] of the line with this label."""
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return [list(map(float, found.get_xdata())), list(map(float, found.get_ydata()))]


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def saved(figure: Figure, path: Path) -> np.ndarray:
    """Write the figure with warnings as errors; its pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_best_so_far_against_time() -> None:
    trials = [
        completed("00", 0.5, 120),
        completed("02", 0.4, 60),
        failed("01", 60),
        completed("03", 0.8, 240),
        running("04"),
    ]
    history = plot_search(trials, ACCURACY, ()).axes[0]
    assert line(history, "best so far") == [[2, 3, 8, 8], [0.5, 0.5, 0.8, 0.8]]
    assert line(history, "default")[1] == [0.5, 0.5]
    assert marks(history, "trial (later ones are darker)") == [[2, 0.5], [3, 0.4], [8, 0.8]]
    assert [x for x, _ in marks(history, "failed")] == [4]
    assert marks(history, "best") == [[8, 0.8]]
    assert "(min)" in history.get_xlabel()
    assert history.get_ylabel() == "validation accuracy"


def test_the_smallest_loss_is_the_best() -> None:
    trials = [completed("00", 0.5, 3600), completed("01", 0.7, 3600), completed("02", 0.2, 7200)]
    history = plot_search(trials, LOSS, ()).axes[0]
    assert line(history, "best so far") == [[1, 2, 4, 4], [0.5, 0.5, 0.2, 0.2]]
    assert marks(history, "best") == [[4, 0.2]]
    assert "(h)" in history.get_xlabel()


def test_a_score_far_off_does_not_flatten_the_others() -> None:
    trials = [completed(f"{i:02}", score) for i, score in enumerate([0.9, 0.92, 0.91, 0.93, 0.1])]
    history = plot_search(trials, ACCURACY, ()).axes[0]
    assert history.get_ylim()[0] > 0.85
    assert [x for x, _ in marks(history, "far below")] == [history.get_xlim()[1] / 1.03]
    trials = [completed(f"{i:02}", score) for i, score in enumerate([0.2, 0.22, 0.21, 0.23, 9.0])]
    history = plot_search(trials, LOSS, ()).axes[0]
    assert history.get_ylim()[1] < 0.3
    assert len(marks(history, "far above")) == 1


def test_the_default_is_always_within() -> None:
    trials = [completed(f"{i:02}", score) for i, score in enumerate([0.1, 0.92, 0.91, 0.93, 0.9])]
    assert plot_search(trials, ACCURACY, ()).axes[0].get_ylim()[0] < 0.1


def test_few_values_get_a_place_each_in_their_order() -> None:
    trials = [completed(f"{i:02}", 0.5 + i / 50, size=size) for i, size in enumerate([128, 8, 32])]
    panel = plot_search([*trials, failed("03", size=8)], ACCURACY, ("size",)).axes[1]
    assert labels(panel) == ["8", "32", "128"]
    assert panel.get_xlabel() == "size"
    assert marks(panel, "best") == [[1, 0.54]]
    (own, _), (beside, _), (alone, _) = sorted(marks(panel, "trial (later ones are darker)"))
    ((cross, height),) = marks(panel, "failed")
    assert -0.5 < own < 0 < cross < 0.5 and height < 0.1  # two of one value, side by side
    assert (beside, alone) == (1, 2)


def test_wide_ranges_are_logarithmic_and_others_are_not() -> None:
    trials = [
        completed(f"{i:02}", 0.5, rate=1e-5 * 2**i, warmup=i / 10, sign=(-10.0) ** i)
        for i in range(8)
    ]
    _, rate, warmup, sign = plot_search(trials, ACCURACY, ("rate", "warmup", "sign")).axes
    assert [panel.get_xscale() for panel in (rate, warmup, sign)] == ["log", "linear", "linear"]
    for panel in (rate, warmup, sign):
        low, high = panel.get_xlim()
        assert all(low < x < high for x, _ in marks(panel, "trial (later ones are darker)"))
    ticks = rate.xaxis.get_major_formatter()
    assert [ticks(value) for value in (1e-5, 3e-4, 0.01)] == ["1e-5", "3e-4", "0.01"]


def test_a_hyperparameter_is_shown_where_it_is_active() -> None:
    trials = [completed("00", 0.5, a=1), completed("01", 0.6), completed("02", 0.7, a=math.nan)]
    panel = plot_search(trials, ACCURACY, ("a",)).axes[1]
    assert marks(panel, "trial (later ones are darker)") == [[0, 0.5]]


def test_folders_are_shown_by_their_last_part(tmp_path: Path) -> None:
    folders = ["/models/uncased_L-2_H-128_A-2", "/models/$x_{$", f"/models/{'very_' * 9}long"]
    trials = [completed(f"{i:02}", 0.5, folder=folder) for i, folder in enumerate(folders)]
    figure = plot_search(trials, ACCURACY, ("folder",))
    saved(figure, tmp_path / "search.png")
    shown = labels(figure.axes[1])
    assert [text.strip() for text in shown[:2]] == ["$x_{$", "uncased_L-2_H-128_A-2"]
    assert shown[2].startswith("…") and shown[2].endswith("very_long") and len(shown[2]) < 30


@pytest.mark.parametrize("count", [2, 4, 8, 15])
def test_labels_do_not_overlap(count: int) -> None:
    trials = [
        completed(f"{i:02}", 0.5, a=f"L-{i}_H-{'128' * 6}", b=i, c=f"{i}") for i in range(count)
    ]
    figure = plot_search(trials, ACCURACY, ("a", "b", "c"))
    figure.draw_without_rendering()
    for axes in figure.axes[1:]:
        ticks = axes.get_xticklabels()
        for one, other in itertools.combinations(ticks, 2):
            if one.get_text().startswith("\n") == other.get_text().startswith("\n"):  # one row
                assert not one.get_window_extent().overlaps(other.get_window_extent())


def test_chinese_is_drawn_without_a_warning(tmp_path: Path) -> None:
    folders = [
        "/模型/中文BERT",
        "/模型/哈工大讯飞联合实验室发布的中文预训练模型全词掩码版",
        "/x/🤗",
    ]
    trials = [completed(f"{i:02}", 0.5, folder=folder) for i, folder in enumerate(folders)]
    figure = plot_search(trials, ACCURACY, ("folder",))
    saved(figure, tmp_path / "模型.png")
    texts = [text.strip() for text in labels(figure.axes[1])]
    assert len(set(texts)) == 3
    assert any("中文BERT" in text for text in texts)
    assert any(text.startswith("…") and text.endswith("全词掩码版") for text in texts)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [running("00", a=1)],
        [failed("00", a=1)],
        [failed("00", 0.0, a=1), failed("01", 0.0, a="x")],
        [completed("00", 0.5, a=1)],
        [completed("00", 0.0, 0.0, a=0)],
        [completed("00", math.nan, a=1), completed("01", math.inf, a=2)],
        [completed("01", 0.5, a="x"), completed("02", 0.5, a="x"), completed("03", 0.5)],
        [completed(f"{i:02}", 0.5, a=f"value {'number ' * 3}{i}") for i in range(15)],
    ],
    ids=lambda trials: f"{len(trials)} trials",
)
def test_whatever_the_trials_a_picture_comes_out(trials: list[Trial], tmp_path: Path) -> None:
    figure = plot_search(trials, ACCURACY, ("a",))
    assert len(np.unique(saved(figure, tmp_path / "search.png"))) > 2
    for axes, label in itertools.product(figure.axes, ("best", "failed")):
        assert np.isfinite(marks(axes, label)).all()


def test_fourteen_hyperparameters_do_not_overlap(tmp_path: Path) -> None:
    names = [f"hyperparameter_{i}" for i in range(14)]
    trials = [
        completed(f"{i:02}", 0.5 + i / 100, **{name: i * 10.0**-k for k, name in enumerate(names)})
        for i in range(1, 10)
    ]
    figure = plot_search(trials, ACCURACY, names)
    saved(figure, tmp_path / "search.png")
    few = plot_search(trials, ACCURACY, names[:3])
    assert figure.get_figheight() > 2 * few.get_figheight()
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert len(boxes) == 15
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
