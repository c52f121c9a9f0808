import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve import flags
from serve.errors import ServingError
from serve.flags import Options, parse_flags, read_options

ROOT = Path(__file__).parents[2]
BASE = "--model_base_path=/models/news"

# main.cc of tensorflow_model_server, in its order
NAMES = """
    port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
    rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
    batching_parameters_file enable_per_model_batching_parameters model_config_file
    model_config_file_poll_wait_seconds model_name model_base_path num_load_threads
    num_unload_threads max_num_load_retries load_retry_interval_micros
    file_system_poll_wait_seconds flush_filesystem_caches tensorflow_session_parallelism
    tensorflow_session_config_file tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism
    use_alts_credentials ssl_config_file platform_config_file per_process_gpu_memory_fraction
    saved_model_tags grpc_channel_arguments grpc_max_threads enable_model_warmup
    num_request_iterations_for_warmup version monitoring_config_file
    remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
    num_tflite_interpreters_per_pool enable_signature_method_name_check
    xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler
    thread_pool_factory_config_file mixed_precision skip_initialize_tpu
    enable_grpc_healthcheck_service enable_serialization_as_tensor_content
"""
TENSORFLOW_MODEL_SERVER = NAMES.split()


def options_of(*arguments: str) -> Options:
    return read_options(parse_flags([BASE, *arguments]))


