"""Host memory, major faults and swapping (/proc/meminfo, /proc/vmstat)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankscope.probes.held_file import HeldFile
from rankscope.reading import Group, ProbeResult, Reading

_NS = 10**9
_KIB = 1024

#: Key -> (metric, bytes or pages in one unit of the file).
_MEMINFO = {
    "MemTotal:": ("host.memory_total_bytes", _KIB),
    "MemAvailable:": ("host.memory_available_bytes", _KIB),
}
_VMSTAT = {"pgmajfault": ("host.major_faults", 1), "pswpin": ("host.swap_in_pages", 1)}


def parse_meminfo(text: str) -> dict[str, float]:
    """Metric -> value of a /proc/meminfo. Never raises."""
    return _parse(text, _MEMINFO)


def parse_vmstat(text: str) -> dict[str, float]:
    """Metric -> value of a /proc/vmstat. Never raises."""
    return _parse(text, _VMSTAT)


def _parse(text: str, wanted: dict[str, tuple[str, int]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for line in text.splitlines():
        key, _, rest = line.partition(" ")
        number = rest.split()[:1]
        if key in wanted and number and number[0].isascii() and number[0].isdigit() and len(number[0]) <= 20:
            metric, unit = wanted[key]
            values[metric] = int(number[0]) * unit
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
        values = parse_meminfo(self._meminfo.read()) | parse_vmstat(self._vmstat.read())
        return ProbeResult([Reading(metric, value, now_ns) for metric, value in values.items()])

    def close(self) -> None:
        """Close the files."""
        self._meminfo.close()
        self._vmstat.close()
