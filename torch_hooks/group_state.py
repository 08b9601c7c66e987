"""One process group as a rank sees it: the reference of `native/groups.c`."""

from __future__ import annotations

from collections.abc import Callable

from rankscope.records import MISSING


class GroupState:
    """One process group: what it is, and what the step under way did with it."""

    __slots__ = ("_sequence", "count", "kind", "members", "name", "sequence", "size", "wait_ns")

    def __init__(
        self, name: bytes, kind: int, size: int, members: bytes, sequence: Callable[[], int] | None = None
    ) -> None:
        """`name` (48 bytes at most) and `members` (80) are as in GroupRecord; `sequence` asks torch for the number of
        the group's latest operation."""
        if len(name) > 48 or len(members) > 80:
            raise ValueError("a group's name has 48 bytes at most, its members 80")
        self.name = name
        self.kind = kind
        self.size = size
        self.members = members
        self._sequence = sequence
        #: Of the step under way: operations issued from Python, and host time waited for them.
        self.count = self.wait_ns = 0
        self.sequence = self.now()

    def now(self) -> int:
        """Sequence number of the group's latest operation, or MISSING."""
        try:
            return MISSING if self._sequence is None else int(self._sequence())
        except (RuntimeError, TypeError, ValueError):
            self._sequence = None
            return MISSING

    def since_asked(self) -> tuple[int, int]:
        """Sequence numbers of the first and the last operation since this was last asked; MISSING where none came."""
        before, latest = self.sequence, self.now()
        self.sequence = latest
        return (MISSING, MISSING) if before == MISSING or latest <= before else (before + 1, latest)
