"""The commands and programs of serve/CLIENTS.md, run against a server."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from news_server import save_models, served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "serve" / "CLIENTS.md").read_text(encoding="utf-8")
LINES = ["business 0.75", "sports 0.9"]  # of the two texts of the page


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    root = tmp_path_factory.mktemp("models")
    save_models(root)
    with served(root) as found:
        yield found


def run(command: list[str], folder: Path) -> list[str]:
    """The lines that a program prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def here(block: str, addresses: tuple[str, str]) -> str:
    """A block with the addresses of the server of the test."""
    return block.replace("127.0.0.1:8501", addresses[0]).replace("127.0.0.1:8500", addresses[1])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(addresses: tuple[str, str], tmp_path: Path):
    [block] = blocks("sh")
    commands = [line for line in here(block, addresses).splitlines() if line.startswith("curl ")]
    assert len(commands) == 9
    answers = {}
    for command in commands:
        [curl, *arguments] = shlex.split(command)
        text = "\n".join(run([curl, "-s", "--noproxy", "*", *arguments], tmp_path))
        answers[command] = json.loads(text)
    labels = [
        [row["label"] for row in answer["predictions"]]
        for answer in answers.values()
        if "label" in str(answer.get("predictions"))
    ]
    assert labels[:3] == [["business"], ["business", "sports"], ["different"]]
    for command, answer in answers.items():
        assert "error" not in answer, (command, answer)


def test_python(addresses: tuple[str, str], tmp_path: Path):
    with_client, plain = blocks("python")
    (tmp_path / "with_client.py").write_text(here(with_client, addresses))
    lines = run([sys.executable, "-W", "error::FutureWarning", "with_client.py"], tmp_path)
    assert lines[:3] == [*LINES, "10000"]
    assert lines[3].startswith("INVALID_ARGUMENT JSON Value: 1")
    (tmp_path / "plain.py").write_text(here(plain, addresses))
    assert run([sys.executable, "-I", "plain.py"], tmp_path) == LINES


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript(addresses: tuple[str, str], tmp_path: Path):
    [block] = blocks("js")
    (tmp_path / "predict.mjs").write_text(here(block, addresses))
    *lines, pair, error = run([str(shutil.which("node")), "predict.mjs"], tmp_path)
    assert lines == LINES
    assert pair == "different"
    assert re.match("400: .*is not of expected type: string", error)


@pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")
def test_go(addresses: tuple[str, str], tmp_path: Path):
    [block] = blocks("go")
    (tmp_path / "main.go").write_text(here(block, addresses))
    lines = run([str(shutil.which("go")), "run", "main.go"], tmp_path)
    assert [line.split()[0] for line in lines] == ["business", "sports"]


def test_proto_files_that_the_page_names():
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

    files = {prediction_service_pb2.DESCRIPTOR.name, model_service_pb2.DESCRIPTOR.name}
    for name in files:
        assert f"`{name}`" in PAGE
    for file in prediction_service_pb2.DESCRIPTOR.dependencies:
        assert f"`{Path(file.name).stem}`" in PAGE
    for method in prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].methods:
        assert f"`{method.name}`" in PAGE
