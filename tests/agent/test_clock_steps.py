"""A wall clock that is set by an hour, and a host that sleeps, in the middle of a run: the shipped agent on simulated
time, its recording, its export and its findings."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from components import free_port
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from rankscope.agent.config import ExportSettings, RuleSettings, Settings
from rankscope.agent.job import WatchedJob
from rankscope.agent.load import load_window
from rankscope.agent.sources import Sources
from rankscope.agent.verdict import conclude
from rankscope.clock import ClockAnchor, boot_id
from rankscope.exporters.outbox import Outbox, WaitingBatch
from rankscope.exporters.replay import encode_window
from rankscope.exporters.verdict_json import iso_time, verdict_document
from rankscope.identity import RankIdentity, start_ticks
from rankscope.metrics import metric_named
from rankscope.records import StepRecord
from rankscope.ring import RingWriter, ring_path
from rankscope.testing import FakeClock, FakeProbe, SimulatedAgent

SECOND = 10**9
STEP = "rankscope.step.duration"
CPU_COUNT = metric_named("host.cpu_count").otel
HOUR = 3600 * SECOND
#: When it happens, and how long the run is, s.
AT_S, LENGTH_S = 70, 100
PARTINGS: dict[str, Callable[[FakeClock], None]] = {
    "forward": lambda clock: clock.set_wall(HOUR),
    "back": lambda clock: clock.set_wall(-HOUR),
    "asleep": lambda clock: clock.sleep(HOUR),
}


class Run:
    """One agent for a hundred seconds, and the true wall time of every second of them."""

    def __init__(self, place: Path, happens: str, agents: int = 1) -> None:
        self.path = place / "a.db"
        self.clock = FakeClock()
        self.truth: dict[int, int] = {}
        rings = place / "rings"
        identity = RankIdentity(
            "job", 0, 0, 1, 0, "node", os.getpid(), start_ticks(os.getpid()), boot_id(), "GPU-0", "host"
        )
        ring = RingWriter(ring_path(rings, identity), identity, ClockAnchor.take(self.clock))
        settings = Settings(
            export=ExportSettings(endpoint=f"http://127.0.0.1:{free_port()}", drain_seconds=0),
            rules=RuleSettings(live=False),
        )
        self.began_ns = self.clock.monotonic_ns()
        self.happened_ns = 0
        written = 0

        def passed() -> None:
            nonlocal written
            now = self.clock.monotonic_ns()
            while self.began_ns + (written + 1) * SECOND // 2 <= now:
                start, end = (self.began_ns + each * SECOND // 2 for each in (written, written + 1))
                part = SECOND // 10
                ring.append_record(StepRecord(written, start, end, 0, part, part, part, 0, 0, SECOND // 2 - 3 * part))
                written += 1
            if not self.happened_ns and now >= self.began_ns + AT_S * SECOND:
                self.happened_ns = now
                PARTINGS[happens](self.clock)

        for number in range(agents):
            job = WatchedJob(
                job="job",
                host="node",
                recording=self.path,
                rings=rings,
                settings=settings,
                clock=self.clock,
                environ={},
                restart=number,
            )
            probe = FakeProbe(act=lambda: None)
            SimulatedAgent([job], settings, Sources([probe], tuple), self.clock).run(LENGTH_S / agents, passed)
        ring.close()

    def wall_ns(self, time_ns: int) -> int:
        """What the host's wall clock showed then."""
        return time_ns + FakeClock().wall_ns() - FakeClock().monotonic_ns() + self._by(time_ns)

    def _by(self, time_ns: int) -> int:
        now = self.clock.wall_ns() - self.clock.monotonic_ns()
        return now - (FakeClock().wall_ns() - FakeClock().monotonic_ns()) if time_ns >= self.happened_ns else 0

    def batches(self) -> list[WaitingBatch]:
        """What the agents exported, in order."""
        connection = sqlite3.connect(self.path)
        assert Outbox(connection).balance().holds
        query = "SELECT id, signal, created_ns, points, payload FROM outbox_batch ORDER BY id"
        found = [WaitingBatch(*row) for row in connection.execute(query)]
        connection.close()
        return found


def points_of(payloads: list[bytes]) -> list[tuple[str, int, int]]:
    """(name, begin, time) of every point of metrics."""
    found = []
    for payload in payloads:
        for of_resource in ExportMetricsServiceRequest.FromString(payload).resource_metrics:
            for metric in of_resource.scope_metrics[0].metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                found += [(metric.name, p.start_time_unix_nano, p.time_unix_nano) for p in data.data_points]
    return found


