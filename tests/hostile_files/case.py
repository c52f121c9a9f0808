"""One bad folder: what it begins with, how it is spoilt, who is to refuse it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TERA = 1 << 40
CANARY = Path(tempfile.gettempdir()) / f"kbert-canary-{os.getuid()}"
CHECKPOINT, RUN, NOTHING = "checkpoint", "run", "nothing"
"""What a case begins with."""


@dataclass(frozen=True)
class Case:
    """One bad folder."""

    name: str
    spoil: Callable[[Path], Any]
    """Makes it bad; the folder is a copy of what the case begins with."""
    readers: tuple[str, ...]
    """Of `READERS`, each of which is to refuse it by one error."""
    start: str = CHECKPOINT
    is_read: bool = False
    """Whether it looks bad and is not: then it must be read."""
    is_large: bool = False
    """Whether to make it takes seconds, or gigabytes of disk."""
