"""Learnt vocabularies: what is in them, that they are the same everywhere, and never too large."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kbert.errors import InputError
from kbert.preprocessing import WordPieceTokenizer
from kbert.tokenizer_files import read_vocabulary, write_tokenizer_files
from kbert.vocabulary import SPECIAL_TOKENS, count_words, learn_vocabulary

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [["The cats sat.", "cats ran, Cats sat!", "the cat's hat"], ["好人 cats", "[MASK] 好"]]


def test_words_are_those_of_the_tokenizer() -> None:
    counts = count_words(TEXTS, lowercase=True)
    assert counts["cats"] == 4
    assert (counts["好"], counts["人"], counts["'"], counts["."]) == (2, 1, 1, 1)
    assert "[MASK]" not in counts
    assert "Cats" not in counts
    assert count_words(TEXTS, lowercase=False)["Cats"] == 1
    assert count_words([["a" * 100, "b" * 101]], lowercase=True) == {"a" * 100: 1}


def test_special_tokens_characters_and_merges() -> None:
    vocabulary = learn_vocabulary(TEXTS, size=200, lowercase=True)
    assert vocabulary[:5] == SPECIAL_TOKENS
    assert set(vocabulary) > {"c", "##c", "好", "人", ".", "!", "cats", "the"}
    assert "##好" not in vocabulary  # it is a word of its own
    assert "##." not in vocabulary
    ids = WordPieceTokenizer(vocabulary)(tf.constant(["the cats sat"]))
    assert [vocabulary[index] for index in ids[0].numpy()] == ["the", "cats", "sat"]


def test_case_is_kept() -> None:
    vocabulary = learn_vocabulary([["Paris paris PARIS"] * 3], size=100, lowercase=False)
    assert {"Paris", "paris", "PARIS"} < set(vocabulary)


def test_the_most_frequent_characters_fit() -> None:
    texts = [["好好好 人人 大"]]
    assert learn_vocabulary(texts, size=7, lowercase=True) == (*SPECIAL_TOKENS, "人", "好")
    with pytest.raises(InputError, match="more than the 5 special tokens. Received: size 5"):
        learn_vocabulary(texts, size=5, lowercase=True)
    assert learn_vocabulary([], size=9, lowercase=True) == SPECIAL_TOKENS


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.text(max_size=30), max_size=3), max_size=3),
    st.integers(6, 60),
    st.booleans(),
)
def test_any_texts_in_any_size(texts: list[list[str]], size: int, lowercase: bool) -> None:
    vocabulary = learn_vocabulary(texts, size=size, lowercase=lowercase)
    assert len(vocabulary) == len(set(vocabulary)) <= size
    assert vocabulary[:5] == SPECIAL_TOKENS
    assert learn_vocabulary(texts, size=size, lowercase=lowercase) == vocabulary
    # the order of texts, and how they are batched, decide nothing
    shuffled = [[text] for batch in reversed(texts) for text in batch]
    assert learn_vocabulary(shuffled, size=size, lowercase=lowercase) == vocabulary
    WordPieceTokenizer(vocabulary, lowercase=lowercase)  # is a vocabulary that it takes


@settings(max_examples=25)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.booleans())
def test_no_unknown_words_where_all_characters_fit(texts: list[str], lowercase: bool) -> None:
    vocabulary = learn_vocabulary([texts], size=1000, lowercase=lowercase)
    tokenizer = WordPieceTokenizer(vocabulary, lowercase=lowercase)
    ids = tokenizer(tf.constant(texts)).values.numpy()
    assert not np.isin(ids, tokenizer.unknown_token_id).any()


def test_the_same_in_every_process(shared_data: Path) -> None:
    code = f"""
import hashlib
from kbert.vocabulary import learn_vocabulary
lines = open({str(shared_data / "tatoeba_en_zh/train.tsv")!r}, encoding="utf-8").readlines()
vocabulary = learn_vocabulary([lines[:5000], lines[5000:9000]], size=4000, lowercase=True)
print(len(vocabulary), hashlib.sha256("\\n".join(vocabulary).encode()).hexdigest())
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert runs[0].stdout.startswith("4000 "), runs[0].stderr
    assert runs[0].stdout == runs[1].stdout


def test_files_hold_it(tmp_path: Path) -> None:
    vocabulary = learn_vocabulary(TEXTS, size=60, lowercase=True)
    settings = WordPieceTokenizer(vocabulary).get_config()
    write_tokenizer_files(tmp_path, settings)
    assert tuple(read_vocabulary(tmp_path / "vocab.txt")) == vocabulary
