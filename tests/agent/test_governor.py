"""The budget holds: what costs too much is read less often, the least valuable first, and nothing vital is dropped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rankscope.agent.config import BudgetSettings
from rankscope.agent.cost import OwnCost
from rankscope.agent.governor import Governor
from rankscope.agent.scheduler import Scheduler
from rankscope.clock import SystemClock
from rankscope.reading import Event, Priority, ProbeResult
from rankscope.testing import FakeClock, FakeProbe

SECOND = 1_000_000_000
MS = 1_000_000


class Spent(OwnCost):
    """What the probes of a test say they cost, and a constant rest."""

    def __init__(self, clock: FakeClock, rest_ratio: float) -> None:
        super().__init__()
        self.probes_ns = 0
        self.pss = 50_000_000
        self._clock, self._rest_ratio, self._began = clock, rest_ratio, clock.monotonic_ns()

    def cpu_ns(self) -> int:
        """CPU time so far."""
        return self.probes_ns + int((self._clock.monotonic_ns() - self._began) * self._rest_ratio)

    def pss_bytes(self) -> int | None:
        """Memory now."""
        return self.pss


class Simulation:
    """The shipped scheduler and governor on simulated time, over probes whose cost the test sets."""

    def __init__(self, rest_ratio: float = 0.002, **budget: float) -> None:
        self.clock = FakeClock()
        self.spent = Spent(self.clock, rest_ratio)
        self.budget = BudgetSettings(**budget)  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.probes: list[FakeProbe] = []
        self.began_ns = self.clock.monotonic_ns()
        #: CPU share of each minute.
        self.minutes: list[float] = []

    def add(self, name: str, cost_ns: Callable[[float], float], **options: object) -> FakeProbe:
        """A probe whose read costs so much CPU time, given the minutes since the start."""

        def act() -> ProbeResult:
            cost = int(cost_ns((self.clock.monotonic_ns() - self.began_ns) / (60 * SECOND)))
            self.spent.probes_ns += cost
            return ProbeResult(helper_cpu_ns=cost)

        probe = FakeProbe(name, act, **options)  # type: ignore[arg-type]
        self.probes.append(probe)
        return probe

    def run(self, minutes: int) -> None:
        """Let time pass."""
        scheduler = Scheduler(
            self.probes,
            clock=self.clock,
            deadline_ns=2 * SECOND,
            burst_ns=30 * SECOND,
            budget_ratio=self.budget.cpu_ratio,
            burst_budget_ratio=self.budget.burst_cpu_ratio,
        )
        governor = Governor(self.budget, clock=self.clock, cost=self.spent)
        for _ in range(minutes):
            before = self.spent.cpu_ns()
            for _ in range(12):
                end = self.clock.monotonic_ns() + 5 * SECOND
                while self.clock.monotonic_ns() < end:
                    self.clock.advance(max(1, min(scheduler.next_due_ns(), end) - self.clock.monotonic_ns()))
                    scheduler.tick()
                    scheduler.settle(10)
                self.events += governor.tick(scheduler.watched, bursting=scheduler.bursting)[1]
            self.minutes.append((self.spent.cpu_ns() - before) / (60 * SECOND))
        self.stretches = {watched.probe.name: watched.stretch for watched in scheduler.watched}
        scheduler.close()

    def changed(self) -> list[str]:
        """Whose period was changed, in order."""
        return [str(event.attributes["probe"]) for event in self.events]


def test_the_budget_holds_while_a_probe_grows_slow() -> None:
    """A probe grows from 1 to 100 ms a read: every minute stays within 10 % of the budget, vital reads all happen."""
    run = Simulation()
    vital = run.add("kernel-log", lambda _: 0.1 * MS, steady_ns=SECOND // 2, priority=Priority.VITAL)
    core = run.add("core", lambda _: 2 * MS, priority=Priority.HIGH)
    run.add("grows", lambda minute: min(100.0, 1.0 * 1.2**minute) * MS, priority=Priority.NORMAL)
    run.run(60)
    assert max(run.minutes) <= 0.011
    # It is not held by watching nothing: most of the budget is used while it is short.
    assert min(run.minutes[30:]) > 0.005
    assert vital.reads >= 60 * 60 * 2 - 2
    assert core.reads >= 3500
    assert set(run.changed()) == {"grows/all"}
    assert run.stretches["grows"] > 10
    assert len(run.events) < 30
    assert "is read every" in run.events[0].text


def test_a_probe_that_is_dear_at_once_is_held_in_its_first_minute() -> None:
    """From 1 to 100 ms between two reads: that minute too stays within 10 % of the budget."""
    run = Simulation()
    run.add("jumps", lambda minute: (1 if minute < 5 else 100) * MS)
    run.run(20)
    assert max(run.minutes) <= 0.011


def test_the_least_valuable_is_stretched_first() -> None:
    """Of groups that cost the same the one of the lowest priority gives way, then the next, the vital one never."""
    run = Simulation(rest_ratio=0.0)
    for name, priority in (("high", Priority.HIGH), ("low", Priority.LOW), ("normal", Priority.NORMAL)):
        run.add(name, lambda _: 3.5 * MS, priority=priority)
    vital = run.add("vital", lambda _: 3.5 * MS, priority=Priority.VITAL)
    run.run(10)
    order = list(dict.fromkeys(run.changed()))
    assert order[0] == "low/all"
    assert run.stretches["low"] > run.stretches["high"] >= 1
    assert run.stretches["vital"] == 1
    assert vital.reads >= 598
    assert run.minutes[-1] <= 0.011


def test_with_room_again_the_rates_come_back_and_that_is_told() -> None:
    """When the probe is cheap again its period returns to what it declares, without swinging."""
    run = Simulation()
    probe = run.add("passes", lambda minute: (40 if 5 < minute < 15 else 1) * MS)
    run.run(40)
    assert run.stretches["passes"] == 1
    assert run.events[-1].attributes == {"probe": "passes/all", "period_ns": SECOND}
    assert len(run.events) < 40
    assert probe.reads > 1500
    assert max(run.minutes) <= 0.011


def test_what_no_probe_causes_stretches_none_that_costs_nothing() -> None:
    """Where the agent itself is over its budget the governor does what little it can and does not flap."""
    run = Simulation(rest_ratio=0.03)
    vital = run.add("vital", lambda _: 0.01 * MS, priority=Priority.VITAL)
    run.add("cheap", lambda _: 0.01 * MS)
    run.run(30)
    assert vital.reads >= 1798
    assert run.events == []


def test_memory_over_its_budget_is_told_once() -> None:
    """Above the limit one warning says how much; below again, one line more."""
    run = Simulation(pss_bytes=100_000_000)
    run.add("any", lambda _: 0)
    run.spent.pss = 120_000_000
    run.run(5)
    run.spent.pss = 80_000_000
    assert [(event.severity, event.attributes["pss_bytes"]) for event in run.events] == [("warning", 120_000_000)]


def test_the_governor_measures_this_process() -> None:
    """CPU time and proportional memory of a real process are there and plausible."""
    governor = Governor(BudgetSettings(), clock=SystemClock())
    sum(range(300_000))
    readings, _ = governor.tick([])
    found = {reading.metric: reading.value for reading in readings}
    assert found["agent.cpu_ratio"] > 0
    assert 5e6 < found["agent.pss_bytes"] < 5e9


@pytest.mark.parametrize("bursts", [False, True])
def test_a_burst_may_cost_more_for_as_long_as_it_lasts(bursts: bool) -> None:
    """Within a burst the larger budget counts, so that the rates that were asked for are not taken back at once."""
    clock = FakeClock()
    spent = Spent(clock, 0.009)
    governor = Governor(BudgetSettings(), clock=clock, cost=spent)
    probe = FakeProbe("probe", lambda: None)
    scheduler = Scheduler([probe], clock=clock, deadline_ns=SECOND, burst_ns=30 * SECOND)
    events: list[Event] = []
    for _ in range(24):
        clock.advance(5 * SECOND)
        watched = scheduler.watched[0]
        watched.reads, watched.cpu_ns = watched.reads + 5, watched.cpu_ns + 18 * MS
        spent.probes_ns += 18 * MS
        events += governor.tick(scheduler.watched, bursting=bursts)[1]
    assert bool(events) is not bursts
    scheduler.close()
