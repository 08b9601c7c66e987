"""From flight-recorder dumps of a job to suspects: which ranks hold up the others, why, and in which collective.

In the order of how much it says: ranks that take part in a mismatch; ranks that did not see collectives end which their
peers did (their device, or whatever watches it, is stuck); ranks that others wait for while they wait for nobody; ranks
that wait for each other. Everybody else is a victim, and is told for whom it waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rankscope.rules.flight import GroupKey, Operation, RankFlight
from rankscope.rules.flight_order import Mismatch, mismatches, unequal_message
from rankscope.rules.flight_wait import Flights, Root, Stuck, roots, upstream
from rankscope.rules.flight_wording import group_text, operation_text, ranks_text, sentence

#: What each kind of reason adds. Only their order matters: reasons of one rank add up, and a lower kind never
#: outweighs a higher one alone; up to 1 is added for the share of the job that waits.
_MISMATCH = 8.0
_BEHIND = 5.0
_AWAITED = 3.0
_CYCLE = 2.0
_EARLIER = 1.2
_TOGETHER = 1.0
_STOPPED_FIRST = 0.5
_ODD_ORDER = 0.5
#: Operations of a rank whose order is looked at.
_ORDER_WINDOW = 64
_NOT_STARTED = 2.0
#: With this share of the dumps missing, a dump that is missing says nothing of its rank.
_MOSTLY_MISSING = 0.5
#: Members of one operation beyond which its members are no suspects: nobody stands out.
_CROWD = 8


@dataclass(slots=True)
class Suspect:
    """A rank that may be the cause."""

    rank: int
    score: float = 0.0
    reasons: list[str] = field(default_factory=list)
    #: Kinds of its reasons: "mismatch", "behind", "awaited", "no-dump", "cycle", "stopped-first", "together",
    #: "not-started".
    kinds: list[str] = field(default_factory=list)
    #: Other ranks that wait for it, directly or not.
    waiting: frozenset[int] = frozenset()
    #: The last operation it enqueued; None where it has no entries.
    last: Operation | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What dumps of one job say side by side."""

    world_size: int
    ranks: tuple[int, ...]
    missing: tuple[int, ...]
    #: Most suspicious first.
    suspects: tuple[Suspect, ...]
    #: Operations that do not end, the ones that hold up most first.
    stuck: tuple[Stuck, ...]
    mismatches: tuple[Mismatch, ...]
    notes: tuple[str, ...]
    #: One sentence for a person.
    summary: str


def compare(dumps: Sequence[RankFlight], notes: Sequence[str] = ()) -> Comparison:
    """Compare the dumps of a job. An empty sequence gives a comparison without suspects."""
    flights = Flights(dumps)
    stuck = flights.stuck()
    found = mismatches(flights.collectives) + _unequal_messages(flights, stuck)
    suspects: dict[int, Suspect] = {}
    few = len(flights.missing) <= _MOSTLY_MISSING * len(flights.world)

    def add(rank: int, points: float, kind: str, reason: str, waiting: frozenset[int] = frozenset()) -> None:
        suspect = suspects.setdefault(rank, Suspect(rank))
        suspect.score += points
        suspect.reasons.append(reason)
        suspect.kinds.append(kind)
        suspect.waiting |= waiting - {rank}

    share = 1.0 / max(1, len(flights.world))
    for mismatch in found:
        if not mismatch.passed:
            waiting = frozenset(upstream(mismatch.ranks, stuck))
            for rank in mismatch.ranks:
                add(rank, _MISMATCH, "mismatch", f"{mismatch.kind} mismatch: {mismatch.text}", waiting)
    for each in stuck:
        _judge_operation(each, flights, stuck, add)
    held_up = roots(stuck)
    for root in held_up:
        _judge_root(root, flights, few, share, add)
    for rank, peer in _stopped_first(flights).items():
        if rank not in suspects:
            waiting = frozenset(upstream([rank], stuck))
            reason = f"it waits as rank {peer} does, and its host enqueued less: it stopped by itself too"
            add(rank, _EARLIER + share * len(waiting), "stopped-first", reason, waiting)
    for suspect in suspects.values():
        dump = flights.by_rank.get(suspect.rank)
        suspect.last = dump.operations[-1] if dump is not None and dump.operations else None
        if dump is not None and not dump.operations and any(of.operations for of in flights.by_rank.values()):
            suspect.reasons.append("it has no unfinished operation while its peers have")
    ordered = sorted(suspects.values(), key=lambda each: (-each.score, _last_ns(each), each.rank))
    # Nearest to the cause first: what waits for whoever holds up most.
    reach = {id(each): len(upstream(each.missing or each.waiting, stuck)) for each in stuck}
    nearest = sorted(stuck, key=lambda each: (-reach[id(each)], each.operation.created_ns or 0))
    told = [*notes, *(f"rank {dump.rank}: {note}" for dump in flights.by_rank.values() for note in dump.notes)]
    if flights.missing:
        told.append(f"no dump of {ranks_text(flights.missing)}" + ("" if few else ": most of the job is not seen"))
    return Comparison(
        world_size=len(flights.world),
        ranks=tuple(flights.by_rank),
        missing=flights.missing,
        suspects=tuple(ordered),
        stuck=tuple(nearest),
        mismatches=tuple(found),
        notes=tuple(told),
        summary=_summary(ordered, nearest, found, flights),
    )


