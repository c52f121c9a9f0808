"""Lineages: what changes their hashes and what does not, and what of the machine they tell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kbert.checkpoint_files import open_tensors
from kbert.config import differences, parse
from kbert.errors import InputError
from kbert.lineage import (
    CHECKPOINT_FILES,
    KINDS_OF_FOLDERS,
    LEFT_OUT,
    LINEAGE_PLACE,
    data_digests,
    lineage,
    source_code,
    write_lineage,
)
from kbert.loading import TOKENIZER_FILES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "lineage.md"
ROWS = {"train": 81, "validation": 10, "test": 10}


@pytest.fixture
def make(tiny_csv: Path, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The lineage of a run on the tiny file and the tiny checkpoint, or copies of them."""

    def make_lineage(
        *words: str,
        train: Path = tiny_csv,
        checkpoint: Path | None = tiny_checkpoint,
        trial: str | None = None,
        search: dict | None = None,
    ) -> dict[str, Any]:
        began_with = [] if checkpoint is None else ["--model.checkpoint", str(checkpoint)]
        files = ["--data.train", str(train), "--output", str(tmp_path / "run"), *began_with]
        config = parse([*files, *words])
        return lineage(
            config,
            data=data_digests(config.data),
            rows=ROWS,
            checkpoint=checkpoint,
            seed=config.train.seed,
            trial=trial,
            search=search,
        )

    return make_lineage


def hashes(content: dict[str, Any]) -> tuple[str, str, str]:
    """Of the options, of the checkpoint, of the code."""
    return tuple(content[part]["sha256"] for part in ("options", "checkpoint", "code"))


def without_time(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in ("created", "run")}


