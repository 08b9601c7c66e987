"""Flight recorders of ranks that run: who enqueues last, by process group and sequence number.

This is the order of the hosts, not of their devices: a device that is slow behind a host that runs ahead does not show
in it, and a rank that waits inside one group (sharded or tensor-parallel layers) enqueues late in another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankscope.offset import Stay, offset_between
from rankscope.rules.flight import GroupKey, Operation, RankFlight
from rankscope.rules.lateness import Meeting

#: Operations that nobody leaves before the last has come; a broadcast's or a gather's first ranks may go on.
_SYNCHRONISING = (
    "allreduce",
    "all_reduce",
    "allgather",
    "all_gather",
    "reduce_scatter",
    "barrier",
    "alltoall",
    "all_to_all",
)
#: Hosts enqueue as much apart as this on any day: the interpreter, the allocator, another launch in between.
HOST_NOISE_NS = 500_000.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """What had to be taken off each rank's times, ns, and how far that may be off; None where nothing tells it."""

    offsets_ns: Mapping[int, int]
    error_ns: int | None


def clocks_of(dumps: Sequence[RankFlight], *, one_clock: bool) -> Clocks:
    """Offsets of the ranks' clocks against the first rank's, by the operations they met in.

    `one_clock` says that all ranks run on one host: then there is nothing to compare.
    """
    if one_clock or len(dumps) < 2:
        return Clocks({dump.rank: 0 for dump in dumps}, 0)
    times = {dump.rank: _times(dump) for dump in dumps}
    first = dumps[0].rank
    offsets, error = {first: 0}, 0
    for dump in dumps[1:]:
        found = offset_between(times[first], times[dump.rank])
        if found is None:
            return Clocks({each.rank: 0 for each in dumps}, None)
        offsets[dump.rank] = found.estimate_ns
        error = max(error, found.error_ns)
    return Clocks(offsets, error)


def arrivals(dumps: Sequence[RankFlight], clocks: Clocks) -> list[Meeting[int]]:
    """Operations that several ranks enqueued, with when each did."""
    found: dict[tuple[GroupKey, int, str], dict[int, float]] = {}
    for dump in dumps:
        for each in dump.operations:
            if synchronising(each) and each.created_ns is not None:
                moment = float(each.created_ns - clocks.offsets_ns[dump.rank])
                found.setdefault((each.group, each.sequence, each.name), {})[dump.rank] = moment
    # Of two ranks that were both compared with the first, each may be off.
    error = max(2.0 * (clocks.error_ns or 0), HOST_NOISE_NS)
    return [
        Meeting(group.name, {rank: moment - min(ranks.values()) for rank, moment in ranks.items()}, error)
        for (group, _, _), ranks in found.items()
        if len(ranks) > 1 and (not group.ranks or set(ranks) == set(group.ranks))
    ]


def _times(dump: RankFlight) -> dict[tuple[str, int], Stay]:
    return {
        (f"{each.group.name} {each.name}", each.sequence): Stay(each.created_ns, each.ended_ns)
        for each in dump.operations
        if each.created_ns is not None and each.ended_ns is not None and synchronising(each)
    }


def synchronising(operation: Operation) -> bool:
    """Whether nobody leaves it before the last has come."""
    return not operation.point_to_point and operation.name.lstrip("_").startswith(_SYNCHRONISING)
