"""Memory that is free, given back to the system."""

import ctypes
import ctypes.util
import functools
import gc
import os

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
TRIM_THRESHOLD = 512 * 1024 * 1024


def use_system_heap() -> None:
    """Has TensorFlow take its tensors from glibc's heap; to be called before it is imported.

    With oneDNN it has an allocator of its own, which gives nothing back: after a swap under load
    the server stayed 300 MB larger. glibc by itself would give back what a request has used, and
    fetch it page by page for the next, which costs a tenth of the throughput: so it is told to keep
    it. `give_back_memory` gives it back after an unload.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    set_option = _from_c("mallopt")
    if set_option:
        set_option(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        set_option(M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def give_back_memory() -> None:
    """Gives back the pages that nothing is in; TensorFlow Serving does so after an unload, too.

    glibc keeps what is freed for later, in a heap for each few threads. Where there is no glibc,
    only Python's cycles are freed: a TensorFlow graph is full of them.
    """
    gc.collect()
    trim = _from_c("malloc_trim")
    if trim:
        trim(0)


@functools.cache
def _from_c(name: str):
    """A function of glibc's, None where there is none of that name."""
    library = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(library), name, None) if library else None


def set_aside_what_stays() -> None:
    """Spares the garbage collector all that is in memory now: the imported modules, mostly.

    Called before the models come: the 370,000 objects of TensorFlow are not looked through again
    at each collection. A long JSON text is read in a fraction of the time, and a collection after
    an unload stops all threads for 0.05 seconds, not for 0.25.
    """
    gc.collect()
    gc.freeze()