@pytest.mark.parametrize("happens", PARTINGS)
@pytest.mark.parametrize("agents", [1, 2], ids=["one agent", "an agent that takes over"])
def test_everything_goes_on_by_the_clock_as_it_is(tmp_path: Path, happens: str, agents: int) -> None:
    """Exported times are the wall clock's of their moment, none begins after itself, a replay says the same times, the
    recording has every step on one clock, and one event says what happened."""
    run = Run(tmp_path, happens, agents)
    window = load_window([run.path])
    steps = window.ranks[0].steps
    assert len(steps) == 2 * LENGTH_S - 1 or len(steps) == 2 * LENGTH_S
    lengths = zip(steps.columns["start_ns"], steps.columns["end_ns"], strict=True)
    assert {end - start for start, end in lengths} == {SECOND / 2}
    (event,) = [event for event in window.events if event.kind == "clock-parted"]
    said = {"forward": (HOUR, 0), "back": (-HOUR, 0), "asleep": (0, HOUR)}[happens]
    assert (event.attributes["set_ns"], event.attributes["slept_ns"]) == said
    assert run.happened_ns <= event.time_ns <= run.happened_ns + SECOND

    series = next(of for key, of in window.series.items() if key.metric == "host.cpu_count")
    anchor = window.anchors["node"]
    late = [at for at in series.times_ns if not run.happened_ns <= at < event.time_ns]
    assert len(late) >= LENGTH_S - 4
    assert all(anchor.to_wall_ns(at) == run.wall_ns(at) for at in late)

    sent = points_of([batch.payload() for batch in run.batches() if batch.signal == "metrics"])
    assert all(begin <= at for _, begin, at in sent)
    gauge = {at for name, _, at in sent if name == CPU_COUNT}
    assert len(gauge) > LENGTH_S / 20
    assert gauge <= {anchor.to_wall_ns(at) for at in series.times_ns}
    # Histograms are as of the moment at which their batch was made; those up to the parting, as of that, on both sides.
    metrics = [batch for batch in run.batches() if batch.signal == "metrics"]
    made = [(each.created_ns, at) for each in metrics for name, _, at in points_of([each.payload()]) if name == STEP]
    by_ns = said[0] + said[1]
    old = [at for created_ns, at in made if abs(created_ns - at) >= 2 * SECOND]
    assert len(set(old)) == 1
    assert all(min(abs(created_ns - at), abs(created_ns - by_ns - at)) < 2 * SECOND for created_ns, at in made)
    begins = {begin for name, begin, _ in sent if name == STEP}
    # Each agent counts from its own begin; and a clock that was set back begins everything again, on itself.
    assert len(begins) == agents + (happens == "back")

    again = points_of([batch.payload for batch in encode_window(window) if batch.signal == "metrics"])
    assert gauge <= {at for name, _, at in again if name == CPU_COUNT}
    logs = [ExportLogsServiceRequest.FromString(b.payload()) for b in run.batches() if b.signal == "logs"]
    told = [r for log in logs for r in log.resource_logs[0].scope_logs[0].log_records]
    assert [r.time_unix_nano for r in told if r.event_name == "rankscope.clock-parted"] == [run.wall_ns(event.time_ns)]


def test_findings_after_it_are_dated_by_it(tmp_path: Path) -> None:
    """A verdict says when, in wall time: of what came after a step, by the clock after it."""
    run = Run(tmp_path, "forward")
    connection = sqlite3.connect(run.path, isolation_level=None)
    at = run.began_ns + 80 * SECOND
    connection.execute(
        "INSERT INTO events VALUES (NULL, 'xid', ?, 'Xid 79', 'critical', 'GPU-0', NULL, ?)",
        (at, '{"number": 79, "message": "GPU has fallen off the bus", "source": "kernel-log"}'),
    )
    connection.execute(
        "INSERT INTO events VALUES (NULL, 'rank-exited', ?, 'rank 0', 'critical', 'GPU-0', 0, ?)",
        (at + SECOND, f'{{"pid": {os.getpid()}, "clean": 0, "signal": 6, "phase": "backward"}}'),
    )
    connection.close()
    verdict, window = conclude([run.path])
    document = verdict_document(verdict, window.anchors)
    (first, *_) = document["findings"]
    assert first["class"] == "gpu-off-bus"
    assert first["since"] in {iso_time(run.wall_ns(at + late)) for late in (0, SECOND)}


def test_an_agent_that_died_before_it_is_taken_up_by_one_that_sees_it(tmp_path: Path) -> None:
    """The clock was set while nobody watched: the next agent says so, and dates by it."""
    run = Run(tmp_path, "forward")
    run.clock.set_wall(-2 * HOUR)
    run.clock.sleep(HOUR)
    job = WatchedJob(
        job="job",
        host="node",
        recording=run.path,
        rings=tmp_path / "rings",
        settings=Settings(),
        clock=run.clock,
        environ={},
    )
    job.poll()
    job.close("done")
    window = load_window([run.path])
    told = [event for event in window.events if event.kind == "clock-parted"]
    assert [(each.attributes["set_ns"], each.attributes["slept_ns"]) for each in told] == [(HOUR, 0), (-2 * HOUR, HOUR)]
    assert window.anchors["node"].to_wall_ns(run.clock.monotonic_ns()) == run.clock.wall_ns()
