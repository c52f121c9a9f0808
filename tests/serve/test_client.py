import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_servers import ScriptedHttp

from serve.client import (
    ClientError,
    GrpcClient,
    RestClient,
    VersionState,
    main,
    predict_grpc,
    predict_rest,
)

ROOT = Path(__file__).parents[2]
NOBODY = "127.0.0.1:1"


@pytest.fixture
def url(rest_address: str) -> str:
    return f"http://{rest_address}/v1/models"


def assert_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name])


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("half", {"x": [[1], [1 / 3], [float("nan")], [float("-inf")], [1e-42]]}),
        ("half", {"x": np.float64([[0.1], [1e30]])}),
        ("pair", {"a": [], "b": np.zeros(0)}),
        ("pair", {"a": [1.5, 2], "b": np.int64([3, 4])}),
        ("text", {"text": ["all is good", "ä\0", b"\xff\0"]}),
        ("text", {"text": np.array(["all is good"])}),
        ("text", {"text": "one text, no list"}),
    ],
)
def test_both_ways_give_the_same(url: str, grpc_address: str, model: str, inputs: dict[str, Any]):
    by_rest = predict_rest(f"{url}/{model}", inputs)
    assert_equal(by_rest, predict_grpc(grpc_address, model, inputs))


def test_strings_are_text_and_bytes_are_bytes(url: str):
    outputs = predict_rest(f"{url}/text", {"text": ["mäh", b"\xff"]})
    assert outputs["label"].tolist() == ["schläft", "schläft"]
    assert outputs["text_bytes"].tolist() == ["mäh".encode(), b"\xff"]
    assert outputs["probabilities"].dtype == np.float32


