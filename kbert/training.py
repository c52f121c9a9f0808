"""Fit a task's model: an epoch after the other, exact resume, early stopping."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors

from kbert.accumulation import accumulating
from kbert.batches import EncodedSplit, training_batches
from kbert.checkpoints import latest_checkpoint, save_state
from kbert.command import asked_to_stop
from kbert.config import EncoderConfig, ModelOptions, TrainOptions
from kbert.distribution import distributed, is_chief, replicas_of, scope_of, slices_of
from kbert.encoder import build_encoder, compute_in_parts, rematerialize
from kbert.errors import InputError
from kbert.evaluation import Evaluator, epoch_names
from kbert.fastest_step import parts_of
from kbert.loading import load_checkpoint_weights, read_encoder_config
from kbert.lora import add_low_rank, merge_low_rank
from kbert.optimizers import EMBEDDINGS, new_optimizer
from kbert.precision import policy_of
from kbert.tasks.task import Task
from kbert.tensor_files import read_checked, write_checked

logger = logging.getLogger(__name__)

EVALUATION_BATCH_SIZE = 64
PROGRESS = "progress"  # in a checkpoint's metadata: a Progress as JSON
FROZEN = "frozen"  # ... digest of the weights that it does not hold
WATCHERS = "watchers"  # ... what each Watcher has given for its state, as JSON
MANY_IDS = 1 << 20  # are read of a file at a time
MOST_ROWS = 0.7  # of an embedding: with more there is nothing to gain


class Interrupted(Exception):
    """The run was asked to stop by a signal, and its state is in a checkpoint."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Diverged(InputError):
    """Loss or weights are no numbers any more; the checkpoint before is still there."""


@dataclass
class Progress:
    """How far a run has come; all that a checkpoint holds besides variables."""

    epoch: int = 0
    """Epoch that is running, from 0."""
    step: int = 0
    """Steps done of that epoch."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Training and validation figures of each finished epoch."""
    best_value: float | None = None
    """Best value of the best_metric so far."""
    best_epoch: int | None = None
    """Epoch that had it."""
    stopped: bool = False
    """Whether early stopping has ended the run."""
    examples: int = 0
    """Rows of the steps that were timed (the first one of a process traces and is not)."""
    seconds: float = 0.0
    """Time of these steps."""
    elapsed: float = 0.0
    """Seconds inside `fit`, validation and checkpoints included, of all processes of the run."""

    @property
    def examples_per_second(self) -> float:
        """Training rows a second; 0 before two steps are done."""
        return self.examples / self.seconds if self.seconds else 0.0

    def figures(self, options: TrainOptions) -> dict[str, float]:
        """Figures of the epoch whose weights `fit` leaves in the model."""
        return self.history[self.best_epoch if _keeps_best(options) else -1]


class Watcher(keras.callbacks.Callback):
    """A callback that is shown the outputs of every validation row, too."""

    @property
    def name(self) -> str:
        """Under which a checkpoint has its state."""
        return type(self).__name__

    def on_validation(
        self, epoch: int, outputs: dict[str, np.ndarray], score: Mapping[str, Any]
    ) -> None:
        """Look at them, before the `on_epoch_end` of the same epoch.

        Args:
            epoch: Its number, from 0.
            outputs: As `kbert.evaluation.collect` gives them, without what is generated.
            score: What the task's `score` says of them; {} for a task that generates.
        """

    def state(self) -> dict[str, Any]:
        """What it must know to go on from a checkpoint, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; called once, before training.

        Args:
            state: Of the checkpoint; {} where training begins, which may be after one that was
                killed before its first checkpoint.
        """


