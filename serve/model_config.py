"""Which models are to be served, from where and in which versions.

A model is a base path with one folder a version, named by its number; a policy tells which of
them are wanted. The configuration comes from a ModelServerConfig: a file, or a reload request.
"""

import dataclasses
import logging
import re
import threading
from collections.abc import Collection, Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensorflow_serving.config import model_server_config_pb2

from serve.errors import Code, ServingError, invalid_argument
from serve.text_protos import ModelServerConfig, read_text_proto

if TYPE_CHECKING:
    from serve.model_store import ModelStore

PLATFORM = "tensorflow"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Latest:
    """The newest `count` versions."""

    count: int = 1

    def wanted(self, folders: Mapping[int, Path]) -> dict[int, Path]:
        """What of number -> folder is to be served."""
        return {number: folders[number] for number in sorted(folders)[-max(self.count, 1) :]}


@dataclasses.dataclass(frozen=True)
class All:
    """Every version there is."""

    def wanted(self, folders: Mapping[int, Path]) -> dict[int, Path]:
        """What of number -> folder is to be served."""
        return dict(folders)


@dataclasses.dataclass(frozen=True)
class Specific:
    """These versions, as far as they are there."""

    versions: Collection[int]

    def wanted(self, folders: Mapping[int, Path]) -> dict[int, Path]:
        """What of number -> folder is to be served."""
        return {number: path for number, path in folders.items() if number in self.versions}


VersionPolicy = Latest | All | Specific


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One model.

    Args:
        name: how requests call it.
        base_path: the folder of its versions.
        policy: which of them are to be served.
        labels: name that requests may use for a version -> its number.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = Latest(1)
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


def model_configs(
    message: model_server_config_pb2.ModelServerConfig, *, known: Collection[str] = ()
) -> list[ModelConfig]:
    """Reads a configuration.

    Args:
        message: without a list of models it is empty.
        known: names of the models that are served now, for the error that their platform cannot
            be changed.

    Raises:
        ServingError: the messages are those of TensorFlow Serving.
    """
    if message.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("ModelServer does not yet support custom model config.")
    models = message.model_config_list.config
    _check_names(models)
    _check_base_paths(models)
    for model in models:
        _check_platform(model, is_known=model.name in known)
    return [
        ModelConfig(
            name=model.name,
            base_path=_base_path(model.base_path),
            policy=_policy(model.model_version_policy),
            labels=dict(model.version_labels),
        )
        for model in models
    ]


def _check_names(models: Iterable[model_server_config_pb2.ModelConfig]) -> None:
    names = set()
    for model in models:
        if model.name in names:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        names.add(model.name)


def _check_base_paths(models: Iterable[model_server_config_pb2.ModelConfig]) -> None:
    for model in models:
        if not (_uri(model.base_path) or model.base_path.startswith("/")):
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; "
                f"got base_path()={model.base_path}"
            )


def _check_platform(model: model_server_config_pb2.ModelConfig, *, is_known: bool) -> None:
    platform = model.model_platform
    if model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED:
        log.warning("model %s: model_type is deprecated, write model_platform", model.name)
        if platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) "
                "and ModelServerConfig::model_platform."
            )
        if model.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid_argument(
                f"ModelServerConfig::model_type choice {model.model_type} not supported."
            )
        platform = PLATFORM
    if not platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) "
            "nor ModelServerConfig::model_platform."
        )
    if platform != PLATFORM and is_known:
        raise invalid_argument(
            f"Illegal to change a model's platform. For model {model.name} platform was "
            f"{PLATFORM} and new platform requested is {platform}"
        )
    if platform != PLATFORM:
        raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")


def _uri(path: str) -> re.Match[str] | None:
    return re.match(r"([a-zA-Z][0-9a-zA-Z.]*)://[^/]*(.*)", path, flags=re.DOTALL)


def _base_path(path: str) -> Path:
    uri = _uri(path)
    if not uri:
        return Path(path)
    scheme, rest = uri.groups()
    if scheme != "file":
        raise ServingError(
            Code.UNIMPLEMENTED, f"File system scheme '{scheme}' not implemented (file: '{path}')"
        )
    return Path(rest or "/")


def _policy(message) -> VersionPolicy:  # noqa: ANN001 - ServableVersionPolicy, a nested message
    match message.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            return Specific(frozenset(message.specific.versions))
        case _:
            return Latest(max(message.latest.num_versions, 1))


def check_labels(
    configs: Iterable[ModelConfig],
    *,
    available: Mapping[str, Container[int]],
    old_labels: Mapping[str, Mapping[str, int]],
    allow_unavailable: bool,
) -> None:
    """Labels may be given to versions that are available.

    Args:
        configs: the models with their labels.
        available: name of a model -> its available versions.
        old_labels: name of a model -> the labels in force.
        allow_unavailable: any version will do for a label that is new or stays where it is.

    Raises:
        ServingError: FAILED_PRECONDITION.
    """
    for config in configs:
        old = old_labels.get(config.name, {})
        for label, number in config.labels.items():
            is_moved = old.get(label, number) != number
            is_available = number in available.get(config.name, ())
            if not is_available and (is_moved or not allow_unavailable):
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {number} of model {config.name}, "
                    "which is not currently available for inference",
                )


class ConfigFilePoller:
    """Reads a configuration file again and again, and has the store follow it.

    A file that cannot be read or is refused is logged, and the old configuration stays. It does
    not wait for new models to load: the next version of the file counts even if one never does.

    Args:
        path: a ModelServerConfig as text.
        store: follows it.
        poll_seconds: how long to wait between two looks at the file.
    """

    def __init__(self, path: Path, store: "ModelStore", poll_seconds: float) -> None:
        self._path = path
        self._store = store
        self._poll_seconds = poll_seconds
        self._problem = ""  # what was logged last; the same is not logged every time
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="config_poller", daemon=True)

    def start(self) -> None:
        """Begins to poll, in a thread of its own; the first look comes after `poll_seconds`."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the polling."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _poll(self) -> None:
        while not self._is_stopping.wait(self._poll_seconds):
            problem = ""
            try:
                self._take_over()
            except ServingError as error:
                problem = error.message
            if problem and problem != self._problem:
                log.error("the configuration stays as it is: %s", problem)
            elif self._problem and not problem:
                log.info("%s is in force now", self._path)
            self._problem = problem

    def _take_over(self) -> None:
        message = read_text_proto(self._path, ModelServerConfig)
        known = self._store.models()
        if known and message.WhichOneof("config") != "model_config_list":
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Cannot transition to requested config. It is only legal to transition from one "
                "ModelConfigList to another.",
            )
        self._store.configure(model_configs(message, known=known))
