"""The folders of a base path: which of them are versions, and what may be amiss."""

import os
from collections.abc import Collection
from pathlib import Path

from serve.model_config import ModelConfig, Specific

LARGEST_VERSION = 2**63 - 1


def find_versions(base_path: Path) -> dict[int, Path]:
    """Number -> folder of the versions in a base path; leading zeros are allowed.

    Names that are not numbers are ignored: copy a new version under such a name, then rename
    it, so that it is never seen half written. A link to a folder is a folder.

    Raises:
        OSError: the base path cannot be read.
    """
    folders = {}
    with os.scandir(base_path) as entries:
        # Sorted, so that of "01" and "1" it is always the same that counts.
        for entry in sorted(entries, key=lambda entry: entry.name):
            number = version_number(entry.name)
            if number is not None and _is_folder(entry):
                folders[number] = Path(entry.path)
    return folders


def version_number(name: str) -> int | None:
    """The version that a folder of this name is; None if it is none."""
    if not (name.isascii() and name.isdigit()):
        return None
    number = int(name)
    return number if number <= LARGEST_VERSION else None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round in circles, or to where we may not look
        return False


def what_is_amiss(config: ModelConfig, folders: Collection[int]) -> set[str]:
    """What the user may want to know of a base path, given the numbers of its versions."""
    if not folders:
        return {
            f"no version of {config.name} under {config.base_path}; a version is a folder with a "
            "number for a name, such as 1"
        }
    named = config.policy.versions if isinstance(config.policy, Specific) else ()
    missing = ", ".join(str(number) for number in sorted(set(named) - set(folders)))
    if not missing:
        return set()
    return {f"no {missing} of {config.name} under {config.base_path}, but the policy names it"}
