import re
from pathlib import Path

import pytest
from google.protobuf.message import Message

from serve.errors import Code, ServingError
from serve.text_protos import (
    BatchingParameters,
    ModelServerConfig,
    MonitoringConfig,
    SSLConfig,
    read_text_proto,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.config"


def test_models(file: Path):
    file.write_text(
        'model_config_list { config { name: "news", base_path: "/n" model_platform: "tensorflow"\n'
        "  model_version_policy { specific { versions: [3, 4] } }  # two\n"
        '  version_labels { key: "stable" value: 3 } } }'
    )
    [model] = read_text_proto(file, ModelServerConfig).model_config_list.config
    assert model.name == "news"
    assert list(model.model_version_policy.specific.versions) == [3, 4]
    assert dict(model.version_labels) == {"stable": 3}


def test_batching(file: Path):
    file.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 0 } max_enqueued_batches "
        '{ value: 9 } num_batch_threads { value: 2 } thread_pool_name { value: "t" }\n'
        "allowed_batch_sizes: 4\nallowed_batch_sizes: 8\npad_variable_length_inputs: true\n"
        "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }"
    )
    parameters = read_text_proto(file, BatchingParameters)
    assert parameters.max_batch_size.value == 8
    assert parameters.HasField("batch_timeout_micros")
    assert list(parameters.allowed_batch_sizes) == [4, 8]
    assert parameters.pad_variable_length_inputs
    assert parameters.enable_large_batch_splitting.value


def test_monitoring_and_tls(file: Path):
    file.write_text('prometheus_config { enable: true path: "/m" }')
    assert read_text_proto(file, MonitoringConfig).prometheus_config.path == "/m"
    file.write_text(
        'server_key: "-----BEGIN\\n"\n"two" server_cert: "c" custom_ca: "" client_verify: false'
    )
    assert read_text_proto(file, SSLConfig).server_key == "-----BEGIN\ntwo"


@pytest.mark.parametrize("kind", [ModelServerConfig, BatchingParameters, MonitoringConfig])
def test_an_empty_file_is_an_empty_message(kind: type[Message], file: Path):
    file.write_text("# nothing\n")
    assert read_text_proto(file, kind) == kind()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model_config_list {", '1:19: Expected "}".'),
        ("models { }", '1:1: Message type "tensorflow.serving.ModelServerConfig" has no field'),
        ("model_config_list { config { name: news } }", "1:36: Expected string"),
        ("model_config_list {\n  config { version_labels { value: 1.5 } } }", "2:36: "),
        ('model_config_list { config { name: "a" name: "b" } }', "1:46: Message type"),
        ('model_config_list { config { name: "not\nclosed" } }', "1:36: String missing ending"),
        ("custom_model_config { [type.googleapis.com/No] { } }", "Type No not found"),
        ("{" * 10_000, "1:1: Expected identifier"),
    ],
)
def test_wrong_text_names_file_place_and_reason(text: str, reason: str, file: Path):
    file.write_text(text)
    with pytest.raises(ServingError) as caught:
        read_text_proto(file, ModelServerConfig)
    message = caught.value.message
    beginning = f"{file}: Error parsing text-format tensorflow.serving.ModelServerConfig: {reason}"
    assert message.startswith(beginning)
    assert "\n" not in message
    assert len(message) < 500
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_files_that_cannot_be_read(file: Path):
    for make, reason in [
        (lambda: None, "No such file or directory"),
        (file.mkdir, "Is a directory"),
        (lambda: (file.rmdir(), file.write_bytes(b"\xff")), "'utf-8' codec can't decode"),
    ]:
        make()
        with pytest.raises(ServingError, match=re.escape(f"{file}: {reason}")):
            read_text_proto(file, ModelServerConfig)
