"""Whose host enqueues last, step by step, by the flight recorders that ranks answered with while the job ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankscope.rules.flight_lateness import HOST_NOISE_NS
from rankscope.rules.lateness import Meeting, Ranking, rank_lateness
from rankscope.window import HostClock, RankWindow

#: Where there are more ranks than this, nobody is compared: the answer would cost more than it is worth.
_MOST_RANKS = 256


def enqueue_order(
    ranks: Sequence[RankWindow], steps: frozenset[int], clocks: Sequence[HostClock]
) -> Ranking[int] | None:
    """Ranks by how late they enqueued in these steps; None where nothing was told.

    Ranks of hosts whose clocks differ by nobody knows what are not compared.
    """
    hosts = {of.identity.host for of in ranks}
    errors = [clock.error_ns for clock in clocks]
    if not 1 < len(ranks) <= _MOST_RANKS or (len(hosts) > 1 and (not errors or None in errors)):
        return None
    apart_ns = 2.0 * max((error for error in errors if error is not None), default=0) if len(hosts) > 1 else 0.0
    found: dict[tuple[str, str, int], dict[int, float]] = {}
    members: dict[str, set[int]] = {}
    for of in ranks:
        for each in of.collectives:
            if each.on_device or each.sequence is None or each.step not in steps:
                continue
            members.setdefault(each.group, set()).add(of.identity.rank)
            key = (each.group, each.operation, each.sequence)
            found.setdefault(key, {})[of.identity.rank] = float(each.enqueued_ns)
    meetings = [
        Meeting(group, _from_first(arrivals), max(apart_ns, HOST_NOISE_NS))
        for (group, _, _), arrivals in found.items()
        if len(arrivals) > 1 and len(arrivals) == len(members[group])
    ]
    return rank_lateness(meetings) if meetings else None


def _from_first(arrivals: Mapping[int, float]) -> dict[int, float]:
    first = min(arrivals.values())
    return {rank: moment - first for rank, moment in arrivals.items()}
