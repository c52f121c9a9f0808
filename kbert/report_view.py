"""What the sections of a run's report say, as plain values for its template; knows no HTML.

Each function takes a `Run` and gives the values of one section, or None where the run has nothing
for it: then the section is left out, and its entry in the contents too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kbert.paired_tests import McNemar, verdict

SPLITS = ("train", "validation", "test")
MANY_CLASSES = 20  # from here on the label balance is folded
STEP_CHARTS = 8  # at most
STEP_POINTS = 300  # of a line

Charts = dict[str, dict[str, list[tuple[float, float]]]]
"""Chart -> line -> points."""
Figure = tuple[str, str, bool | None]
CLASS_FIGURES: tuple[Figure, ...] = (
    ("accuracy", "accuracy", True),
    ("f1_macro", "F1, macro", True),
    ("f1_weighted", "F1, weighted", True),
    ("f1_micro", "F1, micro", True),
    ("precision_macro", "precision, macro", True),
    ("precision_weighted", "precision, weighted", True),
    ("precision_micro", "precision, micro", True),
    ("recall_macro", "recall, macro", True),
    ("recall_weighted", "recall, weighted", True),
    ("recall_micro", "recall, micro", True),
    ("matthews", "Matthews correlation", True),
)
"""Name in metrics.json, title, whether larger is better (None: neither)."""
PROBABILITY_FIGURES: tuple[Figure, ...] = (
    ("roc_auc", "ROC-AUC", True),
    ("pr_auc", "PR-AUC (average precision)", True),
    ("loss", "loss", False),
    ("log_loss", "log loss", False),
    ("brier", "Brier score", False),
    ("ece", "expected calibration error", False),
    ("perplexity", "perplexity", False),
    ("masked_pieces", "masked word pieces", None),
)
SMALLER_IS_BETTER = ("loss", "perplexity", "mse", "mae", "rmse")
"""How the names of other figures end."""
TITLES: dict[str, str] = {name: title for name, title, _ in (*CLASS_FIGURES, *PROBABILITY_FIGURES)}
PER_CLASS = (
    ("precision", "precision"),
    ("recall", "recall"),
    ("f1", "F1"),
    ("roc_auc", "ROC-AUC"),
    ("pr_auc", "PR-AUC"),
)


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    folder: Path
    config: Mapping[str, Any]
    """Of config.yaml."""
    options: str
    """Its text."""
    metrics: Mapping[str, Any]
    analysis: Mapping[str, Any] = field(default_factory=dict)
    """Of analysis.json; empty where there is none."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Of the export; empty without one."""
    trials: Sequence[Mapping[str, str]] = ()
    """Rows of search/trials.csv."""
    scalars: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] = field(default_factory=dict)
    """TensorBoard's points (step, value): train and validation -> tag -> points."""
    export_bytes: int = 0
    """Size of the export; 0 without one."""

    @property
    def split(self) -> str:
        """The split that counts: test, validation where there are no figures of a test."""
        return next((name for name in ("test", "validation") if self.metrics.get(name)), "")

    @property
    def figures(self) -> Mapping[str, Any]:
        """The figures of that split."""
        return self.metrics.get(self.split, {})

    @property
    def labels(self) -> list[str]:
        return [str(name) for name in self.figures.get("labels", [])]

    @property
    def task(self) -> str:
        return self.config.get("task", {}).get("name", "")

    @property
    def name(self) -> str:
        """Name of the served model."""
        given = self.config.get("export", {}).get("name")
        return given or Path(self.config.get("output") or self.folder.resolve()).name

    @property
    def version(self) -> int:
        """Version of the served model."""
        return self.config.get("export", {}).get("version", 1)


# Headline


def headline(run: Run) -> dict[str, Any]:
    """Task, the figures that count with their intervals, the baseline, and who is better."""
    figures, baseline = run.figures, run.figures.get("baseline")
    older = ("accuracy", "f1_macro") if run.labels else ("loss", "perplexity", "accuracy")
    names = run.metrics.get("headline", older)
    return {
        "name": run.name,
        "task": {"masked_lm": "masked words"}.get(run.task, run.task),
        "split": run.split,
        "rows": figures.get("rows"),
        "classes": len(run.labels),
        "checkpoint": _checkpoint(run),
        "created": run.lineage.get("created"),
        "figures": [
            _headline_figure(run, name, baseline) for name in names if figures.get(name) is not None
        ],
        "masked_pieces": figures.get("masked_pieces"),
        "verdict": _verdict(run) if run.labels else None,
    }


