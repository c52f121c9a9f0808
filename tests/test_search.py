"""Searches through train.py: trials are trainings, nothing is lost, the table tells the truth."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import train

ROOT = Path(__file__).resolve().parents[1]
SPACE = {"learning_rate": [1e-3, 3e-3], "batch_size": [8, 16], "dropout": [0.0, 0.1]}


def search_words(options: list[str], output: Path, **more: Any) -> list[str]:
    """A command line for a small search; later words win."""
    given = {
        "--train.epochs": 1,
        "--search.space": json.dumps(SPACE),
        "--search.seeds": 1,
        "--export.enabled": "false",
        "--output": output,
        **{f"--{name.replace('__', '.')}": value for name, value in more.items()},
    }
    return [*options, *(str(word) for pair in given.items() for word in pair)]


def read_metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))


def read_trials(output: Path) -> list[dict[str, str]]:
    with (output / "search" / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def untimed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def module_options(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    given = {
        "--data.train": tiny_csv, "--data.max_length": 12, "--data.cache_dir": cache,
        "--model.checkpoint": tiny_checkpoint, "--train.batch_size": 8,
        "--train.learning_rate": 2e-3,
    }  # fmt: skip
    return [str(word) for pair in given.items() for word in pair]


@pytest.fixture(scope="module")
def quick_options(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> list[str]:
    """A model of one block, for tests that start many processes."""
    given = {
        "--data.train": tiny_csv, "--data.max_length": 12,
        "--data.cache_dir": tmp_path_factory.mktemp("cache"),
        "--model.vocab": tiny_checkpoint / "vocab.txt", "--model.hidden_dim": 8,
        "--model.num_layers": 1, "--model.intermediate_dim": 16,
        "--train.batch_size": 8, "--train.learning_rate": 2e-3,
    }  # fmt: skip
    return [str(word) for pair in given.items() for word in pair]


@pytest.fixture(scope="module")
def random_search(module_options: list[str], tmp_path_factory) -> Path:
    """Three random trials of two epochs, the better epoch of each; two seeds."""
    output = tmp_path_factory.mktemp("random") / "moods"
    words = search_words(module_options, output, search__tuner="random", search__trials=3,
                         search__seeds=2, train__epochs=2, train__best_metric="loss",
                         export__enabled="true")  # fmt: skip
    assert train.main(words) == 0
    return output


def test_what_lies_in_the_folder(random_search: Path) -> None:
    search = random_search / "search"
    names = {path.name for path in search.iterdir()}
    assert names == {"oracle.json", "search.png", "trials", "trials.csv"}
    trials = sorted(path.name for path in (search / "trials").iterdir())
    assert trials == ["0", "1", "2", "3"]
    weights = list(search.rglob("*.safetensors"))
    best = read_metrics(random_search)["search"]["trials"][0]["trial"]
    assert weights == [search / "trials" / best / "model.safetensors"]
    assert not list((random_search / "retrained").rglob("*.safetensors"))
    assert (random_search / "checkpoints" / "model.safetensors").exists()


def test_a_trial_is_train_py_to_the_last_digit(
    random_search: Path, module_options: list[str], tmp_path: Path
) -> None:
    for row in read_trials(random_search)[1:3]:
        words = [*module_options, "--train.epochs", "2", "--train.best_metric", "loss",
                 "--export.enabled", "false", "--output", str(tmp_path / row["trial"]),
                 "--train.learning_rate", row["hp.learning_rate"],
                 "--train.batch_size", row["hp.batch_size"],
                 "--model.dropout", row["hp.dropout"]]  # fmt: skip
        assert train.main(words) == 0
        trained = read_metrics(tmp_path / row["trial"])["train"]
        figures = trained["history"][trained["best_epoch"] - 1]
        shown = {name: float(row[name]) for name in figures if name.startswith("val_")}
        assert shown == {name: figures[name] for name in shown}
        assert float(row["score"]) == figures["val_loss"]


def test_the_table_tells_the_truth(random_search: Path) -> None:
    metrics = read_metrics(random_search)
    found = metrics["search"]
    assert found["objective"] == "val_loss"
    scores = [trial["score"] for trial in found["trials"]]
    assert len(scores) == 4
    assert scores == sorted(scores)
    assert found["winner"]["score"] == scores[0]
    assert found["default"]["trial"] == "0"
    assert found["default"]["hyperparameters"]["learning_rate"] == 2e-3
    assert found["winner"]["seeds"] == [1, 2]  # not 0, which the winner was chosen by
    for kind in ("winner", "default"):
        folders = [random_search / "retrained" / kind / f"seed-{seed}" for seed in (1, 2)]
        if kind == "default" and found["winner"]["trial"] == "0":
            continue
        figures = [json.loads((f / "result.json").read_text())["figures"] for f in folders]
        for split in ("validation", "test"):
            losses = [figure[split]["loss"] for figure in figures]
            spread = found[kind]["retrained"][split]["loss"]
            assert spread["mean"] == pytest.approx(statistics.fmean(losses))
            assert spread["deviation"] == pytest.approx(statistics.stdev(losses))
    kept = random_search / "retrained" / "winner" / f"seed-{found['exported_seed']}"
    exported = json.loads((kept / "result.json").read_text())["figures"]
    for split in ("validation", "test"):
        for name, value in exported[split].items():
            assert metrics[split][name] == pytest.approx(value)
    assert metrics["train"]["seed"] == found["exported_seed"]


def test_the_export_tells_where_it_comes_from(random_search: Path) -> None:
    found = read_metrics(random_search)["search"]
    folder = random_search / "export" / "moods" / "1" / "assets.extra"
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["run"] == "moods-1"
    assert (random_search / "tensorboard" / "moods-1").is_dir()
    assert lineage["trial"]["id"] == found["winner"]["trial"]
    assert lineage["trial"]["exported_seed"] == found["exported_seed"] == lineage["seed"]


def test_tensorboard_has_every_trial(random_search: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    events = EventMultiplexer().AddRunsFromDirectory(str(random_search / "tensorboard"))
    events.Reload()
    runs = events.Runs()
    for trial in range(4):
        assert f"moods-1/trials/{trial}/validation" in runs
        assert "_hparams_/session_end_info" in str(runs[f"moods-1/trials/{trial}"])
    assert "moods-1/winner/seed-1/train" in runs
    assert "search" in runs["moods-1"]["images"] or "search" in str(runs["moods-1"])


def test_a_finished_search_is_not_repeated(random_search: Path, module_options, capsys) -> None:
    words = search_words(module_options, random_search, search__tuner="random", search__trials=3,
                         search__seeds=2, train__epochs=2, train__best_metric="loss",
                         export__enabled="true")  # fmt: skip
    assert train.main(words) == 0
    assert "is finished" in capsys.readouterr().out
    changed = json.dumps({**SPACE, "dropout": [0.0]})
    assert train.main([*words, "--search.space", changed]) == 2
    error = capsys.readouterr().err
    assert "holds a run with other options (search.space.dropout" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("tuner", ["grid", "bayesian", "hyperband"])
def test_every_tuner(tuner: str, quick_options: list[str], tmp_path: Path, capsys) -> None:
    space = {"batch_size": [8, 16], "dropout": [0.0, 0.1]}
    more = {"train__epochs": 2, "search__factor": 2} if tuner == "hyperband" else {}
    words = search_words(quick_options, tmp_path / "run", search__tuner=tuner, search__trials=4,
                         search__space=json.dumps(space), model__dropout=0.0,
                         monitor__tensorboard="false", **more)  # fmt: skip
    assert train.main(words) == 0
    rows = read_trials(tmp_path / "run")
    assert {row["status"] for row in rows} == {"completed"}
    if tuner == "grid":  # the default is one of the four combinations
        assert len(rows) == 4
        assert "grid: 3 combinations besides the default, about" in capsys.readouterr().out
    if tuner == "hyperband":
        assert {row["epochs"] for row in rows} == {"1", "2"}
        longest = [row for row in rows if row["epochs"] == "2" and row["trial"] != "0000"]
        assert longest


def test_masked_words_from_scratch(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """The other task; sizes of a new model."""
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"the {animal} sat ." for animal in ["cat", "dog"] * 20))
    space = {"hidden_dim": [8, 12], "num_heads": [2], "num_layers": {"min": 1, "max": 2}}
    words = ["--task", "masked_lm", "--data.train", lines, "--data.max_length", 12,
             "--data.cache_dir", tmp_path / "cache", "--model.vocab", tiny_checkpoint / "vocab.txt",
             "--model.hidden_dim", 8, "--model.intermediate_dim", 16,
             "--search.tuner", "random", "--search.trials", 2]  # fmt: skip
    words = search_words([str(word) for word in words], tmp_path / "run",
                         search__space=json.dumps(space))  # fmt: skip
    assert train.main(words) == 0
    found = read_metrics(tmp_path / "run")["search"]
    assert found["objective"] == "val_loss"
    assert len(found["trials"]) == 3


def test_a_failed_trial_is_recorded_and_the_search_goes_on(
    module_options: list[str], tmp_path: Path, capsys
) -> None:
    """Weights decay to infinity in two of the four trials."""
    space = {"weight_decay": [1e14, 0.0], "batch_size": [8, 16]}
    words = search_words(module_options, tmp_path / "run", search__tuner="grid",
                         search__space=json.dumps(space))  # fmt: skip
    assert train.main(words) == 0
    rows = read_trials(tmp_path / "run")
    failed = [row for row in rows if row["status"] == "failed"]
    assert {float(row["hp.weight_decay"]) for row in failed} == {1e14}
    assert len(failed) == 2
    assert all("diverged" in row["reason"] for row in failed)
    output = capsys.readouterr()
    assert "failed: training diverged" in output.out
    assert "Traceback" not in output.out + output.err
    assert len(rows) == 5


def test_a_default_that_fails_is_told_of(module_options: list[str], tmp_path: Path, capsys) -> None:
    words = search_words(module_options, tmp_path / "run", search__tuner="grid",
                         search__space='{"weight_decay": [0.0]}',
                         train__weight_decay=1e30)  # fmt: skip
    assert train.main(words) == 0
    output = capsys.readouterr().out
    assert "their time is unknown: training diverged" in output
    found = read_metrics(tmp_path / "run")["search"]
    assert found["default"]["status"] == "failed"
    assert found["default"]["retrained"] == {}
    assert found["winner"]["trial"] == "1"


def test_a_search_without_success_says_why(
    module_options: list[str], tmp_path: Path, capsys
) -> None:
    words = search_words(module_options, tmp_path / "run", search__tuner="random",
                         search__trials=1, search__space=json.dumps({"batch_size": [4]}),
                         train__weight_decay=1e30)  # fmt: skip
    assert train.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train.py: error: no trial of the search succeeded")
    assert "diverged" in error
    assert len(read_trials(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"search__space": '{"lr": [0.1]}'}, "search.space.lr: task classification has no such"),
        ({"search__space": '{"checkpoint": ["/no/such"]}'}, "/no/such: there is no such folder"),
        ({"search__space": '{"max_length": [34]}'}, "data.max_length 34 is over the 33 positions"),
        ({"search__space": '{"frozen_layers": [3]}'}, "train.frozen_layers 3 is over the 2 blocks"),
        ({"search__space": '{"warmup": {"min": 0, "max": 1}}'}, "a grid needs values or a step"),
        ({"data__validation_fraction": 0}, "search.tuner needs a validation split"),
        ({"train__best_metric": "bleu"}, "train.best_metric: there is no metric 'bleu'"),
    ],
)
def test_bad_spaces_leave_nothing(
    module_options: list[str], tmp_path: Path, more: dict, message: str, capsys
) -> None:
    words = search_words(module_options, tmp_path / "run", search__tuner="grid", **more)
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def start(words: list[str], **environment: str) -> subprocess.Popen:
    """train.py in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_ended_at_four_random_moments_it_ends_with_the_same_table(
    quick_options: list[str], tmp_path: Path
) -> None:
    """Hyperband, whose brackets go on; kill -9 and SIGTERM, perhaps while it trains again."""

    def words(name: str) -> list[str]:
        return search_words(quick_options, tmp_path / name, search__tuner="hyperband",
                            train__epochs=3, train__checkpoint_steps=3,
                            export__name="moods")  # fmt: skip

    whole = start(words("whole"))
    parts_output = tmp_path / "parts"
    moments = random.Random(7)
    for end in range(4):
        process = start(words("parts"))
        state = parts_output / "search" / "oracle.json"
        before = state.stat().st_mtime_ns if state.exists() else None
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 4))
        assert process.poll() is None, f"it ended by itself before {end}: {process.stdout.read()}"
        if end % 2:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 143, output
            assert f"stopped; the same command goes on from {parts_output}." in output
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    last = start(words("parts"))
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert " kept" in output
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    assert untimed(read_trials(parts_output)) == untimed(read_trials(tmp_path / "whole"))
    ours, theirs = read_metrics(parts_output), read_metrics(tmp_path / "whole")
    assert ours["search"] == theirs["search"]
    assert ours["test"] == theirs["test"]


