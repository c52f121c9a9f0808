"""The README's commands run, its tree is the project's, and both languages say the same."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve.flags import parse_flags, read_options

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh.md")


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_both_languages_show_the_same_code() -> None:
    for language in ("console", "bash", "python", "text"):
        ours, theirs = (blocks(name, language) for name in READMES)
        assert ours == theirs
        assert ours
    tables = [re.findall(r"^\| `(.+?)`", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE)
              for name in READMES]  # fmt: skip
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name", READMES)
def test_results_are_those_of_make_tasks(name: str) -> None:
    measured = (ROOT / "benchmarks" / "tasks" / "table.md").read_text(encoding="utf-8")
    assert measured in (ROOT / name).read_text(encoding="utf-8")


def test_tree_is_there() -> None:
    folder = "."
    tree = next(block for block in blocks("README.md", "text") if block.startswith("train.py"))
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith("  "):
            folder, name = name, "."
        assert (ROOT / folder / name).exists(), line
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"`recipes/{recipe.name}`" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", READMES)
def test_pictures_and_pages_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert any(link.endswith(".png") for link in found)
    for link in found:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "page",
    sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "serve").glob("*.md")]),
    ids=lambda page: page.stem,
)
def test_links_of_other_pages(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, heading = link.partition("#")
            linked = page.parent / name if name else page
            assert linked.exists(), link
            assert heading in ("", *headings(linked)), link


def headings(page: Path) -> list[str]:
    """As GitHub names them in links."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found]


def test_tree_of_serve_is_whole() -> None:
    tree = blocks("serve/README.md", "text")[-1]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line}
    there = {path.name for path in (ROOT / "serve").iterdir()} - {"__init__.py", "__pycache__"}
    assert named == there


def test_servers_of_serve_readme_start() -> None:
    """Their flags are right, and so are the files of this project that they name."""
    text = "".join(blocks("serve/README.md", "sh")).replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("python -m serve.server")]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)[3:]
        made = [word for word in words if word.endswith("=ssl.config")]
        read_options(parse_flags([word for word in words if word not in made]))


def test_make_targets() -> None:
    benchmarks = [
        f"bench-{name}"
        for name in ("quality", "scale", "search", "tokenizer", "monitoring", "serving", "batching")
    ]
    checks = ("fidelity", "survive", "serve-check", "serve-fuzz", "hostile", "fuzz-files")
    for target in ("demo", "test", "lint", "look", "tasks", "scale", *checks, *benchmarks):
        assert f"make {target}" in (ROOT / "README.md").read_text("utf-8") or target == "lint"
        process = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr


def test_train_command(
    tiny_csv: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The README's train.py, on small files, at smoke size; then what it does with the export."""
    command, server = (block.strip() for block in blocks("README.md", "bash"))
    command = command.replace("articles.csv", str(tiny_csv))
    command = command.replace("$CHECKPOINT", str(tiny_checkpoint))
    words = shlex.split(command.replace("runs/news", str(tmp_path / "runs" / "news")))
    extra = ["--smoke", "--data.max_length", "16", "--data.cache_dir", str(tmp_path / "cache")]
    process = subprocess.run(
        [sys.executable, *words[1:], *extra], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert {path.name for path in (tmp_path / "runs" / "news").iterdir()} == {
        ".lock", "analysis.json", "baseline.safetensors", "checkpoints", "config.yaml", "export",
        "learned.json", "metrics.json", "predictions.csv", "report.html", "tensorboard",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    exec(blocks("README.md", "python")[0], {})  # noqa: S102
    labels = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(labels) == 2 and {*labels} <= {"positive", "negative"}
    command = next(line for line in blocks("README.md", "console") if "kbert.predict" in line)
    words = shlex.split(command.replace("big.csv", str(tiny_csv)))
    subprocess.run([sys.executable, *words[1:]], check=True)
    assert (tmp_path / "out.parquet").exists()
    words = shlex.split(server.replace("$PWD", str(tmp_path)))
    words = [re.sub(r"port=\d+", f"port={free_port()}", word) for word in words]
    served = subprocess.Popen([sys.executable, *words[1:]], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert b"serving news version 1" in served.stdout.readline()
    finally:
        served.terminate()
        assert served.wait() == 0


def test_python_example(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("README.md", "python")[1].replace("path/to/checkpoint", str(tiny_checkpoint))
    names: dict = {}
    exec(code, names)  # noqa: S102
    assert (
        names["tokenizer"].vocabulary_size
        == names["encoder"].get_layer("token_embedding").input_dim
    )
    assert (tmp_path / "copy" / "tf_model.h5").exists()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("name", READMES)
def test_no_placeholder_is_left(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "DEMO_OUTPUT" not in text
    assert "QUALITY_OUTPUT" not in text
