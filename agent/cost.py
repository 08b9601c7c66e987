"""What the agent and its children cost: CPU time and proportional memory, as the kernel counts them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rankscope.agent.processes import PROC

#: The number of a process's own clock is its pid's complement before three bits that say which: CPUCLOCK_SCHED, of a
#: process and not of a thread (include/linux/posix-timers_types.h); what clock_getcpuclockid(3) makes.
_SCHEDULER_CLOCK = 2


class OwnCost:
    """This process and its living children; CPU time of children that have ended stays counted."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc

    def children(self) -> list[int]:
        """Living children, by the kernel's own list of each thread's."""
        found: list[int] = []
        tasks = f"{self._proc}/self/task"
        with os.scandir(tasks) as threads:
            names = [thread.name for thread in threads]
        for name in names:
            try:
                descriptor = os.open(f"{tasks}/{name}/children", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                found += map(int, os.read(descriptor, 65536).split())
            except OSError:
                continue
            finally:
                os.close(descriptor)
        return found

    def cpu_ns(self) -> int:
        """CPU time so far, ns."""
        ended = os.times()
        total = time.process_time_ns() + int((ended.children_user + ended.children_system) * 1e9)
        return total + sum(map(cpu_time_ns, self.children()))

    def pss_bytes(self) -> int | None:
        """Proportional memory now, or None where the kernel does not tell."""
        sizes = [process_pss_bytes(self._proc / str(pid)) for pid in ("self", *self.children())]
        return sum(size for size in sizes if size is not None) if sizes[0] is not None else None


def cpu_time_ns(pid: int) -> int:
    """CPU time of all threads of a process so far, those that have ended too, ns; 0 once it is gone."""
    try:
        return time.clock_gettime_ns(~pid << 3 | _SCHEDULER_CLOCK)
    except OSError:
        return 0


def process_pss_bytes(process: Path) -> int | None:
    """Proportional memory of a process by its directory in procfs, or None where that is not told."""
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
