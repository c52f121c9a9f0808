"""The one page that tells a whole run: `python -m kbert.report --help`.

RUN/report.html holds everything that it shows: it fetches nothing, and opens from disk.

Exit status 0: it is written; 2: bad input.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kbert import report_texts, report_view
from kbert.command import finish
from kbert.errors import InputError
from kbert.foreign_files import (
    MOST_YAML_BYTES,
    malformed_told,
    read_object,
    read_options,
    read_text,
    refuse_links_out,
)
from kbert.report_view import Run
from kbert.whole_files import written_whole
from serve.command_line import OneLineParser

EPILOG = """\
Writes RUN/report.html anew from what is in the run's folder:

  python -m kbert.report runs/news

A run writes it by itself when it ends.
"""
READ = ("*.json", "*.yaml", "search/*.csv", "export/*/*/assets.extra/*")
ADVICE = "bring the run's own files back"
ASSETS = Path(__file__).with_name("assets")
SECTIONS = {
    "data": "Data",
    "curves": "Training curves",
    "metrics": "Metrics",
    "classes": "Classes",
    "confusion": "Confusion matrix",
    "mistakes": "Costliest mistakes",
    "label_errors": "Likely label errors",
    "calibration": "Calibration",
    "out_of_scope": "Out of scope",
    "slices": "Slices",
    "search": "Search",
    "speed": "Speed and memory",
    "serving": "Serve it",
    "options": "Options",
    "lineage": "Lineage",
}
"""Id -> title, in the order of the page."""
ABSENT = "\u2013"  # in place of a number that there is not
# what no page can hold: control characters, halves of surrogate pairs
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of the run that the command line names; the exit status."""
    options = _parse(arguments)
    return finish("kbert.report", lambda: _write(Path(options.run)), debug=options.debug)


def _write(folder: Path) -> None:
    with malformed_told(folder, advice=ADVICE):
        path = write_report(folder)
    print(path)


def write_report(folder: Path, *, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write RUN/report.html from what is in the run's folder.

    It needs config.yaml and metrics.json; sections of what else is absent (analysis.json, the
    export's lineage, search/trials.csv, TensorBoard's scalars) are left out.

    Args:
        folder: Folder of the run.
        metrics: Figures that take the place of metrics.json, of a run that has not written it yet.

    Returns:
        Path of the page.

    Raises:
        InputError: the folder holds no finished run, or a file that cannot be read.
    """
    page = render(read_run(folder, metrics=metrics))
    path = folder / "report.html"
    try:
        with written_whole(path) as beside:
            beside.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def read_run(folder: Path, *, metrics: Mapping[str, Any] | None = None) -> Run:
    """What a run folder holds for the report, its texts without what no page can hold.

    Raises:
        InputError: the folder holds no finished run, or a file that cannot be read.
    """
    from kbert.lineage import LINEAGE_PLACE

    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    if not (folder / "config.yaml").exists():
        raise InputError(f"{folder}: holds no run (no config.yaml).")
    refuse_links_out(folder, READ)
    options = read_text(folder / "config.yaml", advice=ADVICE, most_bytes=MOST_YAML_BYTES)
    config = read_options(folder / "config.yaml", advice=ADVICE)
    if metrics is None and not (folder / "metrics.json").exists():
        raise InputError(f"{folder}: is not finished (no metrics.json).")
    if metrics is None:
        metrics = _json(folder / "metrics.json")
    export = config.get("export") or {}
    name = str(export.get("name") or Path(config.get("output") or folder.resolve()).name)
    version = str(export.get("version", 1))
    if any(part != Path(part).name or part == ".." for part in (name, version)):
        raise InputError(
            f"{folder / 'config.yaml'}: export.name and export.version are no names; {ADVICE}."
        )
    saved = folder / "export" / name / version
    found = Run(
        folder=folder,
        config=config,
        options=options,
        metrics=metrics or {},
        analysis=_json(folder / "analysis.json"),
        lineage=_json(saved / LINEAGE_PLACE),
        trials=_trials(folder / "search" / "trials.csv"),
        scalars=_scalars(folder / "tensorboard" / f"{name}-{version}", metrics),
        export_bytes=sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
    )
    return Run(**{name: printable(value) for name, value in vars(found).items()})


def render(run: Run) -> str:
    """The page, as HTML."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "signed": signed,
        "share": share,
        "count": count,
        "duration": duration,
        "size": size,
        "plain": str,
        "value": value,
        "island": lambda content: Markup(island(content)),
    }
    values = sections(run)
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        values,
        headline=report_view.headline(run),
        contents={key: title for key, title in SECTIONS.items() if values[key]},
        style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=_script_hash(script),
        figures={name: [Markup(svg) for svg in drawn] for name, drawn in figures(run).items()},
    )


def sections(run: Run) -> dict[str, Any]:
    """The values of each of `SECTIONS`, None or empty where the run has nothing for it."""
    by_epoch, by_step = report_view.history(run), report_view.step_curves(run)
    return {
        "data": report_view.data(run),
        "curves": {"history": by_epoch} if by_epoch or by_step else None,
        "metrics": report_view.metrics(run),
        "classes": report_view.classes(run),
        "confusion": report_texts.confusion(run),
        "mistakes": report_texts.mistakes(run),
        "label_errors": report_texts.label_errors(run),
        "calibration": report_view.calibration(run),
        "out_of_scope": report_view.out_of_scope(run),
        "slices": report_view.slices(run),
        "search": report_view.search(run),
        "speed": report_view.speed(run),
        "serving": report_view.serving(run),
        "options": run.options,
        "lineage": report_view.lineage(run),
    }


