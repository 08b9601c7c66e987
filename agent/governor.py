"""What watching costs, measured, and rates lowered where it costs more than it may: the least valuable first.

The budget is held over a minute: what a moment cost too much, the next save. So that one number moves at a time, the
share to be saved is taken from groups in the order of their priority, dearest first, and each only as far as it takes.
Vital groups are never stretched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rankscope.agent.config import BudgetSettings
from rankscope.agent.cost import OwnCost
from rankscope.agent.lane import Watched
from rankscope.agent.scheduler import GROUP_SHARE, LONGEST_PERIOD_NS
from rankscope.allocator import give_back_memory
from rankscope.clock import Clock
from rankscope.reading import Event, Priority, Reading, Severity

_SECOND_NS = 1_000_000_000
#: smaps_rollup walks every page: milliseconds a process.
_PSS_PERIOD_NS = 60 * _SECOND_NS
#: Starting costs more than running does, the first reads too; rates are judged after that, by what came after.
_GRACE_NS = 30 * _SECOND_NS
#: The budget is held over this long.
_HORIZON_NS = 60 * _SECOND_NS
#: What the agent costs beside its probes is measured anew for so long after a change.
_SETTLED_NS = 15 * _SECOND_NS
#: How far a minute may be over the budget before the next has to make up for it.
_TOLERANCE = 1.05
#: Rates are raised again where that leaves the budget this share, and this long after the last change.
_ROOM = 0.9
_CALM_NS = 30 * _SECOND_NS
#: So much of the budget the probes leave to what gives way by itself.
_RESERVE = 0.1
#: So much of the budget is left to the probes, whatever the agent takes beside them.
_PROBES_SHARE = 0.3
#: Periods are stretched by steps, so that a change is worth an event; at most so far at a time.
_STEP = 1.25
_LARGEST_CHANGE = 4
#: How far groups of each priority that take less than this share of the budget are stretched before any goes further.
_CHEAP = 0.1
_FIRST_STRETCH = {Priority.LOW: 32.0, Priority.NORMAL: 8.0, Priority.HIGH: 4.0}


@dataclass(slots=True)
class _Spent:
    """What a group had cost when it was last looked at, and lately a second, ns."""

    cpu_ns: int = 0
    reads: int = 0
    #: CPU time of one read, smoothed.
    a_read_ns: float = 0.0


class Governor:
    """Call `tick` every few seconds; it measures, and stretches or relaxes the periods of the probes' groups."""

    def __init__(self, budget: BudgetSettings, *, clock: Clock, cost: OwnCost | None = None) -> None:
        self._budget = budget
        self._clock = clock
        self._cost = cost or OwnCost()
        self._began_ns = clock.monotonic_ns()
        # Starting is over by now, and came before the job began.
        self._first_cpu_ns = self._cost.cpu_ns()
        #: (time, CPU time so far, that of probes and whatever else gives way, CPU time allowed so far), of a minute.
        self._past: deque[tuple[int, int, int, float]] = deque([(self._began_ns, self._first_cpu_ns, 0, 0.0)])
        self._changed_ns = self._began_ns
        #: Share of a core that the agent takes beside its probes.
        self._rest_ratio = 0.0
        self._pss_due_ns = self._began_ns
        self._spent: dict[str, _Spent] = {}
        self._over_memory = False
        self._judging = False
        self._bursting = False
        self._limit = budget.cpu_ratio
        #: Share of a core that the budget leaves to what gives way by itself (the live rules).
        self.spare_ratio = budget.cpu_ratio / 2
        #: CPU share of one core since the begin, and the latest memory: what the verdict says watching cost.
        self.cpu_ratio = 0.0
        self.pss_bytes: int | None = None

    def tick(
        self,
        watched: Sequence[Watched],
        *,
        bursting: bool = False,
        elastic_cpu_ns: int = 0,
        final: bool = False,
    ) -> tuple[list[Reading], list[Event]]:
        """Measure since the last tick and act on it.

        `elastic_cpu_ns` is what was spent so far by what keeps to `spare_ratio`; `final` measures memory whether it is
        time or not.
        """
        now, cpu = self._clock.monotonic_ns(), self._cost.cpu_ns()
        last_ns, last_cpu, _, allowed = self._past[-1]
        passed = max(1, now - last_ns)
        self._bursting = bursting
        self._limit = limit = self._budget.ratio(bursting=bursting)
        known = sum(group.cpu_ns for group in watched) + elastic_cpu_ns
        self._past.append((now, cpu, known, allowed + limit * passed))
        while self._past[0][0] < now - _HORIZON_NS and self._past[1][0] <= now - _HORIZON_NS:
            self._past.popleft()
        self.cpu_ratio = (cpu - self._first_cpu_ns) / max(1, now - self._began_ns)
        readings = [Reading("agent.cpu_ratio", (cpu - last_cpu) / passed, now)]
        readings += self._of_groups(watched, passed, now)
        events: list[Event] = []
        if now >= self._pss_due_ns or final:
            self._pss_due_ns = now + _PSS_PERIOD_NS
            events += self._memory(now)
            if self.pss_bytes is not None:
                readings.append(Reading("agent.pss_bytes", float(self.pss_bytes), now))
        if final:
            return readings, events
        if self._judging:
            events += self._act(watched, now)
        elif now - self._began_ns >= _GRACE_NS:
            self._judging = True
            self._past = deque([self._past[-1]])
        return readings, events

    def _of_groups(self, watched: Sequence[Watched], passed: int, now: int) -> list[Reading]:
        readings: list[Reading] = []
        for group in watched:
            spent = self._spent.setdefault(group.name, _Spent())
            reads, cpu = group.reads - spent.reads, group.cpu_ns - spent.cpu_ns
            if not reads:
                continue
            # A first read also looks for what there is, and opens it: it says nothing of the next.
            if spent.reads:
                # Dearer is believed at once, cheaper by and by.
                spent.a_read_ns = max(cpu / reads, (spent.a_read_ns + cpu / reads) / 2)
            spent.reads, spent.cpu_ns = group.reads, group.cpu_ns
            readings.append(Reading("agent.probe_ns", float(group.longest_ns), now, group.name))
            readings.append(Reading("agent.probe_cpu_ratio", cpu / passed, now, group.name))
            if group.driver_ns:
                readings.append(Reading("agent.probe_driver_ns", float(group.driver_ns), now, group.name))
            group.longest_ns = 0
        return readings

    def _act(self, watched: Sequence[Watched], now: int) -> list[Event]:
        (first_ns, first_cpu, _, first_allowed), (_, cpu, _, allowed) = self._past[0], self._past[-1]
        self._measure_rest(now)
        limit = self._limit
        # What the last minute cost too much is saved in the next, as far as half the budget goes.
        excess = max(0.0, (cpu - first_cpu) - _TOLERANCE * (allowed - first_allowed)) / _HORIZON_NS
        target = max(limit / 2, limit - excess) - _RESERVE * limit
        events = self._hold_each(watched, now)
        expected = self._rest_ratio + sum(map(self._ratio, watched))
        # What the agent takes beside its probes they cannot save: it does not cost them all of their rates.
        to_spare = expected - self._rest_ratio - _PROBES_SHARE * limit
        if expected > target and to_spare > 0:
            events += self._stretch(watched, min(expected - target, to_spare), now)
        self.spare_ratio = max(_RESERVE * limit, target - self._rest_ratio - sum(map(self._ratio, watched)))
        if events:
            self._changed_ns = now
            return events
        calm = not self._bursting and now - max(self._changed_ns, first_ns) >= _CALM_NS
        return self._relax(watched, _ROOM * target - expected, now) if calm and expected < _ROOM * target else []

    def _measure_rest(self, now: int) -> None:
        """What is spent beside the probes, since the last change: what a change saved there too is not saved twice."""
        since = self._changed_ns
        if now - since < _SETTLED_NS:
            return
        for time_ns, cpu, of_groups, _ in self._past:
            if since <= time_ns < now:
                _, cpu_now, of_groups_now, _ = self._past[-1]
                self._rest_ratio = max(0, (cpu_now - cpu) - (of_groups_now - of_groups)) / (now - time_ns)
                return

    def _hold_each(self, watched: Sequence[Watched], now: int) -> list[Event]:
        """Declare as its period what the scheduler's pauses make of a group that would take too much by itself."""
        events = []
        for group in watched:
            share = GROUP_SHARE * self._limit
            if group.group.priority is Priority.VITAL or self._declared(group) / group.stretch <= share:
                continue
            group.stretch = self._stretched(group, self._declared(group) / share)
            cost_ms = self._spent[group.name].a_read_ns / 1e6
            why = f"one read costs {cost_ms:.3g} ms, and one group may take {share:.2%} of a core"
            events.append(_changed(group, now, why))
        return events

    def _stretched(self, group: Watched, wanted: float) -> float:
        """The next step that is at least what is wanted, as far as a period may be stretched."""
        return min(_next_step(wanted), max(1.0, LONGEST_PERIOD_NS / group.group.steady_ns))

    def _stretch(self, watched: Sequence[Watched], save: float, now: int) -> list[Event]:
        """Save this share of a core, from the least valuable on."""
        limit = self._limit
        why = f"the agent takes {save:.2%} of a core more than the {limit:.2%} that it may take"
        events: list[Event] = []
        able = [group for group in watched if group.group.priority is not Priority.VITAL and self._ratio(group)]
        able.sort(key=lambda group: (group.group.priority, -self._ratio(group)))
        # First each only so far: the last of a cheap group's rate saves less than a little of a dearer one's.
        for limited in (True, False):
            for group in able:
                if save < limit / 1000:
                    return events
                before = self._ratio(group)
                wanted = self._declared(group) / max(before - save, before / _LARGEST_CHANGE)
                if limited and before < _CHEAP * limit:
                    wanted = min(wanted, _FIRST_STRETCH[group.group.priority])
                stretch = self._stretched(group, wanted)
                if stretch > group.stretch:
                    group.stretch = stretch
                    save -= before - self._ratio(group)
                    events.append(_changed(group, now, why))
        return events

    def _relax(self, watched: Sequence[Watched], room: float, now: int) -> list[Event]:
        """Give one group, the most valuable that is stretched, as much of its rate back as there is room for."""
        stretched = [group for group in watched if group.stretch > 1]
        for group in sorted(stretched, key=lambda group: (-group.group.priority, self._ratio(group))):
            ratio = self._ratio(group)
            # What is too dear for the room stays as it is.
            allowed = min(ratio + room, _ROOM * GROUP_SHARE * self._limit)
            fits = _next_step(max(1.0, self._declared(group) / allowed))
            if fits < group.stretch:
                group.stretch = fits
                self._changed_ns = now
                return [_changed(group, now, "there is room in the budget again")]
        return []

    def _ratio(self, group: Watched) -> float:
        """Share of a core that a group takes at its present periods, held back as the scheduler does."""
        declared = self._declared(group)
        if group.group.priority is Priority.VITAL:
            return declared
        return min(declared / group.stretch, GROUP_SHARE * self._limit)

    def _declared(self, group: Watched) -> float:
        """Share of a core that a group would take at the periods that it declares."""
        spent = self._spent.get(group.name)
        if spent is None:
            return 0.0
        a_second = 1 / group.group.steady_ns
        if self._bursting:
            a_second += 1 / group.group.burst_ns
        return spent.a_read_ns * a_second

    def _memory(self, now: int) -> list[Event]:
        limit = self._budget.pss_bytes
        self.pss_bytes = self._cost.pss_bytes()
        if self.pss_bytes is not None and self.pss_bytes > limit:
            give_back_memory()
            self.pss_bytes = self._cost.pss_bytes()
        over = self.pss_bytes is not None and self.pss_bytes > limit
        if over == self._over_memory:
            return []
        self._over_memory = over
        size = (self.pss_bytes or 0) / 1e6
        text = f"the agent and its children hold {size:.0f} MB of memory, they may hold {limit / 1e6:.0f} MB"
        severity = Severity.WARNING if over else Severity.INFO
        return [Event("governor", now, text, severity, attributes={"probe": "memory", "pss_bytes": self.pss_bytes})]


def _next_step(stretch: float) -> float:
    """The next larger stretch that is a power of _STEP."""
    step = 1.0
    while step < stretch * (1 - 1e-9):
        step *= _STEP
    return step


def _changed(group: Watched, now: int, why: str) -> Event:
    period = int(group.group.steady_ns * group.stretch)
    text = f"{group.name} is read every {period / 1e9:.3g} s: {why}"
    return Event("governor", now, text, attributes={"probe": group.name, "period_ns": period})
