"""Figures of classification against scikit-learn."""

from __future__ import annotations

import json
import tracemalloc

import keras
import numpy as np
import pytest
from fidelity.figures import differences, reference_figures
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from kbert import metrics
from kbert.metrics import (
    MacroF1,
    MultiLabelF1,
    Pearson,
    classes_report,
    classification_figures,
    cross_entropy,
    intervals,
    probability_figures,
)

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(ROWS)
def test_figures_are_those_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(rows).T
    figures = classification_figures(labels, predictions, num_classes=5)
    summary = figures.summary()
    arguments = {"y_true": labels, "y_pred": predictions, "zero_division": 0}
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
            **arguments, average=average
        )
        assert summary[f"precision_{average}"] == pytest.approx(precision, abs=1e-12)
        assert summary[f"recall_{average}"] == pytest.approx(recall, abs=1e-12)
        assert summary[f"f1_{average}"] == pytest.approx(f1, abs=1e-12)
    assert summary["accuracy"] == pytest.approx((labels == predictions).mean(), abs=1e-12)
    matthews = sklearn_metrics.matthews_corrcoef(labels, predictions)
    assert summary["matthews"] == pytest.approx(matthews, abs=1e-12)
    expected = sklearn_metrics.confusion_matrix(labels, predictions, labels=range(5))
    assert figures.confusion.tolist() == expected.tolist()
    per_class = sklearn_metrics.precision_recall_fscore_support(
        **arguments, labels=range(5), average=None
    )
    ours = figures.per_class(tuple("abcde"))
    for column, name in enumerate(("precision", "recall", "f1", "rows")):
        theirs = per_class[column]
        assert [row[name] for row in ours.values()] == pytest.approx(list(theirs), abs=1e-12)


def test_cross_entropy() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [80.0, -80.0, 0.0], [0.1, 0.2, 0.3]], np.float32)
    labels = np.array([0, 1, 2])
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(3), labels]).mean()
    assert cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=20))
def test_multi_label_f1_over_batches(rows: list[list[bool]]) -> None:
    labels, logits = np.split(np.array(rows, np.float32), 2, axis=1)
    logits = np.where(logits > 0, 0.1, -0.1)
    seen = np.flatnonzero(labels.any(axis=0) | (logits > 0).any(axis=0))
    for average, classes in (("micro", [0, 1, 2]), ("macro", seen)):
        metric = MultiLabelF1(3, average=average)
        assert metric.name == f"f1_{average}"
        for part in np.array_split(np.arange(len(rows)), 3):
            if len(part):
                metric.update_state(labels[part], logits[part])
        expected = 0.0
        if len(classes):
            expected = sklearn_metrics.f1_score(
                labels, logits > 0, labels=classes, average=average, zero_division=0
            )
        assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
        copy = MultiLabelF1.from_config(metric.get_config())
        assert (copy.num_classes, copy.average) == (3, average)


def test_pearson_over_batches() -> None:
    generator = np.random.default_rng(0)
    # a mean that is large beside the deviation takes the digits of sums
    labels = 1e4 + generator.normal(size=(50, 1)).astype(np.float32)
    predictions = labels + generator.normal(size=(50, 1)).astype(np.float32)
    metric = Pearson()
    assert float(metric.result()) == 0
    for part in np.array_split(np.arange(50), 7):
        metric.update_state(labels[part], predictions[part])
    expected = np.corrcoef(labels[:, 0].astype(float), predictions[:, 0].astype(float))[0, 1]
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    metric.update_state([[2.0], [2.0]], [[1.0], [3.0]])
    assert float(metric.result()) == 0