def figures(run: Run) -> dict[str, list[str]]:
    """The drawn figures by name, each a list of <svg> elements; an empty one for no figure."""
    from kbert.evaluation_plots import plot_curves, plot_lengths, plot_reliability
    from kbert.plots import svg

    found: dict[str, list[str]] = {"lengths": [], "reliability": []}

    def draw(drawn: Any, title: str, width: float, height: float) -> str:
        drawn.set_size_inches(width, height)  # so small that a phone can show its letters
        return svg(drawn, title=title)

    by_epoch = report_view.history(run)
    for name, charts, unit in (
        ("curves", by_epoch["charts"] if by_epoch else {}, "epoch"),
        ("steps", report_view.step_curves(run), "step"),
    ):
        found[name] = []
        for chart, lines in charts.items():
            drawn = plot_curves({chart: lines}, steps=unit)
            _place_legend(drawn.axes[0].get_legend(), lines)
            found[name].append(draw(drawn, f"{chart} by {unit}", 4.6, 2.9))
    lengths = run.analysis.get("lengths") or {}
    if lengths.get("counts"):
        histogram = plot_lengths(
            lengths["edges"],
            lengths["counts"],
            max_length=lengths["max_length"],
            truncated=lengths.get("truncated", {}).get("train"),
        )
        histogram.axes[0].set_title("")  # the page says it below
        found["lengths"] = [draw(histogram, "Lengths of the training texts", 5.2, 2.9)]
    if run.analysis.get("reliability"):
        diagram = plot_reliability(
            **run.analysis["reliability"], after=run.analysis.get("reliability_after")
        )
        diagram.axes[0].set_title("")
        found["reliability"] = [draw(diagram, "Reliability diagram", 5.2, 4.6)]
    return found


def _place_legend(legend: Any, lines: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """To the right, where falling lines are low and rising ones high: "best" is slow to find."""
    falls = sum(points[-1][1] < points[0][1] for points in lines.values() if points)
    legend.set_loc("upper right" if 2 * falls >= len(lines) else "lower right")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="kbert.report",
        description="Writes the one-page report of a finished run.",
        epilog=EPILOG,
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


# What is in the folder


def _json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; an empty one where there is no file."""
    return read_object(path, advice=ADVICE) if path.exists() else {}


def _trials(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    text = read_text(path, advice=ADVICE)
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read ({error}); {ADVICE}.") from None


def _scalars(folder: Path, metrics: Mapping[str, Any]) -> dict[str, dict[str, list]]:
    """TensorBoard's points of the training that is exported: train and validation -> tag."""
    seed = metrics.get("train", {}).get("seed")
    retrained = folder / "winner" / f"seed-{seed}"
    place = retrained if "search" in metrics else folder
    if not place.is_dir():
        return {}
    from kbert.monitor import read_scalars

    return {line: read_scalars(place / line) for line in ("train", "validation")}


# What goes into the page


def printable(content: Any) -> Any:
    """Nested values whose texts hold nothing that a page cannot: a NUL becomes a sign for it."""
    if isinstance(content, str):
        return UNPRINTABLE.sub(_sign, content)
    if isinstance(content, Mapping):
        return {printable(key): printable(part) for key, part in content.items()}
    if isinstance(content, list | tuple):
        return [printable(part) for part in content]
    return content


def _sign(found: re.Match[str]) -> str:
    """Unicode's picture of a control character, or the replacement character."""
    point = ord(found[0])
    return chr(0x2400 + point) if point < 0x20 else "\u2421" if point == 0x7F else "\ufffd"


def island(content: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens one."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script_hash(script: str) -> str:
    """What the page's policy calls the one script that may run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


# Numbers as the page shows them


def figure(number: float | None) -> str:
    """Four digits after the point; fewer of a large number."""
    if number is None:
        return ABSENT
    if not math.isfinite(number):
        return str(number)
    return f"{number:.4f}" if abs(number) < 10 else f"{number:,.2f}"


def signed(number: float | None) -> str:
    """A difference, with its sign; the minus is as wide as the plus."""
    return ABSENT if number is None else f"{number:+.4f}".replace("-", "\u2212")


def share(number: float | None) -> str:
    """A share as per cent."""
    if number is None:
        return ABSENT
    return f"{100 * number:.1f}%" if number == 0 or number >= 0.0005 else "< 0.1%"


def count(number: float | None) -> str:
    """A number of things."""
    if number is None:
        return ABSENT
    return f"{number:,.0f}" if number == int(number) or number >= 100 else f"{number:,.1f}"


def duration(seconds: float | None) -> str:
    """A time in its largest two units."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(number: float | None) -> str:
    """A number of bytes."""
    if number is None:
        return ABSENT
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.2f} GB"


def value(setting: Any) -> str:
    """A hyper-parameter as it is written."""
    return ABSENT if setting is None else str(setting)


if __name__ == "__main__":
    sys.exit(main())
