"""What is encoded: names, units, kinds, attributes and times, as OTLP's own messages read them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

from rankscope.clock import ClockAnchor
from rankscope.exporters.otlp_common import EncodedBatch, joined, key_values
from rankscope.exporters.otlp_encode import OtlpEncoder
from rankscope.exporters.otlp_logs import MAX_BODY
from rankscope.exporters.otlp_metrics import FORGOTTEN_NS, MAX_POINTS
from rankscope.exporters.otlp_steps import HISTOGRAMS, MAX_NAMES, OTHER_NAME
from rankscope.exporters.otlp_wire import PointWriter, gauge, metric_head, total
from rankscope.exporters.outbox import Signal
from rankscope.finding import Advice, Basis, Evidence, Finding, Impact, Side, Where
from rankscope.identity import RankIdentity
from rankscope.metrics import METRICS
from rankscope.reading import Event, Reading, Severity
from rankscope.records import DeviceRecord, GroupKind, GroupRecord, PhaseRecord, StepRecord

GPU = "GPU-3f2a91c0-77aa-4b1e-9f10-000000000002"
ANCHOR = ClockAnchor(monotonic_ns=1_000, wall_ns=1_700_000_000_000_000_000)
MS = 1_000_000
SECOND = 1_000 * MS


def _encoder(**extra: str) -> OtlpEncoder:
    return OtlpEncoder(job="llama", host="node-a", anchor=ANCHOR, resource_attributes=extra.items())


def _identity(rank: int = 2, **changes: Any) -> RankIdentity:
    values: dict[str, Any] = {
        "job": "llama",
        "attempt": 1,
        "rank": rank,
        "world_size": 4,
        "local_rank": rank,
        "host": "node-a",
        "pid": 4242,
        "start_ticks": 7,
        "boot_id": "b",
        "gpu_uuid": GPU,
    }
    return RankIdentity(**(values | changes))


def _step(step: int, begin_ns: int, length_ns: int = 100 * MS, **changes: int | None) -> StepRecord:
    values: dict[str, Any] = {
        "step": step,
        "start_ns": begin_ns,
        "end_ns": begin_ns + length_ns,
        "data_wait_ns": 5 * MS,
        "forward_ns": 30 * MS,
        "backward_ns": 50 * MS,
        "optimizer_ns": 15 * MS,
        "checkpoint_ns": 0,
        "evaluation_ns": 0,
        "other_ns": 0,
    }
    return StepRecord(**(values | changes))


def _attributes(holder: Any) -> dict[str, Any]:
    found = {}
    for pair in holder.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return found


def _metrics(batches: list[EncodedBatch]) -> dict[str, Any]:
    """The metrics of all batches by name; each name once."""
    found: dict[str, Any] = {}
    for batch in batches:
        assert batch.signal is Signal.METRICS
        for of_resource in ExportMetricsServiceRequest.FromString(batch.payload).resource_metrics:
            for metric in of_resource.scope_metrics[0].metrics:
                assert metric.name not in found
                found[metric.name] = metric
    return found


def _log_records(batches: list[EncodedBatch]) -> list[Any]:
    (batch,) = batches
    assert batch.signal is Signal.LOGS
    records = list(ExportLogsServiceRequest.FromString(batch.payload).resource_logs[0].scope_logs[0].log_records)
    assert len(records) == batch.points
    return records


def test_resource_names_job_and_host() -> None:
    """The resource says who speaks, tells jobs on one host apart, and takes what the environment adds."""
    (batch,) = _encoder(**{"k8s.pod.name": "trainer-0"}).readings([Reading("host.cpu_count", 8, 1_000)])
    resource = ExportMetricsServiceRequest.FromString(batch.payload).resource_metrics[0].resource
    attributes = _attributes(resource)
    assert attributes["host.name"] == "node-a"
    assert attributes["rankscope.job"] == "llama"
    assert attributes["service.name"] == "rankscope"
    assert attributes["service.instance.id"] == "node-a/llama"
    assert attributes["k8s.pod.name"] == "trainer-0"


def test_readings_keep_their_own_time_name_unit_and_kind() -> None:
    """A gauge stays a gauge, a counter becomes a monotonic cumulative sum, each point at its wall time."""
    metrics = _metrics(
        _encoder().readings(
            [
                Reading("gpu.temperature_celsius", 71.5, 2_000, GPU),
                Reading("gpu.energy_joules", 10.0, 2_000, GPU),
                Reading("gpu.temperature_celsius", 72.5, 3_000, GPU),
                Reading("gpu.memory_used_bytes", 5e9, 2_000, GPU),
            ]
        )
    )
    temperature = metrics["hw.temperature"]
    assert temperature.unit == "Cel"
    assert [(point.time_unix_nano, point.as_double) for point in temperature.gauge.data_points] == [
        (ANCHOR.wall_ns + 1_000, 71.5),
        (ANCHOR.wall_ns + 2_000, 72.5),
    ]
    assert _attributes(temperature.gauge.data_points[0]) == {"hw.id": GPU, "hw.type": "gpu"}
    energy = metrics["hw.energy"].sum
    assert energy.is_monotonic
    assert energy.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    memory = metrics["hw.gpu.memory.usage"].sum
    assert not memory.is_monotonic
    assert memory.data_points[0].as_double == 5e9


@pytest.mark.parametrize(
    ("metric", "device", "attributes"),
    [
        ("process.cpu_ns", "rank:3", {"rankscope.rank": 3}),
        ("disk.read_bytes", "nvme0n1", {"system.device": "nvme0n1"}),
        ("net.rx_bytes", "eth0", {"network.interface.name": "eth0"}),
        ("net.tcp_timeouts", "", {}),
        ("ib.symbol_errors", "mlx5_0/1", {"system.device": "mlx5_0/1"}),
        ("fs.total_bytes", "/data", {"system.filesystem.mountpoint": "/data"}),
        ("nfs.rtt_ns", "READ /a b", {"rankscope.nfs.operation": "READ", "system.filesystem.mountpoint": "/a b"}),
        ("cgroup.cpu_ns", "/job", {"rankscope.cgroup": "/job"}),
        ("agent.probe_ns", "nvml", {"rankscope.probe": "nvml"}),
        ("host.cpu_busy_ns", "", {}),
    ],
)
def test_devices_become_attributes(metric: str, device: str, attributes: dict[str, Any]) -> None:
    """Each family of metrics names its devices as the semantic conventions do."""
    (message,) = _metrics(_encoder().readings([Reading(metric, 1.0, 0, device)])).values()
    points = message.sum.data_points or message.gauge.data_points
    assert _attributes(points[0]) == attributes


def test_every_metric_of_the_table_can_be_encoded() -> None:
    """No name of the vocabulary is left without a family, and no two share a name at the edge."""
    sent = [metric.name for metric in METRICS.values() if not metric.recorded_only]
    readings = [Reading(name, 1.0, 5, "rank:0" if name.startswith("process.") else "some") for name in sent]
    assert len(_metrics(_encoder().readings(readings))) == len(sent)


def test_what_is_for_the_recording_alone_is_not_sent() -> None:
    """Samples of a tenth of a second stay on the host, and the rest of their batch goes out."""
    readings = [Reading("gpu.power_sample_watts", 1.0, 5, "GPU-0"), Reading("gpu.power_watts", 2.0, 5, "GPU-0")]
    (batch,) = _encoder().readings(readings)
    assert batch.points == 1
    assert list(_metrics([batch])) == ["hw.power"]


def test_a_counter_that_falls_back_begins_anew() -> None:
    """The start of a series is its first point's time, the same in every batch, until the counter falls."""
    encoder = _encoder()
    starts = []
    for time_ns, value in ((1_000, 5.0), (2_000, 9.0), (3_000, 2.0), (4_000, 3.0)):
        (metric,) = _metrics(encoder.readings([Reading("gpu.energy_joules", value, time_ns, GPU)])).values()
        starts.append(metric.sum.data_points[0].start_time_unix_nano - ANCHOR.wall_ns)
    assert starts == [0, 0, 2_000, 2_000]


