"""Counters of a GPU that began anew: seen by its uptime, or by a counter that only falls when all of them do."""

from __future__ import annotations

from collections.abc import Mapping

UPTIME = "gpu.uptime_seconds"
#: The uptime counts whole seconds, and reads may change places: a fall by no more than this is none, s.
_SLACK_SECONDS = 2.0
#: nvml.h counts these since the driver was loaded; none wraps within a board's life. PCIe and NVLink bytes may.
_SINCE_LOAD = (
    "gpu.energy_joules",
    "gpu.throttle_sw_power_ns",
    "gpu.throttle_sw_thermal_ns",
    "gpu.throttle_hw_thermal_ns",
    "gpu.ecc_corrected_volatile",
    "gpu.ecc_uncorrected_volatile",
)
_WATCHED = frozenset((UPTIME, *_SINCE_LOAD))


class ResetWatch:
    """Remembers the counters of one GPU."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def note(self, values: Mapping[str, float]) -> str | None:
        """Take one read; the name of the metric by which a reset is seen, once a reset."""
        if _WATCHED.isdisjoint(values):
            return None
        fallen: str | None = None
        for metric in (UPTIME, *_SINCE_LOAD):
            value = values.get(metric)
            if value is None:
                continue
            slack = _SLACK_SECONDS if metric == UPTIME else 0.0
            if value < self._last.get(metric, value) - slack:
                fallen = fallen or metric
        if fallen is not None:
            # Whatever else was remembered is from before.
            self._last.clear()
        self._last.update((metric, values[metric]) for metric in (UPTIME, *_SINCE_LOAD) if metric in values)
        return fallen
