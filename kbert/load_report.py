"""What became of each tensor of a checkpoint and of each variable of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Fate(Enum):
    """What became of a tensor."""

    USED = "used"
    """A tensor that was loaded."""
    MISSING = "newly initialised"
    """A variable of the model without a tensor: it keeps its new, random values."""
    UNEXPECTED = "left out"
    """A tensor the model has no place for, such as the head of another task."""
    HARMLESS = "not needed"
    """A tensor left out because it carries nothing: a constant, or a copy of another one."""


@dataclass(frozen=True)
class Entry:
    """One line of a report."""

    name: str
    """The checkpoint's name of a tensor; the path of a variable that has none."""
    shape: tuple[int, ...]
    """Its shape there."""
    fate: Fate
    """What became of it."""
    reason: str
    """Why, or where it went."""


@dataclass(frozen=True)
class LoadReport:
    """The account of a load: each tensor of the checkpoint once, each new variable once."""

    source: str
    """Where the tensors came from."""
    entries: tuple[Entry, ...]
    """The checkpoint's tensors in their order, then the new variables."""

    @property
    def used(self) -> tuple[str, ...]:
        """Tensors that were loaded."""
        return self._names(Fate.USED)

    @property
    def missing(self) -> tuple[str, ...]:
        """Variables of the model that are new."""
        return self._names(Fate.MISSING)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Tensors without a place in the model."""
        return self._names(Fate.UNEXPECTED)

    @property
    def harmless(self) -> tuple[str, ...]:
        """Tensors that carry nothing of their own."""
        return self._names(Fate.HARMLESS)

    def summary(self) -> str:
        """The report in a few lines."""
        lines = [f"{self.source}: {len(self.used)} tensors loaded."]
        for names, what in (
            (self.missing, "newly initialised, not in the checkpoint"),
            (self.unexpected, "left out, not in this model"),
            (self.harmless, "left out, copies or constants"),
        ):
            if names:
                lines.append(f"  {len(names)} {what}: {shortened(names)}")
        return "\n".join(lines)

    def table(self) -> str:
        """The report in full: a line for each tensor with its shape, its fate and the reason."""
        rows = [("tensor", "shape", "fate", "reason")]
        for entry in self.entries:
            shape = "x".join(map(str, entry.shape)) or "scalar"
            rows.append((entry.name, shape, entry.fate.value, entry.reason))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join([f"{self.source}:", *lines])

    def __str__(self) -> str:
        return self.summary()

    def _names(self, fate: Fate) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries if entry.fate is fate)


def shortened(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:6]) + (f", and {len(names) - 6} more" if len(names) > 6 else "")
