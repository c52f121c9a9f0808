"""Spans of a context: their pieces, the best one of a model, how answers are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from parity import torch_outputs

from kbert.answer_scores import answer_figures, answer_tokens, exact_match, token_f1
from kbert.answer_spans import (
    answer_pieces,
    best_answers,
    context_mask,
    continuations,
    span_candidates,
    window_labels,
)
from kbert.preprocessing import BertWindowPacker, WordPieceTokenizer, tokenizer_from_files

SPECIAL = {"cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
WORDS = st.sampled_from(["the", "The", "Cats", "dog", "good", "badly", "好人", ".", "zebra", "SAT"])
LONG = "The CATS sat badly . a dog ran, the Good 好人 dogs! ran the cats SAT. " * 3
CONTEXTS = (
    "the cat",
    "  The\tdogs ",
    "zebra",
    "Cats cats CATS",
    "the [MASK] cats [SEP] ran",
    "nul\0 cats\0s ran",
    "café ΣΑΣ İ 好人。",
    LONG,
    LONG.replace("The", "the not"),
)


def pack(
    tokenizer: WordPieceTokenizer,
    question: str,
    contexts: list[str],
    *,
    max_length: int,
    stride: int,
) -> dict[str, tf.Tensor]:
    """What `best_answers` and the others take."""
    packer = BertWindowPacker(max_length=max_length, stride=stride, **SPECIAL)
    ids, starts, ends = tokenizer.tokenize_with_offsets(tf.constant(contexts))
    packed = packer([tokenizer(tf.constant([question] * len(contexts))), ids])
    characters = tf.strings.unicode_decode(tf.constant(contexts), "UTF-8")
    return packed | {
        "piece_starts": starts.to_tensor(),
        "piece_ends": ends.to_tensor(),
        "characters": characters.to_tensor(),
    }


def answers(
    tokenizer: WordPieceTokenizer, packed: dict[str, tf.Tensor], logits, *, max_answer_length: int
) -> list[dict]:
    """The answers, a dictionary a row."""
    candidates = span_candidates(
        tf.constant(logits, tf.float32),
        packed,
        is_continuation=continuations(tokenizer.vocabulary),
        max_answer_length=max_answer_length,
    )
    found = {name: tensor.numpy() for name, tensor in best_answers(packed, candidates).items()}
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    return [{**row, "answer": row["answer"].decode()} for row in rows]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> WordPieceTokenizer:
    return tokenizer_from_files(tiny_checkpoint)


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        ((0, 3), (0, 0)),  # the
        ((4, 8), (1, 2)),  # cat ##s
        ((7, 8), (2, 2)),  # ##s
        ((5, 6), (1, 1)),  # within cat
        ((3, 9), (1, 2)),  # with the spaces around
        ((0, 14), (0, 4)),
        ((8, 9), (3, 2)),  # a space: no piece
    ],
)
def test_pieces_that_cover_an_answer(tokenizer, answer, pieces) -> None:
    _, starts, ends = tokenizer.tokenize_with_offsets(tf.constant(["the cats ran ."]))
    assert answer_pieces(starts, ends, tf.constant([answer])).numpy().tolist() == [list(pieces)]


def test_labels_are_in_the_windows_that_have_the_whole_answer(tokenizer) -> None:
    packed = pack(tokenizer, "dog", ["the cats ran . a dog", "a"], max_length=8, stride=2)
    # [CLS] dog [SEP] the cat ##s ran [SEP], ... ##s ran . a [SEP], ... . a dog [SEP]; a
    assert packed["rows"].numpy().tolist() == [0, 0, 0, 1]
    labels = window_labels(tf.constant([[1, 2], [0, 0]]), packed).numpy().tolist()
    assert labels == [[4, 5], [0, 0], [0, 0], [3, 3]]
    labels = window_labels(tf.constant([[3, 4], [1, 0]]), packed).numpy().tolist()
    assert labels == [[0, 0], [4, 5], [0, 0], [0, 0]]


@given(st.lists(WORDS, min_size=1, max_size=30).map(" ".join), st.data())
def test_labels_are_those_of_the_published_scripts(tokenizer, context, data) -> None:
    """As transformers' examples label windows by offsets, for answers that are not white space."""
    words = [at for at, char in enumerate(context) if not char.isspace()]
    start, last = sorted((data.draw(st.sampled_from(words)), data.draw(st.sampled_from(words))))
    packed = pack(tokenizer, "the dog", [context], max_length=11, stride=3)
    _, starts, ends = tokenizer.tokenize_with_offsets(tf.constant([context]))
    spans = answer_pieces(starts, ends, tf.constant([[start, last + 1]]))
    labels = window_labels(spans, packed).numpy().tolist()
    offsets = np.stack([starts.values, ends.values], 1)
    masks = context_mask(packed).numpy()
    for label, mask, shift in zip(labels, masks, packed["starts"].numpy(), strict=True):
        places = np.flatnonzero(mask)
        inside = offsets[shift : shift + len(places)]
        expected = [0, 0]
        if inside[0, 0] <= start and inside[-1, 1] >= last + 1:
            expected[0] = places[np.flatnonzero(inside[:, 0] <= start)[-1]]
            expected[1] = places[np.flatnonzero(inside[:, 1] >= last + 1)[0]]
        assert label == expected


