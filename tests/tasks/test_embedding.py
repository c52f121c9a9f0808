"""Sentence vectors: one encoder for both texts, torch's loss, what is served and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from materials import export_untrained
from parity import assert_same_outputs, hf_inputs

import train
from kbert.config import parse
from kbert.errors import InputError
from kbert.learned import read_learned
from kbert.preprocessing import tokenizer_from_files
from kbert.saving import save_checkpoint
from kbert.sentence_encoder import load_sentence_encoder
from kbert.sentence_transformers import SentenceVectors, read_sentence_vectors
from kbert.tasks.embedding import Embedding, vector_model
from kbert.tasks.task import Gold, Learned, Rows
from kbert.training import new_model
from serve.client import predict_grpc, predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer

ROOT = Path(__file__).resolve().parents[2]
PAIR = ["--task", "embedding", "--data.text_column", "[first, second]"]
FIRST, SECOND = ["the cats sat", "", "a good dog ran ."], ["bad", "the dog", "not a cat"]


@pytest.fixture
def make(tiny_options: list[str], tiny_checkpoint: Path):
    def make_task(*words: str) -> Embedding:
        config = parse([*tiny_options, *PAIR, *words])
        learned = Learned(number_range=(1.0, 5.0))
        return Embedding(config, tokenizer_from_files(tiny_checkpoint), learned)

    return make_task


def batch_of(task: Embedding):
    segments = task.encode([tf.constant(FIRST), tf.constant(SECOND)])
    return task.batch(Rows(segments, tf.constant([1.0, 3.0, 5.0]), []), tf.constant([0, 0]))


def model_of(task: Embedding, options: list[str], checkpoint: Path):
    config = parse([*options, *PAIR])
    return new_model(task, checkpoint, config.model, config.train)


def test_each_text_is_a_row_of_its_own(make) -> None:
    inputs, scores, weights = batch_of(make())
    assert inputs["token_ids"].numpy().tolist() == [
        [2, 5, 6, 12, 8, 3, 0],
        [2, 3, 0, 0, 0, 0, 0],
        [2, 14, 10, 7, 9, 16, 3],
        [2, 11, 3, 0, 0, 0, 0],
        [2, 5, 7, 3, 0, 0, 0],
        [2, 15, 14, 6, 3, 0, 0],
    ]
    assert not inputs["segment_ids"].numpy().any()
    assert scores.numpy().tolist() == [[0.0], [0.5], [1.0]]
    assert weights.numpy().tolist() == [1.0, 1.0, 1.0]


def test_sizes_are_those_of_both_texts(make) -> None:
    task = make("--data.max_length", "5")
    lengths = [task.encode([tf.constant(texts)])[0].row_lengths() for texts in (FIRST, SECOND)]
    sizes = task.packer.sizes([of.numpy() for of in lengths])
    held = batch_of(task)[0]["padding_mask"].numpy().sum(axis=1).reshape(2, 3)
    assert sizes.rows.tolist() == [2, 2, 2]
    assert sizes.tokens.tolist() == held.sum(axis=0).tolist()
    assert sizes.longest.tolist() == held.max(axis=0).tolist()
    assert sizes.is_whole.tolist() == [False, True, False]


def test_texts_are_truncated_one_by_one(make) -> None:
    task = make("--data.max_length", "4")
    inputs, _, _ = batch_of(task)
    assert inputs["token_ids"].numpy().tolist()[::3] == [[2, 5, 6, 3], [2, 11, 3, 0]]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_loss_and_gradients_are_torchs(
    make, tiny_options: list[str], tiny_checkpoint: Path, pooling: str
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from test_pooling import torch_pooled

    task = make("--task.pooling", pooling)
    model = model_of(task, tiny_options, tiny_checkpoint)
    inputs, scores, weights = batch_of(task)
    words = model.get_layer("encoder").get_layer("transformer_layer_0").weights[0]
    with tf.GradientTape() as tape:
        cosines = model(inputs, training=False)
        loss = task.loss()(scores, cosines, sample_weight=weights)
    reference = transformers.BertModel.from_pretrained(tiny_checkpoint).eval()
    given = {name: torch.tensor(value.numpy()) for name, value in hf_inputs(inputs).items()}
    states = reference(**given).last_hidden_state
    first, second = torch_pooled(states, given["attention_mask"], pooling).split(3)
    theirs = torch.nn.functional.cosine_similarity(first, second)
    their_loss = torch.nn.functional.mse_loss(theirs, torch.tensor(scores.numpy()[:, 0]))
    assert_same_outputs(cosines[:, 0], theirs.detach())
    assert float(loss) == pytest.approx(their_loss.item(), abs=1e-6)
    their_loss.backward()
    gradient = reference.encoder.layer[0].attention.self.query.weight.grad.numpy().T
    ours = np.asarray(tape.gradient(loss, words.value)).reshape(gradient.shape)
    np.testing.assert_allclose(ours, gradient, atol=1e-4 * np.abs(gradient).max())


def test_served_vectors_and_their_similarity(
    make, tiny_options: list[str], tiny_checkpoint: Path
) -> None:
    task = make("--task.normalize", "true")
    model = model_of(task, tiny_options, tiny_checkpoint)
    signatures = task.signatures(model)
    serve = signatures["serving_default"].function
    first = serve(tf.constant(FIRST))["embedding"].numpy()
    # one text alone, so an odd number of rows
    alone = serve(tf.constant(SECOND[:1]))["embedding"].numpy()
    second = serve(tf.constant(SECOND))["embedding"].numpy()
    assert first.dtype == np.float32 and first.shape == (3, 12)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(alone[0], second[0], atol=1e-6)
    compare = signatures["similarity"]
    assert compare.inputs == ("text_a", "text_b")
    found = compare.function(tf.constant(FIRST), tf.constant(SECOND))["similarity"].numpy()
    assert found.shape == (3,)
    np.testing.assert_allclose(found, (first * second).sum(axis=1), atol=1e-6)
    measured = task.outputs(model(batch_of(task)[0]), None, None)["similarity"]
    np.testing.assert_allclose(measured, found, atol=1e-6)
    assert vector_model(model).output.shape == (None, 12)


@pytest.mark.parametrize("pooling", ["cls", "max"])  # the mean: tests/test_recipes.py
def test_export_answers_as_bert_model(tiny_checkpoint: Path, tmp_path: Path, pooling: str) -> None:
    words = [*PAIR, "--data.max_length", "20", "--task.pooling", pooling, "--task.normalize"]
    _, _, folder = export_untrained(tiny_checkpoint, tmp_path / pooling, *words, "true")
    certificate = json.loads((folder / "assets.extra" / "parity.json").read_text(encoding="utf-8"))
    assert certificate["huggingface"] == "BertModel"
    assert certificate["largest_difference"]["huggingface"] < 1e-5
    assert list(certificate["outputs"]) == ["embedding"]


def test_options_come_before_the_checkpoints_files(
    tiny_options: list[str], tiny_checkpoint: Path, minilm: Path
) -> None:
    def vectors(*words: str) -> tuple[str, bool]:
        config = parse([*tiny_options, *PAIR, "--model.checkpoint", str(minilm), *words])
        task = Embedding(config, tokenizer_from_files(minilm), Learned())
        return task.vectors.pooling, task.vectors.normalize

    assert vectors() == ("mean", True)
    assert vectors("--task.pooling", "cls") == ("cls", True)
    assert vectors("--task.normalize", "false") == ("mean", False)
    assert vectors("--task.pooling", "max", "--task.normalize", "false") == ("max", False)


def test_saved_checkpoint_says_how_to_pool(
    make, tiny_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    task = make("--task.pooling", "cls", "--task.normalize", "true")
    model = model_of(task, tiny_options, tiny_checkpoint)
    folder, reference = tmp_path / "saved", task.reference()
    save_checkpoint(model, folder, tokenizer=task.tokenizer, files=reference.files)
    assert read_sentence_vectors(folder) == SentenceVectors("cls", normalize=True, max_length=12)
    _, report = transformers.BertModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_figures_are_of_scaled_scores(make) -> None:
    task = make()
    outputs = {"similarity": np.array([0.1, 0.5, 0.8], np.float32)}
    report = task.score(outputs, Gold(np.array([1.0, 3.0, 5.0], np.float32), lambda columns: {}))
    assert report["spearman"] == pytest.approx(1)
    assert report["mse"] == pytest.approx((0.01 + 0.04) / 3, abs=1e-6)
    assert task.tables(report)[0].rows == [tuple(report.values())]
    unknown = Gold(None, lambda columns: {})
    assert task.score(outputs, unknown) == {}
    assert task.predictions(outputs, unknown) == {
        "similarity": ["0.100000001", "0.5", "0.800000012"]
    }


def test_requests_and_answers_are_of_one_text(make) -> None:
    task = make()
    assert task.requests([FIRST, SECOND]) == {"text": FIRST}
    vectors = np.array([[0.5, 1.0]], np.float32)
    assert task.answer_columns({"embedding": vectors}) == {"embedding": [[0.5, 1.0]]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.text_column", "text"], r"name two columns.*received \['text'\]"),
        (["--data.text_column", "[a, b, c]"], "name two columns"),
    ],
)
def test_pairs_are_needed(tiny_options: list[str], words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Embedding.columns(parse([*tiny_options, "--task", "embedding", *words]))


def test_what_cannot_be_learnt_is_refused(tiny_options: list[str], tiny_checkpoint: Path) -> None:
    tokenizer = tokenizer_from_files(tiny_checkpoint)
    config = parse([*tiny_options, *PAIR])
    with pytest.raises(InputError, match="every training row has the score 3;"):
        Embedding(config, tokenizer, Learned(number_range=(3.0, 3.0)))
    with pytest.raises(InputError, match=r"data\.stride: embedding reads no windows"):
        parse([*tiny_options, *PAIR, "--data.stride", "2"])


def test_a_run_is_served_and_searched(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """train.py -> export -> server -> client, and the checkpoint and the run opened again."""
    generator = np.random.default_rng(0)
    words = ["the", "cat", "dogs", "sat", "ran", "good"]
    rows = ["first\tsecond\tscore"]
    for index in range(40):
        first, second = (" ".join(generator.choice(words, 1 + index % 5)) for _ in "ab")
        rows.append(f"{first}\t{second}\t{1 + index % 9 / 2}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    recipe = yaml.safe_load((ROOT / "recipes" / "embedding.yaml").read_text(encoding="utf-8"))
    recipe["data"] |= {"text_column": ["first", "second"], "label_column": "score"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run = tmp_path / "run"
    options = {
        "--config": tmp_path / "recipe.yaml",
        "--data.train": tmp_path / "pairs.tsv",
        "--data.max_length": 12,
        "--data.cache_dir": tmp_path / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--export.name": "vectors",
        "--export.huggingface": "true",
        "--output": run,
    }
    assert train.main([*(str(word) for pair in options.items() for word in pair), "--smoke"]) == 0
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {"pearson", "spearman", "mse"} <= set(metrics["test"])
    assert metrics["headline"] == ["spearman", "pearson"]
    learned = read_learned(run)
    assert learned is not None and learned.number_range == (1.0, 5.0)
    texts = ["the cat sat", "good dogs"]
    with LocalServer([ModelConfig("vectors", run / "export" / "vectors")]) as server:
        url = f"http://{server.rest_address}/v1/models/vectors"
        served = predict_rest(url, {"text": texts})["embedding"]
        pair = {"text_a": texts[:1], "text_b": texts[1:]}
        both = predict_grpc(server.grpc_address, "vectors", pair, signature_name="similarity")
    vectors = load_sentence_encoder(run)(texts)
    np.testing.assert_allclose(served, vectors, atol=1e-5)
    np.testing.assert_allclose(
        load_sentence_encoder(run / "huggingface")(texts), vectors, atol=1e-5
    )
    first, second = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(both["similarity"], [first @ second], atol=1e-5)
