"""Words for what dumps say: operations, groups, ranks, and the one sentence of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.rules.flight import Operation
from rankscope.rules.flight_wait import Flights, Stuck


def group_text(flights: Flights, operation: Operation) -> str:
    """A group for a person."""
    key = flights.key(operation.group)
    description = flights.descriptions.get(key, "")
    return description if description not in ("", "undefined") else f"group {key.name}"


def operation_text(stuck: Stuck) -> str:
    """An operation for a person: name, group and sequence."""
    operation = stuck.operation
    group = stuck.description if stuck.description not in ("", "undefined") else f"group {stuck.group.name}"
    if operation.point_to_point:
        return f"{operation.name} between ranks {operation.rank} and {operation.peer} ({group})"
    return f"{operation.name} {operation.sequence} of {group}"


def ranks_text(ranks: Sequence[int], limit: int = 12) -> str:
    """Ranks in short: "rank 1", "ranks 0, 2-7"; cut after `limit` stretches."""
    stretches: list[list[int]] = []
    for rank in sorted(ranks):
        if stretches and rank == stretches[-1][1] + 1:
            stretches[-1][1] = rank
        else:
            stretches.append([rank, rank])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in stretches[:limit]]
    more = f" and {len(stretches) - limit} more stretches" if len(stretches) > limit else ""
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(texts)}{more}"


def sentence(kind: str, ranks: Sequence[int], waiting: frozenset[int], operation: str) -> str:
    """Who holds up the job and how, by the kind of the first reason; `waiting` are the ranks that wait for them."""
    others = waiting - set(ranks)
    one = len(ranks) == 1
    who = ranks_text(ranks).capitalize()
    its, them = ("its", "it") if one else ("their", "them")
    count = f"{len(others)} other rank{' waits' if len(others) == 1 else 's wait'} for {them}"
    match kind:
        case "behind":
            said = f"did not see collectives end that {its} peers did: a device, or what watches it, is stuck"
        case "awaited":
            nobody = "it waits" if one else "they wait"
            return f"{who} hold{'s' if one else ''} up the job: {count}, and {nobody} for nobody."
        case "no-dump":
            gone = "process is" if one else "processes are"
            return f"{who} left no dump: {count}; {its} {gone} gone or stuck."
        case "cycle":
            alone = (
                f"waits for peers that wait for {them}: it calls collectives of two groups in another order than they"
            )
            said = alone if one else "wait for each other: they call collectives of two groups in different order"
        case "stopped-first":
            said = f"stopped before {its} peers that wait for the same"
        case "not-started":
            said = f"did not start {operation} on {its} device{'' if one else 's'}, which {its} peers did"
        case _:
            said = f"{'is' if one else 'are'} in {operation}, which all members entered and which does not end"
    return f"{who} {said}" + (f"; {count}." if others else ".")
