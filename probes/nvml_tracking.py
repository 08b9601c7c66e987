"""What the agent keeps of one GPU, and how an answer of the helper becomes readings and events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rankscope.probes.nvml_api import GpuIdentity
from rankscope.probes.nvml_messages import Message
from rankscope.probes.nvml_resets import UPTIME, ResetWatch
from rankscope.reading import Event, Outcome, ProbeResult, Reading, Severity, readings_of

#: With which group the driver's time is told: once a second is often enough.
_ACCOUNTING_GROUP = "counters"
_SEVERITIES = {"fatal": Severity.CRITICAL, "recoverable": Severity.WARNING}


@dataclass(slots=True)
class Gathered:
    """What one read of the probe will return."""

    readings: list[Reading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    outcomes: list[tuple[str, Outcome, str]] = field(default_factory=list)
    #: CPU time of the helper, and time of the driver by its own account.
    helper_cpu_ns: int = 0
    driver_ns: int = 0
    #: By group, what belongs to the groups that are read together; what belongs to none of them stands above.
    of: dict[str, Gathered] = field(default_factory=dict)

    def result(self) -> ProbeResult:
        """As a probe returns it."""
        return ProbeResult(
            self.readings,
            self.events,
            self.outcomes,
            helper_cpu_ns=self.helper_cpu_ns,
            driver_ns=self.driver_ns,
        )

    def results(self, groups: Sequence[str]) -> list[ProbeResult]:
        """By group, in their order; the first takes what belongs to none of them."""
        first = self.of[groups[0]]
        first.readings += self.readings
        first.events += self.events
        first.outcomes += self.outcomes
        first.helper_cpu_ns += self.helper_cpu_ns
        first.driver_ns += self.driver_ns
        return [self.of[group].result() for group in groups]


@dataclass(slots=True)
class TrackedGpu:
    """One GPU as the agent knows it, over helpers that come and go."""

    identity: GpuIdentity
    #: Wall time of the newest sample had of each of the driver's sample buffers, us.
    seen_us: list[int]
    #: Group -> when its unanswered read was asked for.
    awaited: dict[str, int] = field(default_factory=dict)
    stalled: bool = False
    lost: bool = False
    #: What the driver says its field values took so far.
    driver_ns: int = 0
    overruns: int = 0
    resets: ResetWatch = field(default_factory=ResetWatch)
    #: Device (the GPU or a MIG instance of it) -> what is fixed of it, as last told.
    facts: dict[str, dict[str, str | int | float | None]] = field(default_factory=dict)

    def take(self, gathered: Gathered, message: Message, driver: str | None) -> bool:
        """Add what one sample message holds. True where it shows that the GPU's counters began anew."""
        uuid, time_ns = self.identity.uuid, message["time_ns"]
        values: dict[str, float] = message["values"]
        readings = gathered.readings
        readings += readings_of(values, time_ns, uuid)
        for device, own in message.get("parts", {}).items():
            readings += readings_of(own, time_ns, device)
        for metric, (times, points) in message.get("series", {}).items():
            readings += (Reading(metric, value, at, uuid) for at, value in zip(times, points, strict=True))
        gathered.helper_cpu_ns += message["cpu_ns"]
        took_ns = message.get("latency_us", 0) * 1000
        gathered.driver_ns += took_ns
        self.driver_ns += took_ns
        if message["group"] == _ACCOUNTING_GROUP:
            readings.append(Reading("gpu.driver_latency_ns", float(self.driver_ns), time_ns, uuid))
        if message.get("seen"):
            self.seen_us = message["seen"]
            self.overruns += message.get("overruns", 0)
            readings.append(Reading("gpu.samples_lost", float(self.overruns), time_ns, uuid))
        for device, facts in message.get("facts", {}).items():
            self.describe(gathered, device, facts, driver, time_ns)
        fallen = self.resets.note(values)
        if fallen is not None:
            gathered.events.append(self._reset(fallen, values.get(UPTIME), time_ns))
        return fallen is not None

    def describe(
        self,
        gathered: Gathered,
        device: str,
        facts: dict[str, str | int | float | None],
        driver: str | None,
        time_ns: int,
    ) -> None:
        """An event with what is fixed of the GPU or of a MIG instance of it, where that is new or has changed."""
        known = self.facts.get(device, {})
        if device == self.identity.uuid:
            who = self.identity
            known = known | {"name": who.name, "index": who.index, "pci": who.pci, "driver": driver}
        told = known | facts
        if self.facts.get(device) != told:
            self.facts[device] = told
            text = f"{device} is {told.get('name') or 'a GPU'}"
            gathered.events.append(Event("gpu-described", time_ns, text, device=device, attributes=told))

    def _reset(self, metric: str, uptime: float | None, time_ns: int) -> Event:
        text = f"GPU {self.identity.index} was reset, or its driver reloaded: its counters began anew ({metric} fell)"
        attributes: dict[str, str | int | float | None] = {"uptime_seconds": uptime, "metric": metric}
        return Event("gpu-counters-reset", time_ns, text, Severity.WARNING, self.identity.uuid, attributes=attributes)


def gpu_lost_event(device: str, text: str, source: str, pci: str | None, time_ns: int) -> Event:
    """A GPU is lost, needs a reset, or gives no handle."""
    return Event("gpu-lost", time_ns, text, Severity.CRITICAL, device, attributes={"source": source, "pci": pci})


def xid_event(message: Message) -> Event:
    """An Xid that NVML reported."""
    attributes = {"number": message["number"], "message": None, "source": "nvml", "pci": message["pci"]}
    # The MIG instance, where the driver names one.
    attributes |= {name: value for name, value in message["attributes"].items() if value is not None}
    text = f"Xid {message['number']} reported by NVML"
    return Event("xid", message["time_ns"], text, Severity.WARNING, message["uuid"], attributes=attributes)


def gpu_event(message: Message) -> Event:
    """Another event that NVML reported: a structured one, or an event bit by its name."""
    severity = _SEVERITIES.get(message["attributes"].get("severity", ""), Severity.INFO)
    attributes = {"event": message["name"], "pci": message["pci"], **message["attributes"]}
    text = f"the driver reports {message['name']}"
    return Event("gpu-event", message["time_ns"], text, severity, message["uuid"], attributes=attributes)
