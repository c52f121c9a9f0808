"""The store with real SavedModels where they matter, and with one-line models elsewhere."""

import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.errors import Code, ServingError
from serve.loader import Loader
from serve.metrics import Metrics
from serve.model_config import All, Latest, ModelConfig, Specific
from serve.model_store import ModelStore, State
from serve.servable import Servable

START, LOADING, AVAILABLE, UNLOADING, END = State
ONE = {"x": np.float32([[1]])}


class Line:
    """A model that is one line of text, with what the store wants of a Servable."""

    def __init__(self, version: int, text: str) -> None:
        self.version = version
        self.text = text
        self.is_closed = False

    def answer(self) -> tuple[int, str]:
        assert not self.is_closed, "asked after it was closed"
        return self.version, self.text

    def close(self) -> None:
        self.is_closed = True
        if self.text == "will not close":
            raise RuntimeError("stuck")


class LineLoader:
    """Loads line.txt of a version folder. A version in `gates` waits for its gate to open."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.lines: list[weakref.ref[Line]] = []
        self.gates: dict[tuple[str, int], threading.Event] = {}

    def __call__(self, name: str, path: Path, version: int) -> Line:
        self.calls.append((name, version))
        gate = self.gates.get((name, version))
        assert gate is None or gate.wait(timeout=15)
        try:
            line = Line(version, (path / "line.txt").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ServingError(Code.NOT_FOUND, "SavedModel file does not exist") from None
        self.lines.append(weakref.ref(line))
        return line

    def hold(self, name: str, version: int) -> threading.Event:
        self.gates[name, version] = threading.Event()
        return self.gates[name, version]


def write(folder: Path, text: str = "") -> Path:
    """Publishes a version: written under another name, then renamed."""
    unfinished = folder.parent / "next"
    unfinished.mkdir(parents=True)
    (unfinished / "line.txt").write_text(text or folder.name, encoding="utf-8")
    return unfinished.rename(folder)


@pytest.fixture
def loader() -> LineLoader:
    return LineLoader()


@pytest.fixture
def make_store(loader: LineLoader) -> Iterator[Callable[..., ModelStore]]:
    """A function that makes and starts a store; it is stopped in the end."""
    stores = []

    def make_store(*configs: ModelConfig, **options) -> ModelStore:
        options = {"load": loader, "poll_seconds": 0.02, "max_num_load_retries": 0} | options
        stores.append(ModelStore(configs, **options))
        stores[-1].start()
        return stores[-1]

    yield make_store
    for gate in loader.gates.values():
        gate.set()
    for store in stores:
        store.stop()


def states(store: ModelStore, name: str = "half") -> dict[int, State]:
    try:
        return {status.version: status.state for status in store.status(name)}
    except ServingError:
        return {}


def answer(store: ModelStore, name: str = "half", **which) -> tuple[int, str]:
    with store.borrow(name, **which) as line:
        return line.answer()


def error_of(act: Callable, *arguments, **keywords) -> str:
    with pytest.raises(ServingError) as caught:
        act(*arguments, **keywords)
    return f"{caught.value.code.name}: {caught.value.message}"


# --- versions come and go -------------------------------------------------------------------


def test_the_newest_is_served_and_older_ones_are_not_looked_at(make_store, loader, tmp_path):
    write(tmp_path / "1")
    write(tmp_path / "002")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    assert answer(store) == (2, "002")
    assert states(store) == {2: AVAILABLE}
    assert loader.calls == [("half", 2)]
    assert store.models() == ["half"]


def test_a_new_version_takes_over_and_goes_back_when_removed(make_store, tmp_path, wait_until):
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    write(tmp_path / "2")
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})
    assert answer(store) == (2, "2")

    shutil.rmtree(tmp_path / "2")
    wait_until(lambda: states(store) == {2: END, 1: AVAILABLE})
    assert answer(store) == (1, "1")

    shutil.rmtree(tmp_path / "1")
    wait_until(lambda: states(store) == {2: END, 1: END})
    assert error_of(answer, store) == "NOT_FOUND: Servable not found for request: Latest(half)"


def test_the_old_one_serves_while_the_new_one_loads(make_store, loader, tmp_path, wait_until):
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    gate = loader.hold("half", 2)
    write(tmp_path / "2")
    wait_until(lambda: states(store) == {2: LOADING, 1: AVAILABLE})
    assert answer(store) == (1, "1")
    assert "Specific(half, 2)" in error_of(answer, store, version=2)
    gate.set()
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})


def test_several_versions(make_store, tmp_path, wait_until):
    for number in ("1", "2", "3"):
        write(tmp_path / number)
    configs = [
        ModelConfig("two", tmp_path, Latest(2)),
        ModelConfig("all", tmp_path, All()),
        ModelConfig("some", tmp_path, Specific({1, 3, 9})),
    ]
    store = make_store(*configs)
    wait_until(lambda: states(store, "two") == {3: AVAILABLE, 2: AVAILABLE})
    wait_until(lambda: states(store, "all") == {3: AVAILABLE, 2: AVAILABLE, 1: AVAILABLE})
    wait_until(lambda: states(store, "some") == {3: AVAILABLE, 1: AVAILABLE})
    assert [answer(store, "two", version=2), answer(store, "two")] == [(2, "2"), (3, "3")]
    assert "Specific(two, 1)" in error_of(answer, store, "two", version=1)

    write(tmp_path / "4")
    wait_until(lambda: states(store, "two") == {4: AVAILABLE, 3: AVAILABLE, 2: END})
    wait_until(lambda: set(states(store, "all").values()) == {AVAILABLE})
    assert states(store, "some") == {3: AVAILABLE, 1: AVAILABLE}

    store.reload([ModelConfig("two", tmp_path, Specific({1}))])
    wait_until(lambda: states(store, "two") == {4: END, 3: END, 2: END, 1: AVAILABLE})
    wait_until(lambda: set(states(store, "all").values()) == {END})


def test_unload_waits_for_running_requests(make_store, tmp_path, wait_until, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    with store.borrow("half") as old, store.borrow("half"):
        write(tmp_path / "2")
        wait_until(lambda: states(store) == {2: AVAILABLE, 1: UNLOADING})
        assert "Specific(half, 1)" in error_of(answer, store, version=1)
        # Wanted again while requests hold it: it ends first, then it is loaded anew.
        shutil.rmtree(tmp_path / "2")
        wait_until(lambda: states(store)[2] is END or answer(store) == (2, "2"))
        assert old.answer() == (1, "1")
        assert states(store)[1] is UNLOADING
    wait_until(lambda: states(store) == {2: END, 1: AVAILABLE})
    with store.borrow("half") as new:
        assert new is not old
    wait_until(lambda: "takes no more requests, 2 are still running" in caplog.text)


def test_the_last_request_wakes_who_unloads(make_store, tmp_path, wait_until):
    """Not at the next look, as there is none."""
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path), poll_seconds=0)
    store.wait_until_available()
    with store.borrow("half"):
        store.reload([])
        wait_until(lambda: bool(store._changed._waiters) and not store._messages)
        assert states(store) == {1: UNLOADING}
    wait_until(lambda: states(store) == {1: END})


def test_links(make_store, tmp_path, wait_until):
    """The way of many deployments: the base path holds a link that is moved on."""
    write(tmp_path / "store" / "a", "first")
    base_path = tmp_path / "base"
    base_path.mkdir()
    (base_path / "1").symlink_to(tmp_path / "store" / "a")
    store = make_store(ModelConfig("half", base_path))
    store.wait_until_available()
    (base_path / "next").symlink_to(write(tmp_path / "store" / "b", "second"))
    (base_path / "next").rename(base_path / "2")
    wait_until(lambda: answer(store) == (2, "second"))


# --- loads that fail ------------------------------------------------------------------------


def test_a_broken_version_leaves_the_old_one(make_store, loader, tmp_path, wait_until, caplog):
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    (tmp_path / "2").mkdir()
    wait_until(lambda: states(store) == {2: END, 1: AVAILABLE})
    [broken] = store.status("half", version=2)
    assert (broken.code, broken.message) == (Code.NOT_FOUND, "SavedModel file does not exist")
    assert answer(store) == (1, "1")
    wait_until(lambda: "version 2 of half cannot be loaded: SavedModel file" in caplog.text)

    # It is not tried again, until the folder was away for a while and is back whole.
    (tmp_path / "2").rename(tmp_path / "two")
    write(tmp_path / "0")
    wait_until(lambda: not store._models["half"].versions.versions[2].is_given_up)
    assert loader.calls == [("half", 1), ("half", 2)]
    write(tmp_path / "2")
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})
    [mended] = store.status("half", version=2)
    assert (mended.code, mended.message) == (Code.OK, "")


def test_a_load_is_tried_again(make_store, loader, tmp_path, wait_until, caplog):
    (tmp_path / "1").mkdir()
    options = {"max_num_load_retries": 1000, "load_retry_interval": 0.01}
    store = make_store(ModelConfig("half", tmp_path), **options)
    wait_until(lambda: len(loader.calls) >= 3)
    [status] = store.status("half")
    assert (status.state, status.code) == (LOADING, Code.OK)
    (tmp_path / "1" / "line.txt").write_text("whole")
    store.wait_until_available()
    assert answer(store) == (1, "whole")
    wait_until(lambda: "(try 2 of 1001, the next in 0.01 s): SavedModel" in caplog.text)


def test_it_gives_up_after_the_last_try(make_store, loader, tmp_path, wait_until):
    (tmp_path / "1").mkdir()
    options = {"max_num_load_retries": 2, "load_retry_interval": -1}
    store = make_store(ModelConfig("half", tmp_path), **options)
    assert "did not become available" in error_of(store.wait_until_available)
    assert states(store) == {1: END}
    assert loader.calls == [("half", 1)] * 3


def test_a_version_that_is_tried_again_holds_up_nobody(make_store, loader, tmp_path, wait_until):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    write(tmp_path / "half" / "1")
    configs = [ModelConfig(name, tmp_path / name) for name in ("broken", "half")]
    store = make_store(*configs, max_num_load_retries=5, load_retry_interval=1000)
    wait_until(lambda: states(store) == {1: AVAILABLE})
    assert loader.calls == [("broken", 1), ("half", 1)]
    assert states(store, "broken") == {1: LOADING}
    write(tmp_path / "half" / "2")
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})
    # A newer version of the broken one does not wait for the thousand seconds either.
    write(tmp_path / "broken" / "2")
    wait_until(lambda: states(store, "broken") == {2: AVAILABLE, 1: END})
    [broken] = store.status("broken", version=1)
    assert broken.code is Code.NOT_FOUND
    store.stop()  # does not wait either


def test_retries_end_when_the_version_disappears(make_store, tmp_path, wait_until):
    (tmp_path / "1").mkdir()
    store = make_store(ModelConfig("half", tmp_path), max_num_load_retries=5)
    wait_until(lambda: states(store) == {1: LOADING})
    (tmp_path / "1").rmdir()
    wait_until(lambda: states(store) == {1: END})


def test_a_slow_load_holds_up_nothing_else(make_store, loader, tmp_path, wait_until):
    for name in ("slow", "half"):
        write(tmp_path / name / "1")
    write(tmp_path / "half" / "2")
    gate = loader.hold("slow", 1)
    configs = [
        ModelConfig("slow", tmp_path / "slow"),
        ModelConfig("half", tmp_path / "half", All()),
    ]
    store = make_store(*configs, num_load_threads=2)
    wait_until(lambda: states(store) == {1: AVAILABLE, 2: AVAILABLE})
    shutil.rmtree(tmp_path / "half" / "1")
    wait_until(lambda: states(store) == {1: END, 2: AVAILABLE})
    assert states(store, "slow") == {1: LOADING}
    gate.set()
    store.wait_until_available()


def test_one_load_at_a_time(make_store, loader, tmp_path, wait_until):
    for number in ("1", "2", "3"):
        write(tmp_path / number)
    gates = {number: loader.hold("half", number) for number in (1, 2, 3)}
    store = make_store(ModelConfig("half", tmp_path, All()))
    wait_until(lambda: states(store) == {3: LOADING, 2: START, 1: START})
    gates[3].set()
    wait_until(lambda: states(store) == {3: AVAILABLE, 2: LOADING, 1: START})
    shutil.rmtree(tmp_path / "1")
    wait_until(lambda: states(store) == {3: AVAILABLE, 2: LOADING, 1: END})
    gates[2].set()
    wait_until(lambda: states(store) == {3: AVAILABLE, 2: AVAILABLE, 1: END})
    assert loader.calls == [("half", 3), ("half", 2)]


def test_a_version_that_disappears_while_it_loads_never_serves(
    make_store, loader, tmp_path, wait_until
):
    write(tmp_path / "1")
    gate = loader.hold("half", 1)
    store = make_store(ModelConfig("half", tmp_path))
    wait_until(lambda: states(store) == {1: LOADING})
    (tmp_path / "1").rename(tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "2")
    wait_until(lambda: 2 in states(store))
    (tmp_path / "1").symlink_to(tmp_path / "2")  # its load ends well
    gate.set()
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})
    [status] = store.status("half", version=1)
    assert (status.code, status.message) == (Code.CANCELLED, "Loading of servable cancelled")
    assert loader.lines[0]() is None


def test_a_load_that_fails_in_an_unheard_of_way(make_store, tmp_path):
    write(tmp_path / "1")

    def load(name: str, path: Path, version: int) -> Servable:
        raise ZeroDivisionError("oh")

    store = make_store(ModelConfig("half", tmp_path), load=load)
    assert error_of(store.wait_until_available) == (
        "UNKNOWN: 1 servable(s) did not become available: {{{name: half version: 1} due to error: "
        "INTERNAL: ZeroDivisionError('oh')}, }"
    )


def test_a_servable_that_will_not_close(make_store, tmp_path, wait_until, caplog):
    write(tmp_path / "1", "will not close")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    write(tmp_path / "2")
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})
    assert "closing version 1 of half" in caplog.text


# --- the start and the base path ------------------------------------------------------------


def test_the_first_load_fails(make_store, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
    write(tmp_path / "c" / "1")
    store = make_store(*(ModelConfig(name, tmp_path / name) for name in "abc"))
    assert error_of(store.wait_until_available) == (
        "UNKNOWN: 2 servable(s) did not become available: "
        "{{{name: a version: 1} due to error: NOT_FOUND: SavedModel file does not exist}, "
        "{{name: b version: 1} due to error: NOT_FOUND: SavedModel file does not exist}, }"
    )


def test_an_empty_folder_is_waited_on(make_store, tmp_path):
    store = make_store(ModelConfig("half", tmp_path))
    should_stop = threading.Event()
    should_stop.set()
    store.wait_until_available(should_stop)
    write(tmp_path / "1")
    store.wait_until_available()
    assert answer(store) == (1, "1")
    store.stop()
    assert states(store) == {1: END}


def test_an_empty_folder_that_is_looked_at_once(make_store, tmp_path):
    store = make_store(ModelConfig("half", tmp_path), poll_seconds=0)
    assert error_of(store.wait_until_available).startswith(
        f"NOT_FOUND: no version of model half under {tmp_path}"
    )


def test_a_base_path_that_is_away_changes_nothing(make_store, tmp_path, wait_until, caplog):
    base_path = tmp_path / "models"
    write(base_path / "1")
    store = make_store(
        ModelConfig("half", base_path),
        ModelConfig("strange", Path("/a\0b")),
        ModelConfig("some", base_path, Specific({2})),
    )
    wait_until(lambda: states(store) == {1: AVAILABLE})
    base_path.rename(tmp_path / "elsewhere")
    wait_until(lambda: "cannot look for versions of half, nothing changes" in caplog.text)
    assert answer(store) == (1, "1")
    (tmp_path / "elsewhere").rename(base_path)
    write(base_path / "2")
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})
    warnings = [record.message for record in caplog.records]
    for text in ("versions of half", "versions of strange", "no 2 of some under"):
        assert sum(text in warning for warning in warnings) == 1, text  # not at every look


# --- labels and a new configuration ---------------------------------------------------------

REFUSED = (
    "FAILED_PRECONDITION: Request to assign label to version {} of model half, which is not "
    "currently available for inference"
)


def test_labels_at_the_start(loader, make_store, tmp_path):
    write(tmp_path / "1")
    config = ModelConfig("half", tmp_path, labels={"stable": 1})
    store = ModelStore([config], load=loader)
    assert error_of(store.start) == REFUSED.format(1)
    store.stop()

    store = make_store(config, allow_labels_for_unavailable=True)
    store.wait_until_available()
    assert answer(store, label="stable") == (1, "1")


def test_labels(make_store, tmp_path, wait_until):
    for number in ("1", "2"):
        write(tmp_path / number)
    store = make_store(ModelConfig("half", tmp_path, All()))
    wait_until(lambda: states(store) == {1: AVAILABLE, 2: AVAILABLE})
    unknown = "INVALID_ARGUMENT: Unrecognized servable version label: stable"
    assert error_of(answer, store, label="stable") == unknown

    store.reload([ModelConfig("half", tmp_path, All(), {"stable": 1, "canary": 2})])
    assert [answer(store, label=label)[0] for label in ("stable", "canary")] == [1, 2]
    assert error_of(answer, store, "no", label="stable") == unknown

    # What is refused changes nothing: neither labels nor models.
    bad = [ModelConfig("half", tmp_path, Specific({2}), {"stable": 2, "canary": 3})]
    assert error_of(store.reload, bad) == REFUSED.format(3)
    assert error_of(store.reload, [*bad, ModelConfig("new", tmp_path)]) == REFUSED.format(3)
    assert [answer(store, label=label)[0] for label in ("stable", "canary")] == [1, 2]
    assert store.models() == ["half"]

    store.reload([ModelConfig("half", tmp_path, All(), {"stable": 2})])
    assert answer(store, label="stable") == (2, "2")
    assert "label: canary" in error_of(answer, store, label="canary")
    shutil.rmtree(tmp_path / "2")
    wait_until(lambda: states(store)[2] is END)
    assert error_of(answer, store, label="stable") == (
        "NOT_FOUND: Servable not found for request: Specific(half, 2)"
    )


def test_reload(make_store, tmp_path, wait_until):
    for name in ("a", "b", "c"):
        write(tmp_path / name / "1", name)
    a, b, c = (ModelConfig(name, tmp_path / name) for name in "abc")
    store = make_store(a, b, poll_seconds=0)
    store.wait_until_available()
    with store.borrow("b"):
        store.reload([a, c])
        assert answer(store, "c") == (1, "c")  # it was waited for
        assert "Latest(b)" in error_of(answer, store, "b")
        assert states(store, "b") == {1: UNLOADING}
    wait_until(lambda: states(store, "b") == {1: END})  # and stays listed
    assert store.models() == ["a", "c"]

    store.reload([b, a, c])
    assert answer(store, "b") == (1, "b")
    store.reload([])
    assert store.models() == []
    assert "Latest(a)" in error_of(answer, store, "a")
    wait_until(lambda: states(store, "a") == states(store, "b") == states(store, "c") == {1: END})


def test_folders_are_not_looked_at_again_unless_their_model_changes(
    make_store, tmp_path, wait_until
):
    write(tmp_path / "a" / "1")
    write(tmp_path / "b" / "1")
    a, b = (ModelConfig(name, tmp_path / name) for name in "ab")
    store = make_store(a, poll_seconds=0)
    store.wait_until_available()
    write(tmp_path / "a" / "2")
    store.reload([a, b])  # a would be looked at before b
    assert states(store, "a") == {1: AVAILABLE}
    store.reload([ModelConfig("a", tmp_path / "a", All()), b])
    wait_until(lambda: states(store, "a") == {1: AVAILABLE, 2: AVAILABLE})


def test_reload_of_a_model_that_cannot_be_loaded(make_store, tmp_path, wait_until):
    write(tmp_path / "a" / "1")
    (tmp_path / "b" / "1").mkdir(parents=True)
    a, b = (ModelConfig(name, tmp_path / name) for name in "ab")
    store = make_store(a)
    store.wait_until_available()
    assert error_of(store.reload, [b]) == (
        "UNKNOWN: 1 model(s) did not become available: {{{name: b version: 1} due to error: "
        "NOT_FOUND: SavedModel file does not exist}, }"
    )
    assert store.models() == ["b"]  # the new configuration is in force all the same
    wait_until(lambda: states(store, "a") == {1: END})
    store.reload([b])  # it is no longer new
    store.reload([])
    assert "1 model(s) did not" in error_of(store.reload, [b])  # now it is


def test_reload_waits_for_an_empty_base_path(make_store, tmp_path, wait_until):
    (tmp_path / "b").mkdir()
    store = make_store()
    should_stop = threading.Event()
    errors = []
    b = ModelConfig("b", tmp_path / "b")
    waiters = [
        threading.Thread(
            target=store.reload, args=[[b]], kwargs={"should_stop": should_stop.is_set}
        ),
        threading.Thread(target=lambda: errors.append(error_of(store.reload, [b]))),
    ]
    for waiter in waiters:
        waiter.start()
    wait_until(lambda: store.models() == ["b"])
    should_stop.set()
    waiters[0].join()
    assert waiters[1].is_alive()
    store.stop()
    waiters[1].join()
    assert errors == ["CANCELLED: The server is stopping"]


def test_a_model_that_is_taken_out_while_it_is_waited_for(make_store, tmp_path, wait_until):
    errors = []
    store = make_store()
    b = ModelConfig("b", tmp_path)
    waiter = threading.Thread(target=lambda: errors.append(error_of(store.reload, [b])))
    waiter.start()
    wait_until(lambda: store.models() == ["b"])
    store.reload([])
    waiter.join()
    assert errors == ["ABORTED: model b was taken out of the configuration meanwhile"]


def test_another_base_path(make_store, loader, tmp_path, wait_until):
    for number in ("1", "2"):
        write(tmp_path / "old" / number, "old")
        write(tmp_path / "new" / number, "new")
    write(tmp_path / "new" / "3", "new")
    store = make_store(ModelConfig("half", tmp_path / "old", Latest(2)))
    wait_until(lambda: states(store) == {1: AVAILABLE, 2: AVAILABLE})
    store.reload([ModelConfig("half", tmp_path / "new", Latest(2))])
    wait_until(lambda: states(store) == {1: END, 2: AVAILABLE, 3: AVAILABLE})
    # As in TensorFlow Serving a version is known by its number alone: 2 is not loaded again.
    assert answer(store, version=2) == (2, "old")
    assert answer(store) == (3, "new")

    gate = loader.hold("half", 9)
    write(tmp_path / "newer" / "9", "newer")
    store.reload([ModelConfig("half", tmp_path / "newer")])
    wait_until(lambda: states(store).get(9) is LOADING)
    assert answer(store) == (3, "new")  # until then
    gate.set()
    wait_until(lambda: answer(store) == (9, "newer"))
    wait_until(lambda: states(store) == {1: END, 2: END, 3: END, 9: AVAILABLE})

    store.reload([ModelConfig("half", tmp_path / "nowhere")])
    assert answer(store) == (9, "newer")


# --- requests and races ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "INVALID_ARGUMENT: ModelSpec has no name specified."),
        (
            {"name": "half", "label": "stable"},
            "INVALID_ARGUMENT: Unrecognized servable version label: stable",
        ),
        ({"name": "no"}, "NOT_FOUND: Servable not found for request: Latest(no)"),
        (
            {"name": "half", "version": 9},
            "NOT_FOUND: Servable not found for request: Specific(half, 9)",
        ),
    ],
)
def test_borrow_errors(make_store, tmp_path, arguments: dict, message: str):
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    assert error_of(answer, store, **arguments) == message


def test_status_errors(make_store, tmp_path):
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    assert error_of(store.status, "no") == "NOT_FOUND: Could not find any versions of model no"
    assert error_of(store.status, "half", version=9) == (
        "NOT_FOUND: Could not find version 9 of model half"
    )


def test_no_request_fails_while_versions_change(make_store, loader, tmp_path, wait_until):
    for number in ("1", "2"):
        write(tmp_path / number)
    store = make_store(ModelConfig("half", tmp_path, Specific({2})), poll_seconds=0)
    store.wait_until_available()
    is_done = threading.Event()
    answers, failures = set(), []

    def ask() -> None:
        while not is_done.wait(0.0005):
            try:
                answers.add(answer(store))
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=ask) for _ in range(16)]
    for client in clients:
        client.start()
    for swap in range(30):
        kept, gone = (1, 2) if swap % 2 == 0 else (2, 1)
        store.configure([ModelConfig("half", tmp_path, Specific({kept}))])
        wait_until(lambda gone=gone: states(store)[gone] is END)
        assert states(store)[kept] is AVAILABLE
    is_done.set()
    for client in clients:
        client.join()
    assert not failures
    assert answers == {(1, "1"), (2, "2")}
    assert len(loader.calls) == 31
    assert sum(line() is not None for line in loader.lines) == 1
    assert store._models["half"].versions.serving[None].running_requests == 0


def test_reloads_from_all_sides(make_store, loader, tmp_path, wait_until):
    """Whatever the order, the last configuration is what is served, and the rest is gone."""
    configs = [ModelConfig(name, tmp_path / name) for name in "abc"]
    for config in configs:
        write(config.base_path / "1")
    store = make_store(poll_seconds=0.001, num_load_threads=2)

    def reload_often(index: int) -> None:
        for turn in range(20):
            store.configure([configs[(index + turn) % 3], configs[(index + 2 * turn) % 3]])

    threads = [threading.Thread(target=reload_often, args=[index]) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.reload(configs[:1])
    assert answer(store, "a") == (1, "1")
    wait_until(lambda: states(store, "b").get(1) in (END, None))
    wait_until(lambda: states(store, "c").get(1) in (END, None))
    wait_until(lambda: sum(line() is not None for line in loader.lines) == 1)


def test_stop_waits_for_a_load_and_unloads_it(make_store, loader, tmp_path, wait_until):
    write(tmp_path / "1")
    gate = loader.hold("half", 1)
    store = make_store(ModelConfig("half", tmp_path))
    wait_until(lambda: states(store) == {1: LOADING})
    stopper = threading.Thread(target=store.stop)
    stopper.start()
    wait_until(lambda: store._is_stopping)
    assert stopper.is_alive()
    gate.set()
    stopper.join()
    assert states(store) == {1: END}
    assert loader.lines[0]() is None
    assert error_of(store.reload, []) == "CANCELLED: The server is stopping"
    assert error_of(store.wait_until_available).startswith("CANCELLED")


def test_stop_does_not_wait_for_requests(make_store, loader, tmp_path, wait_until):
    write(tmp_path / "1")
    store = make_store(ModelConfig("half", tmp_path))
    store.wait_until_available()
    with store.borrow("half") as line:
        store.stop()
        assert line.answer() == (1, "1")
        assert states(store) == {1: UNLOADING}
    del line
    wait_until(lambda: states(store) == {1: END})
    assert loader.lines[0]() is None
    store.stop()


# --- real models ----------------------------------------------------------------------------


def test_real_models_are_swapped_and_leave_nothing_behind(
    make_store, publish, tmp_path, wait_until
):
    servables = []
    load_version = Loader(metrics=Metrics())

    def load(name: str, path: Path, version: int) -> Servable:
        servable = load_version(name, path, version)
        servables.append(weakref.ref(servable))
        servables.append(weakref.ref(servable._session))
        return servable

    def newest() -> tuple[int, float]:
        with store.borrow("half") as servable:
            return servable.version, servable.predict(ONE)["y"].item()

    publish("half_plus_two", tmp_path, "1")
    store = make_store(ModelConfig("half", tmp_path), load=load)
    store.wait_until_available()
    assert newest() == (1, 2.5)
    publish("half_plus_three", tmp_path, "2")
    wait_until(lambda: states(store) == {2: AVAILABLE, 1: END})
    assert newest() == (2, 3.5)
    gc.collect()
    assert [servable() is None for servable in servables] == [True, True, False, False]
