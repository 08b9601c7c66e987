"""Errors of host memory that its controllers counted (/sys/devices/system/edac/mc)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import Unsupported
from rankscope.probes.sysfs import children, read_number
from rankscope.reading import Group, Priority, ProbeResult, Reading

_NS = 10**9
_FILES = {"ce_count": "edac.corrected_errors", "ue_count": "edac.uncorrected_errors"}


class EdacProbe:
    """Probe of the memory controllers. There are none without a driver for them, as in virtual machines."""

    name = "edac"
    groups: Sequence[Group] = (
        Group("edac", 30 * _NS, 5 * _NS, "counters of rare errors; the kernel log tells each", Priority.LOW),
    )

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._controllers = sys / "devices/system/edac/mc"

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """The counts now. Raises Unsupported without a controller, PermissionDenied, ProbeError."""
        controllers = children(self._controllers, "mc[0-9]*")
        if not controllers:
            raise Unsupported("no memory controller counts errors here", where=str(self._controllers))
        return ProbeResult(
            [
                Reading(metric, count, now_ns, controller.name)
                for controller in controllers
                for name, metric in _FILES.items()
                if (count := read_number(controller / name)) is not None
            ]
        )

    def close(self) -> None:
        """Nothing is held."""
