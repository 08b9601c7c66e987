"""What of the readings goes out: levels, intervals, the bound on series and its end over weeks; deltas."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from rankscope.clock import ClockAnchor
from rankscope.exporters.export_levels import ExportFilter, Level
from rankscope.exporters.otlp_encode import OtlpEncoder
from rankscope.gpu_device import link_of, process_on
from rankscope.identity import RankIdentity
from rankscope.reading import Reading
from rankscope.records import StepRecord

SECOND = 1_000_000_000
GPU = "GPU-3f2a91c0-77aa-4b1e-9f10-000000000002"
HOUR = 3600 * SECOND
ANCHOR = ClockAnchor(0, 1_700_000_000 * SECOND)


def _one_of_each(time_ns: int) -> list[Reading]:
    named = {
        "gpu.temperature_celsius": GPU,
        "nvlink.replay_errors": link_of(GPU, 3),
        "gpu_process.memory_bytes": process_on(GPU, 77),
        "process.cpu_ns": "rank:1",
        "host.load_1m": "",
        "gpu.power_samples_watts": GPU,
    }
    return [Reading(metric, 1.0, time_ns, device) for metric, device in named.items()]


@pytest.mark.parametrize(
    ("level", "families"),
    [
        (Level.NODE, {"host"}),
        (Level.GPU, {"host", "gpu"}),
        (Level.RANK, {"host", "gpu", "process"}),
        (Level.LINK, {"host", "gpu", "process", "nvlink", "gpu_process"}),
    ],
)
def test_a_level_holds_those_before_it(level: Level, families: set[str]) -> None:
    """Each level adds its own families and keeps the others'."""
    kept = ExportFilter(level, 0).take(_one_of_each(SECOND)[:5])
    assert {reading.metric.split(".")[0] for reading in kept} == families


def test_the_first_of_every_interval_goes_out_as_it_was_read() -> None:
    """At 1 s for two minutes a gauge leaves 8 readings at 15 s, an NVLink 2 at 60 s, each one that was read; the newest
    follow at the end, once."""
    chosen = ExportFilter(Level.LINK, 15)
    readings = [each for number in range(120) for each in _one_of_each(number * SECOND)[:2]]
    sent = list(chosen.take(readings))
    assert set(sent) <= set(readings)
    times = {name: [each.time_ns // SECOND for each in sent if each.metric.startswith(name)] for name in ("gpu", "nvl")}
    assert times == {"gpu": list(range(0, 120, 15)), "nvl": [0, 60]}
    assert [reading.time_ns // SECOND for reading in chosen.flush()] == [119, 119]
    assert chosen.flush() == []


def test_series_beyond_the_bound_are_left_out_and_counted() -> None:
    """The bound holds, what goes beyond it is one series that says how many, and those that had room go on."""
    chosen = ExportFilter(Level.LINK, 15, max_series=10)
    first = list(chosen.take(Reading("disk.reads", 1.0, SECOND, f"sd{number}") for number in range(25)))
    assert [reading.value for reading in first if reading.metric == "agent.series_left_out"] == [15.0]
    assert chosen.series == 10
    assert len(first) == 11
    again = list(chosen.take(Reading("disk.reads", 1.0, 40 * SECOND, f"sd{number}") for number in range(25)))
    assert {reading.device for reading in again if reading.metric == "disk.reads"} == {f"sd{n}" for n in range(10)}


def test_weeks_of_restarts_hold_no_more_than_their_last_hour() -> None:
    """Eight ranks restarted every two hours for four weeks: processes are new series each time, 336 restarts make
    2,688 of them, and what is held is those of the last hour beside the bound; no live one is ever left out."""
    chosen = ExportFilter(Level.LINK, 15, max_series=40)
    sent: set[str] = set()
    for restart in range(28 * 12):
        now = restart * 2 * HOUR
        readings = [Reading("gpu_process.memory_bytes", 1.0, now, process_on(GPU, restart * 8 + k)) for k in range(8)]
        sent |= {each.device for each in chosen.take([*readings, Reading("gpu.temperature_celsius", 1.0, now, GPU)])}
        assert chosen.series <= 40
    assert not chosen.left_out
    assert len(sent) == 28 * 12 * 8 + 1


def _points(encoder: OtlpEncoder, readings: list[Reading]) -> list[tuple[int, int, float]]:
    found = []
    for batch in encoder.readings(readings):
        (of_resource,) = ExportMetricsServiceRequest.FromString(batch.payload).resource_metrics
        for metric in of_resource.scope_metrics[0].metrics:
            assert metric.sum.aggregation_temporality == 1
            for point in metric.sum.data_points:
                start, time = (point.start_time_unix_nano, point.time_unix_nano)
                found.append(((start - ANCHOR.wall_ns) // SECOND, (time - ANCHOR.wall_ns) // SECOND, point.as_double))
    return found


def test_deltas_follow_each_other_without_a_gap() -> None:
    """The first reading begins, each point starts where the last ended, a counter that fell counts from zero, and a
    successor goes on from what was exported before it."""
    encoder = OtlpEncoder(job="j", host="h", anchor=ANCHOR, delta=True)
    values = [(0, 100.0), (15, 130.0), (30, 130.0), (45, 4.0)]
    readings = [Reading("gpu.energy_joules", value, at * SECOND, GPU) for at, value in values]
    assert _points(encoder, readings) == [(0, 15, 30.0), (15, 30, 0.0), (30, 45, 4.0)]
    successor = OtlpEncoder(job="j", host="h", anchor=ANCHOR, delta=True)
    successor.begin_after(readings)
    assert _points(successor, [Reading("gpu.energy_joules", 9.0, 60 * SECOND, GPU)]) == [(45, 60, 5.0)]


def _steps(encoder: OtlpEncoder, rank: int, numbers: range) -> None:
    identity = RankIdentity("j", 0, rank, 2, rank, "h", 100 + rank, 7, "b", GPU)
    times = [(number * SECOND, (number + 1) * SECOND) for number in numbers]
    encoder.add_records(identity, [StepRecord(s // SECOND, s, e, 0, SECOND, 0, 0, 0, 0, 0) for s, e in times])


def _durations(encoder: OtlpEncoder, until_s: int) -> list[tuple[int, int, int, float]]:
    (batch,) = encoder.steps(until_s * SECOND)
    (of_resource,) = ExportMetricsServiceRequest.FromString(batch.payload).resource_metrics
    (metric,) = [m for m in of_resource.scope_metrics[0].metrics if m.name == "rankscope.step.duration"]
    points = metric.exponential_histogram.data_points
    keys = [len([pair for pair in point.attributes if pair.key == "rankscope.rank"]) for point in points]
    return [
        (labels, (point.start_time_unix_nano - ANCHOR.wall_ns) // SECOND, point.count, point.sum)
        for labels, point in zip(keys, points, strict=True)
    ]


def test_histograms_as_deltas_and_of_ranks_merged() -> None:
    """As deltas each export counts what is new from where the last one ended; merged, two ranks are one series without
    the label."""
    encoder = OtlpEncoder(job="j", host="h", anchor=ANCHOR, delta=True, per_rank=False)
    for rank in (0, 1):
        _steps(encoder, rank, range(10))
    assert _durations(encoder, 10) == [(0, 0, 20, 20.0)]
    _steps(encoder, 1, range(10, 13))
    assert _durations(encoder, 15) == [(0, 10, 3, 3.0)]
    assert encoder.steps(30 * SECOND) == []