@pytest.mark.parametrize("delta", [False, True])
def test_series_that_ended_are_forgotten(delta: bool) -> None:
    """A process an hour uses a GPU for a week: the encoder holds a few, and a counter that goes on has one begin."""
    encoder = OtlpEncoder(job="j", host="node-a", anchor=ANCHOR, delta=delta)
    starts, sums = set(), 0.0
    for hour in range(24 * 7):
        for part in range(4):
            at = hour * FORGOTTEN_NS + part * FORGOTTEN_NS // 4
            readings = [
                Reading("gpu_process.memory_used_bytes", 1.0, at, f"{GPU}/pid:{hour}"),
                Reading("disk.read_bytes", 1.0 + part, at, f"disk{hour}"),
                Reading("gpu.energy_joules", 4.0 * hour + part, at, GPU),
            ]
            for name, metric in _metrics(encoder.readings(readings)).items():
                if name == "hw.energy":
                    (point,) = metric.sum.data_points
                    starts.add(point.start_time_unix_nano)
                    sums += point.as_double
    held = encoder._readings
    assert len(held._series) <= 3 * 3
    assert len(starts) == (24 * 7 * 4 - 1 if delta else 1)
    assert not delta or sums == 4 * 24 * 7 - 1


def test_many_readings_make_several_requests() -> None:
    """A request stays below what receivers take; no point is lost or doubled."""
    readings = [Reading("host.load_runnable", float(number), number) for number in range(2 * MAX_POINTS + 1)]
    batches = _encoder().readings(readings)
    assert [batch.points for batch in batches] == [MAX_POINTS, MAX_POINTS, 1]
    values = [
        point.as_double
        for batch in batches
        for point in ExportMetricsServiceRequest.FromString(batch.payload)
        .resource_metrics[0]
        .scope_metrics[0]
        .metrics[0]
        .gauge.data_points
    ]
    assert values == [reading.value for reading in readings]
    assert max(len(batch.payload) for batch in batches) < 2**20


