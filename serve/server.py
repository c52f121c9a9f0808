"""A local server with the interface of tensorflow_model_server: `python -m serve.server --help`.

Knows only the flags and the order of starting and stopping; TensorFlow is imported after the
flags are right, so that help and errors come at once.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from serve.command_line import OneLineParser
from serve.errors import ServingError

if TYPE_CHECKING:
    from serve.grpc_server import GrpcServer
    from serve.rest_server import RestServer

EPILOG = """\
The base path holds one folder a version, named by its number, with a SavedModel in it:

  /models/news/1/saved_model.pb

The newest is served. To publish another while the server runs, copy it under a name that is
no number, then rename it:

  cp -r export /models/news/next && mv /models/news/next /models/news/2

Start, ask, stop (Ctrl-C or SIGTERM: running requests are finished):

  python -m serve.server --model_name=news --model_base_path=/models/news --rest_api_port=8501
  curl -d '{"instances": ["some text"]}' http://127.0.0.1:8501/v1/models/news:predict
  python -m serve.client --grpc 127.0.0.1:8500 --model news "some text"
"""


class LocalServer:
    """The models and the two interfaces to them.

    Args:
        model_name: its name in requests.
        base_path: the folder of its versions.
        grpc_port: 0 takes a free one, None switches gRPC off.
        rest_port: the same for REST.
        poll_seconds: between two looks for new versions; 0 looks only once.

    Example:
        >>> with LocalServer("news", Path("/models/news")) as server:
        ...     answer = predict_grpc(server.grpc_address, "news", {"text": ["some text"]})
    """

    def __init__(
        self,
        model_name: str,
        base_path: Path,
        *,
        grpc_port: int | None = 0,
        rest_port: int | None = 0,
        poll_seconds: float = 1.0,
    ) -> None:
        from serve.model_store import ModelStore

        self.store = ModelStore({model_name: base_path}, poll_seconds=poll_seconds)
        self._ports = grpc_port, rest_port
        self._grpc_server: GrpcServer | None = None
        self._rest_server: RestServer | None = None

    @property
    def grpc_address(self) -> str | None:
        """HOST:PORT, None if it is off."""
        return self._grpc_server.address if self._grpc_server else None

    @property
    def rest_address(self) -> str | None:
        """HOST:PORT, None if it is off."""
        return self._rest_server.address if self._rest_server else None

    def start(self, should_stop: threading.Event | None = None) -> None:
        """Loads the model, then opens the ports: they open only with a model behind them.

        Args:
            should_stop: when set, the wait for the model ends and no port is opened.

        Raises:
            ServingError: the model cannot be loaded.
            OSError: a port is in use.
        """
        from serve.grpc_server import GrpcServer
        from serve.rest_server import RestServer

        self.store.start()
        self.store.wait_until_available(should_stop)
        if should_stop and should_stop.is_set():
            return
        grpc_port, rest_port = self._ports
        if rest_port is not None:
            self._rest_server = RestServer(self.store, rest_port)
        if grpc_port is not None:
            self._grpc_server = GrpcServer(self.store, grpc_port)
        for server in (self._rest_server, self._grpc_server):
            if server:
                server.start()

    def stop(self) -> None:
        """Closes the ports, lets running requests end, unloads the model."""
        for server in (self._rest_server, self._grpc_server):
            if server:
                server.stop()
        self.store.stop()

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
    _set_up_logging()
    should_stop = _stop_on_signals()
    try:
        if not flags.model_base_path.is_dir():
            raise OSError(f"--model_base_path {flags.model_base_path} is not a directory")
        for port in filter(None, (flags.port, flags.rest_api_port)):
            require_free_port(port)
        _serve(flags, should_stop)
    except (OSError, ServingError) as error:
        print(f"serve.server: {error}", file=sys.stderr)
        return 1
    return 0


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends the process with status 2 and one line if it is wrong."""
    parser = OneLineParser(
        prog="serve.server",
        description="A local stand-in for tensorflow_model_server, on 127.0.0.1 only: "
        "the same flags, REST and gRPC.",
        epilog=EPILOG,
    )
    parser.add_argument("--model_name", default="default", help="its name in requests (default)")
    parser.add_argument(
        "--model_base_path", required=True, type=Path, help="absolute folder of the versions"
    )
    parser.add_argument("--port", type=int, default=8500, help="of gRPC (8500); 0 switches it off")
    parser.add_argument("--rest_api_port", type=int, default=0, help="of REST (0: it is off)")
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=int,
        default=1,
        help="between two looks for new versions (1); 0 looks once, at the start",
    )
    flags = parser.parse_args(arguments)
    problem = _find_problem(flags)
    if problem:
        parser.error(problem)
    return flags


def _find_problem(flags: argparse.Namespace) -> str:
    """What is wrong with flags that are well formed; "" if nothing is."""
    if not flags.model_base_path.is_absolute():
        return f"--model_base_path must be absolute, not {flags.model_base_path}"
    if not flags.model_name:
        return "--model_name must not be empty"
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, name) < 2**16:
            return f"--{name} must be from 0 to 65535, not {getattr(flags, name)}"
    if not flags.port and not flags.rest_api_port:
        return "--port and --rest_api_port are both 0: there is nothing to serve on"
    if flags.port == flags.rest_api_port:
        return f"--port and --rest_api_port are both {flags.port}"
    if flags.file_system_poll_wait_seconds < 0:
        return "--file_system_poll_wait_seconds must not be negative"
    return ""


def require_free_port(port: int) -> None:
    """Raises OSError if a port cannot be opened: before the slow load, not after it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(f"cannot open port {port}: {error.strerror}") from error


def _set_up_logging() -> None:
    """Shows what becomes of the versions, and of TensorFlow only what is wrong."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # The C++ part only tells what is fatal: its errors come as answers, its notes are many.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _stop_on_signals() -> threading.Event:
    should_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: should_stop.set())
    return should_stop


def _serve(flags: argparse.Namespace, should_stop: threading.Event) -> None:
    server = LocalServer(
        flags.model_name,
        flags.model_base_path,
        grpc_port=flags.port or None,
        rest_port=flags.rest_api_port or None,
        poll_seconds=flags.file_system_poll_wait_seconds,
    )
    try:
        server.start(should_stop)
        if not should_stop.is_set():
            print(_ready_line(flags.model_name, server), flush=True)
            should_stop.wait()
    finally:
        server.stop()


def _ready_line(model_name: str, server: LocalServer) -> str:
    with server.store.borrow(model_name) as servable:
        version = servable.version
    grpc = server.grpc_address or "off"
    rest = f"http://{server.rest_address}/v1/models/{model_name}" if server.rest_address else "off"
    return f"serving {model_name} version {version}: gRPC {grpc}, REST {rest}"


if __name__ == "__main__":
    sys.exit(main())