def new_model(
    task: Task, checkpoint: Path | None, options: ModelOptions, train: TrainOptions
) -> keras.Model:
    """The task's model with the checkpoint's weights; what it lacks is new, by the seed.

    Args:
        task: Brings head and vocabulary.
        checkpoint: Folder in HuggingFace layout; None for a model from scratch.
        options: Sizes of a model from scratch, and dropout.
        train: Precision, seed and what is frozen.

    Raises:
        InputError: max_length is over the checkpoint's positions, or its weights do not fit, or
            there are fewer blocks than frozen_layers.
    """
    config = model_config(task, checkpoint, options, train)
    keras.utils.set_random_seed(train.seed)
    dtype = policy_of(train.precision)
    with scope_of(train):
        encoder = build_encoder(config, dtype=dtype)
        model = task.build_model(encoder, config, dtype=dtype)
    if checkpoint is not None and not task.has_new_encoder:
        load_checkpoint_weights(model, checkpoint)
    if train.frozen_layers:
        blocks = [f"transformer_layer_{index}" for index in range(train.frozen_layers)]
        for name in (*EMBEDDINGS, *blocks):
            encoder.get_layer(name).trainable = False
    return trainable(model, task, train)


def trainable(model: keras.Model, task: Task, train: TrainOptions) -> keras.Model:
    """The model with the step that the options ask for: in parts, or by several devices.

    Args:
        model: The task's, made in `kbert.distribution.scope_of` the options.
        task: Takes batches apart.
        train: How.
    """
    if replicas_of(train) is not None:
        return distributed(model, task, train)
    return model if train.accumulate == 1 else accumulating(model, task, train.accumulate)


def model_config(
    task: Task, checkpoint: Path | None, options: ModelOptions, train: TrainOptions
) -> EncoderConfig:
    """Sizes and constants of the model that `new_model` would make.

    Raises:
        InputError: max_length is over the checkpoint's positions, there are fewer blocks than
            frozen_layers, or LoRA has none to add to, or more rank than they.
    """
    config = _encoder_config(task, checkpoint, options)
    if task.max_length > config.max_sequence_length:
        raise InputError(
            f"data.max_length {task.max_length} is over the {config.max_sequence_length} "
            f"positions that {checkpoint} has."
        )
    if train.frozen_layers > config.num_layers:
        raise InputError(
            f"train.frozen_layers {train.frozen_layers} is over the {config.num_layers} blocks "
            "of the model."
        )
    if train.lora_rank and train.frozen_layers == config.num_layers:
        raise InputError(
            f"train.lora_rank adds to no frozen block: train.frozen_layers {train.frozen_layers} "
            "leaves none."
        )
    if train.lora_rank > config.hidden_dim:
        raise InputError(
            f"train.lora_rank {train.lora_rank} is over {config.hidden_dim}, the rank of the "
            "model's own kernels."
        )
    return config


def _encoder_config(task: Task, checkpoint: Path | None, options: ModelOptions) -> EncoderConfig:
    if checkpoint is not None:
        config = read_encoder_config(checkpoint)
    else:
        config = EncoderConfig(
            vocabulary_size=task.tokenizer.vocabulary_size,
            hidden_dim=options.hidden_dim,
            num_layers=options.num_layers,
            num_heads=options.num_heads,
            intermediate_dim=options.intermediate_dim,
            max_sequence_length=max(512, task.max_length),
        )
    if options.dropout is None:
        return config
    return dataclasses.replace(config, dropout=options.dropout, attention_dropout=options.dropout)


