"""Every option of kbert: documented dataclass fields that make the command line and YAML.

Nothing here imports TensorFlow, so `python train.py --help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from kbert.errors import InputError
from kbert.foreign_files import read_options

if TYPE_CHECKING:
    import jsonargparse

MOST_LAYERS = 128
"""Transformer blocks: it takes 60 ms to build one. The deepest BERT that is known has 48."""
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]
"""What the logits of a sequence classifier mean, in HuggingFace's words."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of a BERT encoder, in Keras' names.

    HuggingFace's `config.json` is translated into this by `kbert.huggingface`.
    """

    vocabulary_size: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    intermediate_dim: int
    max_sequence_length: int = 512
    num_segments: int = 2
    activation: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    """Row of the token embedding that lookups do not train; None for no such row."""
    classifier_dropout: float | None = None
    """Dropout before a classifier; None for that of hidden states."""
    tie_word_embeddings: bool = True
    """Whether a masked-LM head decodes by the token embedding, or by a matrix of its own."""

    def __post_init__(self) -> None:
        sizes = ("vocabulary_size", "hidden_dim", "num_layers", "num_heads", "intermediate_dim")
        for name in (*sizes, "max_sequence_length", "num_segments"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        at_most = f"at most {MOST_LAYERS}"
        _check(self.num_layers <= MOST_LAYERS, "num_layers", at_most, self.num_layers)
        _check(
            self.hidden_dim % self.num_heads == 0,
            "hidden_dim",
            f"a multiple of num_heads ({self.num_heads})",
            self.hidden_dim,
        )
        for name in ("dropout", "attention_dropout", "classifier_dropout"):
            if getattr(self, name) is not None:
                _check(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        if self.pad_token_id is not None:
            in_vocabulary = 0 <= self.pad_token_id < self.vocabulary_size
            _check(in_vocabulary, "pad_token_id", "in the vocabulary", self.pad_token_id)
        require_memory(self.num_weights, "a model of these sizes")

    @property
    def num_weights(self) -> int:
        """Numbers that the encoder holds."""
        hidden, wide = self.hidden_dim, self.intermediate_dim
        rows = self.vocabulary_size + self.max_sequence_length + self.num_segments
        attention = 4 * (hidden + 1) * hidden
        feedforward = (hidden + 1) * wide + (wide + 1) * hidden
        block = attention + feedforward + 4 * hidden  # two norms
        return (rows + 2) * hidden + self.num_layers * block + (hidden + 1) * hidden


@dataclass
class DataOptions:
    """Which files, which columns, how they are split."""

    train: str | None = None
    """Training file: .csv, .tsv, .jsonl or .parquet (raw text, one text a line, as .txt); or
    several of one kind, read as one in the order of their names: a folder, or a pattern such as
    'data/part-*.parquet'; also as a URI (gs://, s3://, abfs://, hf://, file://)."""
    validation: str | None = None
    """Validation file, or files; without it a stratified fraction of the training file."""
    test: str | None = None
    """Test file, or files; without it a stratified fraction of the training file."""
    validation_fraction: float = 0.1
    """Share of the training rows held out for validation when no file is given; 0 for none."""
    test_fraction: float = 0.1
    """Share of the training rows held out for the test when no file is given; 0 for none."""
    text_column: str | list[str] = "text"
    """Column of the text, or a list of columns: the first is text_a, the second text_b of a
    pair; further ones are joined to text_b by a space."""
    label_column: str = "label"
    """Column of the label."""
    encoding: str = "utf-8"
    """Encoding of CSV, TSV, JSONL and TXT files, such as gb18030; a byte-order mark is dropped."""
    max_length: int = 128
    """Longest input in word pieces, [CLS] and [SEP] included; longer texts are truncated."""
    stride: int | None = None
    """Read a text beyond max_length in windows, each of which begins with so many of the word
    pieces that the one before it ended with; by default it is truncated."""
    cache_dir: str | None = None
    """Folder of tokenised data; by default kbert/ in the user's cache folder."""

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            _check(0 <= getattr(self, name) < 1, f"data.{name}", "in [0, 1)", getattr(self, name))
        _check(
            self.validation_fraction + self.test_fraction < 1,
            "data.validation_fraction + data.test_fraction",
            "under 1",
            self.validation_fraction + self.test_fraction,
        )
        _check(self.max_length >= 4, "data.max_length", "at least 4", self.max_length)
        if self.stride is not None:
            most = self.max_length - 4  # [CLS], [SEP] and a piece of a text, and [SEP] of a pair
            _check(0 <= self.stride < most, "data.stride", f"in [0, {most})", self.stride)
        columns = self.text_columns
        _check(len(columns) > 0 and all(columns), "data.text_column", "a column name", columns)
        repeated = len(set(columns)) < len(columns)
        _check(not repeated, "data.text_column", "different columns", columns)

    @property
    def text_columns(self) -> list[str]:
        """The text columns as a list, also when a single one was given."""
        return [self.text_column] if isinstance(self.text_column, str) else list(self.text_column)


@dataclass
class ModelOptions:
    """Which pretrained BERT, or the sizes of a new one."""

    checkpoint: str | None = None
    """Folder in HuggingFace layout, or the id of a model on the HuggingFace hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint."""
    vocab: str | None = None
    """vocab.txt for a model from scratch (instead of a checkpoint)."""
    vocab_size: int | None = None
    """From scratch: learn a vocabulary of at most so many entries from the training texts (instead
    of model.vocab)."""
    lowercase: bool = True
    """From scratch: whether the tokeniser lower-cases and strips accents."""
    hidden_dim: int = 128
    """From scratch: width of the model."""
    num_layers: int = 2
    """From scratch: number of Transformer blocks."""
    num_heads: int = 2
    """From scratch: attention heads a block."""
    intermediate_dim: int = 512
    """From scratch: width of the feed-forward layer."""
    dropout: float | None = None
    """Dropout of hidden states and attention; by default what the checkpoint says."""

    def __post_init__(self) -> None:
        sources = {
            "checkpoint": self.checkpoint,
            "vocab": self.vocab,
            "vocab_size": self.vocab_size,
        }
        named = [f"model.{name}" for name, value in sources.items() if value]
        if len(named) > 1:
            raise InputError(
                f"{' and '.join(named)} exclude each other: a checkpoint brings its vocabulary, a "
                "model from scratch has that of model.vocab, or learns one of model.vocab_size."
            )
        if self.vocab_size is not None:
            _check(self.vocab_size >= 10, "model.vocab_size", "at least 10", self.vocab_size)
        for name in ("hidden_dim", "num_layers", "num_heads", "intermediate_dim"):
            _check(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
        _check(
            self.hidden_dim % self.num_heads == 0,
            "model.hidden_dim",
            f"a multiple of model.num_heads ({self.num_heads})",
            self.hidden_dim,
        )
        if self.dropout is not None:
            _check(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)


@dataclass
class TrainOptions:
    """How the weights are fitted."""

    epochs: int = 3
    """Passes over the training rows."""
    batch_size: int = 32
    """Rows a step."""
    accumulate: int = 1
    """Parts that the rows of a step are cut into: computed one after the other, their gradients
    added up, for less memory. The step is that of all batch_size rows (transformers'
    gradient_accumulation_steps multiplies its batch size instead)."""
    rematerialize: bool = False
    """Compute each Transformer block of the encoder again for its gradient, instead of keeping what
    it computed: less memory, a third more time."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW, reached after the warm-up, then falling to zero linearly."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay; none on biases and LayerNorm."""
    clip_norm: float = 1.0
    """Largest global norm of the gradients; 0 for no clipping."""
    precision: Literal["auto", "float32", "bfloat16_products", "bfloat16", "float16"] = "auto"
    """Type of the computations in training; variables, evaluation and export stay in float32.
    bfloat16_products: of matrix products alone; bfloat16, float16: of all, for GPUs; auto: what a
    few measured steps say, float32 where training takes less than a minute anyway."""
    compile: Literal["auto", "graph", "parallel", "xla"] = "auto"
    """How a step is computed: as one graph; parallel: parts of its rows side by side, one a core;
    xla: compiled for each shape of a batch; auto: what a few measured steps say, graph where
    training takes less than a minute anyway."""
    strategy: Literal["none", "mirrored", "multi_worker"] = "none"
    """Devices that share the rows of a step: none: one; mirrored: all GPUs of this machine;
    multi_worker: those of all processes that the variable TF_CONFIG names (`python -m kbert.launch`
    starts some on this machine). A step is that of all batch_size rows whatever it is."""
    frozen_layers: int = 0
    """Lowest Transformer blocks whose weights stay as they are, and with them the embeddings;
    0: everything is trained."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each Transformer block to the one below, the embeddings
    lowest; 1: one rate for all."""
    lora_rank: int = 0
    """LoRA: train low-rank additions, of this rank, to all dense layers of the Transformer blocks,
    the head and the pooler, and nothing else; in the end they are merged into the weights. It wants
    about ten times the learning_rate. 0: none."""
    lora_alpha: float | None = None
    """The additions are multiplied by lora_alpha / lora_rank; by default lora_alpha is twice
    lora_rank."""
    best_metric: str | None = None
    """Keep the weights of the epoch that is best by this validation metric, such as loss or
    accuracy; by default the weights of the last epoch."""
    patience: int = 0
    """Stop after so many epochs without a better best_metric (by default loss); 0: never."""
    checkpoint_steps: int = 500
    """Write a checkpoint every so many steps, besides the one at the end of each epoch."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep while the run goes on: should the newest be damaged, the one
    before it is used."""
    seed: int = 0
    """Seed of new weights, dropout, masks and the order of rows."""

    def __post_init__(self) -> None:
        for name in (
            "epochs", "batch_size", "accumulate", "checkpoint_steps", "keep_checkpoints",
        ):  # fmt: skip
            _check(getattr(self, name) >= 1, f"train.{name}", "at least 1", getattr(self, name))
        most = f"at most train.batch_size ({self.batch_size})"
        _check(self.accumulate <= self.batch_size, "train.accumulate", most, self.accumulate)
        if self.accumulate > 1 and self.compile == "xla":
            raise InputError(
                "train.compile xla goes without train.accumulate: it compiles no loop over parts "
                "of different sizes."
            )
        if self.strategy != "none":
            self._require_shared_step()
        _check(0 < self.learning_rate < 1, "train.learning_rate", "in (0, 1)", self.learning_rate)
        _check(0 <= self.warmup <= 1, "train.warmup", "in [0, 1]", self.warmup)
        for name in ("weight_decay", "clip_norm", "patience", "frozen_layers", "lora_rank"):
            _check(getattr(self, name) >= 0, f"train.{name}", "at least 0", getattr(self, name))
        if self.lora_alpha is not None:
            _check(self.lora_alpha > 0, "train.lora_alpha", "over 0", self.lora_alpha)
            if not self.lora_rank:
                raise InputError("train.lora_alpha needs train.lora_rank.")
        _check(0 < self.layer_decay <= 1, "train.layer_decay", "in (0, 1]", self.layer_decay)
        _check(0 <= self.seed < 2**31, "train.seed", "in [0, 2147483647]", self.seed)

    def _require_shared_step(self) -> None:
        strategy = f"train.strategy {self.strategy}"
        if self.compile == "xla":
            raise InputError(f"train.compile xla goes without {strategy}: choose graph, or auto.")
        if self.precision == "float16":
            raise InputError(
                f"train.precision float16 goes without {strategy}: choose bfloat16, or float32."
            )

    @property
    def part_size(self) -> int:
        """Rows, at most, that are computed at a time."""
        return -(-self.batch_size // self.accumulate)


STUDENT = "student"
"""Folder of a run: the checkpoint that a student of its teacher's layers begins with."""


@dataclass
class DistillOptions:
    """Distillation: a small model, the student, learns from a finished run, its teacher."""

    teacher: str | None = None
    """Folder of a finished run of the same task and labels: what its model says of the training
    rows is learnt beside their labels."""
    alpha: float = 0.5
    """Weight of the loss to the teacher's outputs; that to the labels has 1 - alpha."""
    temperature: float = 2.0
    """What the logits of both models are divided by in the teacher's loss, which is multiplied by
    its square; regression has none."""
    unlabelled: str | list[str] | None = None
    """File, or list of files, of texts without labels, with the text columns of data, or .txt: the
    student learns what its teacher says of them."""
    layers: int | None = None
    """Begin with so many of the teacher's Transformer blocks, spread evenly from its first to its
    last, and with its embeddings and its head; instead of model.checkpoint."""

    def __post_init__(self) -> None:
        _check(0 <= self.alpha <= 1, "distill.alpha", "in [0, 1]", self.alpha)
        _check(self.temperature > 0, "distill.temperature", "over 0", self.temperature)
        layers = self.layers
        _check(layers is None or layers >= 1, "distill.layers", "at least 1", layers)
        files = self.unlabelled_files
        _check(all(files), "distill.unlabelled", "names of files", self.unlabelled)
        if self.teacher is None:
            for option in fields(self):
                if getattr(self, option.name) != option.default:
                    raise InputError(
                        f"distill.{option.name} needs a teacher: name a finished run by "
                        "--distill.teacher."
                    )
        if files and not self.alpha:
            raise InputError(
                "distill.unlabelled: with distill.alpha 0 nothing is learnt of the teacher; raise "
                "it, or leave the texts out."
            )

    @property
    def unlabelled_files(self) -> list[str]:
        """The files of texts without labels as a list, also when a single one was given."""
        if self.unlabelled is None:
            return []
        return [self.unlabelled] if isinstance(self.unlabelled, str) else list(self.unlabelled)


@dataclass
class SearchOptions:
    """keras-tuner's search for hyper-parameters; its winner is trained again and exported.

    Trial 0 is the configuration as it stands, so that the gain over it is known.
    """

    tuner: Literal["none", "grid", "random", "bayesian", "hyperband"] = "none"
    """Which search; none trains once with the options as they are."""
    preset: Literal["bert", "small_bert"] | None = None
    """Ready-made space: bert is the BERT paper's (batch_size 16, 32; learning_rate 5e-5, 3e-5,
    2e-5; epochs 2, 3, 4), small_bert that of the small BERT models (batch_size 8 to 128;
    learning_rate 3e-4 to 3e-5); bert where no space is given. Space's entries come before it."""
    space: dict[str, Any] = field(default_factory=dict)
    """What to try, by hyper-parameter: a list of values, {min, max, step, log: true} or {values};
    {..., when: {NAME: [VALUES]}} where it depends on another. Hyper-parameters: batch_size,
    learning_rate, epochs, warmup, weight_decay, dropout, max_length, label_smoothing,
    frozen_layers, layer_decay, checkpoint; from scratch hidden_dim, num_layers, num_heads,
    intermediate_dim; with a teacher alpha, temperature."""
    trials: int | None = None
    """Number of trials at most, besides trial 0; by default 10, for a grid every combination.
    Hyperband has its own number."""
    epochs: int | None = None
    """Epochs of a trial; by default train.epochs. Hyperband: the most that it gives."""
    factor: int = 3
    """Hyperband: each round keeps one of so many trials, with so many times the epochs."""
    fraction: float = 1.0
    """Share of the training rows that a trial sees."""
    seeds: int = 3
    """How often the winner, and the default to compare it with, are trained again on all training
    rows, with other seeds; the median run of the winner is exported."""
    keep: int = 1
    """Number of best trials whose weights stay on disk."""
    workers: int = 0
    """Processes that run trials side by side on this machine; 0: this process runs them."""

    def __post_init__(self) -> None:
        for name in ("trials", "epochs"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"search.{name}", "at least 1", value)
        _check(0 < self.fraction <= 1, "search.fraction", "in (0, 1]", self.fraction)
        for name, least in (("factor", 2), ("seeds", 1), ("keep", 0), ("workers", 0)):
            value = getattr(self, name)
            _check(value >= least, f"search.{name}", f"at least {least}", value)


@dataclass
class MonitorOptions:
    """What TensorBoard gets."""

    tensorboard: bool = True
    """Write OUTPUT/tensorboard."""
    every_steps: int = 10
    """Steps between two points of the training curves."""
    histograms: bool = False
    """Histograms of weights and gradients after each epoch."""
    profile: str | None = None
    """First and last step to record for the Profile tab, such as 10,20; it needs
    tensorboard-plugin-profile to be seen."""
    attention_texts: list[str] = field(default_factory=list)
    """Texts whose attention is drawn, columns divided by a tab; by default the beginning of one of
    the validation split."""
    attention_layers: list[int] | None = None
    """Layers whose attention is drawn, from 0; by default the last one."""
    attention_heads: list[int] | None = None
    """Heads whose attention is drawn, from 0; by default all."""

    def __post_init__(self) -> None:
        _check(self.every_steps >= 1, "monitor.every_steps", "at least 1", self.every_steps)
        for name in ("attention_layers", "attention_heads"):
            numbers = getattr(self, name)
            valid = numbers is None or (bool(numbers) and min(numbers) >= 0)
            _check(valid, f"monitor.{name}", "numbers from 0 on", numbers)
        self.profiled_steps  # noqa: B018  # refuses what it cannot read

    @property
    def profiled_steps(self) -> tuple[int, int] | None:
        """First and last step of `profile`, from 1; None for no profile."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(",")
        valid = first.strip().isdecimal() and last.strip().isdecimal()
        steps = (int(first), int(last)) if valid else (0, 0)
        wanted = "two steps such as 10,20, the first from 1 on and not after the last"
        _check(1 <= steps[0] <= steps[1], "monitor.profile", wanted, self.profile)
        return steps


@dataclass
class ExportOptions:
    """The SavedModel for TF Serving."""

    enabled: bool = True
    """Write OUTPUT/export/NAME/VERSION."""
    name: str | None = None
    """Name of the served model; by default the name of the output folder."""
    version: int = 1
    """Version number of the served model."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """bfloat16: the served model computes its matrix products in bfloat16, where the server's CPU
    can do that faster than float32; int8: the encoder's products with weights in 8 bits, on x86 and
    from TF Serving 2.17 on. What it loses is measured, printed and certified."""
    warmup: bool = True
    """Put four texts of the training data into the export, for TF Serving to answer before it takes
    requests; false where the texts must not be handed on."""
    huggingface: bool = False
    """Write OUTPUT/huggingface too: a checkpoint that transformers opens, by PyTorch and by
    TensorFlow (TFBert*.from_pretrained(..., use_safetensors=False))."""

    def __post_init__(self) -> None:
        _check(1 <= self.version < 2**63, "export.version", "a positive number", self.version)
        if self.name is not None:
            plain = self.name.strip() == self.name and not set(self.name) & set("/\\:%?#")
            valid = bool(self.name) and plain and self.name not in (".", "..")
            _check(valid, "export.name", "a plain name, without / \\ : % ? #", self.name)


WITH_WINDOWS = ("classification", "multi_label", "regression", "question_answering")
"""Tasks that read a long text in windows (data.stride)."""
DISTILLABLE = ("classification", "multi_label", "regression")
"""Tasks that a student learns from a teacher (distill.teacher)."""
Pooling = Literal["mean", "max"]
"""How the answers to the windows of a long text become one."""


@dataclass
class ClassificationOptions:
    """Texts, or pairs of texts, into classes."""

    name: Literal["classification"] = "classification"
    """The task."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its frequency."""
    calibrate: bool = False
    """Divide the logits by a temperature, fitted on the validation split, for the probabilities of
    the exported model, predictions.csv and the figures; the logits, and who wins, stay."""
    window_pooling: Pooling = "mean"
    """How the logits of a long text's windows (data.stride) become those of the text."""
    out_of_scope: str | None = None
    """Answer of the exported model to a text of no class, such as oos: where no probability reaches
    a threshold, which is fitted on validation rows, some of which have this label; training rows
    with it are left out."""

    def __post_init__(self) -> None:
        valid = 0 <= self.label_smoothing < 1
        _check(valid, "task.label_smoothing", "in [0, 1)", self.label_smoothing)
        _check(self.out_of_scope != "", "task.out_of_scope", "a label", self.out_of_scope)


@dataclass
class MultiLabelOptions:
    """Texts, or pairs of texts, into any number of classes each."""

    name: Literal["multi_label"] = "multi_label"
    """The task."""
    separator: str = ","
    """What divides the labels of a row, where the column holds no lists."""
    window_pooling: Pooling = "mean"
    """How the logits of a long text's windows (data.stride) become those of the text."""

    def __post_init__(self) -> None:
        _check(bool(self.separator), "task.separator", "a string", self.separator)


@dataclass
class RegressionOptions:
    """A number for a text, or for a pair of texts."""

    name: Literal["regression"] = "regression"
    """The task."""
    window_pooling: Pooling = "mean"
    """How the values of a long text's windows (data.stride) become that of the text."""


@dataclass
class FeaturesOptions(ClassificationOptions):
    """Texts, or pairs of texts, into classes by a linear classifier on a BERT that stays as it is.

    The features of all rows are computed once and cached, so that training takes seconds.
    """

    name: Literal["features"] = "features"  # pyright: ignore[reportIncompatibleVariableOverride]
    """The task."""
    classifier: Literal["keras", "scikit-learn"] = "keras"
    """keras: train.epochs and the rest of train; scikit-learn: its logistic regression, without
    them."""
    pooling: Literal["mean", "cls"] = "mean"
    """Features of a text: the mean of its pieces' last states, or the state of [CLS]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier == "scikit-learn" and self.label_smoothing:
            raise InputError(
                "task.label_smoothing: scikit-learn's classifier has none; set it to 0."
            )


@dataclass
class TaggingOptions:
    """A tag for each word: names, places, dates ..., as BIO."""

    name: Literal["tagging"] = "tagging"
    """The task."""
    tags_column: str = "tags"
    """Column of the tags, one for each word of data.text_column: O, B-NAME or I-NAME."""
    intent_column: str | None = None
    """Column of a label for the whole text, learnt by the same model."""


@dataclass
class MaskedLMOptions:
    """Pre-training on raw text by masked words, continued or from scratch; fill-mask."""

    name: Literal["masked_lm"] = "masked_lm"
    """The task."""
    mask_rate: float = 0.15
    """Share of the word pieces to predict."""
    whole_words: bool = True
    """Mask all pieces of a word, or none."""
    next_sentence: bool = False
    """Learn, too, whether the second part of a text, cut in two at a sentence end or in the middle,
    is its own or another text's."""
    top_k: int = 5
    """Answers that the exported model gives for each [MASK]."""

    def __post_init__(self) -> None:
        _check(0 < self.mask_rate < 1, "task.mask_rate", "in (0, 1)", self.mask_rate)
        _check(self.top_k >= 1, "task.top_k", "at least 1", self.top_k)


@dataclass
class EmbeddingOptions:
    """A vector for each text, whose cosine is the similarity; fine-tuned on pairs with a score."""

    name: Literal["embedding"] = "embedding"
    """The task."""
    pooling: Literal["checkpoint", "mean", "cls", "max"] = "checkpoint"
    """How the pieces' vectors become the text's; checkpoint: as its sentence-transformers files
    say, or the mean."""
    normalize: bool | None = None
    """Give vectors of length 1; by default as the checkpoint's files say."""


@dataclass
class QuestionAnsweringOptions:
    """The part of a text that answers a question."""

    name: Literal["question_answering"] = "question_answering"
    """The task; data.text_column names the column of questions and that of texts."""
    answer_column: str = "answer"
    """Column of the answer, which stands in the text."""
    start_column: str | None = None
    """Column of the answer's first character, from 0; by default where it stands first."""
    max_answer_length: int = 30
    """Longest answer in word pieces."""

    def __post_init__(self) -> None:
        valid = self.max_answer_length >= 1
        _check(valid, "task.max_answer_length", "at least 1", self.max_answer_length)


@dataclass
class TranslationOptions:
    """Texts into those of another language: BERT reads, a new decoder writes."""

    name: Literal["translation"] = "translation"
    """The task."""
    target_column: str = "target"
    """Column of the translation."""
    target_vocab_size: int = 8000
    """Entries, at most, of the vocabulary that is learnt from the translations."""
    target_lowercase: bool = False
    """Lower-case the translations."""
    max_target_length: int = 64
    """Longest translation in word pieces."""
    decoder_layers: int = 3
    """Transformer blocks of the decoder."""
    decoder_heads: int | None = None
    """Attention heads a block of the decoder; by default the encoder's."""
    decoder_intermediate_dim: int | None = None
    """Width of the decoder's feed-forward layers; by default the encoder's."""
    encoder: Literal["fine_tuned", "frozen", "random"] = "fine_tuned"
    """The checkpoint's encoder, trained on or left as it is; or one of its sizes from scratch."""
    label_smoothing: float = 0.1
    """Share of the target's probability spread over the vocabulary."""
    beam_size: int = 4
    """Translations that are followed side by side; 1: greedy."""
    length_penalty: float = 0.6
    """Power of the length that a translation's log-probability is divided by: 0 favours short
    ones."""

    def __post_init__(self) -> None:
        for name in ("target_vocab_size", "max_target_length", "decoder_layers", "beam_size"):
            _check(getattr(self, name) >= 1, f"task.{name}", "at least 1", getattr(self, name))
        for name in ("decoder_heads", "decoder_intermediate_dim"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"task.{name}", "at least 1", value)
        valid = 0 <= self.label_smoothing < 1
        _check(valid, "task.label_smoothing", "in [0, 1)", self.label_smoothing)
        _check(self.length_penalty >= 0, "task.length_penalty", "at least 0", self.length_penalty)


OLD_XLA = "train.xla"
"""What train.compile was before it had names: true for xla, false for graph."""
TASK_OPTIONS: dict[str, type] = {
    "classification": ClassificationOptions,
    "multi_label": MultiLabelOptions,
    "regression": RegressionOptions,
    "features": FeaturesOptions,
    "tagging": TaggingOptions,
    "masked_lm": MaskedLMOptions,
    "embedding": EmbeddingOptions,
    "question_answering": QuestionAnsweringOptions,
    "translation": TranslationOptions,
}


@dataclass
class Config:
    """Everything that a run depends on."""

    task: Any
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    output: str | None = None
    """Folder of the run."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with what the folder holds; never: only ever start in a new folder."""
    smoke: bool = False
    """Run the same code at toy size: 64 rows of each split, one epoch, short texts."""
    debug: bool = False
    """Show the traceback of an error, and what becomes of each tensor of the checkpoint."""

    @property
    def checkpoint(self) -> str | None:
        """Folder or hub id of what the model begins with; None for a model from scratch."""
        if self.distill.layers is not None:
            return str(Path(self.output or "") / STUDENT)
        return self.model.checkpoint

    @property
    def export_name(self) -> str:
        """Name of the served model."""
        return self.export.name or Path(self.output or "model").resolve().name

    @property
    def run_name(self) -> str:
        """Name and version of the served model, such as "sentiment-1".

        TensorBoard shows the run under it, so that a run's curves and what is served of it are
        found by one name.
        """
        return f"{self.export_name}-{self.export.version}"


def parse(arguments: list[str] | None = None) -> Config:
    """The command line, with the YAML files it names, as a checked `Config`.

    Args:
        arguments: Words of the command line, by default those of the process.

    Raises:
        InputError: an unknown option, a value out of range, an unreadable YAML file.
        SystemExit: after --help and --print_config.
    """
    import jsonargparse

    words = _spell_out(sys.argv[1:] if arguments is None else list(arguments))
    parser = _parser(_task_name(words))
    try:
        values = parser.parse_args(words)
        if (xla := values.pop(OLD_XLA)) is not None:
            values["train.compile"] = "xla" if xla else "graph"
        _require_values(values)
        groups = parser.instantiate(values).as_dict()
    except jsonargparse.ArgumentError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"{_one_line(error)} (--help lists the options)") from None
    groups.pop("config")
    config = Config(**groups)
    _require(config)
    return config


def as_dict(config: Config) -> dict[str, Any]:
    """The options as plain nested dictionaries, as YAML and JSON hold them."""
    return dataclasses.asdict(config)


def as_yaml(config: Config) -> str:
    """The resolved options as a YAML file that --config reads."""
    import yaml

    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Options as an older kbert wrote them, with the defaults of those that it did not have."""
    task = options.get("task")
    kind = TASK_OPTIONS.get(str(task.get("name"))) if isinstance(task, dict) else None
    defaults = {} if kind is None else as_dict(Config(task=kind()))
    merged = {
        name: {**defaults[name], **value}
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
        else value
        for name, value in {**defaults, **options}.items()
    }
    if isinstance(train := merged.get("train"), dict) and "xla" in train:
        train["compile"] = "xla" if train.pop("xla") else "graph"
    return merged


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Options that differ between two `as_dict`, as "train.epochs: 3 -> 4"."""
    lines = []
    for name in sorted(set(old) | set(new)):
        left, right = old.get(name), new.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += differences(left, right, f"{prefix}{name}.")
        elif left != right:
            lines.append(f"{prefix}{name}: {json.dumps(left)} -> {json.dumps(right)}")
    return lines


def at_toy_size(config: Config) -> Config:
    """The options of a --smoke run: everything happens, nothing takes long."""
    max_length, stride = min(config.data.max_length, 32), config.data.stride
    stride = None if stride is None else min(stride, max_length // 4)
    batch_size = min(config.train.batch_size, 8)
    accumulate = min(config.train.accumulate, batch_size)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, max_length=max_length, stride=stride),
        train=dataclasses.replace(
            config.train, epochs=1, batch_size=batch_size, accumulate=accumulate
        ),
        search=dataclasses.replace(
            config.search,
            space={name: of for name, of in config.search.space.items() if name != "epochs"},
            trials=min(config.search.trials or 2, 2),
            epochs=1,
            seeds=1,
        ),
    )


def _parser(task_name: str):
    import jsonargparse

    jsonargparse.set_parsing_settings(
        docstring_parse_attribute_docstrings=True, docstring_parse_style=_docstring_style()
    )
    parser = jsonargparse.ArgumentParser(
        prog="train.py",
        exit_on_error=False,
        allow_abbrev=False,
        usage="train.py [--config FILE] [--GROUP.OPTION VALUE ...] --output FOLDER",
        description="Fine-tune a pretrained BERT on a file of texts; measure, watch and export it.",
        epilog="Example: python train.py --config recipes/news.yaml --data.train articles.csv "
        "--model.checkpoint DIR_OR_HUB_ID --output runs/news",
    )
    parser.add_argument("--config", action="config", help="A YAML file of options.")
    options = TASK_OPTIONS[task_name]
    parser.add_class_arguments(options, "task")
    groups = _groups()
    for name, kind in groups.items():
        parser.add_class_arguments(kind, name)
    parser.add_class_arguments(Config, skip={"task", *groups})
    parser.add_argument(f"--{OLD_XLA}", type=bool | None, help=argparse.SUPPRESS)
    return parser


def _groups() -> dict[str, type]:
    """The groups of options that every task has."""
    kinds = {item.name: item.default_factory for item in fields(Config)}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type)}


