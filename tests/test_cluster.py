"""TF_CONFIG, and processes that wait for each other before TensorFlow does."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from kbert.cluster import Cluster, LeftAlone, cluster_of, meet
from kbert.errors import InputError

TWO = ["10.0.0.1:2222", "10.0.0.2:2222"]
OPTIONS = {"train": {"epochs": 3}}


def config(**parts: Any) -> dict[str, str]:
    whole = {"cluster": {"worker": TWO}, "task": {"type": "worker", "index": 1}}
    return {"TF_CONFIG": json.dumps({**whole, **parts})}


def test_cluster_of_workers() -> None:
    cluster = cluster_of(config())
    assert cluster == Cluster(tuple(TWO), ("worker 0", "worker 1"), 1)
    assert not cluster.is_chief
    assert cluster.told(1) == "worker 1 (10.0.0.2:2222)"


def test_cluster_with_a_chief() -> None:
    """As TensorFlow numbers them: the chief is the first, whatever the order of the jobs."""
    jobs = {"worker": TWO, "chief": ["[::1]:5"]}
    cluster = cluster_of(config(cluster=jobs))
    assert cluster.addresses == ("[::1]:5", *TWO)
    assert (cluster.index, cluster.name) == (2, "worker 1")
    assert cluster_of(config(cluster=jobs, task={"type": "chief", "index": 0})).is_chief


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "train.strategy multi_worker needs the variable TF_CONFIG, such as {"),
        ({"TF_CONFIG": " "}, "needs the variable TF_CONFIG"),
        ({"TF_CONFIG": "{'cluster'"}, "TF_CONFIG: not JSON \\(Expecting"),
        ({"TF_CONFIG": "[" * 100_000}, "TF_CONFIG: not JSON"),
        ({"TF_CONFIG": "[1]"}, "TF_CONFIG: it lacks 'cluster', the addresses of all processes"),
        (config(cluster={}), "it lacks 'cluster'"),
        (config(task=None), "it lacks 'task', which of them this process is"),
        (config(cluster={"worker": TWO, "ps": TWO}), "cluster.ps: a training has workers"),
        (config(cluster={"worker": TWO, "evaluator": ["a:1"]}), "cluster.evaluator"),
        (config(cluster={"worker": TWO, "chief": TWO}), "cluster.chief: 2 addresses, not one"),
        (config(cluster={"worker": "a:1"}), 'cluster.worker must be a list.*received "a:1"'),
        (config(cluster={"worker": []}), "cluster.worker must be a list"),
        (config(cluster={"worker": [1]}), "cluster.worker must be a list"),
        (config(cluster={"worker": ["a:1", "a"]}), "an address is HOST:PORT, received 'a'"),
        (config(cluster={"worker": ["a:1", ":2"]}), "received ':2'"),
        (config(cluster={"worker": ["a:1", "b:0"]}), "received 'b:0'"),
        (config(cluster={"worker": ["a:1", "b:66000"]}), "received 'b:66000'"),
        (config(cluster={"worker": ["a:1", "a:1"]}), "two processes have the address a:1"),
        (config(task={"type": "ps", "index": 0}), "task.type must be one of worker, received 'ps'"),
        (config(task={"index": 0}), "task.type must be one of worker, received None"),
        (config(task={"type": "worker", "index": 2}), r"in \[0, 1\], as there are 2 .*received 2"),
        (config(task={"type": "worker", "index": -1}), "received -1"),
        (config(task={"type": "worker", "index": "1"}), "received '1'"),
        (config(task={"type": "worker", "index": True}), "received True"),
        (config(task={"type": "worker"}), "received None"),
    ],
)
def test_wrong_cluster(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cluster_of(environment)
    assert "\n" not in str(caught.value)


def cluster(count: int, index: int = 0) -> Cluster:
    """Of free ports of this machine."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        first = one.getsockname()[1]
    ports = [first, *(find_port() for _ in range(count - 1))]
    names = tuple(f"worker {number}" for number in range(count))
    return Cluster(tuple(f"127.0.0.1:{port}" for port in ports), names, index)


