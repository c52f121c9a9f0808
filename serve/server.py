"""A local server with the interface of tensorflow_model_server: `python -m serve.server --help`.

Knows only the order of starting and stopping. TensorFlow is imported after the flags and the
files they name are right, so that help and errors come at once.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from serve.errors import ServingError, invalid_argument
from serve.flags import Options, parse_flags, read_options
from serve.memory import set_aside_what_stays, use_system_heap
from serve.startup import import_tensorflow_quietly

if TYPE_CHECKING:
    from serve.grpc_server import GrpcServer
    from serve.model_config import ConfigFilePoller, ModelConfig
    from serve.rest_server import RestServer

log = logging.getLogger("serve.server")  # __name__ is "__main__" in `python -m serve.server`


class LocalServer:
    """Models and the two interfaces to them.

    A program that does little else calls `serve.memory.set_aside_what_stays()` before the start,
    as this command does: unloads and long JSON texts then hold up requests for less.

    Args:
        configs: the models.
        options: all the rest.

    Raises:
        ServingError: the batching parameters cannot be.

    Example:
        >>> with LocalServer([ModelConfig("news", Path("/models/news"))]) as server:
        ...     answer = predict_grpc(server.grpc_address, "news", {"text": ["some text"]})
    """

    def __init__(
        self,
        configs: "Sequence[ModelConfig]",
        *,
        options: Options = Options(),  # noqa: B008
    ) -> None:
        from serve.batching import BatchScheduler
        from serve.loader import Loader
        from serve.metrics import Metrics
        from serve.model_store import ModelStore

        self._options = options
        self._metrics = Metrics()
        self._scheduler = None
        if options.batching is not None:
            self._scheduler = BatchScheduler(options.batching, metrics=self._metrics)
        load = Loader(
            metrics=self._metrics,
            scheduler=self._scheduler,
            per_model_batching=options.per_model_batching,
            warm_up=options.warm_up,
            tags=options.tags,
            check_method_names=options.check_method_names,
            inter_op_threads=options.inter_op_threads,
            intra_op_threads=options.intra_op_threads,
        )
        self.store = ModelStore(
            configs,
            load=load,
            poll_seconds=options.poll_seconds,
            max_num_load_retries=options.max_num_load_retries,
            load_retry_interval=options.load_retry_seconds,
            allow_labels_for_unavailable=options.allow_labels_for_unavailable,
            num_load_threads=options.num_load_threads,
        )
        self._grpc_server: GrpcServer | None = None
        self._rest_server: RestServer | None = None
        self._config_poller: ConfigFilePoller | None = None

    @property
    def grpc_address(self) -> str | None:
        """HOST:PORT, or unix:PATH if there is only a socket; None if gRPC is off."""
        return self._grpc_server.address if self._grpc_server else None

    @property
    def rest_address(self) -> str | None:
        """HOST:PORT, None if it is off."""
        return self._rest_server.address if self._rest_server else None

    def start(self, should_stop: threading.Event | None = None) -> None:
        """Loads the models, then opens the ports: they open only with models behind them.

        Args:
            should_stop: when set, the wait for the models ends and no port is opened.

        Raises:
            ServingError: a model cannot be loaded.
            OSError: a port is in use.
        """
        self.store.start()
        self.store.wait_until_available(should_stop)
        if should_stop and should_stop.is_set():
            return
        # 1. Both ports are taken, so that a port in use is known before the first answer.
        self._rest_server = self._make_rest_server()
        self._grpc_server = self._make_grpc_server()
        # 2. Both answer.
        for server in (self._rest_server, self._grpc_server):
            if server:
                server.start()
        # 3. From now on the models may change.
        self._config_poller = self._make_config_poller()
        if self._config_poller:
            self._config_poller.start()

    def stop(self) -> None:
        """Closes the ports, lets running requests end, unloads the models."""
        if self._config_poller:
            self._config_poller.stop()
        # Both at once: the second would go on taking requests while the first drains.
        servers = [server for server in (self._rest_server, self._grpc_server) if server]
        with ThreadPoolExecutor(max_workers=2) as threads:
            for stopping in [threads.submit(server.stop) for server in servers]:
                stopping.result()
        self.store.stop()
        if self._scheduler:
            self._scheduler.stop()

    def _make_rest_server(self) -> "RestServer | None":
        from serve.rest_server import RestServer

        options = self._options
        if options.rest_port is None:
            return None
        return RestServer(
            self.store,
            self._metrics,
            options.rest_port,
            host=options.host,
            threads=options.rest_threads,
            timeout=options.rest_timeout,
            cors=options.rest_cors,
            metrics_path=options.metrics_path,
        )

    def _make_grpc_server(self) -> "GrpcServer | None":
        from serve.grpc_server import GrpcServer, make_credentials

        options = self._options
        if options.grpc_port is None and options.grpc_socket_path is None:
            return None
        return GrpcServer(
            self.store,
            self._metrics,
            options.grpc_port,
            host=options.host,
            socket_path=options.grpc_socket_path,
            credentials=make_credentials(options.identity) if options.identity else None,
            threads=options.grpc_threads,
            channel_arguments=options.grpc_channel_arguments,
            health=options.grpc_health,
            as_tensor_content=options.as_tensor_content,
        )

    def _make_config_poller(self) -> "ConfigFilePoller | None":
        from serve.model_config import ConfigFilePoller

        options = self._options
        if options.config_file is None or not options.config_poll_seconds:
            return None
        return ConfigFilePoller(options.config_file, self.store, options.config_poll_seconds)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; gives the exit status."""
    flags = parse_flags(arguments)
    if flags.version:
        print(_versions())
        return 0
    _set_up_logging()
    should_stop = _stop_on_signals()
    allow_many_connections()
    try:
        options = read_options(flags)
        configs = read_configs(flags)
    except ServingError as error:
        return _fail(error, status=2)
    try:
        for port in filter(None, (options.grpc_port, options.rest_port)):
            require_free_port(options.host, port)
        use_system_heap()
        import_tensorflow_quietly()
        server = LocalServer(configs, options=options)
        set_aside_what_stays()
    except OSError as error:
        return _fail(error, status=1)
    except ServingError as error:
        return _fail(error, status=2)
    try:
        _serve(server, configs, should_stop)
    except (OSError, ServingError) as error:
        return _fail(error, status=1)
    return 0


