"""CPU time of the whole host, threads that want a core or wait for I/O, and context switches (/proc/stat)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rankscope.probes.held_file import HeldFile
from rankscope.probes.numbers import whole
from rankscope.reading import Group, ProbeResult, readings_of

_NS = 10**9
_SINGLE = {
    "procs_running": "host.load_runnable",
    "procs_blocked": "host.threads_blocked",
    "ctxt": "host.context_switches",
}


def parse(text: str, ticks_per_second: int) -> dict[str, float]:
    """Metric -> value of a /proc/stat; what is not there is left out. Never raises.

    Columns of "cpu" (proc(5)): user nice system idle iowait irq softirq steal guest guest_nice; guest time is
    already in user time.
    """
    values: dict[str, float] = {}
    cores = 0
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name == "cpu":
            ticks = [whole(column) for column in rest.split()[:8]]
            if len(ticks) < 8 or None in ticks:
                continue
            user, nice, system, _, iowait, irq, softirq, steal = cast(list[int], ticks)
            busy = user + nice + system + irq + softirq
            values["host.cpu_busy_ns"] = busy * _NS // ticks_per_second
            values["host.cpu_iowait_ns"] = iowait * _NS // ticks_per_second
            values["host.cpu_steal_ns"] = steal * _NS // ticks_per_second
        elif name.startswith("cpu"):
            cores += 1
        elif name in _SINGLE and (number := whole(rest)) is not None:
            values[_SINGLE[name]] = number
    if cores:
        values["host.cpu_count"] = cores
    return values


class CpuProbe:
    """Probe of the host's CPU time."""

    name = "cpu"
    groups: Sequence[Group] = (
        Group("cpu", _NS, _NS // 5, "contention shows within a step; counters lose nothing in between"),
    )

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._file = HeldFile(proc / "stat")
        self._ticks_per_second = os.sysconf("SC_CLK_TCK")

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """The counters now. Raises ProbeError."""
        values = parse(self._file.read(), self._ticks_per_second)
        return ProbeResult(readings_of(values, now_ns))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
