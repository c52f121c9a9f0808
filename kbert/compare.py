"""Finished runs side by side, with paired tests: `python -m kbert.compare --help`.

Reads what the runs have written, and needs neither TensorFlow nor their models. Exit status 0, or
2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kbert.command import finish
from kbert.errors import InputError
from kbert.foreign_files import malformed_told, read_object, read_options, refuse_links_out
from serve.command_line import OneLineParser

if TYPE_CHECKING:
    import numpy as np

EPILOG = """\
The first run is compared with each other one:

  python -m kbert.compare runs/news runs/news_longer runs/news_frozen --json comparison.json

A paired test needs the same test rows in both runs: name the same test file (or let both draw
their test rows from the same file with the same seed).
"""
LEVEL = 0.95  # of the intervals
READ = ("*.json", "*.yaml", "*.csv")
ADVICE = "bring the run's own files back"
FIGURES = {"accuracy": ("accuracy",), "f1_macro": ("f1_macro",), "log_loss": ("log_loss", "loss")}
"""Figures of the table, and their names in metrics.json, the newer one first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare what the command line names; the exit status."""
    options = _parse(arguments)
    return finish("kbert.compare", lambda: _compare(options), debug=options.debug)


def _compare(options: argparse.Namespace) -> None:
    runs = [read_run(Path(folder)) for folder in options.runs]
    with malformed_told(Path(", ".join(options.runs)), advice=ADVICE):
        comparison = compare(runs)
        lines = _table(comparison)
    if options.json:
        _write_json(Path(options.json), comparison)
    _print(comparison, *lines)


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """What a finished run has written, as far as a comparison needs it."""

    folder: Path
    options: Mapping[str, Any]
    """By full name, such as "train.epochs"; what the run lacks has its default."""
    metrics: Mapping[str, Any]
    """metrics.json."""

    @property
    def name(self) -> str:
        """The folder, as it was named."""
        return str(self.folder)

    @property
    def split(self) -> str | None:
        """What the figures are of: test, or validation where no test row has a label."""
        found = (name for name in ("test", "validation") if _part(self.metrics, name))
        return next(found, None)

    @property
    def figures(self) -> Mapping[str, Any]:
        """The part of metrics.json about `split`."""
        return _part(self.metrics, self.split or "")

    @cached_property
    def predictions(self) -> Predictions | None:
        """Those of the test rows; None where the run wrote none."""
        path = self.folder / "predictions.csv"
        return _read_predictions(path) if path.is_file() else None

    @cached_property
    def test_digests(self) -> set[str]:
        """SHA-256 of the test file by the lineage of the run's export; nothing without one."""
        from kbert.lineage import LINEAGE_PLACE

        found = set()
        for path in sorted(self.folder.glob(f"export/*/*/{LINEAGE_PLACE.as_posix()}")):
            content = read_object(path, advice=ADVICE)
            digest = _part(_part(content, "data"), "test").get("sha256")
            found |= {digest} if isinstance(digest, str) else set()
        return found


@dataclass(frozen=True, eq=False)
class Predictions:
    """What predictions.csv says."""

    rows: np.ndarray
    """Row numbers in the test file, from 1, int64 (rows,)."""
    labels: np.ndarray
    """str (rows,) in an object array; all None where the test file has no labels."""
    predictions: np.ndarray
    """str (rows,) in an object array."""

    @property
    def is_labelled(self) -> bool:
        """Whether the labels are known."""
        return self.labels[0] is not None

    @property
    def right(self) -> np.ndarray:
        """Whether each row's prediction is its label, bool (rows,)."""
        return (self.labels == self.predictions).astype(bool)


