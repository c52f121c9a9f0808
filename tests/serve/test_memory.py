import ctypes
import os
import platform
import subprocess
import sys

import psutil
import pytest

from serve.memory import give_back_memory

PIECES, SIZE = 200_000, 512


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_pages_go_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    pieces = [libc.malloc(SIZE) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, SIZE)
    last = libc.malloc(SIZE)  # above them: without it, glibc would give all back by itself
    for piece in pieces:
        libc.free(piece)
    before = psutil.Process().memory_info().rss
    give_back_memory()
    assert psutil.Process().memory_info().rss < before - PIECES * SIZE / 2
    libc.free(last)


KEPT = """
import numpy as np, psutil
from serve.memory import give_back_memory, use_system_heap
if {with_system_heap}:
    use_system_heap()
import tensorflow as tf
a = tf.random.uniform([2000, 2000])
for _ in range(3):
    b = a @ a  # oneDNN's
    c = [b + n for n in range(8)]
full = psutil.Process().memory_info().rss
del b, c
give_back_memory()
print((full - psutil.Process().memory_info().rss) // 2**20)
"""


def given_back(with_system_heap: bool) -> int:
    """MB of 144 that are given back after the tensors are gone."""
    words = [sys.executable, "-c", KEPT.format(with_system_heap=with_system_heap)]
    # a server that ran in this process has set it, as it does for its own
    environment = {**os.environ}
    environment.pop("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", None)
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_tensorflow_gives_back_what_it_took_from_the_system_heap():
    assert given_back(with_system_heap=True) > 100
    # else its own allocator keeps it: when that is no longer so, this module can go
    assert given_back(with_system_heap=False) < 40
