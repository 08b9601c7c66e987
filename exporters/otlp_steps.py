"""Steps and their phases, per rank, as cumulative exponential histograms.

Cumulative, because a batch that is lost then costs resolution in time and not a single step of the count, because a
repeat is harmless, and because Prometheus and VictoriaMetrics drop delta histograms. A duration of zero is left out: a
phase counts the steps that had it. Labels are bounded: of names that users choose, the first few of a rank are kept
apart and the rest share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from rankscope.clock import ClockAnchor
from rankscope.exporters.histogram import ExponentialHistogram
from rankscope.exporters.otlp_common import EncodedBatch, Scalar, key_values
from rankscope.exporters.otlp_metrics import metrics_batch, temporality
from rankscope.exporters.otlp_ranks import GAUGES, SUMS, RankFacts
from rankscope.exporters.otlp_traces import SlowStep
from rankscope.identity import RankIdentity
from rankscope.records import DeviceRecord, GroupRecord, PhaseRecord, RingRecord, StepRecord

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricMessage
    from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

#: Names of process groups, and of user phases, that one rank keeps apart.
MAX_NAMES = 32
OTHER_NAME = "_other"

HISTOGRAMS = {
    "rankscope.step.duration": "Duration of a training step",
    "rankscope.step.phase.duration": "Duration of a phase of a step; the phases of one clock add up to the step",
    "rankscope.step.stall.duration": "Time inside the phases of a step that something kept the training thread",
    "rankscope.step.lead.duration": "How far the device ran behind its host where a phase began: near zero, it starved",
    "rankscope.collective.own.duration": "Time from the begin of backward to the end of the rank's own work",
    "rankscope.collective.wait.duration": "Time spent waiting for peers: the late rank waits least",
    "rankscope.phase.duration": "Duration of a phase that the user named",
}

#: Durations that a series holds back before it counts them: counting many at once is cheaper.
_PENDING = 512

Label = tuple[tuple[str, Scalar], ...]

_HOST = ("rankscope.clock", "host")
_DEVICE = ("rankscope.clock", "device")
_CLOCKS = (_HOST, _DEVICE)


def _phases(clock: tuple[str, Scalar], phases: Iterable[str]) -> tuple[tuple[str, Label], ...]:
    return tuple(("rankscope.step.phase.duration", (clock, ("rankscope.phase", phase))) for phase in phases)


# Fields, and in the same order the series that they go to: records are many, and a loop over two tuples costs least.
_STEP_PHASES = ("data_wait", "forward", "bubble", "optimizer", "checkpoint", "evaluation", "other")
_STALLS = ("h2d", "sync", "gc", "compile", "runqueue")
_step_values = attrgetter(*(f"{name}_ns" for name in _STEP_PHASES + _STALLS))
_STEP_SERIES: tuple[tuple[str, Label], ...] = (
    ("rankscope.step.duration", (_HOST,)),
    *_phases(_HOST, ("backward", "backward_own", "backward_wait", "inner_wait", "sync", *_STEP_PHASES)),
    *(("rankscope.step.stall.duration", (("rankscope.stall", stall),)) for stall in _STALLS),
)
_DEVICE_PHASES = (
    "data_wait",
    "forward",
    "backward_own",
    "backward_wait",
    "inner_wait",
    "bubble",
    "optimizer",
    "other",
)
_LEADS = ("forward", "backward")
_device_values = attrgetter(
    "step_ns", *(f"{name}_ns" for name in _DEVICE_PHASES), *(f"lead_{name}_ns" for name in _LEADS)
)
_DEVICE_SERIES: tuple[tuple[str, Label], ...] = (
    ("rankscope.step.duration", (_DEVICE,)),
    *_phases(_DEVICE, _DEVICE_PHASES),
    *(("rankscope.step.lead.duration", (("rankscope.phase", phase),)) for phase in _LEADS),
)


class _Series:
    """One histogram on its way, and the durations not yet counted in it."""

    __slots__ = ("attributes", "exemplars", "exported", "histogram", "impossible", "label", "name", "pending")

    def __init__(self, name: str, label: Label) -> None:
        self.name = name
        self.label = label
        self.histogram = ExponentialHistogram()
        self.pending: list[int] = []
        self.exported = 0
        self.impossible = 0
        #: As its points carry them, from the first on.
        self.attributes: list[KeyValue] | None = None
        #: Of the host's clock, the slow steps since the last export.
        self.exemplars: list[SlowStep] = []

    def add(self, duration_ns: int) -> None:
        self.pending.append(duration_ns)
        if len(self.pending) >= _PENDING:
            self.count()

    def begin_anew(self) -> None:
        """Forget what was counted: it is exported."""
        self.histogram = ExponentialHistogram()
        self.exported = 0

    def count(self) -> None:
        """Count what is pending; what no clock can have measured (a damaged ring) is left out."""
        possible = [duration_ns * 1e-9 for duration_ns in self.pending if duration_ns > 0]
        self.impossible += len(self.pending) - len(possible)
        self.histogram.add_all(possible)
        self.pending.clear()


class _Rank:
    """What is known of one rank."""

    __slots__ = ("changed", "device_series", "facts", "named_series", "names", "start_ns", "step_series", "summed")

    def __init__(self, identity: RankIdentity) -> None:
        self.facts = RankFacts(identity)
        self.start_ns: int | None = None
        self.changed = False
        #: What of each sum was exported, for deltas.
        self.summed: dict[str, float] = {}
        self.names: dict[str, set[str]] = {}
        self.step_series = tuple(_Series(*each) for each in _STEP_SERIES)
        self.device_series = tuple(_Series(*each) for each in _DEVICE_SERIES)
        self.named_series: dict[tuple[str, Label], _Series] = {}

    def add(self, record: RingRecord) -> None:
        """Count every duration in a record that is there and not zero."""
        if isinstance(record, StepRecord):
            self._add_step(record)
        elif isinstance(record, DeviceRecord):
            self.facts.add_device(record)
            for duration_ns, series in zip(_device_values(record), self.device_series, strict=True):
                if duration_ns:
                    series.add(duration_ns)
        elif isinstance(record, GroupRecord):
            name = self._bounded("rankscope.group", record.group)
            self.facts.add_group(str(name[1]), record)
            of_group = (_CLOCKS[record.on_device == 1], name)
            self._add_named("rankscope.collective.own.duration", of_group, record.own_ns)
            self._add_named("rankscope.collective.wait.duration", of_group, record.wait_ns)
        elif isinstance(record, PhaseRecord):
            label = (self._bounded("rankscope.phase", record.name),)
            self._add_named("rankscope.phase.duration", label, record.end_ns - record.start_ns)

    def _add_step(self, record: StepRecord) -> None:
        backward, own = record.backward_ns, record.backward_own_ns
        parts = (backward, None, None) if own is None else (None, own, backward - own)
        wait = None
        if record.collective_wait_ns is not None:
            wait = record.collective_wait_ns - (parts[2] or 0)
        # Rings of version 1 counted synchronisation inside the other phases.
        sync = None if record.flags is None else record.sync_ns
        values = (record.end_ns - record.start_ns, *parts, wait, sync, *_step_values(record))
        for duration_ns, series in zip(values, self.step_series, strict=True):
            if duration_ns:
                series.add(duration_ns)
        self.facts.add_step(record)
        self.changed = True
        if self.start_ns is None:
            self.start_ns = record.start_ns

    def _add_named(self, name: str, label: Label, duration_ns: int | None) -> None:
        if duration_ns:
            key = (name, label)
            if key not in self.named_series:
                self.named_series[key] = _Series(name, label)
            self.named_series[key].add(duration_ns)

    def _bounded(self, key: str, name: str) -> tuple[str, Scalar]:
        """`name`, or the one for all the rest once this rank has brought too many."""
        known = self.names.setdefault(key, set())
        if name not in known and len(known) >= MAX_NAMES:
            return key, OTHER_NAME
        known.add(name)
        return key, name

    def series(self) -> Iterator[_Series]:
        """Every series, up to date."""
        for series in (*self.step_series, *self.device_series, *self.named_series.values()):
            if series.pending:
                series.count()
            yield series


class StepsEncoder:
    """Counts what the ranks recorded; one for the life of an agent. Counts go on over restarts of a rank."""

    def __init__(
        self, anchor: ClockAnchor, resource: Resource | None, *, delta: bool = False, per_rank: bool = True
    ) -> None:
        """Without a resource, for `snapshot` alone."""
        self._anchor = anchor
        self._resource = resource
        self._delta = delta
        self._per_rank = per_rank
        #: By number; without a number each, all ranks are one.
        self._ranks: dict[int | None, _Rank] = {}

    def set_anchor(self, anchor: ClockAnchor) -> None:
        """The clocks have parted: from now on wall times are by this. Call `encode` first.

        Where the wall clock was set back, sums that began after what they are sums of now begin anew.
        """
        back = anchor.newest.ahead_ns < self._anchor.newest.ahead_ns
        self._anchor = anchor
        for rank in self._ranks.values() if back else ():
            if rank.start_ns is not None:
                rank.start_ns = anchor.newest.monotonic_ns
                for series in rank.series():
                    series.begin_anew()

    @property
    def impossible(self) -> int:
        """Durations below zero so far, which are not counted."""
        return sum(series.impossible for rank in self._ranks.values() for series in rank.series())

    def add(self, identity: RankIdentity, records: Iterable[RingRecord]) -> None:
        """Count the durations in `records` of one rank."""
        number = identity.rank if self._per_rank else None
        rank = self._ranks.get(number)
        if rank is None:
            rank = self._ranks[number] = _Rank(identity)
        if identity.pid != rank.facts.identity.pid:
            # Another process makes its groups anew.
            rank.facts.groups.clear()
        rank.facts.identity = identity
        for record in records:
            rank.add(record)

    def add_exemplar(self, slow: SlowStep) -> None:
        """Link the next point of this rank's step times to the trace of one of them."""
        rank = self._ranks[slow.rank if self._per_rank else None]
        rank.step_series[0].exemplars.append(slow)

    def snapshot(self) -> Iterator[tuple[str, str, dict[str, Scalar | None], ExponentialHistogram | float]]:
        """(name, description, attributes, a histogram of its own or a value) of everything counted so far.

        Values are gauges, but for those of SUMS.
        """
        for number, rank in self._ranks.items():
            for series in rank.series():
                if series.histogram.count:
                    copy = ExponentialHistogram()
                    copy.merge(series.histogram)
                    yield series.name, HISTOGRAMS[series.name], {"rankscope.rank": number, **dict(series.label)}, copy
            if number is not None and rank.start_ns is not None:
                for name, value, attributes in (*rank.facts.gauges(), *rank.facts.sums()):
                    yield name, (GAUGES | SUMS)[name][1], attributes, float(value)

    def encode(self, until_ns: int) -> Iterator[EncodedBatch]:
        """What changed since the last call, as of `until_ns`: one request, or none."""
        messages: dict[str, MetricMessage] = {}
        points = 0
        for number, rank in sorted(self._ranks.items(), key=lambda each: each[0] or 0):
            if rank.start_ns is None:
                continue
            points += self._rank_points(messages, number, rank, until_ns)
        if points and self._resource is not None:
            serialised = (message.SerializeToString() for message in messages.values())
            yield metrics_batch(self._resource, serialised, points)

    def _rank_points(self, messages: dict[str, MetricMessage], number: int | None, rank: _Rank, until_ns: int) -> int:
        from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

        points = 0
        start_wall_ns = self._anchor.begin_wall_ns(rank.start_ns or 0, until_ns)
        wall_ns = self._anchor.to_wall_ns(until_ns)
        for series in rank.series():
            name, histogram = series.name, series.histogram
            if histogram.count == series.exported:
                continue
            series.exported = histogram.count
            if name not in messages:
                messages[name] = Metric(name=name, unit="s", description=HISTOGRAMS[name])
                messages[name].exponential_histogram.aggregation_temporality = temporality(delta=self._delta)
            offset, counts = histogram.buckets()
            point = messages[name].exponential_histogram.data_points.add(
                start_time_unix_nano=start_wall_ns,
                time_unix_nano=wall_ns,
                count=histogram.count,
                sum=histogram.sum,
                min=histogram.minimum,
                max=histogram.maximum,
                scale=histogram.scale,
                zero_count=histogram.zero_count,
            )
            for slow in series.exemplars:
                point.exemplars.add(
                    time_unix_nano=self._anchor.to_wall_ns(slow.end_ns),
                    as_double=slow.duration_ns * 1e-9,
                    trace_id=slow.trace,
                    span_id=slow.span,
                )
            series.exemplars.clear()
            point.positive.offset = offset
            point.positive.bucket_counts.extend(counts)
            if series.attributes is None:
                series.attributes = key_values({"rankscope.rank": number, **dict(series.label)})
            point.attributes.extend(series.attributes)
            points += 1
            if self._delta:
                series.begin_anew()
        if rank.changed and number is not None:
            for name, value, attributes in rank.facts.gauges():
                gauge = messages.setdefault(name, _metric(name)).gauge
                self._point(gauge.data_points, value, attributes, wall_ns)
                points += 1
            for name, value, attributes in rank.facts.sums():
                of_sum = messages.setdefault(name, _metric(name)).sum
                of_sum.aggregation_temporality, of_sum.is_monotonic = temporality(delta=self._delta), True
                since = value - rank.summed.get(name, 0.0) if self._delta else value
                rank.summed[name] = value
                self._point(of_sum.data_points, since, attributes, wall_ns).start_time_unix_nano = start_wall_ns
                points += 1
        if self._delta and points:
            rank.start_ns = until_ns
        rank.changed = False
        return points

    @staticmethod
    def _point(
        to: RepeatedCompositeFieldContainer[NumberDataPoint],
        value: float,
        attributes: dict[str, Scalar | None],
        wall_ns: int,
    ) -> NumberDataPoint:
        point: NumberDataPoint = to.add(time_unix_nano=wall_ns, as_double=value)
        point.attributes.extend(key_values(attributes))
        return point


def _metric(name: str) -> MetricMessage:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

    unit, description = (GAUGES | SUMS)[name]
    return Metric(name=name, unit=unit, description=description)
