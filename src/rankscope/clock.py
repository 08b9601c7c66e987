"""One clock: CLOCK_MONOTONIC nanoseconds on a host, with an anchor to wall time.

Everything recorded carries monotonic nanoseconds; wall time is computed from an anchor once, at the edge, so that a
stepped wall clock moves no record. Where the two clocks part - the wall clock is set, or the host sleeps, which the
monotonic clock does not count - another anchor holds from then on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

#: By how much the clocks must have parted to count, ns: ten times what chrony lets a wall clock be off in a datacentre.
PARTED_NS = 1_000_000
#: Anchors kept of one recording; a clock that is set again and again loses the oldest.
MAX_ANCHORS = 256


class Clock(Protocol):
    """The times a component may read. Injected, so that an hour can pass in a test within a second."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point, never stepped."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, as the host believes."""
        ...

    def asleep_ns(self) -> int:
        """Nanoseconds that the host has been suspended since it started: the monotonic clock stood still meanwhile."""
        ...


class SystemClock:
    """The host's own clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()

    def asleep_ns(self) -> int:
        # A thread may not be run between two readings: of three tries the one whose readings were closest.
        tries = []
        for _ in range(3):
            before = time.monotonic_ns()
            boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            after = time.monotonic_ns()
            tries.append((after - before, boot - (before + after) // 2))
        return max(0, min(tries)[1])


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """One instant on both clocks, and the anchors that took its place later, in order."""

    monotonic_ns: int
    wall_ns: int
    later: tuple[ClockAnchor, ...] = ()

    @classmethod
    def take(cls, clock: Clock) -> ClockAnchor:
        """Read both clocks as one instant: the monotonic reading is the middle of two around the wall reading."""
        before = clock.monotonic_ns()
        wall = clock.wall_ns()
        return cls((before + clock.monotonic_ns()) // 2, wall)

    @property
    def ahead_ns(self) -> int:
        """How far wall time is ahead of monotonic time here."""
        return self.wall_ns - self.monotonic_ns

    @property
    def newest(self) -> ClockAnchor:
        """The anchor that holds now."""
        return self.later[-1] if self.later else self

    def to_wall_ns(self, monotonic_ns: int) -> int:
        """Wall time of a monotonic reading of the same boot."""
        if not self.later:
            return self.wall_ns + (monotonic_ns - self.monotonic_ns)
        return monotonic_ns + self._at(monotonic_ns).ahead_ns

    def begin_wall_ns(self, begin_ns: int, now_ns: int) -> int:
        """Wall time of the begin of what is still counted at `now_ns`: the same each time, and never after now.

        Where the wall clock was set back in between, the begin is on the clock that was set.
        """
        if not self.later:
            return self.wall_ns + (begin_ns - self.monotonic_ns)
        first = self._at(begin_ns).ahead_ns
        between = [each.ahead_ns for each in self.later if begin_ns < each.monotonic_ns <= now_ns]
        return begin_ns + min([first, *between])

    def to_monotonic_ns(self, wall_ns: int, now_ns: int) -> int:
        """When something was, by `now_ns` at the latest, that is dated by the wall clock: by the newest anchor that can
        be meant."""
        times = ((wall_ns - each.ahead_ns, each) for each in reversed(self.later))
        meant = (time_ns for time_ns, each in times if each.monotonic_ns <= time_ns <= now_ns + PARTED_NS)
        return next(meant, wall_ns - self.ahead_ns)

    def replaced_by(self, anchor: ClockAnchor) -> ClockAnchor:
        """This one until `anchor`, and that one from then on."""
        return replace(self, later=(*self.later, anchor)[-MAX_ANCHORS:])

    def _at(self, monotonic_ns: int) -> ClockAnchor:
        return next((each for each in reversed(self.later) if monotonic_ns >= each.monotonic_ns), self)


class PartedClocks:
    """Notices that the wall clock was set or the host slept. Call `look` now and then."""

    def __init__(self, clock: Clock, asleep_ns: int | None = None) -> None:
        """`asleep_ns` is what the host had slept when the newest anchor was taken; None: what it has by now."""
        self._clock = clock
        #: What the host had slept at the last look, ns.
        self.asleep_ns = clock.asleep_ns() if asleep_ns is None else asleep_ns

    def look(self, anchor: ClockAnchor) -> tuple[ClockAnchor, int, int] | None:
        """(the anchor from now on, by how much the wall clock was set, how long the host slept, ns); None while
        `anchor` holds."""
        taken = anchor
        # A thread that is not run between two readings sees a step that is none: not three times the same.
        for _ in range(3):
            before, taken = taken, ClockAnchor.take(self._clock)
            if abs(taken.ahead_ns - anchor.ahead_ns) < PARTED_NS:
                return None
        if abs(taken.ahead_ns - before.ahead_ns) >= PARTED_NS:
            return None
        slept_ns = max(0, self._clock.asleep_ns() - self.asleep_ns)
        if slept_ns < PARTED_NS:
            slept_ns = 0
        self.asleep_ns += slept_ns
        return taken, taken.ahead_ns - anchor.ahead_ns - slept_ns, slept_ns


def boot_id(proc: Path = Path("/proc")) -> str:
    """The kernel's random id of this boot (36 characters), or "" where it cannot be read."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
