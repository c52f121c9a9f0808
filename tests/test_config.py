"""Options: the command line, YAML, errors of one line, help without TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kbert.config import as_dict, as_yaml, at_toy_size, differences, parse
from kbert.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ["--data.train", "a.csv", "--model.checkpoint", "folder", "--output", "runs/a"]


def test_defaults_and_given_values() -> None:
    config = parse([*NEEDED, "--train.epochs", "4", "--data.text_column", "[subject, body]"])
    assert config.task.name == "classification"
    assert config.train.epochs == 4
    assert config.train.learning_rate == 5e-5
    assert config.data.text_columns == ["subject", "body"]
    assert (config.export_name, config.run_name) == ("a", "a-1")


def test_the_run_is_called_as_its_export() -> None:
    config = parse([*NEEDED, "--export.name", "sentiment", "--export.version", "12"])
    assert config.run_name == "sentiment-12"


def test_yaml_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: {name: masked_lm, mask_rate: 0.2}\ntrain: {epochs: 7, seed: 3}\n")
    config = parse(["--config", str(path), *NEEDED, "--train.epochs", "2"])
    assert (config.task.name, config.task.mask_rate) == ("masked_lm", 0.2)
    assert (config.train.epochs, config.train.seed) == (2, 3)


def test_resolved_yaml_reads_back(tmp_path: Path) -> None:
    config = parse([*NEEDED, "--task", "masked_lm", "--task.top_k", "3", "--smoke"])
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(config), encoding="utf-8")
    assert parse(["--config", str(path)]) == config


def test_short_forms() -> None:
    assert parse([*NEEDED, "--task=masked_lm"]).task.name == "masked_lm"
    assert parse([*NEEDED, "--smoke", "--debug"]).smoke


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.epohs", "3"], "train.epohs"),
        (["--train.epoch", "3"], "train.epoch"),
        (["--train.epochs", "0"], "train.epochs must be at least 1, received 0."),
        (["--train.epochs", "many"], "train.epochs"),
        (["--train.learning_rate", "2"], "train.learning_rate must be in (0, 1), received 2.0."),
        (["--train.warmup", "-0.1"], "train.warmup must be in [0, 1], received -0.1."),
        (["--task", "poetry"], "there is no task 'poetry'; there are classification, multi_label"),
        (["--model.vocab", "vocab.txt"], "exclude each other"),
        (["--search.seeds", "0"], "search.seeds must be at least 1, received 0"),
        (["--search.factor", "1"], "search.factor must be at least 2, received 1"),
        (["--search.fraction", "0"], "search.fraction must be in (0, 1], received 0.0"),
        (["--search.preset", "large"], "search.preset"),
        (["--train.layer_decay", "0"], "train.layer_decay must be in (0, 1], received 0.0"),
        (["--train.frozen_layers", "-1"], "train.frozen_layers must be at least 0, received -1"),
        (["--export.name", "a/b"], "export.name must be a plain name"),
        (["--data.text_column", "[a, a]"], "data.text_column must be different columns"),
        (
            ["--config", "missing.yaml"],
            "missing.yaml: No such file or directory; correct it, or name another --config.",
        ),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse([*NEEDED, *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["--data.train", "--model.checkpoint", "--output"])
def test_missing_options_are_named(missing: str) -> None:
    words = [
        word
        for pair in zip(NEEDED[::2], NEEDED[1::2], strict=True)
        if pair[0] != missing
        for word in pair
    ]
    with pytest.raises(InputError, match=f"{missing} is missing"):
        parse(words)


def test_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: [1,\n")
    with pytest.raises(InputError, match="not a YAML file"):
        parse(["--config", str(path), *NEEDED])


@pytest.mark.parametrize(
    "option", ["task.label_smoothing", "data.text_column", "train.epochs", "search.seeds"]
)
def test_an_option_without_a_value(option: str, tmp_path: Path) -> None:
    *group, name = option.split(".")
    path = tmp_path / "options.yaml"
    path.write_text("".join(f"{of}:\n  " for of in group) + f"{name}:\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"^{option}: has no value"):
        parse(["--config", str(path), "--data.train", "a.csv", "--output", "out"])


def test_differences_name_the_options() -> None:
    old = as_dict(parse(NEEDED))
    new = as_dict(parse([*NEEDED, "--train.epochs", "9", "--data.test", "b.csv"]))
    assert differences(old, new) == ['data.test: null -> "b.csv"', "train.epochs: 3 -> 9"]


def test_toy_size() -> None:
    config = at_toy_size(parse([*NEEDED, "--data.max_length", "16"]))
    assert (config.train.epochs, config.train.batch_size, config.data.max_length) == (1, 8, 16)


def test_help_and_print_config_without_tensorflow() -> None:
    check = (
        "import sys, atexit, train\n"
        "slow = ('tensorflow', 'keras', 'keras_nlp', 'keras_tuner', 'transformers', 'sklearn')\n"
        "found = lambda: print([name for name in slow if name in sys.modules], file=sys.stderr)\n"
        "atexit.register(found)\n"
        "train.main(sys.argv[1:])"
    )
    for words in (["--help"], [*NEEDED, "--print_config"]):
        process = subprocess.run(
            [sys.executable, "-c", check, *words], cwd=ROOT, capture_output=True, text=True
        )
        assert process.returncode == 0
        assert "learning_rate" in process.stdout
        assert process.stderr.strip() == "[]"
