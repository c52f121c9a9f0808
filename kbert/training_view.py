"""How a training stands, for TensorBoard: watchers that look, and `kbert.monitor` that writes."""

from __future__ import annotations

import contextlib
import functools
import html
import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert import monitor
from kbert.attribution import attentions
from kbert.batches import EncodedSplit, epoch_sizes, evaluation_batches, evaluation_order
from kbert.calibration import reliability
from kbert.config import as_yaml
from kbert.errors import NO_ROOM
from kbert.evaluation import epoch_names, losses_by_output, metric_names
from kbert.evaluation_plots import plot_attention, plot_confusion, plot_reliability
from kbert.experiment import Experiment
from kbert.metrics import classification_figures
from kbert.plots import png
from kbert.tasks.task import Task
from kbert.text_files import read_rows
from kbert.training import Watcher
from kbert.whole_files import sync
from kbert.window_pooling import WindowPooling

logger = logging.getLogger(__name__)

PROJECTED_ROWS = 250  # of the validation split, whose vectors are shown: two more forward passes
READ_ROWS = 5000  # of the validation split, among which those with the worst losses are shown
BATCH_SIZE = 32  # of their vectors
WORST_ROWS = 20  # texts of a table
MOST_CLASSES = 20  # with curves of their own
LONGEST_TEXT = 300  # letters of a text in a table
DRAWN_TEXTS = 1  # whose attention is drawn where none is named: half a second a text
DRAWN_LETTERS = 80  # of each: a heat map of more is not read
MARKDOWN = str.maketrans({mark: f"&#{ord(mark)};" for mark in "\\`*_{}[]()#+-.!|~$\n\r\t"})


class Sample:
    """Some rows of the validation split, and their texts, which are read once.

    Args:
        split: The validation split.
        rows: How many rows at most.
    """

    def __init__(self, split: EncodedSplit, *, rows: int) -> None:
        order = np.random.default_rng(0).permutation(len(split))
        self.positions = np.sort(order[:rows])
        """The same in every run on the same split."""
        self.split = split.take(self.positions)

    @functools.cached_property
    def texts(self) -> list[tuple[str, ...]]:
        """The text columns of each row."""
        source = self.split.source
        if source is None:
            return [()] * len(self.split)
        columns = read_rows(source, self.split.rows, source.text_columns)
        return list(zip(*(columns[name] for name in source.text_columns), strict=True))

    @property
    def shown(self) -> list[str]:
        """One text a row, columns divided by a bar, cut where they are long."""
        joined = (" | ".join(columns) for columns in self.texts)
        return [one if len(one) <= LONGEST_TEXT else f"{one[:LONGEST_TEXT]} …" for one in joined]


