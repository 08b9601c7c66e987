"""One arena for all threads, as glibc itself counts them."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

#: Four threads hold memory at once; then glibc writes what arenas it has, as XML.
_THREADS = """
import ctypes, sys, threading
from rankscope.allocator import share_one_arena
if sys.argv[1:]:
    share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
meet = threading.Barrier(4)
def work():
    meet.wait()
    held = [libc.malloc(600) for _ in range(1000)]
    meet.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fflush.argtypes = [ctypes.c_void_p]
output = libc.fdopen(1, b"w")
libc.malloc_info(0, output)
libc.fflush(output)
"""


def arenas(*words: str) -> int:
    """How many arenas a process of four threads ends with."""
    command = [sys.executable, "-c", _THREADS, *words]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return told.count("<heap ")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_all_threads_share_one_arena() -> None:
    """Each thread has one of its own otherwise."""
    assert arenas("shared") == 1
    assert arenas() > 1
