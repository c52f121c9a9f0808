"""train.py -> SavedModel -> server -> client: the same numbers at every hop."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

import train
from kbert.config import as_yaml, parse
from kbert.warmup import WARMUP_PLACE
from serve.client import predict_grpc, predict_rest
from serve.model_config import ModelConfig
from serve.server import LocalServer

ROOT = Path(__file__).resolve().parents[1]
OLD_PYTHON = ROOT / ".venv-tf212" / "bin" / "python"


def words_of(options: dict[str, object]) -> list[str]:
    return [str(word) for pair in options.items() for word in pair]


@pytest.fixture(scope="module")
def options(tiny_checkpoint: Path, tiny_csv: Path, tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("end_to_end")
    return {
        "--data.train": tiny_csv,
        "--data.max_length": 12,
        "--data.cache_dir": folder / "cache",
        "--model.checkpoint": tiny_checkpoint,
        "--train.epochs": 2,
        "--train.batch_size": 8,
        "--train.learning_rate": 3e-3,
        "--train.best_metric": "accuracy",
        "--monitor.every_steps": 2,
        "--task.calibrate": "true",
        "--search.tuner": "grid",
        "--search.trials": 2,
        "--search.epochs": 1,
        "--search.fraction": 0.5,
        "--search.seeds": 2,
        "--search.space.batch_size": "[4, 8, 16]",
        "--export.name": "moods",
        "--export.version": 7,
        "--export.huggingface": "true",
        "--output": folder / "run",
    }


@pytest.fixture(scope="module")
def finished(options: dict[str, object]) -> Path:
    """A finished run: search, training, evaluation, export."""
    assert train.main(words_of(options)) == 0
    return Path(str(options["--output"]))


@pytest.fixture(scope="module")
def texts_of_test(finished: Path, tiny_csv: Path) -> list[str]:
    with tiny_csv.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    return [texts[int(row["row"]) - 1] for row in read_predictions(finished)]


def read_predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def probabilities(folder: Path) -> np.ndarray:
    rows = read_predictions(folder)
    return np.array([[float(row["p_negative"]), float(row["p_positive"])] for row in rows])


def test_folder_of_a_finished_run(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        ".lock", "analysis.json", "baseline.safetensors", "checkpoints", "config.yaml", "export",
        "huggingface", "learned.json", "metrics.json", "predictions.csv", "report.html",
        "retrained", "search", "tensorboard",
    }  # fmt: skip
    weights = [path.name for path in (finished / "checkpoints").iterdir()]
    assert weights == ["model.safetensors"]
    visible = [path for path in (finished / "export" / "moods").glob("[!.]*")]
    assert [path.name for path in visible] == ["7"]
    labels = (finished / "export" / "moods" / "7" / "assets" / "labels.txt").read_text()
    assert labels == "negative\npositive\n"


def test_the_export_warms_a_server_up(finished: Path, tiny_csv: Path) -> None:
    with tiny_csv.open(encoding="utf-8", newline="") as file:
        texts = {row["text"].encode() for row in csv.DictReader(file)}
    extra = finished / "export" / "moods" / "7" / "assets.extra"
    assert json.loads((extra / "parity.json").read_text())["tf_serving"] == "2.12"
    records = tf.data.TFRecordDataset(str(extra / WARMUP_PLACE.name))
    logs = [PredictionLog.FromString(record) for record in records.as_numpy_iterator()]
    requests = [log.predict_log.request for log in logs]
    assert [request.model_spec.name for request in requests] == ["moods"] * 8
    sent = [tf.make_ndarray(request.inputs["text"]).tolist() for request in requests]
    assert [len(batch) for batch in sent] == [1] * 4 + [8] * 4
    assert {text for batch in sent for text in batch} <= texts


def test_models_config_has_the_model(finished: Path) -> None:
    path = finished / "export" / "models.config"
    config = text_format.Parse(path.read_text(encoding="utf-8"), ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == ("moods", "/models/moods")
    assert dict(model.version_labels) == {"stable": 7, "canary": 7}


def test_metrics_are_those_of_the_predictions(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"search", "validation", "test", "headline", "fitted", "train"}
    assert metrics["fitted"]["temperature"] == metrics["test"]["calibration"]["temperature"]
    rows = read_predictions(finished)
    right = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert metrics["test"]["accuracy"] == pytest.approx(right)
    labels = [["negative", "positive"].index(row["label"]) for row in rows]
    loss = -np.log(probabilities(finished)[np.arange(len(rows)), labels]).mean()
    assert metrics["test"]["log_loss"] == pytest.approx(loss, abs=1e-6)
    calibration = metrics["test"]["calibration"]
    assert calibration["applied"]
    assert calibration["log_loss_after"] == pytest.approx(loss, abs=1e-6)
    assert calibration["log_loss_before"] == pytest.approx(metrics["test"]["loss"], abs=1e-6)
    assert calibration["temperature"] != 1
    assert metrics["test"]["baseline"]["rows"] == len(rows)
    assert metrics["train"]["examples_per_second"] > 0
    trials = metrics["search"]["trials"]
    assert len(trials) == 3
    assert metrics["train"]["batch_size"] == trials[0]["hyperparameters"]["batch_size"]


def test_a_finished_run_says_so(finished: Path, options: dict, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert train.main(words_of(options)) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_other_options_in_the_folder_are_refused(finished: Path, options: dict, capsys) -> None:
    assert train.main([*words_of(options), "--train.epochs", "3"]) == 2
    assert "other options (train.epochs: 2 -> 3): name a new folder" in capsys.readouterr().err
    assert train.main([*words_of(options), "--resume", "never"]) == 2
    assert "--resume never needs a new folder" in capsys.readouterr().err


def test_config_reads_back(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["train"]["epochs"] == 2
    assert config["export"]["version"] == 7


def test_server_answers_what_the_file_says(finished: Path, texts_of_test: list[str]) -> None:
    expected = probabilities(finished)
    rows = read_predictions(finished)
    base = finished / "export" / "moods"
    with LocalServer([ModelConfig("moods", base.resolve())]) as server:
        url = f"http://{server.rest_address}/v1/models/moods"
        by_rest = predict_rest(url, {"text": texts_of_test})
        by_grpc = predict_grpc(server.grpc_address, "moods", {"text": texts_of_test})
        single = predict_rest(url, {"text": texts_of_test[:1]})
    for answers in (by_rest, by_grpc):
        np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-5)
        assert list(answers["label"]) == [row["prediction"] for row in rows]
        assert answers["label_index"].dtype == np.int32
        assert answers["logits"].shape == (len(rows), 2)
    np.testing.assert_allclose(single["probabilities"], expected[:1], atol=1e-5)


def test_old_tensorflow_answers_the_same(
    finished: Path, texts_of_test: list[str], tmp_path: Path
) -> None:
    """It answers the warm-up requests too, and serialised tf.train.Example by classify."""
    if not OLD_PYTHON.exists():
        pytest.skip("no environment of TensorFlow 2.12.1 (.venv-tf212): `make test` makes it")
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"text": tf.train.Feature(bytes_list={"value": [text.encode()]})}
            )
        )
        for text in texts_of_test
    ]
    serialised = [example.SerializeToString().decode() for example in examples]  # short: ASCII
    answers = ask_old_tensorflow(finished, {"text": texts_of_test}, tmp_path)
    np.testing.assert_allclose(answers["probabilities"], probabilities(finished), atol=1e-5)
    answers = ask_old_tensorflow(finished, {"inputs": serialised}, tmp_path, "classify")
    np.testing.assert_allclose(answers["scores"], probabilities(finished), atol=1e-5)
    assert answers["classes"].tolist() == [[b"negative", b"positive"]] * len(examples)


def ask_old_tensorflow(
    run: Path, inputs: dict[str, list[str]], folder: Path, *signature: str
) -> dict[str, np.ndarray]:
    inputs_file, outputs_file = folder / "inputs.json", folder / "outputs.npz"
    inputs_file.write_text(json.dumps(inputs), encoding="utf-8")
    script, model = ROOT / "kbert" / "session_check.py", run / "export" / "moods" / "7"
    command = [OLD_PYTHON, script, model, inputs_file, outputs_file, *signature]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(outputs_file) as answers:
        return dict(answers)


def test_transformers_answers_the_same(finished: Path, texts_of_test: list[str]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = finished / "huggingface"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(
        texts_of_test, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    calibration = json.loads((finished / "metrics.json").read_text())["test"]["calibration"]
    calibrated = (logits / calibration["temperature"]).softmax(-1).numpy()
    np.testing.assert_allclose(calibrated, probabilities(finished), atol=1e-5)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.problem_type == "single_label_classification"


def test_tensorboard_has_the_curves(finished: Path) -> None:
    from kbert.monitor import read_scalars

    seed = json.loads((finished / "metrics.json").read_text())["train"]["seed"]
    curves = finished / "tensorboard" / "moods-7" / "winner" / f"seed-{seed}"
    found = {name: read_scalars(curves / name) for name in ("train", "validation")}
    for tag in ("loss", "accuracy", "f1_macro", "learning_rate", "gradient_norm"):
        steps = [step for step, _ in found["train"][tag]]
        assert steps == sorted(set(steps))
        assert all(step % 2 == 0 for step in steps)
    for tag in ("epoch_loss", "epoch_accuracy", "epoch_f1_macro"):
        for points in found.values():
            assert [step for step, _ in points[tag]] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data.train": "missing.csv"}, "missing.csv"),
        ({"--data.test": "gone.csv", "--model.checkpoint": "/no/such/folder"}, "gone.csv"),
        ({"--data.label_column": "mood"}, "mood"),
        ({"--data.text_column": "words"}, "words"),
        ({"--model.checkpoint": "/no/such/folder"}, "there is no such folder"),
        ({"--data.max_length": 34}, "data.max_length 34 is over the 33 positions"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    options: dict, tmp_path: Path, changes: dict, message: str, capsys
) -> None:
    output = tmp_path / "run"
    arguments = words_of({**options, "--output": output, **changes})
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert [line for line in error.splitlines() if "error:" in line] == error.splitlines()[-1:]
    assert not output.exists()


def test_what_keeps_an_export_from_its_place_is_said_before_training(
    tiny_options: list[str], tmp_path: Path, capsys
) -> None:
    output = tmp_path / "run"
    (output / "export").mkdir(parents=True)
    (tmp_path / "file").touch()
    (output / "config.yaml").write_text(as_yaml(parse(tiny_options)), encoding="utf-8")
    (output / "export" / "models.config").write_text("model_config_list {", encoding="utf-8")
    assert train.main(tiny_options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"train.py: error: {output}/export/models.config: no ModelServerConfig")
    assert {path.name for path in output.iterdir()} == {".lock", "config.yaml", "export"}
    assert train.main([*tiny_options, "--output", str(tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"--output {tmp_path}/file/run: cannot be made (Not a directory).")


def test_command_line_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--data.train", str(tmp_path / "no.csv")]
    process = subprocess.run(
        [*command, "--model.checkpoint", str(tmp_path), "--output", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.startswith("train.py: error: ")
    assert process.stderr.count("\n") == 1  # no greeting of TensorFlow's either
