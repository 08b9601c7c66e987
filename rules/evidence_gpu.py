"""Evidence on the GPU: heat, clocks set from outside, the clock itself, the power cap. At equal work, before a verdict.

Bits of gpu.clock_event_reasons are nvmlClocksEventReason* of nvml.h. The clock halves in one event with the bit that
says why and the temperature behind it, so thermal is one family; the clock by itself says only that the GPU is slower.
"""

from __future__ import annotations

from rankscope.rules.evidence import Case, Gpu, Observation, graded, middling, unseen
from rankscope.rules.frame import Intervals, middle
from rankscope.rules.telemetry import Telemetry

APPLICATION_CLOCKS = 0x2
SW_POWER_CAP = 0x4
HW_SLOWDOWN = 0x8
SW_THERMAL = 0x20
HW_THERMAL = 0x40
POWER_BRAKE = 0x80
THERMAL = SW_THERMAL | HW_THERMAL
#: Anything that says the device holds itself back, or is held back by its supply.
HELD = SW_POWER_CAP | HW_SLOWDOWN | THERMAL | POWER_BRAKE
REASONS = "gpu.clock_event_reasons"
CLOCK = "gpu.sm_clock_mhz"
TEMPERATURE = "gpu.temperature_celsius"
SLOWDOWN_TEMPERATURE = "gpu.slowdown_temperature_celsius"
#: Silicon of one kind differs by 8 % on average and by up to 22 % (measured over fleets): a difference among peers
#: below this, without own past, says nothing.
SILICON_SPREAD = 0.22
#: Being held down for 1 or 2 % of a day is ordinary; for this share of the suspect time it is full evidence.
_HELD_FULLY = 0.3
#: A clock this much lower is lower: clocks move in steps of 15 MHz, below 1 % of theirs.
_LOWER = 0.02
#: Within this many degrees of the slowdown temperature, and this much hotter than the peers, a GPU is hot.
_MARGIN_CELSIUS = 3.0
_HOTTER_CELSIUS = 10.0


def _unknown(case: Case) -> Observation:
    rank = case.frame.ranks[case.row]
    return unseen(f"rank {rank} did not say which GPU it runs on")


def held_by_heat(telemetry: Telemetry, host: str, uuid: str, over: Intervals) -> float | None:
    """Share of the time in which a GPU slowed itself for heat, by its own readings and counters; None if not seen."""
    share = telemetry.bit_share(host, REASONS, uuid, THERMAL, over)
    length = sum(end - begin for begin, end in over)
    counted = [telemetry.growth(host, f"gpu.throttle_{kind}_thermal_ns", uuid, over) for kind in ("hw", "sw")]
    shares = [min(1.0, grown / length) for grown in counted if grown is not None and length > 0]
    seen = [value for value in (share, *shares) if value is not None]
    return max(seen) if seen else None


def thermal(case: Case) -> Observation:
    """The GPU holds itself down for heat, and did not before."""
    gpu = case.gpu(case.row)
    if gpu is None:
        return _unknown(case)
    telemetry = case.telemetry
    held = held_by_heat(telemetry, gpu.host, gpu.uuid, gpu.over)
    if held is None:
        return unseen(f"no clock event reasons or throttle counters of {gpu.uuid}")
    before = held_by_heat(telemetry, gpu.host, gpu.uuid, gpu.before) or 0.0
    peers = middling([held_by_heat(telemetry, peer.host, peer.uuid, peer.over) for peer in case.peer_gpus()])
    # What was there all along does not explain what changed.
    strength = graded(held - before, 0.02, _HELD_FULLY)
    heat = _heat(telemetry, gpu)
    if strength < 0.5:
        strength = max(strength, _other_slowdown(case, gpu), 0.15 if _is_hot(case, gpu) else 0.0)
    if held > 0.02:
        what = f"the GPU slowed itself for heat in {held:.0%} of the time{heat}"
    else:
        what = f"no thermal slowdown reported{heat}"
    return Observation(strength, what, round(held, 3), peers)


def _heat(telemetry: Telemetry, gpu: Gpu) -> str:
    temperature = telemetry.typical(gpu.host, TEMPERATURE, gpu.uuid, gpu.over)
    limit = telemetry.typical(gpu.host, SLOWDOWN_TEMPERATURE, gpu.uuid, gpu.over)
    if temperature is None:
        return ""
    return f" at {temperature:.0f} °C" + (f" (it slows down at {limit:.0f} °C)" if limit is not None else "")


def _is_hot(case: Case, gpu: Gpu) -> bool:
    telemetry = case.telemetry
    temperature = telemetry.typical(gpu.host, TEMPERATURE, gpu.uuid, gpu.over)
    limit = telemetry.typical(gpu.host, SLOWDOWN_TEMPERATURE, gpu.uuid, gpu.over)
    peers = middling([telemetry.typical(peer.host, TEMPERATURE, peer.uuid, peer.over) for peer in case.peer_gpus()])
    if temperature is None or limit is None or peers is None:
        return False
    return limit - temperature < _MARGIN_CELSIUS and temperature - peers > _HOTTER_CELSIUS


