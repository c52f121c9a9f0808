"""The lineage of an export: which data, options, checkpoint, code and seeds made the model.

It stands in the SavedModel as assets.extra/lineage.json; docs/lineage.md tells what is in it.
Knows neither Keras nor TensorFlow, and names no folder of the machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any

from kbert.checkpoint_files import INDEX_ENDING, find_weights, read_index
from kbert.config import Config, DataOptions, DistillOptions, as_dict
from kbert.shards import data_source, digest_of
from kbert.whole_files import written_whole

FORMAT = 1
LINEAGE_PLACE = Path("assets.extra") / "lineage.json"
ROLES = ("train", "validation", "test")
CHECKPOINT_FILES = (
    "config.json",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What is read of a checkpoint besides its weights."""
PACKAGES = (
    "tensorflow",
    "keras",
    "keras-nlp",
    "keras-tuner",
    "tensorflow-text",
    "transformers",
)
# options that change nothing in the model; the revision is told by the checkpoint's digests
LEFT_OUT = (
    "output",
    "resume",
    "debug",
    "monitor",
    "data.cache_dir",
    "search.workers",
    "search.keep",
    "model.revision",
    "export.enabled",
    "export.name",
    "export.version",
    "export.precision",
    "export.warmup",
    "export.huggingface",
)
KINDS_OF_FOLDERS = ("checkpoint", "huggingface", "model")
"""Names that say what is in a folder, and not which: the folder above is told with them."""
GIT_SECONDS = 10


