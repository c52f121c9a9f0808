"""SentencePairer: where it cuts, whose second part a text gets, and what the labels say."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kbert.preprocessing import SentencePairer

# 3 ends a sentence, 4 goes on with a word
PAIRER = SentencePairer(vocabulary_size=10, end_token_ids=[3], continuation_token_ids=[4])
BATCHES = st.lists(st.lists(st.integers(3, 9), max_size=8), min_size=1, max_size=6)


def pairs_of(texts: list[list[int]], rows: list[int], seed: tuple[int, int] = (1, 2)):
    ragged = tf.ragged.constant(texts, tf.int32, ragged_rank=1)
    return PAIRER(ragged, tf.constant(rows), tf.constant(seed))


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ([5, 6, 3, 7, 8, 9], [7, 8, 9]),  # after the sentence end
        ([5, 3, 6, 7, 8, 3, 9], [6, 7, 8, 3, 9]),  # 2 is nearer to the middle, 3.5, than 6
        ([5, 6, 7, 8], [7, 8]),  # none: the middle
        ([5, 6, 4, 7, 8, 9], [7, 8, 9]),
        ([5, 6, 4, 4, 4, 8], [6, 4, 4, 4, 8]),  # not inside a word
        ([5, 4, 4], [4, 4]),  # but where there is one word alone
        ([3, 3], [3]),
        ([5, 6, 3], [6, 3]),  # a sentence end that nothing follows is none
        ([5], []),
        ([], []),
    ],
)
def test_where_a_text_is_cut(text: list[int], second: list[int]) -> None:
    pairs = pairs_of([text], [0])
    first, following = (segment.to_list()[0] for segment in pairs.segments)
    assert following == second
    assert first + following == text
    assert pairs.labels.numpy().tolist() == [0]  # there is no other text
    assert pairs.weights.numpy().tolist() == [float(len(text) > 1)]


@given(BATCHES, st.data(), st.integers(0, 100))
def test_a_second_part_is_the_own_one_or_anothers(
    texts: list[list[int]], data: st.DataObject, seed: int
) -> None:
    # parts of one text are neighbours
    steps = data.draw(st.lists(st.integers(0, 1), min_size=len(texts), max_size=len(texts)))
    rows = np.cumsum(steps).astype(np.int32).tolist()
    alone = [pairs_of([text], [0]).segments for text in texts]
    own = [(first.to_list()[0], second.to_list()[0]) for first, second in alone]
    pairs = pairs_of(texts, rows, (seed, 1))
    found = zip(*(segment.to_list() for segment in pairs.segments), strict=True)
    for row, (first, second) in enumerate(found):
        assert first == own[row][0]
        if pairs.labels[row] == 0:
            assert second == own[row][1]
            continue
        assert pairs.weights[row] == 1
        others = [own[other][1] for other in range(len(texts)) if rows[other] != rows[row]]
        assert second in others
        assert second


def test_half_of_them_and_the_seed_alone_decides() -> None:
    texts = [[5, 6, 7, 8]] * 1000
    pairs = pairs_of(texts, list(range(1000)))
    assert pairs.labels.numpy().mean() == pytest.approx(0.5, abs=0.05)
    again, other = pairs_of(texts, list(range(1000))), pairs_of(texts, list(range(1000)), (1, 3))
    np.testing.assert_array_equal(pairs.labels, again.labels)
    assert (pairs.labels.numpy() != other.labels.numpy()).any()


def test_config_gives_the_same_layer() -> None:
    copy = SentencePairer.from_config(PAIRER.get_config())
    assert copy.get_config() == PAIRER.get_config()