@given(ROWS)
def test_macro_f1_over_batches(rows: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(rows).T
    metric = MacroF1(5)
    for part in np.array_split(np.arange(len(rows)), 3):
        if len(part):
            metric.update_state(np.eye(5)[labels[part]], np.eye(5)[predictions[part]])
    expected = sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_macro_f1_round_trip() -> None:
    metric = keras.metrics.deserialize(keras.metrics.serialize(MacroF1(3)))
    assert metric.num_classes == 3
    assert float(metric.result()) == 0.0


def test_macro_f1_leaves_out_rows_of_weight_zero() -> None:
    metric = MacroF1(2)
    metric.update_state([[1, 0], [0, 1]], [[1.0, 0.0], [1.0, 0.0]], sample_weight=[1.0, 0.0])
    assert float(metric.result()) == 1.0


# Labels and probabilities

LABELS = np.array([0, 0, 1, 1, 2, 2])
PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1],
        [0.4, 0.3, 0.3],
        [0.1, 0.8, 0.1],
        [0.2, 0.3, 0.5],
        [0.4, 0.4, 0.2],
        [0.1, 0.2, 0.7],
    ]
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of two to eight classes, with ties, certainty, missing classes."""
    num_classes = draw(st.integers(2, 8))
    row = st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=num_classes, max_size=num_classes)
    parts = np.array(draw(st.lists(row.filter(any), min_size=1, max_size=24)), np.float64)
    labels = st.integers(0, draw(st.integers(0, num_classes - 1)))  # the last may have no rows
    length = len(parts)
    chosen = np.array(draw(st.lists(labels, min_size=length, max_size=length)))
    probabilities = parts / parts.sum(axis=1, keepdims=True)
    return chosen, probabilities.astype(draw(st.sampled_from([np.float64, np.float32])))


@given(tables())
def test_all_figures_are_those_of_scikit_learn(table: tuple[np.ndarray, np.ndarray]) -> None:
    assert {name: gap for name, gap in differences(*table).items() if gap > 1e-9} == {}


def test_figures_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    figures = probability_figures(labels, np.stack([1 - scores, scores], axis=1))
    assert figures["roc_auc"] == pytest.approx(3 / 4)  # one of four pairs is in the wrong order
    assert figures["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["brier"] == pytest.approx((0.1**2 + 0.4**2 + 0.65**2 + 0.2**2) / 4)
    assert figures["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.35, 0.8]).mean())
    # each row in a bin of its own, with confidence 0.9, 0.6, 0.65 (wrong) and 0.8
    assert figures["ece"] == pytest.approx((0.4 + 0.65 + 0.2 + 0.1) / 4)


def test_three_classes_by_hand() -> None:
    figures = probability_figures(LABELS, PROBABILITIES)
    # class 0: 1, then 2 of the 3 down to 0.4; classes 1 and 2: 1, then 2 of 4
    assert figures["pr_auc"] == pytest.approx(((1 + 2 / 3) / 2 + 3 / 4 + 3 / 4) / 3)
    # of 8 pairs each: class 0 has half a pair wrong, class 1 one and a half, class 2 two
    assert figures["roc_auc"] == pytest.approx((7.5 + 6.5 + 6) / 24)
    assert figures["brier"] == pytest.approx(
        (0.14 + 0.54 + 0.06 + 0.78 + 0.96 + 0.14) / 6  # rows: squared errors over the classes
    )


def test_equal_scores_are_half_a_pair() -> None:
    figures = probability_figures(np.array([0, 1, 1]), np.full((3, 2), 0.5))
    assert (figures["roc_auc"], figures["pr_auc"]) == (0.5, pytest.approx(2 / 3))


def test_what_is_not_defined_is_none() -> None:
    report = classes_report(np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]), ("a", "b"))
    assert (report["roc_auc"], report["pr_auc"]) == (None, None)
    assert report["per_class"]["a"]["roc_auc"] is None
    assert report["per_class"]["a"]["pr_auc"] == 1
    assert report["per_class"]["b"]["pr_auc"] is None
    json.dumps(report, allow_nan=False)


def test_report() -> None:
    report = classes_report(LABELS, PROBABILITIES, ("x", "y", "z"))
    json.dumps(report, allow_nan=False)
    assert list(report["per_class"]["x"]) == [
        *("precision", "recall", "f1", "roc_auc", "pr_auc", "rows"),
    ]
    assert report["confusion_matrix"] == [[2, 0, 0], [0, 1, 1], [1, 0, 1]]
    assert (report["rows"], report["labels"]) == (6, ["x", "y", "z"])
    figures = classification_figures(LABELS, PROBABILITIES.argmax(axis=1), num_classes=3)
    expected = figures.summary() | probability_figures(LABELS, PROBABILITIES)
    assert {name: report[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.zeros((0, 2)), "with a row at least"),
        ([0, 1], np.full((3, 2), 0.5), r"Received: \(2,\) and \(3, 2\)"),
        ([0, 2], np.full((2, 2), 0.5), "from 0 to 1; Received: 0 to 2"),
        ([0, -1], np.full((2, 2), 0.5), "Received: -1 to 0"),
        ([0, 1], np.full((2, 2), np.nan), "not a number"),
    ],
)
def test_what_does_not_fit(labels: list, probabilities: np.ndarray, message: str) -> None:
    for function in (probability_figures, intervals):
        with pytest.raises(ValueError, match=message):
            function(np.array(labels, int), probabilities)


# Intervals


def random_table(rows: int, num_classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities in eighths that know something of them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=rows)
    chances = generator.dirichlet(np.ones(num_classes), rows) + np.eye(num_classes)[labels]
    return labels, generator.multinomial(8, chances / 2) / 8


@pytest.mark.parametrize("cells", [1, 200, metrics.CELLS])
def test_intervals_are_those_of_a_loop(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CELLS", cells)  # one resample at a time, a few, all
    labels, probabilities = random_table(40, 3)
    generator, resamples = np.random.default_rng(7), []
    for _ in range(11):
        drawn = generator.integers(40, size=40)
        resamples.append(reference_figures(labels[drawn], probabilities[drawn]))
    found = intervals(labels, probabilities, seed=7, resamples=11, level=0.8)
    assert set(found) == set(resamples[0])
    for name, ends in found.items():
        values = [figures[name] for figures in resamples]
        assert ends == pytest.approx(np.percentile(values, [10, 90]).tolist(), abs=1e-9), name


def test_intervals_of_few_rows() -> None:
    found = intervals(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]))
    assert found["roc_auc"] == [1, 1]  # in each resample that has both classes
    alone = intervals(np.array([0]), np.array([[0.9, 0.1]]))
    assert alone["accuracy"] == [1, 1]
    assert "roc_auc" not in alone and "pr_auc" not in alone
    json.dumps({**found, **alone}, allow_nan=False)


def test_intervals_cover_the_truth_at_their_level() -> None:
    generator, covered = np.random.default_rng(0), 0
    for seed in range(300):
        labels = generator.integers(2, size=150)
        right = generator.random(150) < 0.8
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        low, high = intervals(labels, probabilities, seed=seed, resamples=200)["accuracy"]
        covered += low <= 0.8 <= high
    assert 0.91 < covered / 300 < 0.98


def test_memory_does_not_grow_with_resamples() -> None:
    labels, probabilities = random_table(20_000, 2)
    peaks = []
    for resamples in (50, 200):  # two parts, eight parts
        tracemalloc.start()
        intervals(labels, probabilities, resamples=resamples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("options", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_intervals_of_nothing(options: dict) -> None:
    with pytest.raises(ValueError, match="resamples must be positive and level between 0 and 1"):
        intervals(LABELS, PROBABILITIES, **options)