def _checkpoint(run: Run) -> str:
    known = run.lineage.get("checkpoint", {}).get("name")
    given = run.config.get("model", {}).get("checkpoint")
    if known or given:
        return known or given
    return "a model from scratch"


def _headline_figure(run: Run, name: str, baseline: Mapping[str, Any] | None) -> dict[str, Any]:
    """A figure with its interval, the baseline's, and where they stand on a common scale."""
    found = [("BERT", run.figures)] + ([("linear model", baseline)] if baseline else [])
    lines = [
        {"who": who, "value": of[name], "interval": of.get("intervals", {}).get(name)}
        for who, of in found
        if of.get(name) is not None
    ]
    ends = [end for line in lines for end in (line["value"], *(line["interval"] or ()))]
    low, high = max(0.0, min(ends) - 0.03), max(ends) + 0.03
    high = min(1.0, high) if max(ends) <= 1 else high
    for line in lines:
        left, right = line["interval"] or (line["value"], line["value"])
        line |= {key: _percent(of, low, high) for key, of in
                 (("at", line["value"]), ("left", left), ("right", right))}  # fmt: skip
    of_pieces = run.task == "masked_lm" and name == "accuracy"
    title = "accuracy of masked pieces" if of_pieces else TITLES.get(name)
    return {
        "title": title or name.replace("_", " "),
        "value": run.figures[name],
        "interval": lines[0]["interval"],
        "lines": lines if baseline else [],
        "low": low,
        "high": high,
    }


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / ((high - low) or 1), 2)


def _verdict(run: Run) -> dict[str, str]:
    """Whether BERT beats the linear model, in a plain sentence."""
    paired = run.figures.get("paired")
    if not run.figures.get("baseline"):
        return _sentence(
            "unknown",
            "No baseline.",
            "No linear model was trained beside this one, so it is not known whether BERT was "
            "needed.",
        )
    if not paired:
        return _sentence(
            "unknown",
            "Not tested.",
            "The two models were not compared row by row; their intervals are below.",
        )
    test = McNemar(paired["only_ours"], paired["only_baseline"], paired["p_value"])
    said = verdict(test, rows=run.figures["rows"], split=run.split)
    return _sentence(said.kind, said.title, said.text)


def _sentence(kind: str, title: str, text: str) -> dict[str, str]:
    return {"kind": kind, "title": title, "text": text}


# Data


def data(run: Run) -> dict[str, Any] | None:
    """Files and hashes, rows, label balance, truncated texts, duplicates."""
    splits = [found for name in SPLITS if (found := _split(run, name))]
    if not splits:
        return None
    duplicates = {
        name: count for name, count in run.analysis.get("duplicates", {}).items() if count
    }
    return {
        "splits": splits,
        "hashed": any(split["sha256"] for split in splits),
        "max_length": run.analysis.get("lengths", {}).get("max_length")
        or run.config.get("data", {}).get("max_length"),
        "has_windows": run.config.get("data", {}).get("stride") is not None,
        "columns": run.analysis.get("columns") or _columns(run),
        "balance": _balance(run),
        "within": {name: count for name, count in duplicates.items() if "/" not in name},
        "between": {
            tuple(name.split("/")): count for name, count in duplicates.items() if "/" in name
        },  # fmt: skip
        "counted_duplicates": "duplicates" in run.analysis,
    }


def _columns(run: Run) -> list[str]:
    column = run.config.get("data", {}).get("text_column", "text")
    return [column] if isinstance(column, str) else list(column)


def _split(run: Run, name: str) -> dict[str, Any] | None:
    made = run.lineage.get("data", {}).get(name) or {}
    lengths = run.analysis.get("lengths", {})
    rows = (
        made.get("rows")
        or lengths.get("rows", {}).get(name)
        or run.metrics.get(name, {}).get("rows")
    )
    if not rows:
        return None
    options = run.config.get("data", {})
    given = options.get(name) or options.get("train") or ""
    truncated = lengths.get("truncated", {}).get(name)
    return {
        "name": name,
        "file": made.get("file") or Path(given).name,
        "drawn": not options.get(name),
        "sha256": made.get("sha256"),
        "rows": rows,
        "truncated": truncated,
        "truncated_share": None if truncated is None else truncated / rows,
    }


