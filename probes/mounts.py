"""Which filesystems a process can reach (/proc/PID/mountinfo). A pure function of text that raises for no text."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Filesystems that hold no files of anybody, or files of the kernel's making (proc(5), filesystems of Linux).
_NO_STORAGE = frozenset(
    {"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
     "fuse.gvfsd-fuse", "fuse.lxcfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs",
     "rootfs", "securityfs", "selinuxfs", "squashfs", "sysfs", "tracefs"}
)  # fmt: skip
#: Of the filesystems in memory, the ones that jobs fill.
_MEMORY_TOLD = ("/dev/shm", "/tmp")
#: Filesystems behind a network, which may not answer.
_REMOTE = ("nfs", "lustre", "ceph", "cifs", "smb3", "9p", "beegfs", "gpfs", "glusterfs", "fuse")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One filesystem: where it is mounted, its type, and whether a network lies between."""

    path: str
    kind: str
    remote: bool


def parse(text: str, limit: int) -> list[Mount]:
    """At most `limit` filesystems that hold files; one mounted in several places is told at the shortest path.

    Line: "36 35 98:0 /root /mount options [optional fields] - type source options" (proc(5)). Never raises.
    """
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        front, dash, back = line.partition(" - ")
        columns, kinds = front.split(" "), back.split(" ")
        if not dash or len(columns) < 6 or not columns[4].startswith("/"):
            continue
        path, kind = _OCTAL.sub(lambda match: chr(int(match[1], 8)), columns[4]), kinds[0]
        if not kind or kind in _NO_STORAGE or (kind == "tmpfs" and path not in _MEMORY_TOLD):
            continue
        known = found.get(columns[2])
        if known is None or len(path) < len(known.path):
            found[columns[2]] = Mount(path, kind, kind.startswith(_REMOTE))
    return sorted(found.values(), key=lambda mount: mount.path)[:limit]
