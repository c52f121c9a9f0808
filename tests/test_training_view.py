"""What TensorBoard gets of a training, and that the training is none the worse for it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from kbert import monitor, training
from kbert.batches import epoch_sizes
from kbert.config import parse
from kbert.evaluation import collect, measure
from kbert.experiment import Experiment, Materials
from kbert.retraining import train_watched
from kbert.training import Watcher
from kbert.training_view import Guarded, Sample, plain_markdown

EVERYTHING = {"size_guidance": {"images": 0, "tensors": 0, "scalars": 0}}
STEPS = 11  # of an epoch: 81 rows in batches of 8


@pytest.fixture(scope="module")
def options(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("watched")
    words = {
        "--data.train": tiny_csv,
        "--data.max_length": 12,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 2,
        "--train.batch_size": 8,
        "--train.learning_rate": 1e-3,
        "--monitor.every_steps": 5,
        "--monitor.histograms": "true",
        "--monitor.profile": "3,4",
        "--monitor.attention_layers": "[0, 1]",
        "--monitor.attention_texts": '["the good cat sat .", "bad dogs"]',
        "--output": folder / "run",
    }
    return [str(word) for pair in words.items() for word in pair]


@pytest.fixture(scope="module")
def experiment(options: list[str]) -> Experiment:
    config = parse(options)
    return Materials(config).experiment(config)


@pytest.fixture(scope="module")
def watched(experiment: Experiment, tmp_path_factory):
    """Folder of TensorBoard, the model, its progress."""
    folder = tmp_path_factory.mktemp("watched")
    board = folder / "tensorboard"
    model, progress = train_watched(
        experiment, name="train", folder=folder / "checkpoints", tensorboard=board
    )
    return board, model, progress


def events(folder: Path) -> EventAccumulator:
    """What was written as training went on."""
    (path,) = (path for path in folder.glob("events.*") if path.suffix != ".graph")
    return EventAccumulator(str(path), **EVERYTHING).Reload()


def test_curves_are_those_of_the_history(watched, experiment: Experiment) -> None:
    board, _, progress = watched
    train, validation = (monitor.read_scalars(board / run) for run in ("train", "validation"))
    for name in ("loss", "accuracy", "f1_macro"):
        expected = [epoch[name] for epoch in progress.history]
        measured = [epoch[f"val_{name}"] for epoch in progress.history]
        assert [step for step, _ in train[f"epoch_{name}"]] == [1, 2]
        assert [value for _, value in train[f"epoch_{name}"]] == pytest.approx(expected)
        assert [value for _, value in validation[f"epoch_{name}"]] == pytest.approx(measured)
        # in one chart with the training's points, at the step that they were measured after
        assert [step for step, _ in validation[name]] == [STEPS, 2 * STEPS]
        assert [step for step, _ in train[name]] == [5, 10, 15, 20]
    assert [step for step, _ in train["gradient_norm"]] == [5, 10, 15, 20]
    assert all(value > 0 for _, value in train["gradient_norm"])


def test_the_score_of_validation_is_written_after_each_epoch(watched, experiment) -> None:
    board, model, progress = watched
    scalars = monitor.read_scalars(board / "validation")
    measured = measure(model, experiment.task, experiment.splits["validation"])
    for name in ("log_loss", "brier", "accuracy"):
        assert [step for step, _ in scalars[f"score/{name}"]] == [STEPS, 2 * STEPS]
        assert scalars[f"score/{name}"][-1][1] == pytest.approx(measured[name], abs=1e-6)
    # what the metrics of training measure as well is theirs
    assert {name for name in progress.history[0] if name.startswith("val_")} == {
        "val_loss", "val_accuracy", "val_f1_macro"
    }  # fmt: skip


def test_speed_and_padding_are_of_the_steps_between(watched, experiment: Experiment) -> None:
    train = monitor.read_scalars(watched[0] / "train")
    order = experiment.config.train
    sizes = epoch_sizes(
        experiment.splits["train"], experiment.task,
        batch_size=order.batch_size, seed=order.seed, epoch=0,
    )  # fmt: skip
    # the first step is not timed: the first point is of steps 2 to 5
    shares = [1 - part[:, 1].sum() / part[:, 2].sum() for part in (sizes[1:5], sizes[5:10])]
    found = [value for _, value in train["padding_share"][:2]]
    assert found == pytest.approx(shares, abs=1e-6)
    rates = zip(train["tokens_per_second"], train["examples_per_second"], strict=True)
    ratios = [tokens / rows for (_, tokens), (_, rows) in rates]
    means = [part[:, 1].sum() / part[:, 0].sum() for part in (sizes[1:5], sizes[5:10])]
    assert ratios[:2] == pytest.approx(means, rel=1e-5)


def test_watching_changes_nothing(watched, experiment: Experiment, tmp_path: Path) -> None:
    alone, progress = train_watched(experiment, name="alone", folder=tmp_path, tensorboard=None)
    for ours, theirs in zip(watched[1].weights, alone.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)
    assert progress.history == watched[2].history


@pytest.mark.parametrize(
    ("checkpoint_steps", "kills"),
    [
        pytest.param(7, (6, 15, 19), id="before a checkpoint, after an epoch, before a point"),
        pytest.param(3, (4, 13), id="after a checkpoint before the first point"),
    ],
)
def test_a_run_that_is_killed_has_each_point_once(
    options: list[str], watched, tmp_path: Path, monkeypatch, checkpoint_steps: int, kills
) -> None:
    config = parse([*options, "--train.checkpoint_steps", str(checkpoint_steps)])
    save = training._Saver.on_train_batch_end

    def go_on() -> None:
        train_watched(
            Materials(config).experiment(config),
            name="train", folder=tmp_path / "checkpoints", tensorboard=tmp_path / "board",
        )  # fmt: skip

    for last in kills:

        def killed(self: training._Saver, batch: int, logs: dict | None = None) -> None:
            if int(self.keeper.model.optimizer.iterations) == last:  # noqa: B023
                raise RuntimeError("killed")
            save(self, batch, logs)

        monkeypatch.setattr(training._Saver, "on_train_batch_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            go_on()
    monkeypatch.undo()
    go_on()
    timed = {"examples_per_second", "tokens_per_second", "padding_share"}
    for run in ("train", "validation"):
        whole, ours = monitor.read_scalars(watched[0] / run), points(tmp_path / "board" / run)
        assert {name for name, _ in ours} >= set(whole)
        assert len(ours) == len(set(ours)), "a point is there twice"
        scalars = monitor.read_scalars(tmp_path / "board" / run)
        for name in set(whole) - timed:
            assert scalars[name] == whole[name], name


def points(folder: Path) -> list[tuple[str, int]]:
    """Tag and step of all that was written as training went on."""
    files = [path for path in folder.glob("events.*") if path.suffix not in (".graph", ".charts")]
    return [
        (value.tag, event.step)
        for path in files
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def test_classes_of_validation(watched, experiment: Experiment) -> None:
    board, model, _ = watched
    seen = events(board / "validation")
    labels = ("negative", "positive")
    scalars = {tag: values for tag, values in monitor.read_scalars(board / "validation").items()}
    assert {f"f1/{label}" for label in labels} <= set(scalars)
    tags = set(seen.Tags()["tensors"])
    assert {f"precision_recall/{label}" for label in labels} <= tags
    for tag in ("confusion_matrix", "reliability"):
        pictures = seen.Images(tag)
        assert [picture.step for picture in pictures] == [STEPS, 2 * STEPS]
        assert imread(io.BytesIO(pictures[-1].encoded_image_string)).std() > 0.05
    outputs = collect(model, experiment.task, experiment.splits["validation"])
    split = experiment.splits["validation"]
    of_gold = outputs["probabilities"][np.arange(len(split)), split.labels]
    worst = Sample(split, rows=99).shown[of_gold.argmin()]  # the sample is all of so few rows
    table = seen.Tensors("worst_losses")[-1].tensor_proto.string_val[0].decode()
    first = table.splitlines()[2]
    assert plain_markdown(worst) in first
    assert f"{of_gold.min():.4f}".replace(".", "&#46;") in first


def test_vectors_start_and_after(watched, experiment: Experiment) -> None:
    split = experiment.splits["validation"]
    found = {}
    for name in ("vectors_start", "vectors_trained"):
        folder = watched[0] / name
        assert "vectors.tsv" in (folder / "projector_config.pbtxt").read_text()
        found[name] = np.loadtxt(folder / "vectors.tsv", delimiter="\t")
        assert found[name].shape == (len(split), 12)
        with (folder / "metadata.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [row["label"] for row in rows] == [
            experiment.task.labels[index] for index in split.labels
        ]
        assert [row["text"] for row in rows] == Sample(split, rows=99).shown
    assert np.abs(found["vectors_start"] - found["vectors_trained"]).max() > 1e-3


def test_attention_and_graph_and_histograms_and_profile(watched, experiment: Experiment) -> None:
    board = watched[0]
    attention = events(board / "validation")
    drawn = {f"attention/layer_{layer}/text_{text}" for text in range(2) for layer in range(2)}
    assert {tag for tag in attention.Tags()["images"] if tag.startswith("attention")} == drawn
    histograms = events(board / "train")
    variables = watched[1].trainable_variables
    tags = set(histograms.Tags()["tensors"]) | set(histograms.Tags()["histograms"])
    assert {f"weights/{variable.path}" for variable in variables} <= tags
    assert any(tag.startswith("gradients/") for tag in tags)
    (graph,) = (board / "train").glob("events.*.graph")
    assert EventAccumulator(str(graph)).Reload().Tags()["graph"]
    assert list((board / "train" / "plugins" / "profile").rglob("*.xplane.pb"))


class Broken(Watcher):
    """Fails when it is first shown a validation."""

    def on_validation(self, epoch: int, outputs: dict[str, np.ndarray], score: dict) -> None:
        raise ValueError("no picture\nto draw")


def test_a_picture_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded(Broken())
    for _ in range(2):
        guarded.on_validation(0, {}, {})
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "TensorBoard goes without Broken (ValueError: no picture to draw); --debug shows where"
    ]


def test_a_full_disk_ends_the_training() -> None:
    class Full(Watcher):
        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Guarded(Full()).on_epoch_begin(0)


def test_masked_words_are_watched_too(
    options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Curves, graph and attention, without any masks in the texts that are drawn."""
    words = ["--task", "masked_lm", "--train.epochs", "1", "--monitor.profile", "null"]
    config = parse([*options, *words, "--monitor.attention_texts", "[]"])
    board = tmp_path / "tensorboard"
    train_watched(
        Materials(config).experiment(config), name="t", folder=tmp_path, tensorboard=board
    )
    assert "TensorBoard goes without" not in caplog.text
    assert "attention/layer_1/text_0" in events(board / "validation").Tags()["images"]
    assert {"loss", "accuracy", "gradient_norm"} <= set(monitor.read_scalars(board / "train"))
    assert list((board / "train").glob("*.graph"))