def _balance(run: Run) -> dict[str, Any] | None:
    """Rows of each label in each split, and its share of the first split that is known."""
    labels = [str(name) for name in run.analysis.get("labels") or run.labels]
    known = {
        name: dict(zip(labels, counts, strict=True))
        for name, counts in run.analysis.get("label_counts", {}).items()
    } or {
        name: {label: of["rows"] for label, of in run.metrics[name]["per_class"].items()}
        for name in ("validation", "test")
        if run.metrics.get(name, {}).get("per_class")
    }
    splits = [name for name in SPLITS if name in known]
    if not splits or not labels:
        return None
    # a split without a label that training does not have has no rows of it
    counts = {name: [known[name].get(label, 0) for label in labels] for name in splits}
    first = counts[splits[0]]
    total, most = sum(first) or 1, max(first) or 1
    return {
        "splits": splits,
        "labels": [
            {
                "name": label,
                "counts": [counts[name][index] for name in splits],
                "share": first[index] / total,
                "bar": round(100 * first[index] / most, 1),
            }
            for index, label in enumerate(labels)
        ],
        "folded": len(labels) > MANY_CLASSES,
        "fewest": min(zip(first, labels, strict=True)),
        "most": max(zip(first, labels, strict=True)),
    }


# Curves


def history(run: Run) -> dict[str, Any] | None:
    """Figures by epoch: the columns' titles, the rows, and the lines of each chart."""
    epochs = run.metrics.get("train", {}).get("history") or []
    if not epochs:
        return None
    names = sorted({name for epoch in epochs for name in epoch}, key=_chart_order)
    charts: Charts = {}
    for name in names:
        line = "validation" if name.startswith("val_") else "train"
        points = [
            (float(number), float(epoch[name]))
            for number, epoch in enumerate(epochs, 1)
            if epoch.get(name) is not None
        ]
        title = _title(name.removeprefix("val_"))
        charts.setdefault(title, {})[line] = points
    return {
        "columns": [_history_title(name) for name in names],
        "rows": [[epoch.get(name) for name in names] for epoch in epochs],
        "best": run.metrics["train"].get("best_epoch"),
        "charts": charts,
    }


def step_curves(run: Run) -> Charts:
    """TensorBoard's curves by step, as charts of lines; those by epoch stand beside already."""
    tags = sorted({tag for lines in run.scalars.values() for tag in lines}, key=_chart_order)
    charts = {
        _title(tag): {
            line: _thinned(points[tag]) for line, points in run.scalars.items() if tag in points
        }
        for tag in tags
        if "/" not in tag and not tag.startswith("epoch_")
    }
    several = {
        chart: lines
        for chart, lines in charts.items()
        # a line of validation alone is that of the epochs, which stands beside already
        if len(lines.get("train", ())) > 1
    }
    return dict(list(several.items())[:STEP_CHARTS])


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about STEP_POINTS of the points, evenly, the last among them."""
    stride = max(1, -(-len(points) // STEP_POINTS))
    return list(points[::-stride][::-1])


def _chart_order(name: str) -> tuple[bool, str, bool]:
    bare = name.removeprefix("val_")
    return bare != "loss", bare, name != bare


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _history_title(name: str) -> str:
    bare = name.removeprefix("val_")
    return f"{'train' if bare == name else 'validation'} {_title(bare)}"


# Figures


def metrics(run: Run) -> dict[str, Any] | None:
    """All figures with intervals beside the baseline's and the other split's."""
    if not run.figures:
        return None
    other = "validation" if run.split == "test" and "validation" in run.metrics else None
    known = {"classes": CLASS_FIGURES, "probabilities": PROBABILITY_FIGURES}
    if not run.labels:
        known["others"] = _other_figures(run)
    groups = [
        {"title": title, "rows": rows}
        for title, figures in known.items()
        if (rows := [row for of in figures if (row := _metric(run, of, other))])
    ]
    return {
        "groups": groups,
        "split": run.split,
        "other": other,
        "has_baseline": bool(run.figures.get("baseline")),
        "has_intervals": bool(run.figures.get("intervals")),
        "is_classification": bool(run.labels),
    }


def _other_figures(run: Run) -> tuple[Figure, ...]:
    """Those of a task whose figures are no classifier's: all its numbers but the count of rows."""
    numbers = {
        name: value
        for name, value in run.figures.items()
        if isinstance(value, int | float) and name not in TITLES and name != "rows"
    }
    return tuple(
        (name, name.replace("_", " "), None if isinstance(value, int) else _is_larger_better(name))
        for name, value in numbers.items()
    )


def _is_larger_better(name: str) -> bool:
    return not name.endswith(SMALLER_IS_BETTER)


