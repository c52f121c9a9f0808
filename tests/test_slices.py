"""kbert.slices: every row is in one slice, names can be read, figures are the slice's own."""

from __future__ import annotations

import numpy as np
import pytest

from kbert.slices import Slice, by_column, by_label, by_length, slice_table, wilson_interval


def named(slices: list[Slice]) -> dict[str, list[int]]:
    return {part.name: part.positions.tolist() for part in slices}


def test_lengths_in_five_buckets():
    lengths = np.array([30, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert named(by_length(lengths)) == {
        "1-2 word pieces": [1, 2],
        "3-4 word pieces": [3, 4],
        "5-6 word pieces": [5, 6],
        "7-8 word pieces": [7, 8],
        "9-30 word pieces": [0, 9],
    }


def test_equal_lengths_share_a_bucket():
    assert named(by_length(np.array([1, 1, 1, 1, 9]))) == {
        "1 word piece": [0, 1, 2, 3],
        "2-9 word pieces": [4],
    }
    assert named(by_length(np.array([7, 7]))) == {"7 word pieces": [0, 1]}
    assert named(by_length(np.array([0]))) == {"0 word pieces": [0]}
    assert by_length(np.zeros(0, int)) == []


def test_labels_without_rows_have_no_slice():
    labels = np.array([2, 0, 2])
    assert named(by_label(labels, ["a", "b", "c"])) == {"a": [1], "c": [0, 2]}


def test_the_most_frequent_values_and_the_rest():
    values = ["b", "a", "", "b", " "] + [f"v{number:02}" for number in range(30)] * 2
    slices = by_column(values)
    names = [part.name for part in slices]
    assert names[:2] == ["b", "v00"]
    assert names[19:] == ["v18", "(the other 12 values)", "(empty)"]
    assert slices[-2].positions.tolist() == [1, *range(24, 35), *range(54, 65)]
    assert slices[-1].positions.tolist() == [2, 4]
    every = np.sort(np.concatenate([part.positions for part in slices]))
    assert every.tolist() == list(range(len(values)))


def test_a_few_numbers_are_values_in_their_order():
    assert named(by_column(["10", "9", "10", "-1"])) == {"-1": [3], "9": [1], "10": [0, 2]}


def test_many_numbers_become_ranges():
    values = [*(str(number / 2) for number in range(100)), "", "1e3"]
    assert [(part.name, len(part.positions)) for part in by_column(values)] == [
        ("0 to 10", 21),
        ("10.5 to 20", 20),
        ("20.5 to 30", 20),
        ("30.5 to 40", 20),
        ("40.5 to 1000", 20),
        ("(empty)", 1),
    ]


def test_words_among_many_numbers_make_them_values():
    slices = by_column([*map(str, range(30)), "nan"])
    assert [part.name for part in slices[-1:]] == ["(the other 11 values)"]


def test_long_values_are_cut_in_names():
    name = by_column(["one\n" + "long " * 100])[0].name
    assert len(name) == 60 and name.startswith("one long long") and name.endswith("…")


def test_figures_of_slices():
    labels = np.array([0, 0, 1, 1, 2])
    predictions = np.array([0, 1, 1, 1, 0])
    slices = [Slice("all", np.arange(5)), Slice("ones", np.array([2, 3]))]
    baseline = np.array([0, 0, 1, 0, 2])
    whole, ones = slice_table(slices, labels, predictions, num_classes=3, baseline=baseline)
    assert whole == {
        "slice": "all",
        "rows": 5,
        "accuracy": 0.6,
        "accuracy_interval": pytest.approx([0.2307, 0.8824], abs=1e-4),
        "f1_macro": pytest.approx((0.5 + 0.8 + 0.0) / 3),
        "baseline_accuracy": 0.8,
    }
    assert ones["accuracy"] == 1 and ones["f1_macro"] is None and ones["baseline_accuracy"] == 0.5
    without = slice_table(slices, labels, predictions, num_classes=3)
    assert "baseline_accuracy" not in without[0]


def test_intervals_are_statistics_wilson_intervals():
    stats = pytest.importorskip("scipy.stats")
    for right, rows in [(0, 3), (3, 3), (1, 1), (7, 10), (950, 1000)]:
        wanted = stats.binomtest(right, rows).proportion_ci(method="wilson")
        assert wilson_interval(right, rows) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
