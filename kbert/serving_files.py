"""models.config beside the exports: which models TF Serving serves, and which versions of them.

Labels let a client ask for a version by what it is for, `stable` or `canary`, instead of by its
number: a further version becomes the canary, and stays it until somebody moves `stable` by hand.
"""

from __future__ import annotations

import fcntl
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from kbert.errors import InputError
from kbert.version_folders import versions_in
from kbert.whole_files import lock_file, written_whole

logger = logging.getLogger(__name__)

NAME = "models.config"
LOCK = f".{NAME}.lock"
STABLE, CANARY = "stable", "canary"
LOADED_VERSIONS = 2
"""Versions in memory: the stable one and the canary."""
HEADER = """\
# With this folder as /models:
#   tensorflow_model_server --model_config_file=/models/models.config \\
#     --allow_version_labels_for_unavailable_models=true
# The second flag lets labels stand for versions that are not loaded yet: at the start none is.
# A further export makes its version the canary, and writes the entry of its model anew: remarks
# inside that entry are lost. All else in this file is left as it is.
"""
TOKEN = re.compile(r"#[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[{}<>]|\w+")


def prepare(base: Path) -> None:
    """Make a model's folder, and see, before hours of training, whether exports can go there.

    Args:
        base: Folder of the model; `label_version` will write models.config beside it.

    Raises:
        InputError: something cannot be written, or there is a models.config that cannot be changed.
    """
    path = base.parent / NAME
    try:
        base.mkdir(parents=True, exist_ok=True)
        for folder in (base, base.parent):
            with tempfile.TemporaryFile(dir=folder):
                pass
        with lock_file(base.parent / LOCK):
            pass
    except OSError as error:
        place = error.filename or base
        raise InputError(f"{place}: no export can be written ({error.strerror}).") from None
    if path.exists():
        _parse(path, _read(path))


def label_version(folder: Path, name: str, version: int) -> Path:
    """Put a version of a model into FOLDER/models.config.

    A model that is not in the file yet gets an entry in which both labels are this version. Of one
    that is, the canary becomes this version if it is a newer one, and the policy lets in what has
    a label; comments inside the entry are lost. An entry without a canary stays as it is, and so
    does everything else, comments too. Of several processes one after the other does this.

    Args:
        folder: Folder of the models, each with its versions in FOLDER/NAME/VERSION.
        name: Name of the model.
        version: Its version.

    Returns:
        The file.

    Raises:
        InputError: there is a file of that name that cannot be changed, or it cannot be written.
    """
    path = folder / NAME
    try:
        with lock_file(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _label(path, name, version)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); the same command goes on."
        ) from None
    return path


def _label(path: Path, name: str, version: int) -> None:
    text = _read(path) if path.exists() else HEADER
    config = _parse(path, text)
    entries = [entry for entry in config.model_config_list.config if entry.name == name]
    if entries:
        entry = entries[0]
        if entry.version_labels.get(CANARY, version) >= version:
            return
        entry.version_labels[CANARY] = version
        versions = versions_in(path.parent / name)
        _keep_labelled(entry, versions)
        _warn_of_memory(path, entry, versions)
    else:
        entry = config.model_config_list.config.add()
        entry.CopyFrom(_new_entry(name, version))
    with written_whole(path) as beside:
        beside.write_text(_edited(text, entry, config), encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); move it away.") from None


def _parse(path: Path, text: str) -> ModelServerConfig:
    try:
        config = text_format.Parse(text, ModelServerConfig())
    except text_format.ParseError as error:
        raise InputError(f"{path}: no ModelServerConfig ({error}); correct it.") from None
    if config.HasField("custom_model_config"):
        raise InputError(f"{path}: has a custom_model_config, no list of models; move it away.")
    return config


def _new_entry(name: str, version: int) -> ModelConfig:
    entry = ModelConfig(name=name, base_path=f"/models/{name}", model_platform="tensorflow")
    entry.model_version_policy.latest.num_versions = LOADED_VERSIONS
    for label in (STABLE, CANARY):
        entry.version_labels[label] = version
    return entry


def _keep_labelled(entry: ModelConfig, versions: list[int]) -> None:
    """See to it that every version that has a label, and is there, is loaded.

    `latest` stays `latest`: a running server takes a label only for a version that it has loaded,
    and by `specific` it would load none before it has taken the labels.
    """
    labelled = sorted(set(entry.version_labels.values()) & set(versions))
    policy = entry.model_version_policy
    choice = policy.WhichOneof("policy_choice") or "latest"
    if choice == "latest" and labelled:
        needed = len(versions) - versions.index(labelled[0])
        if needed > (policy.latest.num_versions or 1):
            policy.latest.num_versions = needed
    elif choice == "specific":
        policy.specific.versions[:] = sorted({*policy.specific.versions, *labelled})


def _warn_of_memory(path: Path, entry: ModelConfig, versions: list[int]) -> None:
    """Say that a server holds more versions than the stable one and the canary."""
    policy = entry.model_version_policy
    if policy.WhichOneof("policy_choice") == "specific":
        kept = len(set(policy.specific.versions) & set(versions))
        remedy = "take what has no label out of `specific`"
    else:
        kept = min(policy.latest.num_versions, len(versions))
        remedy = f"lower num_versions to {LOADED_VERSIONS}"
    if kept > LOADED_VERSIONS:
        oldest = min(entry.version_labels, key=lambda label: entry.version_labels[label])
        logger.warning(
            "%s: servers keep %d versions of %s in memory; for fewer, move `%s` to a newer one "
            "and %s",
            *(path, kept, entry.name, oldest, remedy),
        )


def _edited(text: str, entry: ModelConfig, config: ModelServerConfig) -> str:
    """A text with another entry in it; all else as it is written there, if that can be done."""
    inside = _indented(entry, 4)
    spans = list(_blocks(text))
    for start, end in spans[:-1]:
        if _name_in(text[start:end]) == entry.name:
            edited = f"{text[:start]}\n{inside}  {text[end:]}"
            break
    else:
        block = f"  config {{\n{inside}  }}\n"
        if spans:
            end = spans[-1][1]
            edited = f"{text[:end].rstrip(' ')}{block}{text[end:]}"
        else:
            edited = f"{text}model_config_list {{\n{block}}}\n"
    try:
        if text_format.Parse(edited, ModelServerConfig()) == config:
            return edited
    except text_format.ParseError:
        pass
    return text_format.MessageToString(config, as_utf8=True)  # written in a way not known here


def _indented(message: ModelConfig, spaces: int) -> str:
    text = text_format.MessageToString(message, as_utf8=True)
    return "".join(f"{' ' * spaces}{line}\n" for line in text.splitlines())


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Where the inside of each entry, and at last of the list of them, begins and ends."""
    open_blocks: list[int] = []
    for token in TOKEN.finditer(text):
        if token.group() in "{<":
            open_blocks.append(token.end())
        elif token.group() in "}>" and open_blocks:
            start = open_blocks.pop()
            if len(open_blocks) < 2:
                yield start, token.start()


def _name_in(text: str) -> str | None:
    try:
        return text_format.Parse(text, ModelConfig()).name
    except text_format.ParseError:
        return None
