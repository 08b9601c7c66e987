"""Replay of operations from their dependencies: what the end would be if durations were others.

An operation starts when all that it depends on has ended (and its launch delay has passed). What runs together - a
collective, a send with its receive - ends at the latest start among its members plus each member's transfer. The
operations of one step are nodes; steps and data-parallel ranks, whose dependencies are the same, are replayed at once
as further axes of the arrays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rankscope.rules.frame import FloatArray


@dataclass(frozen=True, slots=True)
class Unit:
    """Nodes that run together: one operation alone, or the members of a collective within one lane."""

    members: tuple[int, ...]
    #: Whether it ends with the latest of its members (else it is one operation for itself).
    collective: bool = False
    #: Whether all data-parallel ranks take part too.
    across: bool = False
    #: Where neither one nor all ranks of the last axis do: from when each is there to when its group is.
    meets: Callable[[FloatArray], FloatArray] | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """The dependency model of one step: units in an order in which each comes after all that it depends on."""

    units: tuple[Unit, ...]
    #: Nodes that each node waits for.
    depends: tuple[tuple[int, ...], ...]


def schedule(units: Sequence[Unit], depends: Sequence[Sequence[int]]) -> Schedule | int:
    """Put the units in order; where the dependencies run in a circle, a node of that circle."""
    unit_of = {node: number for number, unit in enumerate(units) for node in unit.members}
    waits = [{unit_of[before] for node in unit.members for before in depends[node]} for unit in units]
    followers: list[list[int]] = [[] for _ in units]
    for number, earlier in enumerate(waits):
        for other in earlier:
            followers[other].append(number)
    open_waits = [len(earlier) for earlier in waits]
    ready = deque(number for number, count in enumerate(open_waits) if not count)
    order: list[int] = []
    while ready:
        number = ready.popleft()
        order.append(number)
        for follower in followers[number]:
            open_waits[follower] -= 1
            if not open_waits[follower]:
                ready.append(follower)
    if len(order) < len(units):
        return units[next(number for number, count in enumerate(open_waits) if count)].members[0]
    return Schedule(tuple(units[number] for number in order), tuple(tuple(before) for before in depends))


def starts_of(plan: Schedule, node: int, ends: Sequence[FloatArray | None]) -> FloatArray | float:
    """When all that a node depends on has ended; 0.0, the begin of the step, where it depends on nothing."""
    latest: FloatArray | float = 0.0
    for before in plan.depends[node]:
        end = ends[before]
        if end is not None:
            latest = np.maximum(latest, end)
    return latest


def ends_of(
    plan: Schedule, duration: Callable[[int], FloatArray], delay: Callable[[int], FloatArray] | None = None
) -> list[FloatArray]:
    """When each node ends, in every lane.

    `duration(node)` gives its duration (of a collective's member: its transfer) in every lane, `delay` what passes
    before it starts though nothing holds it; all of one shape, or such that numpy broadcasts them. The last axis is
    the data-parallel rank.
    """
    ends: list[FloatArray | None] = [None] * len(plan.depends)
    for unit in plan.units:
        starts = [starts_of(plan, node, ends) + (delay(node) if delay is not None else 0.0) for node in unit.members]
        if not unit.collective:
            ends[unit.members[0]] = np.asarray(starts[0] + duration(unit.members[0]))
            continue
        latest = starts[0]
        for start in starts[1:]:
            latest = np.maximum(latest, start)
        if unit.across and np.ndim(latest):
            latest = np.max(latest, axis=-1, keepdims=True)
        elif unit.meets is not None:
            latest = unit.meets(np.asarray(latest))
        for node in unit.members:
            ends[node] = np.asarray(latest + duration(node))
    return [end for end in ends if end is not None]


def replay(
    plan: Schedule,
    duration: Callable[[int], FloatArray],
    delay: Callable[[int], FloatArray] | None = None,
    *,
    counted: Collection[int] | None = None,
) -> FloatArray:
    """When the step ends: the latest end of the `counted` nodes (all unless given) over the last axis."""
    ends = ends_of(plan, duration, delay)
    last: FloatArray | float = 0.0
    for node in range(len(ends)) if counted is None else counted:
        last = np.maximum(last, ends[node])
    step_end: FloatArray = np.asarray(np.max(np.atleast_1d(last), axis=-1), dtype=np.float64)
    return step_end
