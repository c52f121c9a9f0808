"""Figures of what a model does: confusions, calibration, attention, curves, lengths.

They are pictures for TensorBoard, drawn once an epoch, and parts of a page; what they cost is the
number of their texts and ticks. Knows no Keras.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kbert.plots import BLUE, GREY, ORANGE, PALE, as_text, frame, new_figure, shortened, widest

MOST_CLASSES = 25  # that a confusion matrix has room for
LONGEST_NAME = 24  # letters, of a class or of a line
LONGEST_TOKEN = 14
LETTER_POINTS = 0.6  # width of a letter, in its size
TOKEN_INCHES = 0.11  # room of a token on an axis, at 7 points
MOST_TOKENS = 48  # which have a label each
RIGHT = LinearSegmentedColormap.from_list("right", ["#ffffff", "#a9cce8", BLUE, "#0b2f5c"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#f9cfa6", ORANGE, "#8a3b00"])
# Okabe and Ito's for the colour-blind, its first two in the shades of the other figures
LINES = (BLUE, ORANGE, "#009e73", "#cc79a7", "#5f6368", "#56b4e9", "#b8a000")


def plot_confusion(counts: Any, names: Sequence[str]) -> Figure:
    """How often each label got each prediction: rows are labels, columns predictions.

    The colour is the share of the cell in its row, blue for what is right, orange for what is
    wrong, where a small share already has some colour. Empty cells stay empty. Of more than 25
    classes those with the most confusions are shown, which the title says.

    Args:
        counts: Whole numbers, (classes, classes).
        names: Of the classes.

    Raises:
        ValueError: there is not one row, one column a name.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"counts have the shape {counts.shape}; there are {len(names)} names")
    shown = _most_confused(counts)
    size = 10 if len(shown) <= 12 else 8
    labels = [shortened(names[int(index)], LONGEST_NAME) for index in shown]
    figure = Figure(figsize=(8, 6))
    axes = figure.add_subplot()
    cell, rotation = _lay_out_names(figure, labels, size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _cells(axes, counts[np.ix_(shown, shown)], shares[np.ix_(shown, shown)], cell)
    # in the middle of the figure: beside long names it is wider than the matrix
    figure.suptitle(_confusion_title(counts, len(shown)), fontsize=12, fontweight="bold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(shown)), labels, fontsize=size, **as_text())
    look: dict[str, Any] = as_text()
    if rotation:
        look |= {"rotation": rotation, "rotation_mode": "anchor", "ha": "right", "va": "center"}
    axes.set_xticks(range(len(shown)), labels, fontsize=size, **look)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    return figure


def plot_reliability(
    edges: Any,
    confidence: Any,
    accuracy: Any,
    counts: Any,
    *,
    ece: float,
    after: Mapping[str, Any] | None = None,
) -> Figure:
    """How often the model is right against how sure it is; below, how often it is how sure.

    On the diagonal it is as often right as it says. Bins without rows have no point.

    Args:
        edges: Of the bins of confidence, from 0 to 1, (bins + 1,).
        confidence: Mean of the rows in each bin, (bins,); of bins without rows anything.
        accuracy: Share of the rows in each bin that are right, (bins,), likewise.
        counts: Rows in each bin, (bins,).
        ece: Expected calibration error, from 0 to 1.
        after: The same five by name, with a temperature, to show beside.
    """
    figure = Figure(figsize=(8, 6))
    # by hand: matplotlib's layout takes as long as all the drawing
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.09, top=0.93, hspace=0.12)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    points, rows = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    for axes in (points, rows):
        frame(axes)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    points.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2)
    before = {"edges": edges, "confidence": confidence, "accuracy": accuracy, "counts": counts}
    title = f"expected calibration error {ece:.4f}"
    if after is None:
        _reliability(points, rows, before, BLUE, "o", "model")
    else:
        title += f"; with the temperature {after['ece']:.4f}"
        _reliability(points, rows, before, ORANGE, "s", "as trained")
        _reliability(points, rows, after, BLUE, "o", "with the temperature")
        points.legend(frameon=False, loc="upper left")
    points.set_title(title, fontsize=12, fontweight="bold")
    points.set_ylim(0, 1.02)
    points.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    points.tick_params(labelbottom=False)
    points.set_ylabel("share that is right")
    rows.set_ylim(0, 1.05 * max(1, *counts, *(after or before)["counts"]))
    rows.set_ylabel("rows")
    rows.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    rows.set_xlabel("confidence: probability of the prediction")
    return figure


