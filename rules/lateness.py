"""Who comes late where ranks meet: over many meetings, how often each was last, and what that cost the others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, TypeVar

Who = TypeVar("Who", bound=Hashable)
#: A rank is named where it was last, by more than the error, in this share of the meetings that have a last one.
NAMED_SHARE = 0.5
#: Fewer meetings with a last one say nothing.
LEAST_MEETINGS = 8
#: A last one that holds the others up by less than this is the order of every day, ns: kernels are timed to 1 us, and
#: one launch takes some 10 us.
LEAST_LATENESS_NS = 20_000.0


@dataclass(frozen=True, slots=True)
class Meeting(Generic[Who]):
    """One operation that nobody leaves before the last has come."""

    group: str
    #: When each came, ns, against a common moment of this meeting: only differences count.
    arrivals_ns: Mapping[Who, float]
    #: Differences below this are unordered: clocks that were compared have an error.
    error_ns: float = 0.0


@dataclass(frozen=True, slots=True)
class Lateness(Generic[Who]):
    """One rank over all its meetings."""

    who: Who
    meetings: int
    #: Meetings in which it came last by more than the error and the order of every day.
    times_last: int
    #: Median lateness against the middle of the others, ns; negative for who usually comes early.
    typical_ns: float
    #: What the meetings had been shorter by, had it come with the last but one.
    held_up_ns: float
    #: How long it waited for last ones.
    waited_ns: float

    @property
    def share(self) -> float:
        """Share of its meetings in which it was last."""
        return self.times_last / self.meetings if self.meetings else 0.0


@dataclass(frozen=True, slots=True)
class Ranking(Generic[Who]):
    """All ranks, who costs most first."""

    rows: tuple[Lateness[Who], ...]
    meetings: int
    #: Meetings in which somebody came last by more than the error and the order of every day.
    with_last: int
    #: Who holds the job up; None where nobody stands out.
    late: Lateness[Who] | None


def rank_lateness(found: Iterable[Meeting[Who]]) -> Ranking[Who]:
    """Order ranks by what their lateness costs, less what they waited for others themselves.

    A rank that is late in one group because it waited in another is a victim: what it waited is taken off.
    """
    tallies: dict[Who, _Tally] = {}
    total = with_last = 0
    for meeting in found:
        order = sorted(meeting.arrivals_ns.items(), key=lambda each: each[1])
        if len(order) < 2:
            continue
        total += 1
        values = [moment for _, moment in order]
        gap = values[-1] - values[-2]
        stands_out = gap > max(meeting.error_ns, LEAST_LATENESS_NS)
        with_last += stands_out
        for place, (who, moment) in enumerate(order):
            tally = tallies.setdefault(who, _Tally())
            tally.lateness.append(moment - _middle_without(values, place))
            if stands_out:
                tally.with_last += 1
                tally.waited_ns += values[-1] - moment
        if stands_out:
            last = tallies[order[-1][0]]
            last.times_last += 1
            last.held_up_ns += gap
    rows = [tally.of(who) for who, tally in tallies.items()]
    rows.sort(key=lambda each: each.waited_ns - each.held_up_ns)
    late = rows[0] if rows and _stands_out(rows[0], tallies[rows[0].who]) else None
    return Ranking(tuple(rows), total, with_last, late)


@dataclass(slots=True)
class _Tally:
    lateness: list[float] = field(default_factory=list)
    with_last: int = 0
    times_last: int = 0
    held_up_ns: float = 0.0
    waited_ns: float = 0.0

    def of(self, who: Who) -> Lateness[Who]:
        meetings = len(self.lateness)
        return Lateness(who, meetings, self.times_last, median(self.lateness), self.held_up_ns, self.waited_ns)


def _stands_out(row: Lateness[Who], tally: _Tally) -> bool:
    often = row.times_last >= max(LEAST_MEETINGS, NAMED_SHARE * tally.with_last)
    return often and row.held_up_ns > row.waited_ns


def _middle_without(ordered: Sequence[float], place: int) -> float:
    """Median of ordered values but the one at `place`."""
    count = len(ordered) - 1
    low, high = (count - 1) // 2, count // 2
    return (ordered[low + (low >= place)] + ordered[high + (high >= place)]) / 2
