"""A trial's folder: one result, one owner, and who the system has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbert import trial_folder as module
from kbert.trial_folder import TrialFolder, trial_folder


def test_the_first_result_stays(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, "03")
    assert folder.result() is None
    folder.finish({"status": "completed", "reason": "好"})
    folder.finish({"status": "failed"})
    assert trial_folder(tmp_path, "03").result() == {"status": "completed", "reason": "好"}


def test_who_claims_it_last_has_it(tmp_path: Path) -> None:
    slow, quick = TrialFolder(tmp_path), TrialFolder(tmp_path)
    assert not slow.is_ours()
    slow.claim()
    assert slow.is_ours()
    quick.claim()
    assert quick.is_ours() and not slow.is_ours()


def test_it_goes_on_from_another(tmp_path: Path) -> None:
    earlier, later = trial_folder(tmp_path, "0"), trial_folder(tmp_path, "1")
    earlier.checkpoints.mkdir(parents=True)
    (earlier.checkpoints / "step-1.safetensors").write_bytes(b"first")
    later.claim()
    later.go_on_from(earlier)
    (earlier.checkpoints / "step-1.safetensors").write_bytes(b"changed")
    later.go_on_from(earlier)  # it has its own now
    assert (later.checkpoints / "step-1.safetensors").read_bytes() == b"first"
    assert sorted(path.name for path in later.path.iterdir()) == ["checkpoints", "owner"]


def test_what_is_dropped(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.weights.write_bytes(b"")
    (tmp_path / ".model.safetensors.0a1b2c3d").write_bytes(b"of a killed process")
    (tmp_path / "checkpoints.part").mkdir()
    folder.checkpoints.mkdir()
    folder.drop_checkpoints()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    folder.drop_weights()
    folder.drop_weights()
    assert not list(tmp_path.iterdir())


def test_attempts_that_the_system_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the counter of Linux, which cannot be made to count here."""
    vmstat, boot = tmp_path / "vmstat", tmp_path / "boot_id"
    monkeypatch.setattr(module, "VMSTAT", vmstat)
    monkeypatch.setattr(module, "BOOT", boot)
    boot.write_text("a")
    folder = TrialFolder(tmp_path / "0")
    counts = []
    for kills in (5, 5, 6, 6, 8):
        vmstat.write_text(f"nr_free_pages 12\noom_kill {kills}\n")
        counts.append(folder.attempts_killed())
        folder.claim()
    boot.write_text("b")  # another start of the machine counts anew
    vmstat.write_text("oom_kill 9\n")
    counts.append(folder.attempts_killed())
    assert counts == [0, 0, 1, 1, 2, 2]


def test_the_counter_of_this_machine() -> None:
    if not module.VMSTAT.exists():
        pytest.skip("no /proc/vmstat: not Linux")
    assert "oom_kill" in module.VMSTAT.read_text()
    assert module._memory_kills() >= 0
