"""Directories that are looked into again and again: whether there may be anything new in them."""

from __future__ import annotations

import time
from pathlib import Path

#: The kernel dates a change by the tick: a directory that had changed this shortly before it was looked into is looked
#: into again.
_SAME_MOMENT_NS = 2 * 10**9


class ChangedDirectories:
    """Remembers of each directory when it had last changed when it was looked into."""

    def __init__(self) -> None:
        #: When it had changed, and when it was looked into, wall time in ns.
        self._looked: dict[Path, tuple[int, int]] = {}

    def changed(self, directory: Path) -> bool:
        """Whether files may have come or gone since this was last asked. Raises OSError where there is none."""
        changed_ns = directory.stat().st_mtime_ns
        known_ns, looked_ns = self._looked.get(directory, (0, 0))
        if changed_ns == known_ns and looked_ns - changed_ns > _SAME_MOMENT_NS:
            return False
        self._looked[directory] = changed_ns, time.time_ns()
        return True
