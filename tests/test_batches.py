"""Order, buckets and the cache of tokenised data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kbert.batches import (
    EncodedSplit,
    RaggedColumn,
    encode_split,
    epoch_order,
    epoch_sizes,
    evaluation_batches,
    group_batches,
    length_order,
    training_batches,
)
from kbert.config import parse
from kbert.data import read_dataset
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks import task_class
from kbert.tasks.task import Learned


@pytest.fixture
def prepared(tiny_options: list[str], tiny_checkpoint: Path):
    config = parse(tiny_options)
    dataset = read_dataset(config.data, task_class("classification").columns(config), seed=0)
    tokenizer = tokenizer_from_files(tiny_checkpoint)
    task = task_class("classification")(
        config, tokenizer, Learned(dataset.labels, np.array([1, 1]))
    )
    return task, dataset.splits["train"], config.data.cache_dir


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300),
    batch_size=st.integers(1, 17),
    epoch=st.integers(0, 3),
)
def test_each_row_once_an_epoch(lengths: list[int], batch_size: int, epoch: int) -> None:
    order = epoch_order(np.array(lengths), batch_size=batch_size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(order)) == list(range(len(lengths)))
    assert len(order) == -(-len(lengths) // batch_size)
    assert sum(len(batch) < batch_size for batch in order) <= 1
    again = epoch_order(np.array(lengths), batch_size=batch_size, seed=1, epoch=epoch)
    assert [list(batch) for batch in order] == [list(batch) for batch in again]


def test_epochs_and_seeds_differ() -> None:
    lengths = np.arange(100) % 7
    orders = [
        np.concatenate(epoch_order(lengths, batch_size=10, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_buckets_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 6_400)
    batches = epoch_order(lengths, batch_size=32, seed=0, epoch=0)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert lengths.sum() / padded > 0.97


def test_batches_hold_what_the_texts_say(prepared) -> None:
    task, split, cache_dir = prepared
    encoded = encode_split(split, task, cache_dir=cache_dir)
    texts = [text for batch in split.source.batches() for text in batch.column("text").to_pylist()]
    expected = sorted(
        [2, *task.tokenizer(tf.constant([texts[row]])).to_list()[0][:10], 3]
        for row in split.rows.tolist()
    )
    found = []
    for inputs, targets, weights in training_batches(encoded, task, batch_size=8, seed=0, epoch=0):
        assert targets.shape[1] == 2
        assert np.all(weights == 1)
        masks = inputs["padding_mask"].numpy().astype(bool)
        for ids, mask in zip(inputs["token_ids"].numpy(), masks, strict=True):
            found.append(ids[mask].tolist())
        assert masks.any(axis=0).all(), "padded to the batch's own longest text"
    assert sorted(found) == expected


def test_start_goes_on_with_the_next_batch(prepared) -> None:
    task, split, cache_dir = prepared
    encoded = encode_split(split, task, cache_dir=cache_dir)
    whole = list(training_batches(encoded, task, batch_size=8, seed=0, epoch=1))
    rest = list(training_batches(encoded, task, batch_size=8, seed=0, epoch=1, start=4))
    assert len(rest) == len(whole) - 4
    for ours, theirs in zip(rest, whole[4:], strict=True):
        np.testing.assert_array_equal(ours[0]["token_ids"], theirs[0]["token_ids"])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_tokenised_once(prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    task, split, cache_dir = prepared
    first = encode_split(split, task, cache_dir=cache_dir)
    monkeypatch.setattr(task, "encode", None)  # would fail if it were called
    second = encode_split(split, task, cache_dir=cache_dir)
    np.testing.assert_array_equal(first.segments[0].values, second.segments[0].values)
    assert not [path for path in Path(cache_dir).rglob("*.*.*") if path.is_dir()]


def test_another_tokeniser_has_another_cache(prepared) -> None:
    task, split, cache_dir = prepared
    encode_split(split, task, cache_dir=cache_dir)
    task.encoding_key = ["another"]
    encode_split(split, task, cache_dir=cache_dir)
    assert len(list((Path(cache_dir) / "tokens").iterdir())) == 2


def test_evaluation_sees_each_row_once(prepared) -> None:
    task, split, cache_dir = prepared
    encoded = encode_split(split, task, cache_dir=cache_dir)
    sizes = [len(targets) for _, targets, _ in evaluation_batches(encoded, task, batch_size=32)]
    assert sum(sizes) == len(encoded)


def test_long_rows_are_measured_a_few_at_a_time() -> None:
    lengths = np.array([4000, 9000, 4096, 5, 5, 5, 0, 0])
    batches = [batch.tolist() for batch in length_order(lengths, batch_size=3)]
    assert batches == [[1], [2, 0], [3, 4, 5], [6, 7]]


def test_sizes_are_those_of_the_batches(prepared) -> None:
    task, split, cache_dir = prepared
    encoded = encode_split(split, task, cache_dir=cache_dir)
    for epoch in range(2):
        order = {"batch_size": 8, "seed": 3, "epoch": epoch}
        found = [
            (len(inputs["token_ids"]), int(np.sum(inputs["padding_mask"])),
             int(np.size(inputs["padding_mask"])))
            for inputs, _, _ in training_batches(encoded, task, **order)
        ]  # fmt: skip
        assert epoch_sizes(encoded, task, **order).tolist() == [list(sizes) for sizes in found]


def test_a_row_is_as_long_as_its_longest_part() -> None:
    texts = RaggedColumn(np.zeros(9, np.int32), np.array([0, 4, 5, 9]))
    targets = RaggedColumn(np.zeros(8, np.int32), np.array([0, 1, 8, 8]))
    split = EncodedSplit((texts, texts), np.array([0, 1, 2]), None, targets=(targets,))
    assert split.longest.tolist() == [8, 7, 8]


def test_padding_of_many_rows_is_judged_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 20_000)
    whole = group_batches(lengths, batch_size=32)
    monkeypatch.setattr("kbert.batches.SAMPLE", 4_000)
    assert 1 < whole == group_batches(lengths, batch_size=32)
    order = np.random.default_rng(0).permutation(len(lengths))
    lengths[order[4_000:]] = 50  # what is not in the sample is not looked at
    assert group_batches(lengths, batch_size=32) == whole
