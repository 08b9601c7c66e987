"""Slow steps, and no others, as traces: a rank's step is a span, its phases and collectives are children.

The trace of a step has one id on every rank and host, made of job, attempt and step. Every rank's step is a span
without a parent in it: no rank has begun another's. Steps and collectives have their own times; of a phase the
ring tells the duration alone, so phases are placed one after the other from the begin of the step, and say so
(`rankscope.span.placed`).

Slow is a step above the third quartile of the rank's last 256 steps by three interquartile ranges, and by a tenth of
the median at least. A rank has at most four a minute, and a span at most 64 children.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING

from rankscope.clock import ClockAnchor
from rankscope.exporters.otlp_common import Attributes, EncodedBatch, key_values, scope
from rankscope.exporters.outbox import Signal
from rankscope.identity import RankIdentity
from rankscope.records import CollectiveRecord, PhaseRecord, RingRecord, StepRecord

if TYPE_CHECKING:
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

_USUAL_OF = 256
_FROM_STEPS = 32
_RANGES = 3.0
_LEAST_EXCESS = 0.1
_MINUTE_NS = 60_000_000_000
_A_MINUTE = 4
MAX_CHILDREN = 64


def trace_id(job: str, attempt: int, step: int) -> bytes:
    """The 16 bytes that every rank gives the trace of one step."""
    return hashlib.sha256(f"{job}\0{attempt}\0{step}".encode()).digest()[:16]


def span_id(trace: bytes, *names: object) -> bytes:
    """8 bytes for a span of a trace."""
    return hashlib.sha256(trace + "\0".join(map(str, names)).encode()).digest()[:8]


@dataclass(slots=True)
class _Rank:
    usual: deque[int] = field(default_factory=lambda: deque(maxlen=_USUAL_OF))
    #: Above this a step is slow; looked at anew every 16 steps.
    limit_ns: float | None = None
    seen: int = 0
    told: deque[int] = field(default_factory=deque)
    parts: deque[CollectiveRecord | PhaseRecord] = field(default_factory=lambda: deque(maxlen=MAX_CHILDREN))
    #: Parts of the step under way, and slow steps since the last trace, that are not told: there were enough of them.
    parts_left_out: int = 0
    steps_left_out: int = 0


@dataclass(frozen=True, slots=True)
class SlowStep:
    """A step that became a trace."""

    rank: int
    duration_ns: int
    end_ns: int
    trace: bytes
    span: bytes


class SlowSteps:
    """Finds slow steps in what the ranks recorded; one for the life of an agent."""

    def __init__(self, anchor: ClockAnchor, resource: Resource | None) -> None:
        """Without a resource no spans are made."""
        self._anchor = anchor
        self._resource = resource
        self._ranks: dict[int, _Rank] = {}
        self._spans: list[Span] = []

    def set_anchor(self, anchor: ClockAnchor) -> None:
        """The clocks have parted: from now on wall times are by this."""
        self._anchor = anchor

    def add(self, identity: RankIdentity, records: Iterable[RingRecord]) -> list[SlowStep]:
        """Look at records of one rank; returns its slow steps."""
        rank = self._ranks.setdefault(identity.rank, _Rank())
        found: list[SlowStep] = []
        for record in records:
            if isinstance(record, (CollectiveRecord, PhaseRecord)):
                rank.parts_left_out += len(rank.parts) == MAX_CHILDREN
                rank.parts.append(record)
            elif isinstance(record, StepRecord):
                if self._is_slow(rank, record):
                    found.append(self._tell(identity, rank, record))
                rank.parts.clear()
                rank.parts_left_out = 0
        return found

    def encode(self) -> list[EncodedBatch]:
        """The spans since the last call: one request, or none."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        if not self._spans or self._resource is None:
            return []
        spans, self._spans = self._spans, []
        request = ExportTraceServiceRequest()
        request.resource_spans.add(resource=self._resource).scope_spans.add(scope=scope(), spans=spans)
        return [EncodedBatch(Signal.TRACES, request.SerializeToString(), len(spans))]

    def _is_slow(self, rank: _Rank, record: StepRecord) -> bool:
        duration_ns = record.end_ns - record.start_ns
        slow = rank.limit_ns is not None and duration_ns > rank.limit_ns
        rank.usual.append(duration_ns)
        rank.seen += 1
        if len(rank.usual) >= _FROM_STEPS and rank.seen % 16 == 0:
            low, middle, high = quantiles(rank.usual, n=4)
            rank.limit_ns = high + max(_RANGES * (high - low), _LEAST_EXCESS * middle)
        if not slow:
            return False
        while rank.told and rank.told[0] <= record.end_ns - _MINUTE_NS:
            rank.told.popleft()
        if len(rank.told) >= _A_MINUTE:
            rank.steps_left_out += 1
            return False
        rank.told.append(record.end_ns)
        return True

    def _tell(self, identity: RankIdentity, rank: _Rank, record: StepRecord) -> SlowStep:
        trace = trace_id(identity.job, identity.attempt, record.step)
        span = span_id(trace, identity.rank)
        whole: Attributes = {
            "rankscope.rank": identity.rank,
            "rankscope.attempt": identity.attempt,
            "rankscope.step": record.step,
            "process.pid": identity.pid,
            "hw.id": identity.gpu_uuid,
            "rankscope.slow_steps_left_out": rank.steps_left_out or None,
            "rankscope.parts_left_out": rank.parts_left_out or None,
        }
        rank.steps_left_out = 0
        self._add(trace, span, b"", "rankscope.step", record.start_ns, record.end_ns, whole)
        begin_ns = record.start_ns
        for phase, duration_ns in record.phases_ns().items():
            if duration_ns > 0:
                placed = {"rankscope.phase": phase, "rankscope.span.placed": "in order"}
                own = span_id(trace, identity.rank, phase)
                self._add(trace, own, span, f"rankscope.{phase}", begin_ns, begin_ns + duration_ns, placed)
                begin_ns += duration_ns
        for number, part in enumerate(rank.parts):
            own = span_id(trace, identity.rank, number)
            if isinstance(part, PhaseRecord):
                named = {"rankscope.phase": part.name}
                self._add(trace, own, span, part.name, part.start_ns, part.end_ns, named)
            elif part.started_ns is not None and part.ended_ns is not None:
                about: Attributes = {
                    "rankscope.group": part.group,
                    "rankscope.collective.sequence": part.sequence,
                    "rankscope.collective.bytes": part.size_bytes,
                }
                self._add(trace, own, span, part.operation, part.started_ns, part.ended_ns, about)
        return SlowStep(identity.rank, record.end_ns - record.start_ns, record.end_ns, trace, span)

    def _add(
        self, trace: bytes, own: bytes, parent: bytes, name: str, begin_ns: int, end_ns: int, attributes: Attributes
    ) -> None:
        if self._resource is None:
            return
        from opentelemetry.proto.trace.v1.trace_pb2 import Span

        self._spans.append(
            Span(
                trace_id=trace,
                span_id=own,
                parent_span_id=parent,
                name=name or "unnamed",
                kind=Span.SPAN_KIND_INTERNAL,
                start_time_unix_nano=self._anchor.begin_wall_ns(begin_ns, max(begin_ns, end_ns)),
                end_time_unix_nano=self._anchor.to_wall_ns(max(begin_ns, end_ns)),
                attributes=key_values(attributes),
            )
        )