def find_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def all_meet(
    of: Cluster,
    indices: tuple[int, ...],
    options: dict[int, Any] | None = None,
    *,
    seconds: float = 30.0,
) -> dict[int, Exception | None]:
    """What becomes of each process that is there, by its place in `indices`."""
    found: dict[int, Exception | None] = {}

    def come(place: int, index: int) -> None:
        try:
            own = Cluster(of.addresses, of.names, index)
            meet(own, (options or {}).get(index, OPTIONS), seconds=seconds)
        except Exception as error:
            found[place] = error
        else:
            found[place] = None

    threads = [threading.Thread(target=come, args=item) for item in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_meet() -> None:
    """In any order, and again on the same addresses, which are free then."""
    of = cluster(3)
    for order in ((0, 1, 2), (2, 1, 0)):
        assert all_meet(of, order) == {0: None, 1: None, 2: None}


def test_one_does_not_come() -> None:
    began = time.monotonic()
    of = cluster(3)
    found = all_meet(of, (0, 2), seconds=1.0)
    assert time.monotonic() - began < 5
    for error in found.values():  # the other one is told by the chief
        assert isinstance(error, LeftAlone)
        assert str(error) == f"not there after 1 s: {of.told(1)}"


def test_the_chief_does_not_come() -> None:
    of = cluster(2)
    (error,) = all_meet(of, (1,), seconds=1.0).values()
    assert isinstance(error, LeftAlone)
    assert str(error) == (f"{of.told(0)}, the chief, is not there after 1 s (Connection refused)")


@pytest.mark.parametrize("late", [(), (1,)])
def test_other_options(late: tuple[int, ...]) -> None:
    """All are told, and who comes when the chief knows already, too."""
    of = cluster(3)
    there = tuple(index for index in range(3) if index not in late)
    found: list[Exception | None] = []
    options = {2: {"train": {"epochs": 4}}}
    first = threading.Thread(target=lambda: found.extend(all_meet(of, there, options).values()))
    first.start()
    if late:
        time.sleep(0.3)
        found.extend(all_meet(of, late).values())
    first.join()
    assert len(found) == 3
    for error in found:
        assert isinstance(error, InputError)
        assert str(error) == (
            "worker 2 has other options than the chief (train.epochs: 3 -> 4): start all by the "
            "same command."
        )


def test_two_of_one_number() -> None:
    """Both have the same address, so that the second one cannot listen there."""
    of = cluster(2)
    host, _, port = of.addresses[1].rpartition(":")
    with socket.create_server((host, int(port))):  # the first one
        found = all_meet(of, (1,))
    assert isinstance(found[0], InputError)
    assert "worker 1 cannot listen at its address" in str(found[0])


def test_other_clusters() -> None:
    of = cluster(2)
    other = Cluster((of.addresses[0], f"127.0.0.1:{find_port()}"), of.names, 1)
    chief = threading.Thread(target=lambda: all_meet(of, (0,)))
    chief.start()
    with pytest.raises(InputError, match="knows the processes .*give all of them the same cluster"):
        meet(other, OPTIONS, seconds=30.0)
    chief.join()


def test_who_is_no_process_of_ours() -> None:
    """Somebody who asks for a page, and one who says nothing, keep nobody from meeting."""
    of = cluster(2)
    found: dict[int, Exception | None] = {}
    meeting = threading.Thread(target=lambda: found.update(all_meet(of, (0,))))
    meeting.start()
    host, port = of.addresses[0].split(":")
    for said in (b"GET / HTTP/1.0\r\n\r\n", b"", b"{}\n", b"\xff" * 100):
        while True:
            try:
                with socket.create_connection((host, int(port)), 1) as stranger:
                    stranger.sendall(said)
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
    meet(Cluster(of.addresses, of.names, 1), OPTIONS, seconds=30.0)
    meeting.join()
    assert found == {0: None}


@pytest.mark.parametrize("host", ["192.0.2.77", "nobody.invalid"])
def test_address_of_another_machine(host: str) -> None:
    own = Cluster((f"{host}:2222", "127.0.0.1:1"), ("worker 0", "worker 1"), 0)
    with pytest.raises(InputError, match=f"worker 0 cannot listen at its address {host}:2222 "):
        meet(own, OPTIONS, seconds=1.0)


def test_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        own = Cluster((address, "127.0.0.1:1"), ("worker 0", "worker 1"), 0)
        with pytest.raises(InputError, match="it must be this machine's, and free"):
            meet(own, OPTIONS, seconds=1.0)
