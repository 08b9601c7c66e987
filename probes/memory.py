"""Host memory, major faults, swapping, page cache that thrashes, NUMA balancing (/proc/meminfo, /proc/vmstat)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import ProbeError
from rankscope.probes.held_file import HeldFile, outcome_of
from rankscope.probes.numbers import first_column
from rankscope.reading import Group, Outcome, ProbeResult, readings_of

_NS = 10**9
_KIB = 1024

#: Key -> metric; the file is in kB.
_MEMINFO = {
    "MemTotal": "host.memory_total_bytes",
    "MemAvailable": "host.memory_available_bytes",
    "Dirty": "host.memory_dirty_bytes",
    "Writeback": "host.memory_writeback_bytes",
}
_MEMINFO_KEYS = frozenset(_MEMINFO)
_VMSTAT = {
    "pgmajfault": "host.major_faults",
    "pswpin": "host.swap_in_pages",
    "pswpout": "host.swap_out_pages",
    "oom_kill": "host.oom_kills",
    "numa_hint_faults": "host.numa_hint_faults",
    "numa_hint_faults_local": "host.numa_hint_faults_local",
    "numa_pages_migrated": "host.numa_migrated_pages",
    # Split by kind of page since Linux 5.9; before, all of them were of files.
    "workingset_refault_file": "host.refaulted_pages",
    "workingset_refault": "host.refaulted_pages",
    # A count a zone since Linux 4.10, one for all before.
    "allocstall": "host.reclaim_stalls",
    "allocstall_dma": "host.reclaim_stalls",
    "allocstall_dma32": "host.reclaim_stalls",
    "allocstall_normal": "host.reclaim_stalls",
    "allocstall_movable": "host.reclaim_stalls",
}
_VMSTAT_KEYS = frozenset(_VMSTAT)


def parse_meminfo(text: str) -> dict[str, float]:
    """Metric -> bytes of a /proc/meminfo. Never raises."""
    return {_MEMINFO[key]: value * _KIB for key, value in first_column(text, _MEMINFO_KEYS).items()}


def parse_vmstat(text: str) -> dict[str, float]:
    """Metric -> count of a /proc/vmstat. Never raises."""
    values: dict[str, float] = {}
    for key, value in first_column(text, _VMSTAT_KEYS).items():
        values[_VMSTAT[key]] = values.get(_VMSTAT[key], 0) + value
    return values


class MemoryProbe:
    """Probe of the host's memory."""

    name = "memory"
    groups: Sequence[Group] = (Group("memory", 2 * _NS, _NS // 2, "memory fills over seconds; the rest are counters"),)

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._meminfo = HeldFile(proc / "meminfo")
        self._vmstat = HeldFile(proc / "vmstat")

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """The values now. Raises ProbeError."""
        values = parse_meminfo(self._meminfo.read())
        outcomes: list[tuple[str, Outcome, str]] = []
        try:
            values |= parse_vmstat(self._vmstat.read())
        except ProbeError as error:
            outcomes.append(("", outcome_of(error), str(error)))
        return ProbeResult(readings_of(values, now_ns), (), outcomes)

    def close(self) -> None:
        """Close the files."""
        self._meminfo.close()
        self._vmstat.close()
