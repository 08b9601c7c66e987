"""What slows the job as a whole: late batches, waits for the device, uneven batches, and growth that is nobody's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankscope.finding import Basis
from rankscope.rules.change import LEAST_STEPS, Shift
from rankscope.rules.detect import (
    LEAST_FRACTION,
    data_carriers,
    data_shift,
    events_of,
    host_ms,
    job_shift,
    judged,
    own_shift,
)
from rankscope.rules.frame import Frame, mean, median, middle
from rankscope.rules.stalls import carriers, recurring
from rankscope.rules.suspect import Suspect, suspect_of
from rankscope.rules.table import Symptom
from rankscope.rules.whatif_price import Prices

#: Share of all load that one rank must carry to be the place.
_CARRIED = 0.8
#: A rank is taken to hold the collective up where its wait for cores grew by this share of what the collective grew
#: by, and the step by this share: lateness that verifies published change-point detectors.
_HELD_SHARE = 0.5
_HELD_FRACTION = 0.1


def late_batches(prices: Prices) -> list[Suspect]:
    """The job waits for data: on one rank, or on several."""
    frame = prices.frame
    shift = data_shift(frame)
    if shift is None:
        return []
    waited = np.nan_to_num(frame.parts["data_wait"])
    ideal = waited[:, shift.baseline].mean(axis=1, keepdims=True) if shift.baseline.any() else 0.0
    relief = np.maximum(0.0, waited - ideal)[:, shift.mask]
    price = prices.returned_ms(shift.mask, range(frame.shape[0]), rest_ms=relief)
    carriers = data_carriers(frame, shift)
    if len(carriers) == 1 and frame.shape[0] > 1:
        # What else made that rank slow belongs to the same suspect, and is found with it.
        return []
    rows = tuple(carriers) or tuple(range(frame.shape[0]))
    suspect = suspect_of(
        frame, Symptom.ALL_SLOW, rows, shift, {"data_wait": max(price, shift.excess)}, price, located=False
    )
    return [suspect] if suspect else []


def syncs(prices: Prices) -> list[Suspect]:
    """The host waits for its device in the middle of a step, so that the device then waits for the host."""
    frame = prices.frame
    counts = np.where(frame.usable, np.nan_to_num(frame.host("sync_count")), 0.0)
    events = events_of(counts, 0.5)
    if int(events.sum()) < LEAST_STEPS:
        return []
    shift = recurring(frame, events)
    rows, located, _ = carriers(frame, counts)
    calm = shift.baseline if shift.baseline.sum() >= LEAST_STEPS else frame.usable & ~events
    if calm.sum() >= LEAST_STEPS:
        # By own times: the noise of collectives does not hide what a little idling costs.
        own = frame.own_ms
        grown = np.nan_to_num(median(own[:, shift.mask], axis=1) - median(own[:, calm], axis=1))
        relief = np.maximum(0.0, grown)[:, np.newaxis]
        price = prices.returned_ms(shift.mask, range(frame.shape[0]), rest_ms=relief)
    elif frame.on_device:
        # No step without: the device's own idle time between steps is the least that it costs.
        idle = frame.sum_of(("data_wait", "other"))[list(rows)]
        price = mean(np.max(np.nan_to_num(idle[:, shift.mask]), axis=0))
    else:
        return []
    suspect = suspect_of(frame, Symptom.ALL_SLOW, rows, shift, {"sync": price}, price, located=located)
    return [suspect] if suspect else []


def uneven_work(prices: Prices) -> list[Suspect]:
    """Batches of different size: what the step loses to the largest of them, whichever rank has it."""
    frame = prices.frame
    work = frame.host("work")
    usual = median(work)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = work / usual
    uneven = np.isfinite(ratio) & (usual > 0)
    if frame.shape[0] < 2 or not uneven.any():
        return []
    ratio = np.where(uneven, np.clip(ratio, 0.1, 10.0), 1.0)
    mask = frame.usable & (np.ptp(ratio, axis=0) > LEAST_FRACTION)
    if int(mask.sum()) < LEAST_STEPS:
        return []
    # The same rank every time is found as a rank; here the load wanders.
    heaviest = np.argmax(ratio[:, mask], axis=0)
    if np.bincount(heaviest).max() >= _CARRIED * len(heaviest):
        return []
    relief = (frame.compute_ms * (1 - 1 / ratio))[:, mask]
    price = prices.returned_ms(mask, range(frame.shape[0]), layers_ms=relief)
    first = int(np.flatnonzero(mask)[0])
    shift = Shift(mask, frame.usable & ~mask, price, price, first, LEAST_STEPS, from_start=True)
    rows = tuple(range(frame.shape[0]))
    suspect = suspect_of(frame, Symptom.ALL_SLOW, rows, shift, {"work": price}, price, located=False)
    return [suspect] if suspect else []


def slow_job(frame: Frame, others: list[Suspect]) -> list[Suspect]:
    """The whole job became slower than it was, by more than the other suspects account for.

    First by what the ranks do themselves; what only the collective grew by comes after.
    """
    rows = tuple(range(frame.shape[0]))
    found: list[Suspect] = []
    for shift in (own_shift(frame), job_shift(frame)):
        if shift is None:
            continue
        told = sum(
            other.ms_per_step * float((other.mask & shift.mask).sum()) / max(1, int(shift.mask.sum()))
            for other in [*others, *found]
        )
        rest = shift.excess - told - _grown_batches(frame, shift)
        excess = {}
        for name, values in {**frame.parts, "collective_wait": frame.wait_ms}.items():
            common = judged(frame, median(values))
            grown = middle(common[shift.mask]) - middle(common[shift.baseline])
            excess[name] = float(np.nan_to_num(grown))
        holder = _holder(frame, shift, excess)
        suspect = suspect_of(frame, Symptom.ALL_SLOW, rows, shift, excess, rest, located=False)
        if suspect is not None and holder is not None and suspect.fraction >= _HELD_FRACTION:
            suspect = replace(suspect, symptom=Symptom.ONE_RANK_SLOW, rows=(holder,), located=True, basis=Basis.HOST)
        if suspect is not None:
            found.append(suspect)
    return found


def _holder(frame: Frame, shift: Shift, excess: dict[str, float]) -> int | None:
    """The rank whose host holds the collective up: the only one that came to wait for its cores.

    A thread that drives the collective and comes late shows on no device, only in everybody's wait.
    """
    if max(excess, key=lambda name: excess[name]) != "collective_wait" or frame.shape[0] < 2:
        return None
    waits = host_ms(frame, "runqueue_ns")
    grown = waits[:, shift.mask].mean(axis=1) - waits[:, shift.baseline].mean(axis=1)
    order = np.argsort(grown)
    top, second = float(grown[order[-1]]), max(0.0, float(grown[order[-2]]))
    alone = top >= _HELD_SHARE * excess["collective_wait"] and second <= 0.5 * top
    return int(order[-1]) if alone else None


def _grown_batches(frame: Frame, shift: Shift) -> float:
    """ms a step that larger batches on every rank ask for."""
    work, compute = median(frame.host("work")), median(frame.compute_ms)
    now, before = middle(work[shift.mask]), middle(work[shift.baseline])
    if not (np.isfinite(now) and np.isfinite(before)) or before <= 0:
        return 0.0
    return max(0.0, (now / before - 1) * middle(compute[shift.baseline]))
