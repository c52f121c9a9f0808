"""The figures of evaluation on random cases, against scikit-learn.

`python tests/fidelity/figures.py` prints them as a table; its exit status is 1 if one misses.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":  # as __main__.py does
    sys.path[:1] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

import numpy as np  # noqa: E402
from sklearn import metrics as sklearn_metrics  # noqa: E402
from sklearn.calibration import calibration_curve  # noqa: E402

from fidelity.claims import Claim, Finding, bounded  # noqa: E402
from kbert.metrics import classes_report  # noqa: E402

BOUND = 1e-9
NUM_CASES = 200
OVERALL = (
    "accuracy",
    *(f"{name}_macro" for name in ("precision", "recall", "f1")),
    *(f"{name}_micro" for name in ("precision", "recall", "f1")),
    *(f"{name}_weighted" for name in ("precision", "recall", "f1")),
    *("matthews", "roc_auc", "pr_auc", "log_loss", "brier", "ece"),
)
PER_CLASS = ("precision", "recall", "f1", "roc_auc", "pr_auc", "rows")


# scikit-learn's figures, by our names; None where it has none


def reference_figures(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """The overall figures."""
    classes, predictions = range(probabilities.shape[1]), probabilities.argmax(axis=1)
    figures = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predictions),
        "matthews": sklearn_metrics.matthews_corrcoef(labels, predictions),
        "log_loss": sklearn_metrics.log_loss(labels, probabilities, labels=classes),
        "brier": sklearn_metrics.brier_score_loss(labels, probabilities, labels=classes),
        "ece": reference_ece(labels, probabilities),
        "roc_auc": reference_roc_auc(labels, probabilities),
        "pr_auc": reference_pr_auc(labels, probabilities),
    }
    for average in ("macro", "micro", "weighted"):
        values = sklearn_metrics.precision_recall_fscore_support(
            labels, predictions, average=average, zero_division=0
        )
        names = (f"{name}_{average}" for name in ("precision", "recall", "f1"))
        figures |= dict(zip(names, values, strict=False))
    return figures


def reference_roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Of class 1 of two, else the mean over classes; of those that scikit-learn can, if not all."""
    num_classes = probabilities.shape[1]
    if num_classes > 2 and len(np.unique(labels)) == num_classes:
        return sklearn_metrics.roc_auc_score(
            labels, probabilities, multi_class="ovr", average="macro"
        )
    areas = [class_roc_auc(labels, probabilities, index) for index in range(num_classes)]
    return areas[1] if num_classes == 2 else mean_of_known(areas)


def reference_pr_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """As `reference_roc_auc`."""
    num_classes = probabilities.shape[1]
    if num_classes > 2 and len(np.unique(labels)) == num_classes:
        return sklearn_metrics.average_precision_score(labels, probabilities, average="macro")
    areas = [class_pr_auc(labels, probabilities, index) for index in range(num_classes)]
    return areas[1] if num_classes == 2 else mean_of_known(areas)


def class_roc_auc(labels: np.ndarray, probabilities: np.ndarray, index: int) -> float | None:
    """One class against the rest; None where one of both has no rows."""
    is_class = labels == index
    if is_class.all() or not is_class.any():
        return None
    return sklearn_metrics.roc_auc_score(is_class, probabilities[:, index])


def class_pr_auc(labels: np.ndarray, probabilities: np.ndarray, index: int) -> float | None:
    """One class against the rest; None where it has no rows (scikit-learn warns, and says 0)."""
    is_class = labels == index
    if not is_class.any():
        return None
    return sklearn_metrics.average_precision_score(is_class, probabilities[:, index])


def mean_of_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def reference_ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """scikit-learn's calibration curve of "the prediction is right", weighted by rows."""
    confidence = np.minimum(probabilities.max(axis=1), 1.0)
    right = (probabilities.argmax(axis=1) == labels).astype(int)
    shares, means = calibration_curve(right, confidence, n_bins=15, pos_label=1)
    edges = np.linspace(0, 1, 16)
    counts = [
        np.sum((low < confidence) & (confidence <= high))
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    counts = [count for count in counts if count]
    return float(np.abs(shares - means) @ counts / len(labels))


def reference_classes(
    labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, list[float | None]]:
    """The figures of each class, a list over the classes."""
    classes, predictions = range(probabilities.shape[1]), probabilities.argmax(axis=1)
    values = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=classes, average=None, zero_division=0
    )
    columns = dict(zip(("precision", "recall", "f1", "rows"), map(list, values), strict=True))
    columns["roc_auc"] = [class_roc_auc(labels, probabilities, index) for index in classes]
    columns["pr_auc"] = [class_pr_auc(labels, probabilities, index) for index in classes]
    return columns


