"""The states that a training goes on from: whole or not at all, checked, and kept by count.

A state is a file of a training's folder, step-000000500.safetensors after its 500th step. Neither
TensorFlow nor Keras.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kbert.errors import InputError
from kbert.tensor_files import read_checked, write_checked

logger = logging.getLogger(__name__)

STATES = "step-*.safetensors"


def save_state(
    folder: Path,
    step: int,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    *,
    keep: int,
) -> Path:
    """Write the state after a step, then drop all but the last ones.

    States of later steps are dropped too: they are damaged, or of a training that went on from
    before them.

    Args:
        folder: The training's; made where it is missing.
        step: Steps done, of all epochs.
        tensors: Arrays by name.
        metadata: What else there is to a state.
        keep: How many states to keep, this one among them.

    Raises:
        OSError: it cannot be written; the states before are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    write_checked(path, tensors, metadata)
    others = states(folder)
    others.remove(path)
    earlier = [state for state in others if state < path]
    for state in {*others} - {*earlier[len(earlier) - (keep - 1) :]}:
        state.unlink()
    return path


def states(folder: Path) -> list[Path]:
    """Those of a training, damaged or not, the newest last."""
    return sorted(folder.glob(STATES))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest state that is whole; None before the first.

    A damaged one is told of.

    Raises:
        InputError: all of them are damaged.
    """
    found = states(folder)
    for path in reversed(found):
        try:
            read_checked(path)
        except InputError as error:
            logger.warning("%s", error)
        else:
            return path
    if found:
        raise InputError(
            f"{folder}: no checkpoint is whole; remove the run's folder to begin anew, or name "
            "another by --output."
        )
    return None
