"""An export that is taken over by another agent: deltas go on where they ended, intervals too."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from rankscope.agent.config import ExportSettings
from rankscope.agent.export import Export, export_targets
from rankscope.agent.recording import Recording
from rankscope.exporters.otlp_exporter import connect
from rankscope.exporters.outbox import Outbox
from rankscope.reading import Reading
from rankscope.testing import FakeClock

SECOND = 1_000_000_000
GPU = "GPU-3f2a91c0-77aa-4b1e-9f10-000000000002"


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_a_successor_neither_repeats_nor_loses(tmp_path: Path, temporality: str) -> None:
    """An agent is killed after an export, the next one goes on: deltas add up to what the counter grew by, and no
    interval of 15 s has two points beside those that the overlap repeats as they were."""
    path, clock = tmp_path / "r.db", FakeClock(1_000 * SECOND, 1_700_000_000 * SECOND)
    settings = ExportSettings(endpoint="http://127.0.0.1:1", temporality=temporality)  # type: ignore[arg-type]
    recording = Recording.create(path, job="j", host="h", reserve_bytes=10**6, clock=clock)

    def export() -> Export:
        targets = export_targets(settings, {})
        return Export(recording, targets, job="j", host="h", settings=settings, environ={}, clock=clock)

    def watch(one: Export, seconds: int) -> None:
        for _ in range(seconds):
            clock.advance(SECOND)
            at = clock.monotonic_ns()
            readings = [Reading("gpu.energy_joules", 300.0 * at / SECOND, at, GPU)]
            recording.add_readings(readings)
            one.add(readings)
        one.prepare()
        assert recording.commit(lambda: recording.add_events(one.write()))
        one.written(True)

    first = export()
    watch(first, 40)
    first.stop(0)
    second = export()
    watch(second, 40)
    second.prepare(final=True)
    assert recording.commit(lambda: recording.add_events(second.write()))
    second.stop(0)
    recording.close()
    points = []
    connection = connect(path)
    while (batch := Outbox(connection).oldest("metrics")) is not None:
        for metric in (
            ExportMetricsServiceRequest.FromString(batch.payload()).resource_metrics[0].scope_metrics[0].metrics
        ):
            points += [
                (each.time_unix_nano, each.start_time_unix_nano, each.as_double) for each in metric.sum.data_points
            ]
        Outbox(connection).acknowledge(batch.id)
    connection.close()
    if temporality == "delta":
        assert [start for _, start, _ in points[1:]] == [time for time, _, _ in points[:-1]]
        spanned = (points[-1][0] - points[0][1]) / SECOND
        assert sum(value for _, _, value in points) == pytest.approx(300 * spanned)
        # From the first reading to the last.
        assert spanned == 79
    else:
        by_time = {time: value for time, _, value in points}
        assert len(by_time) <= 80 // 15 + 2
        assert all(
            value == pytest.approx(300 * (time - 1_700_000_000 * SECOND + 1_000 * SECOND) / SECOND)
            for time, value in by_time.items()
        )
