"""Readings of a device over stretches of time: typical values, rates of counters, shares of a bit.

None always means "not seen": no series, or none of it near those stretches. Never zero.
"""

from __future__ import annotations

import numpy as np

from rankscope.reading import Event
from rankscope.rules.frame import FloatArray, IntArray, Intervals
from rankscope.window import SeriesKey, Window

#: A reading this near to a stretch still speaks for it: steady groups are read once a second.
SLACK_NS = 1_500_000_000
#: Share of the stretches that a counter's readings must span.
_COVERED = 0.5


class Telemetry:
    """The readings of a window, asked by host, metric, device and time."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._cache: dict[SeriesKey, tuple[IntArray, FloatArray]] = {}
        self._devices: dict[tuple[str, str], list[str]] = {}
        self._events: dict[str, list[Event]] | None = None

    def _series(self, host: str, metric: str, device: str) -> tuple[IntArray, FloatArray] | None:
        key = SeriesKey(host, metric, device)
        if key not in self._cache:
            series = self._window.series.get(key)
            if series is None or not len(series.times_ns):
                return None
            # Views, not copies: a thousand GPUs have tens of thousands of series.
            self._cache[key] = (
                np.frombuffer(series.times_ns, dtype=np.int64),
                np.frombuffer(series.values, dtype=series.values.typecode),
            )
        return self._cache[key]

    def events(self, device: str) -> list[Event]:
        """Events of a device that happened in the window. What a log held from before does not count."""
        if self._events is None:
            self._events = {}
            for event in self._window.events:
                if event.time_ns >= self._window.begin_ns and not event.attributes.get("history"):
                    self._events.setdefault(event.device, []).append(event)
        return self._events.get(device, [])

    def devices(self, host: str, metric: str) -> tuple[str, ...]:
        """Devices of a host that a metric was read of."""
        if not self._devices:
            for key in self._window.series:
                self._devices.setdefault((key.host, key.metric), []).append(key.device)
        return tuple(sorted(self._devices.get((host, metric), ())))

    def values(self, host: str, metric: str, device: str, over: Intervals) -> FloatArray | None:
        """The readings within the stretches, or the nearest one where they fall between two."""
        found = self._series(host, metric, device)
        if found is None or not over:
            return None
        times, values = found
        inside = np.zeros(len(times), dtype=bool)
        for begin, end in over:
            inside |= (times >= begin) & (times <= end)
        if inside.any():
            return values[inside]
        gaps = [np.maximum(begin - times, times - end) for begin, end in over]
        nearest = np.min(np.stack(gaps), axis=0)
        place = int(np.argmin(nearest))
        return values[place : place + 1] if nearest[place] <= SLACK_NS else None

    def typical(self, host: str, metric: str, device: str, over: Intervals) -> float | None:
        """Median reading."""
        values = self.values(host, metric, device, over)
        return None if values is None else float(np.median(values))

    def average(self, host: str, metric: str, device: str, over: Intervals) -> float | None:
        """Mean reading."""
        values = self.values(host, metric, device, over)
        return None if values is None else float(values.mean())

    def bit_share(self, host: str, metric: str, device: str, bits: int, over: Intervals) -> float | None:
        """Share of the readings in which one of `bits` is set."""
        values = self.values(host, metric, device, over)
        return None if values is None else float(((values.astype(np.int64) & bits) != 0).mean())

    def growth(self, host: str, metric: str, device: str, over: Intervals) -> float | None:
        """How far a counter moved within the stretches; one that starts anew counts from zero."""
        found = self._series(host, metric, device)
        if found is None or not over or len(found[0]) < 2:
            return None
        times, values = found
        steps = np.diff(values)
        total = np.concatenate(([0.0], np.cumsum(np.where(steps < 0, values[1:], steps))))
        first, last = int(times[0]), int(times[-1])
        grown = covered = asked = 0.0
        for begin, end in over:
            low, high = max(begin, first), min(end, last)
            asked += end - begin
            if high > low:
                covered += high - low
                before, after = np.interp([low, high], times, total)
                grown += float(after - before)
        if asked <= 0 or covered < min(_COVERED * asked, SLACK_NS):
            return None
        return grown * asked / covered

    def rate(self, host: str, metric: str, device: str, over: Intervals) -> float | None:
        """A counter's growth in a second."""
        grown = self.growth(host, metric, device, over)
        length = sum(end - begin for begin, end in over)
        return None if grown is None or length <= 0 else grown / (length / 1e9)

    def ends(self, host: str, metric: str, device: str) -> int | None:
        """When the last reading was taken."""
        found = self._series(host, metric, device)
        return None if found is None else int(found[0][-1])