def read_run(folder: Path) -> ComparedRun:
    """Read a run's config.yaml and metrics.json.

    Raises:
        InputError: the folder holds no run, or one that is not finished.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: no run (no config.yaml): name the folder of a run.")
    if not (folder / "metrics.json").is_file():
        raise InputError(
            f"{folder}: the run is not finished (no metrics.json): the command that began it goes "
            "on."
        )
    refuse_links_out(folder, READ)
    content = read_options(folder / "config.yaml", advice=ADVICE)
    metrics = read_object(folder / "metrics.json", advice=ADVICE)
    with malformed_told(folder, advice=ADVICE):
        return ComparedRun(folder, _options(content, metrics), metrics)


def compare(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """The figures of runs, and a paired test of the first one with each other.

    Args:
        runs: Two or more.

    Returns:
        As JSON holds it: "runs", "baselines" (of each distinct linear model) and "pairs". A
        figure is {"value", "interval"}, None where it is not known. In "pairs", "difference" is
        the accuracy of "run" less that of "first"; "reason" tells why there is no test. Two runs
        without predictions, as of masked_lm, are no pair.

    Raises:
        InputError: a file of a run cannot be read.
    """
    differing = _differing([run.options for run in runs])
    shown = []
    for run in runs:
        train = _part(run.metrics, "train")
        shown.append(
            {
                "run": run.name,
                "task": run.options.get("task.name"),
                "checkpoint": run.options.get("model.checkpoint"),
                "options": {name: run.options.get(name) for name in differing},
                "split": run.split,
                "rows": run.figures.get("rows"),
                **_figures(run.figures),
                "seconds": _number(train.get("seconds")),
                "examples_per_second": _number(train.get("examples_per_second")),
                "against_baseline": _against_baseline(run),
            }
        )
    pairs = [_pair(runs[0], run) for run in runs[1:] if runs[0].predictions or run.predictions]
    return {"level": LEVEL, "runs": shown, "baselines": _baselines(runs), "pairs": pairs}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="kbert.compare",
        description="Prints finished runs side by side, and tests whether they differ by luck.",
        epilog=EPILOG,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run")
    parser.add_argument("--json", metavar="FILE", help="write the comparison there too")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if len(options.runs) < 2:
        parser.error("name two runs or more")
    resolved = [Path(folder).resolve() for folder in options.runs]
    repeated = [name for name, path in zip(options.runs, resolved, strict=True)
                if resolved.count(path) > 1]  # fmt: skip
    if repeated:
        parser.error(f"{repeated[-1]} is named twice")
    return options


# Reading


def _read_predictions(path: Path) -> Predictions:
    import pyarrow as pa
    import pyarrow.csv

    types = {"row": pa.int64(), "label": pa.string(), "prediction": pa.string()}
    convert = pa.csv.ConvertOptions(
        column_types=types, include_columns=list(types), include_missing_columns=True
    )
    parse = pa.csv.ParseOptions(newlines_in_values=True)  # labels may have them
    try:
        table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if table.num_rows == 0 or table["row"].null_count or table["prediction"].null_count:
        raise InputError(f"{path}: not the predictions of a run (columns row, prediction).")
    return Predictions(*(table[name].to_numpy() for name in types))


def _options(content: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """The options that made the model: defaults, config.yaml, and what a search has found."""
    from kbert.config import with_defaults
    from kbert.lineage import LEFT_OUT
    from kbert.search_space import OPTIONS

    options = _flat(with_defaults(content))
    winner = _part(_part(metrics, "search"), "winner")
    for name, value in _part(winner, "hyperparameters").items():
        options[OPTIONS[name][0] if name in OPTIONS else name] = value
    train = _part(metrics, "train")
    for name in ("learning_rate", "batch_size", "seed"):
        options[f"train.{name}"] = train.get(name, options.get(f"train.{name}"))
    return {
        name: value
        for name, value in options.items()
        if not any(name == left or name.startswith(f"{left}.") for left in LEFT_OUT)
        # which values a search tries is not what the model was made with
        and (not name.startswith("search.") or name == "search.tuner")
    }


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def _differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the options that are not the same in all runs, besides task and checkpoint."""
    names = dict.fromkeys(name for of in options for name in of)
    return [
        name
        for name in names
        if name not in ("task.name", "model.checkpoint")
        and any(of.get(name) != options[0].get(name) for of in options)
    ]


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in an object; an empty one where it is missing or (of old runs) something else."""
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


# Figures


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Value and interval of each figure of the table."""
    found = {}
    for figure, names in FIGURES.items():
        name = next((name for name in names if name in figures), names[-1])
        value = _number(figures.get(name))
        known = {"value": value, "interval": _interval(_part(figures, "intervals").get(name))}
        found[figure] = None if value is None else known
    return found


def _interval(bounds: object) -> list[float] | None:
    """[low, high], or None where they are not known."""
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    found = [number for bound in bounds if (number := _number(bound)) is not None]
    return found if len(found) == 2 else None


