"""The REST port: an HTTP server in a thread, around the application of `rest`."""

import socket
import threading

import uvicorn

from serve.model_store import ModelStore
from serve.rest import RestApi

DRAIN_SECONDS = 30


class RestServer:
    """Runs the application in a thread.

    Args:
        store: the models to serve.
        port: 0 takes a free one.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, store: ModelStore, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            RestApi(store),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="rest", daemon=True
        )

    def start(self) -> None:
        """Begins to answer. Connections that come before the thread is ready are queued."""
        self._socket.listen()
        self._thread.start()

    def stop(self) -> None:
        """Takes no new request, and waits for those that run (30 seconds at most)."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