def flip_one_bit(path: Path, place: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    process = subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return process.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of kbert's source without what Python wrote beside it."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "kbert", tmp_path / "copy" / "kbert", ignore=ignored))


def test_what_it_tells(make, tiny_csv: Path, tiny_checkpoint: Path) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    found = make("--export.name", "moods", "--export.version", "7", "--train.seed", "5")
    assert began <= datetime.fromisoformat(found["created"]) <= datetime.now(UTC)
    assert (found["run"], found["seed"], found["trial"]) == ("moods-7", 5, None)
    digest = sha256(tiny_csv.read_bytes()).hexdigest()
    # the other two splits are drawn from the training file
    assert found["data"] == {
        role: {"file": "texts.csv", "sha256": digest, "rows": rows} for role, rows in ROWS.items()
    }
    options = found["options"]["values"]
    assert options["data"]["train"] == {"format": ".csv", "sha256": digest}
    assert (options["data"]["validation"], options["train"]["epochs"]) == (None, 3)
    assert found["checkpoint"]["name"] == tiny_checkpoint.name
    names = {"config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}
    assert found["checkpoint"]["files"] == {
        name: sha256((tiny_checkpoint / name).read_bytes()).hexdigest() for name in names
    }
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    import keras

    assert found["versions"]["keras"] == keras.__version__


def test_files_of_its_own(make, tiny_csv: Path, tmp_path: Path) -> None:
    other = tmp_path / "unseen.csv"
    other.write_text("text,label\ngood,positive\n", encoding="utf-8")
    found = make("--data.test", str(other))
    assert found["data"]["test"]["file"] == "unseen.csv"
    assert found["data"]["test"]["sha256"] == sha256(other.read_bytes()).hexdigest()
    assert found["data"]["validation"] == found["data"]["train"] | {"rows": 10}
    assert hashes(found)[0] != hashes(make())[0]


def test_no_split_is_null(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    config = parse(tiny_options)
    digests = data_digests(config.data)
    arguments = {"checkpoint": tiny_checkpoint, "seed": 0, "trial": None, "search": None}
    found = lineage(config, data=digests, rows={"train": 101}, **arguments)
    assert (found["data"]["validation"], found["data"]["test"]) == (None, None)


def test_places_change_nothing(make, tiny_csv: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(tiny_csv, tmp_path / "elsewhere" / "texts.csv")
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere" / tiny_checkpoint.name)
    found = make(
        "--output", str(tmp_path / "other"), "--data.cache_dir", str(tmp_path / "cache"),
        "--monitor.every_steps", "3", "--resume", "never", "--debug",
        "--export.version", "2", "--export.warmup", "false", "--export.huggingface", "true",
        train=moved, checkpoint=copy,
    )  # fmt: skip
    assert without_time(found) == without_time(make())
    renamed = shutil.copy(tiny_csv, tmp_path / "elsewhere" / "renamed.csv")
    assert hashes(make(train=renamed)) == hashes(make())


@pytest.mark.parametrize(
    "words",
    [
        ["--train.learning_rate", "4e-5"],
        ["--data.max_length", "127"],
        ["--data.text_column", "[text, label]"],
        ["--task.label_smoothing", "0.1"],
        ["--search.space", "{warmup: [0.1]}"],
        ["--model.dropout", "0.1"],
        ["--smoke"],
    ],
)
def test_one_option_changes_the_hash_of_the_options(make, words: list[str]) -> None:
    (options, *others), (changed, *unchanged) = hashes(make()), hashes(make(*words))
    assert changed != options and unchanged == others


def test_one_byte_of_the_data(make, tiny_csv: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(tiny_csv, tmp_path / "texts.csv"))
    flip_one_bit(copy)
    found, before = make(train=copy), make()
    lines = differences(without_time(before), without_time(found))
    assert [line.partition(":")[0] for line in lines] == [
        *(f"data.{role}.sha256" for role in sorted(ROWS)),
        "options.sha256",
        "options.values.data.train.sha256",
    ]


def test_another_format_of_the_same_bytes(make, tiny_csv: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(tiny_csv, tmp_path / "texts.tsv"))
    assert hashes(make(train=copy))[0] != hashes(make())[0]


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "config.json"])
def test_one_byte_of_the_checkpoint(make, tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name))
    (copy / "README.md").write_text("nothing that a model is made of", encoding="utf-8")
    assert hashes(make(checkpoint=copy)) == hashes(make())
    flip_one_bit(copy / name)
    found, before = make(checkpoint=copy), make()
    lines = differences(without_time(before), without_time(found))
    assert [line.partition(":")[0] for line in lines] == [
        f"checkpoint.files.{name}",
        "checkpoint.sha256",
        "options.sha256",
        "options.values.model.checkpoint.sha256",
    ]


def test_every_shard_counts(make, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name))
    whole = copy / "model.safetensors"
    tensors = dict(open_tensors(whole))
    whole.unlink()
    index = {name: f"model-0000{place % 2 + 1}-of-00002.safetensors"
             for place, name in enumerate(tensors)}  # fmt: skip
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == shard}, copy / shard)
    name = "model.safetensors.index.json"
    (copy / name).write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    before = make(checkpoint=copy)["checkpoint"]
    assert {name, *index.values()} < set(before["files"])
    flip_one_bit(copy / "model-00002-of-00002.safetensors")
    assert make(checkpoint=copy)["checkpoint"]["sha256"] != before["sha256"]


def test_of_the_hub_it_tells_id_and_commit(make, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The folder of a model in the hub's cache, as huggingface_hub lays it out."""
    commit = 20 * "a1"
    place = tmp_path / "hub" / "models--google--bert_tiny" / "snapshots" / commit
    copy = Path(shutil.copytree(tiny_checkpoint, place))
    found = make(checkpoint=copy)
    assert (found["checkpoint"]["name"], found["checkpoint"]["revision"]) == (
        "google/bert_tiny",
        commit,
    )
    # asked for by its id or as a folder, it is the same checkpoint
    by_id = make("--model.checkpoint", "google/bert_tiny", "--model.revision", "v1",
                 checkpoint=copy)  # fmt: skip
    assert hashes(by_id) == hashes(found) == hashes(make())


@pytest.mark.parametrize("kind", KINDS_OF_FOLDERS)
def test_of_a_folder_that_is_called_as_its_kind_it_tells_which(
    kind: str, make, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "mail" / kind))
    found = make(checkpoint=copy)
    assert found["checkpoint"]["name"] == f"mail/{kind}"
    assert hashes(found) == hashes(make())  # a name changes nothing in a model


