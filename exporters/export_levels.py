"""Which of the agent's readings are exported, and how often: the recording keeps every one, a central store need not.

Of each series the first reading in every interval is sent, as it was read and with its own time: what a store holds
is a part of the recording, so a replay of the recording adds to it and contradicts nothing. Counters lose nothing by
it. What was held back of a series last is sent when the export ends, or when something urgent is exported.

The number of series is bounded: past MAX_SERIES the readings of further ones are left out, and how many series that
concerns is a series itself (`agent.series_left_out`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

from rankscope.metrics import metric_named
from rankscope.reading import Reading

_SECOND_NS = 1_000_000_000
#: Series of readings that one job's agent exports from one host at most, four times what 8 GPUs have at every level.
MAX_SERIES = 30_000
#: Series left out are remembered up to this number, to count each once; beyond it the number stands still.
_MAX_LEFT_OUT = 10_000
#: Families that are many series and change seldom; those of a level below theirs come four times as often.
SLOW_FAMILIES = frozenset({"gpu_process", "nvlink"})
_SLOWER = 4
#: A series not heard of for this long (a process that ended, a disk that went) makes room for another.
_FORGOTTEN_NS = 3600 * _SECOND_NS


class Level(IntEnum):
    """How finely a node is told apart; each level holds those before it."""

    #: The host, findings and events; step times of all its ranks merged.
    NODE = 0
    #: And each GPU.
    GPU = 1
    #: And each rank: its step times, its process, its attempt and GPU; and the peers of the ranks.
    RANK = 2
    #: And each NVLink, and each process on a GPU.
    LINK = 3


#: Family of metrics -> the least level that exports it; of every family that is not named: NODE.
FAMILY_LEVELS = {
    "gpu": Level.GPU,
    "process": Level.RANK,
    "tcp": Level.RANK,
    "nvlink": Level.LINK,
    "gpu_process": Level.LINK,
}


def level_named(name: str) -> Level:
    """The level that the configuration names ("node", "gpu", "rank", "link")."""
    return Level[name.upper()]


class ExportFilter:
    """Remembers what went out last of each series; one for the life of an export. All times are CLOCK_MONOTONIC ns."""

    def __init__(self, level: Level, interval_seconds: float, *, max_series: int = MAX_SERIES) -> None:
        """An interval of 0 sends every reading."""
        self._level = level
        self._interval_ns = int(interval_seconds * _SECOND_NS)
        self._max_series = max_series
        #: (metric, device) -> time of its last reading sent.
        self._sent: dict[tuple[str, str], int] = {}
        self._held: dict[tuple[str, str], Reading] = {}
        self._left_out: set[tuple[str, str]] = set()
        self._said_ns: int | None = None
        self._cleared_ns = 0
        #: metric -> its interval, None where it is not exported.
        self._intervals: dict[str, int | None] = {}

    @property
    def left_out(self) -> int:
        """Series that did not go out for want of room."""
        return len(self._left_out)

    @property
    def series(self) -> int:
        """Series that go out now, those of the last hour included."""
        return len(self._sent)

    def take(self, readings: Iterable[Reading]) -> Iterator[Reading]:
        """Those that go out now. Readings of one series come in order."""
        intervals, sent, held = self._intervals, self._sent, self._held
        newest_ns = 0
        for reading in readings:
            metric, _, time_ns, device = reading
            if metric not in intervals:
                intervals[metric] = self._interval_of(metric)
            interval_ns = intervals[metric]
            if time_ns > newest_ns:
                newest_ns = time_ns
            if interval_ns is None:
                continue
            key = (metric, device)
            last_ns = sent.get(key)
            if last_ns is None and not self._room(time_ns):
                if len(self._left_out) < _MAX_LEFT_OUT:
                    self._left_out.add(key)
            elif last_ns is None or not interval_ns or time_ns // interval_ns > last_ns // interval_ns:
                sent[key] = time_ns
                if held:
                    held.pop(key, None)
                yield reading
            else:
                held[key] = reading
        if self._left_out and (self._said_ns is None or newest_ns >= self._said_ns + (self._interval_ns or _SECOND_NS)):
            self._said_ns = newest_ns
            yield Reading("agent.series_left_out", float(len(self._left_out)), newest_ns)

    def flush(self) -> list[Reading]:
        """The newest reading of every series that has one newer than what was sent."""
        held = list(self._held.values())
        self._held.clear()
        return held

    def _room(self, now_ns: int) -> bool:
        """Whether there is room for one more series; those that are no more give theirs back, once a minute at most."""
        if len(self._sent) >= self._max_series and now_ns - self._cleared_ns >= 60 * _SECOND_NS:
            self._cleared_ns = now_ns
            for key in [key for key, time_ns in self._sent.items() if time_ns < now_ns - _FORGOTTEN_NS]:
                del self._sent[key]
                self._held.pop(key, None)
        return len(self._sent) < self._max_series

    def _interval_of(self, metric: str) -> int | None:
        family = metric.partition(".")[0]
        if metric_named(metric).recorded_only or FAMILY_LEVELS.get(family, Level.NODE) > self._level:
            return None
        return self._interval_ns * (_SLOWER if family in SLOW_FAMILIES else 1)
