"""Memory of each NUMA node, and whether tasks got it from their own (/sys/devices/system/node)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import Unsupported
from rankscope.probes.numbers import cpu_list, first_column
from rankscope.probes.sysfs import children, read_text
from rankscope.reading import Group, Priority, ProbeResult, Reading

_NS = 10**9
_KIB = 1024
_NUMASTAT = {
    "local_node": "numa.local_pages",
    "other_node": "numa.remote_pages",
    "numa_miss": "numa.missed_pages",
}
_KEYS = frozenset(_NUMASTAT)
_MEMORY = re.compile(r"^Node \d{1,6} (MemTotal|MemFree):\s+(\d{1,18}) kB", re.MULTILINE)
_MEMORY_METRICS = {"MemTotal": "numa.memory_total_bytes", "MemFree": "numa.memory_free_bytes"}


def parse_numastat(text: str) -> dict[str, int]:
    """Metric -> pages of a node's numastat. Never raises."""
    return {_NUMASTAT[key]: value for key, value in first_column(text, _KEYS).items()}


def parse_meminfo(text: str) -> dict[str, int]:
    """Metric -> bytes of a node's meminfo. Never raises."""
    return {_MEMORY_METRICS[match[1]]: int(match[2]) * _KIB for match in _MEMORY.finditer(text)}


def nodes_of_cpus(sys: Path = Path("/sys")) -> dict[int, int]:
    """CPU -> NUMA node; empty where the kernel tells none."""
    found: dict[int, int] = {}
    for node in children(sys / "devices/system/node", "node[0-9]*"):
        number = node.name.removeprefix("node")
        cpus = cpu_list(read_text(node / "cpulist") or "")
        if number.isascii() and number.isdigit():
            found |= dict.fromkeys(cpus or (), int(number))
    return found


class NumaProbe:
    """Probe of the NUMA nodes."""

    name = "numa"
    groups: Sequence[Group] = (
        Group("numa", 10 * _NS, 2 * _NS, "counters, and memory that moves between nodes over seconds", Priority.LOW),
    )

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._nodes = sys / "devices/system/node"

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """The values now. Raises Unsupported where the kernel tells no nodes, PermissionDenied, ProbeError."""
        nodes = children(self._nodes, "node[0-9]*")
        if not nodes:
            raise Unsupported("no NUMA node is told here", where=str(self._nodes))
        readings = []
        for node in nodes:
            values = parse_numastat(read_text(node / "numastat") or "")
            values |= parse_meminfo(read_text(node / "meminfo") or "")
            readings += [Reading(metric, value, now_ns, node.name) for metric, value in values.items()]
        return ProbeResult(readings)

    def close(self) -> None:
        """Nothing is held."""
