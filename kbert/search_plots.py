"""Figures of a search; knows no Keras."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from kbert.plots import (
    BLUE,
    GREY,
    ORANGE,
    ORDER,
    RED,
    as_text,
    ending,
    frame,
    new_figure,
    width,
)
from kbert.trials import Objective, Trial, Value, best_trial, short_texts, time_unit

FEW_VALUES = 6  # distinct ones, which get a place each
LOG_FACTOR = 20  # between the largest and the smallest value of an axis that is logarithmic
LONGEST_LABEL = 24  # letters
LETTER_INCHES = 0.075  # width of a letter of a label


@dataclass(frozen=True)
class _Shown:
    """What all panels of a figure have in common."""

    trials: list[Trial]
    """The finished ones, in the order they ended."""
    colours: dict[str, tuple]
    """By name: the later the darker."""
    best: Trial | None
    default: Trial | None
    """Trial 0, if it has a score."""
    limits: tuple[float, float]
    """Lowest and highest score that the panels have room for."""

    def scores(self) -> list[float]:
        return _scores(self.trials)


def plot_search(
    trials: Iterable[Trial], objective: Objective, hyperparameters: Sequence[str]
) -> Figure:
    """The best score against the time spent; below, the score against each hyper-parameter.

    Trials that run are left out; those that failed are crosses at the lower edge, those whose
    score is far off the others are triangles at the edge beyond which it lies.

    Args:
        trials: In the order they ended.
        objective: What the search looks at.
        hyperparameters: Names of those that get a panel.

    Returns:
        The figure, for `save_figure`.
    """
    shown = _shown([trial for trial in trials if trial.status != "running"], objective)
    columns = {1: 1, 2: 2, 4: 2}.get(len(hyperparameters), 3)
    rows = math.ceil(len(hyperparameters) / columns)
    figure = new_figure(9.0 if columns < 3 else 11.0, 3.6 + 2.7 * rows)
    grid = figure.add_gridspec(1 + rows, columns)
    history = figure.add_subplot(grid[0, :])
    _history(history, shown, objective)
    for index, name in enumerate(hyperparameters):
        panel = figure.add_subplot(grid[1 + index // columns, index % columns], sharey=history)
        _hyperparameter(panel, shown, name)
        if index % columns:
            panel.tick_params(labelleft=False)
        else:
            panel.set_ylabel(_axis_title(objective))
    figure.suptitle(_summary(shown, objective), fontsize=12, fontweight="bold")
    handles, labels = history.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(handles), frameon=False
        )
    return figure


def _shown(trials: list[Trial], objective: Objective) -> _Shown:
    last = max(1, len(trials) - 1)
    colours = {trial.name: ORDER(index / last) for index, trial in enumerate(trials)}
    default = next((trial for trial in trials if trial.is_default and trial.scored), None)
    limits = _limits(_scores(trials), _scores([default] if default else []), objective)
    return _Shown(trials, colours, best_trial(trials, objective), default, limits)


def _scores(trials: Iterable[Trial]) -> list[float]:
    return [trial.score for trial in trials if trial.scored and trial.score is not None]


def _limits(scores: list[float], always: list[float], objective: Objective) -> tuple[float, float]:
    """Room for the scores but the few that are so bad that the others would be one flat line."""
    if not scores:
        return 0.0, 1.0
    best = max(scores) if objective.larger_is_better else min(scores)
    reach = 4 * abs(best - statistics.median(scores)) or math.inf
    near = [score for score in scores if abs(score - best) <= reach] + always
    low, high = min(near), max(near)
    margin = 0.07 * (high - low) or 0.02 * abs(high) or 0.02
    return low - 2 * margin, high + margin  # crosses of failed trials stand at the lower edge


def _history(axes: Axes, shown: _Shown, objective: Objective) -> None:
    """The best score so far against the time that the trials took together."""
    _score_axis(axes, shown)
    axes.set_ylabel(_axis_title(objective))
    total = sum(trial.seconds for trial in shown.trials)
    unit, length = time_unit(total)
    axes.set_xlabel(f"time of all trials so far ({unit})")
    axes.set_xlim(0, 1.03 * total / length or 1.0)
    ends: dict[str, float] = {}
    times, best = [], []
    passed = 0.0
    for trial in shown.trials:
        passed += trial.seconds / length
        ends[trial.name] = passed
        if trial.scored and trial.score is not None:
            scores = [*best[-1:], trial.score]
            times.append(passed)
            best.append(max(scores) if objective.larger_is_better else min(scores))
    if best:
        steps = ([*times, passed], [*best, best[-1]])
        axes.plot(*steps, drawstyle="steps-post", color=BLUE, linewidth=1.8, label="best so far")
    else:
        axes.text(
            0.5,
            0.5,
            "no trial is completed yet",
            transform=axes.transAxes,
            ha="center",
            va="center",
        )
    _points(axes, shown, ends)


def _hyperparameter(axes: Axes, shown: _Shown, name: str) -> None:
    """The score against one hyper-parameter, of the trials in which it is active."""
    _score_axis(axes, shown)
    axes.set_xlabel(name)
    values = {
        trial.name: trial.values[name]
        for trial in shown.trials
        if name in trial.values and _finite(trial.values[name])
    }
    numbers = {trial: value for trial, value in values.items() if not isinstance(value, str)}
    if len(numbers) < len(values) or len(set(values.values())) <= FEW_VALUES:
        _points(axes, shown, _categories(axes, values))
    else:
        _scale(axes, list(numbers.values()))
        _points(axes, shown, numbers)


def _score_axis(axes: Axes, shown: _Shown) -> None:
    axes.set_ylim(shown.limits)
    axes.ticklabel_format(axis="y", useOffset=False)
    frame(axes)
    if shown.default is not None and shown.default.score is not None:
        axes.axhline(
            shown.default.score, color=GREY, linestyle="--", linewidth=1.2, label="default"
        )


def _points(axes: Axes, shown: _Shown, places: Mapping[str, float]) -> None:
    """A mark for each trial that has a place."""
    low, high = shown.limits
    kinds: dict[str, list[tuple[float, float, tuple]]] = {}
    for trial in shown.trials:
        if trial.name not in places:
            continue
        place, colour = places[trial.name], shown.colours[trial.name]
        if not trial.scored or trial.score is None:
            kinds.setdefault("failed", []).append((place, 0.04, colour))
        elif trial.score < low:
            kinds.setdefault("lower", []).append((place, 0.04, colour))
        elif trial.score > high:
            kinds.setdefault("higher", []).append((place, 0.96, colour))
        else:
            kinds.setdefault("trial", []).append((place, trial.score, colour))
    edge = axes.get_xaxis_transform()  # x as the data, y from 0 to 1 across the panel
    for kind, (marker, label) in {
        "trial": ("o", "trial (later ones are darker)"),
        "lower": ("v", "far below"),
        "higher": ("^", "far above"),
        "failed": ("x", "failed"),
    }.items():
        if kind not in kinds:
            continue
        x, y, colours = zip(*kinds[kind], strict=True)
        looks: dict[str, Any] = {"c": colours, "s": 38, "edgecolors": "white", "linewidths": 0.7}
        if kind == "failed":
            looks = {"c": RED, "s": 40, "linewidths": 1.8}
        if kind != "trial":
            looks["transform"] = edge
        axes.scatter(x, y, marker=marker, label=label, zorder=3, clip_on=False, **looks)
    if shown.best is not None and shown.best.name in places:
        axes.scatter(
            [places[shown.best.name]],
            _scores([shown.best]),
            marker="*",
            s=230,
            c=ORANGE,
            edgecolors="white",
            linewidths=0.8,
            label="best",
            zorder=4,
        )


def _categories(axes: Axes, values: Mapping[str, Value]) -> dict[str, float]:
    """Give each distinct value a place; the trials of one value stand a little side by side."""
    distinct = sorted(set(values.values()), key=lambda value: (isinstance(value, str), value))
    _label(axes, _labels(distinct))
    places: dict[str, float] = {}
    for index, value in enumerate(distinct):
        same = [trial for trial, other in values.items() if other == value]
        for order, trial in enumerate(same):
            places[trial] = index + 0.3 * ((order + 0.5) / len(same) - 0.5)
    return places


def _label(axes: Axes, labels: list[str]) -> None:
    """Labels beside each other, in two rows where they are too long for one, or upright."""
    grid = axes.get_gridspec()
    inches = axes.figure.get_figwidth() / (grid.ncols if grid else 1) - 0.7
    room = inches / LETTER_INCHES / max(1, len(labels))  # letters that each one has in a row
    longest = max(map(width, labels), default=0)
    upright = longest > 2 * room
    if longest > room and not upright:
        labels = [f"\n{label}" if index % 2 else label for index, label in enumerate(labels)]
    axes.set_xticks(
        range(len(labels)),
        labels,
        rotation=90 if upright else 0,
        fontsize=9,
        **as_text(),
    )
    axes.set_xlim(-0.6, max(len(labels), 1) - 0.4)


def _scale(axes: Axes, values: list[int | float]) -> None:
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_FACTOR:
        axes.set_xscale("log")
        decades = math.log10(high / low)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if decades < 3 else (1,), numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        margin = 10 ** (0.05 * decades)
        axes.set_xlim(low / margin, high * margin)
    else:
        whole = all(isinstance(value, int) for value in values)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
        margin = 0.05 * (high - low)
        axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _labels(values: list[Value]) -> list[str]:
    texts = short_texts(value for value in values if isinstance(value, str))
    digits = 3 if len({_number(value) for value in values}) == len(values) else 17
    return [
        ending(texts[value], LONGEST_LABEL) if isinstance(value, str) else _number(value, digits)
        for value in values
    ]


def _number(value: Value, digits: int = 3) -> str:
    """As few digits as suffice; small ones as 2e-4."""
    if isinstance(value, int | str):
        return str(value)
    if not 0 < abs(value) < 1e-3:
        return f"{value:.{digits}g}"
    number, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{number.rstrip('0').rstrip('.')}e{int(power)}"


def _finite(value: Value) -> bool:
    return isinstance(value, str) or math.isfinite(value)


def _axis_title(objective: Objective) -> str:
    validation = objective.title != objective.metric
    return f"validation {objective.title}" if validation else objective.title


def _summary(shown: _Shown, objective: Objective) -> str:
    failed = sum(not trial.scored for trial in shown.trials)
    count = f"{len(shown.trials)} trial{'' if len(shown.trials) == 1 else 's'}"
    parts = [f"{count}, {failed} failed" if failed else count]
    if shown.best is not None:
        name = f"{shown.best.name}, the default" if shown.best.is_default else shown.best.name
        parts.append(f"best {_axis_title(objective)} {shown.best.score:.4f} (trial {name})")
        if shown.default is not None and shown.default != shown.best:
            parts.append(f"default {shown.default.score:.4f}")
    return "; ".join(parts)
