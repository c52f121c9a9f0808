"""Small files of checkpoints and runs, which may come from strangers: text, JSON and YAML.

They are read whole, so what they may be is limited, in bytes and in values. docs/security.md has
the limits, and what else is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kbert.errors import InputError

MOST_BYTES = 1 << 27
"""Of a file of text or JSON: 128 MiB. The largest that is known is a tokenizer.json of 20 MB."""
MOST_VALUES = 4_000_000
"""Of a file of JSON. A list that is empty takes 3 bytes there and 70 in memory."""
MOST_LEVELS = 100
"""Of lists and objects in each other."""
MOST_YAML_BYTES = 1 << 18
MOST_YAML_VALUES = 4000
"""Of a file of options, aliases counted as what they stand for."""

# What a value of a wrong type or size leads to, wherever it is met.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def read_text(path: Path, *, advice: str, most_bytes: int = MOST_BYTES) -> str:
    """The content of a file in UTF-8, all line ends as new lines.

    Args:
        path: The file.
        advice: What to do where it cannot be read; the end of the message.
        most_bytes: How large it may be.

    Raises:
        InputError: it is missing, no plain file (a pipe would wait for ever, a device has no end),
            too large, or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no plain file; {advice}.")
        size = path.stat().st_size
        if size > most_bytes:
            raise InputError(
                f"{path}: has {size:,} bytes, a file of its kind at most {most_bytes:,}; {advice}."
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}); {advice}.") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {advice}.") from None


def read_json(path: Path, *, advice: str) -> Any:
    """The content of a file of JSON.

    Args:
        path: The file.
        advice: What to do where it cannot be read; the end of the message.

    Raises:
        InputError: as `read_text`; or it is not JSON, or has too many values or levels.
    """
    text = read_text(path, advice=advice)
    # before it is parsed, and so from above: commas and brackets may stand in strings too
    if text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
        raise InputError(f"{path}: has over {MOST_VALUES:,} values; {advice}.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {advice}.") from None
    if problem := _excess(content, MOST_VALUES):
        raise InputError(f"{path}: {problem}; {advice}.")
    return content


def read_object(path: Path, *, advice: str) -> dict[str, Any]:
    """The content of a file of JSON whose outermost value is an object.

    Raises:
        InputError: as `read_json`; or it is something else.
    """
    content = read_json(path, advice=advice)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: must hold a JSON object, received {type(content).__name__}; {advice}."
        )
    return content


def read_options(path: Path, *, advice: str) -> dict[str, Any]:
    """The content of a YAML file of options. Tags that would make objects are refused.

    Args:
        path: The file.
        advice: What to do where it cannot be read; the end of the message.

    Raises:
        InputError: as `read_text`; or it is not YAML, holds no mapping, or has too many values.
    """
    import yaml

    text = read_text(path, advice=advice, most_bytes=MOST_YAML_BYTES)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, *_MALFORMED) as error:
        raise InputError(f"{path}: not a YAML file ({error}); {advice}.") from None
    if problem := _excess(content, MOST_YAML_VALUES):
        raise InputError(f"{path}: {problem}; {advice}.")
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no options, but {type(content).__name__}; {advice}.")
    return content


@contextlib.contextmanager
def malformed_told(path: Path, *, advice: str) -> Iterator[None]:
    """Turns what values of wrong types and sizes lead to into one error.

    Args:
        path: The file, or the folder of files.
        advice: What to do; the end of the message.
    """
    try:
        yield
    except InputError:
        raise
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: damaged ({reason}); {advice}.") from error


def refuse_links_out(folder: Path, patterns: Sequence[str]) -> None:
    """Check that no file which will be read is a symbolic link out of a folder.

    Links within the folder are well, and so are those of the cache of HuggingFace's hub, whose
    models--X/snapshots/COMMIT holds links into models--X/blobs. The folder itself may be a link.

    Args:
        folder: Folder of a checkpoint or of a run.
        patterns: Which files, as `Path.glob` has them.

    Raises:
        InputError: a file leads out.
    """
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        homes.append(home.parents[1] / "blobs")
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # a loop
            raise InputError(f"{path}: a symbolic link in a circle; put the file there.") from None
        if not any(target.is_relative_to(place) for place in homes):
            raise InputError(
                f"{path}: a symbolic link to {target}, out of the folder, is not followed; put the "
                "file itself there."
            )


def _excess(content: Any, most: int) -> str:
    """What is too much in nested lists and dictionaries, in a few words; "" where nothing is."""
    level, count = [content] if isinstance(content, dict | list) else [], 1
    for _ in range(MOST_LEVELS):
        items = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        count += len(items)
        if count > most:
            return f"has over {most:,} values"
        level = [item for item in items if isinstance(item, dict | list)]
        if not level:
            return ""
    return f"has over {MOST_LEVELS} levels of lists and objects"
