"""The shipped agent on simulated time: its loop, scheduler, governor and recording; only the clock is another."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence

from rankscope.agent.config import Settings
from rankscope.agent.job import WatchedJob
from rankscope.agent.loop import Agent
from rankscope.agent.sources import Sources
from rankscope.testing.clock import FakeClock

_SECOND_NS = 1_000_000_000
#: A read that has not come back by then hangs, and simulated time goes on without it, real seconds.
_PATIENCE_SECONDS = 0.5
#: While one hangs, the others still get so long, on a busy machine too.
_IMPATIENCE_SECONDS = 0.05


class SimulatedAgent:
    """One agent whose every wait moves `clock` on at once. `harness_cpu_ns` is what moving it cost this process."""

    def __init__(self, jobs: Sequence[WatchedJob], settings: Settings, sources: Sources, clock: FakeClock) -> None:
        self.clock = clock
        self.agent = Agent(jobs, settings, sources, clock=clock, wait=self._wait)
        self.harness_cpu_ns = 0
        self._hanging = False
        self._passed: Callable[[], None] = lambda: None

    def run(self, seconds: float, passed: Callable[[], None] = lambda: None) -> None:
        """Watch for so long and end in order; `passed` is called whenever time has passed, to change the world."""
        end_ns = self.clock.monotonic_ns() + int(seconds * _SECOND_NS)
        self._passed = passed

        def each_round() -> None:
            if self.clock.monotonic_ns() >= end_ns:
                self.agent.stop("the time is over")

        self.agent.run(each_round)

    def _wait(self, epoll: select.epoll, wait_ns: int) -> list[tuple[int, int]]:
        began = time.thread_time_ns()
        # Whatever was asked for comes back within no simulated time, unless it hangs.
        self._hanging = not self.agent.settle(_IMPATIENCE_SECONDS if self._hanging else _PATIENCE_SECONDS)
        self.clock.advance(wait_ns)
        self._passed()
        self.harness_cpu_ns += time.thread_time_ns() - began
        return epoll.poll(0)
