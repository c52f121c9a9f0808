import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.errors import Code, ServingError
from serve.model_store import ModelStore, State, find_versions

ONE = {"x": np.float32([[1]])}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], ModelStore]]:
    """A function that starts a store on tmp_path and waits for its first version."""
    stores = []

    def start() -> ModelStore:
        stores.append(ModelStore({"half": tmp_path}, poll_seconds=0.05))
        stores[-1].start()
        stores[-1].wait_until_available()
        return stores[-1]

    yield start
    for store in stores:
        store.stop()


def states(store: ModelStore) -> dict[int, State]:
    return {status.version: status.state for status in store.status("half")}


def newest_answer(store: ModelStore) -> tuple[int, float]:
    with store.borrow("half") as servable:
        return servable.version, servable.predict(ONE)["y"].item()


def test_find_versions(tmp_path: Path):
    for name in ("00000123", "7", "next", "-3", "1.5", "²", str(2**63)):
        (tmp_path / name).mkdir()
    (tmp_path / "9").write_text("a file")
    assert find_versions(tmp_path) == {7: tmp_path / "7", 123: tmp_path / "00000123"}


def test_the_newest_is_served_and_older_ones_are_not_looked_at(start, publish, tmp_path):
    publish("half_plus_two", tmp_path, "1")
    publish("half_plus_three", tmp_path, "002")
    store = start()
    assert newest_answer(store) == (2, 3.5)
    assert states(store) == {2: State.AVAILABLE}


def test_a_new_version_takes_over_and_goes_back_when_removed(start, publish, tmp_path, wait_until):
    publish("half_plus_two", tmp_path, "1")
    store = start()
    publish("half_plus_three", tmp_path, "2")
    wait_until(lambda: states(store) == {2: State.AVAILABLE, 1: State.END})
    assert newest_answer(store) == (2, 3.5)

    shutil.rmtree(tmp_path / "2")
    wait_until(lambda: states(store) == {2: State.END, 1: State.AVAILABLE})
    assert newest_answer(store) == (1, 2.5)

    shutil.rmtree(tmp_path / "1")
    wait_until(lambda: states(store) == {2: State.END, 1: State.END})
    with pytest.raises(ServingError, match=r"Servable not found for request: Latest\(half\)"):
        newest_answer(store)


def test_unload_waits_for_running_requests(start, publish, tmp_path, wait_until):
    publish("half_plus_two", tmp_path, "1")
    store = start()
    with store.borrow("half", version=1) as old:
        publish("half_plus_three", tmp_path, "2")
        wait_until(lambda: states(store) == {2: State.AVAILABLE, 1: State.UNLOADING})
        with (
            pytest.raises(ServingError, match=r"Specific\(half, 1\)"),
            store.borrow("half", version=1),
        ):
            pass
        assert old.predict(ONE)["y"] == 2.5
    assert states(store) == {2: State.AVAILABLE, 1: State.END}


def test_a_broken_version_leaves_the_old_one(start, publish, tmp_path, wait_until):
    publish("half_plus_two", tmp_path, "1")
    store = start()
    (tmp_path / "2").mkdir()
    wait_until(lambda: states(store) == {2: State.END, 1: State.AVAILABLE})
    [broken] = store.status("half", version=2)
    assert broken.code is Code.NOT_FOUND
    assert "SavedModel file does not exist" in broken.message
    assert newest_answer(store) == (1, 2.5)

    # mended: the folder goes, and comes back whole
    (tmp_path / "2").rmdir()
    wait_until(lambda: store._versions["half"][2].folder_was_gone)
    publish("half_plus_three", tmp_path, "2")
    wait_until(lambda: states(store) == {2: State.AVAILABLE, 1: State.END})
    assert newest_answer(store) == (2, 3.5)


def test_no_request_fails_while_versions_change(start, publish, tmp_path, wait_until):
    publish("half_plus_two", tmp_path, "1")
    store = start()
    is_done = threading.Event()
    answers: set[tuple[int, float]] = set()
    failures = []

    def ask() -> None:
        while not is_done.is_set():
            try:
                answers.add(newest_answer(store))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    publish("half_plus_three", tmp_path, "2")
    wait_until(lambda: (2, 3.5) in answers)
    shutil.rmtree(tmp_path / "2")
    wait_until(lambda: states(store) == {2: State.END, 1: State.AVAILABLE})
    is_done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert answers == {(1, 2.5), (2, 3.5)}


def test_the_first_load_fails(start, tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(ServingError, match="version 1 of model half cannot be loaded: SavedModel"):
        start()


def test_an_empty_folder_is_waited_on(publish, tmp_path):
    store = ModelStore({"half": tmp_path}, poll_seconds=0.05)
    store.start()
    should_stop = threading.Event()
    should_stop.set()
    store.wait_until_available(should_stop)
    publish("half_plus_two", tmp_path, "1")
    store.wait_until_available()
    assert newest_answer(store) == (1, 2.5)
    store.stop()
    assert states(store) == {1: State.END}


def test_an_empty_folder_that_is_looked_at_once(tmp_path):
    store = ModelStore({"half": tmp_path}, poll_seconds=0)
    store.start()
    with pytest.raises(ServingError, match="no version of model half under"):
        store.wait_until_available()
    store.stop()


def test_a_folder_that_cannot_be_read_changes_nothing(start, publish, tmp_path, wait_until, caplog):
    base_path = tmp_path / "models"
    base_path.mkdir()
    publish("half_plus_two", base_path, "1")
    store = ModelStore({"half": base_path}, poll_seconds=0.05)
    store.start()
    store.wait_until_available()
    base_path.rename(tmp_path / "elsewhere")
    wait_until(lambda: "going on with the old" in caplog.text)
    assert newest_answer(store) == (1, 2.5)
    store.stop()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ({"name": ""}, Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (
            {"name": "half", "label": "stable"},
            Code.INVALID_ARGUMENT,
            "Unrecognized servable version label: stable",
        ),
        ({"name": "no"}, Code.NOT_FOUND, "Servable not found for request: Latest(no)"),
        (
            {"name": "half", "version": 9},
            Code.NOT_FOUND,
            "Servable not found for request: Specific(half, 9)",
        ),
    ],
)
def test_borrow_errors(store: ModelStore, arguments: dict, code: Code, message: str):
    with pytest.raises(ServingError) as caught, store.borrow(**arguments):
        pass
    assert (caught.value.code, caught.value.message) == (code, message)


def test_status_errors(store: ModelStore):
    with pytest.raises(ServingError, match="^Could not find any versions of model no$"):
        store.status("no")
    with pytest.raises(ServingError, match="^Could not find version 9 of model half$"):
        store.status("half", version=9)