# Differences


def differences(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """By figure, how far ours is from scikit-learn's; infinity where only one is defined.

    A figure of each class, "f1 of a class", is as far as its worst class. Both get float64.
    """
    probabilities = probabilities.astype(np.float64)
    names = [f"class {index}" for index in range(probabilities.shape[1])]
    ours = classes_report(labels, probabilities, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single labels: the cases have them on purpose
        overall = reference_figures(labels, probabilities)
        classes = reference_classes(labels, probabilities)
        confusion = sklearn_metrics.confusion_matrix(
            labels, probabilities.argmax(axis=1), labels=range(len(names))
        )
    found = {name: difference(ours[name], overall[name]) for name in OVERALL}
    for name in PER_CLASS:
        column = [row[name] for row in ours["per_class"].values()]
        found[f"{name} of a class"] = max(map(difference, column, classes[name]))
    found["confusion matrix"] = float(np.abs(confusion - ours["confusion_matrix"]).max())
    return found


def difference(ours: float | None, theirs: float | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.inf
    gap = abs(ours - theirs)
    return math.inf if math.isnan(gap) else gap


def random_case(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities: smooth, tied or certain, of classes that may have no rows."""
    num_classes, rows = generator.integers(2, 9), int(generator.integers(1, 300))
    if generator.random() < 0.1:
        rows = 1
    probabilities = generator.dirichlet(np.full(num_classes, 0.7), rows)
    kind = generator.integers(4)
    if kind == 1:  # ties, in rows and in columns
        probabilities = generator.multinomial(8, probabilities) / 8
    if kind == 2:  # certain
        probabilities = np.eye(num_classes)[probabilities.argmax(axis=1)]
    if kind == 3:
        probabilities = probabilities.astype(np.float32)
    present = generator.permutation(num_classes)[: generator.integers(1, num_classes + 1)]
    labels = present[generator.integers(len(present), size=rows)]
    right = generator.random(rows) < generator.random()
    labels = np.where(right & np.isin(probabilities.argmax(axis=1), present),
                      probabilities.argmax(axis=1), labels)  # fmt: skip
    return labels, probabilities


def cases() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random small cases, and one as large as an intent data set."""
    generator = np.random.default_rng(0)
    for _ in range(NUM_CASES):
        yield random_case(generator)
    labels = np.r_[np.arange(150), generator.integers(150, size=4850)]
    logits = generator.normal(size=(5000, 150)) + 3 * np.eye(150)[labels]
    yield labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@functools.cache
def measured() -> tuple[dict[str, float], int]:
    """The largest difference of each figure, and of how many cases."""
    found = [differences(*case) for case in cases()]
    return {name: max(case[name] for case in found) for name in found[0]}, len(found)


def measure(name: str) -> Finding:
    largest, count = measured()
    return bounded(largest[name], BOUND, count)


FIGURES = (*OVERALL, *(f"{name} of a class" for name in PER_CLASS), "confusion matrix")
CLAIMS = [
    Claim(f"figure {name}; against scikit-learn", functools.partial(measure, name))
    for name in FIGURES
]


def main() -> int:
    """Print the table; the exit status."""
    largest, count = measured()
    width = max(map(len, FIGURES))
    print(f"{'figure':<{width}} | cases | largest difference from scikit-learn")
    print(f"{'-' * width}-|-------|-------------------------------------")
    for name in FIGURES:
        verdict = "" if measure(name).held else f"  MISSED: over {BOUND:.0e}"
        print(f"{name:<{width}} | {count:>5} | {largest[name]:.1e}{verdict}")
    return 0 if all(measure(name).held for name in FIGURES) else 1


if __name__ == "__main__":
    sys.exit(main())
