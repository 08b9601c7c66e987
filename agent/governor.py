"""What watching costs, measured, and rates lowered where it costs more than it may."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankscope.agent.config import BudgetSettings
from rankscope.agent.processes import PROC, process_stat
from rankscope.agent.scheduler import Task
from rankscope.clock import Clock
from rankscope.reading import Event, Reading

_TICKS_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
#: smaps_rollup walks every page: milliseconds a process.
_PSS_PERIOD_NS = 60_000_000_000
#: Starting costs more than running does; rates are judged after that.
_GRACE_NS = 30_000_000_000
_LONGEST_STRETCH = 16
#: Kept at their rate to the last: what they miss is gone for good, or is what the others are judged by.
_KEPT = frozenset({"kernel-log", "nvml"})


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time so far and memory of the agent and its children."""

    cpu_ns: int
    pss_bytes: int | None


class Governor:
    """Call `tick` every few seconds; it measures, and stretches or relaxes the periods of the probes' groups."""

    def __init__(
        self,
        budget: BudgetSettings,
        *,
        clock: Clock,
        proc: Path = PROC,
        own_cpu_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._proc = proc
        self._own_cpu_ns = own_cpu_ns
        self._began_ns = self._last_ns = clock.monotonic_ns()
        # Starting is over by now, and came before the job began.
        self._first_cpu_ns = self._last_cpu_ns = self._cpu_ns()
        self._pss_due_ns = self._began_ns
        #: CPU share of one core since the begin, and the latest memory: what the verdict says watching cost.
        self.cpu_ratio = 0.0
        self.pss_bytes: int | None = None

    def tick(self, tasks: list[Task], *, final: bool = False) -> tuple[list[Reading], list[Event]]:
        """Measure since the last tick and act on it; `final` measures memory whether it is time or not."""
        now = self._clock.monotonic_ns()
        cpu = self._cpu_ns()
        ratio = (cpu - self._last_cpu_ns) / max(1, now - self._last_ns)
        self._last_ns, self._last_cpu_ns = now, cpu
        self.cpu_ratio = (cpu - self._first_cpu_ns) / max(1, now - self._began_ns)
        readings = [Reading("agent.cpu_ratio", ratio, now)]
        if now >= self._pss_due_ns or final:
            self._pss_due_ns = now + _PSS_PERIOD_NS
            self.pss_bytes = self._pss_bytes()
            if self.pss_bytes is not None:
                readings.append(Reading("agent.pss_bytes", float(self.pss_bytes), now))
        if now - self._began_ns < _GRACE_NS:
            return readings, []
        return readings, self._act(ratio, tasks, now)

    def _act(self, ratio: float, tasks: list[Task], now: int) -> list[Event]:
        if ratio > self._budget.cpu_ratio:
            able = [task for task in tasks if task.stretch < _LONGEST_STRETCH and task.reads]
            spare = [task for task in able if task.probe.name not in _KEPT] or able
            if not spare:
                return []
            # The one that costs most a second at its present rate.
            task = max(spare, key=lambda task: task.cpu_ns / task.reads / (task.group.steady_ns * task.stretch))
            task.stretch *= 2
            why = f"the agent takes {ratio:.2%} of a core, it may take {self._budget.cpu_ratio:.2%}"
            return [_changed(task, now, why)]
        if ratio < self._budget.cpu_ratio / 2:
            stretched = [task for task in tasks if task.stretch > 1]
            if stretched:
                task = min(stretched, key=lambda task: task.cpu_ns / max(1, task.reads))
                task.stretch //= 2
                return [_changed(task, now, "there is room in the budget again")]
        return []

    def _children(self) -> list[int]:
        """Living children, by the kernel's own list of each thread's."""
        found: list[int] = []
        for path in (self._proc / "self/task").glob("*/children"):
            try:
                found += [int(word) for word in path.read_text().split()]
            except OSError:
                continue
        return found

    def _cpu_ns(self) -> int:
        ended = os.times()
        total = self._own_cpu_ns() + int((ended.children_user + ended.children_system) * 1e9)
        for pid in self._children():
            stat = process_stat(pid, self._proc)
            if stat is not None:
                total += stat.cpu_ticks * _TICKS_NS
        return total

    def _pss_bytes(self) -> int | None:
        sizes = [_pss(self._proc / str(pid)) for pid in ("self", *self._children())]
        return sum(size for size in sizes if size is not None) if sizes[0] is not None else None


def _pss(process: Path) -> int | None:
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _changed(task: Task, now: int, why: str) -> Event:
    period = task.group.steady_ns * task.stretch
    name = f"{task.probe.name}/{task.group.name}"
    text = f"{name} is read every {period / 1e9:g} s: {why}"
    return Event("governor", now, text, attributes={"probe": name, "period_ns": period})
