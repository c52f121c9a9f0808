"""The space of a search: what YAML says of it, checked before anything starts."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from kbert.config import Config
from kbert.errors import InputError
from kbert.trials import Value

# hyper-parameter -> the option that it stands for, and its type
OPTIONS: dict[str, tuple[str, type]] = {
    "batch_size": ("train.batch_size", int),
    "learning_rate": ("train.learning_rate", float),
    "epochs": ("train.epochs", int),
    "warmup": ("train.warmup", float),
    "weight_decay": ("train.weight_decay", float),
    "dropout": ("model.dropout", float),
    "max_length": ("data.max_length", int),
    "label_smoothing": ("task.label_smoothing", float),
    "frozen_layers": ("train.frozen_layers", int),
    "layer_decay": ("train.layer_decay", float),
    "checkpoint": ("model.checkpoint", str),
    "alpha": ("distill.alpha", float),
    "temperature": ("distill.temperature", float),
    "hidden_dim": ("model.hidden_dim", int),
    "num_layers": ("model.num_layers", int),
    "num_heads": ("model.num_heads", int),
    "intermediate_dim": ("model.intermediate_dim", int),
}
FROM_SCRATCH = ("hidden_dim", "num_layers", "num_heads", "intermediate_dim")
PRESETS: dict[str, dict[str, list[Value]]] = {
    # BERT (Devlin et al. 2019), appendix A.3
    "bert": {
        "batch_size": [16, 32],
        "learning_rate": [5e-5, 3e-5, 2e-5],
        "epochs": [2, 3, 4],
    },
    # README of google-research/bert, "Smaller BERT Models" (which trains for 4 epochs)
    "small_bert": {
        "batch_size": [8, 16, 32, 64, 128],
        "learning_rate": [3e-4, 1e-4, 5e-5, 3e-5],
    },
}
KEYS = ("values", "min", "max", "step", "log", "when")
WORDS = {int: "a whole number", float: "a number", str: "a text"}
MOST_COMBINATIONS = 100_000  # that are looked at one by one
MOST_STEPS = 10_000  # of a range
LARGEST = 1e15
DIVIDED = ("hidden_dim", "num_heads")  # the one by the other


@dataclass(frozen=True)
class Dimension:
    """One hyper-parameter with what may be tried: `values`, or a range."""

    name: str
    values: tuple[Value, ...] = ()
    minimum: float = 0.0
    maximum: float = 0.0
    step: float | None = None
    """Distance of two values of a range; with `log` their ratio. None: any value."""
    log: bool = False
    """Whether a range is sampled evenly on a logarithmic scale."""
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    """Other hyper-parameters with the values that make this one count."""

    @property
    def type(self) -> type:
        """int, float or str."""
        return OPTIONS[self.name][1]

    @property
    def choices(self) -> tuple[Value, ...] | None:
        """Every value; None for a range without a step, but for that of some whole numbers."""
        if self.values:
            return self.values
        step = self.step
        if step is None and self.type is int and not self.log and self._length <= MOST_STEPS:
            step = 1
        if step is None:
            return None
        # a hair over the whole number, so that 0.3 counts as three steps of 0.1
        span = math.log(self.maximum / self.minimum, step) if self.log else self._length / step
        steps = range(math.floor(span + 1e-8) + 1)
        values = [self.minimum * step**i if self.log else self.minimum + i * step for i in steps]
        return tuple(as_value(self.name, value) for value in values)

    def is_active(self, values: Mapping[str, Value]) -> bool:
        """Whether it counts beside the values of the others."""
        return all(values.get(name) in wanted for name, wanted in self.when)

    @property
    def _length(self) -> float:
        return self.maximum - self.minimum


def as_value(name: str, value: Any) -> Value:
    """A hyper-parameter's value in its type; floats have six significant digits.

    So they survive keras-tuner's protocol between processes, which has 32-bit floats, and are
    short enough to be typed again.
    """
    kind = OPTIONS[name][1]
    return float(f"{value:.6g}") if kind is float else kind(value)


def read_space(config: Config) -> tuple[Dimension, ...]:
    """The space of a run, parents before those that depend on them.

    Raises:
        InputError: an unknown name, an empty choice, a bound or value that its option refuses, a
            condition on something else than a value of another hyper-parameter.
    """
    entries = {**_preset(config), **config.search.space}
    space = [_read_dimension(name, entry, config) for name, entry in entries.items()]
    _check_epochs(space, config)
    space = _parents_first(space)
    _check_together(space, config)
    _check_objective(space, config)
    if config.search.tuner == "grid":
        grid = itertools.islice(combinations(tuple(space)), MOST_COMBINATIONS + 1)
        if sum(1 for _ in grid) > MOST_COMBINATIONS:
            raise InputError(f"search.space: a grid of over {MOST_COMBINATIONS:,} combinations.")
    return tuple(space)


def with_values(config: Config, values: Mapping[str, Value]) -> Config:
    """The options with some hyper-parameters; others than the space's are left alone.

    Raises:
        InputError: an option refuses its value.
    """
    groups: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        if name in OPTIONS:
            group, _, option = OPTIONS[name][0].partition(".")
            groups.setdefault(group, {})[option] = as_value(name, value)
    changed = {
        group: dataclasses.replace(getattr(config, group), **options)
        for group, options in groups.items()
    }
    return dataclasses.replace(config, **changed)


def values_of(config: Config, space: tuple[Dimension, ...]) -> dict[str, Value]:
    """What the options say of the hyper-parameters of a space that count in them.

    Those left to defaults (None) are left out.
    """
    found: dict[str, Value] = {}
    for dimension in space:
        group, _, option = OPTIONS[dimension.name][0].partition(".")
        value = getattr(getattr(config, group), option)
        if value is not None and dimension.is_active(found):
            found[dimension.name] = as_value(dimension.name, value)
    return found


def hyperparameters(config: Config) -> dict[str, Value]:
    """All hyper-parameters that the options set, whether or not a search tries them."""
    names = [name for name in OPTIONS if _has_option(config, name)]
    if config.checkpoint:
        names = [name for name in names if name not in FROM_SCRATCH]
    return values_of(config, tuple(Dimension(name) for name in names))


def shown_values(values: Mapping[str, Value], space: tuple[Dimension, ...]) -> dict[str, Value]:
    """Of a trial's values those of the space, as tables show them."""
    return {d.name: as_value(d.name, values[d.name]) for d in space if d.name in values}