def read_configs(flags: argparse.Namespace) -> "list[ModelConfig]":
    """The models that the flags name.

    Raises:
        ServingError: the configuration file is wrong, or a base path is not there.
    """
    from serve.model_config import model_configs
    from serve.text_protos import ModelServerConfig, read_text_proto

    if flags.model_config_file:
        source = f"{flags.model_config_file}: "
        message = read_text_proto(Path(flags.model_config_file), ModelServerConfig)
    else:
        source = ""
        message = ModelServerConfig()
        message.model_config_list.config.add(
            name=flags.model_name,
            base_path=flags.model_base_path,
            model_platform="tensorflow",
        )
    try:
        configs = model_configs(message)
    except ServingError as error:
        raise ServingError(error.code, source + error.message) from None
    for config in configs:
        if not config.base_path.is_dir():
            raise invalid_argument(
                f"the base path of model {config.name}, {config.base_path}, is not a directory"
            )
    return configs


def require_free_port(host: str, port: int) -> None:
    """Raises OSError if a port cannot be opened: before the slow load, not after it."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(f"cannot open port {port} of {host}: {error.strerror}") from error


def _fail(error: Exception, *, status: int) -> int:
    message = error.message if isinstance(error, ServingError) else str(error)
    print(f"serve.server: {message}", file=sys.stderr)
    return status


def _versions() -> str:
    """The two lines of tensorflow_model_server, whose flags and messages are those of 2.20."""
    library = importlib.metadata.version("tensorflow")
    return f"TensorFlow ModelServer: 2.20.0 (serve.server)\nTensorFlow Library: {library}"


def _set_up_logging() -> None:
    """Shows what becomes of the versions, and of TensorFlow only what is wrong."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # The C++ part only tells what is fatal: its errors come as answers, its notes are many.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _stop_on_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process at once.

    A thread sets it: a signal that comes while the main thread holds the event's own lock, on its
    way to wait for it, would wait for that lock for ever.
    """
    should_stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    hears, tells = os.pipe()

    def stop(*_: object) -> None:
        os.write(tells, b"!")
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

    def hear() -> None:
        os.read(hears, 1)
        should_stop.set()

    threading.Thread(target=hear, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, stop)
    return should_stop


def allow_many_connections() -> None:
    """Each is a file to the system, and the usual limit of 1,024 is soft."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(
    server: LocalServer, configs: "Sequence[ModelConfig]", should_stop: threading.Event
) -> None:
    try:
        server.start(should_stop)
        if not should_stop.is_set():
            print(_ready_line(server, [config.name for config in configs]), flush=True)
            should_stop.wait()
    finally:
        log.info("stopping once running requests are done; a second signal ends them")
        server.stop()


def _ready_line(server: LocalServer, names: Sequence[str]) -> str:
    models = ", ".join(f"{name} {_versions_of(server, name)}" for name in names)
    grpc = server.grpc_address or "off"
    rest = f"http://{server.rest_address}/v1/models" if server.rest_address else "off"
    if server.rest_address and len(names) == 1:
        rest += f"/{names[0]}"
    return f"serving {models}: gRPC {grpc}, REST {rest}"


def _versions_of(server: LocalServer, name: str) -> str:
    statuses = server.store.status(name)
    numbers = sorted(status.version for status in statuses if status.state.name == "AVAILABLE")
    return f"version{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}"


def _run() -> NoReturn:
    """The process, which does not wait for the threads of requests that were cut off."""
    status = 1
    try:
        status = main()
    except Exception:
        logging.exception("a bug")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _run()
