"""Words of texts, and their first word pieces: by hand, and against a reader in plain Python."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from kbert.preprocessing import WordPieceTokenizer
from kbert.preprocessing.alignment import (
    Spans,
    first_places,
    joined_spans,
    opens_span,
    span_of,
    text_words,
)
from tests.tokenizer_reference import random_bytes, random_marks, random_text, traced

# every kind of character: white space, Chinese, punctuation, dropped, accents, letters
ALPHABET = " \t\u00a0\u2028中𠀀,.'\"-（、\0\x1f\u200b\u200d\ufeff\ufffd\u0301\u0345\ufe0fabé1€😀İ각"
TEXTS = st.lists(st.text(ALPHABET, max_size=9), max_size=4)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: tuple[str, ...]) -> WordPieceTokenizer:
    return WordPieceTokenizer([*vocabulary, "o", "'", "hare", "7", ":", "30", "x"])


@functools.cache
def divider(tokenizer: WordPieceTokenizer):
    return traced(lambda texts: text_words(texts, tokenizer))


def found_words(tokenizer: WordPieceTokenizer, texts: list[str] | list[bytes]) -> list:
    """(word, start, end) of each word of each text."""
    words, spans = divider(tokenizer)(tf.constant(texts, tf.string))
    parts = (words.to_list(), spans.starts.to_list(), spans.ends.to_list())
    return [
        [(word.decode(), start, end) for word, start, end in zip(*row, strict=True)]
        for row in zip(*parts, strict=True)
    ]


def plain_words(text: str) -> list[tuple[str, int, int]]:
    """The same by transformers' own idea of characters, character by character."""
    bert = pytest.importorskip("transformers.models.bert.tokenization_bert")
    basic = bert.BasicTokenizer()

    def is_dropped(character: str) -> bool:
        return character in "\0\ufffd" or bert._is_control(character)

    chunks: list[list[int]] = [[]]
    for place, character in enumerate(text):
        if bert._is_whitespace(character) or character == "\u2028":  # as the Rust tokeniser does
            chunks.append([])
        elif basic._is_chinese_char(ord(character)):
            chunks += [[place], []]
        elif not is_dropped(character):
            chunks[-1].append(place)
    words = []
    for chunk in chunks:
        inner = [place for place in chunk if not bert._is_punctuation(text[place])]
        first, last = (inner[0], inner[-1]) if inner else (len(text), -1)
        words += [(place, place) for place in chunk if place < first]
        words += [(first, last)] if inner else []
        words += [(place, place) for place in chunk if inner and place > last]
    return [(text[start : end + 1], start, end + 1) for start, end in words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (" \t\n\u00a0\u2028", ""),
        ("from o'hare at 7:30.", "from o'hare at 7:30 ."),
        ('("don\'t!")', '( " don\'t ! " )'),
        ("'s st. -- $1,234.56", "' s st . - - $ 1,234.56"),
        ("坐飞机ok吗？", "坐 飞 机 ok 吗 ？"),
        ("[MASK] [MASK]x", "[ MASK ] [ MASK]x"),
    ],
)
def test_words_by_hand(tokenizer: WordPieceTokenizer, text: str, words: str) -> None:
    (found,) = found_words(tokenizer, [text])
    assert [word for word, _, _ in found] == words.split()
    assert all(text[start:end] == word for word, start, end in found)


def test_words_keep_what_is_inside_of_them(tokenizer: WordPieceTokenizer) -> None:
    family, accented = "👩\u200d👩\u200d👧", "e\u0301"
    text = f"\0 a\0b \u200b{family}\u200b {accented} \ufffd, b\u200b"
    (found,) = found_words(tokenizer, [text])
    assert found == [
        ("a\0b", 2, 5),
        (family, 7, 12),
        (accented, 14, 16),
        (",", 18, 19),
        ("b", 20, 21),
    ]


def test_chinese_stays_whole_where_the_tokeniser_keeps_it_whole(vocabulary) -> None:
    whole = WordPieceTokenizer(vocabulary, tokenize_chinese_chars=False)
    assert found_words(whole, ["中文a，"]) == [[("中文a", 0, 3), ("，", 3, 4)]]


@given(TEXTS)
def test_words_are_those_of_a_reader(tokenizer: WordPieceTokenizer, texts: list[str]) -> None:
    assert found_words(tokenizer, texts) == [plain_words(text) for text in texts]


