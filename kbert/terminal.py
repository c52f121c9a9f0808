"""What a run prints: tables, and how far it is."""

from __future__ import annotations

import time

import keras
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from kbert.tasks.task import Table

PLAIN_SECONDS = 20  # between two lines where there is no terminal


def print_table(table: Table) -> None:
    """A titled table, numbers with four digits after the point."""
    shown = RichTable(box=box.SIMPLE_HEAD)
    for column in table.columns:
        shown.add_column(column, justify="left" if column in ("", "class") else "right")
    for row in table.rows:
        shown.add_row(*(_cell(value) for value in row))
    print(f"\n{table.title}", end="")
    console = Console()
    # a file or a pipe has no width to keep to
    (console if console.is_terminal else Console(width=10_000)).print(shown)


class ProgressReport(keras.callbacks.Callback):
    """A progress bar with the time that is left on a terminal, plain lines elsewhere.

    Args:
        title: What is being done.
        total_steps: Steps of the whole run.
    """

    def __init__(self, title: str, *, total_steps: int) -> None:
        super().__init__()
        self.title = title
        self.total_steps = total_steps
        self.bar: Progress | None = None
        self.console = Console()
        self.started: tuple[float, int] | None = None
        self.said = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = int(self.model.optimizer.iterations)
        if self.started is None:  # the first step traces: time is counted from its end
            self.started = (time.monotonic(), step)
        if self.console.is_terminal:
            self._draw(step, logs or {})
        elif time.monotonic() - self.said > PLAIN_SECONDS:
            self.said = time.monotonic()
            print(
                f"{self.title}: step {step}/{self.total_steps}, {_figures(logs)}{self._left(step)}"
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.close()
        print(f"{self.title}: epoch {epoch + 1}: {_figures(logs)}", flush=True)

    def close(self) -> None:
        """Leave the line of the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _draw(self, step: int, logs: dict) -> None:
        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.add_task(self.title, total=self.total_steps, figures="")
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=step, figures=_figures(logs))

    def _left(self, step: int) -> str:
        began, first = self.started or (0.0, step)
        if step <= first:
            return ""
        seconds = (time.monotonic() - began) / (step - first) * (self.total_steps - step)
        return f", {int(seconds // 60)}:{int(seconds % 60):02d} left"


def _figures(logs: dict | None) -> str:
    return ", ".join(f"{name} {float(value):.4f}" for name, value in (logs or {}).items())


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