def fit(
    model: keras.Model,
    task: Task,
    train: EncodedSplit,
    validation: EncodedSplit | None,
    options: TrainOptions,
    *,
    folder: Path | None,
    callbacks: list[keras.callbacks.Callback],
    until_epoch: int | None = None,
) -> Progress:
    """Train a model; at the end it has the weights of the last, or the best, epoch.

    A run that stops at `until_epoch` and goes on from its folder later, in another process if need
    be, ends with the same numbers as one that never stopped.

    Args:
        model: Model of the task, not compiled.
        task: Loss, metrics and batches.
        train: Rows to learn from.
        validation: Rows to measure after each epoch.
        options: How.
        folder: Where checkpoints are, and where the run goes on from; None for none.
        callbacks: What else looks on; a `Watcher` sees each validation.
        until_epoch: Number of finished epochs, at least 1, after which to stop; the learning
            rate's schedule spans all of options.epochs whatever it is. None for all of them.

    LoRA's additions are there from the beginning to the end of this call, and then merged into the
    kernels: no one else knows of them.

    Raises:
        InputError: best_metric or patience without a validation split or with an unknown metric; or
            a checkpoint of another model, or of other frozen weights.
        Interrupted: SIGINT or SIGTERM came, and the checkpoint is written.
        Diverged: the loss, or a weight, became infinite or nan; no checkpoint has that state.
    """
    began = time.perf_counter()
    replicas = replicas_of(options)
    steps = math.ceil(len(train) / options.batch_size)
    if options.rematerialize:
        rematerialize(model)
    if options.lora_rank:
        alpha = options.lora_alpha or 2.0 * options.lora_rank
        with scope_of(options):
            add_low_rank(model, rank=options.lora_rank, alpha=alpha, seed=options.seed)
    _tell_what_is_trained(model)
    rows = rows_that_occur(model, task, train, options)
    _compile(model, task, options, total_steps=steps * options.epochs, rows=rows)
    check_best_metric(task, validation, options)
    # What the first step finds, in this order:
    # 1. a checkpoint in the folder: all variables and the position are restored (exact resume);
    # 2. otherwise: the weights that the model came with, and new optimizer state.
    state = None if folder is None else latest_checkpoint(folder)
    progress = Progress() if state is None else read_progress(state)
    if folder is not None:
        for part in folder.glob(".*.safetensors.*"):  # a file that a killed process was writing
            part.unlink()
    if state is not None:
        logger.info("going on from %s", state.name)
    if state is not None or replicas is not None:
        _build_state(model, train, task, options)
    if replicas is not None:
        progress = Progress(**replicas.from_chief(dataclasses.asdict(progress)))
    evaluator = None
    if validation is not None and is_chief(options):
        evaluator = Evaluator(model, task.measured, validation, batch_size=EVALUATION_BATCH_SIZE)
    last = options.epochs if until_epoch is None else min(until_epoch, options.epochs)
    watchers = [callback for callback in callbacks if isinstance(callback, Watcher)]
    if folder is not None:
        seen = {} if state is None else json.loads(_metadata(state).get(WATCHERS, "{}"))
        for watcher in watchers:
            watcher.restore(seen.get(watcher.name, {}))
    with asked_to_stop() as asked:
        if replicas is not None and replicas.cluster is not None:
            asked = model.agree_on(asked)
        keeper = _Keeper(
            progress,
            options,
            folder=folder,
            restore=state,
            watchers=watchers,
            asked=asked,
            steps=steps,
            began=began,
        )
        validation_pass = [] if evaluator is None else [ValidationPass(evaluator, watchers, keeper)]
        # the keeper is first: what comes after sees the restored state; and last to save
        called = [keeper, *validation_pass, *callbacks, _Saver(keeper)]
        while progress.epoch < last and not progress.stopped:
            if progress.step == steps:  # it was stopped before its validation
                _end_epoch(model, progress.epoch, called)
                continue
            batches = training_batches(
                train,
                task,
                batch_size=options.batch_size,
                seed=options.seed,
                epoch=progress.epoch,
                start=progress.step,
            )
            if replicas is not None:
                batches = slices_of(batches, task, replicas)
            model.fit(
                batches,
                initial_epoch=progress.epoch,
                epochs=progress.epoch + 1,
                callbacks=called,
                shuffle=False,  # the batches are ordered already
                verbose=0,
            )
    keeper.finish(model)
    if options.lora_rank:
        merge_low_rank(model)
    return progress


def _end_epoch(
    model: keras.Model, epoch: int, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """What Keras' `fit` does of an epoch after its last step; without a batch it would step."""
    called = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epoch + 1, steps=0)
    called.on_train_begin()
    called.on_epoch_begin(epoch)
    called.on_epoch_end(epoch, dict(model.get_metrics_result()))
    called.on_train_end()


def _tell_what_is_trained(model: keras.Model) -> None:
    """How many weights, where some are frozen."""
    trained = sum(math.prod(variable.shape) for variable in model.trainable_weights)
    frozen = sum(math.prod(variable.shape) for variable in model.non_trainable_weights)
    if frozen:
        share = trained / (trained + frozen)
        logger.info("weights that are trained: %s, %.1f%% of all", f"{trained:,}", 100 * share)


def save_weights(model: keras.Model, path: Path) -> None:
    """Write a model's weights (no optimizer, no random state) under their paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checked(path, {variable.path: variable.numpy() for variable in model.weights}, {})


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a loss of some kind, with or without "val_"."""
    return metric.endswith(("loss", "perplexity"))