def _unequal_messages(flights: Flights, stuck: Sequence[Stuck]) -> list[Mismatch]:
    """Messages at which both sides stand and that do not fit."""
    found = []
    for each in stuck:
        fronts = [front for rank in each.waiting if (front := flights.fronts[rank]) is not None]
        sends = [front for front in fronts if front.name == "send"]
        receives = [front for front in fronts if front.name == "recv"]
        if each.operation.point_to_point and len(sends) == len(receives) == 1:
            mismatch = unequal_message(each.group, sends[0], receives[0])
            if mismatch is not None:
                found.append(mismatch)
    return found


def _judge_operation(each: Stuck, flights: Flights, stuck: Sequence[Stuck], add: _Add) -> None:
    """What an operation that nobody is missing in says of those who are in it."""
    if each.missing:
        return
    name = operation_text(each)
    if each.past:
        waiting = frozenset(upstream(each.waiting, stuck))
        for rank in each.waiting:
            reason = f"it has not seen {name} end, which {ranks_text(each.past)} did"
            add(rank, _BEHIND, "behind", reason, waiting)
        return
    if any(other.missing and set(other.waiting) & set(each.waiting) for other in stuck):
        # Part of a batch that waits for somebody else.
        return
    # All are in it and it does not end: the transfer, or the device of one of them.
    others = upstream(each.waiting, stuck)
    idle = [rank for rank in each.waiting if (front := flights.fronts[rank]) is None or front.state == "scheduled"]
    if 0 < len(idle) < len(each.waiting):
        for rank in idle:
            reason = f"its device has not started {name}, which {len(each.waiting) - len(idle)} others have"
            add(rank, _NOT_STARTED, "not-started", reason, frozenset(others))
    elif len(each.waiting) <= _CROWD and others:
        ahead = {rank: flights.ahead(rank) for rank in each.waiting}
        least, most = min(ahead.values()), max(ahead.values())
        for rank in each.waiting:
            reason = f"it is in {name}, which all members have entered and which does not end"
            first = ahead[rank] == least < most
            if first:
                # Healthy hosts run ahead of a device that stands still; one that met an error does not.
                reason += f"; its host stopped first ({least} operations later, others {most})"
            add(rank, _TOGETHER + (_STOPPED_FIRST if first else 0.0), "together", reason, frozenset(others))


def _judge_root(root: Root, flights: Flights, few: bool, share: float, add: _Add) -> None:
    points = share * len(root.waiting)
    count = len(root.waiting)
    odd = _odd_ones(flights, root.ranks) if root.cycle else {}
    for rank in root.ranks:
        if root.cycle:
            others = [other for other in root.ranks if other != rank]
            front = flights.fronts.get(rank)
            where = f" in {front.name} of {group_text(flights, front)}" if front is not None else ""
            reason = f"it waits{where} for {ranks_text(others)}, and they for it"
            if rank in odd:
                reason += f"; no other rank calls {odd[rank]}"
            add(rank, _CYCLE + points + _ODD_ORDER * (rank in odd), "cycle", reason, root.waiting)
        elif rank not in flights.by_rank:
            if few:
                add(rank, _AWAITED + points, "no-dump", f"{count} ranks wait for it, and it left no dump", root.waiting)
        else:
            reason = f"{count} {'ranks wait' if count != 1 else 'rank waits'} for it, and it waits for nobody"
            add(rank, _AWAITED + points, "awaited", reason, root.waiting)