def _metric(run: Run, known: Figure, other: str | None) -> dict[str, Any] | None:
    name, title, larger_is_better = known
    value = run.figures.get(name)
    if value is None:
        return None
    baseline = run.figures.get("baseline") or {}
    theirs = baseline.get(name)
    difference = None if theirs is None else value - theirs
    better = None
    if difference and larger_is_better is not None:
        better = (difference > 0) == larger_is_better
    return {
        "title": title,
        "arrow": None if larger_is_better is None else "higher" if larger_is_better else "lower",
        "value": value,
        "interval": run.figures.get("intervals", {}).get(name),
        "baseline": theirs,
        "baseline_interval": baseline.get("intervals", {}).get(name),
        "difference": difference,
        "better": better,
        "other": run.metrics[other].get(name) if other else None,
    }


def classes(run: Run) -> dict[str, Any] | None:
    """The per-class table."""
    per_class = run.figures.get("per_class")
    if not per_class:
        return None
    baseline = (run.figures.get("baseline") or {}).get("per_class", {})
    shown = [
        of
        for of in PER_CLASS
        if any(figures.get(of[0]) is not None for figures in per_class.values())
    ]
    return {
        "split": run.split,
        "columns": [title for _, title in shown],
        "has_baseline": bool(baseline),
        "rows": [
            {
                "name": name,
                "rows": figures.get("rows"),
                "values": [figures.get(key) for key, _ in shown],
                "baseline_f1": baseline.get(name, {}).get("f1"),
            }
            for name, figures in per_class.items()
        ],
    }


# Calibration and slices


def calibration(run: Run) -> dict[str, Any] | None:
    """Temperature, and the errors before and after it."""
    found = run.figures.get("calibration") or {}
    if not found and "reliability" not in run.analysis:
        return None
    rows = [
        (title, found[f"{name}_before"], found.get(f"{name}_after"))
        for name, title in (("ece", "expected calibration error"), ("log_loss", "log loss"))
        if found.get(f"{name}_before") is not None
    ]
    return {
        "temperature": found.get("temperature"),
        "applied": found.get("applied", False),
        "rows": rows,
        "split": run.split,
    }


def out_of_scope(run: Run) -> dict[str, Any] | None:
    """What the threshold does, under which the answer is none of the classes."""
    found = run.figures.get("out_of_scope")
    if not found:
        return None
    titles = {
        "accuracy": "accuracy over all texts, in scope and out of it",
        "in_scope_accuracy": "accuracy in scope",
        "in_scope_accuracy_without": "accuracy in scope without the threshold",
        "recall": "share found of the texts out of scope",
        "precision": "share of those answered so that are out of scope",
        "roc_auc": "ROC AUC of the largest probability",
    }
    rows = [(title, found.get(name)) for name, title in titles.items()]
    return {
        "name": run.config.get("task", {}).get("out_of_scope"),
        "threshold": found["threshold"],
        "count": found["rows"],
        "rows": [(title, value) for title, value in rows if value is not None],
        "split": run.split,
    }


def slices(run: Run) -> dict[str, Any] | None:
    """How good the model is on parts of the rows."""
    found = {name: rows for name, rows in run.analysis.get("slices", {}).items() if rows}
    if not found:
        return None
    return {
        "split": run.analysis.get("split", run.split),
        "tables": [
            {
                "name": name,
                "rows": rows,
                "has_baseline": any(row.get("baseline_accuracy") is not None for row in rows),
            }
            for name, rows in found.items()
        ],
    }


# Search


def search(run: Run) -> dict[str, Any] | None:
    """The leaderboard, and the winner beside the default."""
    found = run.metrics.get("search")
    if not isinstance(found, Mapping):  # the first kbert wrote a bare list
        return None
    trials = found.get("trials", [])
    names = list(dict.fromkeys(name for trial in trials for name in trial["hyperparameters"]))
    told = {row.get("trial"): row for row in run.trials}
    return {
        "objective": found["objective"].removeprefix("val_"),
        "names": names,
        "winner": found["winner"]["trial"],
        "trials": [
            {
                **trial,
                "is_default": not trial["trial"].strip("0"),
                "values": [trial["hyperparameters"].get(name) for name in names],
                "epochs": told.get(trial["trial"], {}).get("epochs"),
                "seconds": _number(told.get(trial["trial"], {}).get("seconds")),
            }
            for trial in trials
        ],
        "retrained": _retrained(found),
        "exported_seed": found.get("exported_seed"),
    }