def combinations(space: tuple[Dimension, ...]) -> Iterator[dict[str, Value]]:
    """Every combination of active hyper-parameters, the last one of the space changing first.

    Raises:
        InputError: a range has no step.
    """
    for dimension in space:
        if dimension.choices is None:
            raise InputError(
                f"search.space.{dimension.name}: a grid needs values or a step "
                f"({{min: {dimension.minimum:g}, max: {dimension.maximum:g}, step: ...}})."
            )
    yield from _combinations(space, {})


def _combinations(
    space: tuple[Dimension, ...], chosen: dict[str, Value]
) -> Iterator[dict[str, Value]]:
    if not space:
        yield dict(chosen)
        return
    first, rest = space[0], space[1:]
    if not first.is_active(chosen):
        yield from _combinations(rest, chosen)
        return
    for value in first.choices or ():
        yield from _combinations(rest, {**chosen, first.name: value})


def _preset(config: Config) -> dict[str, list[Value]]:
    options = config.search
    name = options.preset or ("bert" if not options.space else None)
    entries = dict(PRESETS[name]) if name else {}
    if options.epochs or options.tuner == "hyperband":  # they say themselves how many
        entries.pop("epochs", None)
    return entries


def _read_dimension(name: str, entry: Any, config: Config) -> Dimension:
    _check_name(name, config)
    if not isinstance(entry, dict):
        entry = {"values": entry}
    for key in entry:
        if key not in KEYS:
            _refuse(name, f"there is no {key!r}; there are {', '.join(KEYS)}")
    when = _read_conditions(name, entry.get("when", {}))
    if "values" in entry:
        if set(entry) - {"values", "when"}:
            _refuse(name, "values and a range exclude each other")
        dimension = Dimension(name, values=_read_values(name, entry["values"]), when=when)
    else:
        dimension = dataclasses.replace(_read_range(name, entry), when=when)
    for value in dimension.values or (dimension.minimum, dimension.maximum):
        # sizes that must divide each other are looked at together, later
        alone = {name: value} if name not in DIVIDED else {other: value for other in DIVIDED}
        try:
            with_values(config, alone)
        except InputError as error:
            _refuse(name, str(error).rstrip("."))
    if name in DIVIDED and dimension.choices is None:
        _refuse(name, "give a list of values or a step: not every number can be divided by heads")
    return dimension


def _check_name(name: str, config: Config) -> None:
    known = [known for known in OPTIONS if _has_option(config, known)]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        _refuse(
            name,
            f"task {config.task.name} has no such hyper-parameter{hint}; there are "
            f"{', '.join(known)}",
        )
    if name in FROM_SCRATCH and config.checkpoint:
        _refuse(name, "only a model from scratch (model.vocab) has it to choose")
    if name == "checkpoint" and not config.model.checkpoint:
        _refuse(name, "a model from scratch has none; give model.checkpoint")


def _has_option(config: Config, name: str) -> bool:
    group, _, option = OPTIONS[name][0].partition(".")
    if group == "distill" and config.distill.teacher is None:
        return False
    return hasattr(getattr(config, group), option)