def _require_values(values: jsonargparse.Namespace) -> None:
    """The parser lets an option be empty, or null, in a YAML file, whatever its type."""
    groups = {"task": TASK_OPTIONS[values["task.name"] or "classification"], **_groups()}
    for group, kind in {"": Config, **groups}.items():
        for name, hint in get_type_hints(kind).items():
            option = f"{group}.{name}" if group else name
            may_be_none = hint is Any or type(None) in get_args(hint)
            if option not in groups and not may_be_none and values[option] is None:
                raise InputError(f"{option}: has no value; give it one, or leave it out.")


def _docstring_style():
    from docstring_parser import DocstringStyle

    return DocstringStyle.GOOGLE


def _spell_out(words: list[str]) -> list[str]:
    """--task NAME is short for --task.name NAME, --smoke and --debug for setting them to true."""
    short = {"--task": "--task.name", "--smoke": "--smoke=true", "--debug": "--debug=true"}
    words = [short.get(word, word) for word in words]
    return [word.replace("--task=", "--task.name=", 1) for word in words]


def _task_name(words: list[str]) -> str:
    """Which task the words, or the YAML files they name, choose: its options are parsed."""
    name = "classification"
    pairs = list(zip(words, [*words[1:], ""], strict=True))
    for word, following in pairs:
        option, _, value = word.partition("=")
        value = value or following
        if option == "--config":
            name = _task_name_in_file(value) or name
        elif option == "--task.name":
            name = value
    if name not in TASK_OPTIONS:
        raise InputError(
            f"task.name: there is no task {name!r}; there are {', '.join(TASK_OPTIONS)}."
        )
    return name


