"""What a run prints: tables, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Literal

import keras
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from kbert.progress import PLAIN_SECONDS, ProgressBar
from kbert.tasks.task import Table
from kbert.trials import Objective, Trial, Value, best_trial, ranked, short_texts, time_unit

DRAW_SECONDS = 0.2  # between two drawings of one trial's progress
WIDE_COLUMNS = 100  # from which on a terminal has room for the times of trials
LEFT_COLUMNS = ("", "class", "trial", "status")


def print_table(table: Table) -> None:
    """A titled table, numbers with four digits after the point."""
    shown = RichTable(box=box.SIMPLE_HEAD)
    for column in table.columns:
        shown.add_column(Text(column), justify=_justify(column))
    for row in table.rows:
        shown.add_row(*(Text(_cell(value)) for value in row))  # [b] is a text, not rich's markup
    print(f"\n{table.title}", end="")
    console = Console()
    # a file or a pipe has no width to keep to
    (console if console.is_terminal else Console(width=10_000)).print(shown)


def trials_table(
    trials: Iterable[Trial], objective: Objective, hyperparameters: Sequence[str]
) -> Table:
    """The trials, the best first, without times: those of two runs of one search are the same.

    The columns are trial, the hyper-parameters, the metric, epochs (epochs trained, where epochs
    is a hyper-parameter), and status where any trial is not completed.
    """
    order = ranked(trials, objective)
    columns = ("trial", *hyperparameters, objective.title, _epochs_column(hyperparameters))
    rows: list[tuple] = [
        (
            trial.title,
            *(_value(trial.values.get(name, "")) for name in hyperparameters),
            "" if trial.score is None else trial.score,
            trial.epochs,
        )
        for trial in order
    ]
    if any(trial.status != "completed" for trial in order):
        columns += ("status",)
        rows = [(*row, _status(trial)) for row, trial in zip(rows, order, strict=True)]
    return Table("trials", columns, rows)


class ProgressReport(keras.callbacks.Callback):
    """The progress of a training, with a line for each epoch.

    Args:
        title: What is being done.
        total_steps: Steps of the whole run.
    """

    def __init__(self, title: str, *, total_steps: int) -> None:
        super().__init__()
        self.title = title
        self.progress = ProgressBar(title, total=total_steps, unit="step")

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # the first step traces: time is counted from its end
        self.progress.update(int(self.model.optimizer.iterations.numpy()), _figures(logs))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.close()
        print(f"{self.title}: epoch {epoch + 1}: {_figures(logs)}", flush=True)

    def close(self) -> None:
        """Leave the line of the bar."""
        self.progress.close()


class TrialsReport:
    """The trials of a search: a table that is kept up to date on a terminal, plain lines elsewhere.

    Args:
        objective: What the search looks at.
        hyperparameters: Names of those that are shown.
        console: Where to; standard output by default.

    Example:

    ```python
    with contextlib.closing(TrialsReport(objective, ("learning_rate", "batch_size"))) as report:
        report.update(trials)  # those of an earlier start, or none
        ...
        report.progress("03", "epoch 2/3, loss 0.4127")
        ...
        report.update(trials)
    ```
    """

    def __init__(
        self,
        objective: Objective,
        hyperparameters: Sequence[str],
        *,
        console: Console | None = None,
    ) -> None:
        self.objective = objective
        self.hyperparameters = tuple(hyperparameters)
        self.console = console or Console()
        self.trials: list[Trial] = []
        self.texts: dict[str, str] = {}
        self.told: list[Trial] | None = None  # finished trials of which a line was printed
        self.live: Live | None = None
        self.said = time.monotonic()

    def update(self, trials: Iterable[Trial]) -> None:
        """Show the trials as they are now.

        The first call is to come before a trial is run: what is finished then is of an earlier
        start, and where there is no terminal it gets one line for all.
        """
        self.trials = list(trials)
        running = {trial.name for trial in self.trials if trial.status == "running"}
        self.texts = {name: text for name, text in self.texts.items() if name in running}
        if self.console.is_terminal:
            self._draw()
            return
        finished = [trial for trial in self.trials if trial.status != "running"]
        if self.told is None and finished:
            self._print(self._kept(finished))
        elif self.told is not None:
            names = {trial.name for trial in self.told}
            known = [trial for trial in finished if trial.name in names]
            for trial in finished:
                if trial.name not in names:
                    known.append(trial)
                    self._print(self._line(trial, known))
        self.told = finished

    def progress(self, name: str, text: str) -> None:
        """Show what a running trial is doing: on a terminal in its row, else as a line at times."""
        self.texts[name] = text
        past = time.monotonic() - self.said
        if past > (DRAW_SECONDS if self.console.is_terminal else PLAIN_SECONDS):
            self.said = time.monotonic()
            if self.console.is_terminal:
                self._draw()
            else:
                self._print(f"trial {name}: {text}")

    def close(self) -> None:
        """Take the table off the terminal: the one of all trials with their reasons follows."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _draw(self) -> None:
        if self.live is None:
            # no thread of its own: what is printed meanwhile goes above the table
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        # the other lines of the terminal: empty ones, the head, "and ... more"
        self.live.update(self._table(room=max(2, self.console.height - 7)), refresh=True)

    def _table(self, *, room: int | None) -> RichTable:
        """The table with all trials, or with the best and those that run where room is short."""
        order = ranked(self.trials, self.objective)
        shown = order
        if room is not None and len(order) > room:
            running = [trial for trial in order if trial.status == "running"][: room - 1]
            others = [trial for trial in order if trial.status != "running"]
            shown = [*others[: room - len(running)], *running]
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        columns = ("trial", *self.hyperparameters, self.objective.title)
        for column in (*columns, _epochs_column(self.hyperparameters), *self._time("time")):
            table.add_column(_narrow(column), justify=_justify(column), no_wrap=True)
        table.add_column("status", min_width=7)  # gives way where the terminal is narrow
        best = best_trial(self.trials, self.objective)
        texts = short_texts(
            value
            for trial in self.trials
            for value in trial.values.values()
            if isinstance(value, str)
        )
        for trial in shown:
            style = "bold green" if trial is best else "dim" if trial.status == "failed" else ""
            cells = (
                Text(cell, no_wrap=True, overflow="ellipsis") for cell in self._cells(trial, texts)
            )
            table.add_row(*cells, style=style)
        if len(shown) < len(order):
            table.caption = Text(f"and {len(order) - len(shown)} more")
            table.caption_justify = "left"
        return table

    def _cells(self, trial: Trial, texts: dict[str, str]) -> list[str]:
        longest = max(8, self.console.width // 10)
        values = (trial.values.get(name, "") for name in self.hyperparameters)
        status = "default" if trial.is_default else ""
        if trial.status == "running":
            status = self.texts.get(trial.name) or _figures(trial.metrics) or trial.status
        elif trial.status == "failed":
            status = _status(trial)
        return [
            trial.name,
            *(
                _end(texts.get(value, value), longest)
                if isinstance(value, str)
                else _value(value, digits=3)
                for value in values
            ),
            "" if trial.score is None else f"{trial.score:.4f}",
            str(trial.epochs),
            *self._time(_duration(trial.seconds)),
            status,
        ]

    def _time(self, cell: str) -> list[str]:
        """A cell of the column of times, which a narrow terminal has no room for."""
        return [cell] if self.console.width >= WIDE_COLUMNS else []

    def _line(self, trial: Trial, finished: list[Trial]) -> str:
        """What there is to say of a trial that has just finished; it is the last of `finished`."""
        if trial.status == "failed" or trial.score is None:
            return f"trial {trial.title}: {_status(trial)}"
        values = ", ".join(
            f"{name} {_value(trial.values[name])}"
            for name in self.hyperparameters
            if name in trial.values
        )
        figure = f"{self.objective.title} {trial.score:.4f} ({_duration(trial.seconds)})"
        parts = [f"trial {trial.title}", *([values] if values else []), figure]
        return f"{': '.join(parts)}{self._best(finished, ', best so far ')}"

    def _kept(self, finished: list[Trial]) -> str:
        count = "1 trial is" if len(finished) == 1 else f"{len(finished)} trials are"
        failed = sum(trial.status == "failed" for trial in finished)
        return (
            f"{count} kept{f', {failed} failed' if failed else ''}{self._best(finished, ': best ')}"
        )

    def _best(self, trials: list[Trial], words: str) -> str:
        best = best_trial(trials, self.objective)
        return "" if best is None else f"{words}{best.score:.4f} (trial {best.name})"

    def _print(self, line: str) -> None:
        print(line, file=self.console.file, flush=True)


def _figures(logs: dict | None) -> str:
    return ", ".join(f"{name} {float(value):.4f}" for name, value in (logs or {}).items())


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _value(value: Value, *, digits: int = 6) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _justify(column: str) -> Literal["left", "right"]:
    return "left" if column in LEFT_COLUMNS else "right"


def _end(text: str, letters: int) -> str:
    """The end of a long text, where names of models differ."""
    return text if len(text) <= letters else f"…{text[1 - letters :]}"


def _narrow(column: str) -> Text:
    """A name of several words, one below the other."""
    return Text(column.replace("_", "_\n").replace(" ", "\n"))


def _epochs_column(hyperparameters: Sequence[str]) -> str:
    return "epochs trained" if "epochs" in hyperparameters else "epochs"


def _status(trial: Trial) -> str:
    return f"{trial.status}: {trial.reason}" if trial.reason else trial.status


def _duration(seconds: float) -> str:
    unit, length = time_unit(seconds)
    return f"{seconds / length:.0f} {unit}" if length == 1 else f"{seconds / length:.1f} {unit}"
