"""The flags of tensorflow_model_server 2.20, and what they mean here.

Nothing of TensorFlow is imported, so that help and errors come at once. A flag that has no
meaning here is accepted, so that command lines and compose files serve both servers, and says so.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serve.command_line import OneLineParser
from serve.errors import invalid_argument

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from serve.tls import ServerIdentity

USAGE = "python -m serve.server --model_base_path=FOLDER [--rest_api_port=N] [--FLAG=VALUE ...]"
DESCRIPTION = """\
A local stand-in for tensorflow_model_server: the same flags, REST and gRPC.
--flag=value and --flag value both do; --flag alone switches it on."""

EPILOG = """\
The base path holds one folder a version, named by its number, with a SavedModel in it:

  /models/news/1/saved_model.pb

The newest is served. To publish another while the server runs, copy it under a name that is
no number, then rename it:

  cp -r export /models/news/next && mv /models/news/next /models/news/2

Start, ask, stop (Ctrl-C or SIGTERM: running requests are finished; a second one ends at once):

  python -m serve.server --model_name=news --model_base_path=/models/news --rest_api_port=8501
  curl -d '{"instances": ["some text"]}' http://127.0.0.1:8501/v1/models/news:predict
  python -m serve.client --grpc 127.0.0.1:8500 --model news "some text"

More than one model, or another choice of versions, by a file that is looked at every 10 seconds:

  echo 'model_config_list {
    config { name: "news" base_path: "/models/news" model_platform: "tensorflow" }
    config { name: "mail" base_path: "/models/mail" model_platform: "tensorflow"
             model_version_policy { specific { versions: 3 versions: 4 } }
             version_labels { key: "stable" value: 3 } }
  }' > models.config
  python -m serve.server --model_config_file=models.config --model_config_file_poll_wait_seconds=10

Requests of several clients in one run of the model, and numbers for Prometheus:

  echo 'max_batch_size { value: 32 } batch_timeout_micros { value: 2000 }' > batching.config
  echo 'prometheus_config { enable: true }' > monitoring.config
  python -m serve.server --model_base_path=/models/news --rest_api_port=8501 \\
      --enable_batching --batching_parameters_file=batching.config \\
      --monitoring_config_file=monitoring.config
  curl http://127.0.0.1:8501/monitoring/prometheus/metrics
"""

METRICS_PATH = "/monitoring/prometheus/metrics"
LARGEST_INT32 = 2**31 - 1
LARGEST_PORT = 2**16 - 1


def number_of_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# tensorflow_model_server takes 4 a CPU, and refuses what comes when all are busy. Here it waits,
# and a batch holds no more requests than there are threads: hence not fewer than 32.
DEFAULT_THREADS = max(32, 4 * number_of_cpus())


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag.

    Args:
        name: without the dashes.
        default: its type is the type of the flag.
        help: what it does; of a flag without effect, why it has none.
        least, most: the limits of a number.
    """

    name: str
    default: bool | int | float | str
    help: str
    least: int = 0
    most: int = LARGEST_INT32


