"""Texts in windows: batches, one function everywhere, memory, explanations, a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import tensorflow as tf
from materials import export_untrained

from kbert.attribution import attentions, explain
from kbert.batches import encode_split, epoch_sizes, packed_sizes, training_batches
from kbert.certificate import PLACE, read_certificate
from kbert.config import parse
from kbert.data import read_dataset
from kbert.errors import InputError
from kbert.evaluation import collect
from kbert.preprocessing import tokenizer_from_files
from kbert.run import run
from kbert.tasks.classification import Classification
from kbert.tasks.inputs import MOST_WINDOWS
from kbert.tasks.task import Learned
from kbert.training import new_model
from serve.client import predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer

WINDOWS = ("--data.max_length", "7", "--data.stride", "2")
LABELS = ("no", "yes")


@pytest.fixture(scope="module")
def long_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 texts of up to forty words, one of them good or bad, wherever it stands."""
    path = tmp_path_factory.mktemp("long") / "long.csv"
    generator = np.random.default_rng(0)
    lines = ["text,label"]
    for index in range(48):
        word, label = (("good", "yes"), ("bad", "no"))[index % 2]
        words = list(generator.choice(["the", "cat", "dogs", "sat"], index % 41))
        words.insert(generator.integers(len(words) + 1), word)
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def words(tiny_checkpoint: Path, long_csv: Path, tmp_path: Path) -> list[str]:
    """A command line."""
    options = {
        "--data.train": long_csv,
        "--data.cache_dir": tmp_path / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.batch_size": 8,
        "--train.learning_rate": 1e-2,
        "--output": tmp_path / "run",
    }
    return [str(word) for pair in options.items() for word in pair]


def _task(words: list[str], checkpoint: Path) -> Classification:
    learned = Learned(LABELS, np.array([24, 24]))
    return Classification(parse(words), tokenizer_from_files(checkpoint), learned)


def _model(task: Classification, words: list[str], checkpoint: Path):
    config = parse(words)
    model = new_model(task, checkpoint, config.model, config.train)
    for variable in model.get_layer("classifier").weights:
        noise = np.random.default_rng(1).normal(0, 1.0, variable.shape)
        variable.assign(variable + noise)
    return model


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_logits_are_those_of_the_windows_pooled(words, tiny_checkpoint, pooling) -> None:
    words = [*words, *WINDOWS, "--task.window_pooling", pooling]
    task = _task(words, tiny_checkpoint)
    model = _model(task, words, tiny_checkpoint)
    # room for five pieces, three of them new
    texts = ["the cat sat the dog ran good the", "", "bad cat"]
    windows = ["the cat sat the dog", "the dog ran good the", "", "bad cat"]
    inputs = task.inputs.preprocess(tf.constant(texts))
    assert sorted(inputs) == ["padding_mask", "rows", "segment_ids", "token_ids"]
    assert inputs["rows"].numpy().tolist() == [0, 0, 1, 2]
    alone = model(task.inputs.preprocess(tf.constant(windows))).numpy()
    pool = getattr(np, pooling)
    expected = [pool(alone[:2], axis=0), alone[2], alone[3]]
    np.testing.assert_allclose(model(inputs), expected, atol=1e-5)
    assert model(task.inputs.preprocess(tf.constant([], tf.string))).shape == (0, 2)


def test_short_texts_are_answered_as_without_windows(words, tiny_checkpoint) -> None:
    answers = []
    for more in ([], ["--data.stride", "2"]):
        options = [*words, "--data.max_length", "7", *more]
        task = _task(options, tiny_checkpoint)
        model = _model(task, options, tiny_checkpoint)
        texts = tf.constant(["the cat sat", "good", ""])
        answers.append(task.signatures(model)["serving_default"].function(texts)["logits"])
    np.testing.assert_array_equal(*answers)


def test_a_huge_text_has_bounded_windows(words, tiny_checkpoint) -> None:
    task = _task([*words, *WINDOWS], tiny_checkpoint)
    inputs = task.inputs.preprocess(tf.constant(["the cat " * 50_000, "the cat"]))
    assert inputs["token_ids"].shape == (MOST_WINDOWS + 1, 7)


