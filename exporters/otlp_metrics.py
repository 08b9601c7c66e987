"""Readings as OTLP metrics, each with the wall time it was taken at.

Counters are monotonic cumulative sums. When a counter began to count is not known (a driver was loaded, a host booted),
so the first point of a series starts at its own time, as the data model asks of an unknown start, and so does the first
after a counter fell back. Values of a series are only ever to be subtracted from each other.

As deltas, where asked for, each point is what came since the reading before it, of which its start is the time; the
first reading of a series only begins it, and after a counter fell back what it shows has come since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
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


class ReadingsEncoder:
    """Remembers where each counter's series began; one for the life of an agent."""

    def __init__(self, anchor: ClockAnchor, resource: Resource, *, delta: bool = False) -> None:
        self._anchor = anchor
        self._resource = resource
        self._delta = delta
        #: (metric, device) -> (start of the series, or as deltas of the next point, CLOCK_MONOTONIC ns; last value)
        self._counters: dict[tuple[str, str], tuple[int, float]] = {}
        self._writers: dict[tuple[str, str], PointWriter] = {}
        #: When series were last looked through for those to forget.
        self._looked_ns: int | None = None
        self._heads: dict[str, bytes] = {}

    def set_anchor(self, anchor: ClockAnchor) -> None:
        """The clocks have parted: from now on wall times are by this."""
        self._anchor = anchor

    def begin_after(self, readings: Iterable[Reading]) -> None:
        """Take these as exported already."""
        for reading in readings:
            if metric_named(reading.metric).counter:
                self._counters[reading.metric, reading.device] = reading.time_ns, reading.value

    def encode(self, readings: Iterable[Reading]) -> Iterator[EncodedBatch]:
        """Requests of at most MAX_POINTS points; readings of one series must come in order.

        What is for the recording alone is left out.
        """
        remaining = (reading for reading in readings if not metric_named(reading.metric).recorded_only)
        if self._delta:
            remaining = (reading for reading in remaining if not self._begins(reading))
        while chunk := list(islice(remaining, MAX_POINTS)):
            yield self._encode_chunk(chunk)
            self._forget(chunk[-1].time_ns)

    def _forget(self, now_ns: int) -> None:
        """Let go, once an hour, of what was not heard of meanwhile: a host's processes come and go for months."""
        if self._looked_ns is None:
            self._looked_ns = now_ns
        if now_ns < self._looked_ns + FORGOTTEN_NS:
            return
        since_ns, self._looked_ns = self._looked_ns, now_ns
        self._writers = {key: writer for key, writer in self._writers.items() if writer.heard_ns >= since_ns}
        self._counters = {
            key: counter
            for key, counter in self._counters.items()
            if (counter[0] >= since_ns if self._delta else key in self._writers)
        }

    def _encode_chunk(self, readings: list[Reading]) -> EncodedBatch:
        by_metric: dict[str, list[Reading]] = {}
        for reading in readings:
            by_metric.setdefault(reading.metric, []).append(reading)
        messages = [self._metric(metric_named(name), group) for name, group in by_metric.items()]
        return metrics_batch(self._resource, messages, len(readings))

    def _metric(self, metric: Metric, readings: list[Reading]) -> bytes:
        head = self._heads.get(metric.otel)
        if head is None:
            head = self._heads[metric.otel] = metric_head(metric.otel, metric.description, metric.unit)
        to_wall_ns = self._anchor.to_wall_ns
        if metric.counter:
            points = b"".join(self._writer(reading, since=True).since(*self._point(reading)) for reading in readings)
        else:
            points = b"".join(
                self._writer(reading, since=False).at(to_wall_ns(reading.time_ns), reading.value)
                for reading in readings
            )
        if not (metric.counter or metric.otel in _UP_DOWN):
            return head + gauge(points)
        # What can go down has no deltas that a store could use.
        return head + total(points, temporality(delta=self._delta and metric.counter), monotonic=metric.counter)

    def _begins(self, reading: Reading) -> bool:
        """Whether this is a counter's first reading, from which deltas are counted."""
        key = (reading.metric, reading.device)
        if key in self._counters or not metric_named(reading.metric).counter:
            return False
        self.begin_after((reading,))
        return True

    def _point(self, reading: Reading) -> tuple[int, int, float]:
        """(start, time, value) of a counter's point, wall times in ns."""
        key = (reading.metric, reading.device)
        value = reading.value
        began_ns, last = self._counters.get(key, (reading.time_ns, value))
        if self._delta:
            self._counters[key] = (reading.time_ns, value)
            value = value - last if value >= last else value
        else:
            if value < last:
                began_ns = reading.time_ns
            self._counters[key] = (began_ns, value)
        start_ns = self._anchor.begin_wall_ns(began_ns, reading.time_ns)
        return start_ns, self._anchor.to_wall_ns(reading.time_ns), value

    def _writer(self, reading: Reading, *, since: bool) -> PointWriter:
        key = (reading.metric, reading.device)
        writer = self._writers.get(key)
        if writer is None:
            writer = self._writers[key] = PointWriter(key_values(series_attributes(*key)), since=since)
        writer.heard_ns = reading.time_ns
        return writer


def temporality(*, delta: bool) -> AggregationTemporality.ValueType:
    """Whether a point says what came since the one before it, or since the series began."""
    from opentelemetry.proto.metrics.v1 import metrics_pb2

    return metrics_pb2.AGGREGATION_TEMPORALITY_DELTA if delta else metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE


def metrics_batch(resource: Resource, messages: Iterable[bytes], points: int) -> EncodedBatch:
    """Serialised metrics of one resource as a serialised request."""
    of_scope = field(_SCOPE, scope().SerializeToString()) + b"".join(field(_METRICS, each) for each in messages)
    of_resource = field(_RESOURCE, resource.SerializeToString()) + field(_SCOPE_METRICS, of_scope)
    return EncodedBatch(Signal.METRICS, field(_RESOURCE_METRICS, of_resource), points)
