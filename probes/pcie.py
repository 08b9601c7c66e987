"""PCIe devices: errors that Advanced Error Reporting counted, and links narrower or slower than they are made for.

GPUs, network adapters and NVMe disks are told always; bridges, of which a host has a hundred, once they count an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import Absent
from rankscope.probes.numbers import whole
from rankscope.probes.sysfs import children, read_text
from rankscope.reading import Group, Priority, ProbeResult, Reading

_NS = 10**9
#: Most devices that are asked.
MAX_DEVICES = 512
_AER = {
    "aer_dev_correctable": "pcie.correctable_errors",
    "aer_dev_nonfatal": "pcie.nonfatal_errors",
    "aer_dev_fatal": "pcie.fatal_errors",
}
#: Classes (PCI Code and ID Assignment Specification): network, display, accelerator, NVMe; bridge.
_TOLD = ("0x02", "0x03", "0x12", "0x0108")
_BRIDGE = "0x0604"
_SPEED = re.compile(r"(\d{1,4}(?:\.\d)?) GT/s")
_TOTAL = re.compile(r"^TOTAL_ERR_\w{1,16} (\d{1,20})$", re.MULTILINE)
_ONE = re.compile(r"^\w{1,40} (\d{1,20})$", re.MULTILINE)


def parse_aer(text: str) -> int | None:
    """Errors of an aer_dev_* file in sum, or None. Never raises."""
    if (total := _TOTAL.search(text)) is not None:
        return int(total[1])
    counts = [int(match[1]) for match in _ONE.finditer(text)]
    return sum(counts) if counts else None


def parse_speed(text: str) -> float | None:
    """Transfers a second in billions of a *_link_speed file ("16.0 GT/s PCIe"), or None. Never raises."""
    match = _SPEED.match(text)
    return None if match is None else float(match[1])


def parse_lanes(text: str) -> int | None:
    """Lanes of a *_link_width file, or None: 0 and 255 mean that there is no link. Never raises."""
    lanes = whole(text)
    return lanes if lanes is not None and 0 < lanes <= 32 else None


class PcieProbe:
    """Probe of PCIe devices."""

    name = "pcie"
    groups: Sequence[Group] = (
        Group("errors", 30 * _NS, 5 * _NS, "counters; the kernel log tells each burst", Priority.LOW),
        Group("links", 30 * _NS, 5 * _NS, "a link that lost lanes stays so; GPUs slow theirs when idle", Priority.LOW),
    )

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._devices = sys / "bus/pci/devices"
        self._known: tuple[tuple[Path, bool], ...] = ()
        self._looked_ns: int | None = None

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """One group now. Raises Absent where there is no PCI bus, PermissionDenied, ProbeError."""
        readings: list[Reading] = []
        for device, is_bridge in self._found(now_ns):
            values = _errors(device) if group == "errors" else _link(device)
            # A device that hangs on nothing tells no link; a bridge is told for its errors alone.
            if is_bridge and (group == "links" or not any(values.values())):
                continue
            readings += [Reading(metric, value, now_ns, device.name) for metric, value in values.items()]
        return ProbeResult(readings)

    def close(self) -> None:
        """Nothing is held."""

    def _found(self, now_ns: int) -> tuple[tuple[Path, bool], ...]:
        """Devices that are told and whether each is a bridge, looked for once in five minutes."""
        if self._looked_ns is None or now_ns - self._looked_ns >= 300 * _NS:
            devices = children(self._devices)[:MAX_DEVICES]
            if not devices:
                raise Absent("no PCI device here", where=str(self._devices))
            self._looked_ns = now_ns
            classes = [(device, read_text(device / "class") or "") for device in devices]
            self._known = tuple(
                (device, kind.startswith(_BRIDGE)) for device, kind in classes if kind.startswith((*_TOLD, _BRIDGE))
            )
        return self._known


def _errors(device: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, metric in _AER.items():
        text = read_text(device / name)
        if text is not None and (count := parse_aer(text)) is not None:
            values[metric] = count
    return values


def _link(device: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for which, suffix in (("current", ""), ("max", "_max")):
        speed = parse_speed(read_text(device / f"{which}_link_speed") or "")
        lanes = parse_lanes(read_text(device / f"{which}_link_width") or "")
        if speed is not None:
            values[f"pcie.link_gt_per_second{suffix}"] = speed
        if lanes is not None:
            values[f"pcie.link_lanes{suffix}"] = lanes
    return values