class _Add(Protocol):
    """How a reason is added (rank, points, kind, reason, ranks that wait)."""

    def __call__(
        self, rank: int, points: float, kind: str, reason: str, waiting: frozenset[int] = frozenset(), /
    ) -> None: ...


def _odd_ones(flights: Flights, ranks: Sequence[int]) -> dict[int, str]:
    """Ranks of a cycle that call two operations after each other which nobody else does, where that is not all of them.

    Groups are told by description and size: those of other ranks have other names.
    """
    steps: dict[int, dict[tuple[str, str], str]] = {}
    for rank, dump in flights.by_rank.items():
        latest = [each for each in dump.operations if not each.point_to_point][-_ORDER_WINDOW:]
        names = [f"{each.name} of {group_text(flights, each)}" for each in latest]
        kinds = [_kind_of_group(flights, each) for each in latest]
        steps[rank] = {
            pair: f"{after} after {before}"
            for pair, (before, after) in zip(itertools.pairwise(kinds), itertools.pairwise(names), strict=True)
        }
    found = {}
    for rank in ranks:
        others = {pair for other, pairs in steps.items() if other != rank for pair in pairs}
        alone = [text for pair, text in steps.get(rank, {}).items() if pair not in others]
        if alone:
            found[rank] = alone[-1]
    return found if len(found) < len(ranks) else {}


def _kind_of_group(flights: Flights, operation: Operation) -> str:
    key = flights.key(operation.group)
    return f"{operation.name}/{flights.descriptions.get(key, '')}/{len(key.ranks)}/{operation.input_sizes}"


def _stopped_first(flights: Flights) -> dict[int, int]:
    """Ranks whose hosts stopped before those of peers that wait in the like operation, each with such a peer.

    A host goes on until it has to wait for its device; peers with one program have to at the same place.
    """
    members: dict[GroupKey, list[tuple[int, int]]] = {}
    for (key, rank), enqueued in flights.enqueued.items():
        members.setdefault(key, []).append((enqueued, rank))
    found: dict[int, int] = {}
    for reached in members.values():
        furthest, _ = max(reached)
        short = [rank for enqueued, rank in reached if enqueued < furthest]
        if not short or len(short) > len(reached) // 2:
            continue
        for rank in short:
            front = flights.fronts.get(rank)
            for enqueued, peer in reached:
                other = flights.fronts.get(peer)
                if enqueued == furthest and front is not None and other is not None and _like(flights, front, other):
                    found.setdefault(rank, peer)
    return found


def _like(flights: Flights, one: Operation, other: Operation) -> bool:
    """Whether two ranks stand at operations of one kind, in one group or in groups of one description."""
    same = flights.key(one.group) == flights.key(other.group)
    kin = group_text(flights, one) == group_text(flights, other)
    return (same or kin) and one.name == other.name and one.input_sizes == other.input_sizes


def _last_ns(suspect: Suspect) -> int:
    """When a rank was last heard of: never, where it has no entries."""
    return 0 if suspect.last is None else suspect.last.created_ns or 0


def _summary(suspects: Sequence[Suspect], stuck: Sequence[Stuck], found: Sequence[Mismatch], flights: Flights) -> str:
    if not flights.by_rank:
        return "No dump could be read."
    if not suspects:
        if not stuck:
            return "No operation is unfinished: nothing hangs in these dumps."
        return f"{operation_text(stuck[0])} does not end, and no rank stands out."
    open_ones = [mismatch for mismatch in found if not mismatch.passed]
    first = suspects[0]
    if open_ones and "mismatch" in first.kinds:
        mismatch = open_ones[0]
        description = flights.descriptions.get(mismatch.group) or f"group {mismatch.group.name}"
        who = ranks_text(mismatch.ranks)
        return f"The code's fault, {who}: {mismatch.text} ({description}, sequence {mismatch.sequence})."
    alike = [each for each in suspects if each.kinds == first.kinds and each.score > 0.9 * first.score]
    return sentence(
        first.kinds[0],
        [each.rank for each in alike],
        frozenset().union(*(each.waiting for each in alike)),
        operation_text(stuck[0]) if stuck else "a collective",
    )
