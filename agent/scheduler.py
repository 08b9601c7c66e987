"""When each group of each probe is read: steady or burst period, a jittered phase, one reader thread, a deadline.

A probe that does not come back by its deadline costs only itself: its thread is left to it, a new one goes on with the
others, and the probe rests until its call returns. An exception a probe may not raise is counted, said, and followed
by a longer and longer rest.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rankscope.clock import Clock
from rankscope.errors import PermissionDenied, ProbeError, Unsupported
from rankscope.reading import Event, Group, Outcome, Probe, ProbeResult, Reading, Severity

_LONGEST_REST_NS = 300_000_000_000
#: A source that this machine will never offer is asked again this rarely, in case something was replaced.
_UNSUPPORTED_REST_NS = 600_000_000_000


@dataclass(slots=True)
class Task:
    """One group of one probe."""

    probe: Probe
    group: Group
    due_ns: int
    #: Factor on the period that the governor sets.
    stretch: int = 1
    #: CPU time and number of reads, for the governor.
    cpu_ns: int = 0
    reads: int = 0
    rest_until_ns: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Answer:
    task: Task
    result: ProbeResult
    took_ns: int
    cpu_ns: int
    raised: Exception | None


@dataclass(slots=True)
class Tick:
    """What the probes said since the last tick."""

    readings: list[Reading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    #: (probe, group, device, outcome, reason), only where it changed.
    outcomes: list[tuple[str, str, str, Outcome, str]] = field(default_factory=list)


class Scheduler:
    """Reads probes on time. `tick` never blocks."""

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        clock: Clock,
        deadline_ns: int,
        burst_ns: int,
        random_source: random.Random | None = None,
    ) -> None:
        draw = random_source or random.Random()
        now = clock.monotonic_ns()
        #: Hosts of a fleet, and groups of a probe, are not to read all at the same moment.
        self.tasks = [
            Task(probe, group, now + int(draw.random() * min(group.steady_ns, 1_000_000_000)))
            for probe in probes
            for group in probe.groups
        ]
        self._probes = tuple(probes)
        self._clock = clock
        self._deadline_ns = deadline_ns
        self._burst_length_ns = burst_ns
        self._burst_until: dict[str, int] = {}
        self._known: dict[tuple[str, str, str], set[tuple[Outcome, str]]] = {}
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._lane = _Lane(self._answers)
        self._stalled: dict[str, int] = {}

    def burst(self, probe: str = "") -> None:
        """Read a probe (all: "") at its burst periods for a while from now on."""
        until = self._clock.monotonic_ns() + self._burst_length_ns
        for known in self._probes:
            if probe in ("", known.name):
                self._burst_until[known.name] = until
        for task in self.tasks:
            if self._burst_until.get(task.probe.name) == until:
                task.due_ns = min(task.due_ns, self._clock.monotonic_ns() + task.group.burst_ns)

    def next_due_ns(self) -> int:
        """When the next group is to be read."""
        return min((task.due_ns for task in self.tasks), default=2**62)

    def tick(self) -> Tick:
        """Start what is due, and take what has come."""
        tick = Tick()
        now = self._clock.monotonic_ns()
        for task in self.tasks:
            if task.due_ns > now:
                continue
            # Before the work, from the plan and not from now: periods do not drift, and what was missed is not made up.
            period = self._period(task, now)
            task.due_ns += period * max(1, -(-(now - task.due_ns) // period))
            if task.probe.name not in self._stalled and task.rest_until_ns <= now:
                self._lane.put(task, now)
        self._watch(now, tick)
        while True:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return tick
            self._take(answer, tick)

    def _period(self, task: Task, now: int) -> int:
        bursting = self._burst_until.get(task.probe.name, 0) > now
        return max(10_000_000, (task.group.burst_ns if bursting else task.group.steady_ns) * task.stretch)

    def _watch(self, now: int, tick: Tick) -> None:
        running = self._lane.running
        if running is None or now - running[1] < self._deadline_ns:
            return
        task, since = running
        self._stalled[task.probe.name] = since
        self._lane = self._lane.replace()
        waited = now - since
        tick.events.append(
            _probe_event("probe-stalled", task, now, waited, f"has not answered for {waited / 1e9:.1f} s")
        )
        self._say(tick, task, "", Outcome.FAILED, f"no answer within {self._deadline_ns / 1e9:g} s")

    def _take(self, answer: _Answer, tick: Tick) -> None:
        task, now = answer.task, self._clock.monotonic_ns()
        name = task.probe.name
        task.cpu_ns += answer.cpu_ns
        task.reads += 1
        since = self._stalled.get(name)
        if since is not None and answer.took_ns >= self._deadline_ns:
            del self._stalled[name]
            text = f"answers again after {(now - since) / 1e9:.1f} s"
            tick.events.append(_probe_event("probe-recovered", task, now, now - since, text))
        tick.readings.append(Reading("agent.probe_ns", float(answer.took_ns), now, name))
        if answer.raised is not None:
            self._failed(task, answer.raised, now, tick)
            return
        task.failures = 0
        tick.readings += answer.result.readings
        tick.events += answer.result.events
        # A probe says what is wrong once, and then is silent; a group is well when it brings readings, or when it
        # was read and nothing was ever wrong.
        silent = not any(device == "" for device, _, _ in answer.result.outcomes)
        if silent and (answer.result.readings or (name, task.group.name, "") not in self._known):
            self._say(tick, task, "", Outcome.OK, "")
        for device, outcome, reason in answer.result.outcomes:
            self._say(tick, task, device, outcome, reason)

    def _failed(self, task: Task, error: Exception, now: int, tick: Tick) -> None:
        if isinstance(error, Unsupported):
            task.rest_until_ns = now + _UNSUPPORTED_REST_NS
            self._say(tick, task, "", Outcome.UNSUPPORTED, str(error))
            return
        task.failures += 1
        period = task.group.steady_ns * task.stretch
        task.rest_until_ns = now + min(_LONGEST_REST_NS, period * 2 ** min(task.failures, 16))
        if isinstance(error, PermissionDenied):
            self._say(tick, task, "", Outcome.NO_PERMISSION, str(error))
            return
        # An error of the probe's own making names its kind too.
        reason = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
        if self._say(tick, task, "", Outcome.FAILED, reason):
            attributes: dict[str, str | int | float | None] = {"probe": task.probe.name, "outcome": Outcome.FAILED}
            text = f"{task.probe.name}: {reason}"
            tick.events.append(Event("probe-failed", now, text, Severity.WARNING, attributes=attributes))

    def _say(self, tick: Tick, task: Task, device: str, outcome: Outcome, reason: str) -> bool:
        key = (task.probe.name, task.group.name, device)
        known = self._known.setdefault(key, set())
        if (outcome, reason) in known:
            return False
        if outcome is Outcome.OK or (Outcome.OK, "") in known:
            known.clear()
        known.add((outcome, reason))
        tick.outcomes.append((*key, outcome, reason))
        return True

    def close(self) -> Tick:
        """Let the read that runs end by its deadline, then close the probes; returns the last readings."""
        self._lane.stop(self._deadline_ns / 1e9)
        tick = Tick()
        while not self._answers.empty():
            self._take(self._answers.get_nowait(), tick)
        running = self._lane.running
        stuck = set(self._stalled) | ({running[0].probe.name} if running else set())
        for probe in self._probes:
            if probe.name not in stuck:
                probe.close()
        return tick


def _probe_event(kind: str, task: Task, now: int, waited_ns: int, text: str) -> Event:
    attributes: dict[str, str | int | float | None] = {"probe": task.probe.name, "waited_ns": waited_ns}
    return Event(kind, now, f"{task.probe.name} {text}", Severity.WARNING, attributes=attributes)


class _Lane:
    """The thread that reads. Replaced when a read does not come back; the old one ends with it."""

    def __init__(self, answers: queue.SimpleQueue[_Answer]) -> None:
        self._answers = answers
        self._tasks: queue.SimpleQueue[tuple[Task, int] | None] = queue.SimpleQueue()
        self._queued: set[int] = set()
        self._abandoned = False
        #: The task being read and since when.
        self.running: tuple[Task, int] | None = None
        self._thread = threading.Thread(target=self._work, name="rankscope-probes", daemon=True)
        self._thread.start()

    def put(self, task: Task, now_ns: int) -> None:
        """Have a task read, unless it waits already."""
        if id(task) not in self._queued:
            self._queued.add(id(task))
            self._tasks.put((task, now_ns))

    def replace(self) -> _Lane:
        """A new lane that takes over everything but the read that hangs."""
        self._abandoned = True
        fresh = _Lane(self._answers)
        stuck = self.running[0].probe if self.running is not None else None
        while not self._tasks.empty():
            item = self._tasks.get_nowait()
            if item is not None and item[0].probe is not stuck:
                fresh.put(*item)
        self._tasks.put(None)
        return fresh

    def stop(self, seconds: float) -> None:
        """End after the read that runs."""
        while not self._tasks.empty():
            self._tasks.get_nowait()
        self._tasks.put(None)
        self._thread.join(seconds)

    def _work(self, cpu_ns: Callable[[], int] = time.thread_time_ns) -> None:
        while not self._abandoned:
            item = self._tasks.get()
            if item is None:
                return
            task = item[0]
            self._queued.discard(id(task))
            began, cpu = time.monotonic_ns(), cpu_ns()
            self.running = (task, began)
            result, raised = ProbeResult(), None
            try:
                result = task.probe.read(task.group.name, began)
            except Exception as error:
                raised = error
            self.running = None
            self._answers.put(_Answer(task, result, time.monotonic_ns() - began, cpu_ns() - cpu, raised))
