"""Whole disks: bytes, operations, the time they took and wait (/proc/diskstats).

The latency of a read over a period is the growth of read_ns over that of reads; utilisation is that of busy_ns.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from rankscope.probes.held_file import HeldFile
from rankscope.probes.numbers import whole
from rankscope.reading import Group, ProbeResult, Reading

_NS = 10**9
_MS_NS = 10**6
#: Unit of the sector columns whatever the disk's own is (kernel: Documentation/admin-guide/iostats.rst).
_SECTOR_BYTES = 512

# Names of whole disks, local and over the network (kernel: Documentation/admin-guide/devices.txt). Partitions repeat
# their disk, loop and ram devices are memory, and device-mapper and md devices repeat the disks under them.
_WHOLE_DISK = re.compile(
    r"(?:(?:sd|vd|hd|xvd|dasd)[a-z]+|nvme\d+(?:c\d+)?n\d+|mmcblk\d+|pmem\d+|nbd\d+|rbd\d+|drbd\d+|zd\d+)"
)

#: Metric -> (column after the name, value of one unit). Columns: reads, merged, sectors, ms; writes, merged, sectors,
#: ms; in flight, ms with I/O in flight, ms of all requests in flight; discards, merged, sectors, ms (Linux 4.18);
#: flushes, ms (Linux 5.5).
_COLUMNS = {
    "disk.reads": (0, 1),
    "disk.read_bytes": (2, _SECTOR_BYTES),
    "disk.read_ns": (3, _MS_NS),
    "disk.writes": (4, 1),
    "disk.write_bytes": (6, _SECTOR_BYTES),
    "disk.write_ns": (7, _MS_NS),
    "disk.in_flight": (8, 1),
    "disk.busy_ns": (9, _MS_NS),
    "disk.queue_ns": (10, _MS_NS),
    "disk.flushes": (15, 1),
    "disk.flush_ns": (16, _MS_NS),
}
#: Columns that every kernel has.
_LEAST = 11


@functools.lru_cache(1024)
def is_whole_disk(name: str) -> bool:
    """Whether a block device is a disk of its own: no partition, loop, ram or mapped device."""
    return _WHOLE_DISK.fullmatch(name) is not None


def parse(text: str) -> dict[str, dict[str, int]]:
    """Disk -> metric -> value of a /proc/diskstats. Never raises."""
    disks: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        columns = line.split()
        if len(columns) < 3 + _LEAST or not is_whole_disk(columns[2]):
            continue
        numbers = [whole(column) for column in columns[3:20]]
        if None not in numbers[:_LEAST]:
            disks[columns[2]] = {
                metric: number * unit
                for metric, (at, unit) in _COLUMNS.items()
                if at < len(numbers) and (number := numbers[at]) is not None
            }
    return disks


class DiskProbe:
    """Probe of the host's disks; a disk without a single request since boot is left out."""

    name = "disk"
    groups: Sequence[Group] = (
        Group("disk", _NS, _NS // 5, "await is a difference of counters: short periods place a slow spell"),
    )

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._file = HeldFile(proc / "diskstats")

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """The counters now. Raises ProbeError."""
        return ProbeResult(
            [
                Reading(metric, value, now_ns, disk)
                for disk, values in parse(self._file.read()).items()
                if values["disk.reads"] or values["disk.writes"]
                for metric, value in values.items()
            ]
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()
