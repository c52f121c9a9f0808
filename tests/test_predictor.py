"""kbert.load and Predictor.predict: runs, weights, exports; the server's answers; bad rows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import kbert
import train
from kbert.errors import InputError
from kbert.predictor import Predictor
from serve.client import predict_grpc
from serve.model_config import ModelConfig
from serve.server import LocalServer

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [("the cat", "ran"), ("", "a dog sat ."), ("好 人 好", "the bad dogs ran not"), ("", "")]


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> Path:
    """A run with calibrated probabilities, whose training file is gone."""
    folder = tmp_path_factory.mktemp("predictor")
    shutil.copy(tiny_csv, folder / "train.csv")
    options = {
        "--data.train": folder / "train.csv",
        "--data.max_length": 12,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 1,
        "--train.learning_rate": 3e-3,
        "--task.calibrate": "true",
        "--monitor.tensorboard": "false",
        "--export.name": "moods",
        "--output": folder / "run",
    }
    assert train.main([str(word) for pair in options.items() for word in pair]) == 0
    (folder / "train.csv").unlink()
    return folder / "run"


@pytest.fixture(scope="module")
def pairs(exported_pairs) -> Predictor:
    return kbert.load(exported_pairs[2])


@pytest.fixture(scope="module")
def words(exported_words) -> Predictor:
    return kbert.load(exported_words[2])


def texts() -> list[str]:
    generator = np.random.default_rng(0)
    vocabulary = ["the", "cat", "dogs", "good", "bad", "."]
    return [" ".join(generator.choice(vocabulary, size)) for size in generator.integers(0, 9, 23)]


def same(ours: list[dict], theirs: list[dict]) -> None:
    """The same strings and whole numbers, and floats within rounding."""
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for name, value in row.items():
            if np.asarray(value).dtype.kind == "f" and value != []:
                np.testing.assert_allclose(value, other[name], atol=1e-5)
            else:
                assert value == other[name]


def test_answers_are_the_servers(pairs: Predictor, exported_pairs) -> None:
    base = exported_pairs[2].parent.resolve()
    columns = {"text_a": [a for a, _ in PAIRS], "text_b": [b for _, b in PAIRS]}
    with LocalServer([ModelConfig("pairs", base)]) as server:
        served = predict_grpc(server.grpc_address, "pairs", columns)
    found = pairs.predict(PAIRS, batch_size=2)
    names = sorted(served)
    rows = zip(*(served[name].tolist() for name in names), strict=True)
    same(found, [dict(zip(names, row, strict=True)) for row in rows])
    assert isinstance(found[0]["label"], str) and isinstance(found[0]["label_index"], int)
    assert isinstance(found[0]["probabilities"][0], float)
    assert {row["label"] for row in found} <= {"no", "yes", "好"}


def test_every_way_to_give_rows(pairs: Predictor) -> None:
    expected = pairs.predict(PAIRS)
    as_dicts = [{"text_b": b, "text_a": a} for a, b in PAIRS]
    assert pairs.predict(as_dicts) == expected
    assert pairs.predict({"text_b": [b for _, b in PAIRS], "text_a": [a for a, _ in PAIRS]}) == (
        expected
    )
    assert pairs.predict([list(pair) for pair in PAIRS]) == expected
    assert pairs.predict([]) == pairs.predict({"text_a": [], "text_b": []}) == []


def test_order_is_that_of_the_rows(finished: Path) -> None:
    predictor = kbert.load(finished)
    alone = [predictor.predict([text])[0] for text in texts()]
    for batch_size in (1, 4, 100):
        same(predictor.predict(texts(), batch_size=batch_size), alone)
    assert len({str(row) for row in alone}) > 10  # rows that a wrong order would show


def test_a_run_answers_by_its_export_or_its_weights(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    exported = kbert.load(run)
    assert exported.source == run / "export" / "moods" / "1"
    expected = exported.predict(texts())
    shutil.rmtree(run / "checkpoints")
    same(kbert.load(run).predict(texts()), expected)
    shutil.copytree(finished / "checkpoints", run / "checkpoints")
    shutil.rmtree(run / "export")
    by_weights = kbert.load(run)
    assert by_weights.source == run
    same(by_weights.predict(texts()), expected)
    assert by_weights.task is not None and by_weights.task.temperature != 1


def test_an_export_needs_no_run(finished: Path, tmp_path: Path) -> None:
    base = tmp_path / "moods"
    shutil.copytree(finished / "export" / "moods", base)
    expected = kbert.load(finished).predict(texts())
    for path in (base, base / "1", str(base)):
        predictor = kbert.load(path)
        assert predictor.predict(texts()) == expected
        assert predictor.task is None


def test_filling_is_left_off(words: Predictor) -> None:
    few, none, many = "a [MASK] sat", "a cat", "[MASK] cat [MASK] [MASK] ."
    found = words.predict([few, none, many])
    assert [len(row["token"]) for row in found] == [1, 0, 3]
    assert [len(row["score"]) for row in found] == [1, 0, 3]
    assert all(len(mask) == 5 for row in found for mask in row["token"])
    same(found, [words.predict([text])[0] for text in (few, none, many)])
    assert found[2]["token_id"] != found[0]["token_id"]


def test_only_trailing_filling_counts() -> None:
    """A value that looks like filling stays where another output of its place does not."""
    outputs = {
        "words": np.array([[b"a", b"", b"c"], [b"d", b"", b""], [b"", b"", b""]], object),
        "starts": np.array([[0, 2, -1], [0, 4, -1], [-1, -1, -1]]),
        "scores": np.zeros((3, 3), np.float32),
        "value": np.array([-1.0, 0.0, 1.5], np.float32),
    }
    opened = frozenset({"words", "starts", "scores"})
    predictor = Predictor(dict, inputs=("text",), open_outputs=opened, source=Path())
    rows = predictor.rows(outputs)
    assert [row["words"] for row in rows] == [["a", "", "c"], ["d", ""], []]
    assert [row["starts"] for row in rows] == [[0, 2, -1], [0, 4], []]
    assert [row["value"] for row in rows] == [-1.0, 0.0, 1.5]


def test_inputs_have_the_order_of_the_certificate(exported_pairs, tmp_path: Path) -> None:
    """TensorFlow itself sorts them by name."""
    folder = tmp_path / "3"
    shutil.copytree(exported_pairs[2], folder)
    path = folder / "assets.extra" / "parity.json"
    path.write_text(path.read_text().replace("text_a", "x").replace("text_b", "text_a"))
    path.write_text(path.read_text().replace('"x"', '"text_b"'))
    assert kbert.load(folder).inputs == ("text_b", "text_a")
    path.unlink()
    assert kbert.load(folder).inputs == ("text_a", "text_b")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a text", "the texts are one string; give a list of them"),
        ([("a", "b", "c")], "row 1 has 3 texts, the model takes 2: text_a, text_b"),
        ([("a", "b"), "c"], "row 2 is 'c', the model takes 2 texts: give (text_a, text_b)"),
        ([("a", 7)], "row 1, text_b: must be a string, is 7"),
        ([("a", "b"), (None, "b")], "row 2, text_a: must be a string, is None"),
        ([{"text_a": "a"}], "row 1: the model takes text_a, text_b, not text_a"),
        ({"text": ["a"]}, "the texts: the model takes text_a, text_b, not text"),
        ({"text_a": ["a"], "text_b": []}, "different lengths (text_a 1, text_b 0)"),
        ([("a", "\ud800")], "row 1, text_b: half of a surrogate pair in '\\ud800'"),
    ],
)
def test_bad_rows_are_one_line(pairs: Predictor, rows, message: str) -> None:
    with pytest.raises(InputError) as caught:
        pairs.predict(rows)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_one_input_takes_strings(words: Predictor) -> None:
    assert words.predict([{"text": "[MASK] cat"}]) == words.predict(["[MASK] cat"])
    with pytest.raises(InputError, match="row 1, text: must be a string"):
        words.predict([("a", "b")])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="batch_size must be at least 1, not 0"):
        words.predict(["a"], batch_size=0)


def test_what_is_no_model_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        kbert.load(tmp_path / "none")
    with pytest.raises(InputError, match="no SavedModel"):
        kbert.load(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("export", "checkpoints"))
    with pytest.raises(InputError, match="the run's weights are gone"):
        kbert.load(run)
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match="the run is not finished"):
        kbert.load(run)


def test_other_saved_models_are_refused(tmp_path: Path) -> None:
    def save(function, spec: tf.TensorSpec, signature: str) -> Path:
        module, folder = tf.Module(), tmp_path / signature / spec.dtype.name
        module.function = tf.function(function, input_signature=[spec])
        tf.saved_model.save(module, str(folder), signatures={signature: module.function})
        return folder

    strings, numbers = tf.TensorSpec([None], tf.string, "x"), tf.TensorSpec([None], name="x")
    folder = save(lambda x: {"n": x}, numbers, "serving_default")
    with pytest.raises(InputError, match="its input 'x' is no text"):
        kbert.load(folder)
    with pytest.raises(InputError, match="it has no signature serving_default"):
        kbert.load(save(lambda x: {"n": x}, strings, "other"))
    folder = save(lambda x: {"n": tf.constant([1, 2])}, strings, "serving_default")
    with pytest.raises(InputError, match="its output 'n' is not one a row"):
        kbert.load(folder).predict(["a"])
    (folder / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"saved_model\.pb: damaged"):
        kbert.load(folder)


def test_five_lines_in_a_new_process(exported_words) -> None:
    code = f"""\
import kbert
task = kbert.load({str(exported_words[2])!r})
print(len(task.predict(["the [MASK] sat"])[0]["token"][0]))
import sys
print("keras_nlp" in sys.modules, "kbert.tasks" in sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "5\nFalse False\n", process.stderr
