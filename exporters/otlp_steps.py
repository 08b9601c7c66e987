"""Steps and their phases, per rank, as cumulative exponential histograms.

Cumulative, because a batch that is lost then costs resolution in time and not a single step of the count, because a
repeat is harmless, and because Prometheus and VictoriaMetrics drop delta histograms. A duration of zero is left out: a
phase counts the steps that had it. Labels are bounded: of names that users choose, the first few of a rank are kept
apart and the rest share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rankscope.clock import ClockAnchor
from rankscope.exporters.histogram import ExponentialHistogram
from rankscope.exporters.otlp_common import EncodedBatch, Scalar, key_values
from rankscope.exporters.otlp_metrics import metrics_batch
from rankscope.identity import RankIdentity
from rankscope.records import DeviceRecord, GroupRecord, PhaseRecord, RingRecord, StepRecord

if TYPE_CHECKING:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricMessage
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

#: Names of process groups, and of user phases, that one rank keeps apart.
MAX_NAMES = 32
OTHER_NAME = "_other"

HISTOGRAMS = {
    "rankscope.step.duration": "Duration of a training step",
    "rankscope.step.phase.duration": "Duration of a phase of a step; the phases of one clock add up to the step",
    "rankscope.step.stall.duration": "Time inside the phases of a step that something kept the training thread",
    "rankscope.collective.own.duration": "Time from the begin of backward to the end of the rank's own work",
    "rankscope.collective.wait.duration": "Time spent waiting for peers: the late rank waits least",
    "rankscope.phase.duration": "Duration of a phase that the user named",
}

_HOST_PHASES = ("data_wait", "forward", "optimizer", "checkpoint", "evaluation", "other")
_DEVICE_PHASES = ("data_wait", "forward", "backward_own", "backward_wait", "optimizer", "other")
_STALLS = ("sync", "gc", "compile", "runqueue")
_CLOCKS = ("host", "device")

_Label = tuple[tuple[str, Scalar], ...]
_Duration = tuple[str, _Label, int | None]


@dataclass(slots=True)
class _Series:
    histogram: ExponentialHistogram = field(default_factory=ExponentialHistogram)
    exported: int = 0


@dataclass(slots=True)
class _Rank:
    identity: RankIdentity
    start_ns: int | None = None
    step: int = -1
    changed: bool = False
    names: dict[str, set[str]] = field(default_factory=dict)
    series: dict[tuple[str, _Label], _Series] = field(default_factory=dict)

    def bounded(self, label: str, name: str) -> str:
        """`name`, or the one for all the rest once this rank has brought too many."""
        known = self.names.setdefault(label, set())
        if name not in known and len(known) >= MAX_NAMES:
            return OTHER_NAME
        known.add(name)
        return name


class StepsEncoder:
    """Counts what the ranks recorded; one for the life of an agent. Counts go on over restarts of a rank."""

    def __init__(self, anchor: ClockAnchor, resource: Resource) -> None:
        self._anchor = anchor
        self._resource = resource
        self._ranks: dict[int, _Rank] = {}
        #: Durations that no clock can have measured (a damaged ring): not counted.
        self.impossible = 0

    def add(self, identity: RankIdentity, records: Iterable[RingRecord]) -> None:
        """Count the durations in `records` of one rank."""
        rank = self._ranks.setdefault(identity.rank, _Rank(identity))
        rank.identity = identity
        for record in records:
            for name, label, duration_ns in _durations(rank, record):
                if not duration_ns:
                    continue
                if duration_ns < 0:
                    self.impossible += 1
                    continue
                series = rank.series.setdefault((name, label), _Series())
                series.histogram.add(duration_ns * 1e-9)
            if isinstance(record, StepRecord):
                rank.step = record.step
                rank.changed = True
                if rank.start_ns is None:
                    rank.start_ns = record.start_ns

    def encode(self, until_ns: int) -> Iterator[EncodedBatch]:
        """What changed since the last call, as of `until_ns`: one request, or none."""
        messages: dict[str, MetricMessage] = {}
        points = 0
        for number, rank in sorted(self._ranks.items()):
            if rank.start_ns is None:
                continue
            points += self._rank_points(messages, number, rank, until_ns)
        if points:
            yield metrics_batch(self._resource, messages.values(), points)

    def _rank_points(self, messages: dict[str, MetricMessage], number: int, rank: _Rank, until_ns: int) -> int:
        from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, Metric

        points = 0
        start_wall_ns = self._anchor.to_wall_ns(rank.start_ns or 0)
        wall_ns = self._anchor.to_wall_ns(until_ns)
        for (name, label), series in rank.series.items():
            histogram = series.histogram
            if histogram.count == series.exported:
                continue
            series.exported = histogram.count
            if name not in messages:
                messages[name] = Metric(name=name, unit="s", description=HISTOGRAMS[name])
                messages[name].exponential_histogram.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
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
            point.positive.offset = offset
            point.positive.bucket_counts.extend(counts)
            point.attributes.extend(key_values({"rankscope.rank": number, **dict(label)}))
            points += 1
        if rank.changed:
            rank.changed = False
            for name, unit, value, attributes in _rank_gauges(number, rank):
                message = messages.setdefault(name, Metric(name=name, unit=unit, description=_GAUGES[name]))
                gauge_point = message.gauge.data_points.add(time_unix_nano=wall_ns, as_double=value)
                gauge_point.attributes.extend(key_values(attributes))
                points += 1
        return points


_GAUGES = {
    "rankscope.rank.step": "Number of the last step that the rank ended",
    "rankscope.rank.info": "Always 1: ties a rank to its attempt, process and GPU",
}


def _rank_gauges(number: int, rank: _Rank) -> Iterator[tuple[str, str, float, dict[str, Scalar | None]]]:
    identity = rank.identity
    yield "rankscope.rank.step", "{step}", rank.step, {"rankscope.rank": number}
    yield (
        "rankscope.rank.info",
        "",
        1.0,
        {
            "rankscope.rank": number,
            "rankscope.attempt": identity.attempt,
            "rankscope.local_rank": identity.local_rank,
            "rankscope.world_size": identity.world_size,
            "process.pid": identity.pid,
            "hw.id": identity.gpu_uuid,
        },
    )


def _durations(rank: _Rank, record: RingRecord) -> Iterator[_Duration]:
    """Every duration in a record, as (metric, attributes, ns)."""
    if isinstance(record, StepRecord):
        yield from _step_durations(record)
    elif isinstance(record, DeviceRecord):
        clock = ("rankscope.clock", "device")
        yield "rankscope.step.duration", (clock,), record.step_ns
        for phase in _DEVICE_PHASES:
            label = (clock, ("rankscope.phase", phase))
            yield "rankscope.step.phase.duration", label, getattr(record, f"{phase}_ns")
    elif isinstance(record, GroupRecord):
        group = rank.bounded("rankscope.group", record.group)
        label = (("rankscope.clock", _CLOCKS[record.on_device == 1]), ("rankscope.group", group))
        yield "rankscope.collective.own.duration", label, record.own_ns
        yield "rankscope.collective.wait.duration", label, record.wait_ns
    elif isinstance(record, PhaseRecord):
        phase = rank.bounded("rankscope.phase", record.name)
        yield "rankscope.phase.duration", (("rankscope.phase", phase),), record.end_ns - record.start_ns


def _step_durations(record: StepRecord) -> Iterator[_Duration]:
    clock = ("rankscope.clock", "host")
    yield "rankscope.step.duration", (clock,), record.end_ns - record.start_ns
    phases = {phase: getattr(record, f"{phase}_ns") for phase in _HOST_PHASES}
    own_ns = record.backward_own_ns
    if own_ns is None:
        phases["backward"] = record.backward_ns
    else:
        phases |= {"backward_own": own_ns, "backward_wait": record.backward_ns - own_ns}
    for phase, duration_ns in phases.items():
        yield "rankscope.step.phase.duration", (clock, ("rankscope.phase", phase)), duration_ns
    for stall in _STALLS:
        label = (("rankscope.stall", stall),)
        yield "rankscope.step.stall.duration", label, getattr(record, f"{stall}_ns")