def _retrained(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Winner and default, trained again with other seeds: mean and deviation of each figure."""
    winner, default = found["winner"], found.get("default", {})
    if not winner.get("retrained"):
        return None
    figure = found["objective"].removeprefix("val_")
    columns = [
        (split, name)
        for split, figures in winner["retrained"].items()
        for name in dict.fromkeys((figure, "accuracy", "f1_macro", "loss"))
        if name in figures
    ]

    def spread(of: Mapping[str, Any], split: str, name: str) -> Mapping[str, Any]:
        return of.get("retrained", {}).get(split, {}).get(name, {})

    same = winner["trial"] == default.get("trial")
    return {
        "same": same,
        "winner": winner,
        "default": default,
        "rows": [
            {
                "title": f"{split} {_title(name)}",
                "winner": spread(winner, split, name),
                "default": spread(default, split, name),
                "difference": _difference(
                    spread(winner, split, name).get("mean"),
                    spread(default, split, name).get("mean"),
                ),
            }
            for split, name in columns
        ],
    }


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _number(text: str | None) -> float | None:
    return float(text) if text else None


# Speed, serving, lineage


def speed(run: Run) -> list[tuple[str, str, Any]] | None:
    """(title, kind of number, value) of what the training took."""
    train = run.metrics.get("train", {})
    known = [
        ("training rows a second", "count", train.get("examples_per_second")),
        ("time of the training", "duration", train.get("seconds")),
        ("peak memory", "size", train.get("peak_memory_bytes")),
        ("size of the export", "size", run.export_bytes or None),
        ("training rows", "count", train.get("rows")),
        ("epochs", "count", train.get("epochs")),
        ("epoch that was kept", "count", train.get("best_epoch")),
        ("rows a step", "count", train.get("batch_size")),
        ("learning rate", "plain", train.get("learning_rate")),
        ("seed", "plain", train.get("seed")),
    ]
    return [row for row in known if row[2] is not None] or None


def serving(run: Run) -> list[tuple[str, str]] | None:
    """(what it does, command) with the run's own names."""
    if not run.export_bytes:
        return None
    folder = run.config.get("output") or str(run.folder)
    base = Path(folder) / "export" / run.name
    place = shlex.quote(str(base)) if base.is_absolute() else f'"$PWD"/{shlex.quote(str(base))}'
    name, given = shlex.quote(run.name), _example(run)
    body = shlex.quote(json.dumps({"instances": [given if len(given) > 1 else given["text"]]}))
    words = (
        " ".join(f"--input {key}={shlex.quote(value)}" for key, value in given.items())
        if len(given) > 1
        else shlex.quote(given["text"])
    )
    mounted = f"{place}:/models/{name}"
    run_folder = shlex.quote(folder)
    return [
        (
            "Start the local stand-in for TF Serving",
            f"python -m serve.server --model_name={name} --model_base_path={place} "
            "--port=8500 --rest_api_port=8501",
        ),
        ("Ask it by REST", f"curl -d {body} http://localhost:8501/v1/models/{name}:predict"),
        ("Ask it by gRPC", f"python -m serve.client --grpc 127.0.0.1:8500 --model {name} {words}"),
        (
            "Or serve it by TF Serving itself",
            f"docker run --rm -p 127.0.0.1:8501:8501 -e MODEL_NAME={name} -v {mounted} "
            "tensorflow/serving:2.20.0",
        ),
        (
            "Check that it answers as it did when it was made",
            f"python -m kbert.verify {run_folder}",
        ),
    ]


def _example(run: Run) -> dict[str, str]:
    """A request; never a text of the data, which has no place in a command that is copied."""
    if run.task == "masked_lm":
        return {"text": "A text with a [MASK] word."}
    count = len(_columns(run))
    if count == 1:
        return {"text": "A text to classify."}
    return {f"text_{chr(ord('a') + place)}": f"Text {place + 1}." for place in range(count)}


def lineage(run: Run) -> dict[str, Any] | None:
    """What made the model, as the export tells it."""
    made = run.lineage
    if not made:
        return None
    checkpoint, code = made.get("checkpoint", {}), made.get("code", {})
    git = code.get("git") or {}
    commit = git.get("commit")
    if commit and git.get("is_dirty"):
        commit += " (with changes)"
    known = [
        ("run", made.get("run")),
        ("created", made.get("created")),
        ("seed", made.get("seed")),
        ("checkpoint", checkpoint.get("name")),
        ("checkpoint's revision", checkpoint.get("revision")),
        ("checkpoint's SHA-256", checkpoint.get("sha256")),
        ("options' SHA-256", made.get("options", {}).get("sha256")),
        ("kbert", code.get("version")),
        ("kbert's SHA-256", code.get("sha256")),
        ("commit", commit),
        *made.get("versions", {}).items(),
    ]
    return {
        "rows": [(title, value) for title, value in known if value is not None],
        "json": json.dumps(made, indent=2, ensure_ascii=False),
    }
