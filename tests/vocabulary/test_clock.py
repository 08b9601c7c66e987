"""Clock anchors: wall time of what happened before and after the clocks parted."""

from __future__ import annotations

import time

import pytest

from rankscope.clock import MAX_ANCHORS, PARTED_NS, ClockAnchor, PartedClocks, SystemClock
from rankscope.testing import FakeClock

SECOND = 10**9
HOUR = 3600 * SECOND


def parted(by_ns: int) -> ClockAnchor:
    """Ten seconds of one clock, then of one that was set."""
    return ClockAnchor(0, HOUR).replaced_by(ClockAnchor(10 * SECOND, HOUR + 10 * SECOND + by_ns))


@pytest.mark.parametrize("by_ns", [HOUR, -HOUR, 2 * PARTED_NS])
def test_each_time_is_by_the_clock_of_its_time(by_ns: int) -> None:
    """Before the clocks parted by the first anchor, since then by the second, both ways."""
    anchor = parted(by_ns)
    for second in range(20):
        wall_ns = HOUR + second * SECOND + (by_ns if second >= 10 else 0)
        assert anchor.to_wall_ns(second * SECOND) == wall_ns
        assert anchor.to_monotonic_ns(wall_ns, 20 * SECOND) == second * SECOND
    assert anchor.newest.ahead_ns == HOUR + by_ns


@pytest.mark.parametrize("by_ns", [HOUR, -HOUR])
def test_a_begin_is_never_after_what_began(by_ns: int) -> None:
    """And it is one and the same for every later moment: a store takes another begin for another series."""
    anchor = parted(by_ns)
    before = {anchor.begin_wall_ns(SECOND, now) for now in range(2 * SECOND, 10 * SECOND, SECOND)}
    since = {anchor.begin_wall_ns(SECOND, now) for now in range(10 * SECOND, 10 * HOUR, HOUR // 2)}
    assert before == {HOUR + SECOND}
    assert since == {HOUR + SECOND + min(0, by_ns)}
    assert all(anchor.begin_wall_ns(SECOND, now) <= anchor.to_wall_ns(now) for now in range(SECOND, 3 * HOUR, HOUR))
    assert anchor.begin_wall_ns(11 * SECOND, 12 * SECOND) == anchor.to_wall_ns(11 * SECOND)


def test_what_parts_the_clocks_is_told_apart() -> None:
    """Set forward, set back, asleep, both at once; and nothing while both go on."""
    clock = FakeClock()
    anchor, watch = ClockAnchor.take(clock), PartedClocks(clock)
    clock.advance(HOUR)
    assert watch.look(anchor) is None
    seen = []
    for set_ns, slept_ns in ((HOUR, 0), (-2 * HOUR, 0), (0, HOUR), (-SECOND, 5 * SECOND), (PARTED_NS - 1, 0)):
        clock.set_wall(set_ns)
        clock.sleep(slept_ns)
        found = watch.look(anchor.newest)
        if found is not None:
            anchor = anchor.replaced_by(found[0])
            seen.append(found[1:])
        assert abs(anchor.to_wall_ns(clock.monotonic_ns()) - clock.wall_ns()) < PARTED_NS
    assert seen == [(HOUR, 0), (-2 * HOUR, 0), (0, HOUR), (-SECOND, 5 * SECOND)]


def test_a_thread_that_was_not_run_sees_no_step() -> None:
    """One pair of readings that is torn apart is not believed."""

    class Torn(FakeClock):
        reads = 0

        def wall_ns(self) -> int:
            self.reads += 1
            return super().wall_ns() + (HOUR if self.reads == 1 else 0)

    assert PartedClocks(Torn()).look(ClockAnchor.take(FakeClock())) is None


def test_a_clock_that_is_set_for_ever_costs_no_memory() -> None:
    """The oldest anchors go."""
    anchor = ClockAnchor(0, 0)
    for number in range(3 * MAX_ANCHORS):
        anchor = anchor.replaced_by(ClockAnchor(number, HOUR * number))
    assert len(anchor.later) == MAX_ANCHORS


def test_the_host_tells_how_long_it_slept() -> None:
    """By the difference of two of the kernel's clocks, which does not change while it is awake."""
    clock = SystemClock()
    slept_ns = clock.asleep_ns()
    time.sleep(0.05)
    assert abs(clock.asleep_ns() - slept_ns) < 50_000_000 / 2