class RunFiles:
    """The events of one training: a file for each of the two runs that TensorBoard shows.

    TensorBoard's reader in Python leaves a file when there is a later one in its folder, so all
    that is written as training goes on goes into these two.

    Args:
        folder: Where TensorBoard looks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train = monitor.EventFile(folder / "train")
        self.validation = monitor.EventFile(folder / "validation")

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of this process and those before, by its name in the folder.

        They are on the disk then, and outlive a power cut as a checkpoint does that tells of them.
        """
        files = [*self.train.files(), *self.validation.files()]
        for path in (*files, *{path.parent for path in files}):
            sync(path)
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in files}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Drop what was written after `sizes` was asked, in a process that was killed since."""
        for path in [*self.train.files(), *self.validation.files()]:
            size = sizes.get(str(path.relative_to(self.folder)))
            if size is None:
                path.unlink()
            elif size < path.stat().st_size:
                os.truncate(path, size)


class Curves(Watcher):
    """Scalars of training and validation, the options as text.

    Training goes to FOLDER/train and validation to FOLDER/validation under the same tags, so
    that both stand in one chart: by step `loss` and the task's metrics over the last steps, and
    at the end of each epoch those of validation; by epoch `epoch_loss` and so on. By step, too,
    learning_rate, gradient_norm (before clipping), examples and tokens a second, and the share of
    padding among the positions of the batches; and for validation `score/NAME`, all numbers of
    the task's score.

    Args:
        experiment: What is trained.
        files: Where the events go.
    """

    def __init__(self, experiment: Experiment, files: RunFiles) -> None:
        super().__init__()
        self.experiment = experiment
        self.every_steps = experiment.config.monitor.every_steps
        self.files = files
        self.train = files.train
        self.validation = files.validation
        self.before: list[np.ndarray] = []
        self.restored: list[Any] | None = None
        self.sizes = np.zeros((0, 3), np.int64)
        self.first = 0
        self.began = 0.0
        self.seconds = 0.0
        self.timed: list[int] = []
        self.is_traced = False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if step_of(self.model) == 0:
            options = f"```yaml\n{as_yaml(self.experiment.config)}\n```"
            self.train.write([monitor.text("options", options)], step=0)
        train = self.experiment.config.train
        self.sizes = epoch_sizes(
            self.experiment.splits["train"], self.experiment.task,
            batch_size=train.batch_size, seed=train.seed, epoch=epoch,
        )  # fmt: skip
        self.first = len(self.sizes) - self.params["steps"]  # of an epoch that goes on
        # a point is of the steps since the last one, whichever process did them
        self.before = self._sums()
        if self.restored is not None and self.first:
            # fewer where they are of before the very first step: metrics had no variables yet
            has_all = len(self.restored) == len(self.before)
            pairs = zip(self.restored, self.before, strict=True) if has_all else ()
            self.before = [np.array(old, now.dtype) for old, now in pairs]
        self.restored = None

    def state(self) -> dict[str, Any]:
        return {"files": self.files.sizes(), "sums": [sums.tolist() for sums in self.before]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.files.cut(state.get("files", {}))
        self.restored = state.get("sums")

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = step_of(self.model)
        if self.is_traced:  # the first step of a process is no measure of speed
            self.seconds += time.perf_counter() - self.began
            self.timed.append(self.first + batch)
        self.is_traced = True
        if step % self.every_steps == 0:
            figures = {**self._window(), **self._optimizer(), **self._speed()}
            self.train.write([monitor.scalar(*item) for item in figures.items()], step=step)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        trained, measured = {}, {}
        for name, value in (logs or {}).items():
            values = measured if name.startswith("val_") else trained
            values[name.removeprefix("val_")] = value
        for file, values in ((self.train, trained), (self.validation, measured)):
            scalars = [monitor.scalar(f"epoch_{name}", value) for name, value in values.items()]
            if scalars:
                file.write(scalars, step=epoch + 1)
        if measured:  # beside the training's points, on the axis of steps
            scalars = [monitor.scalar(*item) for item in measured.items()]
            self.validation.write(scalars, step=step_of(self.model))

    def on_validation(
        self, epoch: int, outputs: dict[str, np.ndarray], score: Mapping[str, Any]
    ) -> None:
        numbers = {name: of for name, of in score.items() if isinstance(of, int | float)}
        scalars = [monitor.scalar(f"score/{name}", float(of)) for name, of in numbers.items()]
        if scalars:
            self.validation.write(scalars, step=step_of(self.model))

    def _sums(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self.model.metrics_variables]

    def _window(self) -> dict[str, float]:
        """Metrics since the last point: they are of sums, so of the difference of the sums."""
        now = self._sums()
        if len(self.before) == len(now):  # else they are of before the very first step: 0
            self._assign([new - old for new, old in zip(now, self.before, strict=True)])
        values = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        self._assign(now)
        self.before = now
        return values

    def _assign(self, values: list[np.ndarray]) -> None:
        for variable, value in zip(self.model.metrics_variables, values, strict=True):
            variable.assign(value)

    def _optimizer(self) -> dict[str, float]:
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of float16's loss scaling
        return {
            "learning_rate": float(optimizer.learning_rate),
            "gradient_norm": float(optimizer.gradient_norm.numpy()),
        }

    def _speed(self) -> dict[str, float]:
        """Of the steps since the last point."""
        if not self.timed:
            return {}
        rows, tokens, positions = self.sizes[self.timed].sum(axis=0)
        seconds, self.seconds, self.timed = self.seconds, 0.0, []
        return {
            "examples_per_second": rows / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_share": 1 - tokens / positions,
        }


class ClassPictures(Watcher):
    """What validation says of each class after each epoch, for tasks that classify.

    F1 and precision-recall curve of each class (of the most frequent ones where there are many),
    confusion matrix and reliability as pictures, and the texts with the largest losses.

    Args:
        experiment: What is trained; it has a validation split.
        sample: Rows whose texts are shown.
        file: Where the events go.
    """

    def __init__(self, experiment: Experiment, sample: Sample, file: monitor.EventFile) -> None:
        super().__init__()
        self.labels = experiment.task.labels
        self.split = experiment.splits["validation"]
        self.file = file
        counts = np.bincount(self.split.labels, minlength=len(self.labels))
        self.shown = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
        self.sample = sample

    def on_validation(
        self, epoch: int, outputs: dict[str, np.ndarray], score: Mapping[str, Any]
    ) -> None:
        step = step_of(self.model)
        labels, probabilities = self.split.labels, outputs["probabilities"]
        figures = classification_figures(
            labels, outputs["label_index"], num_classes=len(self.labels)
        )
        calibration = reliability(labels, probabilities)
        values = [
            monitor.scalar(f"f1/{self.labels[index]}", figures.f1[index]) for index in self.shown
        ]
        values += [
            monitor.pr_curve(
                f"precision_recall/{self.labels[index]}",
                labels == index,
                probabilities[:, index],
                title=self.labels[index],
            )
            for index in self.shown
        ]
        confusion = plot_confusion(figures.confusion, self.labels)
        values.append(monitor.image("confusion_matrix", png(confusion)))
        reliable = plot_reliability(
            calibration.edges,
            calibration.confidence,
            calibration.accuracy,
            calibration.counts,
            ece=calibration.ece,
        )
        values.append(monitor.image("reliability", png(reliable)))
        values.append(monitor.text("worst_losses", self._worst(outputs)))
        self.file.write(values, step=step)

    def _worst(self, outputs: dict[str, np.ndarray]) -> str:
        """A table of texts in Markdown, the largest loss first."""
        positions = self.sample.positions
        gold = self.split.labels[positions]
        probabilities = outputs["probabilities"][positions]
        of_gold = probabilities[np.arange(len(gold)), gold]
        guesses = outputs["label_index"][positions]
        lines = [
            "| row | gold | predicted | p(gold) | p(predicted) | loss | text |",
            "|" + "---|" * 7,
        ]
        texts = self.sample.shown
        for place in np.argsort(of_gold, kind="stable")[:WORST_ROWS]:
            loss = -np.log(max(of_gold[place], 1e-30))
            cells = (
                str(self.split.rows[positions[place]] + 1),
                self.labels[gold[place]],
                self.labels[guesses[place]],
                f"{of_gold[place]:.4f}",
                f"{probabilities[place, guesses[place]]:.4f}",
                f"{loss:.3f}",
                texts[place],
            )
            lines.append("|" + "|".join(plain_markdown(cell) for cell in cells) + "|")
        return "\n".join(lines)


class ForwardPass:
    """A model's way from word pieces to logits, traced once; of a classifier with what it reads."""

    def __init__(self) -> None:
        self.function: tf.types.experimental.PolymorphicFunction | None = None

    def of(self, model: keras.Model) -> tf.types.experimental.ConcreteFunction:
        """Inputs of any batch and length to [logits], or to [logits, pooled vectors]."""
        if self.function is None:
            outputs = [model.output]
            if "classifier_dropout" in {layer.name for layer in model.layers}:
                vectors = model.get_layer("classifier_dropout").input
                if "rows" in model.input:  # of windows: a text's vector is their mean
                    pool = WindowPooling("mean", dtype="float32", name="mean_of_windows")
                    vectors = pool(vectors, model.input["rows"])
                outputs.append(vectors)
            both = keras.Model(model.input, outputs, name="model")
            self.function = tf.function(lambda inputs: both(inputs, training=False))
        specs = {
            name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
            for name, tensor in model.input.items()
        }
        return self.function.get_concrete_function(specs)


