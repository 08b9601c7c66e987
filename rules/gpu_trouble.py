"""GPUs that broke within the window: lost, with memory errors, or with an Xid that names its cause.

History is not an event, and a root comes before what follows from it: the first Xid that is no derivative speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from rankscope.reading import Event
from rankscope.rules.evidence import Observation, graded, unseen
from rankscope.rules.telemetry import Telemetry
from rankscope.rules.xids import CATALOGUE, XIDS, Xid
from rankscope.window import Window

_NS = 1_000_000_000
#: A GPU that answers for this long after it was called lost is not lost.
_ALIVE_NS = 3 * _NS
#: A GPU whose readings end this long before its neighbours' stopped answering.
_SILENT_NS = 5 * _NS
#: Read of every GPU at the highest rate.
_PULSE = ("gpu.sm_clock_mhz", "gpu.power_watts", "gpu.temperature_celsius", "gpu.utilization_ratio")
UNCORRECTED = "gpu.ecc_uncorrected_volatile"
#: Corrected errors a second from which on a rate is worth an eye.
_CORRECTED = (0.5, 5.0)
_ECC = frozenset({48, 140, 171, 172})
#: Xids that say which class an end is of, by family, and how surely: less where NVIDIA gives no workflow of its own,
#: but sends the reader to the application first (11, 25, 69), or to the one of another number (108).
_NAMED: Mapping[str, Mapping[int, float]] = {
    "contained": {94: 1.0, 95: 1.0},
    "engine-exception": {13: 1.0, 11: 0.7, 25: 0.7, 69: 0.7},
    "page-fault": {31: 1.0},
    "nvlink-down": {74: 1.0},
    "fabric": dict.fromkeys((144, 145, 146, 147, 148, 149, 150, 155), 1.0),
    "link-training": {136: 1.0},
    "peer-access": {137: 1.0, 108: 0.7},
    "board": dict.fromkeys((121, 122, 123, 124, 125), 1.0),
}
#: A processor or unit inside failed or does not answer, and NVIDIA asks for a reset.
_FIRMWARE = frozenset({46, 61, 62, 109, 110, 119, 120, 143, 158})
_REMAP_FAILED = 64
#: No spare for a faulty part: work may go on until the fault shows again, so that it is no reason of an end.
_RETIREMENT_FAILED = 157
_RETIREMENT_PENDING = 156
_CORRECTED_STORM = 92
_AUXILIARY_POWER = 54
#: Xids that are evidence for a class of their own; of the others only the catalogue speaks.
CLASSED: Mapping[str, frozenset[int]] = {
    "gpu-off-bus": frozenset({79}),
    "gpu-ecc-uncorrectable": _ECC,
    "gpu-row-remap-failed": frozenset({_REMAP_FAILED, _RETIREMENT_FAILED}),
    "gpu-row-remap-pending": frozenset({_RETIREMENT_PENDING}),
    "gpu-ecc-corrected-storm": frozenset({_CORRECTED_STORM}),
    "gpu-firmware-hang": _FIRMWARE,
    "gpu-power-brake": frozenset({_AUXILIARY_POWER}),
    "gpu-ecc-contained": frozenset(_NAMED["contained"]),
    "gpu-engine-exception": frozenset(_NAMED["engine-exception"]),
    "gpu-page-fault": frozenset(_NAMED["page-fault"]),
    "nvlink-down": frozenset(_NAMED["nvlink-down"]),
    "gpu-fabric-error": frozenset(_NAMED["fabric"]),
    "nvlink-training-failed": frozenset(_NAMED["link-training"]),
    "gpu-peer-access-refused": frozenset(_NAMED["peer-access"]),
    "gpu-board-error": frozenset(_NAMED["board"]),
}
_ALL_CLASSED = frozenset().union(*CLASSED.values())

Look = Callable[[Window, Telemetry, str, str], Observation]


def _numbered(events: Sequence[Event], numbers: Collection[object]) -> list[Event]:
    return [event for event in events if event.kind == "xid" and event.attributes.get("number") in numbers]


def _xids(events: Sequence[Event], meaning: str) -> list[Event]:
    found = []
    for event in events:
        number = event.attributes.get("number")
        if event.kind == "xid" and isinstance(number, int) and number in XIDS:
            entry = XIDS[number]
            if meaning in entry.means and not entry.derivative:
                found.append(event)
    return found


def _said(events: Sequence[Event]) -> str:
    return "; ".join(dict.fromkeys(event.text for event in events))


def _whole(window: Window) -> tuple[tuple[int, int], ...]:
    return ((window.begin_ns, max(window.end_ns, window.begin_ns + 1)),)


def _last_pulse(telemetry: Telemetry, host: str, uuid: str) -> int | None:
    ends = [end for metric in _PULSE if (end := telemetry.ends(host, metric, uuid)) is not None]
    return max(ends) if ends else None


def off_bus(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """The GPU is lost: said by NVML, by the kernel with or without an Xid, or by its silence."""
    events = telemetry.events(uuid)
    lost = [event for event in events if event.kind in ("gpu-lost", "gpu-fallen-off")]
    told = [*lost, *_xids(events, "off-bus")]
    last = _last_pulse(telemetry, host, uuid)
    neighbours = [_last_pulse(telemetry, host, other) for other in window.gpus.get(host, ()) if other != uuid]
    others = max((end for end in neighbours if end is not None), default=None)
    if told:
        first = min(told, key=lambda event: event.time_ns)
        alive = last is not None and last > max(event.time_ns for event in told) + _ALIVE_NS
        return Observation(0.1 if alive else 1.0, _said(told) + (", but it still answers" if alive else ""), first.kind)
    if last is None:
        return unseen(f"no readings of {uuid}")
    if others is not None and others - last > _SILENT_NS:
        quiet = (others - last) / _NS
        return Observation(0.7, f"no reading of the GPU in the last {quiet:.0f} s, its neighbours answer", "silent")
    return Observation(0.0, "the GPU answers, and no one says it is lost")


def ecc(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """An uncorrectable memory error: the volatile counter moved, or an Xid says so. Lifetime counts are history."""
    told = _numbered(telemetry.events(uuid), _ECC)
    moved = telemetry.growth(host, UNCORRECTED, uuid, _whole(window))
    said = _said(told)
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


def remap_failed(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """A row could not be remapped in this window: the Xid, or the flag that was not there before."""
    told = _numbered(telemetry.events(uuid), {_REMAP_FAILED})
    risen = _risen(telemetry, host, "gpu.row_remap_failure", uuid, window)
    if told:
        return Observation(1.0, _said(told), _REMAP_FAILED)
    if risen is None:
        return unseen(f"no row remapping of {uuid}")
    return Observation(0.8 if risen else 0.0, "a row could not be remapped" if risen else "no row remap failed")


def _risen(telemetry: Telemetry, host: str, metric: str, uuid: str, window: Window) -> bool | None:
    """Whether a flag rose within the window; None where it was not read."""
    values = telemetry.values(host, metric, uuid, _whole(window))
    return None if values is None else bool(values[-1] >= 0.5 and values[0] < 0.5)


def firmware(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """A processor inside the GPU does not answer: its Xids, and calls of NVML that do not return."""
    told = _numbered(telemetry.events(uuid), _FIRMWARE)
    stalled = [
        event
        for event in window.events
        if event.kind == "probe-stalled" and event.host == host and event.attributes.get("probe") == "nvml"
    ]
    if told:
        also = f"; {stalled[0].text}" if stalled else ""
        return Observation(1.0, _said(told) + also, told[0].attributes.get("number"))
    return Observation(0.25 if stalled else 0.0, stalled[0].text if stalled else "NVML answers, and no Xid of firmware")


def corrected(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """Corrected memory errors at a rate, or the driver's own word on one."""
    told = _numbered(telemetry.events(uuid), {_CORRECTED_STORM})
    rate = telemetry.rate(host, "gpu.ecc_corrected_volatile", uuid, _whole(window))
    if told:
        return Observation(1.0, _said(told), _CORRECTED_STORM)
    if rate is None:
        return unseen(f"no corrected ECC errors of {uuid}")
    return Observation(graded(rate, *_CORRECTED), f"{rate:.2f} corrected memory errors a second", round(rate, 3))


