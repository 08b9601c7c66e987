"""What raises the rates, of which devices, and what is kept of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rankscope.agent.config import RuleSettings, Settings
from rankscope.agent.job import WatchedJob
from rankscope.agent.load import load_window
from rankscope.agent.sources import Sources
from rankscope.agent.triggers import LINK_ERRORS, Trigger, Triggers
from rankscope.clock import ClockAnchor, boot_id
from rankscope.gpu_device import link_of
from rankscope.identity import RankIdentity, start_ticks
from rankscope.metrics import METRICS
from rankscope.reading import Event, Group, ProbeResult, Reading
from rankscope.records import StepRecord
from rankscope.ring import RingWriter, ring_path
from rankscope.testing import FakeClock, FakeProbe, SimulatedAgent

SECOND = 1_000_000_000
GPUS = ("GPU-a", "GPU-b")


def told(triggers: Triggers, *readings: Reading, events: tuple[Event, ...] = ()) -> list[Trigger]:
    """What one round gives."""
    return list(triggers.of(readings, events, GPUS))


def test_throttling_concerns_its_gpu() -> None:
    """Heat and the power brake count, the ordinary power cap, idleness and set clocks do not."""
    readings = [
        Reading("gpu.clock_event_reasons", float(mask), 1, gpu) for mask, gpu in ((0x40, "GPU-a"), (0x7, "GPU-b"))
    ]
    assert told(Triggers(), *readings) == [Trigger("throttled", frozenset({"GPU-a"}))]


def test_a_link_counts_when_its_errors_grow() -> None:
    """What a counter held before is history; growth concerns the GPU of an NVLink, or the host of a network port."""
    triggers = Triggers()
    link = link_of("GPU-b", 7)

    def crc(value: float) -> Reading:
        return Reading("nvlink.crc_errors", value, 1, link)

    def port(value: float) -> Reading:
        return Reading("ib.link_downed", value, 1, "mlx5_0:1")

    assert told(triggers, crc(9), port(3)) == []
    assert told(triggers, crc(9), port(3)) == []
    assert told(triggers, crc(10)) == [Trigger("link-error", frozenset({"GPU-b"}))]
    assert told(triggers, port(4)) == [Trigger("link-error", frozenset({""}))]
    # A reset is no error, and what follows it is.
    assert told(triggers, crc(0)) == []
    assert told(triggers, crc(1)) == [Trigger("link-error", frozenset({"GPU-b"}))]


def test_every_link_counter_is_a_counter_of_the_vocabulary() -> None:
    """A renamed metric would silence the trigger."""
    assert len(LINK_ERRORS) > 20
    assert all(METRICS[name].counter for name in LINK_ERRORS)


def test_an_xid_concerns_its_gpu_and_where_that_is_unknown_all() -> None:
    """History from before the agent's start is no news."""
    events = (
        Event("xid", 1, "", device="GPU-a"),
        Event("xid", 1, "", device="GPU-b", attributes={"history": 1}),
        Event("xid", 1, ""),
        Event("oom-kill", 1, ""),
    )
    assert told(Triggers(), events=events) == [
        Trigger("xid", frozenset({"GPU-a"})),
        Trigger("xid", frozenset({"GPU-a", "GPU-b", ""})),
    ]


class Gpus:
    """Two GPUs, of which one throttles for heat from the second minute on."""

    name = "gpus"
    groups = (Group("fast", SECOND, SECOND // 5, ""),)
    devices = GPUS

    def __init__(self, clock: FakeClock) -> None:
        self._hot_ns = clock.monotonic_ns() + 60 * SECOND

    def read(self, group: str, now_ns: int) -> ProbeResult:
        return self.read_devices(group, now_ns, frozenset(GPUS))

    def read_devices(self, group: str, now_ns: int, devices: frozenset[str]) -> ProbeResult:
        def reasons(gpu: str) -> float:
            return 0x40 if gpu == "GPU-b" and now_ns >= self._hot_ns else 0x0

        return ProbeResult([Reading("gpu.clock_event_reasons", reasons(gpu), now_ns, gpu) for gpu in devices])

    def close(self) -> None:
        """Nothing is open."""


def watched_job(tmp_path: Path, clock: FakeClock) -> WatchedJob:
    """A job whose recording is a.db."""
    settings = Settings(rules=RuleSettings(live=False))
    return WatchedJob(
        job="job",
        host="node",
        recording=tmp_path / "a.db",
        rings=tmp_path,
        settings=settings,
        clock=clock,
        environ={},
    )


def test_a_trigger_bursts_its_gpu_and_is_recorded(tmp_path: Path) -> None:
    """Through the shipped loop: a GPU that throttles is read five times a second for 30 s, once in five minutes."""
    clock = FakeClock()
    sources = Sources([Gpus(clock), FakeProbe("host")], lambda: GPUS)
    SimulatedAgent([watched_job(tmp_path, clock)], Settings(), sources, clock).run(420)
    window = load_window([tmp_path / "a.db"])
    bursts = [event for event in window.events if event.kind == "burst"]
    assert [(event.device, event.attributes["reason"]) for event in bursts] == [("GPU-b", "throttled")] * 2
    counts = {key.device: len(series.times_ns) for key, series in window.series.items() if key.device in GPUS}
    assert 415 <= counts["GPU-a"] <= 425
    assert 415 + 200 <= counts["GPU-b"] <= 425 + 300
    begin, end = (int(str(bursts[0].attributes[name])) for name in ("begin_ns", "end_ns"))
    assert end - begin == 90 * SECOND


def test_a_slow_step_bursts_its_rank_its_gpu_and_the_host(tmp_path: Path) -> None:
    """One step of three times the usual length is a trigger; the steps before it and their spread are none."""
    clock = FakeClock(time.monotonic_ns())
    pid = os.getpid()
    identity = RankIdentity("job", 0, 0, 1, 0, "node", pid, start_ticks(pid), boot_id(), "GPU-a")
    ring = RingWriter(ring_path(tmp_path, identity), identity, ClockAnchor.take(clock))
    began, done = clock.monotonic_ns(), [0]

    def follow() -> None:
        while (done[0] + 1) * SECOND // 5 <= clock.monotonic_ns() - began:
            step, end = done[0], began + (done[0] + 1) * SECOND // 5
            length = SECOND // 5 * (3 if step == 200 else 1) + step % 5 * 1_000_000
            ring.append_record(StepRecord(step, end - length, end, 0, length, 0, 0, 0, 0, 0, 0))
            done[0] += 1

    sources = Sources([Gpus(FakeClock(2**61)), FakeProbe("host")], lambda: GPUS)
    SimulatedAgent([watched_job(tmp_path, clock)], Settings(), sources, clock).run(60, follow)
    ring.close()
    window = load_window([tmp_path / "a.db"])
    [burst] = [event for event in window.events if event.kind == "burst"]
    assert burst.attributes["reason"] == "slow-step"
    assert burst.attributes["devices"] == "GPU-a, rank:0, the host"
    counts = {(key.metric, key.device): len(series.times_ns) for key, series in window.series.items()}
    assert counts["host.cpu_count", ""] > 100
    assert counts["gpu.clock_event_reasons", "GPU-a"] > 100
    assert counts["gpu.clock_event_reasons", "GPU-b"] <= 61
