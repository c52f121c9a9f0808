"""Questions about texts: what is read, learnt, answered, served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kbert.config import parse
from kbert.errors import InputError
from kbert.preprocessing import tokenizer_from_files
from kbert.saving import save_checkpoint
from kbert.tasks.question_answering import (
    QuestionAnswering,
    answer_characters,
    answer_start,
    bad_row,
)
from kbert.tasks.task import Gold, Learned, Rows
from kbert.training import new_model

COLUMNS = ["--task", "question_answering", "--data.text_column", "[question, context]"]
QUESTIONS = ["the dogs", "Who sat, not ran?", "", "人", "a cat " * 30]
CONTEXTS = [
    "The CATS sat badly . a dog ran, the Good 好人 dogs! " * 5,
    "the cats",
    "zebra \ud83d\ude00 dog".encode("utf-16", "surrogatepass").decode("utf-16"),
    "",
    "not a dog ran, the good cat sat. " * 8,
]


@pytest.fixture
def make(tiny_options: list[str], tiny_checkpoint: Path):
    def make_task(*words: str) -> tuple[QuestionAnswering, object]:
        config = parse([*tiny_options, *COLUMNS, *words])
        task = QuestionAnswering(config, tokenizer_from_files(tiny_checkpoint), Learned())
        return task, new_model(task, tiny_checkpoint, config.model, config.train)

    return make_task


def encoded(task: QuestionAnswering, columns: list[list[str]], starts: list[str] | None) -> Rows:
    """Rows of questions, contexts and answers as the cache has them."""
    questions, contexts, answers = map(tf.constant, columns)
    targets = [answers] if starts is None else [answers, tf.constant(starts)]
    found = task.encode_targets([questions, contexts], targets)
    return Rows(task.encode([questions, contexts]), tf.zeros(len(columns[0])), found)


@pytest.mark.parametrize("starts", [None, ["", "8"]])
def test_targets_are_the_answers_positions_in_each_window(make, starts) -> None:
    task, _ = make("--data.max_length", "10", "--data.stride", "2")
    columns = [["dog", "dog"], ["the cats ran . a good cats sat", "cat a cat"], ["cats", "cat"]]
    columns[1][1] = "cat not cat"
    inputs, targets, weights = task.batch(encoded(task, columns, starts), tf.constant([0, 0]))
    assert inputs["rows"].numpy().tolist() == [0, 0, 1]
    # [CLS] dog [SEP] the cat ##s ran . a [SEP]; . a good cat ##s sat; cat not cat
    second = [3, 3] if starts is None else [5, 5]
    assert targets.numpy().tolist() == [[4, 5], [0, 0], second]
    assert weights.numpy().tolist() == [1, 1, 1]
    assert {name: tensor.dtype for name, tensor in inputs.items()} == dict.fromkeys(
        inputs, tf.int32
    )


def test_every_trained_weight_has_a_gradient_and_the_loss_is_torchs(make, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    task, model = make("--data.max_length", "14")
    columns = [["dog", "a"], ["the cats ran . " * 4, "cat not cat"], ["ran .", "not"]]
    inputs, targets, weights = task.batch(encoded(task, columns, None), tf.constant([0, 0]))
    with tf.GradientTape() as tape:
        loss = task.loss()(targets, model(inputs), sample_weight=weights)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    save_checkpoint(model, tmp_path, tokenizer=task.tokenizer, formats=("safetensors",))
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tmp_path).eval()
    given = {name: torch.tensor(tensor.numpy()).long() for name, tensor in inputs.items()}
    found = theirs(
        input_ids=given["token_ids"],
        token_type_ids=given["segment_ids"],
        attention_mask=given["padding_mask"],
        start_positions=torch.tensor(targets.numpy()).long()[:, 0],
        end_positions=torch.tensor(targets.numpy()).long()[:, 1],
    )
    assert float(loss) == pytest.approx(found.loss.item(), abs=1e-5)


@pytest.mark.parametrize(("words", "stride"), [((), 5), (("--data.stride", "1"), 1)])
def test_served_answers_are_the_pipelines(make, tmp_path: Path, words, stride: int) -> None:
    transformers = pytest.importorskip("transformers")
    words = ("--data.max_length", "16", "--task.max_answer_length", "5", *words)
    task, model = make(*words)
    save_checkpoint(model, tmp_path, tokenizer=task.tokenizer, formats=("safetensors",))
    pipeline = transformers.pipeline(
        "question-answering",
        model=transformers.BertForQuestionAnswering.from_pretrained(tmp_path),
        tokenizer=transformers.BertTokenizerFast.from_pretrained(tmp_path),
    )
    rows = [(question, context) for question in QUESTIONS[:4] for context in CONTEXTS if context]
    rows = [row for row in rows if row[0]]  # which the pipeline refuses
    columns = [list(column) for column in zip(*rows, strict=True)]
    serve = tf.function(task.signatures(model)["serving_default"].function, reduce_retracing=True)
    served = {name: tensor.numpy() for name, tensor in serve(*map(tf.constant, columns)).items()}
    assert served["score"].dtype == np.float32
    assert served["start"].dtype == served["end"].dtype == np.int32
    options = {"max_seq_len": 16, "doc_stride": stride, "max_answer_len": 5}
    for number, (question, context) in enumerate(rows):
        theirs = pipeline(question=question, context=context, **options)
        assert served["score"][number] == pytest.approx(theirs["score"], abs=1e-6)
        ours = tuple(served[name][number] for name in ("answer", "start", "end"))
        assert ours == (theirs["answer"].encode(), theirs["start"], theirs["end"])


def test_windows_are_bounded(make) -> None:
    task, model = make("--data.stride", "0")
    prepare = task.signatures(model)["preprocess"].function
    prepared = prepare(tf.constant(["dog", "dog"]), tf.constant(["the cat", "the cat " * 999]))
    assert list(prepared) == ["token_ids", "segment_ids", "padding_mask", "rows"]
    assert np.bincount(prepared["rows"]).tolist() == [1, 64]


def test_any_bytes_are_answered_the_same_alone_and_together(make) -> None:
    task, model = make("--data.max_length", "16")
    serve = tf.function(task.signatures(model)["serving_default"].function, reduce_retracing=True)
    contexts = [
        *(text.encode() for text in CONTEXTS),
        b"the \xff\xfe cats\xe5\xa5 ran",
        b"dog\0s a",
    ]
    questions = [text.encode() for text in [*QUESTIONS, "a", "a"]]
    together = {
        name: tensor.numpy()
        for name, tensor in serve(tf.constant(questions), tf.constant(contexts)).items()
    }
    for row, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        alone = serve(tf.constant([question]), tf.constant([context]))
        for name, values in together.items():
            np.testing.assert_allclose(alone["score"], together["score"][row : row + 1], atol=1e-6)
            if name != "score":
                assert alone[name].numpy()[0] == values[row]
        characters = context.decode(errors="replace")[together["start"][row] : together["end"][row]]
        assert together["answer"][row].decode() == characters
    assert (together["start"][3], together["end"][3], together["score"][3]) == (-1, -1, 0)


ROWS = {"text": ["a cat cat", "好人"], "right": ["cat", "人"], "at": ["6", ""]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"at": ["", "1"]}, None),
        ({"right": ["cat", "cat"]}, "the answer 'cat' does not stand in its context; correct it."),
        (
            {"at": ["6", "0"]},
            "the answer '人' does not stand at character 0 of its context, where '好' does; "
            "correct column 'at', or leave it empty.",
        ),
        ({"at": ["6", "-1"]}, "column 'at': must be a whole number, is '-1'; correct it."),
    ],
)
def test_bad_rows(changes: dict, message: str | None) -> None:
    found = bad_row({**ROWS, **changes}, names=("text", "right", "at"))
    assert found == (None if message is None else (1, message))


def test_where_answers_stand() -> None:
    assert answer_start("a cat cat", "cat") == 2
    assert answer_start("a cat cat", "cat", "6") == 6
    assert answer_start("a cat cat", "cat", "3") is None
    assert answer_start("a", "a", "9") is None
    contexts, answers = ["好 cat".encode()] * 2, [b"cat", "好".encode()]
    assert answer_characters(contexts, answers).tolist() == [[2, 5], [0, 1]]
    assert answer_characters(contexts, answers, [b" 2", b""]).tolist() == [[2, 5], [0, 1]]
    assert answer_characters([], []).shape == (0, 2)


def test_two_columns_of_texts_are_needed(tiny_options: list[str]) -> None:
    config = parse([*tiny_options, "--task", "question_answering"])
    with pytest.raises(InputError, match="must name the column of questions and that of contexts"):
        QuestionAnswering.columns(config)


def test_figures_and_predictions(make) -> None:
    task, _ = make()
    outputs = {
        "answer": np.array([b"the cat", b"dog ran"], object),
        "score": np.array([0.5, 0.25], np.float32),
        "start": np.array([0, 4], np.int32),
        "end": np.array([7, 11], np.int32),
    }
    gold = Gold(None, lambda columns: {name: ["cat", "dog"] for name in columns})
    assert task.score(outputs, gold) == {
        "exact_match": 0.5,
        "f1": pytest.approx((1 + 2 / 3) / 2),
        "rows": 2,
    }
    assert task.predictions(outputs, gold) == {
        "label": ["cat", "dog"],
        "prediction": ["the cat", "dog ran"],
        "score": ["0.5", "0.25"],
        "start": ["0", "4"],
        "end": ["7", "11"],
    }