def remap_pending(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
    """A row, or another faulty part, came to wait for a reset within this window."""
    if told := _numbered(telemetry.events(uuid), {_RETIREMENT_PENDING}):
        return Observation(1.0, _said(told), _RETIREMENT_PENDING)
    risen = _risen(telemetry, host, "gpu.row_remap_pending", uuid, window)
    if risen is None:
        return unseen(f"no row remapping of {uuid}")
    return Observation(1.0 if risen else 0.0, "a row waits for a reset" if risen else "no row came to wait for a reset")


def _by_xid(family: str) -> Look:
    def look(window: Window, telemetry: Telemetry, host: str, uuid: str) -> Observation:
        del window, host
        events = telemetry.events(uuid)
        told = _numbered(events, _NAMED[family])
        if not told:
            return Observation(0.0, "no such Xid")
        first = min(event.time_ns for event in told)
        surest = max(told, key=lambda event: _NAMED[family][_number(event)])
        roots = [
            event
            for event in events
            if event.kind == "xid" and event.time_ns < first and _is_root(event.attributes.get("number"))
        ]
        if roots:
            return Observation(0.1, f"{_said(told)}; it follows {roots[0].text}", told[0].attributes.get("number"))
        number = _number(surest)
        return Observation(_NAMED[family][number], _said(told), number)

    return look


def _number(event: Event) -> int:
    number = event.attributes.get("number")
    return number if isinstance(number, int) else 0


def auxiliary_power(telemetry: Telemetry, uuid: str) -> Observation | None:
    """The driver's word that the board's power cable is not connected; None where it said nothing."""
    return _word(telemetry, uuid, _AUXILIARY_POWER)


def retirement_failed(telemetry: Telemetry, uuid: str) -> Observation | None:
    """The driver's word that a faulty part of the GPU has no spare; None where it said nothing."""
    return _word(telemetry, uuid, _RETIREMENT_FAILED)


def _word(telemetry: Telemetry, uuid: str, number: int) -> Observation | None:
    told = _numbered(telemetry.events(uuid), {number})
    return Observation(1.0, _said(told), number) if told else None


def unclassed(telemetry: Telemetry, uuid: str) -> str:
    """What the catalogue says of a GPU's Xids that are no class of their own, as the end of a sentence; or nothing."""
    numbers = {event.attributes.get("number") for event in telemetry.events(uuid) if event.kind == "xid"}
    roots = [XIDS[number] for number in numbers if isinstance(number, int) and _is_root(number)]
    return " ".join(_catalogued(xid) for xid in roots if xid.number not in _ALL_CLASSED)


def _catalogued(xid: Xid) -> str:
    causes = [CATALOGUE.causes[cause] for cause in sorted(xid.causes, key=lambda each: -xid.causes[each])]
    advice = CATALOGUE.buckets[xid.action] if xid.action else xid.advice
    said = f"NVIDIA: {advice}" if advice else "NVIDIA names no action."
    return f"Xid {xid.number}: {xid.name} (it can come from {'; '.join(causes)}). {said}"


def _is_root(number: object) -> bool:
    entry = XIDS.get(number) if isinstance(number, int) else None
    return entry is not None and not entry.derivative and bool(entry.means - {"informational"})


#: Every look at a GPU that broke, by family.
LOOKS: Mapping[str, Look] = {
    "off-bus": off_bus,
    "ecc": ecc,
    "remap-failed": remap_failed,
    "firmware": firmware,
    "corrected": corrected,
    "remap-pending": remap_pending,
    **{family: _by_xid(family) for family in _NAMED},
}
#: Those that make a GPU the root of an end; the others only tell of it.
BREAKING = ("off-bus", "ecc", "remap-failed", "firmware", "contained", "nvlink-down", "fabric", "link-training")
#: Xids of the job's own doing: they say why a rank died of a device error, and nothing where it died of another.
OF_THE_CODE = ("engine-exception", "page-fault", "peer-access")
