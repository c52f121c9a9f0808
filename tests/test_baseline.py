"""The linear model: what it counts, against scikit-learn's own, and its file."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import log_loss

import kbert.baseline
from kbert.baseline import Baseline, fit_baseline
from kbert.batches import EncodedSplit, RaggedColumn, encode_split
from kbert.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def column(texts: list[list[int]]) -> RaggedColumn:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    return RaggedColumn(np.array(sum(texts, []), np.int32), offsets.astype(np.int64))


def split(*segments: list[list[int]], labels: list[int] | None = None) -> EncodedSplit:
    rows = np.arange(len(segments[0]))
    of = None if labels is None else np.array(labels, np.int32)
    return EncodedSplit(tuple(column(texts) for texts in segments), rows, of)


def drawn(seed: int, *, rows: int = 90, classes: int = 3) -> EncodedSplit:
    """Texts of up to 12 of 30 pieces, and piece 100 + label beside piece 7 or 8."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    texts = [
        [*generator.integers(0, 30, generator.integers(0, 12)), 7 + label % 2, 100 + label]
        for label in labels.tolist()
    ]
    return split([[int(piece) for piece in text] for text in texts], labels=labels.tolist())


def texts_of(rows: EncodedSplit) -> list[list[int]]:
    return [rows.segments[0].gather(np.array([row]))[0].tolist() for row in rows.rows]


@pytest.fixture(scope="module")
def fitted() -> Baseline:
    return fit_baseline(drawn(0), num_classes=3, validation=drawn(1), seed=0)


def pair(first: int, second: int) -> int:
    return (first + 1) * 2**21 + second


def test_features_by_hand() -> None:
    # pairs do not cross segments or rows; the second row is the file's third
    rows = split([[5, 6, 5, 6], [9], [5]], [[6], [9], []], labels=[0, 1, 1])
    (chunk,) = kbert.baseline._counted(rows.take(np.array([0, 2])))
    found = list(zip(chunk.row.tolist(), chunk.feature.tolist(), chunk.count, strict=True))
    assert found == [
        (0, 5, 2), (0, 6, 3), (0, pair(5, 6), 2), (0, pair(6, 5), 1), (1, 5, 1),
    ]  # fmt: skip


def test_features_of_several_rows_are_kept() -> None:
    rows = split([[5, 6, 6], [6, 7], [5, 6], [8]], labels=[0, 1, 0, 1])
    fitted = fit_baseline(rows, num_classes=2, validation=None, seed=0)
    assert fitted.features.tolist() == [5, 6, pair(5, 6)]


def test_the_most_frequent_features_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = split([[1], [1, 2], [1, 2], [1, 3], [2, 3]], labels=[0, 1, 0, 1, 0])
    monkeypatch.setattr(kbert.baseline, "MAX_FEATURES", 2)
    fitted = fit_baseline(rows, num_classes=2, validation=None, seed=0)
    assert fitted.features.tolist() == [1, 2]
    monkeypatch.setattr(kbert.baseline, "MAX_WEIGHTS", 5)  # of 5 classes: one feature
    fitted = fit_baseline(rows, num_classes=5, validation=None, seed=0)
    assert fitted.features.tolist() == [1]


def test_weights_are_scikit_learns(fitted: Baseline) -> None:
    train, test = drawn(0), drawn(2)
    reference = TfidfVectorizer(
        analyzer=lambda text: [*text, *map(pair, text[:-1], text[1:])], sublinear_tf=True, min_df=2
    ).fit(texts_of(train))
    assert reference.get_feature_names_out().tolist() == fitted.features.tolist()
    (chunk,) = kbert.baseline._counted(test)
    ours = kbert.baseline._weigh(chunk.matrix(fitted.features), fitted.idf)
    wanted = reference.transform(texts_of(test)).toarray()
    np.testing.assert_allclose(ours.toarray(), wanted, atol=1e-6)


def test_probabilities(fitted: Baseline) -> None:
    test = drawn(2)
    found = fitted.probabilities(test)
    assert found.shape == (90, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == test.labels).all()
    assert fitted.train_rows == 90
    # of rows in another order
    some = np.array([7, 3, 88])
    np.testing.assert_array_equal(fitted.probabilities(test.take(some)), found[some])
    assert fitted.probabilities(test.take(some[:0])).shape == (0, 3)


