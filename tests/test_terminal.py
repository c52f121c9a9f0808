"""What a search prints: on a terminal, and into a file."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from kbert import terminal
from kbert.tasks.task import Table
from kbert.terminal import TrialsReport, print_table, trials_table
from kbert.trials import Objective, Trial, Value

ACCURACY = Objective("val_accuracy", larger_is_better=True)
NAMES = ("learning_rate", "batch_size")


def completed(name: str, score: float, seconds: float = 41.0, **values: Value) -> Trial:
    return Trial(name, "completed", values, score, {"val_accuracy": score}, 3, seconds, None)


def failed(name: str, reason: str) -> Trial:
    return Trial(name, "failed", {"batch_size": 8}, None, {}, 1, 9.0, reason)


def running(name: str, **metrics: float) -> Trial:
    return Trial(name, "running", {"batch_size": 8}, None, metrics, 1, 9.0, None)


FIRST = completed("00", 0.75, learning_rate=3e-5, batch_size=32)
SECOND = completed("01", 0.8812, 250.0, learning_rate=0.0001, batch_size=32)


def plain(text: str) -> list[str]:
    """The lines without colours and trailing blanks."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).splitlines()]


def on_terminal(*, width: int = 120, height: int = 40) -> tuple[TrialsReport, io.StringIO]:
    file = io.StringIO()
    console = Console(force_terminal=True, file=file, width=width, height=height)
    return TrialsReport(ACCURACY, NAMES, console=console), file


def rows(text: str) -> list[str]:
    """First cell of each row of a table."""
    return [line.split()[0] for line in plain(text) if re.match(r" *\d\d ", line)]


def test_table_has_the_best_first_and_no_times() -> None:
    table = trials_table([FIRST, SECOND], ACCURACY, NAMES)
    assert table.columns == ("trial", "learning_rate", "batch_size", "accuracy", "epochs")
    assert table.rows == [
        ("01", "0.0001", "32", 0.8812, 3),
        ("00 (default)", "3e-05", "32", 0.75, 3),
    ]


def test_table_says_what_is_not_completed() -> None:
    table = trials_table(
        [failed("02", "training diverged"), running("03"), SECOND], ACCURACY, NAMES
    )
    assert table.columns[-1] == "status"
    assert table.rows == [
        ("01", "0.0001", "32", 0.8812, 3, "completed"),
        ("03", "", "8", "", 1, "running"),
        ("02", "", "8", "", 1, "failed: training diverged"),
    ]


def test_no_column_of_the_table_is_there_twice() -> None:
    table = trials_table([completed("00", 0.5, epochs=4)], ACCURACY, ("epochs",))
    assert table.columns == ("trial", "epochs", "accuracy", "epochs trained")


def test_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("labels", ("class", "[b]"), [("[red]", 1), ("[/]", 0.5)]))
    lines = [line.split() for line in plain(capsys.readouterr().out) if line]
    assert lines[1] == ["class", "[b]"]
    rows = [line for line in lines if len(line) == 2]
    assert rows[1:] == [["[red]", "1"], ["[/]", "0.5000"]]


def test_a_line_for_each_trial_that_has_finished(capsys: pytest.CaptureFixture[str]) -> None:
    report = TrialsReport(ACCURACY, NAMES)
    report.update([])
    report.update([running("00")])
    report.update([FIRST, running("01")])
    report.update([FIRST, running("01")])
    report.update([FIRST, SECOND, failed("02", "training diverged: [nan]")])
    report.update([FIRST, SECOND, failed("02", ""), completed("03", 0.8, batch_size=8)])
    report.close()
    assert capsys.readouterr().out.splitlines() == [
        "trial 00 (default): learning_rate 3e-05, batch_size 32: accuracy 0.7500 (41 s), "
        "best so far 0.7500 (trial 00)",
        "trial 01: learning_rate 0.0001, batch_size 32: accuracy 0.8812 (4.2 min), "
        "best so far 0.8812 (trial 01)",
        "trial 02: failed: training diverged: [nan]",
        "trial 03: batch_size 8: accuracy 0.8000 (41 s), best so far 0.8812 (trial 01)",
    ]


