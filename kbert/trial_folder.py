"""What a trial of a search keeps on disk."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from kbert.whole_files import written_whole


class TrialFolder:
    """Checkpoints while a trial runs, then its result; weights while it is among the best.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        """Record how the trial ended."""
        self.path.mkdir(parents=True, exist_ok=True)
        with written_whole(self._result) as beside:
            text = json.dumps(result, indent=2, ensure_ascii=False)
            beside.write_text(text + "\n", encoding="utf-8")

    def claim(self) -> str:
        """Make it the caller's: whoever claims it last runs the trial. The caller's token."""
        self.path.mkdir(parents=True, exist_ok=True)
        token = uuid.uuid4().hex
        with written_whole(self._owner) as beside:
            beside.write_text(token, encoding="utf-8")
        return token

    def belongs_to(self, token: str) -> bool:
        """Whether nobody has claimed it since."""
        return self._owner.read_text(encoding="utf-8") == token

    def go_on_from(self, other: TrialFolder) -> None:
        """Start with the checkpoint that another trial ended with, unless this one has its own."""
        if self.checkpoints.exists():
            return
        beside = self.path / "checkpoints.part"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(other.checkpoints, beside)
        beside.rename(self.checkpoints)

    def drop_weights(self) -> None:
        """Delete the weights of a trial that is no longer among the best."""
        self.weights.unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        """Delete what only a trial that goes on needs."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