PORTS = (
    Flag("port", 8500, "of gRPC; 0 switches it off", most=LARGEST_PORT),
    Flag("grpc_socket_path", "", "also speak gRPC on a Unix socket at this path"),
    Flag("rest_api_port", 0, "of REST and of the metrics; 0: they are off", most=LARGEST_PORT),
    Flag(
        "host",
        "127.0.0.1",
        "the address both ports are opened on. Not a flag of tensorflow_model_server, which opens "
        "them to every machine (0.0.0.0); there is no password in either",
    ),
    Flag("grpc_max_threads", DEFAULT_THREADS, "gRPC requests that run at once; more wait", least=1),
    Flag("rest_api_num_threads", DEFAULT_THREADS, "the same of REST", least=1),
    Flag(
        "rest_api_timeout_in_ms",
        30_000,
        "how long a REST request may run, 0: as long as it takes; one of gRPC brings its own "
        "deadline",
    ),
    Flag("rest_api_enable_cors_support", False, "let pages of other sites call REST"),
    Flag(
        "grpc_channel_arguments",
        "",
        "settings of gRPC's C library, such as grpc.max_connection_age_ms=2000,NAME=VALUE",
    ),
    Flag(
        "ssl_config_file",
        "",
        "text SSLConfig: server_key, server_cert, custom_ca (PEM texts) and client_verify. For "
        "gRPC alone: put a proxy before REST",
    ),
    Flag("enable_grpc_healthcheck_service", False, "answer grpc.health.v1 on the gRPC port"),
    Flag(
        "enable_serialization_as_tensor_content",
        False,
        "answer Predict of gRPC with tensor_content instead of float_val and the like",
    ),
)
MODELS = (
    Flag("model_name", "default", "the model's name in requests"),
    Flag("model_base_path", "", "absolute folder of its versions"),
    Flag(
        "model_config_file",
        "",
        "text ModelServerConfig: models, their version policies and labels. The two flags above "
        "are then ignored",
    ),
    Flag(
        "model_config_file_poll_wait_seconds",
        0,
        "between two looks whether that file has changed; 0 reads it once",
    ),
    Flag(
        "file_system_poll_wait_seconds",
        1,
        "between two looks for new versions; 0 looks once, at the start",
    ),
    Flag("max_num_load_retries", 5, "how often a load that failed is tried again"),
    Flag(
        "load_retry_interval_micros",
        60_000_000,
        "microseconds between two tries; negative: none",
        least=-(2**63),
        most=2**63 - 1,
    ),
    Flag("num_load_threads", 0, "versions that are loaded at once; 0: one after the other"),
    Flag(
        "allow_version_labels_for_unavailable_models",
        False,
        "let a label that is not in use point to a version that is not loaded yet",
    ),
    Flag("saved_model_tags", "serve", "comma-separated tags of the graph to load"),
    Flag(
        "enable_model_warmup",
        True,
        "replay assets.extra/tf_serving_warmup_requests before a version is served",
    ),
    Flag(
        "enable_signature_method_name_check",
        False,
        "refuse Classify and Regress of signatures with another method name",
    ),
)
BATCHING = (
    Flag("enable_batching", False, "run requests that come at the same time together"),
    Flag(
        "batching_parameters_file",
        "",
        "text BatchingParameters: max_batch_size, batch_timeout_micros, allowed_batch_sizes ...",
    ),
    Flag(
        "enable_per_model_batching_parameters",
        False,
        "take them from batching_params.pbtxt in the version's folder, and run a version without "
        "it unbatched",
    ),
)
RUNNING = (
    Flag("tensorflow_intra_op_parallelism", 0, "threads inside one operation; 0: TensorFlow's"),
    Flag("tensorflow_inter_op_parallelism", 0, "operations at once; 0: TensorFlow's"),
    Flag("tensorflow_session_parallelism", 0, "both of them; 0: TensorFlow's"),
    Flag(
        "monitoring_config_file",
        "",
        "text MonitoringConfig: prometheus_config { enable: true } shows the counts on the REST "
        f"port, at {METRICS_PATH}",
    ),
    Flag("version", False, "show the versions and end"),
)
NO_EFFECT = (
    Flag("num_unload_threads", 0, "versions are unloaded one after the other"),
    Flag("flush_filesystem_caches", True, "what was read of a model is left to the system's cache"),
    Flag("tensorflow_session_config_file", "", "only the three flags of parallelism are used"),
    Flag("platform_config_file", "", "there is no platform but tensorflow"),
    Flag("per_process_gpu_memory_fraction", 0.0, "TensorFlow's own way with GPU memory is left"),
    Flag("num_request_iterations_for_warmup", 0, "each warm-up request is replayed once"),
    Flag("remove_unused_fields_from_bundle_metagraph", True, "only the signatures are kept anyway"),
    Flag("prefer_tflite_model", False, "only saved_model.pb is served"),
    Flag("num_tflite_pools", number_of_cpus(), "only saved_model.pb is served"),
    Flag("num_tflite_interpreters_per_pool", 1, "only saved_model.pb is served"),
    Flag("xla_cpu_compilation_enabled", False, "XLA is left as TensorFlow has it"),
    Flag("xla_gpu_compilation_enabled", False, "XLA is left as TensorFlow has it"),
    Flag("enable_profiler", True, "there is no profiler service"),
    Flag("thread_pool_factory_config_file", "", "TensorFlow's own threads run every request"),
    Flag("mixed_precision", "", "a graph runs in the precision it was exported with"),
    Flag("skip_initialize_tpu", False, "no TPU is used"),
    Flag("use_alts_credentials", False, "ALTS is of Google's cloud alone; true is refused"),
)
GROUPS: dict[str, tuple[Flag, ...]] = {
    "ports": PORTS,
    "models": MODELS,
    "batching": BATCHING,
    "running and watching": RUNNING,
    "flags of tensorflow_model_server that are accepted and have no effect here": NO_EFFECT,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags mean; the defaults are those of a server inside a program.

    Args:
        host: the address both ports are opened on.
        grpc_port: 0 takes a free one, None switches it off.
        grpc_socket_path: gRPC on a Unix socket, with or without the port.
        grpc_threads: gRPC requests that run at once.
        grpc_channel_arguments: name -> value, for gRPC's C library.
        grpc_health: whether to answer grpc.health.v1.
        as_tensor_content: whether gRPC's Predict answers with tensor_content.
        identity: key and certificates of gRPC over TLS; None speaks plain.
        rest_port: 0 takes a free one, None switches it off.
        rest_threads: REST requests that run at once.
        rest_timeout: seconds a REST request may run; 0 is no limit.
        rest_cors: whether pages of other sites may call REST.
        metrics_path: where the REST port shows the metrics; None: nowhere.
        poll_seconds: between two looks for new versions; 0 looks once.
        config_file: to read again; None: the models never change.
        config_poll_seconds: between two looks at it; 0 never looks.
        max_num_load_retries: of a load that failed.
        load_retry_seconds: between two tries.
        num_load_threads: versions loaded at once; 0: one after the other.
        allow_labels_for_unavailable: whether new labels may point to versions not loaded yet.
        batching: the message BatchingParameters; None runs every request by itself.
        per_model_batching: whether a version may bring parameters of its own.
        warm_up: whether to replay a version's warm-up requests.
        tags: of the graph to load.
        check_method_names: whether Classify and Regress look at the method name of a signature.
        inter_op_threads: operations at once; 0 leaves it to TensorFlow.
        intra_op_threads: threads inside one operation; 0 leaves it to TensorFlow.
    """

    host: str = "127.0.0.1"
    grpc_port: int | None = 0
    grpc_socket_path: Path | None = None
    grpc_threads: int = DEFAULT_THREADS
    grpc_channel_arguments: tuple[tuple[str, int | str], ...] = ()
    grpc_health: bool = False
    as_tensor_content: bool = False
    identity: "ServerIdentity | None" = None
    rest_port: int | None = 0
    rest_threads: int = DEFAULT_THREADS
    rest_timeout: float = 30.0
    rest_cors: bool = False
    metrics_path: str | None = None
    poll_seconds: float = 1.0
    config_file: Path | None = None
    config_poll_seconds: float = 0.0
    max_num_load_retries: int = 5
    load_retry_seconds: float = 60.0
    num_load_threads: int = 0
    allow_labels_for_unavailable: bool = False
    batching: "Message | None" = None
    per_model_batching: bool = False
    warm_up: bool = True
    tags: tuple[str, ...] = ("serve",)
    check_method_names: bool = False
    inter_op_threads: int = 0
    intra_op_threads: int = 0


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads a command line.

    What has no effect is said on stderr, one line a flag; a wrong flag ends the process with
    one line and status 2.

    Args:
        arguments: None takes those of the process.

    Returns:
        The value of every flag, under its name.
    """
    parser = _make_parser()
    given = parser.parse_args(arguments)
    flags = argparse.Namespace(
        **{flag.name: flag.default for group in GROUPS.values() for flag in group} | vars(given)
    )
    problem = "" if flags.version else _find_problem(flags)
    if problem:
        parser.error(problem)
    for note in _notes(set(vars(given)), flags):
        print(f"serve.server: {note}", file=sys.stderr)
    return flags


def read_options(flags: argparse.Namespace) -> Options:
    """Reads the files that flags name, all but the models'.

    Raises:
        ServingError: a file cannot be read or is wrong; one line that names it.
    """
    parallelism = flags.tensorflow_session_parallelism
    intra, inter = flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism
    if not intra and not inter:
        intra = inter = parallelism
    return Options(
        host=flags.host,
        grpc_port=flags.port or None,
        grpc_socket_path=_path(flags.grpc_socket_path),
        grpc_threads=flags.grpc_max_threads,
        grpc_channel_arguments=tuple(_channel_arguments(flags.grpc_channel_arguments)),
        grpc_health=flags.enable_grpc_healthcheck_service,
        as_tensor_content=flags.enable_serialization_as_tensor_content,
        identity=_read_identity(flags.ssl_config_file),
        rest_port=flags.rest_api_port or None,
        rest_threads=flags.rest_api_num_threads,
        rest_timeout=flags.rest_api_timeout_in_ms / 1000,
        rest_cors=flags.rest_api_enable_cors_support,
        metrics_path=_read_metrics_path(flags.monitoring_config_file),
        poll_seconds=flags.file_system_poll_wait_seconds,
        config_file=_path(flags.model_config_file),
        config_poll_seconds=flags.model_config_file_poll_wait_seconds,
        max_num_load_retries=flags.max_num_load_retries,
        load_retry_seconds=max(0, flags.load_retry_interval_micros) / 1e6,
        num_load_threads=flags.num_load_threads,
        allow_labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
        batching=_read_batching(flags) if flags.enable_batching else None,
        per_model_batching=flags.enable_per_model_batching_parameters,
        warm_up=flags.enable_model_warmup,
        tags=tuple(filter(None, flags.saved_model_tags.split(","))),
        check_method_names=flags.enable_signature_method_name_check,
        inter_op_threads=inter,
        intra_op_threads=intra,
    )


# --- the command line ----------------------------------------------------------------------


def _make_parser() -> OneLineParser:
    parser = OneLineParser(prog="serve.server", description=DESCRIPTION, epilog=EPILOG)
    parser.usage = USAGE
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            default = str(flag.default).lower() if isinstance(flag.default, bool) else flag.default
            is_switch = isinstance(flag.default, bool)
            group.add_argument(
                f"--{flag.name}",
                type=_reader(flag),
                default=argparse.SUPPRESS,  # so that the flags that were given are known
                nargs="?" if is_switch else None,
                const=True if is_switch else None,
                metavar={bool: "true", int: "N", float: "X", str: "TEXT"}[type(flag.default)],
                help=f"{flag.help} ({default})".replace("%", "%%")
                if default != ""
                else flag.help.replace("%", "%%"),
            )
    return parser


def _reader(flag: Flag) -> Callable[[str], bool | int | float | str]:
    """A function that reads a value as the flag wants it."""

    def read(text: str) -> bool | int | float | str:
        if isinstance(flag.default, bool):
            return _read_switch(text)
        if isinstance(flag.default, int):
            return _read_number(text, flag)
        return type(flag.default)(text)

    read.__name__ = type(flag.default).__name__  # it stands in argparse's message
    return read


def _read_switch(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return values[text.lower()]


def _read_number(text: str, flag: Flag) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    number = int(text)
    if not flag.least <= number <= flag.most:
        raise argparse.ArgumentTypeError(f"must be from {flag.least} to {flag.most}, not {text}")
    return number


def _find_problem(flags: argparse.Namespace) -> str:
    """What is wrong with flags that are well formed, in TF Serving's words where it has some."""
    if not flags.model_base_path and not flags.model_config_file:
        return (
            "Both server_options.model_base_path and server_options.model_config_file are empty! "
            "Give --model_base_path or --model_config_file"
        )
    if not flags.model_config_file and not flags.model_name:
        return "--model_name must not be empty"
    if not flags.port and not flags.grpc_socket_path and not flags.rest_api_port:
        return "--port and --rest_api_port are both 0: there is nothing to serve on"
    if flags.port and flags.port == flags.rest_api_port:
        return f"--port and --rest_api_port are both {flags.port}"
    if flags.batching_parameters_file and not flags.enable_batching:
        return (
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    if (
        flags.tensorflow_intra_op_parallelism
        and flags.tensorflow_inter_op_parallelism
        and flags.tensorflow_session_parallelism
    ):
        return (
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. "
            "You cannot configure all."
        )
    if flags.use_alts_credentials:
        return "--use_alts_credentials: there is no ALTS here, and the port would be open in plain"
    if not any(flags.saved_model_tags.split(",")):
        return "--saved_model_tags must name a tag"
    for argument in filter(None, flags.grpc_channel_arguments.split(",")):
        if not argument.partition("=")[0] or "=" not in argument:
            return f"--grpc_channel_arguments: {argument} is not NAME=VALUE"
    return ""


def _notes(given: set[str], flags: argparse.Namespace) -> list[str]:
    """What the user should know of flags that do nothing."""
    notes = [
        f"--{flag.name} is accepted and has no effect here: {flag.help}"
        for flag in NO_EFFECT
        if flag.name in given
    ]
    for name in ("model_name", "model_base_path"):
        if flags.model_config_file and name in given:
            notes.append(f"--{name} is ignored: --model_config_file names the models")
    if flags.enable_per_model_batching_parameters and not flags.enable_batching:
        notes.append("--enable_per_model_batching_parameters is ignored without --enable_batching")
    if flags.monitoring_config_file and not flags.rest_api_port:
        notes.append("--monitoring_config_file is ignored without --rest_api_port")
    if flags.model_config_file_poll_wait_seconds and not flags.model_config_file:
        notes.append("--model_config_file_poll_wait_seconds is ignored without --model_config_file")
    return notes


# --- what they name ------------------------------------------------------------------------


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Values that are whole numbers of 32 bits go as such, as tensorflow_model_server does it."""
    arguments: list[tuple[str, int | str]] = []
    for argument in filter(None, text.split(",")):
        name, _, value = argument.partition("=")
        is_number = re.fullmatch(r"-?[0-9]{1,10}", value) and abs(int(value)) <= LARGEST_INT32
        arguments.append((name, int(value) if is_number else value))
    return arguments


def _read_batching(flags: argparse.Namespace) -> "Message":
    from serve.text_protos import BatchingParameters, read_text_proto

    if flags.batching_parameters_file:
        return read_text_proto(Path(flags.batching_parameters_file), BatchingParameters)
    parameters = BatchingParameters()
    parameters.thread_pool_name.value = "model_server_batch_threads"
    return parameters


def _read_identity(ssl_config_file: str) -> "ServerIdentity | None":
    if not ssl_config_file:
        return None
    from serve.tls import read_identity

    return read_identity(Path(ssl_config_file))


def _read_metrics_path(monitoring_config_file: str) -> str | None:
    if not monitoring_config_file:
        return None
    from serve.text_protos import MonitoringConfig, read_text_proto

    path = Path(monitoring_config_file)
    prometheus = read_text_proto(path, MonitoringConfig).prometheus_config
    if not prometheus.enable:
        return None
    metrics_path = prometheus.path or METRICS_PATH
    if not metrics_path.startswith("/"):
        raise invalid_argument(f"{path}: path must begin with /, not {metrics_path}")
    return metrics_path
