"""Put an export into the folder that a server watches: `python -m kbert.publish --help`.

Exit status 0: it is there; 2: bad input, and nothing is changed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from kbert.errors import InputError
from serve.command_line import OneLineParser

EPILOG = """\
A further version of a model beside those that are served, and the label canary for it:

  python -m kbert.publish runs/news-2 /srv/models
  /srv/models/news/2: published, and canary in /srv/models/models.config

A server with --model_config_file=/srv/models/models.config and a polling time loads it, moves the
label, and goes on answering all the while; `stable` is yours to move.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish what the command line names; the exit status."""
    options = _parse(arguments)
    try:
        version = publish(Path(options.export), Path(options.folder), version=options.version)
    except (InputError, OSError) as error:
        print(f"kbert.publish: {error}", file=sys.stderr)
        return 2
    config = Path(options.folder) / "models.config"
    print(f"{version}: published, and canary in {config}")
    return 0


def publish(export: Path, folder: Path, *, version: int | None = None) -> Path:
    """Copy an export to FOLDER/NAME/VERSION, which appears whole, and label it in models.config.

    Args:
        export: Folder of a SavedModel, of its versions (the newest is taken), or of a run.
        folder: Folder of the served models.
        version: Its number there; by default the one after the newest that is there.

    Returns:
        The version's folder.

    Raises:
        InputError: there is no export, the number is taken, or models.config cannot be changed.
        OSError: the folder cannot be written to, or is full.
    """
    # not needed for --help
    from kbert.certificate import find_saved_model
    from kbert.serving_files import label_version, prepare
    from kbert.version_folders import new_version, versions_in

    source = find_saved_model(export).resolve()
    base = folder / source.parent.name
    if version is None:
        version = max(versions_in(base), default=0) + 1
    prepare(base)
    with new_version(base, version) as beside:
        shutil.copytree(source, beside, dirs_exist_ok=True)
    label_version(folder, base.name, version)
    return base / str(version)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="kbert.publish",
        description="Copy an export into the folder that a server watches, whole or not at all.",
        epilog=EPILOG,
    )
    parser.add_argument("export", help="a run, a folder of versions, or one SavedModel")
    parser.add_argument("folder", help="of the served models: FOLDER/NAME/VERSION, models.config")
    parser.add_argument(
        "--version",
        type=_positive,
        help="its number there (default: one more than the newest that is there)",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