@pytest.mark.parametrize("columns", ["text", "[text, label]"])
def test_sizes_of_batches_are_those_they_have(words, tiny_checkpoint, columns) -> None:
    words = [*words, *WINDOWS, "--data.text_column", columns, "--data.label_column", "label"]
    if columns != "text":  # the second text, which is windowed, is the long one
        words[words.index("[text, label]")] = "[short, text]"
        source = Path(words[1]).read_text(encoding="utf-8").splitlines()[1:]
        path = Path(words[words.index("--output") + 1]).with_name("pairs.csv")
        lines = [f"the {'cat ' * (row % 6)},{line}" for row, line in enumerate(source)]
        path.write_text("short,text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
        words[1] = str(path)
    config = parse(words)
    task = _task(words, tiny_checkpoint)
    dataset = read_dataset(config.data, task.columns(config), seed=0)
    train = encode_split(dataset.splits["train"], task, cache_dir=config.data.cache_dir)
    options = {"batch_size": 8, "seed": 3, "epoch": 1}
    sizes = epoch_sizes(train, task, **options)
    batches = [inputs for inputs, _, _ in training_batches(train, task, **options)]
    found = [
        (batch["rows"][-1] + 1, batch["padding_mask"].numpy().sum(), tf.size(batch["token_ids"]))
        for batch in batches
    ]
    assert sizes.tolist() == np.array(found).tolist()
    cut = int((~packed_sizes(train, task).is_whole).sum())
    assert cut == (0 if columns == "text" else _cut_firsts(train))


def _cut_firsts(train) -> int:
    """Pairs that do not fit and whose first text has over the one piece that is left to it."""
    first, second = (segment.lengths(train.rows) for segment in train.segments)
    return int(((first + second > 4) & (first > 1)).sum())


def test_the_export_is_huggingfaces_model_of_the_windows(tiny_checkpoint, tmp_path) -> None:
    pytest.importorskip("torch")
    options = [*WINDOWS, "--task.window_pooling", "max"]  # the mean: tests/test_recipes.py
    _, _, folder = export_untrained(
        tiny_checkpoint, tmp_path / "export" / "long", *options, labels=("no", "yes", "好")
    )
    certificate = read_certificate(folder / PLACE)
    assert certificate.huggingface == "BertForSequenceClassification"
    longest = max(map(len, certificate.answers["saved_model"].ids["token_ids"]))
    assert longest == MOST_WINDOWS * 7  # it has been compared, at the bound too


def test_the_export_of_pairs_is_huggingfaces_model_of_the_windows(
    tiny_checkpoint, tmp_path
) -> None:
    pytest.importorskip("torch")
    words = ["--data.text_column", "[a, b]", "--data.max_length", "12", "--data.stride", "3"]
    base = tmp_path / "export" / "pairs"
    _, _, folder = export_untrained(tiny_checkpoint, base, *words, labels=LABELS)
    assert "huggingface" in read_certificate(folder / PLACE).answers


def test_the_window_that_speaks_most_is_explained(words, tiny_checkpoint) -> None:
    words = [*words, *WINDOWS]
    task = _task(words, tiny_checkpoint)
    model = _model(task, words, tiny_checkpoint)
    text = "the cat sat the dog ran good the bad"
    explained = explain(model, task, [(text,), ("bad cats",)], [1, 0])
    assert ["".join(part for part, _ in of) for (of,) in explained] == [text, "bad cats"]
    windows = ["the cat sat the dog", "the dog ran good the", "good the bad"]
    logits = model(task.inputs.preprocess(tf.constant(windows))).numpy()[:, 1]
    window = windows[logits.argmax()]
    (alone,) = explain(model, task, [(window,)], [1])
    scored = [pair for pair in explained[0][0] if pair[1]]
    assert [word for word, _ in scored] == window.split()
    np.testing.assert_allclose(
        [score for _, score in scored], [score for _, score in alone[0] if score], atol=2e-4
    )


def test_attention_is_that_of_the_first_window(words, tiny_checkpoint) -> None:
    words = [*words, *WINDOWS]
    task = _task(words, tiny_checkpoint)
    model = _model(task, words, tiny_checkpoint)
    pieces, scores = attentions(model, task, ("the cat sat the dog ran",))
    assert pieces == ["[CLS]", "the", "cat", "sat", "the", "dog", "[SEP]"]
    assert scores[0].shape == (3, 7, 7)


def test_a_whole_run(words, tmp_path, no_cache, caplog) -> None:
    words = [*words, *WINDOWS, "--train.epochs", "2", "--export.huggingface", "true"]
    words += ["--monitor.histograms", "true", "--train.best_metric", "loss"]
    assert run(parse(words)) == 0
    folder = tmp_path / "run"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    analysis = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    assert set(analysis["lengths"]["truncated"].values()) == {0}
    assert (folder / "report.html").exists()
    assert metrics["test"]["rows"] == len((folder / "predictions.csv").read_text().split()) - 1
    assert "goes without" not in caplog.text  # TensorBoard shows all that it does
    assert list((folder / "tensorboard").rglob("vectors_trained*"))
    export = folder / "export" / "run"
    predictions = pa.csv.read_csv(folder / "predictions.csv").to_pydict()
    texts = pa.csv.read_csv(words[1])["text"].to_pylist()
    texts = [texts[row - 1] for row in predictions["row"]]
    with LocalServer([ModelConfig("run", export.resolve())]) as server:
        url = f"http://{server.rest_address}/v1/models/run"
        answers = predict_rest(url, {"text": texts})
    assert answers["label"].tolist() == predictions["prediction"]
    np.testing.assert_allclose(answers["probabilities"][:, 1], predictions["p_yes"], atol=1e-5)


def test_what_does_not_go_with_windows_is_refused(words) -> None:
    with pytest.raises(InputError, match="masked_lm reads no windows"):
        parse([*words, *WINDOWS, "--task", "masked_lm"])
    with pytest.raises(InputError, match=r"train\.compile xla goes without data\.stride"):
        parse([*words, *WINDOWS, "--train.compile", "xla"])


def test_outputs_come_in_the_order_of_the_rows(words, tiny_checkpoint) -> None:
    words = [*words, *WINDOWS]
    config = parse(words)
    task = _task(words, tiny_checkpoint)
    dataset = read_dataset(config.data, task.columns(config), seed=0)
    split = encode_split(dataset.splits["train"], task, cache_dir=config.data.cache_dir)
    model = _model(task, words, tiny_checkpoint)
    together = collect(model, task, split)["logits"]
    for row in range(0, len(split), 7):
        alone = collect(model, task, split.take(np.array([row])))["logits"]
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