def test_layers_and_heads_that_are_not_there(options: list[str]) -> None:
    from kbert.errors import InputError

    for words, message in (
        (["--monitor.attention_layers", "[2]"], "attention_layers: 2 is over 1, the last of"),
        (["--monitor.attention_heads", "[0, 3]"], "attention_heads: 3 is over 2, the last of"),
    ):
        config = parse([*options, *words])
        with pytest.raises(InputError, match=message):
            Materials(config).experiment(config).check()


def test_markdown_shows_a_text_as_it_is() -> None:
    import markdown

    text = "a|b *c* _d_ `e` <script>f</script> [g](h) # i\n&amp; 好 $1"
    shown = markdown.markdown(
        f"|x|\n|---|\n|{plain_markdown(text)}|", extensions=["markdown.extensions.tables"]
    )
    import html
    import re

    cell = re.search("<td>(.*?)</td>", shown, flags=re.DOTALL)[1]
    assert html.unescape(cell) == text


def test_options_that_make_no_sense() -> None:
    from kbert.errors import InputError

    base = ["--data.train", "a.csv", "--output", "b", "--model.checkpoint", "c"]
    for words in (["--monitor.profile", "20,10"], ["--monitor.profile", "x"],
                  ["--monitor.attention_layers", "[-1]"]):  # fmt: skip
        with pytest.raises(InputError, match=words[0][2:]):
            parse([*base, *words])
    assert parse([*base, "--monitor.profile", "10,20"]).monitor.profiled_steps == (10, 20)
    assert json.dumps(parse(base).monitor.profiled_steps) == "null"
