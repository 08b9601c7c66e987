"""Processes as the kernel tells of them: alive or not, how they ended, and a handle that no recycled pid can fool."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

#: Always the kernel's own: a simulated /proc has no processes.
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What /proc/PID/stat says: state is R, S, D (uninterruptible), T (stopped), Z (ended, not yet waited for)..."""

    state: str
    parent: int
    start_ticks: int
    cpu_ticks: int
    #: Wait status, non-zero only while the process is a zombie (and 0 where the kernel hides it).
    exit_code: int


def process_stat(pid: int, proc: Path = PROC) -> ProcessStat | None:
    """One process now, or None where it is gone."""
    try:
        return parse_stat((proc / str(pid) / "stat").read_text(errors="replace"))
    except OSError:
        return None


def parse_stat(text: str) -> ProcessStat | None:
    """The fields of one stat line, counted from behind the name (which may hold anything)."""
    fields = text.rpartition(")")[2].split()
    try:
        exit_code = int(fields[49]) if len(fields) > 49 else 0
        return ProcessStat(fields[0], int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12]), exit_code)
    except (IndexError, ValueError):
        return None


class ProcessHandle:
    """One process, named by pid and start time. With a pidfd the kernel tells at once when it ends."""

    def __init__(self, pid: int, start_ticks: int) -> None:
        self.pid = pid
        self._start_ticks = start_ticks
        #: Readable when the process has ended; -1 where it is gone already, or the kernel has none (before 5.3).
        self.descriptor = -1
        if self._same() is None:
            return
        try:
            self.descriptor = os.pidfd_open(pid)
        except OSError:
            return
        # Between the look and the open the pid may have passed to another process.
        if self._same() is None:
            self.close()

    def _same(self) -> ProcessStat | None:
        found = process_stat(self.pid)
        # 0: the rank could not read its own start time.
        return found if found is not None and self._start_ticks in (0, found.start_ticks) else None

    def stat(self) -> ProcessStat | None:
        """The process now, or None where it is gone and waited for (or its pid is another's)."""
        return self._same()

    def alive(self) -> bool:
        """Whether it still runs: a zombie does not."""
        found = self._same()
        return found is not None and found.state not in "ZX"

    def send(self, number: int) -> bool:
        """Send a signal; False where it has ended or is not ours to signal."""
        try:
            if self.descriptor >= 0:
                signal.pidfd_send_signal(self.descriptor, number)
            elif self.alive():
                os.kill(self.pid, number)
            else:
                return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give the handle back. Safe to call twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def signal_name(number: int) -> str:
    """SIGKILL for 9, "signal 63" where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def descendants(pid: int, proc: Path = PROC) -> list[int]:
    """Children of a process, theirs, and so on, by one look at every process."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            found = process_stat(int(entry.name), proc)
            if found is not None:
                children.setdefault(found.parent, []).append(int(entry.name))
    found_pids: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found_pids += below
        waiting += below
    return found_pids
