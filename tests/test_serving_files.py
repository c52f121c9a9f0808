"""models.config: the exported model in it, and all else as it was."""

from __future__ import annotations

import fcntl
import logging
import threading
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from kbert.errors import InputError
from kbert.serving_files import HEADER, LOCK, label_version, prepare
from kbert.whole_files import lock_file

EDITED = """\
# ours, by hand
model_config_list {
  # the old one
  config { name: "old" base_path: "/models/old" model_platform: "tensorflow" }
  config: <
    name: 'news'  # a "brace" } in a remark
    base_path: "/elsewhere/{news}"
    model_platform: "tensorflow"
    version_labels { key: "canary" value: 1 }
    version_labels { key: "night" value: 1 }
  >
}
# the end
"""


def read(path: Path) -> dict[str, model_server_config_pb2.ModelConfig]:
    config = text_format.Parse(
        path.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig()
    )
    return {entry.name: entry for entry in config.model_config_list.config}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Versions 1 and 2 of the model news."""
    for version in (1, 2):
        (tmp_path / "news" / str(version)).mkdir(parents=True)
    (tmp_path / "news" / ".3.part").mkdir()
    return tmp_path


def test_a_first_version_has_both_labels(folder: Path) -> None:
    path = label_version(folder, "news", 1)
    assert path == folder / "models.config"
    assert path.read_text(encoding="utf-8") == HEADER + (
        "model_config_list {\n"
        "  config {\n"
        '    name: "news"\n'
        '    base_path: "/models/news"\n'
        '    model_platform: "tensorflow"\n'
        "    model_version_policy {\n"
        "      latest {\n"
        "        num_versions: 2\n"
        "      }\n"
        "    }\n"
        "    version_labels {\n"
        '      key: "canary"\n'
        "      value: 1\n"
        "    }\n"
        "    version_labels {\n"
        '      key: "stable"\n'
        "      value: 1\n"
        "    }\n"
        "  }\n"
        "}\n"
    )
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith(".")] == [LOCK]


def test_a_further_version_is_the_canary(folder: Path) -> None:
    path = label_version(folder, "news", 1)
    label_version(folder, "news", 2)
    assert dict(read(path)["news"].version_labels) == {"stable": 1, "canary": 2}
    assert read(path)["news"].model_version_policy.latest.num_versions == 2
    assert path.read_text(encoding="utf-8").startswith(HEADER)
    before = path.read_bytes()
    for version in (1, 2):  # an older one, and the same one, change nothing
        label_version(folder, "news", version)
        assert path.read_bytes() == before


def test_what_is_labelled_is_loaded(folder: Path) -> None:
    path = label_version(folder, "news", 1)
    label_version(folder, "news", 2)
    (folder / "news" / "10").mkdir()
    label_version(folder, "news", 10)  # the newest two are 2 and 10, and stable is 1
    assert read(path)["news"].model_version_policy.latest.num_versions == 3
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("latest {\n        num_versions: 3", "specific {\n versions: [1, 2]")
    )
    (folder / "news" / "11").mkdir()
    label_version(folder, "news", 11)
    assert list(read(path)["news"].model_version_policy.specific.versions) == [1, 2, 11]


def test_versions_are_what_a_server_sees(folder: Path) -> None:
    path = label_version(folder, "news", 1)
    (folder / "news" / "01").mkdir()  # the same number as 1
    (folder / "news" / "５").mkdir()
    (folder / "news" / "6").write_text("a file")
    label_version(folder, "news", 2)
    assert read(path)["news"].model_version_policy.latest.num_versions == 2


def test_more_versions_than_two_are_a_warning(folder: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="kbert.serving_files"):
        path = label_version(folder, "news", 1)
        label_version(folder, "news", 2)
        assert caplog.messages == []
        (folder / "news" / "3").mkdir()
        label_version(folder, "news", 3)
        (message,) = caplog.messages
        assert message.startswith(f"{path}: servers keep 3 versions of news in memory;")
        assert message.endswith("move `stable` to a newer one and lower num_versions to 2")
        text = path.read_text(encoding="utf-8")
        latest, specific = "latest {\n        num_versions: 3", "specific {\n        versions: 2"
        path.write_text(text.replace(latest, specific))
        (folder / "news" / "4").mkdir()
        label_version(folder, "news", 4)
    assert caplog.messages[1:] == [
        message.replace("lower num_versions to 2", "take what has no label out of `specific`")
    ]


def test_runs_wait_for_one_another(folder: Path) -> None:
    path = folder / "models.config"
    with lock_file(folder / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=label_version, args=(folder, "news", 1))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        path.write_text('model_config_list { config { name: "other" } }', encoding="utf-8")
    thread.join(10)
    assert list(read(path)) == ["other", "news"]


def test_another_model_is_added(folder: Path) -> None:
    path = label_version(folder, "news", 1)
    text = path.read_text(encoding="utf-8")
    label_version(folder, "好", 4)
    assert list(read(path)) == ["news", "好"]
    added = path.read_text(encoding="utf-8")
    assert added.startswith(text.removesuffix("}\n"))
    assert 'base_path: "/models/好"' in added


def test_what_was_written_by_hand_is_kept(folder: Path) -> None:
    path = folder / "models.config"
    path.write_text(EDITED, encoding="utf-8")
    label_version(folder, "news", 2)
    before, after = EDITED.split("config: <")[0], EDITED.split("  >\n")[1]
    text = path.read_text(encoding="utf-8")
    assert text.startswith(before)
    assert text.endswith(after)
    news = read(path)["news"]
    assert news.base_path == "/elsewhere/{news}"
    assert dict(news.version_labels) == {"canary": 2, "night": 1}
    assert news.model_version_policy.latest.num_versions == 2  # it was the newest alone


def test_an_entry_without_a_canary_is_kept(folder: Path) -> None:
    path = folder / "models.config"
    text = 'model_config_list { config { name: "news" base_path: "/a" } }'
    path.write_text(text, encoding="utf-8")
    label_version(folder, "news", 2)
    assert path.read_text(encoding="utf-8") == text


def test_other_forms_are_rewritten(folder: Path) -> None:
    path = folder / "models.config"
    entries = ", ".join(f'{{name: "{name}" base_path: "/{name}"}}' for name in ("a", "b"))
    path.write_text(f"model_config_list: {{config: [{entries}],}}", encoding="utf-8")
    label_version(folder, "news", 2)
    assert {name: entry.base_path for name, entry in read(path).items()} == {
        "a": "/a", "b": "/b", "news": "/models/news",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {", "models.config: no ModelServerConfig"),
        ("custom_model_config {}", "has a custom_model_config"),
        ("\udcff", "models.config: cannot be read"),
    ],
)
def test_what_cannot_be_changed_is_refused(folder: Path, text: str, message: str) -> None:
    path = folder / "models.config"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        label_version(folder, "news", 2)
    with pytest.raises(InputError, match=message):
        prepare(folder / "news")
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_where_nothing_can_be_written(folder: Path) -> None:
    prepare(folder / "sport")
    assert list((folder / "sport").iterdir()) == []
    (folder / "file").touch()
    (folder / "link").symlink_to("/proc/self")  # nobody makes a file there
    for base in (folder / "file" / "news", folder / "link"):
        with pytest.raises(InputError, match=f"{folder}/.*: no export can be written"):
            prepare(base)
    (folder / LOCK).unlink()
    (folder / LOCK).mkdir()
    with pytest.raises(InputError, match="no export can be written"):
        prepare(folder / "news")
    with pytest.raises(InputError, match="models.config: cannot be written .*goes on"):
        label_version(folder, "news", 1)