def test_places_are_those_of_the_text_whatever_its_bytes(tokenizer: WordPieceTokenizer) -> None:
    generator = random.Random(0)
    makers = (random_text, random_marks, random_bytes)
    texts = [make(generator) for make in makers for _ in range(200)]
    texts = [text if isinstance(text, bytes) else text.encode() for text in texts]
    for text, words in zip(texts, found_words(tokenizer, texts), strict=True):
        decoded = text.decode(errors="replace")
        ends = [0]
        for word, start, end in words:
            assert ends[-1] <= start < end
            assert decoded[start:end] == word
            ends.append(end)


def test_every_piece_is_in_a_word(tokenizer: WordPieceTokenizer) -> None:
    generator = random.Random(1)
    texts = tf.constant([random_text(generator) for _ in range(300)])
    _, starts, _ = tokenizer.tokenize_with_offsets(texts)
    _, spans = text_words(texts, tokenizer)
    assert (span_of(starts, spans).numpy() >= 0).all()


def test_first_pieces_by_hand(tokenizer: WordPieceTokenizer) -> None:
    texts = tf.constant(["cats o'hare.", "", "[MASK] 7:30 \u0301 zzz", "人the"])
    ids, starts, _ = tokenizer.tokenize_with_offsets(texts)
    words, spans = text_words(texts, tokenizer)
    assert [len(row) for row in ids.to_list()] == [6, 0, 5, 2]
    assert words.to_list()[2] == [b"[", b"MASK", b"]", b"7:30", b"\xcc\x81", b"zzz"]
    firsts = [[0, 2, 5], [], [0, -1, -1, 1, -1, 4], [0, 1]]
    assert first_places(starts, spans).to_list() == firsts


ROWS = st.lists(st.lists(st.sampled_from(["", "a", "好人", "é\0x", "😀"]), max_size=4), max_size=4)


@given(ROWS)
def test_spans_of_what_is_joined(rows: list[list[str]]) -> None:
    items = tf.ragged.constant(rows, tf.string, ragged_rank=1)
    spans = joined_spans(items)
    for row, starts, ends in zip(rows, spans.starts.to_list(), spans.ends.to_list(), strict=True):
        text = "|".join(row)
        assert [text[start:end] for start, end in zip(starts, ends, strict=True)] == row


PLACES = st.lists(st.lists(st.integers(0, 12), max_size=5), min_size=1, max_size=3)
INTERVALS = st.lists(st.integers(0, 12), max_size=6, unique=True).map(
    lambda edges: sorted(edges[: len(edges) // 2 * 2])
)


@given(PLACES, st.data())
def test_first_places_are_those_of_a_search(places: list[list[int]], data) -> None:
    edges = [data.draw(INTERVALS) for _ in places]
    starts, ends = ([row[side::2] for row in edges] for side in (0, 1))
    ragged = [tf.ragged.constant(rows, tf.int32, ragged_rank=1) for rows in (starts, ends, places)]
    spans = Spans(*ragged[:2])
    flat = [(row, *span) for row, pair in enumerate(zip(starts, ends, strict=True))
            for span in zip(*pair, strict=True)]  # fmt: skip
    of = [
        next((n for n, (r, a, b) in enumerate(flat) if r == row and a <= place < b), -1)
        for row, here in enumerate(places)
        for place in here
    ]
    assert span_of(ragged[2], spans).numpy().tolist() == of
    firsts = [
        next((n for n, place in enumerate(places[row]) if a <= place < b), -1) for row, a, b in flat
    ]
    assert first_places(ragged[2], spans).values.numpy().tolist() == firsts
    opens = [
        at >= 0 and firsts[at] == number
        for (row, number), at in zip(
            [(row, number) for row, here in enumerate(places) for number in range(len(here))],
            of,
            strict=True,
        )
    ]
    assert opens_span(ragged[2], spans).numpy().tolist() == opens


def test_graph_has_only_old_ops(tokenizer: WordPieceTokenizer) -> None:
    from kbert.serving_ops import newer_ops

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def places(texts: tf.Tensor) -> tf.Tensor:
        words, spans = text_words(texts, tokenizer)
        _, starts, _ = tokenizer.tokenize_with_offsets(texts)
        return words.to_tensor(), first_places(starts, spans).to_tensor(default_value=-1)

    concrete = places.get_concrete_function()
    graph = concrete.graph.as_graph_def()
    functions = {function.signature.name for function in graph.library.function}
    ops = {node.op for node in graph.node}
    ops |= {node.op for function in graph.library.function for node in function.node_def}
    assert not newer_ops(ops - functions)
    words, firsts = concrete(tf.constant([], tf.string))
    assert words.shape == firsts.shape == (0, 0)
    assert np.array_equal(concrete(tf.constant(["a b", ""]))[1], [[0, 1], [-1, -1]])
