"""Probes read on time, on simulated time; one that hangs, raises or lies costs only itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from rankscope.agent.scheduler import Scheduler, phase
from rankscope.errors import Absent, PermissionDenied, Unsupported
from rankscope.reading import Event, Group, Outcome, Priority, ProbeResult, Reading
from rankscope.testing import FakeClock, FakeProbe, run_probes

SECOND = 1_000_000_000
GPUS = tuple(f"GPU-{number}" for number in range(8))


class FakeGpus:
    """A probe of eight devices that can be read apart; `asked` is who was read when, by group."""

    def __init__(self, *groups: Group) -> None:
        self.name = "gpus"
        self.groups: Sequence[Group] = groups or (Group("fast", SECOND, SECOND // 5, ""),)
        self.devices: tuple[str, ...] = ()
        self.asked: list[tuple[int, str, str]] = []

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """The first read finds the devices; then all are read."""
        if not self.devices:
            self.devices = GPUS
            return ProbeResult()
        return self.read_devices(group, now_ns, frozenset(self.devices))

    def read_devices(self, group: str, now_ns: int, devices: frozenset[str]) -> ProbeResult:
        """Remember who was asked."""
        self.asked += [(now_ns, group, device) for device in devices]
        return ProbeResult([Reading("gpu.power_watts", 1.0, now_ns, device) for device in devices])

    def close(self) -> None:
        """Nothing is open."""

    def times(self, device: str, group: str = "fast") -> list[int]:
        """When a device was read."""
        return [time for time, of, name in self.asked if (of, name) == (group, device)]


def bursting(*devices: str, after: int = 20) -> Callable[[Scheduler], None]:
    """Starts one burst after so many rounds."""
    rounds = iter(range(10**9))

    def act(scheduler: Scheduler) -> None:
        if next(rounds) == after:
            scheduler.burst(devices)

    return act


def gaps(times: list[int]) -> list[float]:
    """Seconds between one and the next."""
    return [(after - before) / SECOND for before, after in pairwise(times)]


def test_each_group_keeps_its_period() -> None:
    """An hour of a one-second probe is 3600 reads at one distance; nothing drifts."""
    probe = FakeProbe()
    run_probes([probe], seconds=3600)
    assert probe.reads in (3600, 3601)
    assert set(gaps(probe.times_ns)) == {1.0}


def test_a_probe_that_hangs_costs_only_itself() -> None:
    """Past its deadline it is told as stalled and the other keeps its rate; when it comes back, that is told too."""
    release = threading.Event()
    clock = FakeClock()
    began = clock.monotonic_ns()
    stuck = FakeProbe("stuck", lambda: release.wait(60) and None)
    well = FakeProbe("well")

    def end_after_45_s(scheduler: Scheduler) -> None:
        if clock.monotonic_ns() - began > 46 * SECOND:
            release.set()

    said = run_probes([stuck, well], seconds=60, clock=clock, each_round=end_after_45_s)
    assert max(gaps(well.times_ns)) <= 2.0
    assert said.kinds() == ["probe-stalled", "probe-recovered"]
    stalled = said.events[0]
    assert stalled.time_ns - stuck.times_ns[0] <= 3 * SECOND
    assert ("stuck", "all", "", Outcome.FAILED, "no answer within 2 s") in said.outcomes
    assert stuck.reads > 5
    assert stuck.closed
    assert well.closed


def test_a_probe_that_never_comes_back_leaves_one_thread() -> None:
    """Over an hour a read that hangs is asked for once: one thread waits for it, not one an attempt."""
    release = threading.Event()
    before = threading.active_count()
    stuck = FakeProbe("stuck", lambda: release.wait(60) and None)
    said = run_probes([stuck, FakeProbe("well")], seconds=3600)
    assert said.kinds() == ["probe-stalled"]
    assert stuck.reads == 1
    assert not stuck.closed
    assert threading.active_count() <= before + 1
    release.set()


def test_a_probe_that_raises_is_told_once_and_rests() -> None:
    """An exception no probe may raise never reaches the agent: one event, one outcome, and longer and longer rests."""

    def fail() -> None:
        raise ZeroDivisionError("oh")

    bad = FakeProbe("bad", fail)
    said = run_probes([bad, FakeProbe("well")], seconds=3600)
    assert 10 < bad.reads < 30
    assert said.kinds() == ["probe-failed"]
    assert [outcome[3:] for outcome in said.outcomes if outcome[0] == "bad"] == [
        (Outcome.FAILED, "ZeroDivisionError: oh")
    ]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Unsupported("not by this kernel"), Outcome.UNSUPPORTED),
        (Absent("no such adapter"), Outcome.NO_DATA),
        (PermissionDenied("no"), Outcome.NO_PERMISSION),
    ],
)
def test_a_typed_error_is_an_outcome_and_no_event(error: Exception, outcome: Outcome) -> None:
    """What a machine does not offer or have, or a user may not read, is a state, told once."""

    def fail() -> None:
        raise error

    said = run_probes([FakeProbe("bad", fail), FakeProbe("well")], seconds=60)
    assert said.kinds() == []
    assert [told[3] for told in said.outcomes if told[0] == "bad"] == [outcome]


@pytest.mark.parametrize(
    "junk",
    [
        None.__class__,
        [Reading("host.cpu_count", 1, 1)],
        ProbeResult([Reading("host.cpu_count", float("nan"), 1)]),
        ProbeResult([Reading("host.cpu_count", 10**400, 1)]),
        ProbeResult([Reading("host.cpu_count", 1.0, -1)]),
        ProbeResult([Reading("\ud800", 1.0, 1)]),
        ProbeResult([("host.cpu_count", 1.0)]),  # type: ignore[list-item]
        ProbeResult(None),  # type: ignore[arg-type]
        ProbeResult("abc"),  # type: ignore[arg-type]
        ProbeResult(events=[Event("no-such-kind", 1, "x")]),
        ProbeResult(events=[Event("xid", 1, "x", attributes={"a": object()})]),  # type: ignore[dict-item]
        ProbeResult(outcomes=[("", "ok", "")]),  # type: ignore[list-item]
        ProbeResult([Reading("host.cpu_count", 1, 1)] * 20_000),
        ProbeResult(helper_cpu_ns="x"),  # type: ignore[arg-type]
    ],
)
def test_junk_is_refused_whole(junk: ProbeResult) -> None:
    """A result that no probe may return is a failure of that probe, in one line, and none of it gets through."""
    said = run_probes([FakeProbe("bad", lambda: junk), FakeProbe("well")], seconds=30)
    assert said.kinds() == ["probe-failed"]
    assert "returned" in said.events[0].text
    assert "\n" not in said.events[0].text
    assert len(said.values("host.cpu_count")) == said.reads["well/all"]


def test_a_state_told_once_stands_until_there_are_readings_again() -> None:
    """A probe says what is wrong once and is then silent: that silence is not "ok", readings are."""
    script = iter([ProbeResult(outcomes=[("", Outcome.NO_PERMISSION, "no")]), ProbeResult(), ProbeResult()])
    said = run_probes([FakeProbe("shy", lambda: next(script, None))], seconds=10)
    assert [outcome[3] for outcome in said.outcomes] == [Outcome.NO_PERMISSION, Outcome.OK]


def test_a_burst_reads_the_devices_concerned_and_ends() -> None:
    """After a trigger one GPU is read five times a second for 30 s; the others and the host keep their rates."""
    probe, host = FakeGpus(), FakeProbe("host")
    run_probes([probe, host], seconds=120, each_round=bursting("GPU-3"))
    fast = [gap for gap in gaps(probe.times("GPU-3")) if gap < 0.5]
    assert 145 <= len(fast) <= 155
    assert set(gaps(probe.times("GPU-2"))) == {1.0}
    assert set(gaps(host.times_ns)) == {1.0}
    assert gaps(probe.times("GPU-3"))[-10:] == [1.0] * 10


def test_a_burst_of_the_host_leaves_the_gpus_alone() -> None:
    """The empty device is the host itself: probes without devices burst."""
    probe, host = FakeGpus(), FakeProbe("host")
    run_probes([probe, host], seconds=60, each_round=bursting(""))
    assert host.reads > 150
    assert len(probe.times("GPU-0")) <= 60


def test_sticky_groups_are_read_at_once_in_a_burst() -> None:
    """What is read twice a minute is read when the burst begins, not half a minute later."""
    probe = FakeGpus(Group("fast", SECOND, SECOND // 5, ""), Group("health", 30 * SECOND, SECOND, ""))
    began: list[int] = []

    def act(scheduler: Scheduler) -> None:
        if len(probe.asked) > 200 and not began:
            began.append(scheduler.burst(["GPU-1"])[0])

    run_probes([probe], seconds=60, each_round=act)
    first = min(time for time in probe.times("GPU-1", "health") if time >= began[0])
    assert first - began[0] < SECOND // 5


def test_what_a_host_reads_is_read_at_one_moment_of_its_own() -> None:
    """One wake-up for all GPUs and groups that are due; hosts are spread evenly, and a restart keeps the phase."""
    probe = FakeGpus()
    run_probes([probe], seconds=10)
    assert len({time % SECOND for device in GPUS for time in probe.times(device)}) == 1
    phases = [phase(1000, f"node{number}") for number in range(400)]
    assert phase(1000, "node7") == phases[7]
    # Even to within what 400 draws into ten parts give.
    parts = [sum(low <= value < low + 100 for value in phases) for low in range(0, 1000, 100)]
    assert min(parts) > 15
    assert max(parts) < 70


def test_a_dear_read_is_made_up_for_before_the_next() -> None:
    """Sooner than any governor: a group that takes more than half the budget is held back, a vital one never."""
    dear = FakeProbe("dear", lambda: ProbeResult(helper_cpu_ns=50_000_000))
    vital = FakeProbe("vital", lambda: ProbeResult(helper_cpu_ns=50_000_000), priority=Priority.VITAL)
    clock = FakeClock()
    scheduler = Scheduler([dear, vital], clock=clock, deadline_ns=2 * SECOND, burst_ns=30 * SECOND, budget_ratio=0.01)
    for _ in range(600):
        clock.advance(SECOND // 10)
        scheduler.tick()
        scheduler.settle(10)
    scheduler.close()
    # 50 ms at half of 1 % of a core: one read in 10 s.
    assert 5 <= dear.reads <= 7
    assert vital.reads >= 59


def test_groups_that_are_due_together_are_read_together() -> None:
    """A probe that can read several groups at once is called once for what is due; each has its result and its cost."""
    calls: list[tuple[str, ...]] = []

    class Together(FakeGpus):
        def read_groups(
            self, groups: Sequence[str], now_ns: int, devices: frozenset[str] | None
        ) -> Sequence[ProbeResult]:
            calls.append(tuple(groups))
            read = self.read if devices is None else partial(self.read_devices, devices=devices)
            return [replace(read(group, now_ns), helper_cpu_ns=4) for group in groups]

    probe = Together(Group("fast", SECOND, SECOND, ""), Group("slow", 2 * SECOND, SECOND, ""))
    clock = FakeClock()
    scheduler = Scheduler([probe], clock=clock, deadline_ns=SECOND, burst_ns=SECOND)
    for _ in range(40):
        clock.advance(max(1, scheduler.next_due_ns() - clock.monotonic_ns()))
        scheduler.tick()
        scheduler.settle(10)
    scheduler.tick()
    fast, slow = scheduler.watched
    assert ("fast", "slow") in calls
    assert set(gaps(probe.times("GPU-0"))) == {1.0}
    assert set(gaps(probe.times("GPU-0", "slow"))) == {2.0}
    assert fast.helper_cpu_ns == slow.helper_cpu_ns == 4 * len(calls)
    scheduler.close()


def test_what_the_kernel_announces_is_read_at_once_and_not_without_end() -> None:
    """A hastened probe is read before its period is over, but no more often than in a burst."""
    clock = FakeClock()
    probe = FakeProbe()
    other = FakeProbe("other")
    group = Group("events", 100 * SECOND, SECOND // 10, "")
    probe.groups = other.groups = (group,)
    scheduler = Scheduler([probe, other], clock=clock, deadline_ns=SECOND, burst_ns=SECOND)
    clock.advance(SECOND)
    scheduler.tick()
    assert scheduler.settle(30)
    reads, others = probe.reads, other.reads
    announced = range(100)
    for _ in announced:
        clock.advance(SECOND // 100)
        scheduler.hasten(probe)
        scheduler.tick()
        assert scheduler.settle(30)
    assert probe.reads - reads == 10
    assert other.reads == others
    scheduler.close()