def _points(metrics: dict[str, Any], name: str, **labels: Any) -> list[Any]:
    wanted = {f"rankscope.{key}": value for key, value in labels.items()}
    points = metrics[name].exponential_histogram.data_points if name in metrics else []
    return [point for point in points if wanted.items() <= _attributes(point).items()]


def test_steps_become_cumulative_histograms_by_rank_and_phase() -> None:
    """Count, sum, start and time of a rank's steps; phases of a clock add up to the step; zeros are not counted."""
    encoder = _encoder()
    first = [_step(0, 10_000, backward_own_ns=40 * MS, gc_ns=2 * MS), DeviceRecord(0, 95 * MS, *[19 * MS] * 5, 0)]
    encoder.add_records(_identity(), first)
    metrics = _metrics(encoder.steps(10_000 + 200 * MS))
    (host,) = _points(metrics, "rankscope.step.duration", rank=2, clock="host")
    assert (host.count, host.sum) == (1, pytest.approx(0.1))
    assert host.start_time_unix_nano == ANCHOR.to_wall_ns(10_000)
    assert host.time_unix_nano == ANCHOR.to_wall_ns(10_000 + 200 * MS)
    assert metrics["rankscope.step.duration"].unit == "s"
    for clock, seconds in (("host", 0.1), ("device", 0.095)):
        phases = _points(metrics, "rankscope.step.phase.duration", rank=2, clock=clock)
        assert sum(point.sum for point in phases) == pytest.approx(seconds)
    assert not _points(metrics, "rankscope.step.phase.duration", phase="checkpoint")
    (gc,) = _points(metrics, "rankscope.step.stall.duration")
    assert _attributes(gc)["rankscope.stall"] == "gc"

    encoder.add_records(_identity(), [_step(1, 10_000 + 100 * MS)])
    later = _metrics(encoder.steps(10_000 + 400 * MS))
    (host,) = _points(later, "rankscope.step.duration", rank=2, clock="host")
    assert (host.count, host.start_time_unix_nano) == (2, ANCHOR.to_wall_ns(10_000))
    assert not _points(later, "rankscope.step.duration", rank=2, clock="device")
    assert encoder.steps(10_000 + 500 * MS) == []


