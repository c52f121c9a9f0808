"""A store with one model that halves in Python: for what is about the port, not the model."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from serve.errors import Code, ServingError
from serve.model_store import State, VersionStatus

BODY = b'{"instances": [1.0]}'
ANSWER = b'{\n    "predictions": [2.5\n    ]\n}'


class Halver:
    """x -> y = x / 2 + 2; `behave`, if it is set, is called first."""

    version = 1
    signatures: dict = {}

    def __init__(self) -> None:
        self.behave: Callable[[], object] = lambda: None
        self.output: np.ndarray | None = None  # instead of x / 2 + 2
        self.timeouts: list[float | None] = []

    def input_types(self, signature_name: str) -> dict[str, str]:
        return {"x": "float"}

    def predict(
        self, inputs: dict, *, signature_name: str = "", timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        self.timeouts.append(timeout)
        self.behave()
        if self.output is not None:
            return {"y": self.output}
        return {"y": inputs["x"] * np.float32(0.5) + np.float32(2.0)}

    def classify(
        self, examples: Sequence[bytes], *, signature_name: str = "", timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        self.timeouts.append(timeout)
        scores = np.full((len(examples), 1), 0.5, np.float32)
        return {"classes": np.full((len(examples), 1), b"a", object), "scores": scores}

    def regress(
        self, examples: Sequence[bytes], *, signature_name: str = "", timeout: float | None = None
    ) -> np.ndarray:
        self.timeouts.append(timeout)
        return np.full(len(examples), 0.5, np.float32)


class OneModelStore:
    """Lends the Halver under the name "half"."""

    def __init__(self) -> None:
        self.servable = Halver()

    @contextlib.contextmanager
    def borrow(self, name: str, *, version: int | None = None, label: str = "") -> Iterator[Halver]:
        if name != "half":
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Latest({name})")
        yield self.servable

    def status(self, name: str, *, version: int | None = None) -> list[VersionStatus]:
        if name != "half":
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        return [VersionStatus(1, State.AVAILABLE)]


class Client:
    """A socket to a server, to send it anything at all.

    Args:
        address: HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
        self._received = b""

    def send(self, data: bytes) -> None:
        """Sends all of it, or as much as the server takes before it closes."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer; (0, b"") when the server has closed."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return 0, b""
        lengths = [
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        while lengths and len(self._received) < lengths[0] and self._receive():
            pass
        length = lengths[0] if lengths else 0
        body, self._received = self._received[:length], self._received[length:]
        return int(head.split(b" ", 2)[1]), body

    def is_closed(self) -> bool:
        """Reads on until the server closes; it must not send anything more."""
        while self._receive():
            pass
        return not self._received

    def close(self) -> None:
        self.socket.close()

    def _until(self, end: bytes) -> bytes | None:
        while end not in self._received:
            if not self._receive():
                return None
        head, _, self._received = self._received.partition(end)
        return head

    def _receive(self) -> bool:
        try:
            data = self.socket.recv(2**16)
        except ConnectionError:
            return False
        self._received += data
        return bool(data)


def post(
    body: bytes = BODY, *, name: str = "half", headers: str = "", length: int | None = None
) -> bytes:
    """The bytes of a predict request."""
    length = len(body) if length is None else length
    return (
        f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: here\r\n"
        f"Content-Length: {length}\r\n{headers}\r\n"
    ).encode() + body


def exchange(address: str, data: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    client = Client(address)
    try:
        client.send(data)
        return client.answer()
    finally:
        client.close()


def together(count: int, task: Callable[[int], object]) -> list:
    """Runs a task in so many threads at once; gives the results."""
    results: list = [None] * count

    def run(number: int) -> None:
        results[number] = task(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
