import ctypes
import platform

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
