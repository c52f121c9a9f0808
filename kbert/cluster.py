"""The processes of one training: which they are, by TF_CONFIG, and whether all of them are there.

Knows neither Keras nor TensorFlow: what is wrong is said before anything slow begins, and no
process waits in TensorFlow for one that never comes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kbert.config import differences
from kbert.errors import InputError

logger = logging.getLogger(__name__)

VARIABLE = "TF_CONFIG"
EXAMPLE = (
    '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
CHIEF, WORKER = "chief", "worker"
APPEAR_SECONDS = 300.0
"""How long processes wait for those that are not there yet: a cluster pulls an image meanwhile."""
TRY_AGAIN = 75  # EX_TEMPFAIL
"""Exit status of a process that another one has left alone: it is to be started again."""
RETRY_SECONDS = 0.2
LINE_SECONDS = 10  # for a line of a process that has come
LONGEST_LINE = 1 << 20


class LeftAlone(Exception):
    """Another process of the training has not come, or is gone."""


@dataclass(frozen=True)
class Cluster:
    """The processes of one training, and which of them this one is."""

    addresses: tuple[str, ...]
    """HOST:PORT of each, the chief's first."""
    names: tuple[str, ...]
    """Such as "worker 0", as TF_CONFIG has it."""
    index: int
    """Which one this is."""

    @property
    def is_chief(self) -> bool:
        """Whether this is the one that measures, and writes all files."""
        return self.index == 0

    @property
    def name(self) -> str:
        """Of this process."""
        return self.names[self.index]

    def told(self, index: int) -> str:
        """A process by name and address."""
        return f"{self.names[index]} ({self.addresses[index]})"