def error_of(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr that a wrong command line ends with."""
    with pytest.raises(SystemExit) as caught:
        parse_flags(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


# --- the table -----------------------------------------------------------------------------


def test_the_flags_are_those_of_tensorflow_model_server_and_host():
    names = [flag.name for group in flags.GROUPS.values() for flag in group]
    assert sorted(names) == sorted([*TENSORFLOW_MODEL_SERVER, "host"])


def test_the_defaults_are_those_of_tensorflow_model_server():
    values = parse_flags([BASE])
    assert (values.port, values.rest_api_port, values.host) == (8500, 0, "127.0.0.1")
    assert values.model_name == "default"
    assert values.rest_api_timeout_in_ms == 30_000
    assert values.file_system_poll_wait_seconds == 1
    assert values.model_config_file_poll_wait_seconds == 0
    assert (values.max_num_load_retries, values.load_retry_interval_micros) == (5, 60_000_000)
    assert values.saved_model_tags == "serve"
    assert values.enable_model_warmup is True
    assert values.enable_batching is False
    assert values.grpc_max_threads >= 32


def test_both_styles_and_the_last_one_counts():
    values = parse_flags(["--model_base_path", "/models", "--port=1", "--port", "9000"])
    assert values.model_base_path == "/models"
    assert values.port == 9000


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--enable_batching"], True),
        (["--enable_batching=true"], True),
        (["--enable_batching=TRUE"], True),
        (["--enable_batching=1"], True),
        (["--enable_batching", "true"], True),
        (["--enable_batching", "--port=1"], True),
        (["--enable_batching=false"], False),
        (["--enable_batching", "0"], False),
        (["--enable_batching", "--enable_batching=false"], False),
    ],
)
def test_switches(arguments: list[str], value: bool):
    assert parse_flags([BASE, *arguments]).enable_batching is value


# --- errors and notes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        ([BASE, "--enable_bathcing"], "unknown flag: --enable_bathcing (did you mean --enable_bat"),
        ([BASE, "--model=news"], "unknown flag: --model=news (did you mean --model_name?)"),
        ([BASE, "--qqqq"], "unknown flag: --qqqq ("),
        ([BASE, "--flagfile=f"], "unknown flag: --flagfile=f"),
        ([BASE, "news"], "unknown flag: news"),
        ([BASE, "--port=http"], "argument --port: must be a whole number, not 'http'"),
        ([BASE, "--port=1.5"], "argument --port: must be a whole number, not '1.5'"),
        ([BASE, "--port"], "argument --port: expected one argument"),
        ([BASE, "--port=70000"], "argument --port: must be from 0 to 65535, not 70000"),
        ([BASE, "--num_load_threads=99999999999"], "must be from 0 to 2147483647"),
        ([BASE, "--grpc_max_threads=0"], "must be from 1 to"),
        ([BASE, "--enable_batching=maybe"], "must be true or false, not 'maybe'"),
        ([BASE, "--per_process_gpu_memory_fraction=x"], "invalid float value: 'x'"),
        ([BASE, "--port=0"], "--port and --rest_api_port are both 0"),
        ([BASE, "--rest_api_port=8500"], "--port and --rest_api_port are both 8500"),
        ([BASE, "--model_name="], "--model_name must not be empty"),
        ([BASE, "--file_system_poll_wait_seconds=-1"], "must be from 0 to 2147483647, not -1"),
        (
            [BASE, "--batching_parameters_file=b"],
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        ),
        (
            [BASE]
            + [
                f"--tensorflow_{name}_parallelism=1" for name in ("intra_op", "inter_op", "session")
            ],
            "Either configure server_options.tensorflow_session_parallelism or (server_options.",
        ),
        ([BASE, "--use_alts_credentials"], "--use_alts_credentials: there is no ALTS here"),
        ([BASE, "--saved_model_tags="], "--saved_model_tags must name a tag"),
        ([BASE, "--grpc_channel_arguments=a=1,b"], "--grpc_channel_arguments: b is not NAME=VALUE"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    error = error_of(arguments, capsys)
    assert error.startswith("serve.server: ")
    assert error.endswith("(--help lists the flags)")
    assert message in error


def notes_of(arguments: list[str], capsys: pytest.CaptureFixture) -> list[str]:
    parse_flags([BASE, *arguments])
    return capsys.readouterr().err.splitlines()


def test_each_flag_without_effect_is_said_once(capsys: pytest.CaptureFixture):
    assert notes_of([], capsys) == []
    arguments = [f"--{flag.name}={flag.default}" for flag in flags.NO_EFFECT]
    notes = notes_of([*arguments, *arguments], capsys)
    assert len(notes) == len(flags.NO_EFFECT)
    assert (
        "serve.server: --enable_profiler is accepted and has no effect here: "
        "there is no profiler service"
    ) in notes


def test_flags_that_others_make_void(capsys: pytest.CaptureFixture):
    void = [
        ("--model_config_file=m", "--model_base_path is ignored: --model_config_file names the"),
        ("--enable_per_model_batching_parameters", "is ignored without --enable_batching"),
        ("--monitoring_config_file=m", "is ignored without --rest_api_port"),
        ("--model_config_file_poll_wait_seconds=1", "is ignored without --model_config_file"),
    ]
    for argument, note in void:
        [line] = notes_of([argument], capsys)
        assert note in line


# --- help ----------------------------------------------------------------------------------


def test_help_teaches_without_tensorflow():
    code = (
        "import sys; from serve.server import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as error: assert error.code == 0\n"
        "assert not {'tensorflow', 'grpc', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name in (*TENSORFLOW_MODEL_SERVER, "host"):
        assert f"\n  --{name}" in done.stdout
    for title in flags.GROUPS:
        assert f"\n{title}:\n" in done.stdout
    assert "mv /models/news/next /models/news/2" in done.stdout


def test_the_files_of_the_epilog_can_be_read(tmp_path: Path):
    """What the help tells to write is a file that the server takes."""
    from serve.text_protos import ModelServerConfig, read_text_proto

    for text, name in re.findall(r"echo '(.*?)' > (\S+)", flags.EPILOG, flags=re.DOTALL):
        (tmp_path / name).write_text(text)
    config = read_text_proto(tmp_path / "models.config", ModelServerConfig)
    assert [model.name for model in config.model_config_list.config] == ["news", "mail"]
    options = options_of(
        "--enable_batching",
        f"--batching_parameters_file={tmp_path / 'batching.config'}",
        f"--monitoring_config_file={tmp_path / 'monitoring.config'}",
    )
    assert options.batching.max_batch_size.value == 32
    assert options.metrics_path == flags.METRICS_PATH


# --- options -------------------------------------------------------------------------------


def test_options_without_a_flag():
    options = options_of()
    assert (options.grpc_port, options.rest_port) == (8500, None)
    assert options.batching is None
    assert options.identity is None
    assert options.metrics_path is None
    assert options.config_file is None
    assert options == Options(grpc_port=8500, rest_port=None, poll_seconds=1)


def test_options_of_flags():
    options = options_of(
        "--port=0",
        "--rest_api_port=8501",
        "--host=0.0.0.0",
        "--rest_api_timeout_in_ms=1500",
        "--rest_api_enable_cors_support",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,b=x,c=-3,d=99999999999,e==",
        "--load_retry_interval_micros=250000",
        "--saved_model_tags=serve,gpu",
        "--enable_model_warmup=false",
        "--model_config_file=m",
        "--model_config_file_poll_wait_seconds=7",
        "--enable_serialization_as_tensor_content",
        "--enable_signature_method_name_check",
    )
    assert (options.grpc_port, options.rest_port, options.host) == (None, 8501, "0.0.0.0")
    assert options.rest_timeout == 1.5
    assert options.rest_cors
    assert options.grpc_channel_arguments == (
        ("grpc.max_connection_age_ms", 2000),
        ("b", "x"),
        ("c", -3),
        ("d", "99999999999"),
        ("e", "="),
    )
    assert options.load_retry_seconds == 0.25
    assert options.tags == ("serve", "gpu")
    assert not options.warm_up
    assert (options.config_file, options.config_poll_seconds) == (Path("m"), 7)
    assert options.as_tensor_content
    assert options.check_method_names


def test_a_negative_retry_interval_is_none():
    assert options_of("--load_retry_interval_micros=-1").load_retry_seconds == 0


@pytest.mark.parametrize(
    ("arguments", "intra", "inter"),
    [
        (["--tensorflow_session_parallelism=3"], 3, 3),
        (["--tensorflow_intra_op_parallelism=2"], 2, 0),
        (["--tensorflow_intra_op_parallelism=2", "--tensorflow_inter_op_parallelism=1"], 2, 1),
        (["--tensorflow_intra_op_parallelism=2", "--tensorflow_session_parallelism=3"], 2, 0),
    ],
)
def test_parallelism(arguments: list[str], intra: int, inter: int):
    options = options_of(*arguments)
    assert (options.intra_op_threads, options.inter_op_threads) == (intra, inter)


def test_batching_without_a_file_has_the_defaults():
    parameters = options_of("--enable_batching").batching
    assert parameters.thread_pool_name.value == "model_server_batch_threads"
    assert not parameters.HasField("max_batch_size")


@pytest.mark.parametrize(
    ("text", "metrics_path"),
    [
        ("", None),
        ("prometheus_config {}", None),
        ('prometheus_config { enable: false path: "/m" }', None),
        ("prometheus_config { enable: true }", flags.METRICS_PATH),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
    ],
)
def test_metrics_path(text: str, metrics_path: str | None, tmp_path: Path):
    file = tmp_path / "monitoring.config"
    file.write_text(text)
    assert options_of(f"--monitoring_config_file={file}").metrics_path == metrics_path


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("batching_parameters_file", "BatchingParameters"),
        ("monitoring_config_file", "MonitoringConfig"),
        ("ssl_config_file", "SSLConfig"),
    ],
)
def test_files_that_cannot_be_read(flag: str, message: str, tmp_path: Path):
    file = tmp_path / "file"
    values: argparse.Namespace = parse_flags([BASE, "--enable_batching", f"--{flag}={file}"])
    with pytest.raises(ServingError, match=f"{file}: No such file or directory"):
        read_options(values)
    file.write_text("no_field: 1")
    error = f"{file}: Error parsing text-format tensorflow.serving.{message}: 1:1"
    with pytest.raises(ServingError, match=error):
        read_options(values)
