"""Readings of a growing recording for one who reads it again and again: kept, so that only what is new is read."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from rankscope.window import Series

#: A reading is written no later than this after others that were taken after it: probes' deadlines are shorter.
_LATE_NS = 30 * 10**9
#: Readings kept at most, 16 bytes each: twice what eight GPUs give in ten minutes, a third of it in a burst.
MAX_READINGS = 400_000


class KeptReadings:
    """Of one recording, and of windows of it that only move on, as the live rules' do."""

    def __init__(self) -> None:
        self._series: dict[int, Series] = {}
        self._newest_ns: int | None = None
        #: Readings that were read so far; those of the last half minute are read anew each time.
        self.read = 0

    def missing_since(self, since_ns: int) -> int:
        """From which time on readings are to be read, for a window that begins at `since_ns`."""
        return since_ns if self._newest_ns is None else max(since_ns, self._newest_ns - _LATE_NS)

    def move_on(self, since_ns: int) -> None:
        """Let go of what is before the window, and of what is read anew."""
        missing_ns = self.missing_since(since_ns)
        for number, kept in list(self._series.items()):
            first, last = bisect_left(kept.times_ns, since_ns), bisect_left(kept.times_ns, missing_ns)
            if first < last:
                self._series[number] = Series(kept.times_ns[first:last], kept.values[first:last])
            else:
                del self._series[number]
        if sum(len(kept.times_ns) for kept in self._series.values()) > MAX_READINGS:
            self._thin()

    def _thin(self) -> None:
        """Keep every second reading of the older half of a series, as a recording does with its own; of those that have
        more than their share."""
        share = MAX_READINGS // len(self._series)
        for number, kept in self._series.items():
            if len(kept.times_ns) <= share:
                continue
            middle = len(kept.times_ns) // 2
            self._series[number] = Series(
                kept.times_ns[:middle:2] + kept.times_ns[middle:], kept.values[:middle:2] + kept.values[middle:]
            )

    def add(self, number: int, times_ns: Sequence[int], values: Sequence[float]) -> None:
        """The readings of a series since `missing_since`, one at least, in order."""
        kept = self._series.get(number)
        if kept is None:
            kept = self._series[number] = Series(array("q"), array("d"))
        kept.times_ns.extend(times_ns)
        kept.values.extend(values)
        self.read += len(times_ns)
        self._newest_ns = times_ns[-1] if self._newest_ns is None else max(self._newest_ns, times_ns[-1])

    def window(self) -> Iterator[tuple[int, Series]]:
        """Every series with a reading in the window, by its number; good until the window moves on."""
        return iter(self._series.items())
