"""What one rank's trace holds for a comparison with others: its steps, its collectives, its own time beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from rankscope.rules.trace.analysis import Analysis
from rankscope.rules.trace.events import NONE, IntArray, Message, Trace
from rankscope.rules.trace.idle import Cause, device_gaps
from rankscope.rules.trace.intervals import Intervals
from rankscope.rules.trace.names import Type, collective_name
from rankscope.rules.trace.scope import Scope

#: Bytes of an element, by the name c10d gives its type.
_BYTES = {
    **dict.fromkeys(("byte", "char", "bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("half", "bfloat16", "short", "float16", "int16"), 2),
    **dict.fromkeys(("float", "int", "float32", "int32"), 4),
    **dict.fromkeys(("double", "long", "float64", "int64"), 8),
}
#: Between two ranks of a larger group: their order says nothing about the others'.
_POINT_TO_POINT = re.compile(r"^(send|recv|p2p)", re.IGNORECASE)
#: Annotations of c10d around the launch, where no message says more.
_ANNOTATIONS = ("nccl:", "rccl:")


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective as this rank's device saw it."""

    step: int
    #: Name and ranks of its group as far as the trace tells; the same on every member.
    group: str
    #: What the group is for ("dp_group"); groups of one kind do alike work.
    kind: str
    name: str
    start_ns: int
    end_ns: int
    bytes: int | None

    @property
    def took_ns(self) -> int:
        """From this rank's start to the end: waiting for the last rank, and the transfer."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class Step:
    """One profiled step of one rank. Times in ns."""

    number: int
    #: On the device: from the end of the step before to the end of its own last event. A host may run ahead of it.
    took_ns: int
    #: Sum of the durations of computing kernels, and of copies and sets.
    compute_ns: int
    memory_ns: int
    #: The device idled because nothing was launched.
    host_wait_ns: int
    #: Communication during which nothing computes.
    exposed_ns: int

    @property
    def own_ns(self) -> int:
        """The step without exposed communication: what this rank works or stalls by itself."""
        return self.took_ns - self.exposed_ns


@dataclass(frozen=True, slots=True)
class RankExchange:
    """A rank's side of a comparison."""

    rank: int
    world_size: int | None
    steps: tuple[Step, ...]
    collectives: tuple[Collective, ...]
    #: Collectives between two ranks, which are not compared.
    point_to_point: int
    #: ns to add to times of this rank for a clock shared by the host's ranks; None where unknown.
    base_ns: int | None


def exchange_of(analysis: Analysis) -> RankExchange:
    """What is kept of a rank's trace once it is analysed; a trace without steps counts as one step, number 0."""
    scope, trace = analysis.scope, analysis.trace
    bounds = _bounds(scope)
    launched = np.where(scope.launch_ns == NONE, scope.table.start_ns, scope.launch_ns)
    place = np.searchsorted([start for _, start, _ in bounds], launched, side="right") - 1
    place = np.maximum(place, 0)
    found, skipped = _collectives(scope, [number for number, _, _ in bounds], place)
    return RankExchange(
        rank=trace.rank,
        world_size=trace.world_size,
        steps=tuple(_steps(scope, analysis.threshold_ns, bounds, place)),
        collectives=tuple(found),
        point_to_point=skipped,
        base_ns=trace.base_ns,
    )


def _bounds(scope: Scope) -> list[tuple[int, int, int]]:
    """Steps whose device events are all in scope."""
    steps = scope.trace.steps
    if not len(scope.rows):
        return []
    if len(steps) < 2:
        table = scope.table
        return [(0, int(table.start_ns.min()), int(table.end_ns.max()))]
    # With everything in scope the last step is whole too.
    return steps[:-1] if scope.rule else steps


