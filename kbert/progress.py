"""How far a long piece of work is: a bar on a terminal, plain lines elsewhere. Knows no Keras."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 20  # between two lines where there is no terminal


class ProgressBar:
    """A progress bar with the time that is left on a terminal, a line at times elsewhere.

    Args:
        title: What is being done.
        total: Steps of the whole.
        unit: What a step is, for the plain lines: "step" gives "step 3/10".
    """

    def __init__(self, title: str, *, total: int, unit: str) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.bar: Progress | None = None
        self.console = Console()
        self.started: tuple[float, int] | None = None
        self.said = time.monotonic()

    def update(self, done: int, figures: str = "") -> None:
        """Show how many steps are done, with figures of them; time is counted from the first call.

        Args:
            done: Steps that are done, those of an earlier start among them.
            figures: What else there is to say.
        """
        if self.started is None:
            self.started = (time.monotonic(), done)
        if self.console.is_terminal:
            self._draw(done, figures)
        elif time.monotonic() - self.said > PLAIN_SECONDS:
            self.said = time.monotonic()
            said = f", {figures}" if figures else ""
            place = f"{self.unit} {done}/{self.total}"
            print(f"{self.title}: {place}{said}{self._left(done)}", flush=True)

    def close(self) -> None:
        """Leave the line of the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _draw(self, done: int, figures: str) -> None:
        if self.bar is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.add_task(self.title, total=self.total, figures="")
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=done, figures=figures)

    def _left(self, done: int) -> str:
        began, first = self.started or (0.0, done)
        if done <= first:
            return ""
        seconds = (time.monotonic() - began) / (done - first) * (self.total - done)
        return f", {int(seconds // 60)}:{int(seconds % 60):02d} left"