def test_all_that_a_tokenizer_is_read_from() -> None:
    assert {"config.json", *TOKENIZER_FILES} == set(CHECKPOINT_FILES)


def test_from_scratch_the_vocabulary_counts(make, tiny_checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = Path(shutil.copy(tiny_checkpoint / "vocab.txt", tmp_path / "words.txt"))
    words = ["--model.vocab", str(vocabulary)]
    before = make(*words, checkpoint=None)
    assert (before["checkpoint"]["name"], before["checkpoint"]["revision"]) == (None, None)
    digest = sha256(vocabulary.read_bytes()).hexdigest()
    assert before["checkpoint"]["files"] == {"vocab.txt": digest}
    assert str(tmp_path) not in json.dumps(before)
    flip_one_bit(vocabulary)
    assert hashes(make(*words, checkpoint=None))[:2] != hashes(before)[:2]
    vocabulary.unlink()
    with pytest.raises(InputError, match=r"words\.txt: cannot be read \(No such file"):
        make(*words, checkpoint=None)


def test_a_learnt_vocabulary_is_told_by_data_and_size(make) -> None:
    before = make("--model.vocab_size", "50", checkpoint=None)
    assert before["checkpoint"]["files"] == {}
    assert before["options"]["values"]["model"]["vocab_size"] == 50
    other = make("--model.vocab_size", "60", checkpoint=None)
    assert hashes(other)[0] != hashes(before)[0]
    assert hashes(other)[1:] == hashes(before)[1:]


def test_the_winner_of_a_search(make) -> None:
    search = {
        "hyper_parameters": {"learning_rate": np.float32(0.5), "batch_size": np.int64(16)},
        "score": float("nan"),
        "seeds": (0, 1, 2),
        "exported_seed": 1,
    }
    assert make(trial="0007", search=search)["trial"] == {
        "id": "0007",
        "hyper_parameters": {"learning_rate": 0.5, "batch_size": 16},
        "score": None,
        "seeds": [0, 1, 2],
        "exported_seed": 1,
    }


def test_no_folder_of_the_machine(make, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other_bert")
    named = json.dumps([str(tiny_checkpoint), str(other), "org/name"])
    space = f"{{checkpoint: {named}, warmup: {{values: [0.1], when: {{checkpoint: {named}}}}}}}"
    found = make(
        "--search.tuner", "random", "--search.space", space,
        "--data.cache_dir", str(tmp_path / "cache"), "--data.validation", str(ROOT / "README.md"),
        trial="1", search={"hyper_parameters": {"checkpoint": str(other)}, "folder": other},
    )  # fmt: skip
    text = json.dumps(found)
    for folder in (tmp_path, tiny_checkpoint.parent, ROOT, Path.home(), Path(sys.prefix)):
        assert f"{folder}/" not in text
    names = [tiny_checkpoint.name, "other_bert", "org/name"]
    space = found["options"]["values"]["search"]["space"]
    assert space["checkpoint"] == space["warmup"]["when"]["checkpoint"] == names
    assert found["trial"] == {
        "id": "1",
        "hyper_parameters": {"checkpoint": "other_bert"},
        "folder": "other_bert",
    }


def test_what_is_left_out_is_not_there(make) -> None:
    options = make()["options"]["values"]
    assert not {"output", "resume", "debug", "monitor", "export"} & set(options)
    for name in LEFT_OUT:
        group, _, option = name.rpartition(".")
        assert option not in (options.get(group, {}) if group else options)


def test_hashes_by_the_shell(make, package: Path, tiny_checkpoint: Path) -> None:
    """docs/lineage.md says how to compute them without kbert."""

    def shell(command: str, folder: Path) -> str:
        bash = ["bash", "-o", "pipefail", "-c", f"export LC_ALL=C; {command}"]
        process = subprocess.run(bash, cwd=folder, check=True, capture_output=True, text=True)
        return process.stdout.split()[0]

    documented = DOCUMENT.read_text("utf-8")
    for command, folder, digest in (
        (
            "find * -type f -not -path '*__pycache__*' -not -path '*/.*' "
            "| sort | xargs sha256sum | sha256sum",
            package,
            source_code(package)["sha256"],
        ),
        (
            "sha256sum config.json model.safetensors tokenizer_config.json vocab.txt | sha256sum",
            tiny_checkpoint,
            make()["checkpoint"]["sha256"],
        ),
    ):
        assert command in documented
        assert shell(command, folder) == digest
    options = json.loads(json.dumps(make()["options"]))
    line = 'json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)'
    assert line in documented
    text = eval(line, {"json": json, "values": options["values"]})  # noqa: S307
    assert sha256(text.encode()).hexdigest() == options["sha256"]


@pytest.mark.parametrize("name", ["run.py", "tasks/task.py", "assets/tf_serving_ops.txt"])
def test_one_byte_of_the_source(package: Path, name: str) -> None:
    before = source_code(package)["sha256"]
    assert before == source_code(ROOT / "kbert")["sha256"]
    flip_one_bit(package / name)
    assert source_code(package)["sha256"] != before


def test_a_name_of_the_source(package: Path) -> None:
    before = source_code(package)["sha256"]
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "run.pyc").write_bytes(b"what Python writes is no source")
    (package / "tasks" / ".task.py.swp").write_bytes(b"nor what an editor does")
    assert source_code(package)["sha256"] == before
    (package / "losses.py").rename(package / "loss.py")
    assert source_code(package)["sha256"] != before


def test_without_a_repository(package: Path) -> None:
    assert source_code(package)["git"] is None


def test_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_code(ROOT / "kbert")["git"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_in_a_repository(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(package.parent, "init", "--quiet")
    git(package.parent, "commit", "--quiet", "--allow-empty", "-m", "a")
    # a repository of something else, in which kbert happens to be installed
    assert source_code(package)["git"] is None
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "-m", "b")
    commit = git(package.parent, "rev-parse", "HEAD")
    (package.parent / "notes.txt").write_text("beside the package", encoding="utf-8")
    monkeypatch.setenv("GIT_DIR", str(package / "no_repository"))  # as within a hook
    assert source_code(package)["git"] == {"commit": commit, "is_dirty": False}
    monkeypatch.delenv("GIT_DIR")
    (package / "new.py").write_text("", encoding="utf-8")
    assert source_code(package)["git"] == {"commit": commit, "is_dirty": True}
    (package / "new.py").unlink()
    flip_one_bit(package / "run.py")
    assert source_code(package)["git"] == {"commit": commit, "is_dirty": True}


def test_written_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "assets.extra" / "lineage.json"
    write_lineage(path, {"data": {"file": "文章.csv"}})
    text = '{\n  "data": {\n    "file": "文章.csv"\n  }\n}\n'
    assert path.read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match="JSON"):
        write_lineage(path, {"score": float("nan")})
    assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in path.parent.iterdir()] == ["lineage.json"]


def test_every_field_is_documented(make) -> None:
    documented = DOCUMENT.read_text("utf-8")
    found = make()
    fields = [*found, *(f"{name}.{part}" for name in ("options", "checkpoint", "code")
                        for part in found[name])]  # fmt: skip
    assert [name for name in fields if f"`{name}`" not in documented] == []
    assert [name for name in LEFT_OUT if f"`{name}`" not in documented] == []


def test_the_documented_comparison(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    base = tmp_path / "runs" / "news" / "export" / "news"
    for version in (1, 2):
        found = make("--export.version", str(version), "--train.epochs", str(version))
        write_lineage(base / str(version) / LINEAGE_PLACE, found | {"created": ""})
    code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), flags=re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:1]] == ["options.sha256"]
    assert lines[1:] == ["options.values.train.epochs: 1 -> 2", 'run: "run-1" -> "run-2"']


def test_it_is_light() -> None:
    code = "import kbert.lineage, sys; print({'tensorflow', 'keras', 'torch'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "set()", process.stderr