def test_best_so_far_is_of_that_moment(capsys: pytest.CaptureFixture[str]) -> None:
    report = TrialsReport(ACCURACY, ())
    report.update([])
    report.update([completed("00", 0.5), completed("01", 0.6)])  # two workers at once
    assert capsys.readouterr().out.splitlines() == [
        "trial 00 (default): accuracy 0.5000 (41 s), best so far 0.5000 (trial 00)",
        "trial 01: accuracy 0.6000 (41 s), best so far 0.6000 (trial 01)",
    ]


@pytest.mark.parametrize(
    ("trials", "line"),
    [
        ([FIRST, SECOND, running("02")], "2 trials are kept: best 0.8812 (trial 01)"),
        ([FIRST, failed("01", "")], "2 trials are kept, 1 failed: best 0.7500 (trial 00)"),
        ([failed("00", "")], "1 trial is kept, 1 failed"),
    ],
)
def test_trials_of_an_earlier_start_get_one_line(
    trials: list[Trial], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = TrialsReport(ACCURACY, NAMES)
    report.update(trials)
    report.update(trials)
    assert capsys.readouterr().out.splitlines() == [line]
    report.update([*trials, completed("09", 0.1)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("trial 09: accuracy 0.1000")


def test_progress_is_a_line_at_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = TrialsReport(ACCURACY, NAMES)
    report.update([running("00")])
    report.progress("00", "epoch 1/3")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0)
    report.progress("00", "epoch 2/3")
    monkeypatch.undo()
    report.progress("00", "epoch 3/3")
    assert capsys.readouterr().out == "trial 00: epoch 2/3\n"


def test_the_table_on_a_terminal() -> None:
    report, file = on_terminal()
    report.update([FIRST, running("01")])
    report.update([FIRST, SECOND, failed("02", "bad [shape]")])
    assert rows(file.getvalue())[-3:] == ["01", "00", "02"]
    lines = plain(file.getvalue())
    assert lines[-4].split() == ["01", "0.0001", "32", "0.8812", "3", "4.2", "min"]
    assert lines[-3].split() == ["00", "3e-05", "32", "0.7500", "3", "41", "s", "default"]
    assert lines[-2].endswith("failed: bad [shape]")
    shown = file.getvalue()
    report.close()
    report.close()
    assert "\x1b[1A" in file.getvalue()[len(shown) :]  # the lines above are taken off


def test_a_running_trial_says_in_its_row_what_it_is_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "DRAW_SECONDS", 0)
    report, file = on_terminal()
    report.update([FIRST, running("01", val_loss=0.25)])
    assert plain(file.getvalue())[-2].endswith("val_loss 0.2500")
    report.progress("01", "epoch 2/3, loss 0.4127")
    assert plain(file.getvalue())[-2].endswith("epoch 2/3, loss 0.4127")
    report.update([FIRST, SECOND])
    assert "epoch 2/3" not in plain(file.getvalue())[-2]
    report.close()


def test_a_low_terminal_shows_the_best_and_what_runs() -> None:
    report, file = on_terminal(height=12)
    trials = [completed(f"{i:02}", i / 100, batch_size=i) for i in range(50)]
    report.update([*trials, running("50")])
    shown = file.getvalue()
    assert rows(shown) == ["49", "48", "47", "46", "50"]
    assert "and 46 more" in plain(shown)
    assert len(plain(shown)) < 12
    report.close()


def test_a_narrow_terminal_keeps_the_figures() -> None:
    report, file = on_terminal(width=60)
    folder = "/models/uncased_L-2_H-128_A-2"
    report.hyperparameters = (*NAMES, "checkpoint")
    report.update(
        [completed("01", 0.8812, learning_rate=2.34567e-5, batch_size=8, checkpoint=folder)]
    )
    assert "…128_A-2" in plain(file.getvalue())[-2]
    assert plain(file.getvalue())[-2].split()[:3] == ["01", "2.35e-05", "8"]
    report.close()


def test_what_is_printed_meanwhile_is_not_lost() -> None:
    report, file = on_terminal()
    report.update([FIRST])
    print("a warning")
    report.update([FIRST, SECOND])
    report.close()
    assert "a warning" in plain(file.getvalue())
