"""A recording's window sent again: everything once, with the times it had."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import components
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from sample_window import BEGIN_NS, WALL_NS, Job, finding, gpu_uuid
from scripted_receiver import Answer, HttpReceiver, http_receiver

from rankscope.agent.config import ExportSettings
from rankscope.agent.export import Export, export_targets
from rankscope.agent.load import load_window
from rankscope.agent.recording import Recording
from rankscope.clock import SystemClock
from rankscope.errors import ExportError
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.outbox import Drop
from rankscope.exporters.replay import CHUNK_NS, replay
from rankscope.finding import Side
from rankscope.reading import Event, Reading, Severity
from rankscope.window import Window


@pytest.fixture(scope="module")
def window() -> Window:
    """Two hosts with two ranks each, long enough for several cuts, with an Xid."""
    job = Job(4, hosts=2).run(400)
    assert job.now_ns - BEGIN_NS > 2 * CHUNK_NS
    job.gpu().event("xid", "Xid 79", rank=3, severity=Severity.CRITICAL, attributes={"number": 79})
    job.events.append(Event("agent-started", BEGIN_NS, "began"))
    return job.window()


def _metric_points(receiver: HttpReceiver) -> list[tuple[str, str, Any]]:
    """(host, metric, point) of everything received."""
    points = []
    for request in receiver.requests:
        if request.path != "/v1/metrics":
            continue
        for of_resource in ExportMetricsServiceRequest.FromString(request.body).resource_metrics:
            (host,) = (pair.value.string_value for pair in of_resource.resource.attributes if pair.key == "host.name")
            for metric in of_resource.scope_metrics[0].metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                points += [(host, metric.name, point) for point in data.data_points]
    return points


def test_everything_of_a_window_arrives_once(window: Window) -> None:
    """Every reading at its own wall time under its own host, every step in the histograms, every event and finding."""
    found = finding(window, "gpu-off-bus", Side.HARDWARE, 3, BEGIN_NS, summary="GPU 3 is gone")
    with http_receiver() as receiver:
        balance = replay(window, otlp_targets({}, endpoint=receiver.url), findings=[found])
        assert balance.holds
        assert balance.acknowledged == balance.produced
        points = _metric_points(receiver)
        clocks = Counter(
            (host, point.time_unix_nano, point.as_double)
            for host, name, point in points
            if name == "rankscope.gpu.clock.sm"
        )
        expected = Counter(
            (key.host, WALL_NS + time_ns - BEGIN_NS, value)
            for key, series in window.series.items()
            if key.metric == "gpu.sm_clock_mhz"
            for time_ns, value in zip(series.times_ns, series.values, strict=True)
        )
        assert clocks == expected
        last: dict[tuple[str, int, str], Any] = {}
        times: dict[tuple[str, int, str], list[int]] = {}
        for host, name, point in points:
            if name == "rankscope.step.duration":
                labels = {pair.key: pair.value for pair in point.attributes}
                key = (host, labels["rankscope.rank"].int_value, labels["rankscope.clock"].string_value)
                last[key] = point
                times.setdefault(key, []).append(point.time_unix_nano)
        assert {key[:2] for key in last} == {("node-a", 0), ("node-a", 1), ("node-b", 2), ("node-b", 3)}
        assert {point.count for point in last.values()} == {400}
        assert all(len(each) >= 3 and each == sorted(set(each)) for each in times.values())
        assert max(max(each) for each in times.values()) == WALL_NS + window.end_ns - BEGIN_NS
        records = {record.event_name: record for record in receiver.log_records()}
        assert set(records) == {"rankscope.xid", "rankscope.agent-started", "rankscope.finding"}
        assert len(receiver.log_records()) == 3


def test_a_replay_repeats_what_was_sent_live(tmp_path: Path) -> None:
    """The points of a recording sent again are the ones its agent sent: same names, labels, times and values."""
    path = tmp_path / "node-a.db"
    recording = Recording.create(path, job="llama", host="node-a", reserve_bytes=10**6)
    begin_ns = time.monotonic_ns()
    readings = [
        Reading("gpu.temperature_celsius", 40.0 + number, begin_ns + 333_333 * number, gpu_uuid(number % 2))
        for number in range(200)
    ]
    with http_receiver() as live, http_receiver() as again:
        # Every reading, since a replay sends every one.
        settings = ExportSettings(endpoint=live.url, interval_seconds=0)
        export = Export(
            recording,
            export_targets(settings, {}),
            job="llama",
            host="node-a",
            settings=settings,
            environ={},
            clock=SystemClock(),
        )
        recording.add_readings(readings)
        export.add(readings)
        export.prepare(final=True)
        assert recording.commit(lambda: recording.add_events(export.write()))
        export.written(True)
        assert export.stop(10)
        recording.close()
        replay(load_window([path]), otlp_targets({}, endpoint=again.url))
        first, second = (
            sorted((host, name, point.SerializeToString()) for host, name, point in _metric_points(receiver))
            for receiver in (live, again)
        )
        assert len(first) == len(readings)
        assert second == first


def test_what_is_refused_is_in_the_accounts(window: Window) -> None:
    """A store that takes no logs costs the logs, with the reason, and neither the metrics nor a wait."""
    with http_receiver() as receiver:
        other = f"{receiver.url}/nothing/here"
        targets = otlp_targets({}, endpoint=receiver.url, logs_endpoint=other)
        receiver.answers["/nothing/here"] = Answer(404)
        balance = replay(window, targets, pause=_no_pause)
        assert balance.holds
        assert balance.drops == (Drop("logs", "HTTP 404", 2, 2),)
        assert balance.waiting.batches == 0


def _no_pause(seconds: float) -> None:
    raise AssertionError("nothing was to be waited for")


def test_a_receiver_that_is_not_there_is_one_error(window: Window) -> None:
    """After the time allowed the replay ends with what, where and what to do."""
    paused: list[float] = []
    with pytest.raises(ExportError, match=r"^http://127.0.0.1:\d+/v1/metrics: not delivered for 0.5 s .*replay again"):
        replay(
            window,
            otlp_targets({}, endpoint=f"http://127.0.0.1:{components.free_port()}"),
            give_up_s=0.5,
            pause=paused.append,
        )
    assert paused == []


def test_a_busy_receiver_is_waited_for(window: Window) -> None:
    """A replay goes on after 503 and loses nothing."""
    with http_receiver() as receiver:
        receiver.script = [Answer(503), Answer(), Answer(503)]
        balance = replay(window, otlp_targets({}, endpoint=receiver.url), pause=lambda seconds: None)
        assert balance.acknowledged == balance.produced
        assert len(receiver.requests) == balance.produced.batches + 2
