"""Idle time: what the device waited for before each event, by the definitions of Holistic Trace Analysis.

On one stream, the gap before an event is *host wait* where the call that launched it began after the previous event had
ended, else *kernel wait* where it is shorter than a threshold, else *other* (a wait for another stream, a full queue).
Gaps are summed with their sign: events of one stream that overlap take from the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from rankscope.rules.trace.events import NONE, NS_PER_US, IntArray, SmallArray, Trace, streams_of
from rankscope.rules.trace.intervals import Intervals
from rankscope.rules.trace.scope import Scope

#: Holistic Trace Analysis documents its 30 as nanoseconds and compares it with microseconds (0.5.0,
#: `_analyze_idle_time_for_stream`: `idle_interval < consecutive_kernel_delay`). The same idle breakdown needs the same.
KERNEL_WAIT_NS = 30 * NS_PER_US


class Cause(IntEnum):
    """What a gap is put down to."""

    HOST_WAIT = 0
    KERNEL_WAIT = 1
    OTHER = 2


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle time by cause, of one stream or of a whole device."""

    device: int
    #: None for all streams of the device together.
    stream: int | None
    #: ns by `Cause`.
    by_cause_ns: tuple[int, int, int]
    gaps: int

    @property
    def total_ns(self) -> int:
        """All of it."""
        return sum(self.by_cause_ns)


@dataclass(frozen=True)
class Gaps:
    """Times in which a device ran nothing on any stream, each with the event that ended it."""

    device: int
    start_ns: IntArray
    end_ns: IntArray
    cause: IntArray
    #: Place in the scope's table of the event that began at its end (of several, the one launched last).
    next: IntArray

    def __len__(self) -> int:
        return len(self.start_ns)


def _causes(launch_ns: IntArray, before_ns: IntArray, gap_ns: IntArray, threshold_ns: int) -> IntArray:
    host = (launch_ns != NONE) & (launch_ns > before_ns)
    short = gap_ns < threshold_ns
    return np.where(host, Cause.HOST_WAIT, np.where(short, Cause.KERNEL_WAIT, Cause.OTHER)).astype(np.int64)


def stream_idle(scope: Scope, threshold_ns: int = KERNEL_WAIT_NS, *, whole_us: bool = False) -> list[Idle]:
    """Idle time of each stream. `whole_us` shrinks every event to whole microseconds first."""
    table, launch = scope.table, scope.launch_ns
    start, end = table.start_ns, table.end_ns
    if whole_us:
        start, end = shrink(scope.trace, start, end)
        launch = np.where(launch == NONE, NONE, -(-launch // NS_PER_US) * NS_PER_US)
    found = []
    works = scope.works
    key = streams_of(table)
    for each in _in_order(key[works]):
        rows = np.flatnonzero(works & (key == each))
        rows = rows[np.argsort(start[rows], kind="stable")]
        gap = start[rows[1:]] - end[rows[:-1]]
        cause = _causes(launch[rows[1:]], end[rows[:-1]], gap, threshold_ns)
        found.append(
            Idle(int(table.device[rows[0]]), int(table.stream[rows[0]]), _sums(cause, gap), int((gap > 0).sum()))
        )
    return found


def device_gaps(scope: Scope, threshold_ns: int = KERNEL_WAIT_NS) -> list[Gaps]:
    """For each device the times in which none of its streams ran anything."""
    table = scope.table
    found = []
    for device in _in_order(table.device[scope.works]):
        rows = np.flatnonzero(scope.works & (table.device == device))
        begin, until = Intervals(table.start_ns[rows], table.end_ns[rows]).gaps()
        # Rows are in order of start: the last of those that start where the gap ends.
        after = rows[np.searchsorted(table.start_ns[rows], until, side="right") - 1]
        cause = _causes(scope.launch_ns[after], begin, until - begin, threshold_ns)
        found.append(Gaps(int(device), begin, until, cause, after))
    return found


def idle_of(gaps: Gaps) -> Idle:
    """Idle time of a whole device by cause."""
    return Idle(gaps.device, None, _sums(gaps.cause, gaps.end_ns - gaps.start_ns), len(gaps))


def shrink(trace: Trace, start_ns: IntArray, end_ns: IntArray) -> tuple[IntArray, IntArray]:
    """Starts rounded up and ends down to whole us: what Holistic Trace Analysis does to traces with fractions.

    It adds start and duration as doubles, which at 1.7e15 us since 1970 hold no more than quarters of a microsecond.
    """
    start_us = trace.zero_us + start_ns / NS_PER_US
    end_us = np.floor(start_us + (end_ns - start_ns) / NS_PER_US)
    whole = ((np.ceil(start_us) - trace.zero_us).astype(np.int64), (end_us - trace.zero_us).astype(np.int64))
    return whole[0] * NS_PER_US, whole[1] * NS_PER_US


def _sums(cause: IntArray, gap: IntArray) -> tuple[int, int, int]:
    host, kernel, other = (int(gap[cause == each].sum()) for each in Cause)
    return host, kernel, other


def _in_order(values: IntArray | SmallArray) -> list[int]:
    """Each value once, in order of first appearance."""
    unique, first = np.unique(values, return_index=True)
    return [int(value) for value in unique[np.argsort(first)]]
