"""glibc's allocator, as suits a process that is small and lives long. Another C library does as it does."""

from __future__ import annotations

import ctypes
import gc

#: mallopt's number for the most arenas (malloc.h).
_ARENA_MAX = -8


def share_one_arena() -> None:
    """Let all threads take memory from one arena, where each would have its own and keep in it what it freed.

    Call it before the first thread starts. Python's threads wait for each other anyway, so they lose nothing by it.
    """
    try:
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return


def give_back_memory() -> None:
    """Free what is only kept for later: Python's cycles, then the allocator's free pages (malloc_trim)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
