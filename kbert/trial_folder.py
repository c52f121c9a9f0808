"""What a trial of a search keeps on disk."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from kbert.whole_files import sync_all, written_whole

VMSTAT = Path("/proc/vmstat")
BOOT = Path("/proc/sys/kernel/random/boot_id")


class TrialFolder:
    """Checkpoints while a trial runs, then its result; weights while it is among the best.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._token = ""
        self.checkpoints = path / "checkpoints"
        self.weights = path / "model.safetensors"
        self._result = path / "result.json"
        self._owner = path / "owner"

    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote; None before."""
        try:
            return json.loads(self._result.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def finish(self, result: dict[str, Any]) -> None:
        """Record how the trial ended, unless it has ended already."""
        if self._result.exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with written_whole(self._result) as beside:
            text = json.dumps(result, indent=2, ensure_ascii=False)
            beside.write_text(text + "\n", encoding="utf-8")

    def claim(self) -> None:
        """Make it the caller's: whoever claims it last runs the trial."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._token = uuid.uuid4().hex
        claim = {
            "token": self._token,
            "boot": _text(BOOT),
            "memory_kills": _memory_kills(),
            "attempts_killed": self.attempts_killed(),
        }
        with written_whole(self._owner) as beside:
            beside.write_text(json.dumps(claim), encoding="utf-8")

    def is_ours(self) -> bool:
        """Whether nobody has claimed it since this object did."""
        return self._claim().get("token") == self._token

    def attempts_killed(self) -> int:
        """During how many attempts so far Linux has ended processes for want of memory.

        Asked by who is about to claim it. It may have been another process that was ended: one
        such attempt proves nothing.
        """
        claim = self._claim()
        if not claim:
            return 0
        same = claim["boot"] == _text(BOOT)
        return claim["attempts_killed"] + (same and _memory_kills() > claim["memory_kills"])

    def go_on_from(self, other: TrialFolder) -> None:
        """Start with the checkpoint that another trial ended with, unless this one has its own."""
        if self.checkpoints.exists():
            return
        beside = self.path / f"checkpoints.{self._token}"
        shutil.copytree(other.checkpoints, beside)
        sync_all(beside)
        beside.rename(self.checkpoints)

    def drop_weights(self) -> None:
        """Delete the weights of a trial that is no longer among the best."""
        self.weights.unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        """Delete what only a trial that goes on needs, and what killed processes left of it."""
        for part in (*self.path.glob("checkpoints*"), *self.path.glob(".model.safetensors.*")):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)

    def _claim(self) -> dict[str, Any]:
        text = _text(self._owner)
        return json.loads(text) if text else {}


def trial_folder(search: Path, name: str) -> TrialFolder:
    """Folder of a trial in the folder of its search."""
    return TrialFolder(search / "trials" / name)


def _memory_kills() -> int:
    """How many processes Linux has ended for want of memory since it started; 0 elsewhere."""
    counters = dict(line.split() for line in _text(VMSTAT).splitlines())
    return int(counters.get("oom_kill", 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
