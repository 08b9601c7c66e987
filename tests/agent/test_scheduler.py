"""Probes read on time; one that hangs, raises or lies costs only itself."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from rankscope.agent.config import BudgetSettings
from rankscope.agent.governor import Governor
from rankscope.agent.scheduler import Scheduler, Task, Tick
from rankscope.clock import SystemClock
from rankscope.errors import PermissionDenied, Unsupported
from rankscope.reading import Group, Outcome, ProbeResult, Reading

MS = 1_000_000
Wait = Callable[..., None]


class ScriptedProbe:
    """Does at each read what the test says."""

    def __init__(self, name: str, act: Callable[[], ProbeResult | None], steady_ns: int = 20 * MS) -> None:
        self.name = name
        self.groups: Sequence[Group] = (Group("all", steady_ns, 2 * MS, "for the test"),)
        self.reads = 0
        self.closed = False
        self._act = act

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """One read."""
        self.reads += 1
        return self._act() or ProbeResult([Reading("host.cpu_count", 1, now_ns)])

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class Rounds:
    """A scheduler over probes, and everything it said."""

    def __init__(self, *probes: ScriptedProbe, deadline_ns: int = 100 * MS) -> None:
        self.scheduler = Scheduler(
            probes, clock=SystemClock(), deadline_ns=deadline_ns, burst_ns=400 * MS, random_source=random.Random(1)
        )
        self.said = Tick()

    def go(self) -> Rounds:
        """One tick."""
        tick = self.scheduler.tick()
        self.said.readings += tick.readings
        self.said.events += tick.events
        self.said.outcomes += tick.outcomes
        return self

    def kinds(self) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in self.said.events]


def test_a_probe_that_hangs_costs_only_itself(wait_until: Wait) -> None:
    """Past its deadline it is told as stalled and the other goes on; when it comes back, that is told too."""
    release = threading.Event()
    stuck = ScriptedProbe("stuck", lambda: release.wait(60) and None)
    well = ScriptedProbe("well", lambda: None)
    rounds = Rounds(stuck, well)
    wait_until(lambda: "probe-stalled" in rounds.go().kinds())
    before = well.reads
    wait_until(lambda: rounds.go() and well.reads > before + 5)
    assert stuck.reads == 1
    assert ("stuck", "all", "", Outcome.FAILED, "no answer within 0.1 s") in rounds.said.outcomes
    release.set()
    wait_until(lambda: "probe-recovered" in rounds.go().kinds())
    wait_until(lambda: rounds.go() and stuck.reads > 1)
    assert rounds.kinds() == ["probe-stalled", "probe-recovered"]
    rounds.scheduler.close()
    assert stuck.closed
    assert well.closed


def test_a_probe_that_raises_is_told_once_and_rests(wait_until: Wait) -> None:
    """An exception no probe may raise never reaches the agent: one event, one outcome, and longer and longer rests."""

    def fail() -> None:
        raise ZeroDivisionError("oh")

    bad, well = ScriptedProbe("bad", fail), ScriptedProbe("well", lambda: None)
    rounds = Rounds(bad, well)
    wait_until(lambda: rounds.go() and well.reads >= 30)
    assert 1 < bad.reads < well.reads / 2
    assert rounds.kinds() == ["probe-failed"]
    assert [outcome[3:] for outcome in rounds.said.outcomes if outcome[0] == "bad"] == [
        (Outcome.FAILED, "ZeroDivisionError: oh")
    ]
    rounds.scheduler.close()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(Unsupported("none here"), Outcome.UNSUPPORTED), (PermissionDenied("no"), Outcome.NO_PERMISSION)],
)
def test_a_typed_error_is_an_outcome_and_no_event(wait_until: Wait, error: Exception, outcome: Outcome) -> None:
    """What a machine does not offer or a user may not read is a state, told once."""

    def fail() -> None:
        raise error

    bad, well = ScriptedProbe("bad", fail), ScriptedProbe("well", lambda: None)
    rounds = Rounds(bad, well)
    wait_until(lambda: rounds.go() and well.reads >= 10)
    assert rounds.kinds() == []
    assert [said[3] for said in rounds.said.outcomes if said[0] == "bad"] == [outcome]
    rounds.scheduler.close()


def test_a_state_told_once_stands_until_there_are_readings_again(wait_until: Wait) -> None:
    """A probe says what is wrong once and is then silent: that silence is not "ok", readings are."""
    script = iter([ProbeResult(outcomes=[("", Outcome.NO_PERMISSION, "no")]), ProbeResult(), ProbeResult()])
    probe = ScriptedProbe("shy", lambda: next(script, None))
    rounds = Rounds(probe)
    wait_until(lambda: rounds.go() and probe.reads >= 6)
    rounds.go()
    assert [outcome[3] for outcome in rounds.said.outcomes] == [Outcome.NO_PERMISSION, Outcome.OK]
    rounds.scheduler.close()


def test_a_burst_raises_the_rate_and_ends(wait_until: Wait) -> None:
    """After a trigger the probe is read at its burst period for a while, then at its steady one again."""
    probe = ScriptedProbe("nvml", lambda: None, steady_ns=10_000 * MS)
    rounds = Rounds(probe)
    wait_until(lambda: rounds.go() and probe.reads >= 1)
    assert probe.reads == 1
    rounds.scheduler.burst("nvml")
    wait_until(lambda: rounds.go() and probe.reads >= 5)
    wait_until(lambda: rounds.go() and rounds.scheduler.next_due_ns() - time.monotonic_ns() > 1000 * MS)
    rounds.scheduler.close()


def test_every_read_says_how_long_it_took(wait_until: Wait) -> None:
    """The executor times each read as agent.probe_ns of that probe."""
    rounds = Rounds(ScriptedProbe("slow", lambda: time.sleep(0.02)))
    wait_until(lambda: any(reading.metric == "agent.probe_ns" for reading in rounds.go().said.readings))
    timed = next(reading for reading in rounds.said.readings if reading.metric == "agent.probe_ns")
    assert timed.device == "slow"
    assert timed.value >= 20 * MS
    rounds.scheduler.close()


class _Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns


def test_the_governor_holds_the_budget_and_lets_go() -> None:
    """Over budget the dearest group is stretched, the kept ones last; with room again it is relaxed; both are told."""
    clock, spent = _Clock(), [0]
    governor = Governor(BudgetSettings(cpu_ratio=0.01), clock=clock, own_cpu_ns=lambda: spent[0])
    second = 1_000_000_000
    dear, cheap, kept = (
        Task(ScriptedProbe(name, lambda: None), Group("all", second, second, ""), 0, cpu_ns=cost, reads=1)
        for name, cost in (("dear", 40 * MS), ("cheap", 1 * MS), ("nvml", 90 * MS))
    )
    tasks = [cheap, dear, kept]

    def rounds(count: int, cost_ns: int) -> list[str]:
        told = []
        for _ in range(count):
            clock.now_ns += 5 * second
            spent[0] += cost_ns
            told += [str(event.attributes["probe"]) for event in governor.tick(tasks)[1]]
        return told

    # Starting is not judged.
    assert rounds(5, 200 * MS) == []
    assert rounds(2, 200 * MS)[0] == "dear/all"
    assert dear.stretch >= 2
    assert kept.stretch == 1
    told = rounds(40, 200 * MS)
    assert told[-1] == "nvml/all"
    assert {task.stretch for task in tasks} == {16}
    rounds(40, 1 * MS)
    assert {task.stretch for task in tasks} == {1}


def test_the_governor_measures_this_process() -> None:
    """CPU time and proportional memory of a real process are there and plausible."""
    governor = Governor(BudgetSettings(), clock=SystemClock())
    sum(range(300_000))
    readings, _ = governor.tick([])
    found = {reading.metric: reading.value for reading in readings}
    assert found["agent.cpu_ratio"] > 0
    assert 5e6 < found["agent.pss_bytes"] < 5e9