@pytest.mark.parametrize("delta", [False, True])
def test_a_ranks_groups_and_work_go_with_its_steps(delta: bool) -> None:
    """Size, kind and members of each group as a gauge, and no longer those of the process before; work and retries as
    sums, of which a delta is what came since; leads of the device as durations."""
    encoder = OtlpEncoder(job="j", host="node-a", anchor=ANCHOR, delta=delta)
    group = GroupRecord(0, 4, 1, MS, MS, 1, "data:0", GroupKind.DATA, members="0-3")
    device = DeviceRecord(0, 95 * MS, *[19 * MS] * 5, 0, lead_forward_ns=5 * MS, contaminated=1)
    encoder.add_records(_identity(), [_step(0, 10_000, work=32, alloc_retries=1), device, group])
    first = _metrics(encoder.steps(SECOND))
    (point,) = first["rankscope.rank.group"].gauge.data_points
    told = {"rank": 2, "group": "data:0", "group.kind": "data", "group.members": "0-3"}
    assert (point.as_double, _attributes(point)) == (4, {f"rankscope.{key}": value for key, value in told.items()})
    (flag,) = first["rankscope.rank.contaminated"].gauge.data_points
    assert flag.as_double == 1
    (lead,) = _points(first, "rankscope.step.lead.duration", rank=2, phase="forward")
    assert lead.sum == pytest.approx(0.005)
    encoder.add_records(_identity(), [_step(1, SECOND, work=48)])
    second = _metrics(encoder.steps(2 * SECOND))
    for name, values in (
        ("rankscope.rank.work", (32, 48 if delta else 80)),
        ("rankscope.rank.allocation_retries", (1, 0 if delta else 1)),
    ):
        assert tuple(each[name].sum.data_points[0].as_double for each in (first, second)) == values
        assert first[name].sum.is_monotonic
        start = ANCHOR.to_wall_ns(SECOND if delta else 10_000)
        assert second[name].sum.data_points[0].start_time_unix_nano == start
    encoder.add_records(_identity(pid=4243), [_step(2, 2 * SECOND)])
    assert "rankscope.rank.group" not in _metrics(encoder.steps(3 * SECOND))


def test_histogram_points_hold_the_bucket_of_the_value() -> None:
    """Offset, scale and counts of a point place a duration between the bucket's own edges."""
    encoder = _encoder()
    encoder.add_records(_identity(), [_step(0, 0)])
    (point,) = _points(_metrics(encoder.steps(1)), "rankscope.step.duration", clock="host")
    base = 2**2**-point.scale
    assert list(point.positive.bucket_counts) == [1]
    assert base**point.positive.offset < 0.1 <= base ** (point.positive.offset + 1)
    assert point.min == point.max == pytest.approx(0.1)


def test_a_rank_is_tied_to_its_gpu_and_attempt() -> None:
    """rankscope.rank.info carries what dashboards join by, for ranks that moved."""
    encoder = _encoder()
    encoder.add_records(_identity(), [_step(41, 0)])
    encoder.add_records(_identity(attempt=2), [_step(42, 10)])
    metrics = _metrics(encoder.steps(1_000))
    (info,) = metrics["rankscope.rank.info"].gauge.data_points
    attributes = _attributes(info)
    assert (attributes["rankscope.attempt"], attributes["hw.id"], attributes["rankscope.rank"]) == (2, GPU, 2)
    assert metrics["rankscope.rank.step"].gauge.data_points[0].as_double == 42