class ModelGraph(Watcher):
    """The graph of the forward pass.

    Args:
        forward: Makes it.
        folder: Of a run.
    """

    def __init__(self, forward: ForwardPass, folder: Path) -> None:
        super().__init__()
        self.forward = forward
        self.folder = folder

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if step_of(self.model) == 0:
            graph = self.forward.of(self.model).graph.as_graph_def(add_shapes=True)
            monitor.write_graph(self.folder, graph)


class Projection(Watcher):
    """The pooled vectors of validation texts before training and after.

    Args:
        task: What is trained; it classifies.
        sample: Rows of the validation split.
        forward: Gives the vectors.
        folder: Where TensorBoard looks.
    """

    def __init__(self, task: Task, sample: Sample, forward: ForwardPass, folder: Path) -> None:
        super().__init__()
        self.task = task
        self.sample = sample
        self.split = sample.split
        self.forward = forward
        self.folder = folder

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if step_of(self.model) == 0:
            self._write("vectors_start")

    def finish(self) -> None:
        """Show the vectors of the weights that training ended with."""
        self._write("vectors_trained")

    def _write(self, name: str) -> None:
        vectors, logits = self._vectors()
        labels = self.task.labels
        columns = {
            "label": [labels[index] for index in self.split.labels],
            "prediction": [labels[index] for index in logits.argmax(axis=1)],
            "text": self.sample.shown,
        }
        monitor.write_projector(self.folder, name, vectors, columns)

    def _vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, hidden) and (rows, classes), float32."""
        forward = self.forward.of(self.model)
        parts = [
            [tensor.numpy().astype(np.float32) for tensor in forward(**inputs)]
            for inputs, _, _ in evaluation_batches(self.split, self.task, batch_size=BATCH_SIZE)
        ]
        order = np.concatenate(evaluation_order(self.split, self.task, batch_size=BATCH_SIZE))
        logits, vectors = (np.concatenate(part) for part in zip(*parts, strict=True))
        places = np.argsort(order)
        return vectors[places], logits[places]


class Histograms(Watcher):
    """Weights, and the gradients of one batch of training rows, after each epoch.

    Args:
        experiment: What is trained.
        file: Where the events go.
    """

    def __init__(self, experiment: Experiment, file: monitor.EventFile) -> None:
        super().__init__()
        self.task = experiment.task
        rows = np.arange(min(experiment.config.train.batch_size, len(experiment.splits["train"])))
        split = experiment.splits["train"].take(rows)
        self.batches = evaluation_batches(split, self.task, batch_size=len(rows))
        self.file = file
        self.gradients = tf.function(self._gradients, reduce_retracing=True)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        variables = self.model.trainable_variables
        inputs, targets, weights = next(iter(self.batches))
        values = [monitor.histogram(f"weights/{v.path}", v.numpy()) for v in variables]
        for variable, gradient in zip(
            variables, self.gradients(inputs, targets, weights), strict=True
        ):
            if gradient is not None:
                values.append(monitor.histogram(f"gradients/{variable.path}", gradient.numpy()))
        self.file.write(values, step=step_of(self.model))

    def _gradients(self, inputs, targets, weights) -> list[tf.Tensor | None]:
        variables = [variable.value for variable in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            predicted = self.model(inputs, training=False)
            losses = losses_by_output(self.task.loss(), targets, predicted, weights)
            loss = tf.add_n(losses)
        found = tape.gradient(loss, variables)
        return [None if part is None else tf.convert_to_tensor(part) for part in found]


class Profile(Watcher):
    """TensorFlow's profile of some steps.

    Args:
        folder: Of a run.
        steps: The first and the last step, from 1.
    """

    def __init__(self, folder: Path, steps: tuple[int, int]) -> None:
        super().__init__()
        self.folder = folder
        self.first, self.last = steps
        self.is_on = False

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        # float16's loss scaling may repeat a step
        if not self.is_on and step_of(self.model) + 1 == self.first:
            monitor.start_profile(self.folder)
            self.is_on = True

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if step_of(self.model) >= self.last:
            self.close()

    def close(self) -> None:
        """Write what has been recorded."""
        if self.is_on:
            monitor.stop_profile()
            self.is_on = False


class Guarded(Watcher):
    """A watcher whose errors do not end the training: it is told of, and does no more.

    But for a full disk or a folder that may not be written, with which nothing can go on.

    Args:
        watcher: It.
    """

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher: Watcher | None = watcher

    @property
    def name(self) -> str:
        return super().name if self.watcher is None else self.watcher.name

    def state(self) -> dict[str, Any]:
        state = {}
        if self.watcher is not None:
            with told(self.name):
                state = self.watcher.state()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        self._do("restore", state)

    def set_params(self, params: dict) -> None:
        super().set_params(params)
        self._do("set_params", params)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._do("set_model", model)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._do("on_epoch_begin", epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._do("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._do("on_train_batch_end", batch, logs)

    def on_validation(
        self, epoch: int, outputs: dict[str, np.ndarray], score: Mapping[str, Any]
    ) -> None:
        self._do("on_validation", epoch, outputs, score)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._do("on_epoch_end", epoch, logs)

    def _do(self, name: str, *arguments: Any) -> None:
        if self.watcher is None:
            return
        with told(type(self.watcher).__name__) as failed:
            getattr(self.watcher, name)(*arguments)
        if failed:
            self.watcher = None


@contextlib.contextmanager
def told(what: str) -> Iterator[list[Exception]]:
    """An error inside becomes a warning, and the list has it, unless nothing can be written."""
    failed: list[Exception] = []
    try:
        yield failed
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        logger.debug("%s", traceback.format_exc())
        logger.warning(
            "TensorBoard goes without %s (%s: %s); --debug shows where",
            what,
            type(error).__name__,
            " ".join(str(error).split()),
        )
        failed.append(error)


class TrainingView:
    """All that TensorBoard shows of one training.

    Args:
        experiment: What is trained.
        folder: Where TensorBoard looks.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.files = RunFiles(folder)
        options = experiment.config.monitor
        forward = ForwardPass()
        validation = experiment.splits.get("validation")
        self.sample = None if validation is None else Sample(validation, rows=PROJECTED_ROWS)
        # the graph's file is whole before that of the curves begins
        watchers: list[Watcher] = [
            ModelGraph(forward, folder / "train"),
            Curves(experiment, self.files),
        ]
        self.projection: Projection | None = None
        self.profile: Profile | None = None
        if experiment.task.classifies and validation is not None and self.sample is not None:
            task = experiment.task.measured
            self.projection = Projection(task, self.sample, forward, folder)
            read = Sample(validation, rows=READ_ROWS)
            pictures = ClassPictures(experiment, read, self.files.validation)
            watchers += [pictures, self.projection]
        if options.histograms:
            watchers.append(Histograms(experiment, self.files.train))
        if options.profiled_steps is not None:
            self.profile = Profile(folder / "train", options.profiled_steps)
            watchers.append(self.profile)
        self.callbacks = [Guarded(watcher) for watcher in watchers]
        describe_charts(experiment.task, folder)

    def finish(self, model: keras.Model) -> None:
        """Show what the model has become: its vectors and its attention."""
        if self.projection is not None:
            with told("vectors after training"):
                self.projection.set_model(model)
                self.projection.finish()
        if "encoder" not in {layer.name for layer in model.layers}:
            return  # what was trained reads features
        with told("attention"):
            draw_attention(self.experiment, model, self._attention_texts(), self.files.validation)

    def close(self) -> None:
        """Leave nothing running."""
        if self.profile is not None:
            self.profile.close()

    def _attention_texts(self) -> list[tuple[str, ...]]:
        columns = len(self.experiment.config.data.text_columns)
        if chosen := self.experiment.config.monitor.attention_texts:
            given = [tuple(text.split("\t")) for text in chosen]
            return [(*parts, *[""] * columns)[:columns] for parts in given]
        if self.sample is None or self.sample.split.source is None:
            return []
        return [
            tuple(_beginning(text, DRAWN_LETTERS // columns) for text in texts)
            for texts in self.sample.texts[:DRAWN_TEXTS]
        ]


def describe_charts(task: Task, folder: Path) -> None:
    """The Custom Scalars tab: curves that belong together."""
    figures = ["loss", *metric_names(task)]
    groups = {
        "Fit": [(name, [monitor.exactly(name)]) for name in figures],
        "Epochs": [
            (name, [monitor.exactly(f"epoch_{name}")]) for name in ["loss", *epoch_names(task)]
        ],
        "Score": [("all figures of the validation split", ["score/"])],
        "Optimizer": [
            ("learning rate", [monitor.exactly("learning_rate")]),
            ("gradient norm before clipping", [monitor.exactly("gradient_norm")]),
        ],
        "Speed": [
            ("rows a second", [monitor.exactly("examples_per_second")]),
            ("tokens a second", [monitor.exactly("tokens_per_second")]),
            ("share of padding", [monitor.exactly("padding_share")]),
        ],
    }
    if task.classifies:
        groups["Classes"] = [("F1 of each class", ["f1/"])]
    monitor.describe_charts(folder, groups)


def draw_attention(
    experiment: Experiment,
    model: keras.Model,
    texts: Sequence[tuple[str, ...]],
    file: monitor.EventFile,
) -> None:
    """Heat maps of the chosen layers and heads, for some texts."""
    options = experiment.config.monitor
    for number, text in enumerate(texts):
        tokens, scores = attentions(model, experiment.task, text)
        values = []
        for layer in options.attention_layers or [len(scores) - 1]:
            figure = plot_attention(
                scores[layer],
                tokens,
                title=f"attention of layer {layer}",
                heads=options.attention_heads,
            )
            values.append(monitor.image(f"attention/layer_{layer}/text_{number}", png(figure)))
        file.write(values, step=step_of(model))


def _beginning(text: str, letters: int) -> str:
    """At most so many letters, up to the end of a word where there are spaces."""
    if len(text) <= letters:
        return text
    return text[: letters + 1].rsplit(" ", 1)[0][:letters]


def plain_markdown(text: str) -> str:
    """A text that Markdown shows as it is."""
    return html.escape(text, quote=False).translate(MARKDOWN)


def step_of(model: keras.Model) -> int:
    """Steps that the model was trained."""
    return int(model.optimizer.iterations.numpy())
