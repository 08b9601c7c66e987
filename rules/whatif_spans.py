"""What-if over the spans of distributed traces: a slow service call priced like a slow rank.

A span's own work is the gaps between its beginning, its children and its end. A child starts when all siblings that
had ended before it have ended, plus the gap; a span ends when its last child in it has, plus the gap; a span with a
link starts after what it links to. That is the dependency model of operations with gaps for durations, so the same
replay prices it: with one operation's own work cut to its median, what does the trace give back?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rankscope.rules.frame import FloatArray
from rankscope.rules.whatif_replay import Schedule, Unit, replay, schedule

#: Operations that are priced one by one, by their time on the critical path.
_PRICED = 64
_MS = 1e-6

Operation = tuple[str, str]
#: A copy of a service is named where it has this share of the time above the median, and at most half of the spans.
_ON_ONE = 0.6
#: Who owns the time between a message and the one that takes it up.
QUEUE = "(waiting to be taken up)"


@dataclass(frozen=True, slots=True)
class Span:
    """One span, times in ns of the wall clock."""

    trace_id: str
    span_id: str
    parent_id: str | None
    service: str
    name: str
    start_ns: int
    end_ns: int
    #: (trace, span) of each link.
    links: tuple[tuple[str, str], ...] = ()
    #: Which copy of the service worked: instance, pod or host; None where it does not say.
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class OperationPrice:
    """One operation of one service over all traces. Times are ms a trace."""

    service: str
    operation: str
    spans: int
    median_self_ms: float
    #: Its own work on the critical path.
    critical_ms: float
    on_critical_path: int
    #: What a trace gives back if none of its spans worked longer than their median; None where it was not replayed.
    returns_ms: float | None
    #: The copy of the service on which most of the time above the median was spent, of several; None where none is.
    instance: str | None = None


@dataclass(slots=True)
class SpanWhatIf:
    """The answer for a set of traces; those joined by links count as one."""

    traces: int
    spans: int
    mean_ms: float
    #: If every operation took its median at most.
    ideal_ms: float
    slowdown: float
    #: What gives back most first.
    operations: list[OperationPrice]
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Trace:
    """One trace as a replay: node -> gap before it is over, and whose work that gap is."""

    plan: Schedule
    gaps_ms: FloatArray
    owners: list[Operation | None]
    #: Nodes at which the trace is over.
    ends: list[int]
    factor: dict[int, int]


class _Builder:
    """Nodes of one trace: begin and end of each span, and joins that stand for "all that had ended by then"."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        self._depends: list[list[int]] = []
        self._times: list[int] = []
        self._owners: list[Operation | None] = []
        #: Span whose own work a node's gap is.
        self._span_of: dict[int, int] = {}
        self._begin = {place: self._node(span.start_ns) for place, span in enumerate(spans)}
        self._end = {place: self._node(span.end_ns) for place, span in enumerate(spans)}

    def _node(self, time_ns: int) -> int:
        self._depends.append([])
        self._times.append(time_ns)
        self._owners.append(None)
        return len(self._times) - 1

    def _owned(self, node: int, place: int) -> None:
        span = self._spans[place]
        self._owners[node] = (span.service, span.name)
        self._span_of[node] = place

    def build(self) -> _Trace | None:
        """The trace; None where its spans are their own ancestors."""
        by_id = {(span.trace_id, span.span_id): place for place, span in enumerate(self._spans)}
        children: dict[int, list[int]] = defaultdict(list)
        roots = []
        for place, span in enumerate(self._spans):
            parent = by_id.get((span.trace_id, span.parent_id)) if span.parent_id else None
            if parent is None or parent == place:
                roots.append(place)
            else:
                children[parent].append(place)
        for place in range(len(self._spans)):
            self._inside(place, children.get(place, []))
        for place, span in enumerate(self._spans):
            for link in span.links:
                linked = by_id.get(link)
                if linked is None or linked == place:
                    continue
                before = self._end[linked] if self._spans[linked].end_ns <= span.start_ns else self._begin[linked]
                if self._times[before] <= span.start_ns:
                    self._depends[self._begin[place]].append(before)
                    if place in roots:
                        self._owners[self._begin[place]] = (span.service, f"{span.name} {QUEUE}")
        units = [Unit((node,)) for node in range(len(self._times))]
        plan = schedule(units, self._depends)
        if isinstance(plan, int):
            return None
        return _Trace(plan, self._gaps(), self._owners, [self._end[place] for place in roots], self._span_of)

    def _inside(self, place: int, children: list[int]) -> None:
        """What happens in one span, in the order of time."""
        end_ns = self._spans[place].end_ns
        joined = self._begin[place]
        moments = [(self._spans[child].start_ns, 1, child) for child in children]
        # One that outlives its parent was not waited for.
        moments += [(self._spans[child].end_ns, 0, child) for child in children if self._spans[child].end_ns <= end_ns]
        started: set[int] = set()
        for time_ns, starts, child in sorted(moments):
            if starts or child not in started:
                started.add(child)
                self._depends[self._begin[child]].append(joined)
                self._owned(self._begin[child], place)
            if not starts:
                after = self._node(max(time_ns, self._times[joined]))
                self._depends[after] += [joined, self._end[child]]
                joined = after
        self._depends[self._end[place]] += [joined, self._begin[place]]
        self._owned(self._end[place], place)

    def _gaps(self) -> FloatArray:
        first = min(self._times)
        gaps = np.zeros(len(self._times))
        for node, before in enumerate(self._depends):
            ready = max((self._times[other] for other in before), default=first)
            gaps[node] = max(0, self._times[node] - ready) * _MS
        return gaps


