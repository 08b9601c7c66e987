"""What kernel log lines say about GPUs, memory and stuck tasks. Pure functions of text that raise for no text.

The forms of Xid lines are those the open GPU kernel modules print (595.45) and older ones found in published reports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rankscope.reading import Severity

Attributes = dict[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """One record of /dev/kmsg. `time_us` is the kernel's own clock: monotonic since boot, but never slewed by NTP."""

    priority: int
    sequence: int
    time_us: int
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """What a line reports: a kind of rankscope.reading.EVENT_KINDS, where (PCI "dddd:bb:dd"), and its attributes."""

    kind: str
    severity: Severity
    pci: str | None = None
    attributes: Attributes = field(default_factory=dict)


_RECORD = re.compile(rb"(\d{1,9}),(\d{1,19}),(\d{1,19}),[^;]*;([^\n]*)")
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")

_PCI = r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-9a-fA-F]{1,4})?"
_ADDRESS = re.compile(rf"(?<![0-9a-fA-F]){_PCI}")
_XID = re.compile(
    r"NVRM:(?: GPU ?\d{1,3}:?)? Xid \((?:PCI:)?(?P<where>[^)]*)\): (?P<number>\d{1,9})(?:, (?P<rest>.*))?", re.DOTALL
)
_PROCESS = re.compile(
    r"pid=(?:'?<unknown>'?|(?P<pid>\d{1,10}))(?:, name=(?P<name>.*?))?(?:, (?P<message>.*))?\Z", re.DOTALL
)
_PREVIOUS = re.compile(r"caused by previous Xid (\d{1,9})")
_INSTANCE = re.compile(r"GPU-I:(\d{1,4})")
_SWITCH = re.compile(
    r"nvidia-(?P<switch>nvswitch\d{1,3}):? SXid \((?:PCI:)?(?P<where>[^)]*)\): (?P<number>\d{1,9}), "
    r"(?:(?P<fatal>Fatal|Non-fatal), )?(?:Link (?P<link>\d{1,3}) )?(?P<message>.*)",
    re.DOTALL,
)
_UUID = re.compile(rf"NVRM: GPU at (?:PCI:)?{_PCI}: (?P<uuid>GPU-[0-9a-fA-F-]{{36}})(?![0-9a-fA-F-])")
_KILLED = re.compile(r"ut of memory: Kill(?:ed)? process (?P<pid>\d{1,10}) \((?P<process>.*?)\)")
_BLOCKED = re.compile(r"task (?P<process>.+):(?P<pid>\d{1,10}) blocked for more than (?P<seconds>\d{1,9}) seconds")
# Hex words that follow a switch error are its registers, not another error.
_REGISTERS = "Data {"


def parse(line: bytes) -> KernelRecord | None:
    """One record "prio,seq,us,flags;text", or None for a line that is none (a dictionary line, noise)."""
    match = _RECORD.match(line)
    if match is None:
        return None
    text = _ESCAPE.sub(lambda escape: bytes((int(escape[1], 16),)), match[4])
    return KernelRecord(int(match[1]), int(match[2]), int(match[3]), text.decode("utf-8", "replace"))


def notice(text: str) -> Notice | None:
    """What one record reports, or None."""
    if "Xid" in text:
        return _switch_error(text) or _xid(text)
    if "NVRM" in text and "fallen off the bus" in text:
        return Notice("gpu-fallen-off", Severity.CRITICAL, address(text))
    if (killed := _KILLED.search(text)) is not None:
        process: Attributes = {"pid": int(killed["pid"]), "process": killed["process"]}
        return Notice("oom-kill", Severity.WARNING, None, process)
    if (blocked := _BLOCKED.search(text)) is not None:
        process = {"pid": int(blocked["pid"]), "process": blocked["process"]}
        return Notice("hung-task", Severity.WARNING, None, process | {"seconds": int(blocked["seconds"])})
    return None


def uuid_announced(text: str) -> tuple[str, str] | None:
    """(PCI address, UUID) where the driver names a GPU, as it does before that GPU's first Xid."""
    match = _UUID.search(text)
    return None if match is None else (_address(match[1], match[2], match[3]), match["uuid"])


def address(text: str) -> str | None:
    """The first PCI address in a text as "dddd:bb:dd", or None."""
    match = _ADDRESS.search(text)
    return None if match is None else _address(match[1], match[2], match[3])


def _address(domain: str, bus: str, device: str) -> str:
    return f"{int(domain, 16):04x}:{bus.lower()}:{device.lower()}"


def _xid(text: str) -> Notice | None:
    match = _XID.search(text)
    if match is None:
        return None
    rest = match["rest"] or ""
    pid: int | None = None
    name: str | None = None
    message: str | None = rest
    if (process := _PROCESS.match(rest)) is not None:
        pid = int(process["pid"]) if process["pid"] else None
        name = None if process["name"] in (None, "<unknown>") else process["name"]
        message = process["message"]
    attributes: Attributes = {
        "number": int(match["number"]),
        "message": message or None,
        "pid": pid,
        "process": name,
    }
    if (previous := _PREVIOUS.search(rest)) is not None:
        attributes["previous"] = int(previous[1])
    if (instance := _INSTANCE.search(match["where"])) is not None:
        attributes["gpu_instance"] = int(instance[1])
    return Notice("xid", Severity.WARNING, address(match["where"]), attributes)


def _switch_error(text: str) -> Notice | None:
    """An error of an NVSwitch: its own kind, never an error of a GPU."""
    match = _SWITCH.search(text)
    if match is None or match["message"].startswith(_REGISTERS):
        return None
    attributes: Attributes = {
        "number": int(match["number"]),
        "message": match["message"],
        "switch": match["switch"],
        "fatal": None if match["fatal"] is None else int(match["fatal"] == "Fatal"),
        "link": None if match["link"] is None else int(match["link"]),
    }
    return Notice("sxid", Severity.WARNING, address(match["where"]), attributes)
