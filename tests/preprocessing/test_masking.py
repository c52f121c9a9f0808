"""TokenMasker: how many tokens it hides, and that its seed alone decides which."""

import numpy as np
import pytest
import tensorflow as tf

from kbert.errors import InputError
from kbert.preprocessing import TokenMasker


@pytest.fixture
def masker() -> TokenMasker:
    return TokenMasker(vocabulary_size=1000, mask_token_id=4, special_token_ids=range(5))


def packed_batch(rows: int = 200, length: int = 100) -> dict[str, tf.Tensor]:
    token_ids = np.random.default_rng(0).integers(5, 1000, (rows, length), dtype=np.int32)
    token_ids[:, 0], token_ids[:, -20], token_ids[:, -19:] = 2, 3, 0
    return {"token_ids": tf.constant(token_ids), "padding_mask": tf.cast(token_ids > 0, tf.int32)}


def test_masker_rates(masker):
    batch = packed_batch()
    masked = {
        name: value.numpy() for name, value in masker(batch, seed=tf.constant([1, 2])).items()
    }
    before = batch["token_ids"].numpy()
    np.testing.assert_array_equal(masked["labels"], before)
    selected = masked["weights"] == 1
    assert set(np.unique(masked["weights"])) == {0, 1}
    assert (before[selected] > 4).all()
    np.testing.assert_array_equal(masked["token_ids"][~selected], before[~selected])
    assert selected.sum() / (before > 4).sum() == pytest.approx(0.15, abs=0.01)
    after = masked["token_ids"][selected]
    assert (after == 4).mean() == pytest.approx(0.8, abs=0.03)
    assert (after == before[selected]).mean() == pytest.approx(0.1, abs=0.03)
    assert masked["token_ids"].dtype == masked["labels"].dtype == np.int32
    assert masked["weights"].dtype == np.float32


def test_masker_is_a_function_of_its_seed(masker):
    batch = packed_batch(7, 30)
    once = masker(batch, seed=tf.constant([3, 4]))
    again = tf.function(masker)(batch, seed=tf.constant([3, 4]))
    other = masker(batch, seed=tf.constant([3, 5]))
    for name, value in once.items():
        np.testing.assert_array_equal(value, again[name])
    assert (once["weights"].numpy() != other["weights"].numpy()).any()


def test_masker_refuses_rates():
    arguments = {"vocabulary_size": 9, "mask_token_id": 4, "special_token_ids": [0]}
    with pytest.raises(InputError, match="mask_rate"):
        TokenMasker(mask_rate=0.0, **arguments)
    with pytest.raises(InputError, match="sum up to at most 1"):
        TokenMasker(mask_token_rate=0.8, random_token_rate=0.3, **arguments)


@pytest.fixture
def whole_words() -> TokenMasker:
    """The tokens from 500 on go on with a word."""
    return TokenMasker(
        vocabulary_size=1000,
        mask_token_id=4,
        special_token_ids=range(5),
        continuation_token_ids=range(500, 1000),
    )


def test_whole_words_are_masked(whole_words):
    batch = packed_batch()
    masked = whole_words(batch, seed=tf.constant([1, 2]))
    selected, before = masked["weights"].numpy() == 1, batch["token_ids"].numpy()
    continues = before[:, 1:] >= 500
    # what follows a special token begins a word, whatever it is
    continues &= before[:, :-1] > 4
    np.testing.assert_array_equal(selected[:, 1:][continues], selected[:, :-1][continues])
    starts = ~continues & (before[:, 1:] > 4)
    assert selected[:, 1:][starts].mean() == pytest.approx(0.15, abs=0.01)
    assert (before[selected] > 4).all()
    after = masked["token_ids"].numpy()
    assert (after[selected] == 4).mean() == pytest.approx(0.8, abs=0.03)
    np.testing.assert_array_equal(after[~selected], before[~selected])


def test_a_row_may_begin_inside_a_word(whole_words):
    token_ids = tf.constant([[600, 700, 9, 800]] * 500)
    batch = {"token_ids": token_ids, "padding_mask": tf.ones_like(token_ids)}
    selected = whole_words(batch, seed=tf.constant([1, 2]))["weights"].numpy()
    np.testing.assert_array_equal(selected[:, 0], selected[:, 1])
    np.testing.assert_array_equal(selected[:, 2], selected[:, 3])
    assert 0.5 < (selected[:, 0] == selected[:, 2]).mean() < 0.95


def test_config_gives_the_same_masker(whole_words):
    copy = TokenMasker.from_config(whole_words.get_config())
    assert copy.get_config() == whole_words.get_config()
