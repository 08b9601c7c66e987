"""One record of the kernel log, and what a line can report. Pure functions of text that raise for no text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rankscope.reading import Severity

Attributes = dict[str, str | int | float | None]

#: Longest text of one attribute: a line is the driver's to choose, a recording is bounded.
MAX_TEXT = 400


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

#: A PCI address up to the device; the function, where there is one, is a fourth group.
PCI = r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-9a-fA-F]{1,4}))?"
_ADDRESS = re.compile(rf"(?<![0-9a-fA-F]){PCI}")


def parse(line: bytes) -> KernelRecord | None:
    """One record "prio,seq,us,flags;text", or None for a line that is none (a dictionary line, noise)."""
    match = _RECORD.match(line)
    if match is None:
        return None
    text = _ESCAPE.sub(lambda escape: bytes((int(escape[1], 16),)), match[4])
    return KernelRecord(int(match[1]), int(match[2]), int(match[3]), text.decode("utf-8", "replace"))


def address(text: str) -> str | None:
    """The first PCI address in a text as "dddd:bb:dd", or None."""
    match = _ADDRESS.search(text)
    return None if match is None else joined(match[1], match[2], match[3])


def function_address(text: str) -> str | None:
    """The first PCI address in a text as "dddd:bb:dd.f" (f is 0 where it is not said), or None."""
    match = _ADDRESS.search(text)
    return None if match is None else f"{joined(match[1], match[2], match[3])}.{(match[4] or '0').lower()}"


def joined(domain: str, bus: str, device: str) -> str:
    """ "dddd:bb:dd" of its hexadecimal parts."""
    return f"{int(domain, 16):04x}:{bus.lower()}:{device.lower()}"


def bounded(text: str | None) -> str | None:
    """A text of at most MAX_TEXT characters, or None for an empty one."""
    return (text.strip()[:MAX_TEXT] or None) if text else None