def _baselines(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The linear models of the runs, each distinct one once."""
    found: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
    for run in runs:
        baseline = _part(run.figures, "baseline")
        if not baseline:
            continue
        same = next((shown for content, shown in found if content == baseline), None)
        if same is not None:
            same["runs"].append(run.name)
            continue
        shown = {"runs": [run.name], "split": run.split, "rows": baseline.get("rows")}
        found.append((baseline, {**shown, **_figures(baseline)}))
    return [shown for _, shown in found]


def _against_baseline(run: ComparedRun) -> dict[str, Any] | None:
    """How a run compares with its own linear model, as metrics.json tells it."""
    paired = _part(run.figures, "paired")
    ours = _number(run.figures.get("accuracy"))
    theirs = _number(_part(run.figures, "baseline").get("accuracy"))
    p_value = _number(paired.get("p_value"))
    if ours is None or theirs is None or p_value is None:
        return None
    return {
        "only_ours": paired.get("only_ours"),
        "only_baseline": paired.get("only_baseline"),
        "difference": ours - theirs,
        "p_value": p_value,
    }


# Pairs


def _pair(first: ComparedRun, run: ComparedRun) -> dict[str, Any]:
    """The paired test of two runs on their test rows, or why there is none."""
    names = {"first": first.name, "run": run.name}
    theirs, ours = first.predictions, run.predictions
    if theirs is None or ours is None:
        missing = first if theirs is None else run
        return {**names, "reason": f"{missing.name} has no predictions.csv"}
    digests = first.test_digests | run.test_digests
    reason = _difference(first.name, theirs, run.name, ours)
    if first.test_digests and run.test_digests and len(digests) > 1:
        reason = "their test files differ (SHA-256 in the lineage of their exports)"
    return {**names, **({"reason": reason} if reason else _tested(theirs, ours))}


def _difference(first: str, theirs: Predictions, run: str, ours: Predictions) -> str | None:
    """How the labelled test rows of two runs differ; None where they are the same."""
    for name, predictions in ((first, theirs), (run, ours)):
        if not predictions.is_labelled:
            return f"the test rows of {name} have no labels"
    if len(theirs.rows) != len(ours.rows):
        return f"{first} has {len(theirs.rows)} test rows, {run} {len(ours.rows)}"
    place = (theirs.rows != ours.rows).argmax()
    if theirs.rows[place] != ours.rows[place]:
        return (
            f"their test rows are others: where {first} has row {theirs.rows[place]} of its file, "
            f"{run} has row {ours.rows[place]}"
        )
    place = (theirs.labels != ours.labels).argmax()
    if theirs.labels[place] != ours.labels[place]:
        return (
            f"their test rows are others: row {theirs.rows[place]} has the labels "
            f"{theirs.labels[place]!r} and {ours.labels[place]!r}"
        )
    return None


def _tested(theirs: Predictions, ours: Predictions) -> dict[str, Any]:
    """What the first run and another one get right of the same rows."""
    from kbert.paired_tests import mcnemar, paired_bootstrap

    right, first_right = ours.right, theirs.right
    tested = mcnemar(right, first_right)
    gain = paired_bootstrap(lambda of: float(of.mean()), right, first_right, level=LEVEL)
    return {
        "rows": len(right),
        "both_right": int((right & first_right).sum()),
        "only_first": tested.only_theirs,
        "only_run": tested.only_ours,
        "both_wrong": int((~right & ~first_right).sum()),
        "difference": gain.value,
        "interval": [gain.low, gain.high],
        "p_value": tested.p_value,
    }


# Showing


def _print(comparison: dict[str, Any], head: list[str], rows: list[list[str]]) -> None:
    _print_table(head, rows)
    for run in comparison["runs"]:
        if run["against_baseline"]:
            print(_baseline_sentence(run))
    for pair in comparison["pairs"]:
        print("\n".join(_pair_lines(pair)))
    if any("p_value" in pair for pair in comparison["pairs"]):
        print(
            "\npoints of accuracy, with 95% intervals by paired bootstrap; p by McNemar's test. "
            "They tell the luck of the test rows,\nnot that of the seed: train with other seeds "
            "before a small difference decides."
        )


def _table(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the runs, then the linear models."""
    runs = comparison["runs"]
    options = list(runs[0]["options"])
    last = [name.rpartition(".")[2] for name in options]
    heads = [short if last.count(short) == 1 else name
             for name, short in zip(options, last, strict=True)]  # fmt: skip
    head = ["run", "task", "checkpoint", *heads, "rows"]
    head += [*(name.replace("_", " ") for name in FIGURES), "seconds", "rows/s"]
    rows = [
        [
            run["run"],
            run["task"] or "",
            _ending(run["checkpoint"]) or "from scratch",
            *(_option(run["options"][name]) for name in options),
            *_measured(run),
            "" if run["seconds"] is None else f"{run['seconds']:.0f}",
            "" if run["examples_per_second"] is None else f"{run['examples_per_second']:.1f}",
        ]
        for run in runs
    ]
    for baseline in comparison["baselines"]:
        is_only = len(comparison["baselines"]) == 1 and len(baseline["runs"]) == len(runs)
        name = "linear model" if is_only else f"linear model of {', '.join(baseline['runs'])}"
        rows.append([name, *[""] * (2 + len(options)), *_measured(baseline), "", ""])
    return head, rows


def _measured(of: dict[str, Any]) -> list[str]:
    """Cells of the rows and the figures."""
    rows = f"{of['rows']} {of['split']}" if of["split"] and of["rows"] else of["split"] or ""
    return [rows, *(_figure(of[name]) for name in FIGURES)]


def _figure(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    bounds = figure["interval"]
    return f"{figure['value']:.4f}" + (f" ({bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else "")


def _option(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return _ending(value) if isinstance(value, str) else str(value)


def _ending(path: str | None) -> str:
    """The last two parts of a path, where checkpoints differ; the whole id of a hub's model."""
    return "/".join((path or "").replace("\\", "/").rstrip("/").split("/")[-2:])


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    # kbert.terminal would import TensorFlow
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in head:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # [b] is a text, not rich's markup
    console = Console()
    # a file or a pipe has no width to keep to
    (console if console.is_terminal else Console(width=10_000)).print(table)


def _pair_lines(pair: dict[str, Any]) -> list[str]:
    first, run = pair["first"], pair["run"]
    if "reason" in pair:
        return ["", f"{run} and {first}: no paired test: {pair['reason']}"]
    counts = (
        f"both right {pair['both_right']}, only {first} {pair['only_first']}, "
        f"only {run} {pair['only_run']}, both wrong {pair['both_wrong']}"
    )
    return ["", f"{run} and {first}, {pair['rows']} test rows: {counts}", _pair_sentence(pair)]


def _pair_sentence(pair: dict[str, Any]) -> str:
    """Which of two runs is better, by how much, and whether that may be luck."""
    better, worse, sign = pair["run"], pair["first"], 1
    if pair["difference"] < 0:
        better, worse, sign = worse, better, -1
    low, high = sorted(sign * bound for bound in pair["interval"])
    digits = _digits(pair["rows"])
    points = _points(abs(pair["difference"]), digits)
    bounds = f"({_points(low, digits)} to {_points(high, digits)})"
    if pair["difference"] == 0:
        return f"{better} and {worse} are right equally often {bounds}, {_p(pair['p_value'])}"
    luck = _luck(pair["p_value"])
    return f"{better} is better by {points} points {bounds}, {_p(pair['p_value'])}: {luck}"


def _baseline_sentence(run: dict[str, Any]) -> str:
    against = run["against_baseline"]
    difference = against["difference"]
    points = _points(abs(difference), _digits(run["rows"] or 0))
    words = "better than" if difference > 0 else "worse than"
    p_value = against["p_value"]
    if difference == 0:
        return f"{run['run']} is as good as its linear model, {_p(p_value)}"
    return (
        f"{run['run']} is {words} its linear model by {points} points, {_p(p_value)}: "
        f"{_luck(p_value)}"
    )


def _digits(rows: int) -> int:
    """Digits after the point that tell one row of a test from none."""
    return 1 if rows <= 1000 else 2


def _points(share: float, digits: int) -> str:
    text = f"{100 * share:.{digits}f}"
    return text if float(text) else text.lstrip("-")


def _p(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _luck(p_value: float) -> str:
    from kbert.paired_tests import CHANCE

    return "unlikely to be luck" if p_value < CHANCE else "may well be luck"


def _write_json(path: Path, comparison: dict[str, Any]) -> None:
    from kbert.whole_files import written_whole

    text = json.dumps(comparison, indent=2, ensure_ascii=False) + "\n"
    try:
        with written_whole(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror}.") from None


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())