def _task_name_in_file(path: str) -> str | None:
    """The task that a YAML file of options names; and whether it is one.

    Raises:
        InputError: it cannot be read; or in place of options it names a file of them, which the
            parser would read, wherever that is.
    """
    content = read_options(Path(path), advice="correct it, or name another --config")
    groups = [item.name for item in fields(Config) if isinstance(item.default_factory, type)]
    for name in ("config", "task", *groups):
        if name in content and (name == "config" or not isinstance(content[name], dict)):
            raise InputError(
                f"{path}: {name} must be options in the file, received {content[name]!r}."
            )
    name = content.get("task", {}).get("name")
    return None if name is None else str(name)


def _require(config: Config) -> None:
    for option, value in (("--data.train", config.data.train), ("--output", config.output)):
        if not value:
            raise InputError(f"{option} is missing (--help lists the options).")
    _require_distillable(config)
    if not (config.checkpoint or config.model.vocab or config.model.vocab_size):
        raise InputError(
            "--model.checkpoint is missing: a folder in HuggingFace layout or a hub id; or, for a "
            "model from scratch, --model.vocab vocab.txt or --model.vocab_size."
        )
    if config.train.lora_rank:
        _require_trained_encoder(config)
    if config.train.strategy == "multi_worker" and config.search.tuner != "none":
        raise InputError(
            "train.strategy multi_worker goes without search.tuner: a search's own processes "
            "(search.workers) train a trial each; search first, then train the winner's options."
        )
    if config.train.strategy != "none" and getattr(config.task, "classifier", "") == "scikit-learn":
        raise InputError(
            f"task.classifier scikit-learn goes without train.strategy {config.train.strategy}: it "
            "is one process's."
        )
    if config.data.stride is not None:
        if config.task.name not in WITH_WINDOWS:
            raise InputError(
                f"data.stride: {config.task.name} reads no windows, as {', '.join(WITH_WINDOWS)} "
                "do; leave it out."
            )
        if config.train.compile == "xla":
            raise InputError(
                "train.compile xla goes without data.stride: every batch has another number of "
                "windows."
            )