def cluster_of(environment: Mapping[str, str]) -> Cluster:
    """The cluster of the variable TF_CONFIG.

    Args:
        environment: Of the process.

    Raises:
        InputError: it is missing, no JSON, or does not say which processes there are and which of
            them this one is.
    """
    text = environment.get(VARIABLE, "").strip()
    if not text:
        raise InputError(
            f"train.strategy multi_worker needs the variable {VARIABLE}, such as {EXAMPLE}; on one "
            "machine, python -m kbert.launch sets it."
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{VARIABLE}: not JSON ({error}); it is such as {EXAMPLE}.") from None
    jobs = _part(content, "cluster", "the addresses of all processes")
    task = _part(content, "task", "which of them this process is")
    if odd := sorted(set(jobs) - {CHIEF, WORKER}):
        raise InputError(
            f"{VARIABLE}: cluster.{odd[0]}: a training has workers, of which one may be called "
            "chief, and no other processes; leave it out."
        )
    counts = {job: _count(job, jobs[job]) for job in (CHIEF, WORKER) if job in jobs}
    if counts.get(CHIEF, 1) != 1:
        raise InputError(f"{VARIABLE}: cluster.chief: {counts[CHIEF]} addresses, not one.")
    addresses = tuple(address for job in counts for address in jobs[job])
    for address in addresses:
        _host_and_port(address)
        if addresses.count(address) > 1:
            raise InputError(f"{VARIABLE}: two processes have the address {address}.")
    job, number = task.get("type"), task.get("index")
    if job not in counts:
        raise InputError(
            f"{VARIABLE}: task.type must be one of {', '.join(counts)}, received {job!r}."
        )
    if type(number) is not int or not 0 <= number < counts[job]:
        raise InputError(
            f"{VARIABLE}: task.index must be in [0, {counts[job] - 1}], as there are "
            f"{counts[job]} of cluster.{job}, received {number!r}."
        )
    names = tuple(f"{of} {index}" for of, count in counts.items() for index in range(count))
    return Cluster(addresses, names, names.index(f"{job} {number}"))


def _part(content: Any, name: str, what: str) -> dict[str, Any]:
    part = content.get(name) if isinstance(content, dict) else None
    if not isinstance(part, dict) or not part:
        raise InputError(f"{VARIABLE}: it lacks {name!r}, {what}; it is such as {EXAMPLE}.")
    return part


def _count(job: str, addresses: Any) -> int:
    strings = isinstance(addresses, list) and all(isinstance(of, str) for of in addresses)
    if not strings or not addresses:
        raise InputError(
            f"{VARIABLE}: cluster.{job} must be a list of HOST:PORT, received "
            f"{json.dumps(addresses)}."
        )
    return len(addresses)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise InputError(f"{VARIABLE}: an address is HOST:PORT, received {address!r}.")
    return host, int(port)


def meet(cluster: Cluster, options: Mapping[str, Any], *, seconds: float = APPEAR_SECONDS) -> None:
    """Wait until all processes of the cluster are there, and hold what each was told to the others.

    Each one tells the chief, at its address, who it is and what it was told; the chief answers
    when all have come. Then the addresses are free again, for TensorFlow.

    Args:
        cluster: The processes.
        options: Those of this process, as `kbert.config.as_dict` gives them, without what may
            differ.
        seconds: How long to wait.

    Raises:
        InputError: the address is not this machine's, or in use; or processes were told different
            things.
        LeftAlone: not all have come in that time.
    """
    with _listening(cluster) as own:
        if not cluster.is_chief:
            _introduce(cluster, options, time.monotonic() + seconds, seconds)
            return
        logger.info("waiting for %d processes to come", len(cluster.addresses) - 1)
        with contextlib.ExitStack() as opened:
            there: dict[int, list[socket.socket]] = {}
            problem: Exception | None = _receive(
                own, cluster, options, there, opened, time.monotonic() + seconds
            )
            if problem is None and (missing := _missing(cluster, there)):
                told = ", ".join(map(cluster.told, missing))
                problem = LeftAlone(f"not there after {seconds:g} s: {told}")
            answer = {} if problem is None else {
                "problem": str(problem), "is_input": isinstance(problem, InputError)
            }  # fmt: skip
            for connection in itertools.chain.from_iterable(there.values()):
                with contextlib.suppress(OSError):
                    _send(connection, answer)
            if problem is not None:
                raise problem


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[socket.socket]:
    """A socket at this process's own address."""
    address = cluster.addresses[cluster.index]
    host, port = _host_and_port(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found[4])
            listener.listen(len(cluster.addresses) + 64)  # strangers may knock, too
            yield listener
    except OSError as error:
        raise InputError(
            f"{VARIABLE}: {cluster.name} cannot listen at its address {address} "
            f"({error.strerror or error}); it must be this machine's, and free."
        ) from None


def _introduce(cluster: Cluster, options: Mapping[str, Any], until: float, seconds: float) -> None:
    """Tell the chief of this process, and wait for its answer."""
    reason = "no answer"
    while time.monotonic() < until:
        try:
            with socket.create_connection(_host_and_port(cluster.addresses[0]), 2) as chief:
                _send(chief, {
                    "index": cluster.index, "addresses": cluster.addresses, "options": options,
                })  # fmt: skip
                answer = _receive_line(chief, max(0.1, until + LINE_SECONDS - time.monotonic()))
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if answer is not None:
                _heed(answer)
                return
            reason = "it closed the connection"  # it is being started again
        time.sleep(RETRY_SECONDS)
    raise LeftAlone(f"{cluster.told(0)}, the chief, is not there after {seconds:g} s ({reason})")


def _heed(answer: Mapping[str, Any]) -> None:
    if problem := answer.get("problem"):
        raise (InputError if answer.get("is_input") else LeftAlone)(problem)


def _receive(
    own: socket.socket,
    cluster: Cluster,
    options: Mapping[str, Any],
    there: dict[int, list[socket.socket]],
    opened: contextlib.ExitStack,
    until: float,
) -> InputError | None:
    """Fill in the connections of each other process, as long as they come.

    Returns:
        What is wrong with the first one that was told something else. Those that have not come
        yet have a little time still, to hear of it too: otherwise they would wait for a chief that
        has ended.
    """
    problem = None
    while _missing(cluster, there):
        own.settimeout(max(0.0, until - time.monotonic()) or 1e-3)
        try:
            connection = opened.enter_context(own.accept()[0])
        except TimeoutError:
            break
        try:
            message = _receive_line(connection, LINE_SECONDS)
        except OSError:
            continue
        if message is None or not isinstance(index := message.get("index"), int):
            continue  # no process of ours
        before = there.setdefault(index, [])
        is_second = not all(map(_is_gone, before))
        before.append(connection)
        try:
            _compare(cluster, index, message, options)
            if is_second:
                raise InputError(
                    f"{VARIABLE}: two processes are {cluster.names[index]}: give each a "
                    "task.index of its own."
                )
        except InputError as error:
            problem = problem or error
            until = min(until, time.monotonic() + LINE_SECONDS)
    return problem


def _missing(cluster: Cluster, there: Mapping[int, list[socket.socket]]) -> list[int]:
    """Numbers of the processes that have not come yet."""
    return [index for index in range(1, len(cluster.addresses)) if index not in there]


def _compare(
    cluster: Cluster, index: int, message: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """InputError unless a process knows the same cluster, and has the same options."""
    if tuple(message.get("addresses", ())) != cluster.addresses:
        raise InputError(
            f"{VARIABLE}: number {index} knows the processes {message.get('addresses')}, the chief "
            f"{list(cluster.addresses)}; give all of them the same cluster."
        )
    if not 0 < index < len(cluster.addresses):
        raise InputError(f"{VARIABLE}: two processes are {cluster.names[0]}.")
    found = differences(json.loads(json.dumps(options)), message.get("options", {}))
    if found:
        raise InputError(
            f"{cluster.names[index]} has other options than the chief ({'; '.join(found)}): start "
            "all by the same command."
        )


def _is_gone(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1)
    except OSError:
        return True


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive_line(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """A line of JSON; None for anything else.

    Raises:
        OSError: the connection broke, or was silent for that long.
    """
    connection.settimeout(seconds)
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(1 << 16)
        line += part
        if not part or len(line) > LONGEST_LINE:
            return None
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def this_cluster() -> Cluster:
    """The cluster of this process."""
    return cluster_of(os.environ)
