"""The linear model that every BERT must beat: TF-IDF and multinomial logistic regression.

Its features are word pieces and pairs of neighbouring word pieces, counted from the cached ids of
whole texts, so that it sees what BERT sees (and more where texts are truncated), in any language.
Light to import: neither scikit-learn nor TensorFlow is needed before a model is fitted.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from kbert.errors import InputError
from kbert.logistic import weights_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from kbert.batches import EncodedSplit, RaggedColumn

MAX_ROWS = 100_000
"""Training rows at most; a sample of more is drawn."""
MAX_PIECES = 10_000_000
"""Word pieces of the training rows at most, all together."""
MAX_PRODUCTS = 200_000_000
"""Word pieces times columns of weights (one for two classes) at most: the time of a pass."""
MAX_FEATURES = 200_000
"""Features at most, the most frequent ones."""
MAX_WEIGHTS = 10_000_000
"""Features times columns of weights at most."""
MOST_BYTES = 8 * (MAX_WEIGHTS + 2 * MAX_FEATURES)
"""Of a file, more than the largest has."""
MIN_ROWS = 2  # in which a feature is to be seen
STRENGTHS = (3.0, 30.0, 300.0)  # scikit-learn's C; the validation rows choose among them
DEFAULT_STRENGTH = 30.0  # without validation rows
PASSES = (10, 30)  # over the rows: for large sets, which need fewer, and for small ones
PASSES_PRODUCTS = 1_000_000_000  # nonzero features times columns of weights, of all passes
TOLERANCE = 1e-3  # of SAGA: the largest change of a weight in a pass, as a share of the largest
ID_BITS = 21  # of a word piece; two of them and a row of a chunk are one int64
CHUNK_PIECES = 1 << 20  # pieces, and also rows, that are counted at a time
SMALLEST = 1e-15  # probability in a log loss
FORMAT = "kbert.baseline 1"
ARRAYS = {
    "features": (np.int64, 1),
    "idf": (np.float32, 1),
    "coef": (np.float32, 2),
    "intercept": (np.float32, 1),
    "train_rows": (np.int64, 0),
    "strength": (np.float64, 0),
}  # type and axes of what a file holds


@dataclass(frozen=True, eq=False)
class Baseline:
    """A fitted linear model.

    Example:

    ```python
    baseline = fit_baseline(splits["train"], num_classes=3, validation=splits["validation"], seed=0)
    baseline.probabilities(splits["test"])  # (rows, 3)
    ```
    """

    features: np.ndarray
    """What is counted, int64 (features,), ascending: a word piece is its id, a pair is
    (first + 1) * 2**21 + second."""
    idf: np.ndarray
    """Weight of each feature, the rarer the larger, float32 (features,)."""
    coef: np.ndarray
    """float32 (features, classes)."""
    intercept: np.ndarray
    """float32 (classes,)."""
    train_rows: int
    """Number of rows that it was fitted on: all, or a sample."""
    strength: float
    """C of scikit-learn's LogisticRegression: the larger, the less the weights are held small."""

    def probabilities(self, split: EncodedSplit) -> np.ndarray:
        """Probability of each class, float64 (rows, classes); the same to the bit at every call."""
        found = [
            self._probabilities(_weigh(chunk.matrix(self.features), self.idf))
            for chunk in _counted(split)
        ]
        return np.concatenate(found) if found else np.zeros((0, len(self.intercept)))

    def save(self, path: Path) -> None:
        """Write it as safetensors, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        from kbert.tensor_files import write_tensors

        arrays = {name: np.asarray(getattr(self, name), kind) for name, (kind, _) in ARRAYS.items()}
        write_tensors(path, arrays, {"format": FORMAT})

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file, or it is damaged or something else.
        """
        arrays = _read(path)
        scalars = {name: arrays.pop(name).item() for name in ("train_rows", "strength")}
        return cls(**arrays, **scalars)

    def _probabilities(self, weighed: csr_array) -> np.ndarray:
        logits = (weighed @ self.coef).astype(np.float64) + self.intercept
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