def test_a_span_grows_to_whole_words_and_same_texts_add_up(tokenizer) -> None:
    packed = pack(tokenizer, "a", ["Cats ran . cats"], max_length=20, stride=2)
    # [CLS] a [SEP] cat ##s ran . cat ##s [SEP]; the pieces of cats are at 3 and 4, 7 and 8
    starts, ends = np.full(10, -50.0), np.full(10, -50.0)
    starts[[4, 5, 7]] = np.log([0.3, 0.4, 0.3])
    ends[[4, 5, 8]] = np.log([0.3, 0.4, 0.3])
    (found,) = answers(tokenizer, packed, [[starts, ends]], max_answer_length=2)
    # ran alone: 0.16; Cats: 0.09 from the first, 0.09 from the last; Cats ran: 0.12
    assert (found["answer"], found["start"], found["end"]) == ("Cats", 0, 4)
    assert found["score"] == pytest.approx(0.18)


def test_no_pieces_no_answer(tokenizer) -> None:
    packed = pack(tokenizer, "the", ["", " \n", "dog"], max_length=8, stride=1)
    logits = np.zeros((3, 2, packed["token_ids"].shape[1]))
    found = answers(tokenizer, packed, logits, max_answer_length=30)
    nothing = {"answer": "", "score": 0.0, "start": -1, "end": -1}
    assert found[:2] == [nothing] * 2
    assert found[2]["answer"] == "dog"
    packed = pack(tokenizer, "the", [""], max_length=8, stride=1)
    assert answers(tokenizer, packed, np.zeros((1, 2, 4)), max_answer_length=3) == [nothing]


@pytest.mark.parametrize(("max_length", "stride", "longest"), [(33, 8, 30), (14, 3, 4), (20, 0, 1)])
def test_answers_are_the_pipelines(
    tokenizer, tiny_checkpoint: Path, max_length: int, stride: int, longest: int
) -> None:
    pipeline = question_pipeline(tiny_checkpoint)
    for question in ("the dogs", "Who sat, not ran?", "人"):
        packed = pack(tokenizer, question, CONTEXTS, max_length=max_length, stride=stride)
        outputs = torch_outputs(pipeline.model, packed_for_torch(packed))
        logits = np.stack([outputs.start_logits, outputs.end_logits], axis=1)
        found = answers(tokenizer, packed, logits, max_answer_length=longest)
        for context, ours in zip(CONTEXTS, found, strict=True):
            theirs = pipeline(
                question=question,
                context=context,
                max_seq_len=max_length,
                doc_stride=stride,
                max_answer_len=longest,
            )
            score = theirs.pop("score")
            assert ours.pop("score") == pytest.approx(score, abs=1e-6)
            assert ours == theirs


def packed_for_torch(packed: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: packed[name].numpy() for name in ("token_ids", "segment_ids", "padding_mask")}


def question_pipeline(checkpoint: Path):
    """transformers' pipeline with a torch model of random weights at std 0.3."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(checkpoint)
    config = transformers.BertConfig.from_pretrained(checkpoint)
    torch.manual_seed(0)
    model = transformers.BertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)


TEXTS = st.text(st.sampled_from("aAthe an.,'-é?9 \u201cß"), max_size=12)


@given(TEXTS, TEXTS)
def test_figures_are_squads(answer: str, expected: str) -> None:
    metrics = pytest.importorskip("transformers.data.metrics.squad_metrics")
    assert exact_match(answer, expected) == metrics.compute_exact(expected, answer)
    assert token_f1(answer, expected) == pytest.approx(metrics.compute_f1(expected, answer))


def test_chinese_characters_are_words() -> None:
    assert answer_tokens("在 2008年，The北京 Games！") == [
        "在",
        "2008",
        "年",
        "the",
        "北",
        "京",
        "games",
    ]
    assert exact_match("北京。", "北 京") == 1
    assert token_f1("北京市", "北京") == pytest.approx(0.8)
    figures = answer_figures(["北京", "the cat"], ["北京市", "a cat"])
    assert figures == {"exact_match": 0.5, "f1": pytest.approx(0.9)}
