"""Translation: what is learnt, which weights are new, what is written, and how it is judged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import sacrebleu
import tensorflow as tf

import train
from kbert.config import parse
from kbert.errors import InputError
from kbert.losses import SmoothedCrossEntropy
from kbert.preprocessing import tokenizer_from_files
from kbert.tasks.task import Gold, Learned, Rows
from kbert.tasks.translation import Translation
from kbert.training import new_model
from kbert.translation_metrics import translation_figures

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TARGETS = (*SPECIAL, "Die", "Katze", "Hund", "##e", "sa", "##ß", ".", "-", "好", "人")
GERMAN = {"the": "die", "a": "eine", "cat": "Katze", "dog": "Ziege", "cats": "Katzen",
          "dogs": "Ziegen", "sat": "saß", "ran": "lief", "good": "gut", "not": "nicht"}  # fmt: skip


@pytest.fixture
def options(tiny_options: list[str]) -> list[str]:
    return [*tiny_options, "--task", "translation", "--task.target_column", "de"]


def task_of(words: list[str], checkpoint: Path) -> Translation:
    config = parse(words)
    return Translation(
        config, tokenizer_from_files(checkpoint), Learned(vocabularies={"de": TARGETS})
    )


@pytest.fixture
def task(options: list[str], tiny_checkpoint: Path) -> Translation:
    return task_of([*options, "--task.max_target_length", "5"], tiny_checkpoint)


def model_of(task: Translation, words: list[str], checkpoint: Path) -> keras.Model:
    config = parse(words)
    return new_model(task, checkpoint, config.model, config.train)


def rows_of(task: Translation, texts: list[str], targets: list[str]) -> Rows:
    segments = task.encode([tf.constant(texts)])
    encoded = task.encode_targets([tf.constant(texts)], [tf.constant(targets)])
    return Rows(segments, tf.zeros(len(texts), tf.int32), encoded)


def test_what_follows_is_the_target(task: Translation) -> None:
    rows = rows_of(task, ["the cat sat", "好"], ["Die Katze saß.", "人-Hunde saß Die Katze"])
    inputs, targets, weights = task.batch(rows, tf.constant([0, 0]))
    assert inputs["target_ids"].numpy().tolist() == [[2, 5, 6, 9, 10], [2, 14, 12, 7, 8]]
    # both are cut, and end all the same
    assert targets.numpy().tolist() == [[5, 6, 9, 10, 3], [14, 12, 7, 8, 3]]
    assert weights.numpy().tolist() == [[1] * 5, [1] * 5]
    short, targets, weights = task.batch(
        rows_of(task, ["a", "a"], ["Die Katze", "好"]), tf.constant([0, 0])
    )
    assert short["target_ids"].numpy().tolist() == [[2, 5, 6], [2, 13, 3]]
    assert targets.numpy().tolist() == [[5, 6, 3], [13, 3, 0]]
    assert weights.numpy().tolist() == [[1, 1, 1], [1, 1, 0]]


def test_which_weights_are_the_checkpoints(
    options: list[str], task: Translation, tiny_checkpoint: Path
) -> None:
    path = "transformer_layer_1/feedforward_output_dense/kernel"
    kernels, trained = {}, {}
    for kind in ("fine_tuned", "frozen", "random"):
        words = [*options, "--task.encoder", kind]
        model = model_of(task_of(words, tiny_checkpoint), words, tiny_checkpoint)
        kernels[kind] = next(v.numpy() for v in model.weights if v.path.endswith(path))
        trained[kind] = {v.path for v in model.trainable_variables}
    np.testing.assert_array_equal(kernels["fine_tuned"], kernels["frozen"])
    assert np.abs(kernels["fine_tuned"] - kernels["random"]).min() > 0
    assert np.abs(kernels["random"]).max() < 0.05  # of a standard deviation of 0.02
    assert trained["fine_tuned"] == trained["random"] > trained["frozen"]
    assert not any("pooler" in name for name in trained["fine_tuned"])
    assert all(name.startswith(("decoder", "target")) for name in trained["frozen"])


def test_every_trained_weight_has_a_gradient(
    options: list[str], task: Translation, tiny_checkpoint: Path
) -> None:
    model = model_of(task, options, tiny_checkpoint)
    rows = rows_of(task, ["the cat sat", "a dog"], ["Die Katze saß", "Hunde"])
    inputs, targets, weights = task.batch(rows, tf.constant([0, 0]))
    with tf.GradientTape() as tape:
        loss = task.loss()(targets, model(inputs, training=True), sample_weight=weights)
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        values = tf.convert_to_tensor(gradient).numpy()
        assert np.abs(values).max() > 0, variable.path


def test_decoder_options(options: list[str], tiny_checkpoint: Path) -> None:
    sizes = {"decoder_layers": 1, "decoder_heads": 2, "decoder_intermediate_dim": 7}
    words = [word for name, size in sizes.items() for word in (f"--task.{name}", str(size))]
    words = [*options, *words]
    model = model_of(task_of(words, tiny_checkpoint), words, tiny_checkpoint)
    (block,) = [of for of in model.get_layer("decoder").layers if of.name.startswith("decoder_lay")
                and of.name != "decoder_layer_norm"]  # fmt: skip
    assert (block.num_heads, block.intermediate_dim) == (2, 7)
    words += ["--task.decoder_heads", "5"]
    with pytest.raises(InputError, match="decoder_heads must divide the encoder's width 12"):
        model_of(task_of(words, tiny_checkpoint), words, tiny_checkpoint)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_keras_own(smoothing: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 4, 7)).astype(np.float32)
    labels = generator.integers(0, 7, (3, 4))
    weights = (generator.random((3, 4)) < 0.7).astype(np.float32)
    reference = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=smoothing, reduction="mean_with_sample_weight"
    )(np.eye(7)[labels], logits, sample_weight=weights)
    ours = SmoothedCrossEntropy(smoothing)(labels, logits, sample_weight=weights)
    assert float(ours) == pytest.approx(float(reference), rel=1e-6)


def test_figures_of_a_split(task: Translation) -> None:
    logits = np.log(np.full((2, 3, 15), 0.5 / 14, np.float32))
    targets = np.array([[5, 6, 3], [13, 3, 0]])
    weights = np.array([[1, 1, 1], [1, 1, 0]], np.float32)
    np.put_along_axis(logits, targets[:, :, None], np.log(0.5).astype(np.float32), axis=2)
    logits[1, 1] = np.roll(logits[1, 1], 1)  # one piece is wrong
    outputs = task.outputs(tf.constant(logits), tf.constant(targets, tf.int32), weights)
    outputs = {name: values.numpy() for name, values in outputs.items()}
    references = ["Die Katze saß auf dem Dach.", "Hunde"]
    outputs["translation"] = np.array(["Die Katze saß auf dem Haus.".encode(), b"Hund"], object)
    metrics = task.score(outputs, Gold(None, lambda columns: {"de": references}))
    assert metrics["accuracy"] == pytest.approx(4 / 5)
    loss = (4 * np.log(2) + np.log(28)) / 5
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(np.exp(loss), rel=1e-6)
    assert (metrics["rows"], metrics["pieces"]) == (2, 5)
    texts = [text.decode() for text in outputs["translation"]]
    assert metrics["bleu"] == sacrebleu.corpus_bleu(texts, [references]).score
    assert metrics["chrf"] == sacrebleu.corpus_chrf(texts, [references]).score
    assert metrics["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
    titles = [table.title for table in task.tables(metrics)]
    assert titles == ["translation", "sacrebleu"]


def test_chinese_is_measured_by_character() -> None:
    references = ["我在公园看见一只猫。", "你好"]
    figures = translation_figures(["我在公园看到一只狗。", "你好"], references)
    assert "|tok:zh|" in figures["bleu_signature"]
    assert 20 < figures["bleu"] < 80  # one word a sentence could have no 4-gram in common
    lower = translation_figures(["THE CAT SAT ON IT"], ["the cat sat on it"], lowercase=True)
    assert lower["bleu"] == pytest.approx(100)
    assert "case:lc" in lower["bleu_signature"]


def test_what_is_served_is_what_is_measured(
    options: list[str], task: Translation, tiny_checkpoint: Path
) -> None:
    model = model_of(task, options, tiny_checkpoint)
    for variable in model.get_layer("decoder").weights:
        if "seed" not in variable.path:
            variable.assign(3 * variable)
    texts = ["the cat sat", "good dogs ran .", "", "好 人"]
    served = task.signatures(model)["serving_default"].function(tf.constant(texts))
    inputs, *_ = task.batch(rows_of(task, texts, ["Die"] * 4), tf.constant([0, 0]))
    generated = task.generate(model, inputs)
    assert served["translation"].numpy().tolist() == generated["translation"].numpy().tolist()
    np.testing.assert_allclose(served["score"], generated["score"], rtol=1e-6)
    gold = Gold(None, lambda columns: {"de": ["Die"] * 4})
    columns = task.predictions({name: of.numpy() for name, of in generated.items()}, gold)
    answers = task.answer_columns({name: of.numpy() for name, of in served.items()})
    assert columns["translation"] == answers["translation"]
    assert not any("[" in text for text in columns["translation"])
    assert [float(score) for score in columns["score"]] == pytest.approx(answers["score"])


def pairs(count: int) -> list[tuple[str, str]]:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        words = generator.choice(list(GERMAN), generator.integers(2, 6)).tolist()
        target = " ".join(GERMAN[word] for word in words)
        found.append((" ".join(words) + " .", f"{target[0].upper()}{target[1:]}."))
    return found


def written(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("en", "de"), *rows])
    return path


def test_an_empty_translation_names_the_row(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = written(tmp_path / "pairs.csv", [*pairs(5), ("the cat", " "), *pairs(20)])
    words = [*options, "--data.train", str(path), "--data.text_column", "en"]
    assert train.main(words) != 0
    message = capsys.readouterr().err
    assert "pairs.csv" in message and "row 6" in message and "de" in message


def test_pairs_are_learnt_by_heart(tiny_checkpoint: Path, tmp_path: Path, no_cache: None) -> None:
    rows = pairs(64)
    path = written(tmp_path / "pairs.csv", rows)
    words = {
        "--task": "translation",
        "--task.target_column": "de",
        "--task.decoder_layers": 1,
        "--task.max_target_length": 12,
        "--task.beam_size": 2,
        "--data.train": path,
        "--data.test": path,
        "--data.validation_fraction": 0,
        "--data.text_column": "en",
        "--data.max_length": 16,
        "--model.vocab": tiny_checkpoint / "vocab.txt",
        "--model.hidden_dim": 48,
        "--model.num_layers": 1,
        "--model.intermediate_dim": 96,
        "--model.dropout": 0,
        "--train.epochs": 25,
        "--train.batch_size": 8,
        "--train.learning_rate": 4e-3,
        "--monitor.tensorboard": "false",
        "--export.enabled": "false",
        "--output": tmp_path / "run",
    }
    assert train.main([str(word) for pair in words.items() for word in pair]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["bleu"] > 90
    with (tmp_path / "run" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        predictions = list(csv.DictReader(file))
    references = tuple(rows[int(of["row"]) - 1][1] for of in predictions)
    assert references == tuple(of["reference"] for of in predictions)
