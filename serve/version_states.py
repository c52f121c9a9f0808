"""The versions of one model: what becomes of each, decided without threads, files or sessions.

A version is wanted or not, by what lies in the base path and by the policy. `ModelVersions` is
told what is wanted and how loads and unloads went; it tells what is to be done next. The store
does that, and holds its lock around every call.
"""

import dataclasses
import enum
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from serve.errors import Code

if TYPE_CHECKING:
    from serve.servable import Servable


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
class Version:
    """A version that was ever seen."""

    status: VersionStatus
    servable: "Servable | None" = None  # from the end of its load to the start of its unload
    running_requests: int = 0
    load_at: float | None = None  # when its next load may begin; None: none is due
    failures: list[VersionStatus] = dataclasses.field(default_factory=list)  # of its loads
    is_given_up: bool = False  # failed for good: not loaded again until it was unwanted once

    @property
    def is_idle(self) -> bool:
        """It is to be closed now: its last request is done."""
        return self.servable is not None and (
            self.status.state is State.UNLOADING and not self.running_requests
        )


@dataclasses.dataclass(frozen=True)
class Steps:
    """Numbers of the versions to load, newest first, and to unload, oldest first."""

    load: list[int]
    unload: list[int]


def next_steps(
    *, wanted: Collection[int], serving: Collection[int], loadable: Collection[int]
) -> Steps:
    """TensorFlow Serving's AvailabilityPreservingPolicy: load the new, then unload the old.

    As long as no wanted version serves, the newest of the others goes on, even if the wanted
    ones cannot be loaded. When nothing is wanted, all go.

    Args:
        wanted: the versions that are to be served.
        serving: those that are.
        loadable: those that are neither loaded, nor being loaded or unloaded, nor given up.
    """
    unwanted = sorted(set(serving) - set(wanted))
    can_all_go = not wanted or bool(set(serving) & set(wanted))
    return Steps(
        load=sorted(set(wanted) & set(loadable), reverse=True),
        unload=unwanted if can_all_go else unwanted[:-1],
    )


class ModelVersions:
    """Every version of a model that was ever seen.

    Args:
        name: the model, for messages.
        max_retries: how many more times a load that failed is tried.
        retry_seconds: how long after it failed.
        report: is given (level, text) for the log; may not block.
    """

    def __init__(
        self,
        name: str,
        *,
        max_retries: int,
        retry_seconds: float,
        report: Callable[[int, str], None],
    ) -> None:
        self.name = name
        self.versions: dict[int, Version] = {}
        self.wanted: dict[int, Path] = {}
        # What requests can have: number -> version, and None -> the newest.
        self.serving: dict[int | None, Version] = {}
        # The first version that became available, or failed for good, since this was last None.
        self.first_outcome: VersionStatus | None = None
        self._max_retries = max_retries
        self._retry_seconds = max(retry_seconds, 0)
        self._report = report

    def want(self, folders: Mapping[int, Path], now: float) -> None:
        """These versions are to be served, and no others.

        Args:
            folders: number -> folder.
            now: time.monotonic, here and below.
        """
        self.wanted = dict(folders)
        self._step(now)

    def statuses(self) -> list[VersionStatus]:
        """Copies, the newest version first."""
        newest_first = sorted(self.versions.items(), reverse=True)
        return [dataclasses.replace(version.status) for _, version in newest_first]

    def begin_load(self, version: Version) -> Path:
        """Takes one whose `load_at` is over; gives the folder to load."""
        number = version.status.version
        version.load_at = None
        version.status.state = State.LOADING
        path = self.wanted[number]
        self._report(logging.INFO, f"version {number} of {self.name}: loading {path}")
        return path

    def end_load(self, version: Version, servable: "Servable", now: float) -> None:
        """It is loaded. If it is no longer wanted, it goes again without having served."""
        status = version.status
        version.servable = servable
        if status.version in self.wanted:
            status.state = State.AVAILABLE
            self.first_outcome = self.first_outcome or dataclasses.replace(status)
            self._say(logging.INFO, version, "is loaded")
        else:
            version.status = _cancelled(status.version, State.UNLOADING)
        self._step(now)

    def fail_load(self, version: Version, code: Code, message: str, now: float) -> None:
        """It could not be loaded: tries again later, or gives up."""
        number = version.status.version
        version.failures.append(VersionStatus(number, State.END, code, message))
        num_failures, num_tries = len(version.failures), self._max_retries + 1
        if num_failures < num_tries:
            version.load_at = now + self._retry_seconds
            when = f"try {num_failures} of {num_tries}, the next in {self._retry_seconds:g} s"
            self._say(logging.WARNING, version, f"cannot be loaded ({when}): {message}")
        else:
            self._say(logging.ERROR, version, f"cannot be loaded: {message}")
            version.status = version.failures[-1]
            version.is_given_up = True
            self.first_outcome = self.first_outcome or version.status
        self._step(now)

    def end_unload(self, version: Version, now: float) -> None:
        """It is closed."""
        version.status.state = State.END
        self._say(logging.INFO, version, "is unloaded")
        self._step(now)

    # --- decisions -------------------------------------------------------------------------

    def _step(self, now: float) -> None:
        for number, version in self.versions.items():
            if number not in self.wanted:
                self._stop_trying(version)
        steps = next_steps(
            wanted=self.wanted,
            serving=[number for number in self.versions if self._is_serving(number)],
            loadable=[number for number in self.wanted if self._is_loadable(number)],
        )
        for number in steps.load:
            self.versions[number] = Version(VersionStatus(number, State.START), load_at=now)
        for number in steps.unload:
            version = self.versions[number]
            version.status.state = State.UNLOADING
            if version.running_requests:
                text = f"takes no more requests, {version.running_requests} are still running"
                self._say(logging.INFO, version, text)
        self._update_serving()

    def _stop_trying(self, version: Version) -> None:
        """No more loads of a version that is not wanted; if it comes back, all begins anew."""
        version.is_given_up = False
        if version.load_at is None:
            return
        version.load_at = None
        number = version.status.version
        version.status = (version.failures or [_cancelled(number, State.END)])[-1]
        self._say(logging.INFO, version, "is not wanted any longer, before it could be loaded")

    def _is_serving(self, number: int) -> bool:
        return self.versions[number].status.state is State.AVAILABLE

    def _is_loadable(self, number: int) -> bool:
        version = self.versions.get(number)
        return version is None or (version.status.state is State.END and not version.is_given_up)

    def _update_serving(self) -> None:
        numbers = [number for number in self.versions if self._is_serving(number)]
        self.serving = {number: self.versions[number] for number in numbers}
        if numbers:
            self.serving[None] = self.versions[max(numbers)]

    def _say(self, level: int, version: Version, text: str) -> None:
        self._report(level, f"version {version.status.version} of {self.name} {text}")


def _cancelled(number: int, state: State) -> VersionStatus:
    return VersionStatus(number, state, Code.CANCELLED, "Loading of servable cancelled")
