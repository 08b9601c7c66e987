"""What the agent and its children cost: CPU time and proportional memory, as the kernel counts them."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

from rankscope.agent.processes import PROC, process_stat

_TICKS_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class OwnCost:
    """This process and its living children; CPU time of children that have ended stays counted."""

    def __init__(self, proc: Path = PROC, own_cpu_ns: Callable[[], int] = time.process_time_ns) -> None:
        self._proc = proc
        self._own_cpu_ns = own_cpu_ns

    def children(self) -> list[int]:
        """Living children, by the kernel's own list of each thread's."""
        found: list[int] = []
        for path in (self._proc / "self/task").glob("*/children"):
            try:
                found += [int(word) for word in path.read_text().split()]
            except OSError:
                continue
        return found

    def cpu_ns(self) -> int:
        """CPU time so far, ns."""
        ended = os.times()
        total = self._own_cpu_ns() + int((ended.children_user + ended.children_system) * 1e9)
        return total + sum(cpu_time_ns(pid, self._proc) for pid in self.children())

    def pss_bytes(self) -> int | None:
        """Proportional memory now, or None where the kernel does not tell."""
        sizes = [process_pss_bytes(self._proc / str(pid)) for pid in ("self", *self.children())]
        return sum(size for size in sizes if size is not None) if sizes[0] is not None else None


def cpu_time_ns(pid: int, proc: Path = PROC) -> int:
    """CPU time of all threads of a process so far, ns; 0 once it is gone.

    A process's own schedstat counts its main thread only, and its stat counts in ticks of 10 ms: the sum of its
    threads' is exact, but forgets threads that have ended, so the larger of the two is taken.
    """
    total = 0
    try:
        for task in (proc / str(pid) / "task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except (OSError, ValueError, IndexError):
                continue
    except OSError:
        return 0
    stat = process_stat(pid, proc)
    return max(total, stat.cpu_ticks * _TICKS_NS if stat is not None else 0)


def process_pss_bytes(process: Path) -> int | None:
    """Proportional memory of a process by its directory in procfs, or None where that is not told."""
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def give_back_memory() -> None:
    """Free what is only kept for later: Python's cycles, then the allocator's free pages (glibc's malloc_trim)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
