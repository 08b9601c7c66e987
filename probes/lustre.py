"""Lustre clients: reads, writes and metadata of each mount, and how long requests to each target wait.

The files moved over the years: /proc/fs/lustre, /sys/fs/lustre, and debugfs (/sys/kernel/debug/lustre, for root alone).
Forms: Lustre Operations Manual, "Monitoring the Lustre File System".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import Absent, PermissionDenied
from rankscope.probes.numbers import whole
from rankscope.probes.sysfs import children, read_text
from rankscope.reading import Group, Outcome, Priority, ProbeResult, Reading

_NS = 10**9
_US_NS = 1000
#: Mounts, and targets, that are told at most.
MAX_MOUNTS = 16
MAX_TARGETS = 256
#: Operations of a mount's stats that are metadata, by the names of any version.
_METADATA = frozenset(
    {"open", "close", "getattr", "setattr", "create", "link", "unlink", "symlink", "mkdir", "rmdir", "mknod", "rename",
     "statfs", "getxattr", "setxattr", "listxattr", "removexattr", "inode_permission", "readdir", "truncate", "fsync"}
)  # fmt: skip
_IN_FLIGHT = re.compile(r"^(?:read|write) RPCs in flight:\s+(\d{1,10})$", re.MULTILINE)
_PENDING = re.compile(r"^pending (?:read|write) pages:\s+(\d{1,15})$", re.MULTILINE)
_TARGET = re.compile(r"-osc-(?:[0-9a-fA-FxMDT*]+)$")


def parse_stats(text: str) -> dict[str, tuple[int, str, int | None]]:
    """Name -> (count, unit, sum) of a stats file: "name count samples [unit] min max sum sumsq". Never raises."""
    found: dict[str, tuple[int, str, int | None]] = {}
    for line in text.splitlines():
        columns = line.split()
        if len(columns) < 4 or columns[2] != "samples" or (count := whole(columns[1])) is None:
            continue
        total = whole(columns[6]) if len(columns) >= 7 else None
        found[columns[0]] = (count, columns[3].strip("[]"), total)
    return found


def parse_mount(text: str) -> dict[str, int]:
    """Metric -> value of an llite stats. Never raises."""
    values: dict[str, int] = {}
    for name, (count, unit, total) in parse_stats(text).items():
        if name in ("read_bytes", "write_bytes"):
            kind = name.removesuffix("_bytes")
            values[f"lustre.{kind}s"] = count
            if total is not None:
                values[f"lustre.{name}"] = total
        elif name in ("read", "write"):
            if total is not None and unit.startswith("usec"):
                values[f"lustre.{name}_ns"] = total * _US_NS
        elif name in _METADATA:
            values["lustre.metadata_operations"] = values.get("lustre.metadata_operations", 0) + count
            if total is not None and unit.startswith("usec"):
                values["lustre.metadata_ns"] = values.get("lustre.metadata_ns", 0) + total * _US_NS
    return values


def parse_requests(text: str) -> dict[str, int]:
    """Metric -> value of a target's stats: requests and their wait. Never raises."""
    count, _, total = parse_stats(text).get("req_waittime", (None, "", None))
    if count is None:
        return {}
    return {"lustre.rpcs": count} | ({} if total is None else {"lustre.rpc_wait_ns": total * _US_NS})


def parse_rpc_stats(text: str) -> dict[str, int]:
    """Metric -> value of an osc rpc_stats: what is in flight and what waits, reads and writes. Never raises."""
    values: dict[str, int] = {}
    for metric, pattern in (("lustre.rpcs_in_flight", _IN_FLIGHT), ("lustre.pending_pages", _PENDING)):
        if numbers := [int(match[1]) for match in pattern.finditer(text)]:
            values[metric] = sum(numbers)
    return values


def target_name(directory: str) -> str:
    """ "scratch-OST0003" of "scratch-OST0003-osc-ffff888101234000"."""
    return _TARGET.sub("", directory)


class LustreProbe:
    """Probe of the Lustre mounts of this host."""

    name = "lustre"
    groups: Sequence[Group] = (
        Group("lustre", 5 * _NS, _NS, "counters of each mount"),
        Group("targets", 15 * _NS, 5 * _NS, "two files a target, of which there may be hundreds", Priority.LOW),
    )

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._roots = (sys / "kernel/debug/lustre", sys / "fs/lustre", proc / "fs/lustre")

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """Every mount, or every target, now. Raises Absent without a Lustre client, PermissionDenied, ProbeError."""
        mounts = self._directories("llite")[:MAX_MOUNTS] if group == "lustre" else []
        targets = self._directories("osc")[:MAX_TARGETS] if group == "targets" else []
        if not mounts and not targets:
            raise Absent("no Lustre client here", where=str(self._roots[-1]))
        readings: list[Reading] = []
        refused = ""
        for directory in mounts:
            try:
                values = parse_mount(read_text(directory / "stats") or "")
            except PermissionDenied as error:
                refused = str(error)
                continue
            readings += [Reading(metric, value, now_ns, directory.name) for metric, value in values.items()]
        for directory in targets:
            try:
                values = parse_requests(read_text(directory / "stats") or "")
                values |= parse_rpc_stats(read_text(directory / "rpc_stats") or "")
            except PermissionDenied as error:
                refused = str(error)
                continue
            name = target_name(directory.name)
            readings += [Reading(metric, value, now_ns, name) for metric, value in values.items()]
        outcomes = [("", Outcome.NO_PERMISSION, refused)] if refused else []
        return ProbeResult(readings, (), outcomes)

    def close(self) -> None:
        """Nothing is held."""

    def _directories(self, kind: str) -> list[Path]:
        """A mount's or target's directories: the same one may stand under several roots, of which the first has it."""
        found: dict[str, Path] = {}
        for root in self._roots:
            for directory in children(root / kind):
                if (directory / "stats").exists() or (directory / "rpc_stats").exists():
                    found.setdefault(directory.name, directory)
        return [found[name] for name in sorted(found)]
