"""An NVML probe under watch: read again and again, all that it says kept."""

from __future__ import annotations

import time
from collections.abc import Callable

from rankscope.probes.nvml import NvmlProbe
from rankscope.reading import Event, Outcome, ProbeResult, Reading

DEADLINE_S = 20.0


class Watched:
    """An NVML probe with all that it has said so far."""

    def __init__(self, probe: NvmlProbe) -> None:
        self.probe = probe
        self.reads = 0
        self.driver_ns = self.helper_cpu_ns = 0
        self.readings: list[Reading] = []
        self.events: list[Event] = []
        self.outcomes: list[tuple[str, Outcome, str]] = []

    def read(self, group: str = "fast", now_ns: int | None = None) -> list[Reading]:
        """One read; what it returned is kept."""
        result = self.probe.read(group, time.monotonic_ns() if now_ns is None else now_ns)
        self.reads += 1
        self.keep(result)
        return list(result.readings)

    def keep(self, result: ProbeResult) -> None:
        """Add what one read returned."""
        self.driver_ns += result.driver_ns
        self.helper_cpu_ns += result.helper_cpu_ns
        self.readings += result.readings
        self.events += result.events
        self.outcomes += result.outcomes

    def read_until(self, done: Callable[[], bool], group: str = "fast") -> None:
        """Read again and again until something is so, or fail."""
        end = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < end, (self.events, self.outcomes)
            self.read(group)
            time.sleep(0.005)

    def kinds(self) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in self.events]

    def latest(self, metric: str, uuid: str) -> float | None:
        """The newest value of a metric of a GPU."""
        values = [r.value for r in self.readings if r.metric == metric and r.device == uuid]
        return values[-1] if values else None


WatchNode = Callable[..., Watched]
