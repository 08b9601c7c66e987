"""A clock that stands still until it is moved."""

from __future__ import annotations


class FakeClock:
    """A `rankscope.clock.Clock`; monotonic and wall time move together, by `advance`."""

    def __init__(self, monotonic_ns: int = 10**12, wall_ns: int = 1_700_000_000 * 10**9) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ahead_ns = wall_ns - monotonic_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._monotonic_ns + self._wall_ahead_ns

    def advance(self, ns: int) -> None:
        """Move on. Raises ValueError for a step back: that clock never takes one."""
        if ns < 0:
            raise ValueError(f"a monotonic clock does not go back ({ns} ns)")
        self._monotonic_ns += ns
