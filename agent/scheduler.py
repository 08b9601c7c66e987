"""When each group of each probe is read: steady or burst period, a phase of the host's own, a deadline.

A probe that does not come back by its deadline costs only itself: its thread is left to it, a new one goes on with the
others, and the probe rests until its call returns. An exception a probe may not raise is counted, said, and followed
by a longer and longer rest.

A burst reads only the devices it concerns, of a probe that can read them apart.
"""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from rankscope.agent.lane import Answer, Lane, Read, Watched, close_within
from rankscope.clock import Clock
from rankscope.errors import Absent, PermissionDenied, ProbeError, Unsupported
from rankscope.reading import DeviceProbe, Event, Group, Outcome, Priority, Probe, Reading, Severity

_SECOND_NS = 1_000_000_000
_LONGEST_REST_NS = 300 * _SECOND_NS
#: A source that this machine will never offer is asked again this rarely, in case something was replaced.
_UNSUPPORTED_REST_NS = 600 * _SECOND_NS
#: However far a group is stretched, it is read this often.
LONGEST_PERIOD_NS = 600 * _SECOND_NS
_SHORTEST_PERIOD_NS = 10_000_000
#: A group that is not vital may keep its lane busy for one part in so many of the time: what it holds up is others.
_LANE_SHARE = 20
#: And take this share of the budget, whatever the others leave of it.
GROUP_SHARE = 0.5
_NEVER = 2**62


@dataclass(slots=True)
class _Task:
    """One reason to read a group: its steady period, or a burst."""

    watched: Watched
    due_ns: int
    burst: bool = False
    #: When it was last read, ns.
    started_ns: int = 0


