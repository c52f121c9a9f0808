"""The space of a search: what is accepted, what is refused, and every combination."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbert.config import Config, as_dict, parse
from kbert.errors import InputError
from kbert.search_space import OPTIONS, as_value, combinations, read_space, values_of, with_values


def config_of(space: dict[str, Any], *words: str, scratch: bool = False) -> Config:
    source = ["--model.vocab", "vocab.txt"] if scratch else ["--model.checkpoint", "bert"]
    given = ["--data.train", "train.csv", "--output", "run", *source, *words]
    return parse([*given, "--search.space", json.dumps(space)])


def test_the_papers_grid_by_default() -> None:
    config = config_of({})
    grid = list(combinations(read_space(config)))
    assert len(grid) == 18
    assert grid[0] == {"batch_size": 16, "learning_rate": 5e-5, "epochs": 2}
    assert grid[1] == {"batch_size": 16, "learning_rate": 5e-5, "epochs": 3}
    assert grid[-1] == {"batch_size": 32, "learning_rate": 2e-5, "epochs": 4}


def test_the_small_models_grid() -> None:
    space = read_space(config_of({}, "--search.preset", "small_bert"))
    assert {d.name: d.values for d in space} == {
        "batch_size": (8, 16, 32, 64, 128),
        "learning_rate": (3e-4, 1e-4, 5e-5, 3e-5),
    }


def test_entries_come_before_the_preset() -> None:
    space = read_space(config_of({"epochs": [1], "warmup": [0.0]}, "--search.preset", "bert"))
    assert {d.name: d.values for d in space}["epochs"] == (1,)
    assert len(list(combinations(space))) == 6


def test_a_preset_leaves_the_epochs_to_who_says_them() -> None:
    for words in (["--search.epochs", "1"], ["--search.tuner", "hyperband"]):
        assert "epochs" not in {d.name for d in read_space(config_of({}, *words))}


@pytest.mark.parametrize(
    ("entry", "choices"),
    [
        ([0.1, 0.2], (0.1, 0.2)),
        ({"values": [1, 0]}, (1.0, 0.0)),
        ({"min": 0, "max": 0.3, "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"min": 0.001, "max": 0.1, "step": 10, "log": True}, (0.001, 0.01, 0.1)),
        ({"min": 0, "max": 0.5}, None),
    ],
)
def test_choices(entry: Any, choices: tuple | None) -> None:
    (dimension,) = read_space(config_of({"warmup": entry}))
    assert dimension.choices == choices
    assert all(isinstance(value, float) for value in choices or ())


def test_whole_numbers_stay_whole() -> None:
    space = {
        "batch_size": {"min": 8, "max": 64, "step": 2, "log": True},
        "epochs": {"min": 2, "max": 4},
    }
    sizes, epochs = read_space(config_of(space))
    assert sizes.choices == (8, 16, 32, 64)
    assert epochs.choices == (2, 3, 4)
    assert all(type(value) is int for value in (*sizes.choices, *epochs.choices))


def test_conditions_leave_out_what_does_not_count() -> None:
    space = {
        "layer_decay": {"values": [0.9, 0.95], "when": {"frozen_layers": 0}},
        "frozen_layers": [0, 2],
    }
    grid = list(combinations(read_space(config_of(space))))
    assert grid == [
        {"frozen_layers": 0, "layer_decay": 0.9},
        {"frozen_layers": 0, "layer_decay": 0.95},
        {"frozen_layers": 2},
    ]


def test_sizes_that_fit_together() -> None:
    space = {
        "hidden_dim": [8, 12],
        "num_heads": {"values": [2, 4]},
        "num_layers": {"min": 1, "max": 3},
        "intermediate_dim": [16],
    }
    assert len(list(combinations(read_space(config_of(space, scratch=True))))) == 12


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lerning_rate": [0.1]}, "search.space.lerning_rate: task classification has no such"),
        ({"lerning_rate": [0.1]}, "did you mean learning_rate?"),
        ({"learning_rate": []}, "learning_rate: values must be a list of at least one"),
        ({"learning_rate": 0.1}, "learning_rate: values must be a list of at least one"),
        ({"learning_rate": ["fast"]}, "learning_rate: 'fast' is not a number"),
        ({"batch_size": [16.5]}, "batch_size: 16.5 is not a whole number"),
        ({"batch_size": [True]}, "batch_size: True is not a whole number"),
        ({"batch_size": [16, 16]}, "batch_size: a value stands twice"),
        ({"batch_size": [0]}, "batch_size: train.batch_size must be at least 1, received 0"),
        ({"warmup": {"min": 0, "max": 2}}, "warmup: train.warmup must be in [0, 1], received 2.0"),
        ({"warmup": {"min": 0.5, "max": 0.1}}, "warmup: min must be under max"),
        ({"warmup": {"min": 0.5}}, "warmup: give a list of values, or min and max (max is missing"),
        ({"warmup": {"min": 0, "max": 1, "log": True}}, "warmup: a log scale starts above 0"),
        ({"warmup": {"min": 0, "max": 1, "log": 2}}, "warmup: log must be true or false"),
        ({"warmup": {"min": 0, "max": 1, "step": 0}}, "warmup: step must be over 0"),
        (
            {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True, "step": 0.5}},
            "learning_rate: step must be over 1",
        ),
        ({"warmup": {"min": 0, "max": 1, "step": 1e-9}}, "warmup: a range of over 10,000 steps"),
        ({"batch_size": [10**400]}, "batch_size: must be under 1e+15, received 1000000"),
        ({"weight_decay": {"min": 0, "max": 1e16}}, "weight_decay: must be under 1e+15"),
        ({"batch_size": {"min": 1, "max": 10**9}, "lr": [1]}, "search.space.lr: task"),
        ({"warmup": None}, "warmup: values must be a list of at least one, received None"),
        ({"warmup": {"values": [0.1], "when": [1]}}, "warmup: when must be {NAME: [VALUES]}"),
        ({"warmup": {"min": 0, "max": 1, "stop": 1}}, "warmup: there is no 'stop'; there are"),
        ({"warmup": {"values": [0.1], "min": 0}}, "warmup: values and a range exclude each other"),
        ({"checkpoint": {"min": "a", "max": "b"}}, "checkpoint: give a list of values"),
        ({"hidden_dim": [8]}, "hidden_dim: only a model from scratch"),
        ({"warmup": {"values": [0.1], "when": {"epochs": 3}}}, "when: epochs is not in the space"),
        (
            {"warmup": {"values": [0.1], "when": {"epochs": 3}}, "epochs": [1, 2]},
            "warmup: when: 3 is not among the values of epochs",
        ),
        (
            {
                "warmup": {"values": [0.1], "when": {"epochs": 1}},
                "epochs": {"values": [1], "when": {"warmup": 0.1}},
            },
            "conditions in a circle: epochs, warmup",
        ),
    ],
)
def test_bad_spaces_are_one_line(space: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_space(config_of(space))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "space", "message"),
    [
        (["--task", "masked_lm"], {"label_smoothing": [0.1]}, "task masked_lm has no such"),
        (["--search.epochs", "1"], {"epochs": [1]}, "search.epochs and search.space.epochs"),
        (["--search.tuner", "hyperband"], {"epochs": [1]}, "hyperband chooses the epochs"),
        (["--train.best_metric", "loss"], {"label_smoothing": [0.1]}, "loss contains it"),
        (["--search.tuner", "grid"], {"warmup": {"min": 0, "max": 1}}, "needs values or a step"),
        (
            ["--search.tuner", "grid"],
            {"batch_size": {"min": 1, "max": 10000}, "max_length": {"min": 10, "max": 30}},
            "a grid of over 100,000 combinations",
        ),
    ],
)
def test_what_the_other_options_exclude(words: list[str], space: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_space(config_of(space, *words))


def test_sizes_that_do_not_fit_together() -> None:
    space = {"hidden_dim": {"min": 8, "max": 16, "step": 4}, "num_heads": [1, 8]}
    with pytest.raises(InputError, match="hidden_dim 12, num_heads 8: model.hidden_dim must be"):
        read_space(config_of(space, scratch=True))
    with pytest.raises(InputError, match="give a list of values or a step"):
        read_space(config_of({"hidden_dim": {"min": 8, "max": 64, "log": True}}, scratch=True))
    with pytest.raises(InputError, match="a model from scratch has none"):
        read_space(config_of({"checkpoint": ["bert"]}, scratch=True))


def test_a_grid_needs_steps() -> None:
    space = read_space(config_of({"warmup": {"min": 0, "max": 0.5}}))
    with pytest.raises(InputError, match="search.space.warmup: a grid needs values or a step"):
        next(combinations(space))


def test_values_go_to_their_options_and_back() -> None:
    config = config_of({}, scratch=True)
    values = {"batch_size": 7, "learning_rate": 0.01, "epochs": 9, "warmup": 0.2,
              "weight_decay": 0.3, "dropout": 0.4, "max_length": 50, "label_smoothing": 0.1,
              "frozen_layers": 1, "layer_decay": 0.9, "hidden_dim": 12, "num_layers": 3,
              "num_heads": 4, "intermediate_dim": 5}  # fmt: skip
    changed = with_values(config, {**values, "tuner/epochs": 3})
    options = as_dict(changed)
    for name, value in values.items():
        group, _, option = OPTIONS[name][0].partition(".")
        assert options[group][option] == value
    space = read_space(config_of({name: [value] for name, value in values.items()}, scratch=True))
    assert values_of(changed, space) == values
    assert "dropout" not in values_of(config, space)  # the checkpoint's, whatever it is
    assert as_dict(with_values(config, {})) == as_dict(config)


@given(st.floats(1e-8, 1.0))
def test_values_survive_32_bits(value: float) -> None:
    """As keras-tuner's protocol has them."""
    import numpy as np

    kept = as_value("learning_rate", value)
    assert as_value("learning_rate", float(np.float32(kept))) == kept
    assert kept == pytest.approx(value, rel=1e-5)
