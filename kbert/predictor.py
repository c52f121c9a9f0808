"""Answers of a trained model in Python: the served signature, and rows in and out of it.

A SavedModel needs TensorFlow and TF Text alone: neither the checkpoint nor the run is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.certificate import PLACE, find_saved_model, read_certificate
from kbert.errors import InputError
from kbert.fresh_process import decoded

if TYPE_CHECKING:
    import tensorflow as tf

    from kbert.finished_run import FinishedRun
    from kbert.tasks.task import Task

BATCH_SIZE = 32
SIGNATURE = "serving_default"
DAMAGED = (OSError, ValueError, TypeError, LookupError, AttributeError)
"""What TensorFlow raises, besides its own errors, at a graph whose parts do not go together."""
FILLING = {"S": b"", "i": -1, "f": 0.0}
"""What fills a row up to the longest of its batch, by the kind of the values."""

Row = str | Sequence[str] | Mapping[str, str]


class Predictor:
    """Answers texts as a server of the same model does; `load` makes it.

    Args:
        function: Tensors of strings (batch,) by input -> outputs (batch, ...) by name.
        inputs: Names of the inputs, in the order of a row.
        open_outputs: Outputs whose second size is that of the batch's longest row.
        source: What answers: the folder of a SavedModel or of a run.
        run: The finished run, if that is what was named.
        task: The run's task, where it is there already.
    """

    def __init__(
        self,
        function: Callable[[dict[str, tf.Tensor]], Mapping[str, tf.Tensor]],
        *,
        inputs: tuple[str, ...],
        open_outputs: frozenset[str],
        source: Path,
        run: FinishedRun | None = None,
        task: Task | None = None,
    ) -> None:
        self._function = function
        self.inputs = inputs
        self.open_outputs = open_outputs
        self.source = source
        self.run = run
        self._task = task

    @property
    def task(self) -> Task | None:
        """The task of the run; None where a SavedModel was named.

        Raises:
            InputError: the run's checkpoint or vocabulary is gone.
        """
        if self._task is None and self.run is not None:
            self._task = self.run.experiment_without_data().task
        return self._task

    def predict(
        self,
        texts: Sequence[Row] | Mapping[str, Sequence[str]],
        *,
        batch_size: int = BATCH_SIZE,
    ) -> list[dict[str, Any]]:
        """Answer any number of rows.

        Args:
            texts: Strings; where the model has several inputs, tuples in their order or
                dictionaries by their names, or one dictionary of lists by their names.
            batch_size: Rows that are computed at once.

        Returns:
            The outputs of each row by name, in the order of the rows: strings, numbers and lists
            of them. What fills a row up to the longest of its batch is left off.

        Raises:
            InputError: a row that is not as the model takes it.
        """
        columns = self.columns(texts)
        answers: list[dict[str, Any]] = [{}] * len(columns[self.inputs[0]])
        for places, outputs in self.batches(columns, batch_size=batch_size):
            for place, row in zip(places, self.rows(outputs), strict=True):
                answers[place] = row
        return answers

    def columns(self, texts: Sequence[Row] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Rows as `predict` takes them, as one list of strings for each input.

        Raises:
            InputError: a row that is not as the model takes it.
        """
        if isinstance(texts, str | bytes):
            raise InputError("the texts are one string; give a list of them: predict([text]).")
        if isinstance(texts, Mapping):
            self._require_names(texts, "the texts")
            columns = {name: list(texts[name]) for name in self.inputs}
        else:
            rows = [self._in_order(row, number) for number, row in enumerate(texts, start=1)]
            columns = {name: [row[i] for row in rows] for i, name in enumerate(self.inputs)}
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise InputError(f"the texts have columns of different lengths ({listed}).")
        for name, column in columns.items():
            for number, text in enumerate(column, start=1):
                _require_text(text, f"row {number}, {name}")
        return columns

    def check_request(self, columns: Mapping[str, Sequence[str]]) -> tuple[int, str] | None:
        """The first row that nothing can be answered to, and why; None where there is none.

        What a SavedModel cannot answer is not known without its run: then it is None.

        Args:
            columns: One list of strings for each input, as `columns` gives them.
        """
        return None if self.task is None else self.task.check_request(columns)

    def batches(
        self, columns: Mapping[str, Sequence[str]], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """What the signature gives, batch by batch, the longest rows first.

        Rows of like length go together, so that little is padded.

        Args:
            columns: One string a row for each input.
            batch_size: Rows a batch.

        Yields:
            Places of the rows, int (batch,), and the outputs, each (batch, ...), strings as bytes.

        Raises:
            InputError: the model gives something else than one answer a row.
        """
        import tensorflow as tf

        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}.")
        lengths = np.sum([[len(text) for text in columns[name]] for name in self.inputs], axis=0)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            given = {
                name: tf.constant([columns[name][place] for place in places], tf.string)
                for name in self.inputs
            }
            found = self._function(given)
            outputs = {name: found[name].numpy() for name in sorted(found)}  # theirs varies
            for name, values in outputs.items():
                if values.shape[:1] != (len(places),):
                    raise InputError(f"{self.source}: its output {name!r} is not one a row.")
            yield places, outputs

    def answer_columns(
        self, texts: Mapping[str, Sequence[str]], *, batch_size: int = BATCH_SIZE
    ) -> dict[str, list]:
        """Answers as columns of a file: those of the run's task, or the outputs as they are.

        Args:
            texts: One string a row for each input.
            batch_size: Rows that are computed at once.
        """
        columns: dict[str, list] = {}
        total = len(texts[self.inputs[0]])
        for places, outputs in self.batches(texts, batch_size=batch_size):
            for name, values in self._columns(outputs).items():
                column = columns.setdefault(name, [None] * total)
                for place, value in zip(places, values, strict=True):
                    column[place] = value
        return columns

    def _columns(self, outputs: Mapping[str, np.ndarray]) -> Mapping[str, list]:
        if self.task is not None:
            return self.task.answer_columns({key: decoded(of) for key, of in outputs.items()})
        rows = self.rows(outputs)
        return {name: [row[name] for row in rows] for name in outputs}

    def rows(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """The outputs of a batch as plain Python values, a dictionary for each row."""
        lengths = self._lengths(outputs)
        columns = {name: _plain(values) for name, values in outputs.items()}
        for name in self.open_outputs:
            cut = zip(columns[name], lengths, strict=True)
            columns[name] = [row[:length] for row, length in cut]
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _lengths(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """How many values of each row of the open outputs are no filling, int (batch,)."""
        rows = len(next(iter(outputs.values())))
        lengths = np.zeros(rows, np.int64)
        for name in self.open_outputs:
            values = outputs[name]
            kind = "S" if values.dtype == object else values.dtype.kind
            filled = values != FILLING.get(kind, 0)
            filled = filled.reshape(*values.shape[:2], -1).any(axis=-1)  # (batch, length)
            last = filled.shape[1] - np.argmax(filled[:, ::-1], axis=1) if filled.size else 0
            lengths = np.maximum(lengths, np.where(filled.any(axis=1), last, 0))
        return lengths

    def _in_order(self, row: Row, number: int) -> Sequence[Any]:
        """The texts of a row in the order of the inputs."""
        if isinstance(row, Mapping):
            self._require_names(row, f"row {number}")
            return [row[name] for name in self.inputs]
        if isinstance(row, list | tuple) and len(self.inputs) > 1:
            if len(row) != len(self.inputs):
                raise InputError(
                    f"row {number} has {len(row)} texts, the model takes {len(self.inputs)}: "
                    f"{', '.join(self.inputs)}."
                )
            return row
        if len(self.inputs) > 1:
            raise InputError(
                f"row {number} is {_shorten(row)}, the model takes {len(self.inputs)} texts: give "
                f"({', '.join(self.inputs)})."
            )
        return [row]

    def _require_names(self, names: Mapping[str, Any], what: str) -> None:
        if set(names) != set(self.inputs):
            listed = ", ".join(map(str, names)) or "nothing"
            raise InputError(f"{what}: the model takes {', '.join(self.inputs)}, not {listed}.")


def load(path: str | os.PathLike[str]) -> Predictor:
    """What answers as a server of the model does.

    Of a run that has an export, the export answers; of one without, its weights, for which its
    checkpoint must be there, but not its data.

    Args:
        path: Folder of a finished run, of a SavedModel, or of the versions of one.

    Returns:
        Its `predict` takes a list of texts.

    Raises:
        InputError: there is neither.
    """
    folder = Path(path)
    run = None
    if (folder / "config.yaml").exists():
        from kbert.finished_run import open_run

        run = open_run(folder)
        if not any((folder / "export").glob("*/*/saved_model.pb")):
            return _of_weights(run)
    elif not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; name a run or a SavedModel.")
    return _of_saved_model(find_saved_model(folder), run)


def _of_saved_model(folder: Path, run: FinishedRun | None) -> Predictor:
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers its ops)

    from kbert.foreign_graphs import refuse_acting_graph

    refuse_acting_graph(folder)
    try:
        loaded: Any = tf.saved_model.load(str(folder))
    except (tf.errors.OpError, *DAMAGED) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{folder}: it does not load: {problem}") from None
    if SIGNATURE not in loaded.signatures:
        raise InputError(f"{folder}: it has no signature {SIGNATURE}; name another SavedModel.")
    signature = loaded.signatures[SIGNATURE]
    specs = signature.structured_input_signature[1]
    if others := [name for name, spec in specs.items() if spec.dtype != tf.string]:
        raise InputError(f"{folder}: its input {others[0]!r} is no text.")

    def answer(texts: dict[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        assert loaded is not None  # it holds the variables: a signature alone does not
        return signature(**texts)

    return Predictor(
        answer,
        inputs=_input_order(folder, specs),
        open_outputs=_open_outputs(signature),
        source=folder,
        run=run,
    )


def _of_weights(run: FinishedRun) -> Predictor:
    import tensorflow as tf

    experiment = run.experiment_without_data()
    model = run.model(experiment)
    signature = experiment.task.signatures(model)[SIGNATURE]
    specs = [tf.TensorSpec([None], tf.string, name=name) for name in signature.inputs]
    function: Any = tf.function(signature.function, input_signature=specs)

    def answer(texts: dict[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        return function(*(texts[name] for name in signature.inputs))

    return Predictor(
        answer,
        inputs=signature.inputs,
        open_outputs=_open_outputs(function.get_concrete_function()),
        source=run.folder,
        run=run,
        task=experiment.task,
    )


def _input_order(folder: Path, names: Mapping[str, Any]) -> tuple[str, ...]:
    """The inputs as the certificate has them; by name where there is none."""
    if (folder / PLACE).is_file():
        certified = tuple(read_certificate(folder / PLACE).inputs)
        if set(certified) == set(names):
            return certified
    return tuple(sorted(names))


def _open_outputs(concrete: Any) -> frozenset[str]:
    """Outputs whose second size depends on the batch."""
    shapes = {name: output.shape for name, output in concrete.structured_outputs.items()}
    return frozenset(
        name
        for name, shape in shapes.items()
        if shape.rank is not None and shape.rank > 1 and shape[1] is None
    )


def _plain(values: np.ndarray) -> list[Any]:
    """An array as lists of Python values, strings as `str`."""
    return decoded(values).tolist()


def _require_text(text: Any, place: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"{place}: must be a string, is {_shorten(text)}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{place}: half of a surrogate pair in {_shorten(text)}.") from None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
