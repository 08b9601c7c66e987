"""Sets of times: merged, intersected and added up."""

from __future__ import annotations

import numpy as np

from rankscope.rules.trace.events import IntArray


class Intervals:
    """Disjoint intervals in order, in ns; those that touch are one."""

    def __init__(self, start_ns: IntArray, end_ns: IntArray) -> None:
        order = np.argsort(start_ns, kind="stable")
        start, end = start_ns[order], np.maximum(end_ns[order], start_ns[order])
        reach = np.maximum.accumulate(end)
        apart = np.flatnonzero(start[1:] > reach[:-1])
        first, last = (np.concatenate(([0], apart + 1)), np.concatenate((apart, [len(start) - 1])))
        some = slice(None) if len(start) else slice(0)
        self.start: IntArray = start[first[some]]
        self.end: IntArray = reach[last[some]]

    @property
    def total(self) -> int:
        """ns covered."""
        return int((self.end - self.start).sum())

    @property
    def span(self) -> int:
        """ns from the first start to the last end; 0 where there is nothing."""
        return int(self.end[-1] - self.start[0]) if len(self.start) else 0

    def covered(self, until_ns: IntArray) -> IntArray:
        """ns covered before each of the times."""
        if not len(self.start):
            return np.zeros(len(until_ns), np.int64)
        before = np.concatenate(([0], np.cumsum(self.end - self.start)))
        places = np.searchsorted(self.start, until_ns, side="right")
        inside = np.where(places > 0, np.maximum(self.end[places - 1] - until_ns, 0), 0)
        return before[places] - inside

    def within(self, start_ns: IntArray, end_ns: IntArray) -> IntArray:
        """ns covered inside each of the given intervals."""
        return self.covered(end_ns) - self.covered(start_ns)

    def overlap(self, other: Intervals) -> int:
        """ns covered by both."""
        return int(self.within(other.start, other.end).sum())

    def gaps(self) -> tuple[IntArray, IntArray]:
        """Start and end of what lies uncovered between the intervals."""
        return self.end[:-1], self.start[1:]