def whatif_spans(spans: Sequence[Span]) -> SpanWhatIf:
    """Price every operation of these traces."""
    notes: list[str] = []
    groups = _joined_by_links(spans, notes)
    self_ms = _self_times(spans)
    by_operation: dict[Operation, list[float]] = defaultdict(list)
    for span in spans:
        by_operation[span.service, span.name].append(self_ms[span.trace_id, span.span_id])
    medians = {operation: float(np.median(values)) for operation, values in by_operation.items()}
    traces: list[tuple[_Trace, list[Span]]] = []
    for group in groups:
        built = _Builder(group).build()
        if built is not None:
            traces.append((built, group))
    if len(traces) < len(groups):
        notes.append(f"{len(groups) - len(traces)} traces were left out: their spans are their own ancestors")
    critical, passes = _critical_paths(traces)
    priced = sorted(critical, key=lambda operation: -critical[operation])[:_PRICED]
    lengths, returns, ideal = _priced(traces, priced, medians, self_ms)
    count = max(1, len(traces))
    operations = [
        OperationPrice(
            service=operation[0],
            operation=operation[1],
            spans=len(by_operation.get(operation, ())),
            median_self_ms=medians.get(operation, 0.0),
            critical_ms=critical[operation] / count,
            on_critical_path=passes[operation],
            returns_ms=returns[priced.index(operation)] / count
            if operation in medians and operation in priced
            else None,
        )
        for operation in critical
    ]
    operations = [_on_one_copy(price, spans, self_ms) for price in operations]
    operations.sort(key=lambda price: (-(price.returns_ms or 0.0), -price.critical_ms))
    return SpanWhatIf(
        traces=len(traces),
        spans=len(spans),
        mean_ms=lengths / count,
        ideal_ms=ideal / count,
        slowdown=lengths / ideal if ideal > 0 else 1.0,
        operations=operations,
        notes=notes,
    )


def _on_one_copy(price: OperationPrice, spans: Sequence[Span], self_ms: dict[tuple[str, str], float]) -> OperationPrice:
    if not price.returns_ms:
        return price
    above: dict[str | None, float] = defaultdict(float)
    count: dict[str | None, int] = defaultdict(int)
    for span in spans:
        if (span.service, span.name) == (price.service, price.operation):
            above[span.instance] += max(0.0, self_ms[span.trace_id, span.span_id] - price.median_self_ms)
            count[span.instance] += 1
    top = max(above, key=lambda copy: above[copy])
    alone = above[top] >= _ON_ONE * sum(above.values()) and 2 * count[top] <= price.spans
    return replace(price, instance=top) if alone and top is not None else price