def test_two_workers_one_of_which_is_killed(quick_options: list[str], tmp_path: Path) -> None:
    """The same trials with the same figures as one process has; each once."""
    space = {"batch_size": [4, 8], "dropout": [0.0, 0.2]}

    def words(name: str, **more: Any) -> list[str]:
        return search_words(quick_options, tmp_path / name, search__tuner="grid",
                            search__space=json.dumps(space), **more)  # fmt: skip

    spread = start(words("spread", search__workers=2))
    victim = None
    while victim is None and spread.poll() is None:
        time.sleep(0.1)
        owners = list((tmp_path / "spread" / "search" / "trials").glob("*/owner"))
        workers = [
            child for child in psutil.Process(spread.pid).children(recursive=True)
            if "kbert.worker" in " ".join(child.cmdline())
        ]  # fmt: skip
        victim = workers[0] if len(owners) >= 3 and workers else None
    victim.send_signal(signal.SIGKILL)
    while not (tmp_path / "spread" / "retrained").exists() and spread.poll() is None:
        time.sleep(0.1)
    spread.kill()  # the chief too, while it trains the winner again
    output, _ = spread.communicate()
    assert output.count("it is started again") == 1  # the others end with 0
    assert "ended with status -9: it is started again" in output
    assert "trial 4: batch_size" in output
    again = start(words("spread", search__workers=2))
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "5 trials are kept" in output
    assert "Fatal Python error" not in output
    assert train.main(words("alone")) == 0
    by_name = {row["trial"]: row for row in untimed(read_trials(tmp_path / "spread"))}
    assert list(by_name.values()) == untimed(read_trials(tmp_path / "alone"))
    assert len(by_name) == 5
    metrics = read_metrics(tmp_path / "spread")
    assert metrics["search"] == read_metrics(tmp_path / "alone")["search"]
    commands = [
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    ]
    assert not [command for command in commands if str(tmp_path) in command]


