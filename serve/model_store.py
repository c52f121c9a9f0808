"""The models and their versions: watch the folders, load, swap, unload.

A model is a base path with one folder a version, named by its number. The newest is served. A
new one is loaded before the old one goes, and the old one goes when its last request is done, so
that a swap drops no request. A version that cannot be loaded leaves the old one serving.
"""

import contextlib
import dataclasses
import enum
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from serve.errors import Code, ServingError, invalid_argument
from serve.servable import Servable, load_servable

LARGEST_VERSION = 2**63 - 1

log = logging.getLogger(__name__)


class State(enum.IntEnum):
    """The life of a version; the numbers are those of ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass
class VersionStatus:
    """What the status request tells of a version."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


@dataclasses.dataclass
class _Version:
    """A version that was ever seen; `servable` is set from AVAILABLE until END."""

    status: VersionStatus
    servable: Servable | None = None
    running_requests: int = 0
    folder_was_gone: bool = False

    @property
    def is_failed(self) -> bool:
        return self.status.code is not Code.OK


class ModelStore:
    """Keeps the newest version of each model loaded.

    Args:
        base_paths: name of a model -> the folder of its versions.
        poll_seconds: how long to wait between two looks at the folders; 0 looks only once.

    Example:
        >>> store = ModelStore({"news": Path("/models/news")})
        >>> store.start()
        >>> store.wait_until_available()
        >>> with store.borrow("news") as servable:
        ...     outputs = servable.predict({"text": texts})
        >>> store.stop()
    """

    def __init__(self, base_paths: Mapping[str, Path], *, poll_seconds: float = 1.0) -> None:
        self._base_paths = dict(base_paths)
        self._poll_seconds = poll_seconds
        self._versions: dict[str, dict[int, _Version]] = {name: {} for name in base_paths}
        self._is_stopping = threading.Event()
        self._is_watching = True
        self._is_ready = False  # every model was available once
        # Guards _versions and all in it; told of every change of a state.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._poll, name="model_store", daemon=True)

    def start(self) -> None:
        """Begins to watch, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch and unloads every version as its last request is done."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for name, versions in self._versions.items():
            for number in list(versions):
                self._unload(name, number)

    def wait_until_available(self, should_stop: threading.Event | None = None) -> None:
        """Waits until every model has a version to serve, or until `should_stop` is set.

        Raises:
            ServingError: the load of a model failed, or its folder was looked at once
                (poll_seconds=0) and has no version.
        """
        with self._changed:
            while not (should_stop and should_stop.is_set()):
                missing = [name for name in self._versions if not self._available(name)]
                for name in missing:
                    self._raise_failure(name)
                if not missing:
                    self._is_ready = True
                    return
                self._changed.wait(timeout=0.2)  # for should_stop, which cannot notify

    @contextlib.contextmanager
    def borrow(
        self, name: str, *, version: int | None = None, label: str = ""
    ) -> Iterator[Servable]:
        """Lends a servable; it stays loaded until it is given back.

        Raises:
            ServingError: no such model, version or label.
        """
        entry, servable = self._acquire(name, version, label)
        try:
            yield servable
        finally:
            self._release(name, entry)

    def status(self, name: str, *, version: int | None = None) -> list[VersionStatus]:
        """The state of every version that was ever seen, or of one.

        Raises:
            ServingError: NOT_FOUND.
        """
        with self._changed:
            versions = self._versions.get(name, {})
            if version is None:
                if not versions:
                    raise ServingError(
                        Code.NOT_FOUND, f"Could not find any versions of model {name}"
                    )
                numbers = sorted(versions, reverse=True)
            else:
                if version not in versions:
                    raise ServingError(
                        Code.NOT_FOUND, f"Could not find version {version} of model {name}"
                    )
                numbers = [version]
            return [dataclasses.replace(versions[number].status) for number in numbers]

    # --- requests --------------------------------------------------------------------------

    def _acquire(self, name: str, version: int | None, label: str) -> tuple[_Version, Servable]:
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        if label:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        with self._changed:
            available = self._available(name)
            number = max(available, default=None) if version is None else version
            if number is None or number not in available:
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {request}")
            entry = self._versions[name][number]
            entry.running_requests += 1
            return entry, available[number]

    def _release(self, name: str, entry: _Version) -> None:
        with self._changed:
            entry.running_requests -= 1
        self._close_if_idle(name, entry)

    def _available(self, name: str) -> dict[int, Servable]:
        return {
            number: entry.servable
            for number, entry in self._versions.get(name, {}).items()
            if entry.servable and entry.status.state is State.AVAILABLE
        }

    def _raise_failure(self, name: str) -> None:
        for entry in self._versions[name].values():
            if entry.is_failed:
                status = entry.status
                raise ServingError(
                    status.code,
                    f"version {status.version} of model {name} cannot be loaded: {status.message}",
                )
        if not self._is_watching:
            raise ServingError(
                Code.NOT_FOUND, f"no version of model {name} under {self._base_paths[name]}"
            )

    # --- the watching thread ---------------------------------------------------------------

    def _poll(self) -> None:
        for name in self._base_paths:
            self._update(name)
            if not self._versions[name]:
                log.warning("no version of %s yet under %s", name, self._base_paths[name])
        while self._poll_seconds and not self._is_stopping.wait(self._poll_seconds):
            for name in self._base_paths:
                self._update(name)
        with self._changed:
            self._is_watching = False

    def _update(self, name: str) -> None:
        """Brings what is loaded in line with what lies in the base path."""
        try:
            folders = find_versions(self._base_paths[name])
        except OSError as error:
            log.warning("cannot look for versions of %s, going on with the old: %s", name, error)
            return
        versions = self._versions[name]
        newest = max(folders, default=None)
        if newest is not None and self._should_load(name, newest, folders):
            self._load(name, newest, folders[newest])
        # Nothing to serve in its place: the old ones stay.
        if newest is not None and versions[newest].status.state is not State.AVAILABLE:
            return
        for number in list(versions):
            if number != newest:
                self._unload(name, number)

    def _should_load(self, name: str, newest: int, folders: Mapping[int, Path]) -> bool:
        """A version that failed is tried again only after its folder was gone for a while."""
        with self._changed:
            for number, entry in self._versions[name].items():
                if number not in folders:
                    entry.folder_was_gone = True
            entry = self._versions[name].get(newest)
            if entry is None:
                return True
            has_ended = entry.status.state is State.END
            return has_ended and (entry.folder_was_gone or not entry.is_failed)

    def _load(self, name: str, number: int, path: Path) -> None:
        entry = _Version(VersionStatus(number, State.LOADING))
        with self._changed:
            self._versions[name][number] = entry
        try:
            servable = load_servable(path, number)
        except ServingError as error:
            if self._is_ready:  # before that, wait_until_available tells it
                log.error("version %d of %s cannot be loaded: %s", number, name, error.message)
            with self._changed:
                entry.status = VersionStatus(number, State.END, error.code, error.message)
                self._changed.notify_all()
            return
        log.info("version %d of %s is loaded", number, name)
        with self._changed:
            entry.servable = servable
            entry.status.state = State.AVAILABLE
            self._changed.notify_all()

    def _unload(self, name: str, number: int) -> None:
        with self._changed:
            entry = self._versions[name][number]
            if entry.status.state is not State.AVAILABLE:
                return
            entry.status.state = State.UNLOADING
        self._close_if_idle(name, entry)

    def _close_if_idle(self, name: str, entry: _Version) -> None:
        """Closes a version that is to go: called on unload and after each of its requests."""
        with self._changed:
            if entry.status.state is not State.UNLOADING or entry.running_requests:
                return
            servable, entry.servable = entry.servable, None
        if servable is None:  # another thread is at it
            return
        servable.close()
        with self._changed:
            entry.status.state = State.END
            self._changed.notify_all()
        log.info("version %d of %s is unloaded", entry.status.version, name)


def find_versions(base_path: Path) -> dict[int, Path]:
    """Number -> folder of the versions in a base path; leading zeros are allowed.

    Names that are not numbers are ignored: copy a new version under such a name, then rename
    it, so that it is never seen half written.
    """
    folders = {}
    for path in sorted(base_path.iterdir()):
        if path.name.isascii() and path.name.isdigit() and path.is_dir():
            number = int(path.name)
            if number <= LARGEST_VERSION:
                folders[number] = path
    return folders
