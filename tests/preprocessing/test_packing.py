"""BertPacker and BertWindowPacker: by hand, then identity with HuggingFace."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_reference import (
    differing_windows,
    pack,
    packed_rows,
    pairs_of_all_lengths,
    reference,
    reference_row,
    special_token_ids,
)

from kbert.errors import InputError
from kbert.preprocessing import (
    BertPacker,
    BertWindowPacker,
    tokenizer_from_vocabulary_file,
)
from kbert.preprocessing.windows import cut

SPECIAL = {"cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}


@pytest.fixture
def packer() -> BertPacker:
    return BertPacker(max_length=8, **SPECIAL)


@pytest.fixture(scope="module")
def tokenizers(minilm):
    """Ours and theirs."""
    path = minilm / "vocab.txt"
    return tokenizer_from_vocabulary_file(path), reference(path)


def ragged(ids: list[list[int]]) -> tf.RaggedTensor:
    return tf.ragged.constant(ids, dtype=tf.int32)


def test_packer_with_one_text(packer):
    packed = packer((ragged([[5, 6], [], [5] * 9]),))
    rows = [[2, 5, 6, 3, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0], [2, 5, 5, 5, 5, 5, 5, 3]]
    assert packed["token_ids"].numpy().tolist() == rows
    assert packed["segment_ids"].numpy().tolist() == [[0] * 8] * 3
    mask = [[1] * 4 + [0] * 4, [1] * 2 + [0] * 6, [1] * 8]
    assert packed["padding_mask"].numpy().tolist() == mask
    assert all(value.dtype == tf.int32 for value in packed.values())


def test_packer_with_two_texts(packer):
    first = tf.ragged.constant([[5], [], [5] * 4, [5] * 4], dtype=tf.int32)
    second = tf.ragged.constant([[6, 7], [], [6] * 4, [6]], dtype=tf.int32)
    packed = packer((first, second))
    assert packed["token_ids"].numpy().tolist() == [
        [2, 5, 3, 6, 7, 3, 0, 0],
        [2, 3, 3, 0, 0, 0, 0, 0],
        [2, 5, 5, 3, 6, 6, 6, 3],  # of 5 places the second text gets 3
        [2, 5, 5, 5, 5, 3, 6, 3],
    ]
    assert packed["segment_ids"].numpy().tolist() == [
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_packer_pads_to_the_longest_of_the_batch(packer):
    ids = ragged([[5], [5, 6]])
    assert packer((ids,))["token_ids"].shape == (2, 4)
    assert packer((ids[:0],))["token_ids"].shape == (0, 2)
    assert packer((ids[:0], ids[:0]))["padding_mask"].shape == (0, 3)


@pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("max_length", [3, 4, 7, 10])
def test_packer_truncates_as_huggingface(tokenizers, max_length, truncation):
    ours, theirs = tokenizers
    packer = BertPacker(max_length=max_length, truncation=truncation, **special_token_ids(ours))
    pairs = pairs_of_all_lengths(max_length + 2, seed=max_length)
    options = {"truncation": truncation, "max_length": max_length}
    for texts in [pairs] + [[pair[:1] for pair in pairs]] * (truncation != "only_second"):
        rows = packed_rows(pack(ours, packer, texts))
        expected = [reference_row(theirs, text, **options) for text in texts]
        assert sum(row is not None for row in expected) > 6
        differing = [text for text, a, b in zip(texts, rows, expected, strict=True) if b and a != b]
        assert not differing


def test_packer_without_truncation(tokenizers):
    ours, theirs = tokenizers
    packer = BertPacker(max_length=None, truncation="do_not_truncate", **special_token_ids(ours))
    for texts in (pairs_of_all_lengths(9, seed=0), [("good day",), ("",)]):
        expected = [reference_row(theirs, text) for text in texts]
        assert packed_rows(pack(ours, packer, texts)) == expected


@pytest.mark.parametrize(
    ("truncation", "first", "second", "row"),
    [
        ("only_first", 3, 5, [2, 3, 6, 6, 6, 6, 3]),
        ("only_first", 3, 4, [2, 3, 6, 6, 6, 6, 3]),
        ("only_first", 3, 3, [2, 5, 3, 6, 6, 6, 3]),
        ("only_second", 5, 3, [2, 5, 5, 5, 5, 3, 3]),
        ("only_second", 3, 3, [2, 5, 5, 5, 3, 6, 3]),
    ],
)
def test_packer_where_one_text_is_too_long_alone(truncation, first, second, row):
    packer = BertPacker(max_length=7, truncation=truncation, **SPECIAL)
    packed = packer((ragged([[5] * first]), ragged([[6] * second])))
    assert packed["token_ids"].numpy().tolist() == [row]


def test_packer_refuses_what_cannot_be_packed():
    ids = ragged([[5]])
    with pytest.raises(InputError, match="Received: 1"):
        BertPacker(max_length=1, **SPECIAL)
    with pytest.raises(InputError, match="3 special tokens of 2 texts"):
        BertPacker(max_length=2, **SPECIAL)((ids, ids))
    with pytest.raises(ValueError, match="one or two ragged"):
        BertPacker(max_length=9, **SPECIAL)((ids, ids, ids))
    with pytest.raises(InputError, match="one of longest_first, .*Received: longest"):
        BertPacker(max_length=9, truncation="longest", **SPECIAL)
    with pytest.raises(InputError, match="Received: 9 with do_not_truncate"):
        BertPacker(max_length=9, truncation="do_not_truncate", **SPECIAL)
    with pytest.raises(InputError, match="Received: None with only_first"):
        BertPacker(max_length=None, truncation="only_first", **SPECIAL)
    with pytest.raises(InputError, match="the second text, and there is none"):
        BertPacker(max_length=9, truncation="only_second", **SPECIAL)((ids,))


# BertWindowPacker


def test_windows_by_hand():
    packer = BertWindowPacker(max_length=7, stride=1, **SPECIAL)
    first = ragged([[5, 5], [5], [5, 5, 5, 5], [5, 5, 5, 5], []])
    second = ragged([[6, 7, 8, 9], [6], [6, 7], [], []])
    packed = packer((first, second))
    assert packed["token_ids"].numpy().tolist() == [
        [2, 5, 5, 3, 6, 7, 3],
        [2, 5, 5, 3, 7, 8, 3],
        [2, 5, 5, 3, 8, 9, 3],
        [2, 5, 3, 6, 3, 0, 0],
        [2, 5, 5, 3, 6, 7, 3],  # the first text is cut to leave room for 2 tokens
        [2, 5, 5, 5, 5, 3, 3],  # it needs no windows
        [2, 3, 3, 0, 0, 0, 0],
    ]
    assert packed["rows"].numpy().tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert packed["starts"].numpy().tolist() == [0, 1, 2, 0, 0, 0, 0]
    assert all(value.dtype == tf.int32 for value in packed.values())
    assert packer((first[:0], second[:0]))["token_ids"].shape == (0, 3)


@pytest.mark.parametrize(("max_length", "stride"), [(4, 0), (6, 2), (9, 1), (9, 5)])
@pytest.mark.parametrize("num_texts", [1, 2])
def test_windows_as_huggingface(tokenizers, max_length, stride, num_texts):
    ours, theirs = tokenizers
    packer = BertWindowPacker(max_length=max_length, stride=stride, **special_token_ids(ours))
    texts = [pair[:num_texts] for pair in pairs_of_all_lengths(12, seed=stride)]
    packed = pack(ours, packer, texts)
    assert not differing_windows(theirs, packed, texts, max_length=max_length, stride=stride)


def test_the_end_of_a_text_with_too_many_windows_is_cut_off():
    segments = (tf.ragged.constant([[5, 6, 7, 8, 9, 10], [11]], dtype=tf.int32),)
    whole = BertWindowPacker(max_length=4, stride=1, **SPECIAL)(segments)
    packer = BertWindowPacker(max_length=4, stride=1, max_windows=2, **SPECIAL)
    cut = packer(segments)
    assert whole["rows"].numpy().tolist() == [0, 0, 0, 0, 0, 1]
    assert cut["rows"].numpy().tolist() == [0, 0, 1]
    kept = [0, 1, 5]
    for name, values in whole.items():
        np.testing.assert_array_equal(cut[name], values.numpy()[kept])
    assert BertWindowPacker.from_config(packer.get_config()).get_config() == packer.get_config()


def test_windows_refuse_what_cannot_be_packed():
    ids = ragged([[5]])
    with pytest.raises(InputError, match="not be negative. Received: -1"):
        BertWindowPacker(max_length=9, stride=-1, **SPECIAL)
    with pytest.raises(InputError, match="below the 3 tokens .* Received: 3"):
        BertWindowPacker(max_length=5, stride=3, **SPECIAL)
    with pytest.raises(InputError, match="below the 2 tokens .* Received: 2"):
        BertWindowPacker(max_length=5, stride=2, **SPECIAL)((ids, ids))
    with pytest.raises(InputError, match="2 special tokens of 1 texts"):
        BertWindowPacker(max_length=1, stride=0, **SPECIAL)
    with pytest.raises(ValueError, match="one or two ragged"):
        BertWindowPacker(max_length=9, stride=1, **SPECIAL)(ids)


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=5), st.integers(1, 4))
def test_consecutive_windows(texts, length):
    windows, rows = cut(tf.ragged.constant(texts, tf.int32, ragged_rank=1), length)
    slices = [
        (text[start : start + length], row)
        for row, text in enumerate(texts)
        for start in range(0, max(1, len(text)), length)
    ]
    assert windows.to_list() == [window for window, _ in slices]
    assert rows.numpy().tolist() == [row for _, row in slices]
