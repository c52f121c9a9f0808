"""The models and their versions: watch the folders, load, swap, unload, lend to requests.

A new version is loaded before the old one goes, and the old one goes when its last request is
done, so that a swap drops no request. A version that cannot be loaded leaves the old one serving.

Who does what: one thread watches the base paths, begins loads and closes what is no longer
used. Each load has a thread of its own, so that a slow one holds up nothing. What becomes of a
version is decided in `version_states`. One lock guards all of it; nobody reads a file, loads,
closes or logs while holding it.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from serve.errors import Code, ServingError, invalid_argument
from serve.memory import give_back_memory
from serve.model_config import ModelConfig, check_labels
from serve.servable import Servable
from serve.version_folders import LARGEST_VERSION, find_versions, what_is_amiss
from serve.version_states import ModelVersions, State, Version, VersionStatus

__all__ = ["LARGEST_VERSION", "ModelStore", "State", "VersionStatus"]

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Model:
    """A model that is or was configured; one that is left out keeps its list of versions."""

    versions: ModelVersions
    config: ModelConfig | None = None
    was_looked_at: bool = False  # since it was configured
    findings: frozenset[str] = frozenset()  # what is amiss in its base path, already logged


class ModelStore:
    """Keeps the wanted versions of each model loaded.

    Args:
        configs: the models.
        load: makes a Servable of (name of the model, folder, version), or raises ServingError.
            It is called in a thread of its own.
        poll_seconds: how long to wait between two looks at the folders; 0 looks only once, and
            once more when the configuration of the model changes.
        max_num_load_retries: how many more times a load that failed is tried.
        load_retry_interval: seconds until it is tried again.
        allow_labels_for_unavailable: a label that is new may be given to a version that is not
            available (yet).
        num_load_threads: how many versions may be loaded at a time; 0 is one.

    Example:
        >>> store = ModelStore([ModelConfig("news", Path("/models/news"))], load=Loader(...))
        >>> store.start()
        >>> store.wait_until_available()
        >>> with store.borrow("news") as servable:
        ...     outputs = servable.predict({"text": texts})
        >>> store.stop()
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        *,
        load: Callable[[str, Path, int], Servable],
        poll_seconds: float = 1.0,
        max_num_load_retries: int = 5,
        load_retry_interval: float = 60.0,
        allow_labels_for_unavailable: bool = False,
        num_load_threads: int = 0,
    ) -> None:
        self._first_configs = list(configs)
        self._load_servable = load
        self._poll_seconds = poll_seconds
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._num_load_threads = max(num_load_threads, 1)
        self._make_versions = functools.partial(
            ModelVersions,
            max_retries=max_num_load_retries,
            retry_seconds=load_retry_interval,
            report=lambda level, text: self._messages.append((level, text)),
        )
        self._lock = threading.Lock()  # guards everything below
        self._changed = threading.Condition(self._lock)  # told of what others may wait for
        self._models: dict[str, _Model] = {}
        self._labels: dict[str, Mapping[str, int]] = {}
        self._messages: list[tuple[int, str]] = []  # to be logged when the lock is free
        self._look_at: float | None = None  # when to look at the folders next; None: never
        self._num_loading = 0
        self._is_stopping = False
        self._thread = threading.Thread(target=self._manage, name="model_store", daemon=True)

    # --- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to watch and to load, in threads of its own.

        Raises:
            ServingError: FAILED_PRECONDITION for a label, as no version is available yet.
        """
        self.configure(self._first_configs)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch and unloads every version.

        A load that is going on is waited for. A version with requests that are running is
        closed when the last of them is done; that is not waited for.
        """
        with self._changed:
            self._is_stopping = True
            for model in self._models.values():
                model.versions.want({}, time.monotonic())
            self._changed.notify_all()
            if not self._thread.is_alive():
                return
            self._changed.wait_for(self._is_still)
            if not self._has_ended():
                return
        self._thread.join()

    def configure(self, configs: Sequence[ModelConfig]) -> list[str]:
        """Follows a new configuration, which replaces all of the old; does not wait for loads.

        A model that is left out is unloaded. One whose base path or policy changes goes on with
        its old versions until the new ones are available. If a label is refused, nothing changes.

        Returns:
            The names of the models that neither have become available nor failed since they
            were configured.

        Raises:
            ServingError: FAILED_PRECONDITION, a label of a version that is not available;
                CANCELLED, the store is stopping.
        """
        with self._changed:
            if self._is_stopping:
                raise _stopping()
            check_labels(
                configs,
                available={name: model.versions.serving for name, model in self._models.items()},
                old_labels=self._labels,
                allow_unavailable=self._allow_labels_for_unavailable,
            )
            self._labels = {config.name: dict(config.labels) for config in configs}
            self._remove_all_but({config.name for config in configs})
            for config in configs:
                self._configure_model(config)
            self._look_at = time.monotonic()
            self._changed.notify_all()
            return [
                config.name
                for config in configs
                if self._models[config.name].versions.first_outcome is None
            ]

    def reload(
        self, configs: Sequence[ModelConfig], *, should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Follows a new configuration and waits for the models that are new, or `should_stop`,
        which is asked now and then.

        Raises:
            ServingError: those of `configure`; or a new model failed to load: then the new
                configuration is in force all the same.
        """
        self._wait_for(self.configure(configs), "model", should_stop)

    def wait_until_available(self, should_stop: threading.Event | None = None) -> None:
        """Waits until every model has had a version to serve, or until `should_stop` is set.

        Raises:
            ServingError: the load of a model failed for good, or its folder was looked at once
                (poll_seconds=0) and has no version.
        """
        self._wait_for(self.models(), "servable", should_stop and should_stop.is_set)

    # --- requests --------------------------------------------------------------------------

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
            self._release(entry)

    def status(self, name: str, *, version: int | None = None) -> list[VersionStatus]:
        """The state of every version that was ever seen, or of one.

        Raises:
            ServingError: NOT_FOUND.
        """
        with self._lock:
            model = self._models.get(name)
            statuses = model.versions.statuses() if model else []
        if version is not None:
            statuses = [status for status in statuses if status.version == version]
        if not statuses:
            what = "any versions" if version is None else f"version {version}"
            raise ServingError(Code.NOT_FOUND, f"Could not find {what} of model {name}")
        return statuses

    def models(self) -> list[str]:
        """The names of the models that are configured."""
        with self._lock:
            return [name for name, model in self._models.items() if model.config]

    def _acquire(self, name: str, version: int | None, label: str) -> tuple[Version, Servable]:
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        with self._lock:
            if label:
                version = self._labels.get(name, {}).get(label)
                if version is None:
                    raise invalid_argument(f"Unrecognized servable version label: {label}")
            model = self._models.get(name)
            entry = model.versions.serving.get(version) if model else None
            if entry is not None and entry.servable is not None:
                entry.running_requests += 1
                return entry, entry.servable
        request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {request}")

    def _release(self, entry: Version) -> None:
        with self._lock:
            entry.running_requests -= 1
            if entry.is_idle:
                self._changed.notify_all()

    # --- configuration, with the lock held -------------------------------------------------

    def _remove_all_but(self, names: set[str]) -> None:
        for name, model in self._models.items():
            if model.config and name not in names:
                model.config = None
                model.versions.want({}, time.monotonic())
                self._messages.append((logging.INFO, f"model {name} is no longer configured"))

    def _configure_model(self, config: ModelConfig) -> None:
        model = self._models.setdefault(config.name, _Model(self._make_versions(config.name)))
        if model.config == config:
            return
        if model.config is None:
            model.versions.first_outcome = None
        labels = "".join(f", {label} is {n}" for label, n in sorted(config.labels.items()))
        text = f"model {config.name}: {config.policy} of {config.base_path}{labels}"
        self._messages.append((logging.INFO, text))
        model.config = config
        model.was_looked_at = False

    # --- waiting ---------------------------------------------------------------------------

    def _wait_for(
        self, names: Sequence[str], noun: str, should_stop: Callable[[], bool] | None
    ) -> None:
        with self._changed:
            outcomes = [self._outcome(name) for name in names]
            while None in outcomes:
                # The time is for should_stop, which cannot notify.
                self._changed.wait(timeout=0.2 if should_stop else None)
                if should_stop and should_stop():
                    return
                outcomes = [self._outcome(name) for name in names]
        failed = {
            name: outcome
            for name, outcome in zip(names, outcomes, strict=True)
            if outcome and outcome.code is not Code.OK
        }
        if failed:
            raise _not_available(noun, failed)

    def _outcome(self, name: str) -> VersionStatus | None:
        """How the first load went, with the lock held; None: it is not over."""
        model = self._models[name]
        if self._is_stopping:
            raise _stopping()
        if model.config is None:
            raise ServingError(
                Code.ABORTED, f"model {name} was taken out of the configuration meanwhile"
            )
        is_hopeless = self._poll_seconds <= 0 and model.was_looked_at and not model.versions.wanted
        if model.versions.first_outcome is None and is_hopeless:
            raise ServingError(
                Code.NOT_FOUND, f"no version of model {name} under {model.config.base_path}"
            )
        return model.versions.first_outcome

    def _is_still(self) -> bool:
        """Nothing is loaded, or being so, but what running requests hold; the lock is held."""
        return all(
            version.status.state is State.END or version.running_requests
            for _, version in self._all_versions()
        )

    def _has_ended(self) -> bool:
        return all(version.status.state is State.END for _, version in self._all_versions())

    def _all_versions(self) -> Iterator[tuple[ModelVersions, Version]]:
        for model in self._models.values():
            for version in model.versions.versions.values():
                yield model.versions, version

    # --- the managing thread ---------------------------------------------------------------

    def _manage(self) -> None:
        """Looks at the folders, closes and begins loads, each when it is time, and waits."""
        while True:
            self._look_if_due()
            with self._lock:
                idle = [item for item in self._all_versions() if item[1].is_idle]
                loads = self._begin_due_loads()
                messages, self._messages = self._messages, []
                if not (idle or loads or messages):
                    if self._is_stopping and self._has_ended():
                        return
                    self._changed.wait(self._seconds_to_next())
            for level, text in messages:
                log.log(level, text)
            for versions, version, path in loads:
                self._start_load(versions, version, path)
            for versions, version in idle:
                self._close(versions, version)

    def _seconds_to_next(self) -> float | None:
        """How long nothing is to be done unless something changes."""
        times = [] if self._look_at is None or self._is_stopping else [self._look_at]
        if self._num_loading < self._num_load_threads:
            times += [version.load_at or 0 for _, version in self._waiting()]
        return max(min(times) - time.monotonic(), 0) if times else None

    def _look_if_due(self) -> None:
        with self._lock:
            is_due = self._look_at is not None and time.monotonic() >= self._look_at
            if self._is_stopping or not is_due:
                return
            polls = self._poll_seconds > 0
            self._look_at = time.monotonic() + self._poll_seconds if polls else None
            configs = [
                model.config
                for model in self._models.values()
                if model.config and (polls or not model.was_looked_at)
            ]
        for config in configs:
            self._look(config)

    def _look(self, config: ModelConfig) -> None:
        """Finds what is to be served of a model. If its folder cannot be read, nothing changes."""
        wanted = None
        try:
            folders = find_versions(config.base_path)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            findings = {f"cannot look for versions of {config.name}, nothing changes: {error}"}
        else:
            wanted = config.policy.wanted(folders)
            findings = what_is_amiss(config, folders)
        with self._changed:
            model = self._models[config.name]
            if model.config is not config or self._is_stopping:
                return  # the configuration changed meanwhile
            if wanted is not None and wanted != model.versions.wanted:
                model.versions.want(wanted, time.monotonic())
            for finding in sorted(findings - model.findings):
                self._messages.append((logging.WARNING, finding))
            model.findings = frozenset(findings)
            if not model.was_looked_at:
                model.was_looked_at = True
                self._changed.notify_all()

    # --- loads and unloads -----------------------------------------------------------------

    def _waiting(self) -> list[tuple[ModelVersions, Version]]:
        """Those that are to be loaded, in the order of the times."""
        waiting = [item for item in self._all_versions() if item[1].load_at is not None]
        return sorted(waiting, key=lambda item: item[1].load_at or 0)

    def _begin_due_loads(self) -> list[tuple[ModelVersions, Version, Path]]:
        now = time.monotonic()
        loads = []
        for versions, version in self._waiting():
            is_due = (version.load_at or 0) <= now
            if is_due and self._num_loading < self._num_load_threads:
                self._num_loading += 1
                loads.append((versions, version, versions.begin_load(version)))
        return loads

    def _start_load(self, versions: ModelVersions, version: Version, path: Path) -> None:
        name = f"load {versions.name} {version.status.version}"
        arguments = (versions, version, path)
        thread = threading.Thread(target=self._load, name=name, args=arguments, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no thread left: may be better later
            self._end_load(versions, version, (Code.RESOURCE_EXHAUSTED, str(error)))

    def _load(self, versions: ModelVersions, version: Version, path: Path) -> None:
        try:
            outcome = self._load_servable(versions.name, path, version.status.version)
        except ServingError as error:
            outcome = error.code, error.message
        except Exception as error:  # whatever it is, the version must not be loading for ever
            log.exception("loading version %d of %s", version.status.version, versions.name)
            outcome = Code.INTERNAL, repr(error)
        self._end_load(versions, version, outcome)

    def _end_load(
        self, versions: ModelVersions, version: Version, outcome: Servable | tuple[Code, str]
    ) -> None:
        with self._changed:
            self._num_loading -= 1
            if isinstance(outcome, tuple):
                versions.fail_load(version, *outcome, time.monotonic())
            else:
                versions.end_load(version, outcome, time.monotonic())
            self._changed.notify_all()

    def _close(self, versions: ModelVersions, version: Version) -> None:
        # Only this thread takes servables away, and nobody can borrow this one any more.
        with self._lock:
            servable, version.servable = version.servable, None
        try:
            if servable:
                servable.close()
        except Exception:
            log.exception("closing version %d of %s", version.status.version, versions.name)
        del servable  # its memory is free before the version is said to have ended
        give_back_memory()
        with self._changed:
            versions.end_unload(version, time.monotonic())
            self._changed.notify_all()


def _not_available(noun: str, failed: Mapping[str, VersionStatus]) -> ServingError:
    models = "".join(
        f"{{{{name: {name} version: {status.version}}} due to error: "
        f"{status.code.name}: {status.message}}}, "
        for name, status in failed.items()
    )
    text = f"{len(failed)} {noun}(s) did not become available: {{{models}}}"
    return ServingError(Code.UNKNOWN, text)


def _stopping() -> ServingError:
    return ServingError(Code.CANCELLED, "The server is stopping")
