"""The threads that read: one lane for the probes that come with the agent, one for each that does not.

A read that does not come back is left to its thread, which ends with it, and a new thread goes on with the others.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from rankscope.agent.sound import checked
from rankscope.clock import Clock
from rankscope.reading import DeviceProbe, Group, Probe, ProbeResult


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

    def __post_init__(self) -> None:
        self.by_device = isinstance(self.probe, DeviceProbe)

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
    took_ns: int
    cpu_ns: int
    #: How many devices were asked for; 0 where all were.
    devices: int = 0
    raised: BaseException | None = None


@dataclass(slots=True)
class Lane:
    """One thread, one read after the other. `clock` is the agent's; CPU time is always the thread's own."""

    answers: queue.SimpleQueue[Answer]
    clock: Clock
    #: Look at each result before it is believed.
    checking: bool = False
    #: The read that runs and since when.
    running: tuple[Read, int] | None = None
    _reads: queue.SimpleQueue[Read | None] = field(default_factory=queue.SimpleQueue)
    _waiting: set[tuple[int, frozenset[str] | None]] = field(default_factory=set)
    #: What a checked probe has called its series so far.
    _series: set[tuple[str, str]] = field(default_factory=set)
    _asked: int = 0
    _done: int = 0
    _abandoned: bool = False
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
        fresh = Lane(self.answers, self.clock, self.checking)
        fresh._series = self._series
        stuck = self.running[0].watched.probe if self.running is not None else None
        while not self._reads.empty():
            read = self._reads.get_nowait()
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
            read = self._reads.get()
            if read is None:
                return
            self._waiting.discard((id(read.watched), read.devices))
            began, cpu = self.clock.monotonic_ns(), cpu_ns()
            self.running = (read, began)
            result, raised = ProbeResult(), None
            try:
                result = perform(read, began)
                if self.checking:
                    result = checked(result, read.watched.probe.name, self._series)
            except BaseException as error:
                # Whatever it is, SystemExit too: this thread reads for others as well.
                result, raised = ProbeResult(), error
            self.running = None
            took = self.clock.monotonic_ns() - began
            cost = cpu_ns() - cpu + result.helper_cpu_ns
            self.answers.put(Answer(read.watched, result, took, cost, len(read.devices or ()), raised))
            self._done += 1


def perform(read: Read, now_ns: int) -> ProbeResult:
    """The call itself."""
    probe, group = read.watched.probe, read.watched.group.name
    if read.devices is None:
        return probe.read(group, now_ns)
    return cast(DeviceProbe, probe).read_devices(group, now_ns, read.devices)


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