def fit_baseline(
    train: EncodedSplit, *, num_classes: int, validation: EncodedSplit | None, seed: int
) -> Baseline:
    """Fit scikit-learn's TfidfTransformer and LogisticRegression to the word pieces of a split.

    Counts are taken of word pieces and of pairs of neighbours within a segment; the segments of a
    row are counted together. Their logarithms are weighed by TF-IDF, rows have length 1. Features
    of a single row are left out, and the rarest beyond `MAX_FEATURES` and `MAX_WEIGHTS`.

    A large set is sampled: at most `MAX_ROWS` rows, fewer where they have over `MAX_PIECES` word
    pieces or the classes are many (`MAX_PRODUCTS`); `Baseline.train_rows` tells how many it were.
    The same limits hold for the validation rows that choose C by their log loss. Weights are
    found by SAGA, in up to 30 passes over the rows (10 over large sets).

    Args:
        train: Rows with labels; whole texts are counted, whatever the longest input of BERT.
        num_classes: Number of classes; one without a training row gets a probability near 0.
        validation: Rows that choose C; None, or rows without labels, for `DEFAULT_STRENGTH`.
        seed: Seed of the sample and of SAGA's order of rows.

    Raises:
        ValueError: `train` has no labels or no rows, or an id is 2**21 - 1 or more.
    """
    if train.labels is None or len(train) == 0:
        raise ValueError(f"a baseline needs rows with labels, received {len(train)} rows")
    columns = 1 if num_classes == 2 else num_classes
    train = _sample(train, columns=columns, seed=seed)
    labels = _labels(train)
    chunks = list(_counted(train))
    features = _frequent(chunks, min(MAX_FEATURES, MAX_WEIGHTS // columns))
    counts = _stacked(chunks, features)
    del chunks  # of about the size of the counts
    prior = _prior(features, labels, num_classes)
    if len(features) == 0 or len(np.unique(labels)) < 2:  # scikit-learn needs more
        return prior
    blank = dataclasses.replace(prior, idf=_fit_idf(counts))
    weighed = _weigh(counts, blank.idf)
    if validation is None or validation.labels is None or len(validation) == 0:
        return _fit(blank, weighed, labels, strength=DEFAULT_STRENGTH, seed=seed)
    judges = _sample(validation, columns=columns, seed=seed)
    judged = _weigh(_stacked(_counted(judges), features), blank.idf)
    best, least = blank, np.inf
    for strength in STRENGTHS:  # the loss falls, then rises
        found = _fit(blank, weighed, labels, strength=strength, seed=seed)
        loss = _log_loss(found._probabilities(judged), _labels(judges))
        if loss >= least:
            break
        best, least = found, loss
    return best


# Counting


@dataclass(frozen=True)
class _Counts:
    """How often each feature is in each of some rows, sorted by (row, feature)."""

    rows: int
    row: np.ndarray
    feature: np.ndarray
    count: np.ndarray

    def matrix(self, features: np.ndarray) -> csr_array:
        """float32 (rows, features) of the features that are known."""
        from scipy.sparse import csr_array

        if len(features) == 0:
            return csr_array((self.rows, 0), dtype=np.float32)
        column = np.minimum(np.searchsorted(features, self.feature), len(features) - 1)
        known = features[column] == self.feature
        ends = np.cumsum(np.bincount(self.row[known], minlength=self.rows))
        starts = np.concatenate([[0], ends]).astype(np.int32)  # SAGA takes no longer ones
        parts = (self.count[known], column[known].astype(np.int32), starts)
        return csr_array(parts, shape=(self.rows, len(features)))


def _counted(split: EncodedSplit) -> Iterator[_Counts]:
    """The counts of all rows, chunk by chunk."""
    segments = cast("tuple[RaggedColumn, ...]", split.segments)  # labelled rows are of one file
    chunk = np.cumsum(split.lengths + 1) // CHUNK_PIECES
    for positions in np.split(np.arange(len(split)), np.flatnonzero(np.diff(chunk)) + 1):
        if len(positions):
            yield _count(segments, split.rows[positions])


def _count(segments: tuple[RaggedColumn, ...], rows: np.ndarray) -> _Counts:
    found = np.sort(np.concatenate([_occurrences(segment, rows) for segment in segments]))
    distinct, count = _distinct(found)
    feature = distinct & ((1 << 2 * ID_BITS) - 1)
    return _Counts(len(rows), distinct >> 2 * ID_BITS, feature, count.astype(np.float32))


def _occurrences(segment: RaggedColumn, rows: np.ndarray) -> np.ndarray:
    """Each word piece and each pair of neighbours, as the position of its row and the feature."""
    lengths = segment.lengths(rows)
    row = np.repeat(np.arange(len(rows)), lengths)
    # where each id stands: the start of its row, and how many of the row are before it
    before = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids = segment.values[np.repeat(segment.offsets[rows], lengths) + before].astype(np.int64)
    if len(ids) and ids.max() >= (1 << ID_BITS) - 1:
        raise ValueError(f"the id of a word piece must be under {(1 << ID_BITS) - 1}: {ids.max()}")
    places = row << 2 * ID_BITS
    pairs = places[1:] | (ids[:-1] + 1) << ID_BITS | ids[1:]
    return np.concatenate([places | ids, pairs[row[1:] == row[:-1]]])


def _distinct(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of a sorted array, and how often each is there."""
    is_first = np.ones(len(ascending), bool)
    is_first[1:] = ascending[1:] != ascending[:-1]
    starts = np.flatnonzero(is_first)
    return ascending[starts], np.diff(starts, append=len(ascending))


def _frequent(chunks: list[_Counts], most: int) -> np.ndarray:
    """Features of several rows, the most frequent ones, ascending."""
    features, rows = _distinct(np.sort(np.concatenate([chunk.feature for chunk in chunks])))
    features, rows = features[rows >= MIN_ROWS], rows[rows >= MIN_ROWS]
    kept = np.argsort(-rows, kind="stable")[:most]
    return np.sort(features[kept])


def _stacked(chunks: Iterable[_Counts], features: np.ndarray) -> csr_array:
    from scipy.sparse import csr_array, vstack

    return csr_array(vstack([chunk.matrix(features) for chunk in chunks], format="csr"))


def _labels(split: EncodedSplit) -> np.ndarray:
    assert split.labels is not None
    return split.labels


def _sample(split: EncodedSplit, *, columns: int, seed: int) -> EncodedSplit:
    """All rows, or as many drawn ones as the limits allow, in the order of the split."""
    drawn = np.random.default_rng(seed).permutation(len(split))
    pieces = np.cumsum(split.lengths[drawn])
    fits = (pieces <= MAX_PIECES) & (pieces * columns <= MAX_PRODUCTS)
    count = min(MAX_ROWS, max(1, int(fits.sum())))
    return split if count == len(split) else split.take(np.sort(drawn[:count]))


# Fitting


def _fit_idf(counts: csr_array) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfTransformer

    return np.asarray(TfidfTransformer(sublinear_tf=True).fit(counts).idf_, np.float32)


def _weigh(counts: csr_array, idf: np.ndarray) -> csr_array:
    """Rows of length 1 of (1 + log of the count) times idf."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfTransformer

    if len(idf) == 0:
        return counts
    transformer = TfidfTransformer(sublinear_tf=True)
    transformer.idf_ = idf
    return csr_array(transformer.transform(counts))


def _prior(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Baseline:
    """A model that knows the classes' frequencies alone."""
    counts = np.bincount(labels, minlength=num_classes)
    return Baseline(
        features,
        np.ones(len(features), np.float32),
        np.zeros((len(features), num_classes), np.float32),
        np.log((counts + 1) / (counts.sum() + num_classes)).astype(np.float32),
        len(labels),
        DEFAULT_STRENGTH,
    )


def _fit(
    blank: Baseline, weighed: csr_array, labels: np.ndarray, *, strength: float, seed: int
) -> Baseline:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(labels)
    columns = 1 if len(classes) == 2 else len(classes)
    fewest, most = PASSES
    passes = int(np.clip(PASSES_PRODUCTS // max(1, weighed.nnz * columns), fewest, most))
    model = LogisticRegression(
        C=strength, solver="saga", max_iter=passes, tol=TOLERANCE, random_state=seed
    )
    with warnings.catch_warnings():  # to stop early is meant: it is as good, and cheap
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(weighed, labels)
    coef, intercept = weights_of(model, num_classes=len(blank.intercept), rows=len(labels))
    return dataclasses.replace(blank, coef=coef, intercept=intercept, strength=strength)


def _log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, SMALLEST)).mean())


# Files


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, checked."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; it is written beside a finished run.")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path}: has over {MOST_BYTES:,} bytes, as no baseline; make it anew.")
    try:
        with safe_open(path, "np") as file:
            is_ours = (file.metadata() or {}).get("format") == FORMAT
            arrays = {name: file.get_tensor(name) for name in ARRAYS} if is_ours else {}
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged, or no baseline: {reason}; make it anew.") from None
    if not is_ours or not _fits(arrays):
        raise InputError(f"{path}: not a baseline of this version of kbert; make it anew.")
    return arrays


def _fits(arrays: dict[str, np.ndarray]) -> bool:
    """Whether types and sizes are those of one model."""
    if any((arrays[name].dtype, arrays[name].ndim) != of for name, of in ARRAYS.items()):
        return False
    features, classes = arrays["coef"].shape
    sizes = (len(arrays["features"]), len(arrays["idf"]), len(arrays["intercept"]))
    is_ascending = bool((np.diff(arrays["features"]) > 0).all())
    return sizes == (features, features, classes) and classes > 0 and is_ascending
