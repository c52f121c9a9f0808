"""The contract of a task: what a use of BERT brings, and the rest of kbert builds on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import keras
import numpy as np
import tensorflow as tf

from kbert.config import Config, EncoderConfig, ProblemType
from kbert.preprocessing import BertPacker, WordPieceTokenizer


@dataclass(frozen=True)
class Signature:
    """One signature of the exported model: strings in, answers out."""

    inputs: tuple[str, ...]
    """Names of the string inputs, each (batch,)."""
    function: Callable[..., dict[str, tf.Tensor]]
    """Takes the inputs in their order, gives the named outputs, each (batch, ...)."""
    ranked_by: Mapping[str, str] = field(default_factory=dict)
    """Output of strings or whole numbers -> float output whose largest values choose it: (..., n)
    for one chosen value (...), or the falling values of the same shape for n chosen ones. Where
    they tie within rounding, either value is right."""
    method: Literal["predict", "classify", "regress"] = "predict"
    """Which of TF Serving's calls it answers. Classify and Regress want one input, `inputs`, of
    serialised tf.train.Example, and the outputs `classes` and `scores`, or `outputs`."""


@dataclass(frozen=True)
class Reference:
    """HuggingFace's own model of the same use, which every export is compared with.

    It gets the weights as `kbert.huggingface` names them; the first input of the signature as
    the text, all further inputs joined by a space as its pair; truncation is longest_first.
    """

    architecture: str
    """transformers' class, such as BertForSequenceClassification."""
    answers: Callable[[list[dict[str, np.ndarray]]], dict[str, np.ndarray]]
    """What serving_default should give, some or all outputs by name, each (texts, ...), from what
    the model gives for each text: its outputs by HuggingFace's names, without the axis of the
    batch and unpadded (logits of BertForMaskedLM at the masks only), input_ids, token_type_ids."""
    problem_type: ProblemType | None = None
    """What the logits of BertForSequenceClassification mean; None for other architectures."""


@dataclass(frozen=True)
class Table:
    """A titled table of text and numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple]


class Task(Protocol):
    """A use of BERT.

    The way of a text: `encode` turns strings into word-piece ids (once; they are cached),
    `batch` packs ids into what the model takes, `build_model` puts a head on the encoder, and
    `outputs` turns what the model gives into answers. Evaluation and the served `signatures` go
    through the same `outputs`, so that what is measured is what is served.
    """

    labelled: ClassVar[bool]
    """Whether the data needs a label column."""
    tokenizer: WordPieceTokenizer
    """Strings to word-piece ids."""
    packer: BertPacker
    """Ids to the encoder's inputs."""
    labels: tuple[str, ...]
    """Names of the classes; () where there are none."""
    max_length: int
    """Longest input in word pieces."""
    encoding_key: Any
    """All that `encode` depends on, as JSON, for the key of the cache."""
    classifies: ClassVar[bool]
    """Whether each row is of one of the labels, and the outputs are label_index (rows,),
    probabilities and logits (rows, classes)."""
    temperature: float
    """Of a task that classifies: probabilities are of the logits divided by it, 1 until it is
    fitted."""
    is_calibrated: bool
    """Of a task that classifies: whether what is served has the temperature."""
    default_metric: ClassVar[str]
    """Validation metric that a search looks at, such as val_accuracy."""

    def __init__(
        self,
        config: Config,
        tokenizer: WordPieceTokenizer,
        labels: tuple[str, ...],
        label_counts: np.ndarray,
    ) -> None:
        """
        Args:
            config: Options of the run; the task's own in `config.task`.
            tokenizer: Strings to word-piece ids.
            labels: Class names of the training split.
            label_counts: Training rows of each class, int (classes,).
        """

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings, one tensor (batch,) a text column, to ids (batch, None), one a segment."""
        ...

    def batch(
        self, segments: list[tf.RaggedTensor], labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Any, tf.Tensor]:
        """Ids to the model's (inputs, targets, sample weights), inside tf.data.

        Args:
            segments: What `encode` gave for the rows.
            labels: Class index of each row, int32 (batch,); zeros where there are none.
            seed: int32 (2,), a pure function of (seed, epoch, step), for stateless randomness.
        """
        ...

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """The functional model: the encoder and the head, to logits in float32.

        Args:
            encoder: Functional encoder of `kbert.encoder`.
            config: Sizes and constants of the encoder.
            dtype: Keras' dtype policy of the head.
        """
        ...

    def loss(self) -> keras.losses.Loss:
        """A new loss between targets and what the model gives."""
        ...

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """New metrics as compile's arguments `metrics` (of all rows alike) or `weighted_metrics`.

        All their variables are sums over rows: the monitor takes differences of them.
        """
        ...

    def outputs(
        self, predicted: tf.Tensor, targets: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """What evaluation collects of a batch, one tensor (batch, ...) a name.

        Args:
            predicted: What the model gives, the logits.
            targets: As in `batch`.
            weights: As in `batch`.
        """
        ...

    def score(self, outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> dict[str, Any]:
        """Figures of a split from the outputs of all its rows, as metrics.json has them.

        Numbers, and lists and dictionaries of them; {} where there is nothing to compare with.
        """
        ...

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """What `score` found, with what was added to it, for the terminal."""
        ...

    def predictions(self, outputs: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Columns of predictions.csv; {} where a task writes none."""
        ...

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """What the exported model serves, by signature name.

        "serving_default" answers; "preprocess" takes the same inputs and gives the token_ids,
        segment_ids and padding_mask, int32 (batch, length), that they become on the way.
        """
        ...

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """What a client sends for rows of the data: inputs of "serving_default" by name.

        Args:
            columns: The text columns, each a text a row.
        """
        ...

    def reference(self) -> Reference | None:
        """HuggingFace's model to compare exports with; None where it has no such model."""
        ...
