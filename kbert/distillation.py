"""A student and its teacher: what the teacher says of each row, and its layers to begin with."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.batches import EncodedSplit, RaggedColumn, cache_root, encode_split, join
from kbert.config import STUDENT, Config
from kbert.data import Split
from kbert.encoder import build_encoder
from kbert.errors import InputError
from kbert.experiment import Experiment
from kbert.finished_run import FinishedRun, open_run
from kbert.lineage import file_digest
from kbert.row_vectors import VectorModel, cached_vectors
from kbert.saving import save_checkpoint
from kbert.tasks.distilled import Distilled
from kbert.tasks.task import Task
from kbert.training import copy_weights, model_config

BLOCK = "transformer_layer_"


class Teacher:
    """A finished run whose model is learnt from.

    Args:
        config: Options of the student; distill.teacher is named.

    Raises:
        InputError: there is no such run, it is not finished, its checkpoint or weights are gone, or
            it does something else than the student is to do.
    """

    def __init__(self, config: Config) -> None:
        folder = Path(str(config.distill.teacher))
        try:
            self.run: FinishedRun = open_run(folder)
            self.weights = self.run.weights
            self.experiment: Experiment = self.run.experiment_without_data()
        except InputError as error:
            raise InputError(f"--distill.teacher: {error}") from None
        theirs, ours = self.run.options, config
        if theirs.task.name != ours.task.name:
            raise InputError(
                f"--distill.teacher {folder}: its task is {theirs.task.name}, not "
                f"{ours.task.name}; name another run."
            )
        columns = len(theirs.data.text_columns), len(ours.data.text_columns)
        if min(columns) != max(columns) and 1 in columns:
            raise InputError(
                f"--distill.teacher {folder}: it reads {columns[0]} text columns, not "
                f"{columns[1]}; name another run, or as many by --data.text_column."
            )

    def check_labels(self, task: Task) -> None:
        """InputError if the student's labels are others than the teacher's."""
        others = sorted({*self.experiment.task.labels} ^ {*task.labels})
        if others:
            has, lacks = ("the teacher", "the training file")
            if others[0] in task.labels:
                has, lacks = lacks, has
            raise InputError(
                f"--distill.teacher {self.run.folder}: its labels are others: {has} has "
                f"{others[0]!r}, {lacks} has not ({len(others)} in all); name another run."
            )

    def outputs(self, split: EncodedSplit, cache_dir: str | None, what: str) -> RaggedColumn:
        """What its model gives for each row of a split of the student's: (rows, outputs).

        Args:
            split: The rows, of a file.
            cache_dir: Folder of tokenised data; None for the user's cache folder.
            what: What the rows are, for the log.
        """
        task, config = self.experiment.task, self.run.config
        assert split.source is not None  # the rows of a run are of files
        of_file = Split(split.source, split.rows, split.labels)
        rows = encode_split(of_file, task, cache_dir=cache_dir)
        if not rows.targets:
            rows = _unanswered(rows, targets=len(task.columns(config).targets))
        sizes = model_config(task, self.experiment.checkpoint, config.model, config.train)
        options = [dataclasses.asdict(of) for of in (config.task, sizes)]
        return cached_vectors(
            rows,
            task,
            [file_digest(self.weights), config.data.stride, *options],
            lambda: self._vectors,
            folder=cache_root(cache_dir) / "teachers",
            what=f"what the teacher says of {what}",
        )

    @functools.cached_property
    def _vectors(self) -> VectorModel:
        return VectorModel(self.model())

    def model(self) -> keras.Model:
        """Its model in float32."""
        return self.run.model(self.experiment)

    def figures(self, split: EncodedSplit, logits: np.ndarray) -> dict[str, Any]:
        """Its own figures of a split.

        Args:
            split: The rows.
            logits: What `outputs` found for them.
        """
        task = self.experiment.task
        if self.run.fitted:
            task.use_fitted(self.run.fitted)
        found = task.outputs(tf.constant(logits), None, None)
        score = task.score({name: values.numpy() for name, values in found.items()}, split.gold)
        return {name: score[name] for name in task.headline if name in score}


def distilled(experiment: Experiment) -> Experiment:
    """The experiment with what its teacher says of the training rows, and those without a label.

    Raises:
        InputError: as `Teacher`.
    """
    teacher, options = Teacher(experiment.config), experiment.config.distill
    teacher.check_labels(experiment.task)
    cache_dir = experiment.config.data.cache_dir
    labelled = experiment.splits["train"]
    parts = [(labelled, "the training rows")]
    parts += [(split, "the unlabelled rows") for split in experiment.unlabelled]
    train = join([
        _taught(split, teacher.outputs(split, cache_dir, what), like=labelled)
        for split, what in parts
    ])  # fmt: skip
    return dataclasses.replace(
        experiment,
        task=Distilled(experiment.task, options),
        splits={**experiment.splits, "train": train},
    )


def _taught(split: EncodedSplit, outputs: RaggedColumn, *, like: EncodedSplit) -> EncodedSplit:
    """A split with the teacher's outputs and whether there are labels, as `Distilled` takes them.

    Args:
        split: The labelled rows, or rows without labels.
        outputs: Of its rows.
        like: The labelled rows: all splits have as many targets, and labels as they have.
    """
    is_labelled = split is like
    rows, count = len(split), len(split.segments[0])
    offsets = np.r_[outputs.offsets, np.full(count - len(outputs), outputs.offsets[-1])]
    flags = RaggedColumn(np.full(rows, is_labelled, np.int32), offsets)
    theirs = RaggedColumn(outputs.values, offsets)
    if not is_labelled:
        labels = None if like.labels is None else np.zeros(rows, like.labels.dtype)
        split = dataclasses.replace(_unanswered(split, targets=len(like.targets)), labels=labels)
    return dataclasses.replace(split, targets=(*split.targets, theirs, flags))


def _unanswered(split: EncodedSplit, *, targets: int) -> EncodedSplit:
    """A split without answers, whose rows have targets that are empty."""
    rows = len(split.segments[0])
    nothing = RaggedColumn(np.zeros(0, np.int32), np.zeros(rows + 1, np.int64))
    return dataclasses.replace(split, targets=(nothing,) * targets)


def beside_teacher(
    experiment: Experiment, outputs: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Of each split, the teacher's own headline figures, and how often a student that classifies
    agrees with it.

    Args:
        experiment: The student's.
        outputs: Of the splits, as `kbert.evaluation.collect` gives them.
    """
    teacher, found = Teacher(experiment.config), {}
    for name, of_rows in outputs.items():
        split = experiment.splits[name]
        column = teacher.outputs(split, experiment.config.data.cache_dir, f"the {name} rows")
        logits = column.gather(split.rows)[0]
        found[name] = teacher.figures(split, logits)
        if experiment.task.classifies:
            same = logits.argmax(axis=1) == of_rows["label_index"]
            found[name]["agreement"] = float(same.mean())
    return found


