"""Turns records of the kernel log into events: names the GPU, joins what two lines say of one kill, folds storms."""

from __future__ import annotations

from collections.abc import Callable

from rankscope.probes.kernel_log_lines import notice, oom_context, uuid_announced
from rankscope.probes.kernel_log_record import Attributes, KernelRecord, Notice
from rankscope.reading import Event

#: Events that differ in nothing but their text are told one by one up to here in one read, then counted.
MAX_ALIKE = 8
#: Longest text of one event.
MAX_EVENT_TEXT = 1024
#: Kills whose first line was seen and whose second was not yet.
_MAX_PENDING = 64
_OF_GPUS = frozenset({"xid", "gpu-fallen-off", "gpu-init-failed", "nvlink-error"})
#: Kind -> attribute that names the device.
_NAMED_BY = {
    "sxid": "switch",
    "disk-error": "disk",
    "network-link": "interface",
    "memory-error": "controller",
    "storage-server": "server",
}
#: Attributes in which alike events may not differ.
_TELLING = ("number", "severity", "state", "lockup", "scope", "pid", "unit", "link", "cpu", "history")


class EventMaker:
    """Remembers what earlier lines said that later lines need."""

    def __init__(self, uuid_of: Callable[[str], str | None]) -> None:
        self._uuid_of = uuid_of
        self._announced: dict[str, str] = {}
        self._kills: dict[int, Attributes] = {}

    def event(self, record: KernelRecord, time_ns: int, *, history: bool) -> Event | None:
        """What one record reports, or None."""
        if (announced := uuid_announced(record.text)) is not None:
            self._announced[announced[0]] = announced[1]
        if (context := oom_context(record.text)) is not None:
            if len(self._kills) >= _MAX_PENDING:
                self._kills.pop(next(iter(self._kills)))
            self._kills[context[0]] = context[1]
            return None
        found = notice(record.text)
        if found is None:
            return None
        attributes = dict(found.attributes)
        if found.kind == "oom-kill" and isinstance(pid := attributes["pid"], int):
            attributes |= self._kills.pop(pid, {})
        device = self._device(found, attributes)
        if history:
            attributes["history"] = 1
        return Event(found.kind, time_ns, record.text[:MAX_EVENT_TEXT], found.severity, device, attributes=attributes)

    def _device(self, found: Notice, attributes: Attributes) -> str:
        """Names the device, and adds to the attributes where it is."""
        if found.pci is not None:
            attributes["pci"] = found.pci
        if found.kind in ("xid", "gpu-fallen-off"):
            attributes |= {"pci": found.pci, "source": "kernel-log"}
        if found.kind in _NAMED_BY:
            return str(attributes[_NAMED_BY[found.kind]])
        if found.pci is None:
            return ""
        slot = found.pci.partition(".")[0]
        gpu = self._uuid_of(slot) or self._announced.get(slot, "")
        return gpu if gpu or found.kind in _OF_GPUS else found.pci


class Folded:
    """The events of one read. Storms of alike events cost a bounded number of them, and how many there were is kept."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._alike: dict[tuple[object, ...], tuple[int, Event]] = {}

    def add(self, event: Event) -> None:
        """Add an event, or count it onto the last that was like it."""
        key = (event.kind, event.device, *(event.attributes.get(name) for name in _TELLING))
        count, last = self._alike.get(key, (0, event))
        if count < MAX_ALIKE:
            self._alike[key] = (count + 1, event)
            self.events.append(event)
            return
        repeated = last.attributes.get("repeated", 0)
        last.attributes["repeated"] = repeated + 1 if isinstance(repeated, int) else 1