def test_names_that_users_choose_stay_bounded() -> None:
    """Groups and user phases beyond the first few of a rank share one label; no duration goes uncounted."""
    encoder = _encoder()
    names = [f"name{number}" for number in range(3 * MAX_NAMES)]
    encoder.add_records(_identity(), [_step(0, 0)])
    encoder.add_records(_identity(), [GroupRecord(0, 4, 1, 5, 6, 1, name) for name in names])
    encoder.add_records(_identity(), [PhaseRecord(0, 0, 9, name) for name in names])
    metrics = _metrics(encoder.steps(100))
    for metric, label in (("rankscope.collective.wait.duration", "group"), ("rankscope.phase.duration", "phase")):
        points = _points(metrics, metric)
        assert len(points) == MAX_NAMES + 1
        assert sum(point.count for point in points) == len(names)
        (other,) = _points(metrics, metric, **{label: OTHER_NAME})
        assert other.count == 2 * MAX_NAMES


def test_impossible_durations_are_not_counted() -> None:
    """A step that ends before it began (a damaged ring) spoils no histogram and raises nothing."""
    encoder = _encoder()
    encoder.add_records(_identity(), [_step(0, 500, -100), _step(1, 600)])
    (point,) = _points(_metrics(encoder.steps(1_000)), "rankscope.step.duration", clock="host")
    assert point.count == 1


def test_events_become_log_records() -> None:
    """An Xid keeps its time, severity, text, GPU and number; many events, one request."""
    xid = Event(
        "xid",
        3_000,
        "Xid 79: GPU has fallen off the bus",
        Severity.CRITICAL,
        GPU,
        attributes={"number": 79, "pci": None},
    )
    stacks = Event("rank-stacks", 4_000, "x" * (MAX_BODY + 7), rank=3)
    first, second = _log_records(_encoder().events([xid, stacks]))
    assert first.event_name == "rankscope.xid"
    assert first.time_unix_nano == ANCHOR.wall_ns + 2_000
    assert (first.severity_number, first.severity_text) == (logs_pb2.SEVERITY_NUMBER_ERROR2, "critical")
    assert first.body.string_value == xid.text
    assert _attributes(first) == {"hw.id": GPU, "hw.type": "gpu", "rankscope.xid.number": 79}
    assert len(second.body.string_value) == MAX_BODY
    assert _attributes(second) == {"rankscope.rank": 3, "rankscope.body_characters_left_out": 7}
    assert _encoder().events([]) == []


def test_a_finding_becomes_a_log_record_with_its_evidence() -> None:
    """Class, side, confidence, place, cost and every piece of evidence are attributes; what is unknown is absent."""
    finding = Finding(
        class_slug="gpu-thermal-slowdown",
        side=Side.HARDWARE,
        confidence=0.97,
        severity=Severity.WARNING,
        advice=Advice.ACT,
        where=Where(host="node-a", rank=2, gpu_uuid=GPU, phase="backward"),
        basis=Basis.DEVICE_COMPUTE,
        since_ns=2_000,
        detected_step=412,
        impact=Impact(ms_per_step=31.4),
        evidence=(Evidence("thermal", "throttled", 0.8, 0.0, 2.1), Evidence("clock", "lower", None, None, -0.5)),
        not_seen=("kernel log: permission denied",),
        action="Check the cooling",
        runbook="docs/runbooks/gpu-thermal-slowdown.md",
        summary="GPU 2 is held down by its temperature",
    )
    (record,) = _log_records(_encoder().findings([finding], 9_000))
    attributes = _attributes(record)
    assert record.event_name == "rankscope.finding"
    assert record.time_unix_nano == ANCHOR.wall_ns + 8_000
    assert record.body.string_value == finding.summary
    assert attributes["rankscope.since_unix_nano"] == ANCHOR.wall_ns + 1_000
    assert (attributes["rankscope.class"], attributes["rankscope.side"]) == ("gpu-thermal-slowdown", "hardware")
    assert (attributes["rankscope.confidence"], attributes["rankscope.rank"], attributes["hw.id"]) == (0.97, 2, GPU)
    assert attributes["rankscope.impact.ms_per_step"] == 31.4
    assert attributes["rankscope.evidence"] == [
        "thermal: throttled = 0.8 (peers 0.0), log odds +2.10",
        "clock: lower, log odds -0.50",
    ]
    assert attributes["rankscope.not_seen"] == ["kernel log: permission denied"]
    assert not {"rankscope.link", "rankscope.until_unix_nano", "rankscope.impact.gpu_hours_per_day"} & set(attributes)