def lineage(
    config: Config,
    *,
    data: Mapping[str, str],
    rows: Mapping[str, int],
    checkpoint: Path | None,
    seed: int,
    trial: str | None,
    search: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What made a model, as JSON holds it.

    Two runs have the same hash of the options when the same data, checkpoint and options made
    them, on whatever machine: in what is hashed the digests of the files stand in place of their
    paths, and what changes nothing in the model (`LEFT_OUT`) is left out. The folders among the
    checkpoints of a search's space are told by their names alone.

    Args:
        config: Options of the run.
        data: SHA-256 of each file that is given, by train, validation, test: `data_digests`,
            taken when the run began.
        rows: Number of rows of each split, by the same names.
        checkpoint: Folder of the checkpoint that the exported model began with; None for a model
            from scratch.
        seed: Seed of the exported model's training.
        trial: Id of the search's winner; None without a search.
        search: What else is to be told of the search: hyper-parameters and score of the winner,
            seeds with which it was trained again, and the exported one's.

    Raises:
        InputError: a file of the checkpoint, or the vocabulary, cannot be read.
    """
    began_with = _checkpoint(config, checkpoint)
    options = _options(config, data, began_with)
    return {
        "format": FORMAT,
        "run": config.run_name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "data": {role: _split(config.data, role, data, rows) for role in ROLES},
        "options": {"sha256": _sha256_of_json(options), "values": options},
        "checkpoint": began_with,
        "trial": None if trial is None else {"id": trial, **_plain(search or {})},
        "code": source_code(Path(__file__).parent),
        "versions": {
            "python": platform.python_version(),
            **{package: _installed_version(package) for package in PACKAGES},
        },
    }


def data_digests(options: DataOptions) -> dict[str, str]:
    """SHA-256 of each data file that is given, by train, validation, test: `digest_of` it.

    Raises:
        InputError: a file cannot be read.
    """
    files = {role: getattr(options, role) for role in ROLES}
    return {
        role: digest_of(data_source(file, f"--data.{role}"))
        for role, file in files.items()
        if file is not None
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as sha256sum prints it.

    Raises:
        InputError: it cannot be read.
    """
    return digest_of(path)


def source_code(package: Path) -> dict[str, Any]:
    """The state of a package's source: version, digest of all its files, commit in git.

    Args:
        package: Folder of kbert, or of a copy of it.
    """
    files = {
        path.relative_to(package).as_posix(): file_digest(path)
        for path in package.rglob("*")
        if path.is_file() and not _is_byproduct(path.relative_to(package))
    }
    return {
        "version": _installed_version("kbert-finetune"),
        "sha256": _sha256_of_digests(files),
        "git": _git_state(package),
    }


def write_lineage(path: Path, content: Mapping[str, Any]) -> None:
    """Write a lineage.json.

    Raises:
        ValueError: the content holds NaN or an infinity, which JSON has not.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


# Data and options


def _split(
    options: DataOptions, role: str, data: Mapping[str, str], rows: Mapping[str, int]
) -> dict[str, Any] | None:
    """File and rows of a split; the file of rows that were drawn is the training file."""
    if role not in rows:
        return None
    source = role if getattr(options, role) is not None else "train"
    return {
        "file": Path(getattr(options, source)).name,
        "sha256": data[source],
        "rows": rows[role],
    }


def _options(
    config: Config, data: Mapping[str, str], checkpoint: Mapping[str, Any]
) -> dict[str, Any]:
    """The options without what is left out, each file replaced by what it holds."""
    values = _plain(as_dict(config))
    for name in LEFT_OUT:
        group, _, option = name.rpartition(".")
        del (values[group] if group else values)[option]
    for role in ROLES:
        file = values["data"][role]
        if file is not None:
            # the same bytes are other rows as .csv than as .tsv
            values["data"][role] = {"format": _format(file), "sha256": data[role]}
    for source in ("checkpoint", "vocab"):
        if values["model"][source]:
            values["model"][source] = {"sha256": checkpoint["sha256"]}
    values["distill"] = _distillation(config.distill)
    return {name: value for name, value in values.items() if value != {}}


def _format(file: str) -> str:
    return data_source(file, "--data.train").suffix.lower()


def _distillation(options: DistillOptions) -> dict[str, Any]:
    """Its options, files replaced by what they hold; none without a teacher."""
    if options.teacher is None:
        return {}
    weights = Path(options.teacher) / "checkpoints" / "model.safetensors"
    files = [
        {"format": Path(file).suffix.lower(), "sha256": file_digest(Path(file))}
        for file in options.unlabelled_files
    ]
    return {
        **_plain(dataclasses.asdict(options)),
        "teacher": {"sha256": file_digest(weights)},
        "unlabelled": files,
    }


def _plain(value: Any, *, is_checkpoint: bool = False) -> Any:
    """A value as JSON holds it; of the folder of a checkpoint, its name alone."""
    if isinstance(value, Mapping):
        return {
            str(name): _plain(part, is_checkpoint=is_checkpoint or name == "checkpoint")
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(part, is_checkpoint=is_checkpoint) for part in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):  # numpy's too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return value.name
    return _checkpoint_name(str(value)) if is_checkpoint else str(value)


def _checkpoint_name(source: str) -> str:
    """The name of a folder; the id of a model on the hub as it is."""
    folder = Path(source).expanduser()
    is_path = folder.is_absolute() or source.startswith(".") or folder.is_dir()
    return folder.resolve().name if is_path else source


# The checkpoint


def _checkpoint(config: Config, folder: Path | None) -> dict[str, Any]:
    """Name, revision and digests of what the model began with."""
    name = revision = None
    if folder is None and config.model.vocab is None:  # learnt from the data, which is told
        files = {}
    elif folder is None:
        files = {"vocab.txt": file_digest(Path(str(config.model.vocab)))}
    else:
        name, revision = _name_and_revision(folder)
        files = {path.name: file_digest(path) for path in _checkpoint_files(folder)}
    return {
        "name": name,
        "revision": revision,
        "sha256": _sha256_of_digests(files),
        "files": dict(sorted(files.items())),
    }


def _checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that a model is made of: of several weight files, the one read."""
    weights = find_weights(folder)
    names = [weights.name]
    if weights.name.endswith(INDEX_ENDING):
        names += sorted(set(read_index(weights).values()))
    names += [name for name in CHECKPOINT_FILES if (folder / name).is_file()]
    return [folder / name for name in names]


def _name_and_revision(folder: Path) -> tuple[str, str | None]:
    """The hub's id and commit where the folder is one of its cache, else the folder's name.

    Of a folder that is called "model" and the like, the name of the one above stands before it.
    """
    folder = folder.resolve()  # models--ORGANISATION--NAME/snapshots/COMMIT
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/"), folder.name
    if folder.name in KINDS_OF_FOLDERS:
        return f"{folder.parent.name}/{folder.name}", None
    return folder.name, None


# The code


def _is_byproduct(path: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in path.parts)


def _git_state(package: Path) -> dict[str, Any] | None:
    """Commit, and whether the package differs from it; None where git does not keep it."""
    # A package can be installed below a repository of something else: then its files are not in it.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files", "--", ".")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "is_dirty": bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    """What a git command prints in a folder; None if it fails or there is no git."""
    # Within a git hook these name another repository; a lock would hinder the user's own git.
    places = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in places}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        process = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Digests


def _sha256_of_digests(files: Mapping[str, str]) -> str:
    """Of what sha256sum prints for files, in the order of their names."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256_of_json(content: Mapping[str, Any]) -> str:
    """Of its canonical text: keys sorted, no spaces, characters as they are, in UTF-8."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