def test_two_classes() -> None:
    fitted = fit_baseline(drawn(0, classes=2), num_classes=2, validation=None, seed=0)
    test = drawn(1, classes=2)
    found = fitted.probabilities(test)
    assert (found.argmax(axis=1) == test.labels).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_chunks_change_nothing(fitted: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted.probabilities(drawn(2))
    monkeypatch.setattr(kbert.baseline, "CHUNK_PIECES", 20)
    assert len(list(kbert.baseline._counted(drawn(2)))) > 20
    again = fit_baseline(drawn(0), num_classes=3, validation=drawn(1), seed=0)
    np.testing.assert_array_equal(again.probabilities(drawn(2)), whole)


def test_the_same_at_every_fit(fitted: Baseline) -> None:
    again = fit_baseline(drawn(0), num_classes=3, validation=drawn(1), seed=0)
    np.testing.assert_array_equal(again.coef, fitted.coef)
    np.testing.assert_array_equal(again.intercept, fitted.intercept)


def with_noise(rows: EncodedSplit, share: float) -> EncodedSplit:
    generator = np.random.default_rng(0)
    others = generator.integers(0, 3, len(rows))
    labels = np.where(generator.random(len(rows)) < share, others, rows.labels)
    return dataclasses.replace(rows, labels=labels.astype(np.int32))


def test_validation_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for share in (0.0, 0.05, 0.6):
        train, validation = with_noise(drawn(0), share), with_noise(drawn(1), share)
        chosen.append(fit_baseline(train, num_classes=3, validation=validation, seed=0).strength)
        losses = {}
        for strength in (3.0, 30.0, 300.0):
            with monkeypatch.context() as patched:
                patched.setattr(kbert.baseline, "STRENGTHS", (strength,))
                alone = fit_baseline(train, num_classes=3, validation=validation, seed=0)
            probabilities = alone.probabilities(validation)
            losses[strength] = log_loss(validation.labels, probabilities)
        assert chosen[-1] == min(losses, key=losses.get)
    assert chosen == [300, 30, 3]


def test_without_validation() -> None:
    noisy = with_noise(drawn(0), 0.6)
    for judges in (None, drawn(1).take(np.arange(0)), dataclasses.replace(noisy, labels=None)):
        assert fit_baseline(noisy, num_classes=3, validation=judges, seed=0).strength == 30


def test_a_large_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    train = drawn(0)
    monkeypatch.setattr(kbert.baseline, "MAX_ROWS", 40)
    first, again, other = (
        fit_baseline(train, num_classes=3, validation=None, seed=seed) for seed in (0, 0, 1)
    )
    assert first.train_rows == 40
    np.testing.assert_array_equal(first.coef, again.coef)
    assert first.coef.shape != other.coef.shape or (first.coef != other.coef).any()
    monkeypatch.setattr(kbert.baseline, "MAX_PIECES", 100)
    fewer = fit_baseline(train, num_classes=3, validation=None, seed=0)
    sample = kbert.baseline._sample(train, columns=3, seed=0)
    assert fewer.train_rows == len(sample) < 40
    assert sample.lengths.sum() <= 100
    assert (np.diff(sample.rows) > 0).all()
    monkeypatch.setattr(kbert.baseline, "MAX_PRODUCTS", 120)  # of 3 classes: 40 pieces
    assert kbert.baseline._sample(train, columns=3, seed=0).lengths.sum() <= 40
    monkeypatch.setattr(kbert.baseline, "MAX_PRODUCTS", 1)
    assert len(kbert.baseline._sample(train, columns=3, seed=0)) == 1


def test_classes_without_rows_are_unlikely() -> None:
    fitted = fit_baseline(drawn(0), num_classes=5, validation=None, seed=0)
    found = fitted.probabilities(drawn(1))
    assert found.shape == (90, 5)
    assert 0 < found[:, 3:].max() < 0.01


@pytest.mark.parametrize(
    "rows",
    [
        split([[1, 2], [1, 2], [1]], labels=[1, 1, 1]),  # of one class, as a sorted file's first
        split([[1], [2], [3]], labels=[1, 1, 0]),  # no feature in two rows
        split([[], [], []], labels=[1, 1, 0]),
        split([[4]], labels=[1]),
    ],
)
def test_where_there_is_nothing_to_learn(rows: EncodedSplit, tmp_path: Path) -> None:
    fitted = fit_baseline(rows, num_classes=3, validation=rows, seed=0)
    found = fitted.probabilities(drawn(0))
    counts = np.bincount(rows.labels, minlength=3)
    np.testing.assert_allclose(found[0], (counts + 1) / (len(rows) + 3), rtol=1e-6)
    assert (found == found[0]).all()
    fitted.save(tmp_path / "baseline.safetensors")
    loaded = Baseline.load(tmp_path / "baseline.safetensors")
    np.testing.assert_array_equal(loaded.probabilities(drawn(0)), found)


def test_what_cannot_be_fitted() -> None:
    for rows in (split([[1]]), split([], labels=[])):
        with pytest.raises(ValueError, match="needs rows with labels"):
            fit_baseline(rows, num_classes=2, validation=None, seed=0)
    with pytest.raises(ValueError, match="must be under 2097151: 2097151"):
        fit_baseline(split([[2**21 - 1]], labels=[0]), num_classes=2, validation=None, seed=0)


def test_largest_id() -> None:
    rows = split([[2**21 - 2] * 2, [2**21 - 2] * 2], labels=[0, 1])
    fitted = fit_baseline(rows, num_classes=2, validation=None, seed=0)
    assert fitted.features.tolist() == [2**21 - 2, pair(2**21 - 2, 2**21 - 2)]


def test_a_loaded_one_is_the_same(fitted: Baseline, tmp_path: Path) -> None:
    path = tmp_path / "baseline.safetensors"
    fitted.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = Baseline.load(path)
    np.testing.assert_array_equal(
        loaded.probabilities(drawn(2)), fitted.probabilities(drawn(2)), strict=True
    )
    assert (loaded.train_rows, loaded.strength) == (90, fitted.strength)


def test_a_file_that_cannot_be_used(fitted: Baseline, tmp_path: Path) -> None:
    path = tmp_path / "baseline.safetensors"
    fitted.save(path)
    whole, arrays = path.read_bytes(), load_file(path)
    metadata = {"format": kbert.baseline.FORMAT}

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            Baseline.load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)

    for size in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused("damaged, or no baseline")
    path.write_bytes(b"a text\n" * 100)
    refused("damaged, or no baseline")
    save_file({name: array for name, array in arrays.items() if name != "idf"}, path, metadata)
    refused("damaged, or no baseline")
    save_file(arrays, path)
    refused("not a baseline of this version")
    for name, other in (
        ("coef", arrays["coef"][1:]),
        ("coef", arrays["coef"].astype(np.float64)),
        ("coef", arrays["coef"][:, 0].copy()),
        ("intercept", arrays["intercept"][1:]),
        ("features", arrays["features"][::-1].copy()),
    ):
        save_file({**arrays, name: other}, path, metadata)
        refused("not a baseline of this version")
    path.unlink()
    refused("no such file")