def test_the_documented_names_are_the_ones_sent() -> None:
    """docs/otlp.md lists every reading, with its name, unit and kind at the edge, and every histogram."""
    document = (Path(__file__).parents[2] / "docs" / "otlp.md").read_text()
    listed = [line for line in document.splitlines() if line.startswith("| `") and line.count("|") == 6]
    assert listed == [
        f"| `{metric.name}` | `{metric.otel}` | `{metric.unit}` | {'sum' if metric.counter else 'gauge'} "
        f"| {metric.description} |"
        for metric in METRICS.values()
        if not metric.recorded_only
    ]
    assert all(f"| `{name}` | rank" in document for name in HISTOGRAMS)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    """An agent without an endpoint pays neither for protobuf nor for gRPC nor for an HTTP client."""
    code = (
        "import sys, rankscope.exporters.otlp_encode, rankscope.exporters.outbox, rankscope.exporters.otlp_settings;"
        "heavy = {'google.protobuf', 'grpc', 'http.client', 'opentelemetry', 'ssl', 'numpy', 'requests'};"
        "print(*(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


@pytest.mark.parametrize("counter", [False, True])
def test_points_are_the_bytes_that_protobuf_makes(counter: bool) -> None:
    """Long and non-ASCII attributes, extreme times and values: parsed back, each point is what was to be said."""
    labels = {"hw.id": "GPU-" + "é" * 200, "rankscope.rank": 7, "empty": "", "share": -0.5}
    writer = PointWriter(key_values(labels), since=counter)
    points = [(1, 2, 0.0), (5, 2**63, -1e308), (2**64 - 1, 9, math.inf)]
    written = b"".join(
        writer.since(start, at, value) if counter else writer.at(at, value) for start, at, value in points
    )
    head = metric_head("name", "", "Cel")
    message = metrics_pb2.Metric.FromString(head + (total(written, 2, monotonic=True) if counter else gauge(written)))
    expected = metrics_pb2.Metric(name="name", unit="Cel")
    into = expected.sum if counter else expected.gauge
    for start, at, value in points:
        point = into.data_points.add(start_time_unix_nano=start if counter else 0, time_unix_nano=at, as_double=value)
        point.attributes.extend(key_values(labels))
    if counter:
        expected.sum.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
        expected.sum.is_monotonic = True
    assert message == expected


def test_requests_of_one_signal_go_out_as_one() -> None:
    """Readings and steps are one request as long as it stays below what receivers take; logs are another."""
    encoder = _encoder()
    encoder.add_records(_identity(), [_step(1, 0)])
    events = [Event("xid", 5, "Xid 79")]
    metrics, logs = encoder.due([Reading("host.cpu_count", 8, 1_000)], events, [], 10)
    assert (metrics.signal, logs.signal) == (Signal.METRICS, Signal.LOGS)
    names = _metrics([metrics])
    assert "rankscope.step.duration" in names
    assert len(names) > 1
    assert metrics.points == sum(
        len(getattr(metric, metric.WhichOneof("data")).data_points) for metric in names.values()
    )
    full = EncodedBatch(Signal.METRICS, metrics.payload, MAX_POINTS)
    assert joined([full, metrics, metrics], MAX_POINTS) == [full, *joined([metrics, metrics], MAX_POINTS)]