# A student that begins as some of its teacher's layers


def begin_student(config: Config) -> None:
    """Write the checkpoint that such a student begins with, unless its run has begun.

    Raises:
        InputError: as `Teacher`, or it has fewer blocks.
    """
    run, layers = Path(str(config.output)), config.distill.layers
    if layers is None or (run / "config.yaml").exists():
        return
    folder = run / STUDENT
    shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed before it had begun
    teacher = Teacher(config)
    model = shallower(teacher, layers)
    task = teacher.experiment.task
    reference = task.reference()
    assert reference is not None  # of every task that can be distilled
    save_checkpoint(
        model,
        folder,
        tokenizer=task.tokenizer,
        labels=task.labels or None,
        problem_type=reference.problem_type,
        formats=("safetensors",),
    )


def shallower(teacher: Teacher, layers: int) -> keras.Model:
    """The teacher's model with some of its Transformer blocks, and all else of it.

    Raises:
        InputError: it has fewer blocks.
    """
    options, experiment = teacher.run.config, teacher.experiment
    sizes = model_config(experiment.task, experiment.checkpoint, options.model, options.train)
    if layers > sizes.num_layers:
        raise InputError(
            f"distill.layers {layers} is over the {sizes.num_layers} blocks of the teacher "
            f"{teacher.run.folder}."
        )
    whole = teacher.model()
    sizes = dataclasses.replace(sizes, num_layers=layers)
    encoder = build_encoder(sizes)
    model = experiment.task.build_model(encoder, sizes, dtype="float32")
    kept = kept_layers(layers, of=len(_blocks(whole.get_layer("encoder"))))
    sources = {f"{BLOCK}{place}": f"{BLOCK}{block}" for place, block in enumerate(kept)}
    for theirs, ours in ((whole.get_layer("encoder"), encoder), (whole, model)):
        for layer in ours.layers:
            if layer.name != "encoder":
                copy_weights(theirs.get_layer(sources.get(layer.name, layer.name)), layer)
    return model


def _blocks(encoder: keras.Model) -> list[str]:
    return [layer.name for layer in encoder.layers if layer.name.startswith(BLOCK)]


def kept_layers(layers: int, *, of: int) -> list[int]:
    """Which of a teacher's blocks a student of so many takes: spread evenly, first and last too.

    Of 12 for 6 they are DistilBERT's, 0, 2, 4, 7, 9 and 11 (Sanh et al. 2019).
    """
    return np.linspace(0, of - 1, layers).round().astype(int).tolist()
