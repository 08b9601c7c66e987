"""The one encoder an agent holds: readings, records, events and findings in, serialised OTLP requests out.

Add what it returns to the outbox in the transaction that appends the same data to the recording.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rankscope.clock import ClockAnchor
from rankscope.exporters.otlp_common import EncodedBatch, joined, resource
from rankscope.exporters.otlp_logs import event_records, finding_records, logs_batch
from rankscope.exporters.otlp_metrics import MAX_POINTS, ReadingsEncoder
from rankscope.exporters.otlp_steps import StepsEncoder
from rankscope.exporters.otlp_traces import SlowSteps
from rankscope.finding import Finding
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Reading
from rankscope.records import RingRecord


class OtlpEncoder:
    """Encodes one job on one host. Not for several threads. Every time given is CLOCK_MONOTONIC ns of that host."""

    def __init__(
        self,
        *,
        job: str,
        host: str,
        anchor: ClockAnchor,
        resource_attributes: Iterable[tuple[str, str]] = (),
        delta: bool = False,
        per_rank: bool = True,
        traces: bool = False,
    ) -> None:
        """`delta`: counters and histograms say what came since their last point. Not `per_rank`: ranks are merged."""
        self._anchor = anchor
        self._resource = resource(job, host, resource_attributes)
        self._readings = ReadingsEncoder(anchor, self._resource, delta=delta)
        self._slow = SlowSteps(anchor, self._resource) if traces else None
        self._steps = StepsEncoder(anchor, self._resource, delta=delta, per_rank=per_rank)

    def set_anchor(self, anchor: ClockAnchor) -> list[EncodedBatch]:
        """The wall clock and the monotonic one have parted: from now on wall times are by this.

        Returns the histograms up to then: where the clock was set back, they begin anew.
        """
        before = self.steps(anchor.newest.monotonic_ns - 1)
        self._anchor = anchor
        self._readings.set_anchor(anchor)
        self._steps.set_anchor(anchor)
        if self._slow is not None:
            self._slow.set_anchor(anchor)
        return before

    def begin_after(self, readings: Iterable[Reading]) -> None:
        """Take these as exported already, by an agent before: deltas go on from them."""
        self._readings.begin_after(readings)

    def readings(self, readings: Iterable[Reading]) -> list[EncodedBatch]:
        """Every reading as a point with its own time. Readings of one series must come in order."""
        return list(self.iterate_readings(readings))

    def iterate_readings(self, readings: Iterable[Reading]) -> Iterator[EncodedBatch]:
        """The same, batch by batch, for readings that are too many to hold twice."""
        return self._readings.encode(readings)

    def add_records(self, identity: RankIdentity, records: Iterable[RingRecord]) -> None:
        """Count a rank's records; `steps` gives the sums out."""
        records = list(records)
        self._steps.add(identity, records)
        if self._slow is not None:
            for slow in self._slow.add(identity, records):
                self._steps.add_exemplar(slow)

    def steps(self, until_ns: int) -> list[EncodedBatch]:
        """The histograms of steps and phases that changed since the last call, as of `until_ns`."""
        return list(self._steps.encode(until_ns))

    def traces(self) -> list[EncodedBatch]:
        """The spans of slow steps since the last call, where they are asked for."""
        return [] if self._slow is None else self._slow.encode()

    def events(self, events: Iterable[Event]) -> list[EncodedBatch]:
        """Events as log records, each at its own time."""
        records = event_records(events, self._anchor)
        return [logs_batch(self._resource, records)] if records else []

    def findings(self, findings: Iterable[Finding], now_ns: int) -> list[EncodedBatch]:
        """Findings as log records made at `now_ns`."""
        records = finding_records(findings, self._anchor, now_ns)
        return [logs_batch(self._resource, records)] if records else []

    def due(
        self, readings: Iterable[Reading], events: Iterable[Event], findings: Iterable[Finding], now_ns: int
    ) -> list[EncodedBatch]:
        """All of it, and what was counted since the last call, as of `now_ns`: in as few requests as may be."""
        batches = [*self.iterate_readings(readings), *self.steps(now_ns), *self.traces()]
        return joined([*batches, *self.events(events), *self.findings(findings, now_ns)], MAX_POINTS)
