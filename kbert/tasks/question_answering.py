"""Questions about texts: the part of the text that answers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kbert.answer_scores import answer_figures
from kbert.answer_spans import (
    CANDIDATES,
    NOWHERE,
    answer_pieces,
    best_answers,
    continuations,
    span_candidates,
    window_labels,
)
from kbert.calibration import softmax
from kbert.config import Config, EncoderConfig, QuestionAnsweringOptions
from kbert.data import Columns
from kbert.errors import InputError
from kbert.heads import question_answering
from kbert.losses import SpanLoss
from kbert.preprocessing import BertWindowPacker, WordPieceTokenizer
from kbert.tasks.inputs import MOST_WINDOWS
from kbert.tasks.task import Gold, Learned, Reference, Rows, Signature, Table, Task

INPUTS = ("question", "context")
OUTPUTS = ("answer", "score", "start", "end")
# what the answers are made from, beside the encoder's inputs: the shape of a window or row
PLACES = {
    "rows": (),
    "starts": (),
    "piece_starts": (None,),
    "piece_ends": (None,),
    "characters": (None,),
}


class QuestionAnswering(Task):
    """The span of a context that answers a question: states -> dense -> start and end.

    As HuggingFace's BertForQuestionAnswering, with the answers of its pipeline. A context that is
    too long is read in windows, which share `data.stride` word pieces, by default a third of
    `data.max_length`; where a window lacks some of the answer, [CLS] is what it is to find.
    """

    generates = True
    default_metric = "val_accuracy"
    headline = ("f1", "exact_match")

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """Questions and contexts, answers, and where they start.

        Raises:
            InputError: data.text_column does not name two columns.
        """
        options, texts = config.task, tuple(config.data.text_columns)
        if len(texts) != 2:
            raise InputError(
                "--data.text_column: must name the column of questions and that of contexts, such "
                f"as [question, context], is {list(texts)}."
            )
        start = () if options.start_column is None else (options.start_column,)
        targets = (options.answer_column, *start)
        check = functools.partial(bad_row, names=(texts[1], *targets))
        return Columns(texts, targets=targets, blank=start, check=check)

    def __init__(self, config: Config, tokenizer: WordPieceTokenizer, learned: Learned) -> None:
        del learned
        self.options: QuestionAnsweringOptions = config.task
        self.tokenizer = tokenizer
        self.max_length = config.data.max_length
        self.stride = config.data.stride
        if self.stride is None:
            self.stride = min(self.max_length // 3, self.max_length - 4)
        self.encoding_key = [INPUTS, self.options.start_column is None, tokenizer.get_config()]
        self.packer = BertWindowPacker(
            max_length=self.max_length,
            stride=self.stride,
            max_windows=MOST_WINDOWS,
            name="packer",
            **tokenizer.packing_ids,
        )

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings to ids: questions, contexts."""
        return [self.tokenizer(text) for text in texts]

    def encode_targets(
        self, texts: list[tf.Tensor], targets: list[tf.Tensor]
    ) -> list[tf.RaggedTensor]:
        """First and last piece of the answers; the `PLACES` that are of contexts."""
        _, starts, ends = self.tokenizer.tokenize_with_offsets(texts[1])
        answers = tf.numpy_function(answer_characters, [texts[1], *targets], tf.int32)
        spans = answer_pieces(starts, ends, tf.ensure_shape(answers, [None, 2]))
        characters = tf.strings.unicode_decode(texts[1], "UTF-8")
        return [tf.RaggedTensor.from_tensor(spans), starts, ends, characters]

    def batch(
        self, rows: Rows, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Windows and `PLACES`, positions of the answer (windows, 2), weights of 1."""
        del seed
        spans, *places = rows.targets
        inputs = self._inputs(rows.segments, places)
        targets = window_labels(tf.reshape(spans.values, [-1, 2]), inputs)
        return inputs, targets, tf.ones_like(targets[:, 0], tf.float32)

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """Encoder and head, to logits float32 (windows, 2, length); `PLACES` pass by it."""
        del dtype
        encoder.get_layer("pooler").trainable = False  # nothing that is learnt goes through it
        head = question_answering(encoder, config)
        places = {
            name: keras.Input(shape, dtype="int32", name=name) for name, shape in PLACES.items()
        }
        return keras.Model({**head.input, **places}, head.output, name=head.name)

    def loss(self) -> keras.losses.Loss:
        """Cross-entropy of the start and of the end, their mean over windows."""
        return SpanLoss()

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Accuracy of starts and ends, over windows; [CLS] is right where there is no answer."""
        return {"metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}

    def outputs(
        self, predicted: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Nothing: `generate` makes the answers."""
        del predicted, targets, weights
        return {}

    def generate(self, model: keras.Model, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """answer, score, start and end, each (batch,), as they are served."""
        candidates = span_candidates(
            model(inputs, training=False),
            inputs,
            is_continuation=continuations(self.tokenizer.vocabulary),
            max_answer_length=self.options.max_answer_length,
        )
        return best_answers(inputs, candidates)

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """exact_match and f1, as SQuAD's script has them, and how many rows there are."""
        column = self.options.answer_column
        expected = gold.read([column])[column]
        return {**answer_figures(_decoded(outputs["answer"]), expected), "rows": len(expected)}

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """One of all figures."""
        return [Table("answers", tuple(metrics), [tuple(metrics.values())])]

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """The right answer, what was answered, its score and its characters."""
        column = self.options.answer_column
        return {
            "label": gold.read([column])[column],
            "prediction": _decoded(outputs["answer"]),
            "score": [f"{score:.9g}" for score in outputs["score"]],
            **{name: [str(place) for place in outputs[name]] for name in ("start", "end")},
        }

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """serving_default: question and context to answer, score, start and end."""

        @tf.function  # so that both signatures share one graph of it
        def prepare(question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
            ids, starts, ends = self.tokenizer.tokenize_with_offsets(context)
            characters = tf.strings.unicode_decode(context, "UTF-8")
            return self._inputs([self.tokenizer(question), ids], [starts, ends, characters])

        def serve(question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.generate(model, prepare(question, context))

        def preprocess(question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
            names = ("token_ids", "segment_ids", "padding_mask", "rows")
            prepared = prepare(question, context)
            return {name: prepared[name] for name in names}

        return {
            "serving_default": Signature(INPUTS, serve),
            "preprocess": Signature(INPUTS, preprocess),
        }

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """The answer, its score and its characters."""
        return {
            "prediction" if name == "answer" else name: answers[name].tolist() for name in OUTPUTS
        }

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Questions and contexts."""
        return {name: list(texts) for name, texts in zip(INPUTS, columns, strict=True)}

    def reference(self) -> Reference:
        """BertForQuestionAnswering, its logits read as its pipeline reads them."""

        def answers(rows: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
            found = [self._answer_of(windows) for windows in rows]
            types = (object, np.float64, np.int32, np.int32)
            return {
                name: np.array([row[name] for row in found], of)
                for name, of in zip(OUTPUTS, types, strict=True)
            }

        return Reference(
            "BertForQuestionAnswering",
            answers,
            truncation="only_second",
            stride=self.stride,
            max_windows=MOST_WINDOWS,
        )

    def _inputs(
        self, segments: list[tf.RaggedTensor], places: list[tf.RaggedTensor]
    ) -> dict[str, tf.Tensor]:
        """The model's inputs, of ids and of the pieces' starts and ends and the characters."""
        names = ("piece_starts", "piece_ends", "characters")
        padded = {name: of.to_tensor() for name, of in zip(names, places, strict=True)}
        return self.packer(segments) | padded

    def _answer_of(self, windows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        """What the pipeline makes of the logits for the windows of a row, in float64."""
        is_continuation = continuations(self.tokenizer.vocabulary)
        sums: dict[str, dict[str, Any]] = {}
        for window in windows:
            text = window["texts"][1]
            for start, end, score in _spans(
                window, is_continuation, self.options.max_answer_length
            ):
                answer = {"answer": text[start:end], "score": 0.0, "start": start, "end": end}
                sums.setdefault(text[start:end].lower(), answer)["score"] += score
        nothing = {"answer": "", "score": 0.0, "start": NOWHERE, "end": NOWHERE}
        return max(sums.values(), key=lambda answer: answer["score"], default=nothing)


def _spans(
    window: dict[str, np.ndarray], is_continuation: np.ndarray, max_length: int
) -> Iterator[tuple[int, int, float]]:
    """Characters and scores of a window's best spans, grown to whole words, best first."""
    context = np.flatnonzero(window["token_type_ids"])[:-1]  # without [SEP]
    possible = np.concatenate([[0], context])
    starts, ends = (
        softmax(window[name][possible].astype(np.float64))[1:]
        for name in ("start_logits", "end_logits")
    )
    is_span = np.tril(np.triu(np.ones((len(context), len(context)), bool)), max_length - 1)
    scores = np.where(is_span, np.outer(starts, ends), -1.0)
    best = np.argsort(-scores, axis=None, kind="stable")[: min(CANDIDATES, is_span.sum())]
    continues = is_continuation[window["input_ids"][context]]
    offsets = window["offset_mapping"][context]
    for first, last in zip(*np.unravel_index(best, scores.shape), strict=True):
        score = scores[first, last]
        while first > 0 and continues[first]:
            first -= 1
        while last + 1 < len(context) and continues[last + 1]:
            last += 1
        yield int(offsets[first, 0]), int(offsets[last, 1]), float(score)


def bad_row(
    columns: Mapping[str, Sequence[str]], *, names: Sequence[str]
) -> tuple[int, str] | None:
    """The first row whose answer does not stand where it should, and what is wrong with it.

    Args:
        columns: Some rows, by column.
        names: Columns of contexts and of answers, and that of starts if there is one.
    """
    found = (columns[name] for name in names)
    for row, (context, answer, *given) in enumerate(zip(*found, strict=True)):
        start = given[0].strip() if given else ""
        if start and not start.isdecimal():
            return row, f"column {names[2]!r}: must be a whole number, is {start!r}; correct it."
        if answer not in context:
            return row, f"the answer {_shown(answer)} does not stand in its context; correct it."
        if answer_start(context, answer, start) is None:
            there = context[int(start) :][: len(answer)]
            return row, (
                f"the answer {_shown(answer)} does not stand at character {start} of its context, "
                f"where {_shown(there)} does; correct column {names[2]!r}, or leave it empty."
            )
    return None


def answer_start(context: str, answer: str, start: str = "") -> int | None:
    """Where an answer starts: at the start that is given, or first; None if it does not."""
    if not start:
        found = context.find(answer)
        return None if found < 0 else found
    return int(start) if context.startswith(answer, int(start)) else None


def answer_characters(
    contexts: Sequence[bytes], answers: Sequence[bytes], starts: Sequence[bytes] | None = None
) -> np.ndarray:
    """First character of each answer and the one after its last, int32 (rows, 2)."""
    given = [b""] * len(contexts) if starts is None else starts
    rows = []
    for context, answer, start in zip(contexts, answers, given, strict=True):
        text = answer.decode()
        first = answer_start(context.decode(), text, start.decode().strip())
        assert first is not None, "bad_row refuses it"
        rows.append((first, first + len(text)))
    return np.array(rows, np.int32).reshape(-1, 2)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _decoded(texts: np.ndarray) -> list[str]:
    return [text.decode() for text in texts]