def _joined_by_links(spans: Sequence[Span], notes: list[str]) -> list[list[Span]]:
    """Spans by trace, traces that link to each other together."""
    leader: dict[str, str] = {span.trace_id: span.trace_id for span in spans}

    def find(trace: str) -> str:
        while leader[trace] != trace:
            leader[trace] = trace = leader[leader[trace]]
        return trace

    for span in spans:
        for trace, _ in span.links:
            if trace in leader:
                leader[find(span.trace_id)] = find(trace)
    groups: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        groups[find(span.trace_id)].append(span)
    early = 0
    starts = {(span.trace_id, span.span_id): span.start_ns for span in spans}
    for span in spans:
        parent = starts.get((span.trace_id, span.parent_id)) if span.parent_id else None
        early += parent is not None and span.start_ns < parent
    if early:
        notes.append(f"{early} spans begin before their parent: the clocks of services differ")
    absent = sum(bool(span.parent_id) and (span.trace_id, span.parent_id) not in starts for span in spans)
    if absent:
        notes.append(f"{absent} spans name a parent that is not here (sampling, or another file): taken as first spans")
    return list(groups.values())


def _self_times(spans: Sequence[Span]) -> dict[tuple[str, str], float]:
    """ms of each span in which none of its children ran."""
    children: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for span in spans:
        if span.parent_id:
            children[span.trace_id, span.parent_id].append((span.start_ns, span.end_ns))
    own = {}
    for span in spans:
        key = (span.trace_id, span.span_id)
        covered, reach = 0, span.start_ns
        for start, end in sorted(children.get(key, ())):
            start, end = max(start, reach), min(end, span.end_ns)  # noqa: PLW2901 - cut to what is not counted yet
            if end > start:
                covered += end - start
                reach = end
        own[key] = max(0, span.end_ns - span.start_ns - covered) * _MS
    return own


def _critical_paths(
    traces: Sequence[tuple[_Trace, list[Span]]],
) -> tuple[dict[Operation, float], dict[Operation, int]]:
    """(ms of each operation on the critical paths, traces in which it is on it)."""
    critical: dict[Operation, float] = defaultdict(float)
    passes: dict[Operation, int] = defaultdict(int)
    for trace, _ in traces:
        done = _times(trace)
        node: int | None = max(trace.ends, key=lambda end: done[end])
        seen: set[Operation] = set()
        while node is not None:
            owner = trace.owners[node]
            if owner is not None and trace.gaps_ms[node] > 0:
                critical[owner] += float(trace.gaps_ms[node])
                seen.add(owner)
            node = max(trace.plan.depends[node], key=lambda before: done[before], default=None)
        for owner in seen:
            passes[owner] += 1
    return critical, passes


def _times(trace: _Trace) -> FloatArray:
    """When each node is over, ms from the begin of its trace."""
    done = np.zeros(len(trace.gaps_ms))
    for unit in trace.plan.units:
        node = unit.members[0]
        done[node] = max((done[before] for before in trace.plan.depends[node]), default=0.0) + trace.gaps_ms[node]
    return done


def _priced(
    traces: Sequence[tuple[_Trace, list[Span]]],
    priced: Sequence[Operation],
    medians: dict[Operation, float],
    self_ms: dict[tuple[str, str], float],
) -> tuple[float, FloatArray, float]:
    """Sums over the traces: their length, what each operation returns, and the length with all at their medians."""
    places = {operation: place for place, operation in enumerate(priced)}
    total, ideal = 0.0, 0.0
    returns = np.zeros(len(priced))
    for trace, spans in traces:
        factors = [
            min(1.0, medians[span.service, span.name] / own) if (own := self_ms[span.trace_id, span.span_id]) else 1.0
            for span in spans
        ]
        # Lanes: as it was, all at their medians, and each operation alone.
        lanes = np.repeat(trace.gaps_ms[:, np.newaxis], len(priced) + 2, axis=1)
        for node, place in trace.factor.items():
            lanes[node, 1] *= factors[place]
            operation = (spans[place].service, spans[place].name)
            if operation in places:
                lanes[node, 2 + places[operation]] *= factors[place]
        over = _end_of(trace, lanes)
        total += float(over[0])
        ideal += float(over[1])
        returns += over[0] - over[2:]
    return total, returns, ideal


def _end_of(trace: _Trace, lanes: FloatArray) -> FloatArray:
    """When the trace is over in each lane: at the latest of its first spans."""
    last = len(lanes)
    plan = Schedule((*trace.plan.units, Unit((last,))), (*trace.plan.depends, tuple(trace.ends)))
    return replay(plan, lambda node: lanes[node, :, np.newaxis] if node < last else _NOTHING, counted=(last,))


_NOTHING = np.zeros(1)
