"""Clocks of a job's hosts in a metric store: how far each is ahead, by when each told of the same steps.

Samples carry the wall clock of the host that made them. Ranks make their steps together, so that the step numbers of
two hosts are one curve, and what shifts the one against the other is their clocks. An agent's exports date a step to
within the interval between two of them: what differs by less is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankscope.agent.store import Store
from rankscope.agent.store_job import StoredJob, quoted
from rankscope.agent.store_suspects import MOST_RANKS

#: How far off a clock is looked for, where ranks are missing in the job's own time.
SEARCHED_S = 7200.0
#: Points of a search: Prometheus gives 11 000.
_MOST_POINTS = 10_000
#: Steps at which two curves are compared, and the fewest of both that there must be in common.
_COMPARED, _LEAST_STEPS = 9, 4
#: Shifts at these steps may scatter by so many intervals; curves that differ by more are of no one run.
_SCATTER = 3.0

_Curve = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HostAhead:
    """A host whose wall clock is ahead (behind: negative) of the others' by more than the store's rows are apart."""

    host: str
    ahead_s: float
    error_s: float
    #: Steps of the job over which both curves were compared.
    steps: int


@dataclass(slots=True)
class _Told:
    """What the ranks of one host told: (time, step) in order, and the ranks."""

    points: dict[float, float] = field(default_factory=dict)
    ranks: set[str] = field(default_factory=set)

    def curve(self) -> _Curve:
        """Times and steps, where steps went on."""
        times = np.array(sorted(self.points))
        steps = np.array([self.points[time] for time in times])
        on = np.concatenate(([True], steps[1:] > np.maximum.accumulate(steps)[:-1])) if len(steps) else steps > 0
        return np.stack((times[on], steps[on]))


def hosts_ahead(store: Store, job: StoredJob) -> list[HostAhead]:
    """The hosts of a job of at most MOST_RANKS ranks whose clocks are apart. Raises StoreError."""
    if job.world_size > MOST_RANKS:
        return []
    here = _told(store, job, job.begin_s, job.end_s, job.step_s)
    if not here:
        return []
    first = max(sorted(here), key=lambda host: len(here[host].points))
    apart = {host: of.curve() for host, of in here.items() if host != first}
    if len(set().union(*(of.ranks for of in here.values()))) < job.world_size:
        apart |= _elsewhere(store, job, here)
    reference = here[first].curve()
    found = [_ahead(host, reference, curve, job.step_s) for host, curve in sorted(apart.items())]
    return [each for each in found if each is not None]


def _told(
    store: Store, job: StoredJob, begin_s: float, end_s: float, step_s: float, host: str = ""
) -> dict[str, _Told]:
    """Host -> what its ranks told in a time."""
    steps = f"max by (host_name, rankscope_rank) (rankscope_rank_step{job.select(host)})"
    found: dict[str, _Told] = {}
    for series in store.over(steps, begin_s, end_s, step_s, 1.5 * step_s):
        of = found.setdefault(series.metric.get("host_name", ""), _Told())
        of.ranks.add(series.metric.get("rankscope_rank", ""))
        for time_s, text in series.values:
            of.points[time_s] = max(of.points.get(time_s, 0.0), float(text))
    return found


def _elsewhere(store: Store, job: StoredJob, here: Mapping[str, _Told]) -> dict[str, _Curve]:
    """Curves of hosts that told of the missing ranks at another time, at which nobody told of those that are here.

    At a time at which they did, it was another run of the job.
    """
    begin_s, end_s = job.begin_s - SEARCHED_S, job.end_s + SEARCHED_S
    pace_s = max(job.step_s, (end_s - begin_s) / _MOST_POINTS)
    everywhere = _told(store, job, begin_s, end_s, pace_s)
    known = set().union(*(of.ranks for of in here.values()))
    taken = [
        time_s
        for of in everywhere.values()
        if of.ranks & known
        for time_s in of.points
        if not job.begin_s - pace_s <= time_s <= job.end_s + pace_s
    ]
    found: dict[str, _Curve] = {}
    for host, of in everywhere.items():
        if host in here or of.ranks & known:
            continue
        first_s, last_s = min(of.points), max(of.points)
        if any(first_s <= time_s <= last_s for time_s in taken):
            continue
        matcher = f"host_name={quoted(host)}"
        found |= {
            name: each.curve()
            for name, each in _told(store, job, first_s - pace_s, last_s + pace_s, job.step_s, matcher).items()
        }
    return found


def _ahead(host: str, reference: _Curve, curve: _Curve, step_s: float) -> HostAhead | None:
    """How far a host is ahead, None where it is not by more than a row, or the curves have nothing in common."""
    if not (reference.shape[1] > 2 and curve.shape[1] > 2):
        return None
    low, high = (pick(reference[1][end], curve[1][end]) for pick, end in ((max, 0), (min, -1)))
    if high - low < _LEAST_STEPS:
        return None
    at = np.linspace(low, high, _COMPARED)
    shifts = np.interp(at, curve[1], curve[0]) - np.interp(at, reference[1], reference[0])
    ahead_s, scatter_s = float(np.median(shifts)), float(np.ptp(shifts))
    if abs(ahead_s) <= step_s or scatter_s > _SCATTER * step_s:
        return None
    return HostAhead(host, ahead_s, max(scatter_s, step_s), int(high - low))
