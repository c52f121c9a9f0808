"""Memory that is free, given back to the system."""

import ctypes
import ctypes.util
import functools


def give_back_memory() -> None:
    """Gives back the pages that nothing is in; TensorFlow Serving does so after an unload, too.

    glibc keeps what is freed for later, in a heap for each few threads. Where there is no glibc,
    nothing happens.
    """
    trim = _trim()
    if trim:
        trim(0)


@functools.cache
def _trim():
    """glibc's malloc_trim, None where there is none."""
    library = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