def _other_slowdown(case: Case, gpu: Gpu) -> float:
    """The hardware's own slowdown without a reason given: it also comes with a change of power state, so must last."""
    telemetry = case.telemetry
    share = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, HW_SLOWDOWN, gpu.over) or 0.0
    braked = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, POWER_BRAKE, gpu.over) or 0.0
    before = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, HW_SLOWDOWN, gpu.before) or 0.0
    return (0.8 if _is_hot(case, gpu) else 0.3) * graded(share - braked - before, 0.2, 0.6)


def application_clocks(case: Case) -> Observation:
    """Someone set the clock: the GPU says so, or its clock came to lie flat and low while nothing held it down."""
    gpu = case.gpu(case.row)
    if gpu is None:
        return _unknown(case)
    telemetry = case.telemetry
    share = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, APPLICATION_CLOCKS, gpu.over)
    if share is None:
        return unseen(f"no clock event reasons of {gpu.uuid}")
    before = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, APPLICATION_CLOCKS, gpu.before) or 0.0
    peers = middling(
        [telemetry.bit_share(peer.host, REASONS, peer.uuid, APPLICATION_CLOCKS, peer.over) for peer in case.peer_gpus()]
    )
    strength = graded(share - max(before, peers or 0.0), 0.1, 0.5)
    what = f"the clock is set by application clocks in {share:.0%} of the readings"
    flat = _flat_and_low(case, gpu)
    if strength < 0.7 and flat is not None:
        return Observation(0.7, flat, round(share, 3), peers)
    return Observation(strength, what, round(share, 3), peers)


def _flat_and_low(case: Case, gpu: Gpu) -> str | None:
    telemetry = case.telemetry
    readings = telemetry.values(gpu.host, CLOCK, gpu.uuid, gpu.over)
    held = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, HELD, gpu.over) or 0.0
    if readings is None or len(readings) < 5 or held > 0.02 or _is_hot(case, gpu):
        return None
    low = float(readings.min())
    if float(readings.max()) - low > 0.01 * low:
        return None
    drop, reference = _drop(case, gpu)
    if drop is None or drop < (0.03 if gpu.before else SILICON_SPREAD):
        return None
    return f"the clock lies flat at {low:.0f} MHz ({reference:.0f} MHz expected) while the GPU is cool and not held"


def _drop(case: Case, gpu: Gpu) -> tuple[float | None, float]:
    """How far the clock lies below its own past, or where there is none below the peers'; and that reference."""
    telemetry = case.telemetry
    now = telemetry.typical(gpu.host, CLOCK, gpu.uuid, gpu.over)
    reference = telemetry.typical(gpu.host, CLOCK, gpu.uuid, gpu.before)
    if reference is None:
        reference = middling([telemetry.typical(peer.host, CLOCK, peer.uuid, peer.over) for peer in case.peer_gpus()])
    if now is None or reference is None or reference <= 0:
        return None, 0.0
    return 1 - now / reference, reference


def clocks(case: Case) -> Observation:
    """The clock fell by about as much as the work became slower."""
    gpu = case.gpu(case.row)
    if gpu is None:
        return _unknown(case)
    drop, reference = _drop(case, gpu)
    if drop is None:
        return unseen(f"no SM clock of {gpu.uuid}")
    compute = middle(case.frame.compute_ms[case.row][case.mask])
    slower = sum(max(0.0, case.suspect.excess.get(name, 0.0)) for name in ("forward", "backward", "optimizer"))
    asked = slower / compute if compute > 0 else 0.0
    strength = graded(drop / max(asked, _LOWER), 0.2, 0.6) if drop >= _LOWER else 0.0
    now = round(reference * (1 - drop))
    against = "before" if gpu.before else "on its peers"
    what = f"SM clock {now} MHz against {reference:.0f} MHz {against}, compute {asked:.0%} longer"
    return Observation(strength, what, now, round(reference))


def power_cap(case: Case) -> Observation:
    """The software power cap came to hold: ordinary at full load, and then on all GPUs."""
    gpu = case.gpu(case.row)
    if gpu is None:
        return _unknown(case)
    telemetry = case.telemetry
    share = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, SW_POWER_CAP, gpu.over)
    if share is None:
        return unseen(f"no clock event reasons of {gpu.uuid}")
    before = telemetry.bit_share(gpu.host, REASONS, gpu.uuid, SW_POWER_CAP, gpu.before) or 0.0
    peers = middling(
        [telemetry.bit_share(peer.host, REASONS, peer.uuid, SW_POWER_CAP, peer.over) for peer in case.peer_gpus()]
    )
    strength = graded(share - max(before, peers or 0.0), 0.2, 0.5)
    return Observation(strength, f"at its power cap in {share:.0%} of the readings", round(share, 3), peers)