def load_weights(model: keras.Model, path: Path) -> None:
    """Read what `save_weights` wrote, into a model of the same task and sizes.

    Raises:
        InputError: the file is damaged.
    """
    tensors, _ = read_checked(path)
    for variable in model.weights:
        variable.assign(tensors[variable.path])


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Give a model, or a layer, the weights of another of the same structure, of any dtype."""
    for theirs, ours in zip(source.weights, target.weights, strict=True):
        ours.assign(theirs)


def read_progress(path: Path) -> Progress:
    """How far the run of a checkpoint had come."""
    return Progress(**json.loads(_metadata(path)[PROGRESS]))


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata()


class _Keeper(keras.callbacks.Callback):
    """Keeps the progress: restores it, counts, decides on stopping, writes checkpoints."""

    def __init__(
        self,
        progress: Progress,
        options: TrainOptions,
        *,
        folder: Path | None,
        restore: Path | None,
        watchers: Sequence[Watcher],
        asked: list[int],
        steps: int,
        began: float,
    ) -> None:
        super().__init__()
        self.progress = progress
        self.options = options
        self.folder = folder
        self.pending = restore
        self.watchers = watchers
        self.replicas = replicas_of(options)
        self.is_shared = self.replicas is None
        self.asked = asked
        self.steps = steps
        self.counted = began
        self.metric = f"val_{(options.best_metric or 'loss').removeprefix('val_')}"
        self.best_weights: list[np.ndarray] | None = None
        self.last_time: float | None = None

    @functools.cached_property
    def frozen(self) -> str:
        """Of the weights that no checkpoint holds, since they stay as they came."""
        return _digest(self.model.non_trainable_weights)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # after fit has reset the metrics: their sums are restored
        if self._restore() and self.progress.step == 0:  # they are of the epoch before
            self.model.reset_metrics()
        is_first = self.model.optimizer.iterations.numpy() == 0
        self.last_time = None if is_first else time.perf_counter()

    def _restore(self) -> bool:
        """Give the model the checkpoint's state, or the chief's, once; whether there was one."""
        pending, self.pending = self.pending, None
        if pending is not None:
            _restore_variables(self.model, pending, frozen=self.frozen)
        if self.is_shared:
            return pending is not None
        self.is_shared = True
        is_restored = self.replicas.from_chief(pending is not None)
        self.replicas.share(self.model.weights)
        if is_restored:
            self.replicas.share(_variables(self.model).values())
        self.replicas.spread_seeds(self.model)
        return is_restored

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now = time.perf_counter()
        self.progress.step += 1
        if self.last_time is not None and batch > 0:
            self.progress.seconds += now - self.last_time
            self.progress.examples += self.options.batch_size
        self.last_time = now
        loss = float((logs or {}).get("loss", 0.0))  # a mean over the epoch: nan stays in it
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} at")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        optimizer.settle()  # validation may meet any row

    def between_validation_batches(self) -> None:
        """The validation of a large split takes longer than one who asks to stop may wait.

        But for several processes, of which only the chief is here, and the others wait for it.
        """
        if self.asked and (self.replicas is None or self.replicas.cluster is None):
            self._check_weights()
            self.save()  # with all steps of the epoch done: it goes on with its validation
            self._leave_if_asked()

    def after_batch(self) -> None:
        """Once every other callback has seen the batch."""
        if self.progress.step == self.steps:  # the end of the epoch saves
            return
        if self.asked or self.progress.step % self.options.checkpoint_steps == 0:
            self._check_weights()
            self.save()
            self.last_time = time.perf_counter()
        self._leave_if_asked()

    def after_epoch(self, logs: dict[str, float]) -> None:
        """Once every other callback has seen the epoch."""
        self._check_weights()
        progress = self.progress
        progress.history.append({name: float(value) for name, value in logs.items()})
        if self.metric in logs and self._is_better(float(logs[self.metric])):
            progress.best_value = float(logs[self.metric])
            progress.best_epoch = progress.epoch
            self._keep_best()
        waited = progress.epoch - (progress.best_epoch or 0)
        progress.stopped = bool(self.options.patience) and waited >= self.options.patience
        if self.replicas is not None:  # only the chief has validated
            progress.stopped = self.replicas.from_chief(progress.stopped)
        progress.epoch += 1
        progress.step = 0
        self.save()
        self._leave_if_asked()

    def _check_weights(self) -> None:
        """A step's loss is of the weights before it; what is written are those after it."""
        for variable in self.model.trainable_variables:
            if not np.isfinite(variable.numpy()).all():
                raise self._diverged("the weights are not finite after")

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"training diverged: {what} step {self.progress.step} of epoch "
            f"{self.progress.epoch + 1} (train.learning_rate {self.options.learning_rate:g}): "
            "lower the rate, or raise train.warmup."
        )

    def _leave_if_asked(self) -> None:
        if self.asked:
            raise Interrupted(self.asked[0])

    def save(self) -> None:
        """Write a checkpoint, and drop old ones."""
        if self.folder is None:
            return
        self._count_time()
        total = int(self.model.optimizer.iterations.numpy())
        tensors = {name: of.numpy() for name, of in _variables(self.model).items()}
        metadata = {
            PROGRESS: json.dumps(dataclasses.asdict(self.progress)),
            FROZEN: self.frozen,
            WATCHERS: json.dumps({watcher.name: watcher.state() for watcher in self.watchers}),
        }
        save_state(self.folder, total, tensors, metadata, keep=self.options.keep_checkpoints)

    def finish(self, model: keras.Model) -> None:
        """Give the model the weights that it ends with, those of its last or of its best epoch."""
        self.set_model(model)
        self._restore()  # if there was nothing left to train
        if _keeps_best(self.options):
            if self.folder is not None:
                _restore_trained(model, self.folder / "best.safetensors")
            elif self.best_weights is not None:
                model.set_weights(self.best_weights)
        self._count_time()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.elapsed += now - self.counted
        self.counted = now

    def _is_better(self, value: float) -> bool:
        best = self.progress.best_value
        if best is None or math.isnan(best):
            return True
        return value < best if smaller_is_better(self.metric) else value > best

    def _keep_best(self) -> None:
        if not _keeps_best(self.options):
            return
        if self.folder is None:
            self.best_weights = self.model.get_weights()
        else:
            trained = {v.path: v.numpy() for v in self.model.trainable_weights}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_checked(self.folder / "best.safetensors", trained, {})