def _read_values(name: str, values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list) or not values:
        _refuse(name, f"values must be a list of at least one, received {values!r}")
    read = tuple(_read_value(name, value) for value in values)
    if len(set(read)) < len(read):
        _refuse(name, f"a value stands twice in {values!r} (floats have six digits)")
    return read


def _read_value(name: str, value: Any) -> Value:
    kind = OPTIONS[name][1]
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool):
        _refuse(name, f"{value!r} is not {WORDS[kind]}")
    if kind is not str and not abs(value) < LARGEST:  # nor is nan
        _refuse(name, f"must be under {LARGEST:g}, received {str(value)[:20]}")
    return as_value(name, value)


def _read_range(name: str, entry: dict) -> Dimension:
    if OPTIONS[name][1] is str:
        _refuse(name, "give a list of values")
    for key in ("min", "max"):
        if key not in entry:
            _refuse(name, f"give a list of values, or min and max ({key} is missing)")
    minimum, maximum = (float(_read_value(name, entry[key])) for key in ("min", "max"))
    log, step = entry.get("log", False), entry.get("step")
    if not isinstance(log, bool):
        _refuse(name, f"log must be true or false, received {log!r}")
    if minimum >= maximum:
        _refuse(name, f"min must be under max, received {minimum:g} and {maximum:g}")
    if log and minimum <= 0:
        _refuse(name, f"a log scale starts above 0, received min {minimum:g}")
    if step is not None:
        least = 1 if log else 0
        step = float(_read_value(name, step))
        if step <= least:
            _refuse(name, f"step must be over {least}, received {step:g}")
        span = math.log(maximum / minimum, step) if log else (maximum - minimum) / step
        if span > MOST_STEPS:
            _refuse(name, f"a range of over {MOST_STEPS:,} steps: leave the step out")
    return Dimension(name, minimum=minimum, maximum=maximum, step=step, log=log)


def _read_conditions(name: str, when: Any) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    if not isinstance(when, dict):
        _refuse(name, f"when must be {{NAME: [VALUES]}}, received {when!r}")
    conditions = []
    for other, values in when.items():
        if other not in OPTIONS:
            _refuse(name, f"when: there is no hyper-parameter {other!r}")
        values = values if isinstance(values, list) else [values]
        conditions.append((other, _read_values(other, values)))
    return tuple(conditions)


def _check_epochs(space: list[Dimension], config: Config) -> None:
    if "epochs" not in {dimension.name for dimension in space}:
        return
    if config.search.epochs:
        raise InputError("search.epochs and search.space.epochs exclude each other.")
    if config.search.tuner == "hyperband":
        raise InputError(
            "search.space.epochs: hyperband chooses the epochs itself, up to search.epochs."
        )


def _parents_first(space: list[Dimension]) -> list[Dimension]:
    waiting = {dimension.name: dimension for dimension in space}
    ordered: dict[str, Dimension] = {}
    for dimension in space:
        for name, values in dimension.when:
            _check_condition(dimension, waiting.get(name), name, values)
    while waiting:
        ready = [d for d in waiting.values() if all(name in ordered for name, _ in d.when)]
        if not ready:
            _refuse(min(waiting), f"conditions in a circle: {', '.join(sorted(waiting))}")
        for dimension in ready:
            ordered[dimension.name] = waiting.pop(dimension.name)
    return list(ordered.values())


def _check_condition(
    child: Dimension, parent: Dimension | None, name: str, values: tuple[Value, ...]
) -> None:
    if parent is None:
        _refuse(child.name, f"when: {name} is not in the space")
    if not parent.values:
        _refuse(child.name, f"when: {name} is a range; conditions need a list of values")
    for value in values:
        if value not in parent.values:
            _refuse(child.name, f"when: {value!r} is not among the values of {name}")


def _check_objective(space: list[Dimension], config: Config) -> None:
    chosen = (config.train.best_metric or "").removeprefix("val_")
    if chosen == "loss" and "label_smoothing" in {dimension.name for dimension in space}:
        _refuse(
            "label_smoothing",
            "train.best_metric loss contains it, so that trials cannot be compared; name another",
        )


def _check_together(space: list[Dimension], config: Config) -> None:
    """Options that only fit together: hidden_dim and num_heads."""
    parents = {name for dimension in space for name, _ in dimension.when}
    related = tuple(
        d for d in space if d.name in {*DIVIDED, *parents} and (d.values or d.name in DIVIDED)
    )
    for values in itertools.islice(_combinations(related, {}), MOST_COMBINATIONS):
        sizes = {name: value for name, value in values.items() if name in DIVIDED}
        try:
            with_values(config, sizes)
        except InputError as error:
            shown = ", ".join(f"{name} {value}" for name, value in sizes.items())
            raise InputError(f"search.space: {shown}: {error}") from None


def _refuse(name: str, reason: str) -> NoReturn:
    raise InputError(f"search.space.{name}: {reason}.")
