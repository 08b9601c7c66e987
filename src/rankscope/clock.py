"""One clock: CLOCK_MONOTONIC nanoseconds on a host, with an anchor to wall time.

Everything recorded carries monotonic nanoseconds; wall time is computed from an anchor once, at the edge, so that a
stepped wall clock moves no record.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """The two times a component may read. Injected, so that an hour can pass in a test within a second."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point, never stepped."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, as the host believes."""
        ...


class SystemClock:
    """The host's own clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """One instant on both clocks."""

    monotonic_ns: int
    wall_ns: int

    @classmethod
    def take(cls, clock: Clock) -> ClockAnchor:
        """Read both clocks as one instant: the monotonic reading is the middle of two around the wall reading."""
        before = clock.monotonic_ns()
        wall = clock.wall_ns()
        return cls((before + clock.monotonic_ns()) // 2, wall)

    def to_wall_ns(self, monotonic_ns: int) -> int:
        """Wall time of a monotonic reading of the same boot."""
        return self.wall_ns + (monotonic_ns - self.monotonic_ns)


def boot_id(proc: Path = Path("/proc")) -> str:
    """The kernel's random id of this boot (36 characters), or "" where it cannot be read."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