def test_proxies_are_passed_by(url: str, grpc_address: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{NOBODY}")
    inputs = {"x": [[1]]}
    assert_equal(predict_rest(f"{url}/half", inputs), predict_grpc(grpc_address, "half", inputs))


def test_rows_give_the_same_as_columns(url: str):
    rows = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert_equal(
        predict_rest(f"{url}/pair", instances=rows),
        predict_rest(f"{url}/pair", {"a": [1, 3], "b": [2, 4]}),
    )
    assert predict_rest(f"{url}/half", instances=[1, 2])["y"].tolist() == [2.5, 3]
    with pytest.raises(ValueError, match="one of inputs and instances"):
        predict_rest(f"{url}/half")


def test_signatures_and_versions(url: str, grpc_address: str):
    by_rest = predict_rest(f"{url}/half/versions/123", {"x": [1, 2]}, signature_name="total")
    asked = {"version": 123, "signature_name": "total"}
    assert_equal(by_rest, predict_grpc(grpc_address, "half", {"x": [1, 2]}, **asked))
    assert by_rest["total"].shape == ()


def test_errors_of_rest(url: str):
    with pytest.raises(ClientError, match="answered 404: Servable not found for request: Latest"):
        predict_rest(f"{url}/no", {"x": [1]})
    with pytest.raises(ClientError, match="answered 400: Missing named input: b in 'inputs'"):
        predict_rest(f"{url}/pair", {"a": [1]})
    with pytest.raises(ClientError, match="no signature no, only .*serving_default"):
        predict_rest(f"{url}/pair", {"a": [1]}, signature_name="no")
    with pytest.raises(ClientError, match=f"no answer from http://{NOBODY}"):
        predict_rest(f"http://{NOBODY}/v1/models/half", {"x": [1]})


def test_errors_of_grpc(grpc_address: str):
    with pytest.raises(ClientError, match="answered NOT_FOUND: Servable not found"):
        predict_grpc(grpc_address, "no", {"x": [1]})
    with pytest.raises(ClientError, match="answered INVALID_ARGUMENT: input size does not match"):
        predict_grpc(grpc_address, "pair", {"a": [1]})
    with pytest.raises(ClientError, match="input a is no array of type float"):
        predict_grpc(grpc_address, "pair", {"a": ["one"], "b": [1]})
    with pytest.raises(ClientError, match=f"no answer from {NOBODY}"):
        predict_grpc(NOBODY, "half", {"x": [1]})


# --- the command ---------------------------------------------------------------------------


@pytest.fixture(params=["--rest", "--grpc"])
def server(request: pytest.FixtureRequest, rest_address: str, grpc_address: str) -> list[str]:
    return [request.param, rest_address if request.param == "--rest" else grpc_address]


def test_command_with_texts(server: list[str], capsys: pytest.CaptureFixture):
    assert main([*server, "--model", "text", "all is good", "mäh"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["gut", "schläft"]
    assert json.loads(lines[1])["text_bytes"] == {"b64": "bcOkaA=="}
    assert "schläft" in lines[1]


def test_command_with_named_inputs(server: list[str], capsys: pytest.CaptureFixture):
    pairs = [("a", 1), ("b", 2), ("a", 3), ("b", 4.5)]
    inputs = [f"--input={name}={value}" for name, value in pairs]
    assert main([*server, "--model=pair", *inputs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"product": 2.0, "sum": 3.0},
        {"product": 13.5, "sum": 7.5},
    ]


def test_command_with_a_scalar_output(server: list[str], capsys: pytest.CaptureFixture):
    arguments = ["--model=half", "--version=123", "--signature=total", "1", "2"]
    assert main([*server, *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == {"total": 3.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=no", "text"], "Servable not found for request: Latest(no)"),
        (["--model=pair", "1"], "the model takes a, b: give each as --input NAME=VALUE"),
        (["--model=pair", "--input=c=1"], "the model has no input c, it takes a, b"),
        (["--model=half", "some text"], "input x is of type float, not 'some text'"),
    ],
)
def test_command_errors_are_one_line(
    server: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert main([*server, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("serve.client: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("way", ["--rest", "--grpc"])
def test_command_without_a_server(way: str, capsys: pytest.CaptureFixture):
    assert main([way, NOBODY, "--model=half", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("serve.client: no answer from ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model=half", "1"],
        [f"--rest={NOBODY}", "1"],
        [f"--rest={NOBODY}", f"--grpc={NOBODY}", "--model=half", "1"],
        [f"--rest={NOBODY}", "--model=half"],
        [f"--rest={NOBODY}", "--model=half", "--input=x"],
        [f"--rest={NOBODY}", "--model=half", "--inputs=x=1"],
        [f"--rest={NOBODY}", "--model=half", "--file=-", "text"],
        [f"--rest={NOBODY}", "--model=half", "--status", "--metadata"],
        [f"--rest={NOBODY}", "--model=half", "--version=1", "--label=a", "text"],
        [f"--rest={NOBODY}", "--model=half", "--version=-1", "text"],
        [f"--rest={NOBODY}", "--model=half", "--timeout=0", "text"],
        [f"--rest={NOBODY}", "--model=half", "--attempts=0", "text"],
        [f"--rest={NOBODY}", "--model=half", "--batch_size=0", "text"],
        [f"--rest={NOBODY}", "--model=half", "--tls", "text"],
        [f"--rest=https://{NOBODY}", "--model=half", "--tls_key=a", "text"],
        ["--rest=127.0.0.1:port", "--model=half", "text"],
    ],
)
def test_wrong_flags_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- the command with files ----------------------------------------------------------------


def test_command_with_a_file(server: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    texts = [f"{'good' if number % 3 else 'bad'} {number}" for number in range(50)]
    (tmp_path / "texts").write_bytes("\r\n".join([*texts, "", "ä"]).encode() + b"\n\xff\n")
    arguments = ["--model=text", "--batch_size=7", f"--file={tmp_path / 'texts'}"]
    assert main([*server, *arguments]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in answers[:50]] == [
        "gut" if number % 3 else "schläft" for number in range(50)
    ]
    sent = [answer["text_bytes"]["b64"] for answer in answers[50:]]
    assert sent == ["", "w6Q=", "/w=="]


def test_command_with_stdin(
    server: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    lines = b'{"a": 1, "b": 2}\n{"b": 4.5, "a": 3}'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert main([*server, "--model=pair", "--file=-"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == [{"product": 2.0, "sum": 3.0}, {"product": 13.5, "sum": 7.5}]


@pytest.mark.parametrize(
    ("model", "lines", "message"),
    [
        ("pair", '{"a": 1}\n', "each line must be a JSON object of a, b, not b'{"),
        ("pair", "nothing\n", "each line must be a JSON object of a, b, not b'nothing'"),
        ("half", "1\ntwo\n", "input x is of type float, not 'two'"),
        ("half", "[1]\n" * 5 + "[1, 2]\n", "lines 5 to 6: http"),
    ],
)
def test_command_errors_of_lines(
    rest_address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    model: str,
    lines: str,
    message: str,
):
    (tmp_path / "lines").write_text(lines)
    arguments = [f"--model={model}", f"--file={tmp_path / 'lines'}", "--batch_size=4"]
    assert main([f"--rest={rest_address}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_command_without_the_file(rest_address: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    for path in (tmp_path / "none", tmp_path):
        assert main([f"--rest={rest_address}", "--model=text", f"--file={path}"]) == 2
        error = capsys.readouterr().err
        assert str(path) in error and error.count("\n") == 1


def test_command_stops_when_nobody_reads(rest_address: str, tmp_path: Path):
    (tmp_path / "texts").write_text("good\n" * 20000)
    command = (
        f"{sys.executable} -m serve.client --rest {rest_address} --model text "
        f"--file {tmp_path / 'texts'} | head -1"
    )
    done = subprocess.run(
        ["bash", "-c", command + '; echo "${PIPESTATUS[0]}"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer, status = done.stdout.splitlines()
    assert json.loads(answer)["label"] == "gut"
    assert (status, done.stderr) == ("141", "")


# --- the command: state, signatures, versions ----------------------------------------------


def test_command_status(server: list[str], capsys: pytest.CaptureFixture):
    assert main([*server, "--model=half", "--status"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "version": 123,
        "state": "AVAILABLE",
        "error_code": "OK",
        "error_message": "",
    }
    assert main([*server, "--model=half", "--status", "--version=4"]) == 2
    assert "Could not find version 4 of model half" in capsys.readouterr().err


def test_command_metadata(server: list[str], capsys: pytest.CaptureFixture):
    assert main([*server, "--model=text", "--metadata"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "signature": "serving_default",
        "version": 1,
        "method": "tensorflow/serving/predict",
        "inputs": {"text": {"dtype": "string", "shape": [None]}},
        "outputs": {
            "label": {"dtype": "string", "shape": [None]},
            "probabilities": {"dtype": "float", "shape": [None, 2]},
            "text_bytes": {"dtype": "string", "shape": [None]},
        },
    }


def test_status_and_metadata_are_the_same_both_ways(rest_address: str, grpc_address: str):
    with RestClient(rest_address, "half") as rest, GrpcClient(grpc_address, "half") as grpc:
        assert rest.status() == grpc.status(version=123)
        assert rest.status() == [VersionState(123, "AVAILABLE", "OK", "")]
        assert rest.metadata() == grpc.metadata(version=123)
        assert rest.metadata().signature("total").outputs["total"].shape == ()
        assert not rest.metadata().signature("total").has_rows


def test_classify_and_regress_are_the_same_both_ways(rest_address: str, grpc_address: str):
    examples = [{"x": 0.25, "s": "ä"}, {"s": b"good"}] * 20
    with RestClient(rest_address, "examples") as rest, GrpcClient(grpc_address, "examples") as grpc:
        found = rest.classify(examples, context={"x": 0.5}, signature_name="classify")
        assert_equal(found, grpc.classify(examples, context={"x": 0.5}, signature_name="classify"))
        assert found["classes"][:2].tolist() == [["ä", "rest"], ["good", "rest"]]
        assert found["scores"][:2].tolist() == [[0.25, 0.75], [0.5, 0.5]]
        values = rest.regress(examples, signature_name="regress")
        assert values[:2].tolist() == [0.5, 0]
        np.testing.assert_array_equal(values, grpc.regress(examples, signature_name="regress"))
        for client in (rest, grpc):
            with pytest.raises(ClientError, match="rows 32 to 39: .*answered") as caught:
                client.classify([*examples[:39], {"x": 1}], signature_name="classify")
            assert caught.value.code == "INVALID_ARGUMENT"


@pytest.fixture
def scripted() -> Iterator[ScriptedHttp]:
    server = ScriptedHttp()
    yield server
    server.stop()


def test_command_with_label_and_time(scripted: ScriptedHttp, capsys: pytest.CaptureFixture):
    command = [f"--rest={scripted.address}", "--model=m", "--label=a b", "--attempts=2"]
    scripted.script = [(503, b"{}"), None, (503, b"{}"), (503, b"{}"), "hang"]
    assert main([*command, "5"]) == 0
    assert capsys.readouterr().out == '{"y": 5}\n'
    assert scripted.paths[1:] == ["/v1/models/m/labels/a%20b:predict"] * 2
    assert main([*command, "5"]) == 2
    assert "answered 503" in capsys.readouterr().err
    assert main([*command, "--timeout=0.1", "5"]) == 2
    assert capsys.readouterr().err.endswith("no answer within 0.1 seconds\n")


def test_command_with_certificates_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "bad").write_text("no certificate")
    for way, address in (("--grpc", NOBODY), ("--rest", f"https://{NOBODY}")):
        for name in ("none", "bad"):
            command = [way, address, "--model=m", f"--tls_root={tmp_path / name}", "--attempts=1"]
            assert main([*command, "5"]) == 2
            error = capsys.readouterr().err
            assert error.startswith("serve.client: ") and error.count("\n") == 1


def test_help_teaches(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--file", "--label", "--tls_root", "--metadata", "--timeout"):
        assert f"  {flag}" in text


def test_rest_does_without_tensorflow(url: str):
    code = (
        "import sys; from serve.client import predict_rest\n"
        f"print(predict_rest({url + '/half'!r}, {{'x': [1]}})['y'])\n"
        "assert not {'tensorflow', 'grpc'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "[2.5]\n"), done.stderr