def plot_attention(
    scores: Any, tokens: Sequence[str], *, title: str, heads: Sequence[int] | None = None
) -> Figure:
    """What each token looks at, a panel a head: rows look at columns, a row sums to one.

    Args:
        scores: Of one text and one layer, (heads, length, length).
        tokens: (length,); up to about 40 are easy to read, of more than 48 not each has a label.
        title: Which text, which layer.
        heads: Which heads, counted from 0; all by default.

    Raises:
        ValueError: scores and tokens do not fit together, or there is no such head.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.ndim != 3 or scores.shape[1:] != (len(tokens), len(tokens)):
        raise ValueError(f"scores have the shape {scores.shape}; there are {len(tokens)} tokens")
    chosen = list(range(len(scores)) if heads is None else heads)
    if not chosen or not all(0 <= head < len(scores) for head in chosen):
        raise ValueError(f"heads must be among 0 to {len(scores) - 1}, and one at least: {chosen}")
    columns = min(len(chosen), 4) if len(chosen) != 4 else 2
    rows = math.ceil(len(chosen) / columns)
    side = min(max(2.2 if columns > 1 else 4.0, TOKEN_INCHES * len(tokens)), 5.5)
    figure = new_figure(columns * side + 1.6, rows * (side + 0.3) + 1.3)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    colour = Normalize(0, float(np.nanmax(scores[chosen], initial=0.0)) or 1.0)
    for axes in panels[len(chosen) :]:
        axes.remove()
    panels = list(panels[: len(chosen)])
    for index, (axes, head) in enumerate(zip(panels, chosen, strict=True)):
        axes.imshow(scores[head], norm=colour, cmap=RIGHT, aspect="auto", interpolation="none")
        axes.set_title(f"head {head}", fontsize=10)
        axes.spines[:].set_color("#c8ccd0")
        _token_labels(axes, tokens, side, left=index % columns == 0,
                      bottom=index + columns >= len(chosen))  # fmt: skip
    bar = figure.colorbar(panels[0].images[0], ax=panels, shrink=0.6, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    inches = figure.get_figwidth()
    longest = int(inches * 72 / (12 * (LETTER_POINTS + 0.08)))
    figure.suptitle(shortened(title, longest), fontsize=12, **as_text())
    return figure


def plot_curves(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, steps: str = "epoch"
) -> Figure:
    """A panel a chart, with its lines; a line has the same colour in every panel.

    Args:
        curves: Chart -> line -> points (step, value). Points that are no number are left out.
        steps: What is counted on the lower axis.
    """
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(curves), 3)
    rows = max(1, math.ceil(len(curves) / columns))
    figure = new_figure({1: 8.0, 2: 9.0, 3: 11.0}[columns], {1: 4.5}.get(columns, 3.2) * rows)
    names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    for index, (chart, lines) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        frame(axes)
        axes.set_title(shortened(chart, 40), fontsize=11, **as_text())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.ticklabel_format(axis="y", useOffset=False)
        if index + columns >= len(curves):
            axes.set_xlabel(steps)
        drawn = [_curve(axes, lines[name], names.index(name)) for name in lines]
        low, high = axes.dataLim.intervalx
        if not low < high:  # one step, or none
            axes.set_xlim((low - 0.5, low + 0.5) if low == high else (0, 1))
        if drawn:
            columns_of_legend = math.ceil(len(drawn) / 10)
            legend = axes.legend(
                drawn,
                ["."] * len(drawn),
                fontsize=9 if columns_of_legend == 1 else 6,
                framealpha=0.7,
                ncols=columns_of_legend,
            )
            legend.set_in_layout(False)
            # by hand: matplotlib leaves out names that begin with an underscore
            for text, name in zip(legend.get_texts(), lines, strict=True):
                text.set(text=shortened(name, LONGEST_NAME), **as_text())
    return figure


def plot_lengths(
    edges: Any, counts: Any, *, max_length: int, truncated: int | None = None
) -> Figure:
    """How long the texts are, and how many of them are cut; what is beyond the limit is orange.

    Args:
        edges: Of the bins, in word pieces, (bins + 1,); a bin has its lower edge, not its upper.
        counts: Rows in each bin, (bins,).
        max_length: Longer rows are cut.
        truncated: How many rows are longer, if it is known; else it is guessed from the bins.
    """
    edges, counts = np.asarray(edges, dtype=float), np.asarray(counts, dtype=float)
    figure = new_figure(8, 4)
    axes = figure.add_subplot()
    frame(axes)
    total = counts.sum()
    # whole numbers above max_length begin at max_length + 1
    within = np.clip((max_length + 1 - edges[:-1]) / np.maximum(np.diff(edges), 1e-9), 0, 1)
    beyond = float((counts * (1 - within)).sum()) if truncated is None else truncated
    limit = min(max(max_length + 1, edges[0]), edges[-1])
    axes.stairs(counts, edges, fill=True, color=BLUE)
    if limit < edges[-1]:
        last = np.searchsorted(edges, limit, side="right") - 1
        axes.stairs(counts[last:], [limit, *edges[last + 1 :]], fill=True, color=ORANGE)
    axes.axvline(max_length + 1, color=GREY, linestyle="--", linewidth=1.2)
    axes.set_xlim(edges[0], max(edges[-1], 1.05 * (max_length + 1)))
    axes.set_ylim(0, 1.05 * max(1, counts.max(initial=0)))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("length (word pieces)")
    axes.set_ylabel("rows")
    longer = f"{_percent(beyond / total)} of the rows are" if beyond else "no row is"
    axes.set_title(f"max_length {max_length}: {longer} longer", fontsize=12, fontweight="bold")
    return figure


def _most_confused(counts: np.ndarray) -> np.ndarray:
    """Positions of the classes to show, in their order."""
    wrong = counts - np.diag(np.diag(counts))
    confusions = wrong.sum(axis=0) + wrong.sum(axis=1)
    return np.sort(np.argsort(-confusions, kind="stable")[:MOST_CLASSES])


def _confusion_title(counts: np.ndarray, shown: int) -> str:
    rows, right = int(counts.sum()), int(np.trace(counts))
    title = f"{right:,} of {rows:,} rows right" + (f" ({right / rows:.1%})" if rows else "")
    if shown < len(counts):
        title += f"\nthe {shown} of {len(counts)} classes with the most confusions"
    return title


def _lay_out_names(figure: Figure, labels: Sequence[str], size: float) -> tuple[float, int]:
    """Leave room for the names of the classes, which are as wide below as they are at the left.

    By hand: matplotlib's layout takes as long as all the drawing.

    Returns:
        The width of a cell in inches, and by how many degrees the names below are turned.
    """
    width, height = figure.get_size_inches()
    name = widest(labels, size=size)
    left = name + 0.45
    cell = (width - left - 0.15) / len(labels)
    rotation = 0 if name < 0.95 * cell else 45 if len(labels) <= 12 else 90
    below = {0: 0.2, 45: 0.71 * name + 0.2, 90: name + 0.1}[rotation]
    figure.subplots_adjust(
        left=left / width, right=1 - 0.15 / width, bottom=(below + 0.35) / height, top=0.915
    )
    return cell, rotation


def _cells(axes: Axes, cells: np.ndarray, shares: np.ndarray, inches: float) -> None:
    """The colours, and the counts that are not zero, in cells of a width."""
    classes = len(cells)
    diagonal = np.eye(classes, dtype=bool)
    strength = np.where(diagonal, shares, np.sqrt(shares))
    colours = np.where(diagonal[..., None], RIGHT(strength), WRONG(strength))
    axes.imshow((255 * colours).astype(np.uint8), aspect="auto", interpolation="none")
    edges = np.arange(classes + 1) - 0.5
    axes.hlines(edges, -0.5, classes - 0.5, color=PALE, linewidth=0.8)
    axes.vlines(edges, -0.5, classes - 0.5, color=PALE, linewidth=0.8)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
    room = 72 * inches / LETTER_POINTS  # times letters, times points
    short = len(str(cells.max(initial=0))) * 6 > room
    numbers = {count: _number(count, short) for count in np.unique(cells[cells > 0]).tolist()}
    longest = max(map(len, numbers.values()), default=1)
    size = min(11.0, 0.85 * room / longest, 200 / classes)
    for row, column in np.argwhere(cells).tolist():
        axes.text(
            column,
            row,
            numbers[int(cells[row, column])],
            ha="center",
            va="center_baseline",
            fontsize=size,
            color="white" if strength[row, column] > 0.55 else "#202124",
        )


def _number(count: int, short: bool) -> str:
    """All digits, or four letters at most: 12k."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")) if short else ():
        if count >= unit:
            return f"{count / unit:.{1 if count < 10 * unit else 0}f}{letter}"
    return str(count)


