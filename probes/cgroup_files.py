"""What the files of control groups say, version 2 and version 1. Pure functions of text that raise for no text.

Kernel: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

from rankscope.probes.numbers import first_column, whole

_US_NS = 1000
#: "No limit" of version 1 is the largest whole number of pages: every limit beyond this many bytes is none.
_NO_LIMIT_BYTES = 1 << 60

_CPU_STAT = {
    "usage_usec": ("cgroup.cpu_ns", _US_NS),
    "nr_periods": ("cgroup.cpu_periods", 1),
    "nr_throttled": ("cgroup.cpu_throttled_periods", 1),
    "throttled_usec": ("cgroup.cpu_throttled_ns", _US_NS),
    "throttled_time": ("cgroup.cpu_throttled_ns", 1),
}
_MEMORY_STAT = {
    "file": "cgroup.memory_file_bytes",
    "pgmajfault": "cgroup.major_faults",
    "workingset_refault_file": "cgroup.refaulted_pages",
}
_MEMORY_STAT_V1 = {
    "total_cache": "cgroup.memory_file_bytes",
    "total_pgmajfault": "cgroup.major_faults",
    "total_workingset_refault_file": "cgroup.refaulted_pages",
}
_EVENTS = {"max": "cgroup.memory_limit_hits", "oom_kill": "cgroup.oom_kills"}


def parse_membership(text: str) -> dict[str, str]:
    """Controller -> path of a /proc/PID/cgroup; version 2's path stands under "". Never raises."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and path.startswith("/") and hierarchy.isascii() and hierarchy.isdigit():
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def parse_cpu_stat(text: str) -> dict[str, int]:
    """Metric -> value of a cpu.stat of either version. Never raises."""
    found = first_column(text, frozenset(_CPU_STAT))
    return {_CPU_STAT[key][0]: value * _CPU_STAT[key][1] for key, value in found.items()}


def parse_cpu_max(text: str) -> float | None:
    """Cores of a cpu.max ("200000 100000"), or None without a limit. Never raises."""
    columns = text.split()
    return cores(columns[0], columns[1]) if len(columns) == 2 else None


def cores(quota: str, period: str) -> float | None:
    """Cores of a quota and its period, or None without a limit ("max", "-1"). Never raises."""
    microseconds, length = whole(quota), whole(period)
    return microseconds / length if microseconds and length else None


def parse_limit(text: str) -> int | None:
    """Bytes of a memory.max or memory.limit_in_bytes, or None without a limit. Never raises."""
    limit = whole(text)
    return limit if limit is not None and limit < _NO_LIMIT_BYTES else None


def parse_memory_stat(text: str, *, version: int) -> dict[str, int]:
    """Metric -> value of a memory.stat. Never raises."""
    metrics = _MEMORY_STAT if version == 2 else _MEMORY_STAT_V1
    return {metrics[key]: value for key, value in first_column(text, frozenset(metrics)).items()}


def parse_memory_events(text: str) -> dict[str, int]:
    """Metric -> value of a memory.events, or of version 1's memory.oom_control. Never raises."""
    return {_EVENTS[key]: value for key, value in first_column(text, frozenset(_EVENTS)).items()}
