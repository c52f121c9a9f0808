"""A whole run: data -> task -> (search) -> fit -> evaluate -> export, in one output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import math
import os
import resource
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import yaml

from kbert.analysis import analyse, measured_split, write_analysis
from kbert.attribution import METHOD, OF_WINDOWS, explain
from kbert.baseline import Baseline, fit_baseline
from kbert.certificate import FLOAT32, PLACE, read_certificate
from kbert.certify import Reduced
from kbert.command import SIGNALLED, status_of
from kbert.config import STUDENT, Config, as_dict, as_yaml, differences, with_defaults
from kbert.distillation import Teacher, begin_student, beside_teacher
from kbert.distribution import from_chief
from kbert.errors import NO_ROOM, InputError
from kbert.evaluation import appraise, collect, collect_outside, write_predictions
from kbert.evaluation_tables import verdict_line
from kbert.experiment import Experiment, Materials
from kbert.export import export
from kbert.fastest_step import AUTO, fastest_step
from kbert.int8 import is_supported
from kbert.kernel_threads import cores, parts_of_rows, use_one_thread_a_kernel
from kbert.learned import write_learned
from kbert.lineage import lineage
from kbert.monitor import end_trial, start_trial
from kbert.quantization import add_in_bfloat16, quantize
from kbert.report import write_report
from kbert.retraining import retrain, train_watched
from kbert.saving import save_checkpoint
from kbert.search_space import Dimension, hyperparameters, read_space, with_values
from kbert.serving_files import label_version, prepare
from kbert.tasks import task_class
from kbert.terminal import print_table, trials_table
from kbert.training import (
    Diverged,
    Interrupted,
    Progress,
    load_weights,
    model_config,
    save_weights,
)
from kbert.warmup import warmup_rows
from kbert.whole_files import lock_file, written_whole
from kbert.workers import CHIEF_SECONDS, check_environment, is_worker

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Of the output folder, while a process is at work there; it says which."""
NOISY_LOGS = ("absl", "tensorflow", "httpx", "huggingface_hub")
EXPORTED_IN = {"bfloat16": "bfloat16_products", "int8": "float32"}
"""export.precision -> train.precision of what is exported."""
# what may differ when a run goes on
UNCOMPARED = (
    "resume", "debug", "output", "search.workers", "search.keep", "monitor",
    "train.checkpoint_steps", "train.keep_checkpoints",
)  # fmt: skip
FREE_UNTIL_EXPORTED = ("export.precision",)  # of an unfinished run, too


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is measured and exported."""

    experiment: Experiment
    model: keras.Model
    """In float32, whatever it was trained in."""
    progress: Progress
    search: Mapping[str, Any] | None = None
    """For metrics.json and the lineage."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A split."""

    metrics: dict[str, Any]
    """For metrics.json."""
    outputs: dict[str, np.ndarray]
    """Of every row, as `kbert.evaluation.collect` gives them."""
    baseline: np.ndarray | None
    """The linear model's probabilities (rows, classes)."""
    outside: dict[str, np.ndarray] | None = None
    """Outputs of the rows of no class."""


