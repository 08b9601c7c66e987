"""A clock that stands still until it is moved."""

from __future__ import annotations


class FakeClock:
    """A `rankscope.clock.Clock`; monotonic and wall time move together by `advance`, and part where a test says so."""

    def __init__(self, monotonic_ns: int = 10**12, wall_ns: int = 1_700_000_000 * 10**9) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ahead_ns = wall_ns - monotonic_ns
        self._asleep_ns = 0

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._monotonic_ns + self._wall_ahead_ns

    def advance(self, ns: int) -> None:
        """Move on. Raises ValueError for a step back: that clock never takes one."""
        if ns < 0:
            raise ValueError(f"a monotonic clock does not go back ({ns} ns)")
        self._monotonic_ns += ns

    def asleep_ns(self) -> int:
        return self._asleep_ns

    def set_wall(self, by_ns: int) -> None:
        """Set the wall clock forward, or back."""
        self._wall_ahead_ns += by_ns

    def sleep(self, ns: int) -> None:
        """Suspend the host for so long: the wall clock goes on, the monotonic one does not."""
        self._wall_ahead_ns += ns
        self._asleep_ns += ns
