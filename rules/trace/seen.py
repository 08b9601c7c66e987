"""Ranks by steps: own time and waits by group, from whole traces or masked down to what hooks in training would see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rankscope.rules.trace.exchange import Collective, RankExchange

FloatArray = NDArray[np.float64]
#: Stays in a collective that differ by less than this share are of members that came together.
TOGETHER = 0.05


@dataclass(frozen=True, slots=True)
class Place:
    """The n-th collective of a step in its group: medians over the steps, in ns."""

    number: int
    name: str
    bytes: int | None
    transfer_ns: float
    #: What the member that waited longest waited, and the member that all waited for; None where they came together.
    waited_ns: float
    last_rank: int | None


@dataclass(frozen=True)
class Group:
    """A process group: its members among the ranks seen, and what its collectives took."""

    name: str
    kind: str
    members: tuple[int, ...]
    #: ns a step in its collectives, ranks by steps; NaN for ranks that are no members.
    took_ns: FloatArray
    #: The part after the last rank had arrived, by steps; None where only sums over a step are seen.
    transfer_ns: FloatArray | None
    #: Collectives a step, and their bytes where told.
    count: int = 0
    bytes: int | None = None
    #: Its collectives one by one, where every step has the same.
    places: tuple[Place, ...] = ()

    @property
    def least_ns(self) -> FloatArray:
        """The transfer by steps, or at most that: the smallest wait of a member."""
        return np.nanmin(self.took_ns, axis=0) if self.transfer_ns is None else self.transfer_ns


@dataclass(frozen=True)
class Seen:
    """Ranks by steps. Times in ns; missing is NaN."""

    ranks: tuple[int, ...]
    steps: tuple[int, ...]
    step_ns: FloatArray
    own_ns: FloatArray
    groups: tuple[Group, ...]
    #: Only in whole traces.
    compute_ns: FloatArray | None
    memory_ns: FloatArray | None
    host_wait_ns: FloatArray | None
    #: Collectives that could not be matched over ranks.
    unmatched: int = 0


def seen_of(exchanges: Sequence[RankExchange]) -> Seen:
    """The steps that all ranks have, in whole."""
    exchanges = sorted(exchanges, key=lambda each: each.rank)
    common = set.intersection(*({step.number for step in each.steps} for each in exchanges)) if exchanges else set()
    steps = tuple(sorted(common))
    shape = (len(exchanges), len(steps))
    fields = {name: np.full(shape, np.nan) for name in ("took_ns", "own_ns", "compute_ns", "memory_ns", "host_wait_ns")}
    for row, each in enumerate(exchanges):
        of = {step.number: step for step in each.steps}
        for column, number in enumerate(steps):
            for name, values in fields.items():
                values[row, column] = getattr(of[number], name)
    groups, unmatched = _groups(exchanges, steps)
    return Seen(
        ranks=tuple(each.rank for each in exchanges),
        steps=steps,
        step_ns=fields["took_ns"],
        own_ns=fields["own_ns"],
        groups=tuple(groups),
        compute_ns=fields["compute_ns"],
        memory_ns=fields["memory_ns"],
        host_wait_ns=fields["host_wait_ns"],
        unmatched=unmatched,
    )


def masked(seen: Seen) -> Seen:
    """What hooks in training would have seen of the same run: step lengths, own time, and waits summed by group."""
    groups = tuple(replace(group, transfer_ns=None, count=0, bytes=None, places=()) for group in seen.groups)
    return replace(seen, groups=groups, compute_ns=None, memory_ns=None, host_wait_ns=None)


def _groups(exchanges: Sequence[RankExchange], steps: tuple[int, ...]) -> tuple[list[Group], int]:
    by_group: dict[str, dict[int, dict[int, list[Collective]]]] = defaultdict(lambda: defaultdict(dict))
    for row, each in enumerate(exchanges):
        for collective in each.collectives:
            by_group[collective.group][row].setdefault(collective.step, []).append(collective)
    found, unmatched = [], 0
    for name, by_row in by_group.items():
        rows = sorted(by_row)
        took = np.full((len(exchanges), len(steps)), np.nan)
        transfer = np.full(len(steps), np.nan)
        counts, sizes, kind = [], [], ""
        tables: list[FloatArray] = []
        first: list[Collective] = []
        for column, number in enumerate(steps):
            lists = [by_row[row].get(number, []) for row in rows]
            names = {tuple(each.name for each in collectives) for collectives in lists}
            if len(names) != 1 or not lists[0]:
                unmatched += sum(map(len, lists))
                continue
            table = np.array([[each.took_ns for each in collectives] for collectives in lists], np.float64)
            took[rows, column] = table.sum(axis=1)
            # Nobody leaves before the last has come: the shortest stay is the transfer.
            transfer[column] = table.min(axis=0).sum()
            counts.append(len(lists[0]))
            tables.append(table)
            first = first or lists[0]
            kind = lists[0][0].kind
            if all(each.bytes is not None for each in lists[0]):
                sizes.append(sum(each.bytes or 0 for each in lists[0]))
        if counts and len(rows) > 1:
            found.append(
                Group(
                    name=name,
                    kind=kind,
                    members=tuple(exchanges[row].rank for row in rows),
                    took_ns=took,
                    transfer_ns=transfer,
                    count=int(np.median(counts)),
                    bytes=int(np.median(sizes)) if len(sizes) == len(counts) else None,
                    places=_places(first, tables, [exchanges[row].rank for row in rows])
                    if min(counts) == max(counts)
                    else (),
                )
            )
    return found, unmatched


def _places(first: list[Collective], tables: list[FloatArray], ranks: list[int]) -> tuple[Place, ...]:
    took = np.median(np.stack(tables), axis=0)
    found = []
    for number, collective in enumerate(first):
        stays = took[:, number]
        least, waited = float(stays.min()), float(np.ptp(stays))
        last = ranks[int(np.argmin(stays))] if waited > TOGETHER * stays.max() else None
        found.append(Place(number, collective.name, collective.bytes, least, waited, last))
    return tuple(found)
