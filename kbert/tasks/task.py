"""The contract of a task: what a use of BERT brings, and the rest of kbert builds on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from kbert.config import Config, EncoderConfig, ProblemType
from kbert.data import Columns
from kbert.preprocessing import WordPieceTokenizer

Truncation = Literal["longest_first", "only_second"]


@dataclass(frozen=True, eq=False)
class Learned:
    """What is known of the training rows before there is a model."""

    labels: tuple[str, ...] = ()
    """Sorted names of the labels; () where there are none, or they are numbers."""
    label_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Training rows of each label, int (labels,)."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sorted names in each of `Columns.named`."""
    vocabularies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What was learnt from the column of each of `Columns.vocabularies`."""
    vocabulary: tuple[str, ...] = ()
    """Of the texts, where the run learns it (model.vocab_size); () where it is given one."""
    number_range: tuple[float, float] | None = None
    """Smallest and largest number of the training rows; None where labels are no numbers."""


class Rows(NamedTuple):
    """The rows of a batch, as they come from the cache."""

    segments: list[tf.RaggedTensor]
    """What `Task.encode` gave for them, each int32 (batch, None)."""
    labels: tf.Tensor
    """Class index, int32 (batch,), or number, float32 (batch,); zeros where there are none."""
    targets: list[tf.RaggedTensor]
    """What `Task.encode_targets` gave, each int32 (batch, None); [] where nothing."""


@dataclass(frozen=True)
class Gold:
    """What the rows of a split should be answered."""

    labels: np.ndarray | None
    """Class index, int32 (rows,), or number, float32 (rows,); None where they are not known."""
    read: Callable[[Sequence[str]], dict[str, list[str]]]
    """Reads columns of the rows' file, by name, as strings."""


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
    the text, all further inputs joined by a space as its pair.
    """

    architecture: str
    """transformers' class, such as BertForSequenceClassification."""
    answers: Callable[..., dict[str, np.ndarray]]
    """What serving_default should give, some or all outputs by name, each (texts, ...), from what
    the model gives for each window of each text (one window without a stride): its outputs by
    HuggingFace's names, without the axis of the batch and unpadded (logits of BertForMaskedLM at
    the masks only), input_ids, token_type_ids, offset_mapping (length, 2) in characters, and
    texts, the one or two strings that it was given."""
    problem_type: ProblemType | None = None
    """What the logits of BertForSequenceClassification mean; None for other architectures."""
    truncation: Truncation = "longest_first"
    """Where texts that are too long are cut; with a stride it is the only, or the second, text."""
    stride: int | None = None
    """Word pieces that windows share; None where texts are truncated."""
    max_windows: int | None = None
    """How many windows of a text are looked at; None for all."""
    output: str | None = None
    """The one output of ours that it has, where we have several; None where it has all."""
    files: Callable[[EncoderConfig], Mapping[str, str]] = lambda config: {}
    """Content, by path, of what else belongs into the folder of such a checkpoint."""
    of_encoder: bool = False
    """Whether it is the model's encoder alone, and HuggingFace has no model of the whole use."""
    with_model: bool = False
    """Whether `answers` is called with our model too, to make up for what it has not."""

    def part_of(self, model: keras.Model) -> keras.Model:
        """What of our model it has."""
        if self.of_encoder:
            return model.get_layer("encoder")
        if self.output is None:
            return model
        return keras.Model(model.input, model.output[self.output], name=model.name)


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

    What has a value or an answer here is that of most tasks; the rest each task says itself.
    """

    tokenizer: WordPieceTokenizer
    """Strings to word-piece ids."""
    packer: Any
    """The layer that makes ids the encoder's inputs."""
    max_length: int
    """Longest input in word pieces."""
    encoding_key: Any
    """All that `encode` and `encode_targets` depend on, as JSON, for the key of the cache."""
    labels: tuple[str, ...] = ()
    """Names of the classes; () where there are none."""
    classifies: ClassVar[bool] = False
    """Whether each row is of one of the labels, and the outputs are label_index (rows,),
    probabilities and logits (rows, classes)."""
    generates: ClassVar[bool] = False
    """Whether there are outputs that only `generate` gives."""
    has_features: ClassVar[bool] = False
    """Whether nothing is trained but the layer "classifier", on features of rows that stay as they
    are: see `kbert.features`."""
    encoder_does_most: ClassVar[bool] = True
    """Whether nearly all of a step's time is the encoder's, whose rows are computed in parts."""
    meets_any_token: ClassVar[bool] = False
    """Whether batches for training have tokens that are in no row, such as random words."""
    has_new_encoder: bool = False
    """Whether of the checkpoint only sizes and vocabulary are taken, not the weights."""
    temperature: float = 1.0
    """Of a task that classifies: probabilities are of the logits divided by it, 1 until it is
    fitted."""
    is_calibrated: bool = False
    """Of a task that classifies: whether what is served has the temperature."""
    threshold: float = 0.0
    """Of a task with `Columns.outside`: what is served is that label where no probability is as
    large; 0 until it is fitted."""

    @property
    def measured(self) -> Task:
        """What measures a model of the task: its own loss and metrics, or those of the task that
        it is a way to learn (`kbert.tasks.distilled`)."""
        return self

    default_metric: ClassVar[str]
    """Validation metric that a search looks at, such as val_accuracy."""
    headline: ClassVar[tuple[str, ...]]
    """Figures of `score` that a page shows first."""

    @classmethod
    def columns(cls, config: Config) -> Columns:
        """What the task reads of each row.

        Args:
            config: Options of the run.
        """
        ...

    def __init__(
        self,
        config: Config,
        tokenizer: WordPieceTokenizer,
        learned: Learned,
    ) -> None:
        """
        Args:
            config: Options of the run; the task's own in `config.task`.
            tokenizer: Strings to word-piece ids.
            learned: What is known of the training rows.
        """

    def encode(self, texts: list[tf.Tensor]) -> list[tf.RaggedTensor]:
        """Strings, one tensor (batch,) a text column, to ids (batch, None), one a segment."""
        ...

    def encode_targets(
        self, texts: list[tf.Tensor], targets: list[tf.Tensor]
    ) -> list[tf.RaggedTensor]:
        """Strings of `Columns.targets`, one tensor (batch,) a column, to what `batch` needs.

        Only asked for where there are such columns.

        Returns:
            Ragged int32 tensors (batch, None).
        """
        del texts, targets
        return []

    def check_validation(self, rows: int, outside: int) -> None:
        """InputError where the validation split lacks what is to be fitted on it.

        Args:
            rows: How many it has; 0 where there is no such split.
            outside: How many more with the label `Columns.outside`.
        """

    def batch(self, rows: Rows, seed: tf.Tensor) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Ids to the model's (inputs, targets, sample weights), inside tf.data.

        Targets and weights are dictionaries where the model's outputs are.

        Args:
            rows: What is to be a batch.
            seed: int32 (2,), a pure function of (seed, epoch, step), for stateless randomness.
        """
        ...

    def examples(
        self, batch: tuple[dict[str, tf.Tensor], Any, Any], start: tf.Tensor, end: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], Any, Any]:
        """Some of what `batch` gave, by the place of their targets; of most tasks every row is one.

        Args:
            batch: Inputs, targets and sample weights.
            start: The first, int32 ().
            end: The one after the last, int32 ().
        """
        return tf.nest.map_structure(lambda tensor: tensor[start:end], batch)

    def build_model(
        self, encoder: keras.Model, config: EncoderConfig, *, dtype: str
    ) -> keras.Model:
        """The functional model: the encoder and the head, to logits in float32, or several by name.

        Args:
            encoder: Functional encoder of `kbert.encoder`.
            config: Sizes and constants of the encoder.
            dtype: Keras' dtype policy of the head.
        """
        ...

    def loss(self) -> keras.losses.Loss | dict[str, keras.losses.Loss]:
        """A new loss between targets and what the model gives; one for each output with a name."""
        ...

    def teacher_loss(self, temperature: float) -> keras.losses.Loss:
        """A new loss between what a teacher's model gives for a row, as it is, and the student's.

        Only asked for of tasks of `kbert.config.DISTILLABLE`.

        Args:
            temperature: What logits are divided by.
        """
        raise NotImplementedError(f"{type(self).__name__} is learnt from no teacher")

    def metrics(self) -> dict[str, Any]:
        """New metrics as compile's arguments `metrics` (of all rows alike) or `weighted_metrics`.

        Each is a list, or a list for each output with a name.

        All their variables are sums over rows: the monitor takes differences of them.
        """
        ...

    def outputs(
        self, predicted: Any, targets: Any, weights: Any
    ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """What evaluation collects of a batch, one tensor (batch, ...) a name.

        A ragged tensor is collected as an object array of one array a row.

        Args:
            predicted: What the model gives, the logits.
            targets: As in `batch`.
            weights: As in `batch`.
        """
        ...

    def generate(self, model: keras.Model, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What takes many steps of the model, as `outputs`; asked for at the end of a training.

        Only asked for where `generates`.

        Args:
            model: Model of the task.
            inputs: As in `batch`.
        """
        raise NotImplementedError(f"{type(self).__name__} generates nothing")

    def fit_on_validation(
        self,
        outputs: dict[str, np.ndarray],
        gold: Gold,
        outside: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """What is chosen on rows that the model was not trained on: temperatures, thresholds.

        Args:
            outputs: Of the validation split, with nothing fitted in use.
            gold: What its rows should be answered.
            outside: Outputs of its rows with the label `Columns.outside`; None where there are
                none.

        Returns:
            It as JSON holds it, by name, for metrics.json; `use_fitted` reads it from there too.
        """
        del outputs, gold, outside
        return {}

    def use_fitted(self, fitted: Mapping[str, Any]) -> bool:
        """Answer with what was fitted from now on; what was traced before answers without it.

        Args:
            fitted: What `fit_on_validation` gave, or part of it.

        Returns:
            Whether `outputs` are others than before.
        """
        del fitted
        return False

    def score(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, Any]:
        """Figures of a split from the outputs of all its rows, as metrics.json has them.

        Numbers, and lists and dictionaries of them; {} where there is nothing to compare with.
        """
        ...

    def tables(self, metrics: Mapping[str, Any]) -> list[Table]:
        """What `score` found, with what was added to it, for the terminal."""
        ...

    def predictions(self, outputs: dict[str, np.ndarray], gold: Gold) -> dict[str, list[str]]:
        """Columns of predictions.csv; {} where a task writes none.

        Args:
            outputs: As in `score`.
            gold: What the rows should be answered, to stand beside it.
        """
        ...

    def signatures(self, model: keras.Model) -> dict[str, Signature]:
        """What the exported model serves, by signature name.

        "serving_default" answers; "preprocess" takes the same inputs and gives the token_ids,
        segment_ids and padding_mask, int32 (batch, length), that they become on the way.
        """
        ...

    def answer_columns(self, answers: Mapping[str, np.ndarray]) -> dict[str, list]:
        """What serving_default gave, as columns of a file: strings, numbers, or lists of them."""
        ...

    def requests(self, columns: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """What a client sends for rows of the data: inputs of "serving_default" by name.

        Args:
            columns: The text columns, each a text a row.
        """
        ...

    def check_request(self, inputs: Mapping[str, Sequence[str]]) -> tuple[int, str] | None:
        """The first request that nothing can be answered to, and what is wrong and what to do.

        `kbert.predict` asks before it answers.

        Args:
            inputs: One list of strings for each input of "serving_default".

        Returns:
            Its index and a sentence; None where there is none.
        """
        del inputs
        return None

    def reference(self) -> Reference | None:
        """HuggingFace's model to compare exports with; None where it has no such model."""
        ...
