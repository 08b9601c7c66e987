"""A file beside the rings by which an experiment leaves out groups of probes while a job runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

NAME = "groups.off"
_MAX_BYTES = 4096


def write_groups(rings: Path, groups: tuple[str, ...]) -> None:
    """Say which groups (probe/group) are not to be read from now on. Raises OSError."""
    fresh = rings / f".{NAME}.new"
    fresh.write_text("\n".join(groups), encoding="utf-8")
    fresh.replace(rings / NAME)


class GroupSwitch:
    """The agent's end: asked every round, which costs one system call where there is no such file."""

    def __init__(self, rings: Path) -> None:
        self._path = rings / NAME

    def left_out(self) -> frozenset[str]:
        """The groups that are not to be read now; none where there is no file, or one that cannot be believed."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return frozenset()
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.getuid()):
                return frozenset()
            return frozenset(os.read(descriptor, _MAX_BYTES).decode("utf-8", "replace").split())
        except OSError:
            return frozenset()
        finally:
            os.close(descriptor)