@dataclass(slots=True)
class Tick:
    """What the probes said since the last tick."""

    readings: list[Reading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    #: (probe, group, device, outcome, reason), only where it changed.
    outcomes: list[tuple[str, str, str, Outcome, str]] = field(default_factory=list)


def phase(period_ns: int, *names: str) -> int:
    """Where in a period its reads lie, ns: the same for the same names, spread evenly over different ones."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "little") % period_ns


class Scheduler:
    """Reads probes on time. `tick` never blocks."""

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        clock: Clock,
        deadline_ns: int,
        burst_ns: int,
        host: str = "",
        isolated: Collection[str] = (),
        budget_ratio: float = 1.0,
        burst_budget_ratio: float = 1.0,
        news: Callable[[], None] = lambda: None,
        groups_of: Callable[[Probe], Sequence[Group]] = lambda probe: probe.groups,
    ) -> None:
        """`host` sets the phases; `groups_of` says what is read of a probe. Probes named in `isolated` get a thread of
        their own each, and are not believed unchecked. After a read a group that is not vital rests until the budget,
        as a share of a core, has made up for what the read cost. `news` is called in a probe's thread when events have
        come.
        """
        now = clock.monotonic_ns()
        self.watched = [Watched(probe, group) for probe in probes for group in groups_of(probe)]
        self._tasks = [task for watched in self.watched for task in _tasks_of(watched, host, now)]
        self._probes = tuple(probes)
        self._clock = clock
        self._deadline_ns = deadline_ns
        self._burst_length_ns = burst_ns
        self._budget_ratio = budget_ratio
        self._burst_budget_ratio = burst_budget_ratio
        #: (probe, device) -> end of its burst; device "" where the whole probe bursts.
        self._bursts: dict[tuple[str, str], int] = {}
        self._known: dict[tuple[str, str, str], set[tuple[Outcome, str]]] = {}
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._news = news
        self._isolated = frozenset(isolated)
        #: By the name of an isolated probe; "" for all others.
        self._lanes: dict[str, Lane] = {}
        self._stalled: dict[str, int] = {}
        #: Names of groups (probe/group) that are not read for now.
        self.left_out: frozenset[str] = frozenset()

    def burst(self, devices: Collection[str]) -> tuple[int, int]:
        """Read these devices ("" for the host itself) at their burst periods from now on; returns (begin, end)."""
        now = self._clock.monotonic_ns()
        until = now + self._burst_length_ns
        for probe in self._probes:
            own = set(probe.devices) if isinstance(probe, DeviceProbe) else {""}
            chosen = own & set(devices)
            for device in chosen:
                self._bursts[probe.name, device] = until
        for task in self._tasks:
            if task.burst and set(self._bursting(task.watched.probe.name, now)):
                task.due_ns = min(task.due_ns, now)
        return now, until

    def hasten(self, probe: Probe) -> None:
        """Something can be read there: read it now, or where it was read just now or rests, as soon as it may be."""
        now = self._clock.monotonic_ns()
        for task in self._tasks:
            if task.watched.probe is probe and not task.burst:
                soonest = max(now, task.started_ns + task.watched.group.burst_ns, task.watched.rest_until_ns)
                task.due_ns = min(task.due_ns, soonest)

    @property
    def bursting(self) -> bool:
        """Whether a burst goes on."""
        now = self._clock.monotonic_ns()
        return any(until > now for until in self._bursts.values())

    def settle(self, seconds: float) -> bool:
        """Wait, in real time, until every read that was asked for has come back; False where one has not by then."""
        give_up = time.monotonic() + seconds
        while not all(lane.idle for lane in self._lanes.values()):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.0001)
        return True

    def next_due_ns(self) -> int:
        """When the next group is to be read."""
        return min((task.due_ns for task in self._tasks), default=_NEVER)

    def tick(self) -> Tick:
        """Start what is due, and take what has come."""
        self.start_due()
        return self.take()

    def start_due(self) -> None:
        """Start what is due."""
        now = self._clock.monotonic_ns()
        for task in self._tasks:
            if task.due_ns <= now:
                self._start(task, now)

    def take(self) -> Tick:
        """Take what has come, and say what has not by its deadline."""
        tick = Tick()
        now = self._clock.monotonic_ns()
        for name in list(self._lanes):
            self._watch(name, now, tick)
        while True:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return tick
            self._take(answer, tick)

    def _start(self, task: _Task, now: int) -> None:
        watched = task.watched
        bursting = set(self._bursting(watched.probe.name, now))
        if task.burst and not bursting:
            task.due_ns = _NEVER
            return
        # Before the work, from the plan and not from now: periods do not drift, and what was missed is not made up.
        period = self._period(task)
        task.due_ns += period * max(1, -(-(now - task.due_ns) // period))
        if watched.probe.name in self._stalled or watched.rest_until_ns > now or watched.name in self.left_out:
            return
        devices = _devices(task, bursting)
        if devices is None or devices:
            task.started_ns = now
            name = watched.probe.name if watched.probe.name in self._isolated else ""
            if name not in self._lanes:
                self._lanes[name] = Lane(self._answers, self._clock, bool(name), self._news)
            self._lanes[name].put(Read(watched, devices))

    def _bursting(self, probe: str, now: int) -> Iterator[str]:
        return (device for (name, device), until in self._bursts.items() if name == probe and until > now)

    def _period(self, task: _Task) -> int:
        group = task.watched.group
        period = (group.burst_ns if task.burst else group.steady_ns) * task.watched.stretch
        return max(_SHORTEST_PERIOD_NS, int(min(period, max(LONGEST_PERIOD_NS, group.steady_ns))))

    def _watch(self, name: str, now: int, tick: Tick) -> None:
        running = self._lanes[name].running
        if running is None or now - running[1] < self._deadline_ns:
            return
        watched, since = running[0].watched, running[1]
        self._stalled[watched.probe.name] = since
        self._lanes[name] = self._lanes[name].replace()
        waited = now - since
        tick.events.append(
            _probe_event("probe-stalled", watched, now, waited, f"has not answered for {waited / 1e9:.1f} s")
        )
        self._say(tick, watched, "", Outcome.FAILED, f"no answer within {self._deadline_ns / 1e9:g} s")

    def _take(self, answer: Answer, tick: Tick) -> None:
        watched, now = answer.watched, self._clock.monotonic_ns()
        name = watched.probe.name
        watched.cpu_ns += answer.cpu_ns
        watched.helper_cpu_ns += answer.result.helper_cpu_ns
        watched.wall_ns += answer.took_ns
        watched.driver_ns += answer.result.driver_ns
        watched.longest_ns = max(watched.longest_ns, answer.took_ns)
        watched.reads += 1
        since = self._stalled.get(name)
        if since is not None and answer.took_ns >= self._deadline_ns:
            del self._stalled[name]
            text = f"answers again after {(now - since) / 1e9:.1f} s"
            tick.events.append(_probe_event("probe-recovered", watched, now, now - since, text))
        if answer.raised is not None:
            self._failed(watched, answer.raised, now, tick)
            return
        watched.failures = 0
        if watched.group.priority is not Priority.VITAL:
            # Sooner than the governor can: what one read cost is made up for before the next.
            budget = self._burst_budget_ratio if self.bursting else self._budget_ratio
            # What went past its deadline held up nobody, and says nothing of the next.
            held_ns = answer.took_ns if answer.took_ns < self._deadline_ns else 0
            # A driver's calls for one device hold up the job on it, where they hold up anybody.
            held_ns = max(held_ns, answer.result.driver_ns // max(1, answer.devices))
            pause = max(int(answer.cpu_ns / (budget * GROUP_SHARE)), held_ns * _LANE_SHARE)
            watched.rest_until_ns = answer.at_ns + min(pause, LONGEST_PERIOD_NS)
        tick.readings += answer.result.readings
        tick.events += answer.result.events
        # A probe says what is wrong once, and then is silent; a group is well when it brings readings, or when it
        # was read and nothing was ever wrong.
        silent = not any(device == "" for device, _, _ in answer.result.outcomes)
        if silent and (answer.result.readings or (name, watched.group.name, "") not in self._known):
            self._say(tick, watched, "", Outcome.OK, "")
        for device, outcome, reason in answer.result.outcomes:
            self._say(tick, watched, device, outcome, reason)

    def _failed(self, watched: Watched, error: BaseException, now: int, tick: Tick) -> None:
        if isinstance(error, Unsupported):
            watched.rest_until_ns = now + _UNSUPPORTED_REST_NS
            # What the machine does not have is nothing that could not be seen.
            outcome = Outcome.NO_DATA if isinstance(error, Absent) else Outcome.UNSUPPORTED
            self._say(tick, watched, "", outcome, str(error))
            return
        watched.failures += 1
        period = int(watched.group.steady_ns * watched.stretch)
        watched.rest_until_ns = now + min(_LONGEST_REST_NS, period * 2 ** min(watched.failures, 16))
        if isinstance(error, PermissionDenied):
            self._say(tick, watched, "", Outcome.NO_PERMISSION, str(error))
            return
        # An error of the probe's own making names its kind too.
        reason = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
        if self._say(tick, watched, "", Outcome.FAILED, reason):
            attributes: dict[str, str | int | float | None] = {"probe": watched.probe.name, "outcome": Outcome.FAILED}
            text = f"{watched.probe.name}: {reason}"
            tick.events.append(Event("probe-failed", now, text, Severity.WARNING, attributes=attributes))

    def _say(self, tick: Tick, watched: Watched, device: str, outcome: Outcome, reason: str) -> bool:
        key = (watched.probe.name, watched.group.name, device)
        known = self._known.setdefault(key, set())
        if (outcome, reason) in known:
            return False
        if outcome is Outcome.OK or (Outcome.OK, "") in known:
            known.clear()
        known.add((outcome, reason))
        tick.outcomes.append((*key, outcome, reason))
        return True

    def close(self) -> Tick:
        """Let the reads that run end by their deadline, then close the probes; returns the last readings."""
        stuck = set(self._stalled)
        for lane in self._lanes.values():
            lane.stop(self._deadline_ns / 1e9)
            if lane.running is not None:
                stuck.add(lane.running[0].watched.probe.name)
        tick = Tick()
        while not self._answers.empty():
            self._take(self._answers.get_nowait(), tick)
        for probe in self._probes:
            if probe.name in self._isolated and probe.name not in stuck:
                close_within(probe, self._deadline_ns / 1e9)
            elif probe.name not in stuck:
                probe.close()
        return tick


def _tasks_of(watched: Watched, host: str, now: int) -> Iterator[_Task]:
    group = watched.group
    # One phase for all of a host, another for each host: what is read together costs one wake-up, and finds its caches
    # warm. Long periods begin within a second too: what is fixed should be known before the job has run for an hour.
    first = now + phase(min(group.steady_ns, _SECOND_NS), host)
    yield _Task(watched, first)
    yield _Task(watched, _NEVER, burst=True)


def _devices(task: _Task, bursting: set[str]) -> frozenset[str] | None:
    """Which devices a task reads now; None for all, or where the probe knows no devices apart."""
    if not task.watched.by_device:
        return None
    if task.burst:
        return frozenset(bursting)
    group = task.watched.group
    # What a burst reads more often anyway is left to it.
    if not bursting or group.burst_ns >= group.steady_ns:
        return None
    return frozenset(cast(DeviceProbe, task.watched.probe).devices) - bursting


def _probe_event(kind: str, watched: Watched, now: int, waited_ns: int, text: str) -> Event:
    attributes: dict[str, str | int | float | None] = {"probe": watched.probe.name, "waited_ns": waited_ns}
    return Event(kind, now, f"{watched.probe.name} {text}", Severity.WARNING, attributes=attributes)