def test_a_worker_that_is_lost_for_good(quick_options: list[str], tmp_path: Path) -> None:
    """As across machines, by keras-tuner's variables: nobody starts it again."""
    words = search_words(quick_options, tmp_path / "run", search__tuner="random",
                         search__trials=3)  # fmt: skip
    port = free_port()
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    chief, *workers = [
        start(words, KERASTUNER_TUNER_ID=name, **address)
        for name in ("worker0", "worker1", "chief")
    ][::-1]
    owners = tmp_path / "run" / "search" / "trials"
    while len(list(owners.glob("*/owner"))) < 2 and chief.poll() is None:
        time.sleep(0.1)
    workers[1].kill()
    output, _ = chief.communicate(timeout=300)
    assert chief.returncode == 0, output
    assert "worker0 is silent: its trial" in output
    lines, _ = workers[0].communicate(timeout=60)
    assert workers[0].returncode == 0, lines
    assert "no trial is left" in lines
    rows = read_trials(tmp_path / "run")
    assert [row["trial"] for row in rows] == list("0123")
    assert {row["status"] for row in rows} == {"completed"}
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["search"]["trials"] == 3


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"KERASTUNER_ORACLE_PORT": "1"}, "KERASTUNER_TUNER_ID is missing"),
        ({"KERASTUNER_TUNER_ID": "worker0"}, "KERASTUNER_ORACLE_PORT is missing"),
        (
            {"KERASTUNER_TUNER_ID": "chief", "KERASTUNER_ORACLE_PORT": "1"},
            "search.workers starts workers on this machine",
        ),
    ],
)
def test_variables_that_do_not_fit(
    module_options: list[str], tmp_path: Path, monkeypatch, variables: dict, message: str, capsys
) -> None:
    for name, value in {"KERASTUNER_ORACLE_IP": "127.0.0.1", **variables}.items():
        monkeypatch.setenv(name, value)
    assert train.main(search_words(module_options, tmp_path / "run", search__workers=2)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
