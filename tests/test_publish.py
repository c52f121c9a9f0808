"""Exports into a served folder: whole, numbered, labelled."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from kbert.errors import InputError
from kbert.publish import main, publish
from kbert.version_folders import LOCK


def make_export(folder: Path, version: int, content: str) -> Path:
    """What publish looks at of a run: RUN/export/news/VERSION."""
    path = folder / "export" / "news" / str(version)
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text(content)
    (path / "variables" / "variables.index").write_text(content)
    return path


def entry(folder: Path) -> ModelConfig:
    text = (folder / "models.config").read_text()
    [found] = text_format.Parse(text, ModelServerConfig()).model_config_list.config
    return found


def test_versions_follow_each_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    served = tmp_path / "served"
    for name, number in (("a", 1), ("b", 2)):
        make_export(tmp_path / name, 1, name)
        assert main([str(tmp_path / name), str(served)]) == 0
        target = served / "news" / str(number)
        assert capsys.readouterr().out == (
            f"{target}: published, and canary in {served / 'models.config'}\n"
        )
        assert (target / "variables" / "variables.index").read_text() == name
        assert (tmp_path / name / "export" / "news" / "1" / "saved_model.pb").exists()
    assert {path.name for path in (served / "news").iterdir()} == {"1", "2", LOCK}
    assert dict(entry(served).version_labels) == {"stable": 1, "canary": 2}


def test_a_number_of_ones_own(tmp_path: Path) -> None:
    export = make_export(tmp_path / "a", 1, "a")
    assert publish(export, tmp_path / "served", version=7) == tmp_path / "served" / "news" / "7"
    with pytest.raises(InputError, match="7 is there already"):
        publish(export, tmp_path / "served", version=7)
    assert publish(export, tmp_path / "served").name == "8"


def test_what_cannot_be_published_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    served = tmp_path / "served"
    assert main([str(tmp_path), str(served)]) == 2
    assert "no SavedModel" in capsys.readouterr().err
    assert not served.exists()
    make_export(tmp_path / "a", 1, "a")
    served.mkdir()
    (served / "models.config").write_text("no text proto")
    assert main([str(tmp_path / "a"), str(served)]) == 2
    assert "no ModelServerConfig" in capsys.readouterr().err
    assert not [path for path in (served / "news").iterdir() if path.is_dir()]


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_export(tmp_path / "a", 1, "a")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    assert main([str(tmp_path / "a"), str(tmp_path / "served")]) == 2
    assert [path.name for path in (tmp_path / "served" / "news").iterdir()] == [LOCK]


@pytest.mark.parametrize("words", [["--version", "0"], ["--version", "x"], []])
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("kbert.publish: ")
