"""Readings as OTLP metrics, each with the wall time it was taken at.

Counters are monotonic cumulative sums. When a counter began to count is not known (a driver was loaded, a host booted),
so the first point of a series starts at its own time, as the data model asks of an unknown start, and so does the first
after a counter fell back. Values of a series are only ever to be subtracted from each other.

As deltas, where asked for, each point is what came since the reading before it, of which its start is the time; the
first reading of a series only begins it, and after a counter fell back what it shows has come since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankscope.clock import ClockAnchor
from rankscope.exporters.otlp_common import EncodedBatch, Scalar, key_values, scope
from rankscope.exporters.otlp_wire import PointWriter, field, gauge, metric_head, total
from rankscope.exporters.outbox import Signal
from rankscope.gpu_device import part_of
from rankscope.metric import Metric
from rankscope.metrics import metric_named
from rankscope.metrics_rules import LABELS, unpack
from rankscope.reading import Reading

if TYPE_CHECKING:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

#: About 800 kB: receivers take 4 MiB of gRPC by default, and a batch is what is lost or sent again as one.
MAX_POINTS = 5000
#: A series not heard of for this long (a process that ended, a disk that went) is forgotten; one that is heard of again
#: begins anew.
FORGOTTEN_NS = 3600 * 10**9

#: ExportMetricsServiceRequest, then ResourceMetrics, then ScopeMetrics.
_RESOURCE_METRICS = 1
_RESOURCE, _SCOPE_METRICS = 1, 2
_SCOPE, _METRICS = 1, 2

#: Families of metrics whose device is a GPU or a part of one.
GPU_FAMILIES = frozenset({"gpu", "gpu_process", "nvlink"})
#: Gauges here that the semantic conventions define as up-down counters (sums over devices make sense).
_UP_DOWN = frozenset({"hw.gpu.memory.usage", "hw.gpu.memory.limit"})

#: Family of metrics -> what its devices are called, where it is not system.device.
DEVICE_NAMES = {
    "agent": "rankscope.probe",
    "cgroup": "rankscope.cgroup",
    "fs": "system.filesystem.mountpoint",
    "net": "network.interface.name",
}


def series_attributes(metric: str, device: str) -> dict[str, Scalar]:
    """What tells the series of one metric apart, by the family of the metric."""
    family = metric.partition(".")[0]
    if family in GPU_FAMILIES:
        part = part_of(device)
        of_part = {"rankscope.link": part.link, "process.pid": part.pid}
        return {"hw.id": part.uuid, "hw.type": "gpu"} | {k: v for k, v in of_part.items() if v is not None}
    rank = device.removeprefix("rank:")
    if family == "process" and rank.isascii() and rank.isdigit() and len(rank) < 19:
        return {"rankscope.rank": int(rank)}
    if not device:
        return {}
    if family in LABELS:
        return {**unpack(family, device)}
    if family == "nfs":
        operation, _, mount = device.partition(" ")
        return {"rankscope.nfs.operation": operation, "system.filesystem.mountpoint": mount}
    return {DEVICE_NAMES.get(family, "system.device"): device}


@dataclass(slots=True)
class _Exported:
    """One series as it goes out."""

    counter: bool
    writer: PointWriter
    #: Of a counter: CLOCK_MONOTONIC ns of the start of the series, or as deltas of the next point; its last value.
    began_ns: int | None = None
    last: float = 0.0
    #: When it was last heard of, CLOCK_MONOTONIC ns.
    heard_ns: int = 0


class ReadingsEncoder:
    """Remembers where each counter's series began; one for the life of an agent."""

    def __init__(self, anchor: ClockAnchor, resource: Resource, *, delta: bool = False) -> None:
        self._anchor = anchor
        self._resource = resource
        self._delta = delta
        #: (metric, device) -> its series; None where that is for the recording alone.
        self._series: dict[tuple[str, str], _Exported | None] = {}
        #: When series were last looked through for those to forget.
        self._looked_ns: int | None = None
        self._heads: dict[str, bytes] = {}

    def set_anchor(self, anchor: ClockAnchor) -> None:
        """The clocks have parted: from now on wall times are by this."""
        self._anchor = anchor

    def begin_after(self, readings: Iterable[Reading]) -> None:
        """Take these as exported already."""
        for reading in readings:
            series = self._series_of(reading.metric, reading.device)
            if series is not None and series.counter:
                series.began_ns = series.heard_ns = reading.time_ns
                series.last = reading.value

    def encode(self, readings: Iterable[Reading]) -> Iterator[EncodedBatch]:
        """Requests of at most MAX_POINTS points; readings of one series must come in order.

        What is for the recording alone is left out.
        """
        known, to_wall_ns = self._series, self._anchor.to_wall_ns
        points: dict[str, list[bytes]] = {}
        count = 0
        # What was read together has one time.
        last_ns = wall_ns = -1
        for metric, value, time_ns, device in readings:
            key = (metric, device)
            try:
                series = known[key]
            except KeyError:
                series = self._series_of(metric, device)
            if series is None:
                continue
            series.heard_ns = time_ns
            if time_ns != last_ns:
                last_ns, wall_ns = time_ns, to_wall_ns(time_ns)
            if series.counter:
                point = self._counted(series, time_ns, wall_ns, value)
                if point is None:
                    continue
            else:
                point = series.writer.at(wall_ns, value)
            if count == MAX_POINTS:
                yield self._batch(points, count)
                points, count = {}, 0
            count += 1
            if metric in points:
                points[metric].append(point)
            else:
                points[metric] = [point]
        if count:
            yield self._batch(points, count)
            self._forget(last_ns)

    def _forget(self, now_ns: int) -> None:
        """Let go, once an hour, of what was not heard of meanwhile: a host's processes come and go for months."""
        if self._looked_ns is None:
            self._looked_ns = now_ns
        if now_ns < self._looked_ns + FORGOTTEN_NS:
            return
        since_ns, self._looked_ns = self._looked_ns, now_ns
        self._series = {
            key: series for key, series in self._series.items() if series is not None and series.heard_ns >= since_ns
        }

    def _series_of(self, metric: str, device: str) -> _Exported | None:
        key = (metric, device)
        if key not in self._series:
            known = metric_named(metric)
            writer = PointWriter(key_values(series_attributes(metric, device)), since=known.counter)
            self._series[key] = None if known.recorded_only else _Exported(known.counter, writer)
        return self._series[key]

    def _counted(self, series: _Exported, time_ns: int, wall_ns: int, value: float) -> bytes | None:
        """A counter's point; None for its first reading, where deltas are counted from it."""
        began_ns, last = series.began_ns, series.last
        series.last = value
        if self._delta:
            series.began_ns = time_ns
            if began_ns is None:
                return None
            value = value - last if value >= last else value
        elif began_ns is None or value < last:
            began_ns = series.began_ns = time_ns
        return series.writer.since(self._anchor.begin_wall_ns(began_ns, time_ns), wall_ns, value)

    def _batch(self, points: Mapping[str, Sequence[bytes]], count: int) -> EncodedBatch:
        messages = [self._message(metric_named(name), b"".join(of_metric)) for name, of_metric in points.items()]
        return metrics_batch(self._resource, messages, count)

    def _message(self, metric: Metric, points: bytes) -> bytes:
        head = self._heads.get(metric.otel)
        if head is None:
            head = self._heads[metric.otel] = metric_head(metric.otel, metric.description, metric.unit)
        if not (metric.counter or metric.otel in _UP_DOWN):
            return head + gauge(points)
        # What can go down has no deltas that a store could use.
        return head + total(points, temporality(delta=self._delta and metric.counter), monotonic=metric.counter)


def temporality(*, delta: bool) -> AggregationTemporality.ValueType:
    """Whether a point says what came since the one before it, or since the series began."""
    from opentelemetry.proto.metrics.v1 import metrics_pb2

    return metrics_pb2.AGGREGATION_TEMPORALITY_DELTA if delta else metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE


def metrics_batch(resource: Resource, messages: Iterable[bytes], points: int) -> EncodedBatch:
    """Serialised metrics of one resource as a serialised request."""
    of_scope = field(_SCOPE, scope().SerializeToString()) + b"".join(field(_METRICS, each) for each in messages)
    of_resource = field(_RESOURCE, resource.SerializeToString()) + field(_SCOPE_METRICS, of_scope)
    return EncodedBatch(Signal.METRICS, field(_RESOURCE_METRICS, of_resource), points)