def _require_trained_encoder(config: Config) -> None:
    if not config.model.checkpoint:
        raise InputError(
            "train.lora_rank needs model.checkpoint: it adds to weights that have been trained."
        )
    encoder = getattr(config.task, "encoder", "fine_tuned")
    if config.task.name == "features" or encoder != "fine_tuned":
        what = "features" if config.task.name == "features" else f"task.encoder {encoder}"
        raise InputError(f"train.lora_rank: {what} fine-tunes no encoder; leave it out.")


def _require_distillable(config: Config) -> None:
    if config.distill.teacher is None:
        return
    if config.task.name not in DISTILLABLE:
        raise InputError(
            f"distill.teacher: {config.task.name} learns from no teacher, as "
            f"{', '.join(DISTILLABLE)} do; leave it out."
        )
    if config.distill.layers is not None:
        for name in ("checkpoint", "vocab", "vocab_size"):
            if getattr(config.model, name):
                raise InputError(
                    f"distill.layers and model.{name} exclude each other: the student begins as "
                    "its teacher's layers, or as another model."
                )


def require_memory(count: int, what: str) -> None:
    """InputError if the machine has not the memory for so many numbers in float32."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * count > memory:
        raise InputError(
            f"{what} takes {4 * count / 2**30:,.1f} GiB of memory, and this machine has "
            f"{memory / 2**30:,.1f}."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check(valid: bool, option: str, wanted: str, received: Any) -> None:
    if not valid:
        raise InputError(f"{option} must be {wanted}, received {received!r}.")