def test_light_to_import() -> None:
    heavy = {"sklearn", "scipy", "tensorflow", "keras"}
    code = f"import kbert.baseline, sys; print(sorted({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr


def test_real_sentences(shared_data: Path, minilm: Path, tmp_path: Path) -> None:
    from kbert.config import parse
    from kbert.data import read_dataset
    from kbert.preprocessing import tokenizer_from_files
    from kbert.tasks import task_class
    from kbert.tasks.task import Learned

    files = [("train", "train"), ("validation", "valid"), ("test", "test")]
    words = [f"--data.{role}={shared_data}/sst2/{name}.tsv" for role, name in files]
    config = parse([*words, "--model.checkpoint", str(minilm), "--output", "none"])
    dataset = read_dataset(config.data, task_class("classification").columns(config), seed=0)
    task = task_class("classification")(
        config, tokenizer_from_files(minilm), Learned(dataset.labels, np.ones(2))
    )
    splits = {
        name: encode_split(rows, task, cache_dir=str(tmp_path))
        for name, rows in dataset.splits.items()
    }
    fitted = fit_baseline(splits["train"], num_classes=2, validation=splits["validation"], seed=0)
    right = fitted.probabilities(splits["test"]).argmax(axis=1) == splits["test"].labels
    assert right.mean() > 0.82  # TF-IDF of words and pairs of words: 0.812
