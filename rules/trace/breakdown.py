"""How a rank's device spent its time: idle, computing, communicating, copying, and what of it overlapped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.rules.trace.events import IntArray, Kind
from rankscope.rules.trace.idle import shrink
from rankscope.rules.trace.intervals import Intervals
from rankscope.rules.trace.names import Type, copy_sides, is_matrix, on_tensor_cores, short
from rankscope.rules.trace.scope import Scope, TypeArray


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Times in ns over all streams together, from the first event's start to the last one's end."""

    span_ns: int
    idle_ns: int
    #: Some kernel computes, whatever else runs.
    compute_ns: int
    #: Something runs, nothing computes.
    non_compute_ns: int
    communication_ns: int
    memory_ns: int
    #: Communication while something computes: the part that costs no time.
    overlapped_ns: int

    @property
    def overlap(self) -> float | None:
        """Share of communication that is hidden behind computation; None without communication."""
        return self.overlapped_ns / self.communication_ns if self.communication_ns else None


def breakdown(scope: Scope) -> Breakdown:
    """The breakdown of the events in scope; waits are not work."""
    works = scope.works
    return _breakdown(scope.table.start_ns[works], scope.table.end_ns[works], scope.type[works])


def hta_breakdown(scope: Scope) -> Breakdown:
    """The same as Holistic Trace Analysis has it: whole us, waits of a stream among the busy times, types by name."""
    table = scope.table
    start, end = shrink(scope.trace, table.start_ns, table.end_ns)
    on_stream = table.stream >= 0
    return _breakdown(start[on_stream], end[on_stream], scope.hta_type[on_stream])


def _breakdown(start: IntArray, end: IntArray, types: TypeArray) -> Breakdown:
    busy = Intervals(start, end)
    compute, communication, memory = (
        Intervals(start[types == each], end[types == each])
        for each in (Type.COMPUTATION, Type.COMMUNICATION, Type.MEMORY)
    )
    return Breakdown(
        span_ns=busy.span,
        idle_ns=busy.span - busy.total,
        compute_ns=compute.total,
        non_compute_ns=busy.total - compute.total,
        communication_ns=communication.total,
        memory_ns=memory.total,
        overlapped_ns=communication.overlap(compute),
    )


@dataclass(frozen=True, slots=True)
class Named:
    """All events of one name: how many, and how long in all."""

    name: str
    type: Type
    count: int
    total_ns: int
    tensor_cores: bool
    longest_ns: int


def by_name(scope: Scope) -> list[Named]:
    """Kernels, copies and sets by their short name and type, the longest in all first."""
    rows = np.flatnonzero(scope.works)
    table = scope.table
    key = table.name[rows] * len(Type) + scope.type[rows]
    keys, places = np.unique(key, return_inverse=True)
    took = (table.end_ns - table.start_ns)[rows]
    totals = np.bincount(places, weights=took, minlength=len(keys))
    counts = np.bincount(places, minlength=len(keys))
    longest = np.zeros(len(keys), np.int64)
    np.maximum.at(longest, places, took)
    merged: dict[tuple[str, Type, bool], list[int]] = {}
    for index, each in enumerate(keys):
        name, kind = scope.trace.names[int(each) // len(Type)], Type(int(each) % len(Type))
        entry = merged.setdefault((short(name), kind, kind == Type.COMPUTATION and on_tensor_cores(name)), [0, 0, 0])
        entry[0] += int(counts[index])
        entry[1] += int(totals[index])
        entry[2] = max(entry[2], int(longest[index]))
    found = [Named(name, kind, n, total, cores, top) for (name, kind, cores), (n, total, top) in merged.items()]
    return sorted(found, key=lambda each: -each.total_ns)


@dataclass(frozen=True, slots=True)
class TensorCores:
    """Kernel time on tensor cores, as far as names tell."""

    tensor_ns: int
    #: Time of kernels that multiply, convolve or attend, on tensor cores or not.
    matrix_ns: int
    compute_ns: int


def tensor_cores(scope: Scope) -> TensorCores:
    """Sums of kernel durations, told by name."""
    rows = np.flatnonzero(scope.works & (scope.type == Type.COMPUTATION))
    names, places = np.unique(scope.table.name[rows], return_inverse=True)
    took = (scope.table.end_ns - scope.table.start_ns)[rows]
    totals = np.bincount(places, weights=took, minlength=len(names))
    text = [scope.trace.names[int(each)] for each in names]
    return TensorCores(
        tensor_ns=int(sum(total for name, total in zip(text, totals, strict=True) if on_tensor_cores(name))),
        matrix_ns=int(sum(total for name, total in zip(text, totals, strict=True) if is_matrix(name))),
        compute_ns=int(took.sum()),
    )


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of one kind; `pageable` says that host memory was not pinned, None that the name does not tell."""

    name: str
    source: str | None
    target: str | None
    pageable: bool | None
    count: int
    total_ns: int
    bytes: int | None


def copies(scope: Scope) -> list[Copies]:
    """Copies and sets by their name, the longest in all first."""
    table = scope.table
    rows = np.flatnonzero((table.kind == Kind.COPY) | (table.kind == Kind.SET))
    found = []
    for each in np.unique(table.name[rows]):
        of = rows[table.name[rows] == each]
        name = scope.trace.names[int(each)]
        source, target = copy_sides(name)
        sides = {side.lower() for side in (source, target) if side}
        told = bool(sides & {"pageable", "pinned"})
        sized = table.bytes[of] >= 0
        found.append(
            Copies(
                name=name[:96],
                source=source,
                target=target,
                pageable="pageable" in sides if told else None,
                count=len(of),
                total_ns=int((table.end_ns[of] - table.start_ns[of]).sum()),
                bytes=int(table.bytes[of][sized].sum()) if sized.any() else None,
            )
        )
    return sorted(found, key=lambda each: -each.total_ns)
