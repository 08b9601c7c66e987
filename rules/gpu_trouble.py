"""GPUs that broke within the window: lost, or with an uncorrectable memory error. History is not an event."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.reading import Event
from rankscope.rules.evidence import Observation, unseen
from rankscope.rules.telemetry import Telemetry
from rankscope.rules.xids import XIDS
from rankscope.window import Window

_NS = 1_000_000_000
#: A GPU that answers for this long after it was called lost is not lost.
_ALIVE_NS = 3 * _NS
#: A GPU whose readings end this long before its neighbours' stopped answering.
_SILENT_NS = 5 * _NS
#: Read of every GPU at the highest rate.
_PULSE = ("gpu.sm_clock_mhz", "gpu.power_watts", "gpu.temperature_celsius", "gpu.utilization_ratio")
UNCORRECTED = "gpu.ecc_uncorrected_volatile"


def events_of(window: Window, uuid: str) -> list[Event]:
    """Events of a GPU that happened in the window. What a log held from before does not count."""
    return [
        event
        for event in window.events
        if event.device == uuid and event.time_ns >= window.begin_ns and not event.attributes.get("history")
    ]


def _xids(events: Sequence[Event], meaning: str) -> list[Event]:
    found = []
    for event in events:
        number = event.attributes.get("number")
        if event.kind == "xid" and isinstance(number, int) and number in XIDS:
            entry = XIDS[number]
            if meaning in entry.means and not entry.derivative:
                found.append(event)
    return found


def _last_pulse(telemetry: Telemetry, host: str, uuid: str) -> int | None:
    ends = [end for metric in _PULSE if (end := telemetry.ends(host, metric, uuid)) is not None]
    return max(ends) if ends else None


def off_bus(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """The GPU is lost: said by NVML, by the kernel with or without an Xid, or by its silence."""
    events = events_of(window, uuid)
    lost = [event for event in events if event.kind in ("gpu-lost", "gpu-fallen-off")]
    told = [*lost, *_xids(events, "off-bus")]
    last = _last_pulse(telemetry, host, uuid)
    neighbours = [_last_pulse(telemetry, host, other) for other in window.gpus.get(host, ()) if other != uuid]
    others = max((end for end in neighbours if end is not None), default=None)
    if told:
        first = min(told, key=lambda event: event.time_ns)
        alive = last is not None and last > max(event.time_ns for event in told) + _ALIVE_NS
        what = "; ".join(dict.fromkeys(event.text for event in told))
        return Observation(0.1 if alive else 1.0, what + (", but it still answers" if alive else ""), first.kind)
    if last is None:
        return unseen(f"no readings of {uuid}")
    if others is not None and others - last > _SILENT_NS:
        quiet = (others - last) / _NS
        return Observation(0.7, f"no reading of the GPU in the last {quiet:.0f} s, its neighbours answer", "silent")
    return Observation(0.0, "the GPU answers, and no one says it is lost")


def ecc(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """An uncorrectable memory error: the volatile counter moved, or an Xid says so. Lifetime counts are history."""
    told = _xids(events_of(window, uuid), "ecc")
    moved = telemetry.growth(host, UNCORRECTED, uuid, ((window.begin_ns, max(window.end_ns, window.begin_ns + 1)),))
    said = "; ".join(dict.fromkeys(event.text for event in told))
    if moved is not None and moved >= 0.5:
        what = f"{moved:.0f} uncorrectable memory errors in the window" + (f"; {said}" if said else "")
        return Observation(1.0, what, round(moved))
    if told:
        read = telemetry.ends(host, UNCORRECTED, uuid)
        # A counter read after the Xid that did not move contradicts it; one that was not read does not.
        settled = moved is not None and read is not None and read > max(event.time_ns for event in told) + _ALIVE_NS
        return Observation(0.3 if settled else 0.8, said + (", but no counter moved" if settled else ""))
    if moved is None:
        return unseen(f"no volatile ECC counters of {uuid}")
    return Observation(0.0, "no uncorrectable memory error in the window", 0)