class ValidationPass(keras.callbacks.Callback):
    """Measures the validation split after an epoch: its figures go into the epoch's own.

    One pass gives figures and outputs. Keras' own validation gives figures alone, and the outputs
    would cost a second one. The headline of the task's score is among the figures, too.
    """

    def __init__(
        self, evaluator: Evaluator, watchers: Sequence[Watcher], keeper: _Keeper | None = None
    ) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.task = evaluator.task
        self.gold = evaluator.gold
        self.watchers = watchers
        self.between = None if keeper is None else keeper.between_validation_batches

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        figures, outputs = self.evaluator.validate(between=self.between)
        # of a model that has diverged there is nothing to say
        is_scored = math.isfinite(figures["loss"]) and not self.task.generates
        score = self.task.score(outputs, self.gold) if is_scored else {}
        if logs is not None:  # the dictionary that every callback after this one is given
            logs.update({f"val_{name}": value for name, value in figures.items()})
            for name in self.task.headline:
                if score.get(name) is not None:
                    logs.setdefault(f"val_{name}", score[name])
        for watcher in self.watchers:
            watcher.on_validation(epoch, outputs, score)


class _Saver(keras.callbacks.Callback):
    """Comes last, so that a checkpoint is of a moment that all callbacks have seen."""

    def __init__(self, keeper: _Keeper) -> None:
        super().__init__()
        self.keeper = keeper

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.keeper.after_batch()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.keeper.after_epoch(logs or {})