def run(config: Config) -> int:
    """Do what the options say; the exit status.

    Raises:
        InputError: a file, an option, a checkpoint or the output folder cannot be used.
    """
    set_up_logging(debug=config.debug)
    tf.config.experimental.enable_op_determinism()
    folder = Path(config.output)
    check_environment(config.search.workers)
    if is_worker():
        _wait_for_chief(folder)
    config = _as_begun(folder, config)
    if _is_finished(folder, config):
        print(f"{folder} is finished: see {folder / 'metrics.json'}.")
        return 0
    space = () if config.search.tuner == "none" else read_space(config)
    begin_threads(config, space)
    with _alone(folder) as is_new, _dropped_if_refused(folder, is_new=is_new):
        begin_student(config)
        materials = Materials(config)
        _check_experiments(materials, config, space)
        config = with_fastest_step(config, materials.experiment(config))
        measured = {name: getattr(config.train, name) for name in ("precision", "compile")}
        from_chief(config.train, {"train": measured, "digests": materials.digests})
        return _run(materials, config, space, folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Make the folder where it is missing, which is whether it is new, and keep other runs out.

    A process that has died keeps none out. A search's workers are let in by their chief.
    """
    if is_worker():
        yield False
        return
    with contextlib.ExitStack() as opened:
        try:
            is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=not is_new)
            lock = opened.enter_context(lock_file(folder / LOCK))
        except OSError as error:
            raise InputError(f"--output {folder}: cannot be made ({error.strerror}).") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = (folder / LOCK).read_text(encoding="utf-8")
            raise InputError(
                f"--output {folder}: another run is at work there ({owner}): wait for it, or name "
                "a new folder."
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} of {socket.gethostname()}".encode())
        yield is_new


@contextlib.contextmanager
def _dropped_if_refused(folder: Path, *, is_new: bool) -> Iterator[None]:
    """A folder that bad input leaves new, and without anything worth keeping, is not left."""
    try:
        yield
    except InputError:
        kept = ("checkpoints", "search", "retrained")
        if is_new and not is_worker() and not any((folder / name).exists() for name in kept):
            shutil.rmtree(folder, ignore_errors=True)  # it may not be there yet
        raise


def _run(materials: Materials, config: Config, space: tuple[Dimension, ...], folder: Path) -> int:
    """What `run` does once all that it is given is checked."""
    try:
        with _saying_once("kbert.loading"):
            if is_worker():
                _work(materials, config, space, folder)
            else:
                if config.export.enabled:
                    prepare(_export_base(config, folder))
                _write_text(folder / "config.yaml", as_yaml(config))
                write_learned(folder, materials.learned)
                _describe(materials, materials.experiment(config))
                _train_and_export(materials, config, space, folder)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"stopped; the same command goes on from {folder}.")
        return SIGNALLED + stop.number if isinstance(stop, Interrupted) else status_of(stop)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(
            f"{error.filename or folder}: {error.strerror}; the same command goes on."
        ) from None
    return 0


def set_up_logging(*, debug: bool) -> None:
    """Say on standard error what kbert logs, and nothing of what others do."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("kbert").setLevel(logging.DEBUG if debug else logging.INFO)
    for noisy in NOISY_LOGS:
        logging.getLogger(noisy).setLevel(logging.ERROR)


@contextlib.contextmanager
def _saying_once(name: str) -> Iterator[None]:
    """Every trial of a search loads the same checkpoint: what was loaded is said once."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not (message in said or said.add(message))

    logging.getLogger(name).addFilter(is_new)
    try:
        yield
    finally:
        logging.getLogger(name).removeFilter(is_new)


def _wait_for_chief(folder: Path) -> None:
    """Until the run is there: the chief makes its folder, and says whether it is another's."""
    began = time.monotonic()
    while not (folder / "config.yaml").exists():
        if time.monotonic() - began > CHIEF_SECONDS:
            raise InputError(f"--output {folder}: no chief has begun a run there in an hour.")
        time.sleep(1)


def _as_begun(folder: Path, config: Config) -> Config:
    """The options with what a run in the folder has measured: it goes on as it began."""
    try:
        old = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        train = with_defaults(old)["train"]
        measured = {
            name: train[name]
            for name in ("precision", "compile")
            if getattr(config.train, name) == AUTO and name in train
        }
    except (OSError, KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError):
        return config  # there is no run, or none that can go on
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **measured))


