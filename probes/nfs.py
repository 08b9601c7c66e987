"""NFS mounts of the job: what each kind of request cost, and where (/proc/PID/mountstats of a rank).

Over a period, rtt_ns / operations is the server and the way to it, queue_ns the client's own queue, execute_ns minus
both the rest of the client; transmissions beyond operations were sent again. Kernel: net/sunrpc/stats.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankscope.errors import ProbeError
from rankscope.probes.held_file import HeldFile
from rankscope.probes.numbers import whole
from rankscope.reading import Group, Priority, ProbeResult, Reading

_NS = 10**9
_MS_NS = 10**6
#: Mounts that are told at most.
MAX_MOUNTS = 32
#: Operations that are told by themselves; every other one is part of OTHER.
OPERATIONS = frozenset(
    {
        "READ",
        "WRITE",
        "COMMIT",
        "OPEN",
        "CLOSE",
        "GETATTR",
        "SETATTR",
        "LOOKUP",
        "ACCESS",
        "READDIR",
        "CREATE",
        "REMOVE",
    }
)
OTHER = "OTHER"
#: Metric and value of one unit, by column behind the operation's name; the last is there from Linux 5.3 on.
_COLUMNS = (
    ("nfs.operations", 1),
    ("nfs.transmissions", 1),
    ("nfs.timeouts", 1),
    ("nfs.sent_bytes", 1),
    ("nfs.received_bytes", 1),
    ("nfs.queue_ns", _MS_NS),
    ("nfs.rtt_ns", _MS_NS),
    ("nfs.execute_ns", _MS_NS),
    ("nfs.errors", 1),
)
_LEAST = 8
#: Operations of which there was one at least: most of a mount's sixty never are.
_USED = re.compile(r"^[ \t]*([A-Z][A-Z0-9_]{0,40}): (?!0 )([0-9 ]{15,250})$", re.MULTILINE)
#: READDIRPLUS of version 3 and the opens without confirmation of version 4 are what their short names say.
_SHORT = {f"{name}{suffix}": name for name in OPERATIONS for suffix in ("", "PLUS", "_NOATTR")}

Operations = dict[str, dict[str, int]]


def parse(text: str) -> dict[str, Operations]:
    """Mount point -> operation -> metric -> value of a mountstats, operations that were never used left out.

    A filesystem that is mounted in several places counts once, at the first. Never raises.
    """
    mounts: dict[str, Operations] = {}
    seen: set[tuple[str, str]] = set()
    for block in ("\n" + text).split("\ndevice ")[1:]:
        head, _, body = block.partition("\n")
        mount = _mount_point(head)
        # The same superblock has the same server and the same counts.
        identity = (head.partition(" mounted on ")[0], body.strip())
        if mount is None or identity in seen or len(mounts) >= MAX_MOUNTS:
            continue
        seen.add(identity)
        _, found, rows = body.partition("per-op statistics")
        if found and (operations := _operations(rows)):
            mounts[mount] = operations
    return mounts


def _mount_point(head: str) -> str | None:
    """Of "SERVER:/EXPORT mounted on /DATA with fstype nfs4 statvers=1.1"; spaces are written as \\040."""
    _, found, rest = head.partition(" mounted on ")
    mount, kind, fstype = rest.partition(" with fstype ")
    if not found or not kind or not fstype.startswith("nfs") or not mount.startswith("/"):
        return None
    return mount.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _operations(rows: str) -> Operations:
    operations: Operations = {}
    for match in _USED.finditer(rows):
        columns = [whole(column) for column in match[2].split()[: len(_COLUMNS)]]
        if len(columns) < _LEAST or None in columns:
            continue
        into = operations.setdefault(_SHORT.get(match[1], OTHER), {})
        for (metric, unit), value in zip(_COLUMNS, columns, strict=False):
            if value is not None:
                into[metric] = into.get(metric, 0) + value * unit
    return operations


class NfsProbe:
    """Probe of the NFS mounts that the ranks see; `set_ranks` says which processes those are."""

    name = "nfs"
    groups: Sequence[Group] = (
        Group("nfs", 2 * _NS, _NS // 2, "counters; a slow spell shows in the period it was in", Priority.HIGH),
    )

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._pids: tuple[int, ...] = ()
        self._file: HeldFile | None = None

    def set_ranks(self, pids: Mapping[int, int]) -> None:
        """Read through one of these processes from now on: rank -> process id. Ranks of a host share their mounts."""
        if (now := tuple(pid for _, pid in sorted(pids.items()))) != self._pids:
            self._pids = now
            self.close()

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """Every mount now; nothing where there is no NFS. Raises PermissionDenied or ProbeError."""
        text = self._text()
        return ProbeResult(
            [
                Reading(metric, value, now_ns, f"{operation} {mount}")
                for mount, operations in parse(text).items()
                for operation, values in operations.items()
                for metric, value in values.items()
            ]
        )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _text(self) -> str:
        """The mountstats of the first rank that is still there."""
        failure: ProbeError | None = None
        if self._file is not None:
            try:
                return self._file.read()
            except ProbeError:
                self.close()
        for pid in self._pids:
            file = HeldFile(self._proc / str(pid) / "mountstats")
            try:
                text = file.read()
            except ProbeError as error:
                file.close()
                failure = error
                continue
            self._file = file
            return text
        if failure is not None and (self._proc / str(self._pids[0])).exists():
            raise failure
        return ""