def rows_that_occur(
    model: keras.Model, task: Task, train: EncodedSplit, options: TrainOptions
) -> dict[str, np.ndarray]:
    """Rows of the token embedding that training meets, for `AdamW`; {} if all may be met.

    A file that is read in part counts as a whole.
    """
    layers = {layer.name: layer for layer in (model, *model.layers)}
    encoder = layers.get("encoder")
    if task.meets_any_token or options.precision == "float16" or encoder is None:
        return {}
    embeddings = encoder.get_layer("token_embedding").embeddings
    if not embeddings.trainable:
        return {}
    occurs = np.zeros(embeddings.shape[0], bool)
    occurs[list(task.tokenizer.special_token_ids)] = True
    for segment in train.segments:
        for ids in segment.chunks(MANY_IDS):
            occurs[ids] = True
    if occurs.mean() > MOST_ROWS:
        return {}
    return {embeddings.path: np.flatnonzero(occurs)}


def _compile(
    model: keras.Model,
    task: Task,
    options: TrainOptions,
    *,
    total_steps: int,
    rows: dict[str, np.ndarray],
) -> None:
    with scope_of(options):
        optimizer = new_optimizer(options, total_steps=total_steps, rows=rows)
        # before the step is traced: variables that are made in it have it traced twice, and keep it
        optimizer.build(model.trainable_variables)
    compute_in_parts(model, parts_of(options))
    model.compile(
        optimizer, loss=task.loss(), jit_compile=options.compile == "xla", **task.metrics()
    )


def _keeps_best(options: TrainOptions) -> bool:
    """Whether a run ends with the weights of its best epoch, not of its last."""
    return bool(options.best_metric or options.patience)


def check_best_metric(task: Task, validation: EncodedSplit | None, options: TrainOptions) -> None:
    """InputError if the best epoch cannot be told: no validation split, or no such metric."""
    if not _keeps_best(options):
        return
    option = "train.best_metric" if options.best_metric else "train.patience"
    if validation is None:
        raise InputError(f"{option} needs a validation split: data.validation or a fraction.")
    metrics = epoch_names(task)
    wanted = (options.best_metric or "loss").removeprefix("val_")
    if wanted not in ("loss", *metrics):
        raise InputError(
            f"train.best_metric: there is no metric {wanted!r}; there are loss, "
            f"{', '.join(metrics)}."
        )


def _build_state(
    model: keras.Model, train: EncodedSplit, task: Task, options: TrainOptions
) -> None:
    """Create the variables of optimizer and metrics, so that they can be restored."""
    model.optimizer.build(model.trainable_variables)
    batches = training_batches(
        train, task, batch_size=options.batch_size, seed=options.seed, epoch=0
    )
    model.test_on_batch(*next(iter(batches)))


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """All that training changes, by a name: trained weights, random seeds, metrics, optimizer."""
    found = {}
    groups = {
        "model": [*model.weights, *model.variables],
        "metrics": model.metrics_variables,
        "optimizer": model.optimizer.variables,
    }
    frozen = set(map(id, model.non_trainable_weights))
    seen: set[int] = set()
    for group, variables in groups.items():
        unique = [v for v in variables if not (id(v) in seen or seen.add(id(v)))]
        for index, variable in enumerate(unique):
            if id(variable) not in frozen:
                found[f"{group}/{index}/{variable.path}"] = variable
    return found


def _digest(variables: Sequence[keras.Variable]) -> str:
    """SHA-256 of the paths and values; "" of none."""
    if not variables:
        return ""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(variable.path.encode())
        digest.update(np.ascontiguousarray(variable.numpy()))
    return digest.hexdigest()


def _restore_trained(model: keras.Model, path: Path) -> None:
    tensors, _ = read_checked(path)
    for variable in model.trainable_weights:
        variable.assign(tensors[variable.path])


def _restore_variables(model: keras.Model, path: Path, *, frozen: str) -> None:
    """Restore what `_variables` finds.

    Args:
        model: Compiled, with its optimizer built.
        path: The checkpoint.
        frozen: Digest of the model's weights that are not trained.
    """
    tensors, metadata = read_checked(path)
    variables = _variables(model)
    if odd := sorted(set(variables) ^ set(tensors)):
        raise InputError(f"{path}: the checkpoint is of another model (variable {odd[0]}).")
    if metadata[FROZEN] != frozen:
        raise InputError(
            f"{path}: the weights that stay as they are were others when the run began; bring the "
            "old model.checkpoint back, or name a new folder by --output."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])
