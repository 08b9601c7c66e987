"""Pressure stall information: time in which tasks waited for CPU, memory or I/O (/proc/pressure)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import ProbeError
from rankscope.probes.held_file import HeldFile, outcome_of
from rankscope.reading import Group, Outcome, ProbeResult, Reading

_NS = 10**9
_LINE = re.compile(r"^(some|full) [^\n]*?\btotal=(\d{1,19})", re.MULTILINE)

#: (resource, kind) -> metric. "full" of the CPU means nothing for a whole host (kernel: Documentation/accounting/psi).
_METRICS = {
    ("cpu", "some"): "host.pressure_cpu_some_ns",
    ("memory", "some"): "host.pressure_memory_some_ns",
    ("memory", "full"): "host.pressure_memory_full_ns",
    ("io", "some"): "host.pressure_io_some_ns",
    ("io", "full"): "host.pressure_io_full_ns",
}
RESOURCES = ("cpu", "memory", "io")


def parse(text: str) -> dict[str, int]:
    """ "some" and "full" -> total stalled time in ns. Never raises."""
    return {match[1]: int(match[2]) * 1000 for match in _LINE.finditer(text)}


class PressureProbe:
    """Probe of the host's pressure files; a resource the kernel does not offer is said once."""

    name = "pressure"
    groups: Sequence[Group] = (Group("pressure", _NS, _NS // 5, "totals: a read loses only when in the period it was"),)

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._files = {resource: HeldFile(proc / "pressure" / resource) for resource in RESOURCES}
        self._missing: set[str] = set()

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """The totals now."""
        readings: list[Reading] = []
        outcomes: list[tuple[str, Outcome, str]] = []
        for resource, file in self._files.items():
            if resource in self._missing:
                continue
            try:
                totals = parse(file.read())
            except ProbeError as error:
                self._missing.add(resource)
                outcomes.append(("", outcome_of(error), str(error)))
                continue
            for kind, total in totals.items():
                if (metric := _METRICS.get((resource, kind))) is not None:
                    readings.append(Reading(metric, total, now_ns))
        return ProbeResult(readings, (), outcomes)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
