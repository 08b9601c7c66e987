"""What makes the agent look closer, and at which devices: a pure function of what the probes said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rankscope.reading import Event, Reading

#: Clock event reasons that ask for detail: hardware slowdown, software and hardware thermal slowdown, power brake
#: (nvml.h, nvmlClocksEventReason*).
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
#: Events that say a device is in trouble.
HARDWARE_EVENTS = frozenset({"xid", "sxid", "gpu-lost", "gpu-fallen-off", "nvlink-error"})


@dataclass(frozen=True, slots=True)
class Trigger:
    """Why, and which devices ("" is the host itself)."""

    reason: str
    devices: frozenset[str]


def triggers_of(readings: Iterable[Reading], events: Iterable[Event], gpus: Sequence[str]) -> Iterator[Trigger]:
    """What the readings and events give reason to look at. An event without a known GPU concerns all of `gpus`."""
    throttled = frozenset(reading.device for reading in readings if _is_throttled(reading))
    if throttled:
        yield Trigger("throttled", throttled)
    for event in events:
        if event.kind in HARDWARE_EVENTS and not event.attributes.get("history"):
            yield Trigger(event.kind, frozenset({event.device} if event.device in gpus else {*gpus, ""}))


def _is_throttled(reading: Reading) -> bool:
    return reading.metric == "gpu.clock_event_reasons" and bool(int(reading.value) & THROTTLED)
