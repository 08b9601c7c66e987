"""What makes the agent look closer, and at which devices, told from what the probes said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rankscope.gpu_device import part_of
from rankscope.metrics import METRICS
from rankscope.metrics_nvlink import NVLINK_ERRORS
from rankscope.reading import Event, Reading

#: Clock event reasons that ask for detail: hardware slowdown, software and hardware thermal slowdown, power brake
#: (nvml.h, nvmlClocksEventReason*).
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
#: Events that say a device is in trouble.
HARDWARE_EVENTS = frozenset({"xid", "sxid", "gpu-lost", "gpu-fallen-off", "nvlink-error", "pcie-error"})
#: Counters of link errors: when one grows, its device is looked at. Symbols that were repaired are every link's daily
#: bread, and not among them.
LINK_ERRORS = frozenset(
    {f"nvlink.{name}" for name in NVLINK_ERRORS if name != "symbol_errors"}
    | {name for name, metric in METRICS.items() if metric.otel.startswith("rankscope.ib.fault.")}
    | {"gpu.nvlink_ecc_errors", "gpu.pcie_replays", "gpu.pcie_non_fatal_errors", "gpu.pcie_fatal_errors"}
) - {"ib.symbol_errors"}


@dataclass(frozen=True, slots=True)
class Trigger:
    """Why, and which devices ("" is the host itself)."""

    reason: str
    devices: frozenset[str]


class Triggers:
    """Remembers how far the counters of link errors had come."""

    def __init__(self) -> None:
        self._errors: dict[tuple[str, str], float] = {}

    def of(self, readings: Iterable[Reading], events: Iterable[Event], gpus: Sequence[str]) -> Iterator[Trigger]:
        """What the readings and events give reason to look at; an event without a known GPU concerns all of `gpus`."""
        throttled: set[str] = set()
        linked: set[str] = set()
        for reading in readings:
            if reading.metric == "gpu.clock_event_reasons":
                if int(reading.value) & THROTTLED:
                    throttled.add(reading.device)
            elif reading.metric in LINK_ERRORS:
                key = (reading.metric, reading.device)
                if reading.value > self._errors.setdefault(key, reading.value):
                    # A port of the network is the host's; an NVLink its GPU's.
                    uuid = part_of(reading.device).uuid
                    linked.add(uuid if uuid in gpus else "")
                self._errors[key] = reading.value
        if throttled:
            yield Trigger("throttled", frozenset(throttled))
        if linked:
            yield Trigger("link-error", frozenset(linked))
        for event in events:
            if event.kind in HARDWARE_EVENTS and not event.attributes.get("history"):
                uuid = part_of(event.device).uuid
                yield Trigger(event.kind, frozenset({uuid} if uuid in gpus else {*gpus, ""}))