def _reliability(
    points: Axes, rows: Axes, bins: Mapping[str, Any], colour: str, marker: str, label: str
) -> None:
    counts = np.asarray(bins["counts"], dtype=float)
    filled = counts > 0
    # None stands for a bin without rows, too
    confidence, accuracy = (
        np.asarray(bins[name], dtype=float)[filled] for name in ("confidence", "accuracy")
    )
    points.plot(confidence, accuracy, color=colour, marker=marker, markersize=6, linewidth=1.8,
                label=label, clip_on=False, zorder=3)  # fmt: skip
    rows.stairs(counts, np.asarray(bins["edges"], dtype=float), color=colour, linewidth=1.6)


def _token_labels(
    axes: Axes, tokens: Sequence[str], side: float, *, left: bool, bottom: bool
) -> None:
    every = math.ceil(len(tokens) / MOST_TOKENS)
    places = range(0, len(tokens), every)
    size = min(9.0, max(7.0, 45 * side / max(1, len(places))))
    labels = [shortened(tokens[place], LONGEST_TOKEN) for place in places]
    axes.tick_params(length=0)
    if left:
        axes.set_yticks(places, labels, fontsize=size, **as_text())
    else:
        axes.set_yticks([])
    if bottom:
        axes.set_xticks(places, labels, fontsize=size, rotation=90, **as_text())
    else:
        axes.set_xticks([])


def _curve(axes: Axes, points: Sequence[tuple[float, float]], order: int) -> Any:
    kept = [(step, value) for step, value in points if math.isfinite(value)]
    (line,) = axes.plot(
        [step for step, _ in kept],
        [value for _, value in kept],
        color=LINES[order % len(LINES)],
        linestyle=("-", "--", ":")[order // len(LINES) % 3],
        linewidth=1.8,
        marker="o" if len(kept) <= 20 else None,
        markersize=4,
    )
    return line


def _percent(share: float) -> str:
    """One digit behind the point, but never 0.0% of what there is."""
    return "<0.1%" if 0 < share < 0.001 else f"{share:.1%}"
