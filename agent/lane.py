"""The threads that read: one lane for the probes that come with the agent, one for each that does not.

A read that does not come back is left to its thread, which ends with it, and a new thread goes on with the others.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from rankscope.agent.sound import checked
from rankscope.clock import Clock
from rankscope.reading import DeviceProbe, Group, GroupsProbe, Probe, ProbeResult


@dataclass(slots=True)
class Watched:
    """One group of one probe: its rate, what it costs, and how it fares."""

    probe: Probe
    group: Group
    #: Factor on its periods that the governor sets.
    stretch: float = 1.0
    #: Since the start: CPU time of reads (helpers included), their wall time, their number, and time in drivers, ns.
    cpu_ns: int = 0
    helper_cpu_ns: int = 0
    wall_ns: int = 0
    driver_ns: int = 0
    reads: int = 0
    #: Longest read since the governor last asked, ns.
    longest_ns: int = 0
    rest_until_ns: int = 0
    failures: int = 0
    #: Whether its devices can be read apart.
    by_device: bool = field(init=False)
    #: Whether its probe can read several groups at once.
    by_group: bool = field(init=False)

    def __post_init__(self) -> None:
        self.by_device = isinstance(self.probe, DeviceProbe)
        self.by_group = isinstance(self.probe, GroupsProbe)

    @property
    def name(self) -> str:
        """probe/group."""
        return f"{self.probe.name}/{self.group.name}"


@dataclass(frozen=True, slots=True)
class Read:
    """One read that is asked for; `devices` is None for all of them."""

    watched: Watched
    devices: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One read that came back. Times in ns."""

    watched: Watched
    result: ProbeResult
    #: When it came.
    at_ns: int
    took_ns: int
    cpu_ns: int
    #: How many devices were asked; 0 where they are not told apart.
    devices: int = 0
    raised: BaseException | None = None


@dataclass(slots=True)
class Lane:
    """One thread, one read after the other. `clock` is the agent's; CPU time is always the thread's own."""

    answers: queue.SimpleQueue[Answer]
    clock: Clock
    #: Look at each result before it is believed.
    checking: bool = False
    #: Called in the lane's thread when what came back holds events, so that nobody has to look to hear of them.
    news: Callable[[], None] = lambda: None
    #: The read that runs and since when.
    running: tuple[Read, int] | None = None
    _reads: queue.SimpleQueue[Read | None] = field(default_factory=queue.SimpleQueue)
    _waiting: set[tuple[int, frozenset[str] | None]] = field(default_factory=set)
    #: What a checked probe has called its series so far.
    _series: set[tuple[str, str]] = field(default_factory=set)
    _asked: int = 0
    _done: int = 0
    _abandoned: bool = False
    #: Taken from the queue, and next.
    _held: Read | None = None
    #: The end was asked for among reads that are still to be done.
    _ended: bool = False
    _thread: threading.Thread | None = None

    def put(self, read: Read) -> None:
        """Have it read, unless the same waits already."""
        key = (id(read.watched), read.devices)
        if key in self._waiting:
            return
        self._waiting.add(key)
        self._asked += 1
        self._reads.put(read)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rankscope-probes", daemon=True)
            self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether everything asked for has come back."""
        return self._asked == self._done

    def replace(self) -> Lane:
        """A new lane that takes over everything but what would wait for the read that hangs."""
        self._abandoned = True
        fresh = Lane(self.answers, self.clock, self.checking, self.news)
        fresh._series = self._series
        stuck = self.running[0].watched.probe if self.running is not None else None
        waiting = [self._held]
        while not self._reads.empty():
            waiting.append(self._reads.get_nowait())
        for read in waiting:
            if read is not None and read.watched.probe is not stuck:
                fresh.put(read)
        self._reads.put(None)
        return fresh

    def stop(self, seconds: float) -> None:
        """End after the read that runs."""
        while not self._reads.empty():
            self._reads.get_nowait()
        self._reads.put(None)
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self, cpu_ns: Callable[[], int] = time.thread_time_ns) -> None:
        while not self._abandoned:
            read = self._reads.get() if self._held is None else self._held
            if read is None:
                return
            together = self._with(read)
            began, cpu = self.clock.monotonic_ns(), cpu_ns()
            self.running = (read, began)
            results: Sequence[ProbeResult] = [ProbeResult()] * len(together)
            raised = None
            try:
                results = perform(together, began)
                if self.checking:
                    results = [checked(result, read.watched.probe.name, self._series) for result in results]
            except BaseException as error:
                # Whatever it is, SystemExit too: this thread reads for others as well.
                results, raised = [ProbeResult()] * len(together), error
            self.running = None
            ended = self.clock.monotonic_ns()
            # What was read together is shared out evenly; what helpers spent is known by group.
            own = (cpu_ns() - cpu) // len(together)
            for one, result in zip(together, results, strict=True):
                cost = own + result.helper_cpu_ns
                self.answers.put(Answer(one.watched, result, ended, ended - began, cost, _devices_of(one), raised))
                self._done += 1
            if any(result.events for result in results):
                self.news()
            if self._held is None and self._ended:
                return

    def _with(self, read: Read) -> list[Read]:
        """`read` and what waits and can be read together with it; holds the first that cannot."""
        self._held = None
        self._waiting.discard((id(read.watched), read.devices))
        together = [read]
        while read.watched.by_group:
            try:
                other = self._reads.get_nowait()
            except queue.Empty:
                break
            if other is None:
                self._ended = True
                break
            if other.watched.probe is not read.watched.probe or other.devices != read.devices:
                self._held = other
                break
            self._waiting.discard((id(other.watched), other.devices))
            together.append(other)
        return together


def _devices_of(read: Read) -> int:
    """How many devices a read asks."""
    if read.devices is not None:
        return len(read.devices)
    return len(cast(DeviceProbe, read.watched.probe).devices) if read.watched.by_device else 0


def perform(reads: Sequence[Read], now_ns: int) -> Sequence[ProbeResult]:
    """The call itself, of reads of one probe and the same devices."""
    probe, devices = reads[0].watched.probe, reads[0].devices
    if len(reads) > 1:
        groups = [read.watched.group.name for read in reads]
        return cast(GroupsProbe, probe).read_groups(groups, now_ns, devices)
    group = reads[0].watched.group.name
    if devices is None:
        return [probe.read(group, now_ns)]
    return [cast(DeviceProbe, probe).read_devices(group, now_ns, devices)]


def close_within(probe: Probe, seconds: float) -> bool:
    """Close a probe that may do anything; False where it did not end in time."""

    def close() -> None:
        try:
            probe.close()
        except BaseException:
            # It ends with the agent; there is nobody left to tell.
            return

    thread = threading.Thread(target=close, name=f"close-{probe.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
