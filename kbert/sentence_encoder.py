"""Texts to vectors, by a checkpoint as it is or by the model of a run, and those of whole files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kbert.batches import ROWS_A_CALL, cache_root, length_order
from kbert.errors import InputError
from kbert.finished_run import open_run
from kbert.loading import load_encoder, load_tokenizer, resolve
from kbert.pooling import sentence_encoder
from kbert.preprocessing import BertPacker, WordPieceTokenizer
from kbert.sentence_transformers import read_sentence_vectors
from kbert.tasks.embedding import vector_model
from kbert.text_files import Source
from kbert.whole_files import written_whole

BATCH_SIZE = 32


class SentenceEncoder:
    """Texts to vectors.

    Args:
        model: Encoder and pooling: inputs of a packer to (batch, hidden).
        tokenizer: The tokeniser of its inputs.
        max_length: Longest text in word pieces, [CLS] and [SEP] included.

    Example:

    >>> encoder = kbert.load_sentence_encoder("path/to/all-MiniLM-L6-v2")
    >>> first, second = encoder(["A cat sat.", "The cat is sitting."])
    >>> float(first @ second)  # these are normalised, so that this is their cosine
    """

    def __init__(
        self, model: keras.Model, *, tokenizer: WordPieceTokenizer, max_length: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.packer = BertPacker(
            max_length=max_length,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self._vectors = tf.function(
            lambda ids: model(self.packer([ids]), training=False), reduce_retracing=True
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of some texts, float32 (texts, hidden), in their order."""
        vectors = np.zeros((len(texts), self.hidden_dim), np.float32)
        if len(texts):
            ids = self.tokenizer(tf.constant(list(texts)))
            lengths = ids.row_lengths().numpy()
            for rows in length_order(lengths, batch_size=BATCH_SIZE):
                vectors[rows] = self._vectors(tf.gather(ids, rows))
        return vectors

    @property
    def hidden_dim(self) -> int:
        """Width of the vectors."""
        return self.model.output.shape[-1]

    @property
    def digest(self) -> str:
        """SHA-256 of all that the vectors depend on."""
        layers = [type(layer).__name__ for layer in self.model.layers]
        key = [layers, self.packer.max_length, self.tokenizer.get_config()]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
        for weight in self.model.weights:
            digest.update(np.asarray(weight).tobytes())
        return digest.hexdigest()


def load_sentence_encoder(source: str | Path, *, revision: str | None = None) -> SentenceEncoder:
    """What makes vectors of texts: a run's model, or a checkpoint as it is.

    A checkpoint pools, normalises and truncates as its sentence-transformers files say. Without
    such files the states are averaged, and not normalised; a line of the log says so.

    Args:
        source: Folder of a finished run of the task embedding, or of a checkpoint in HuggingFace
            layout, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        InputError: the run or the checkpoint cannot be used, or makes no vectors.
    """
    if (Path(source) / "config.yaml").exists():
        return _of_run(Path(source))
    folder = resolve(source, revision=revision)
    vectors = read_sentence_vectors(folder)
    encoder = load_encoder(folder)
    longest = encoder.get_layer("position_embedding").sequence_length
    length = min(vectors.max_length or longest, longest)
    model = sentence_encoder(encoder, pooling=vectors.pooling, normalize=vectors.normalize)
    return SentenceEncoder(model, tokenizer=load_tokenizer(folder), max_length=length)


def _of_run(folder: Path) -> SentenceEncoder:
    run = open_run(folder)
    if run.config.task.name != "embedding":
        raise InputError(
            f"{folder}: a run of the task {run.config.task.name}, which makes no vectors; name one "
            "of the task embedding, or a checkpoint."
        )
    experiment = run.experiment_without_data()
    task = experiment.task
    model = vector_model(run.model(experiment))
    return SentenceEncoder(model, tokenizer=task.tokenizer, max_length=task.max_length)


def file_vectors(
    encoder: SentenceEncoder,
    source: Source,
    *,
    rows: int,
    cache_dir: str | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """The vectors of the texts of a file, computed once and kept under the cache folder.

    The file is read as a stream; the vectors are on disk, not in memory.

    Args:
        encoder: Makes the vectors.
        source: The file, with one text column.
        rows: How many it has.
        cache_dir: The cache folder; None for the user's.
        report: Called with the rows that are done, where there is something to compute.

    Returns:
        float32 (rows, hidden), mapped from disk.

    Raises:
        InputError: the file cannot be read.
    """
    key = hashlib.sha256(f"{source.digest} {encoder.digest}".encode()).hexdigest()[:32]
    path = cache_root(cache_dir) / "vectors" / f"{key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            _write_vectors(beside, encoder, source, rows, report)
    return np.load(path, mmap_mode="r")


def _write_vectors(
    path: Path, encoder: SentenceEncoder, source: Source, rows: int, report: Callable[[int], None]
) -> None:
    done = 0
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, encoder.hidden_dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in source.batches():
            texts = batch.column(0).to_pylist()
            for start in range(0, len(texts), ROWS_A_CALL):
                part = texts[start : start + ROWS_A_CALL]
                file.write(encoder(part).astype("<f4").tobytes())
                done += len(part)
                report(done)
