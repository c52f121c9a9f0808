"""List the tensors of an .h5 file: run in a fresh process, by its path.

    python h5_check.py FILE

HDF5's library is not made for files of strangers: one changed byte can make it loop without end,
take all memory, or end the process. So it looks at them here, with limits, and kbert reads the
numbers without it, from where this says they are. Nothing of kbert imports it, and it imports
nothing of kbert.

stdout gets JSON, {name: [type, [size, ...], first byte]}, of the datasets of numbers that are in
the file itself: neither links nor data kept in other files are followed. With exit status 1 the
last line of stderr tells what is wrong.
"""

import json
import resource
import sys

import h5py

SECONDS = 5  # of computing; a tf_model.h5 of BERT-large takes a tenth
MEMORY = 2 << 30  # bytes of addresses
MOST_OBJECTS = 100_000  # groups and datasets
MOST_LEVELS = 50  # of groups in each other; a tf_model.h5 has 10
MOST_NAMES = 1 << 24  # characters, all names together


def main(path: str) -> None:
    for limit, value in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
        resource.setrlimit(limit, (value, value))
    found: dict[str, list] = {}
    seen = characters = 0

    def visit(name, item) -> None:
        nonlocal seen, characters
        if isinstance(name, bytes):
            raise ValueError("the name of an object is not UTF-8")
        seen, characters = seen + 1, characters + len(name)
        if seen > MOST_OBJECTS or name.count("/") > MOST_LEVELS or characters > MOST_NAMES:
            raise ValueError(f"it has over {MOST_OBJECTS:,} objects, or {MOST_LEVELS} levels")
        if isinstance(item, h5py.Dataset) and _has_own_numbers(item):
            found[name] = [item.dtype.str, list(item.shape), _start(name, item)]

    with h5py.File(path, "r") as file:
        file.visititems(visit)  # each object once, whatever loops the groups form
    json.dump(found, sys.stdout)


def _has_own_numbers(item: h5py.Dataset) -> bool:
    is_own = item.shape is not None and not item.external and not item.is_virtual
    return is_own and item.dtype.kind in "fiub"


def _start(name: str, item: h5py.Dataset) -> int:
    """Where the numbers of a dataset begin, after each other as Keras writes them."""
    if item.size == 0:
        return 0
    start = item.id.get_offset()
    if start is None:
        raise ValueError(f"the numbers of {name} are compressed, in chunks or not there")
    return start


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