def _steps(scope: Scope, threshold_ns: int, bounds: list[tuple[int, int, int]], place: IntArray) -> list[Step]:
    table, types = scope.table, scope.type
    took = table.end_ns - table.start_ns
    waited = np.zeros(len(bounds), np.int64)
    for gaps in device_gaps(scope, threshold_ns):
        host = gaps.cause == Cause.HOST_WAIT
        np.add.at(waited, place[gaps.next[host]], (gaps.end_ns - gaps.start_ns)[host])
    found = []
    before = int(table.start_ns.min()) if len(table) else 0
    for index, (number, _, _) in enumerate(bounds):
        of = place == index
        end = max(before, int(table.end_ns[of].max())) if of.any() else before
        spent = {each: int(took[of & (types == each)].sum()) for each in Type}
        computing, exchanging = (
            Intervals(table.start_ns[of & (types == each)], table.end_ns[of & (types == each)])
            for each in (Type.COMPUTATION, Type.COMMUNICATION)
        )
        found.append(
            Step(
                number=number,
                took_ns=end - before,
                compute_ns=spent[Type.COMPUTATION],
                memory_ns=spent[Type.MEMORY],
                host_wait_ns=int(waited[index]),
                exposed_ns=exchanging.total - exchanging.overlap(computing),
            )
        )
        before = end
    return found


def _collectives(scope: Scope, numbers: list[int], place: IntArray) -> tuple[list[Collective], int]:
    trace, table = scope.trace, scope.table
    rows = np.flatnonzero(scope.works & (scope.type == Type.COMMUNICATION))
    said = _Said(trace)
    order = np.argsort(
        np.where(scope.launch_ns[rows] == NONE, table.start_ns[rows], scope.launch_ns[rows]), kind="stable"
    )
    found, skipped = [], 0
    for index in order:
        row = int(rows[index])
        kernel = trace.names[int(table.name[row])]
        message, name = said.of(int(table.message[row]), int(scope.launch[row]))
        name = name or collective_name(kernel) or "exchange"
        if _POINT_TO_POINT.match(name):
            skipped += 1
            continue
        group, kind = _group(message, name)
        found.append(
            Collective(
                step=numbers[int(place[row])],
                group=group,
                kind=kind,
                name=name,
                start_ns=int(table.start_ns[row]),
                end_ns=int(table.end_ns[row]),
                bytes=_size(message),
            )
        )
    return found, skipped


class _Said:
    """What the profiler says of a collective: on its kernel, or on the operators that launched it."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        table = trace.operators
        named = [index for index, name in enumerate(trace.names) if name.startswith(_ANNOTATIONS)]
        # Few operators speak of collectives; each collective is looked for among them.
        self._rows = np.flatnonzero((table.message != NONE) | np.isin(table.name, named))

    def of(self, message: int, call: int) -> tuple[Message, str | None]:
        """The message, empty where there is none, and the collective's name, or None."""
        trace, table = self._trace, self._trace.operators
        name = None
        if call != NONE:
            at, rows = trace.calls.start_ns[call], self._rows
            inside = (table.start_ns[rows] <= at) & (table.end_ns[rows] >= at)
            for row in rows[inside & (table.thread[rows] == trace.calls.thread[call])]:
                message = int(table.message[row]) if message == NONE else message
                annotation = trace.names[int(table.name[row])]
                if annotation.startswith(_ANNOTATIONS):
                    name = annotation.partition(":")[2].lower().replace("_", "").removesuffix("base")
        found = trace.messages[message] if message != NONE else Message()
        return found, found.collective or name


def _group(message: Message, name: str) -> tuple[str, str]:
    """A group's key and kind. Without a word about it every rank is taken for a member."""
    kind = message.description or message.group or name
    if message.ranks and "..." not in message.ranks and message.ranks.strip("[] "):
        return f"{kind} {message.ranks}", kind
    if message.group is not None:
        return f"{kind} ({message.group})", kind
    return name, kind


def _size(message: Message) -> int | None:
    if message.dtype is None or (each := _BYTES.get(message.dtype.lower())) is None:
        return None
    counts = [count for count in (message.elements_in, message.elements_out) if count is not None]
    return each * max(counts) if counts else None