def begin_threads(config: Config, space: tuple[Dimension, ...] = ()) -> None:
    """Give kernels one thread each where every step has a part of its rows for every core.

    To be called before TensorFlow computes anything.
    """
    train = config.train
    sizes = next((one.values or (one.minimum,) for one in space if one.name == "batch_size"), ())
    rows = min([train.part_size, *(int(size) // train.accumulate for size in sizes)])
    if (
        train.compile in (AUTO, "parallel")
        and train.strategy == "none"
        and task_class(config.task.name).encoder_does_most
        and config.distill.teacher is None
        and parts_of_rows(rows) == cores()
    ):
        use_one_thread_a_kernel()


def with_fastest_step(config: Config, experiment: Experiment) -> Config:
    """The options with precision and compile as they are to be."""
    task, rows = experiment.task, (experiment.splits["train"], *experiment.unlabelled)
    lengths = np.minimum(np.concatenate([split.lengths for split in rows]), task.max_length)
    train = fastest_step(
        config.train,
        model_config(task, experiment.checkpoint, config.model, config.train),
        tokens=0.0 if task.has_features else float(lengths.sum()) * config.train.epochs,
        length=float(lengths.mean()),
    )
    return dataclasses.replace(config, train=train)


def _is_finished(folder: Path, config: Config) -> bool:
    """Whether there is nothing left to do in the folder; InputError if it is another run's."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: this is a file.")
    # a hidden file, or a student's beginning, is what a process left that was killed early
    if not folder.exists() or all(
        path.name.startswith(".") or path.name == STUDENT for path in folder.iterdir()
    ):
        return False
    if config.resume == "never" and not is_worker():  # the chief has made the folder
        raise InputError(f"--output {folder} is not empty: --resume never needs a new folder.")
    try:
        old = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"--output {folder} is not empty and holds no run (no config.yaml): name a new folder."
        ) from None
    lines = differences(with_defaults(old), as_dict(config))
    is_finished = (folder / "metrics.json").exists()
    free = UNCOMPARED if is_finished else (*UNCOMPARED, *FREE_UNTIL_EXPORTED)
    differing = [line for line in lines if not _is_of(line.partition(":")[0], free)]
    if differing:
        raise InputError(
            f"--output {folder} holds a run with other options ({'; '.join(differing)}): "
            "name a new folder."
        )
    return is_finished


def _is_of(option: str, names: tuple[str, ...]) -> bool:
    return any(option == name or option.startswith(f"{name}.") for name in names)


def _check_experiments(materials: Materials, config: Config, space: tuple[Dimension, ...]) -> None:
    """Every checkpoint that a search may try is read, with the most that it may have to hold."""
    if config.export.enabled and config.export.precision == "int8" and not is_supported():
        raise InputError(
            "export.precision int8: this TensorFlow has no such products (it has them on x86, with "
            "oneDNN): choose bfloat16, or float32."
        )
    experiments = [materials.experiment(config)]
    choices = {dimension.name: dimension for dimension in space}
    checkpoints = choices["checkpoint"].values if "checkpoint" in choices else ()
    for chosen in [{"checkpoint": name} for name in checkpoints] or [{}]:
        largest = {
            name: max(choices[name].values or (choices[name].maximum,))
            for name in ("max_length", "frozen_layers")
            if name in choices and choices[name].is_active(chosen)
        }
        if "num_layers" in choices:  # then it depends on it how many can be frozen
            largest.pop("frozen_layers", None)
        experiments.append(materials.experiment(with_values(config, {**chosen, **largest})))
    for experiment in experiments:
        experiment.check()
    if config.distill.teacher is not None:
        Teacher(config).check_labels(experiments[0].task)
    vocabularies = {experiment.task.tokenizer.vocabulary for experiment in experiments}
    if len(vocabularies) > 1 and experiments[0].task.default_metric.endswith("loss"):
        raise InputError(
            "search.space.checkpoint: their vocabularies differ, so that losses over word pieces "
            "cannot be compared."
        )


def _describe(materials: Materials, experiment: Experiment) -> None:
    splits, task = experiment.splits, experiment.task
    counts = {name: len(split) for name, split in splits.items()}
    if experiment.unlabelled:
        counts["unlabelled"] = sum(map(len, experiment.unlabelled))
    rows = ", ".join(f"{name} {count}" for name, count in counts.items())
    lengths = splits["train"].lengths
    classes = f"{len(task.labels)} classes; " if task.labels else ""
    print(
        f"rows: {rows}; {classes}word pieces a text: median "
        f"{int(np.median(lengths))}, 95% {int(np.percentile(lengths, 95))}, "
        f"longest {int(lengths.max())} (max_length {task.max_length})"
    )
    apart = [f"{name} {len(split.outside)}" for name, split in splits.items() if len(split.outside)]
    if apart:
        print(f"rows of no class, which training leaves out: {', '.join(apart)}")
    found = {name: count for name, count in materials.dataset.duplicates.items() if count}
    if found:
        counts = ", ".join(f"{name} {count}" for name, count in found.items())
        print(f"exact duplicates: {counts}")


def _work(materials: Materials, config: Config, space: tuple[Dimension, ...], folder: Path) -> None:
    """Run trials for the chief, which does all that comes after them."""
    from kbert.search import work

    if space:
        work(materials, config, space, folder=folder / "search", tensorboard=_curves(config))
    print("no trial is left: the chief goes on", flush=True)


def _train_and_export(
    materials: Materials, config: Config, space: tuple[Dimension, ...], folder: Path
) -> None:
    trained = (
        _search(materials, config, space, folder)
        if space
        else _train(materials.experiment(config), folder)
    )
    # of millions of rows it takes a minute, which the first step need not wait for
    linear = _linear_model(materials.experiment(config), folder / "baseline.safetensors")
    experiment, exact = trained.experiment, trained.model
    metrics: dict[str, Any] = {} if trained.search is None else {"search": trained.search}
    measured, fitted = _measure(experiment, exact, linear)
    metrics |= {name: of.metrics for name, of in measured.items()}
    if config.distill.teacher is not None:
        _compare_with_teacher(experiment, measured)
    metrics["headline"] = list(experiment.task.headline)
    metrics["fitted"] = fitted
    metrics["train"] = _training_figures(materials, trained)
    _show(experiment, measured)
    if "test" in measured:
        predictions = folder / "predictions.csv"
        outputs, outside = measured["test"].outputs, measured["test"].outside
        test = experiment.splits["test"]
        write_predictions(predictions, experiment.task, test, outputs, outside=outside)
    _export(materials, config, trained, measured, folder)
    save_weights(exact, folder / "checkpoints" / "model.safetensors")
    _report(materials, trained, measured, metrics, folder)
    # a folder with metrics.json is finished; what is dropped after it is needed no more
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    _write_text(folder / "metrics.json", text + "\n")
    for state in (folder / "checkpoints").glob("step-*.safetensors"):
        state.unlink()
    for weights in (folder / "retrained").glob("*/*/model.safetensors"):
        weights.unlink()


def _report(
    materials: Materials,
    trained: Trained,
    measured: Mapping[str, Measured],
    metrics: dict[str, Any],
    folder: Path,
) -> None:
    """The page of the run. The run is worth no less without it, so that no error ends it here."""
    try:
        write_analysis(folder / "analysis.json", _analyse(materials, trained, measured))
        print(f"the whole run on one page: {write_report(folder, metrics=metrics)}")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # the same command goes on
            raise
        logger.debug("%s", traceback.format_exc())
        logger.warning(
            "report.html is not written (%s: %s); --debug shows where",
            type(error).__name__,
            " ".join(str(error).split()),
        )


def _linear_model(experiment: Experiment, path: Path) -> dict[str, np.ndarray]:
    """By split, the class probabilities of a linear model trained on the same rows; {} if none."""
    task, splits = experiment.task, experiment.splits
    if not task.classifies:
        return {}
    if path.exists():
        linear = Baseline.load(path)
    else:
        began = time.monotonic()
        linear = fit_baseline(
            splits["train"],
            num_classes=len(task.labels),
            validation=splits.get("validation"),
            seed=experiment.config.train.seed,
        )
        linear.save(path)
        print(f"a linear model (TF-IDF) to compare with: {time.monotonic() - began:.1f} s")
    return {
        name: linear.probabilities(splits[name])
        for name in ("validation", "test")
        if name in splits
    }


def _train(experiment: Experiment, folder: Path) -> Trained:
    config = experiment.config
    curves = _curves(config)
    if curves is not None:
        # nothing describes the columns: TensorBoard finds them itself, of all runs that it looks at
        start_trial(curves, config.run_name, {**hyperparameters(config), "seed": config.train.seed})
    try:
        model, progress = train_watched(
            experiment, name="train", folder=folder / "checkpoints", tensorboard=curves
        )
    except Diverged:
        if curves is not None:
            end_trial(curves, "failed")
        raise
    if curves is not None:
        found = progress.figures(config.train).items()
        figures = {name[4:]: value for name, value in found if name.startswith("val_")}
        end_trial(curves, "completed", figures=figures)
    return Trained(experiment, experiment.exact_model(model), progress)


def _search(
    materials: Materials, config: Config, space: tuple[Dimension, ...], folder: Path
) -> Trained:
    # keras-tuner takes a second to import
    from kbert.search import search
    from kbert.search_result import SearchResult

    curves = _curves(config)
    outcome = search(materials, config, space, folder=folder / "search", tensorboard=curves)
    names = [dimension.name for dimension in space]
    print_table(trials_table(outcome.trials, outcome.objective, names))

    def again(options: Config, name: str) -> list:
        return retrain(
            materials,
            options,
            outcome.objective,
            name=name,
            folder=folder / "retrained" / name,
            tensorboard=None if curves is None else curves / name,
        )

    winner = again(outcome.config, "winner")
    if not winner:
        raise InputError(
            f"trial {outcome.winner.name}, the search's best, diverged with every other seed: "
            "lower the learning rates of search.space."
        )
    default = winner
    if outcome.winner is not outcome.default:
        default = again(config, "default") if outcome.default.scored else []
    result = SearchResult(outcome, winner, default)
    print_table(result.table())
    chosen = result.exported
    print(f"the run of seed {chosen.seed}, the median of the winner's, is kept and exported")
    train = dataclasses.replace(outcome.config.train, seed=chosen.seed)
    experiment = materials.experiment(dataclasses.replace(outcome.config, train=train))
    exact = experiment.in_float32().new_model()
    load_weights(exact, chosen.weights)
    return Trained(experiment, exact, chosen.progress, result.as_dict())


def _export_base(config: Config, folder: Path) -> Path:
    return (folder / "export" / config.export_name).resolve()


def _export(
    materials: Materials,
    config: Config,
    trained: Trained,
    measured: Mapping[str, Measured],
    folder: Path,
) -> None:
    experiment = trained.experiment
    if config.export.enabled:
        base = _export_base(config, folder)
        if not (base / str(config.export.version)).exists():
            train = experiment.splits["train"]
            exported = export(
                trained.model,
                experiment.task,
                base,
                version=config.export.version,
                lineage=_lineage(materials, trained),
                warmup=warmup_rows(train, experiment.task) if config.export.warmup else (),
                reduced=_reduced(experiment, trained.model, measured),
            )
            print(f"exported, and answered as the model does in a fresh process: {exported}")
            tf_serving = read_certificate(exported / PLACE).tf_serving
            print(f"it loads in TF Serving {tf_serving} and later")
        label_version(base.parent, config.export_name, config.export.version)
    if config.export.huggingface:
        _save_for_huggingface(trained.model, experiment.task, folder / "huggingface")


def _reduced(
    experiment: Experiment, exact: keras.Model, measured: Mapping[str, Measured]
) -> Reduced | None:
    """The model in the export's precision, and what it loses; None where that is float32."""
    precision, task = experiment.config.export.precision, experiment.task
    if precision == FLOAT32:
        return None
    model = experiment.model_in(EXPORTED_IN[precision], exact)
    if precision == "int8":
        quantize(model, task, experiment.splits["train"])
    else:
        add_in_bfloat16(model)
    figures: dict[str, dict[str, float]] = {}
    for name in [*measured][-1:]:  # the test split, else the validation split
        split = experiment.splits[name]
        found = {
            FLOAT32: measured[name].metrics,
            precision: task.score(collect(model, task, split), split.gold),
        }
        figures = {
            of: {figure: score[figure] for figure in task.headline if figure in score}
            for of, score in found.items()
        }
        for figure, value in figures[precision].items():
            exactly = figures[FLOAT32][figure]
            print(f"exported in {precision}: {name} {figure} {exactly:.4f} -> {value:.4f}")
    return Reduced(precision, model, figures)


def _lineage(materials: Materials, trained: Trained) -> dict[str, Any]:
    experiment, search = trained.experiment, trained.search
    return lineage(
        experiment.config,
        data=materials.digests,
        rows={name: len(split) for name, split in experiment.splits.items()},
        checkpoint=experiment.checkpoint,
        seed=experiment.config.train.seed,
        trial=None if search is None else search["winner"]["trial"],
        search=None if search is None else _searched(search),
    )


def _searched(search: Mapping[str, Any]) -> dict[str, Any]:
    """What the lineage tells of a search."""
    winner = search["winner"]
    return {
        "objective": search["objective"],
        "score": winner["score"],
        "hyperparameters": winner["hyperparameters"],
        "retrained_seeds": winner["seeds"],
        "exported_seed": search["exported_seed"],
    }


def _save_for_huggingface(model: keras.Model, task: Any, folder: Path) -> None:
    if folder.exists():  # it is written whole or not at all
        return
    reference = task.reference()
    save_checkpoint(
        reference.part_of(model),
        folder,
        tokenizer=task.tokenizer,
        labels=task.labels or None,
        problem_type=reference.problem_type,
        files=reference.files,
    )
    print(f"a checkpoint in HuggingFace layout: {folder}")


def _measure(
    experiment: Experiment, model: keras.Model, linear: Mapping[str, np.ndarray]
) -> tuple[dict[str, Measured], dict[str, Any]]:
    """Validation and test, and what the task fitted on the validation split."""
    task, splits = experiment.task, experiment.splits
    measured, fitted = {}, {}
    for name in ("validation", "test"):
        if name not in splits:
            continue
        gold, outputs = splits[name].gold, collect(model, task, splits[name])
        outside = collect_outside(model, task, splits[name])
        if name == "validation":
            fitted = task.fit_on_validation(outputs, gold, outside)
            if task.use_fitted(fitted):
                outputs = collect(model, task, splits[name])
                outside = collect_outside(model, task, splits[name])
        metrics = appraise(
            task,
            gold,
            outputs,
            baseline=linear.get(name),
            temperature=fitted.get("temperature"),
            outside=outside,
        )
        measured[name] = Measured(metrics, outputs, linear.get(name), outside)
    return measured, fitted


def _without_nan(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no word for what is no number."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _show(experiment: Experiment, measured: Mapping[str, Measured]) -> None:
    """Tables of the test split, or of the validation split where there are no figures of a test."""
    scored = [name for name, of in measured.items() if of.metrics]
    for name in scored[-1:]:
        for table in experiment.task.tables(measured[name].metrics):
            print_table(dataclasses.replace(table, title=f"{name}: {table.title}"))
        if line := verdict_line(measured[name].metrics, name):
            print(line)


def _analyse(
    materials: Materials, trained: Trained, measured: Mapping[str, Measured]
) -> dict[str, Any]:
    experiment = trained.experiment
    task, splits = experiment.task, experiment.splits
    shown = measured_split(splits) if task.classifies else None
    if shown is None:
        return analyse(materials.dataset, task, splits)
    calibration = measured[shown].metrics.get("calibration", {})
    return analyse(
        materials.dataset,
        task,
        splits,
        outputs=measured[shown].outputs,
        baseline=measured[shown].baseline,
        temperature=calibration.get("temperature"),
        explain=functools.partial(explain, trained.model, task),
        attribution=METHOD if experiment.config.data.stride is None else METHOD + OF_WINDOWS,
    )


def _compare_with_teacher(experiment: Experiment, measured: Mapping[str, Measured]) -> None:
    """Put the teacher's figures beside the student's, and say those of the last split."""
    found = beside_teacher(experiment, {name: of.outputs for name, of in measured.items()})
    for name, figures in found.items():
        measured[name].metrics["teacher"] = figures
        if name == list(found)[-1]:
            listed = ", ".join(f"{figure} {value:.4f}" for figure, value in figures.items())
            print(f"the teacher on the same {name} rows: {listed}")


def _training_figures(materials: Materials, trained: Trained) -> dict[str, Any]:
    experiment, progress = trained.experiment, trained.progress
    options, split = experiment.config.train, experiment.splits["train"]
    learned = materials.learned
    figures: dict[str, Any] = {
        "examples_per_second": progress.examples_per_second,
        "seconds": progress.elapsed,
        # of the whole process so far; Linux counts in kilobytes
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "files": materials.digests,
        "rows": len(split),
        "epochs": progress.epoch,
        "best_epoch": None if progress.best_epoch is None else progress.best_epoch + 1,
        "history": [_without_nan(epoch) for epoch in progress.history],
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
        "seed": options.seed,
    }
    if learned.labels:
        figures["labels"] = list(learned.labels)
        figures["label_counts"] = learned.label_counts.tolist()
    return figures


def _curves(config: Config) -> Path | None:
    """Where TensorBoard looks, under the run's name."""
    if not config.monitor.tensorboard:
        return None
    return Path(config.output) / "tensorboard" / config.run_name


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")
