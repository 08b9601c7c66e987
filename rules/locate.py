"""Where it is and what it costs: the step with one rank's, or one phase's, own time replaced by what it should be.

A step is as slow as its slowest rank at the synchronisation: T = max over ranks of own work + the rest. The price of a
suspect is what T loses when the suspect's excess is taken away and everything else stays.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    host_shifts,
    job_shift,
    judged,
    own_shift,
    rank_shifts,
    transfer_shift,
)
from rankscope.rules.frame import COMPUTE, BoolArray, FloatArray, Frame, mean, median, middle, peers_median
from rankscope.rules.stalls import carriers, recurring, stalls
from rankscope.rules.suspect import Suspect
from rankscope.rules.table import Symptom

#: A rank that became slower than it was is told from this price on, if it slowed by `LEAST_FRACTION` of the step: how
#: much of that the job feels depends on how near the next slowest rank is.
LEAST_PRICE = 0.01
#: Fewer steps cannot be judged at all.
LEAST_JUDGED = 2 * LEAST_STEPS
#: Share of all load that one rank must carry to be the place.
_CARRIED = 0.8
#: A rank of a slow host is a suspect of its own where it is slower by this factor than its host.
_OVER_HOST = 1.4
#: A stage that computes this much longer than the next is out of balance: the first and last have a little more.
_STAGE_SHARE = 0.1
#: Beside a suspect that slows the whole job, a rank must cost at least this share of it to be named too.
_BESIDE = 0.3
#: A rank is taken to hold the collective up where its wait for cores grew by this share of what the collective grew
#: by, and the step by this share: lateness that verifies published change-point detectors.
_HELD_SHARE = 0.5
_HELD_FRACTION = 0.1


def saved(frame: Frame, relieved: FloatArray, mask: BoolArray) -> float:
    """ms a step the job gains over the steps of `mask` if own times were `relieved` instead."""
    own = np.nan_to_num(frame.own_ms[:, mask], nan=-np.inf)
    other = np.nan_to_num(relieved[:, mask], nan=-np.inf)
    gain = own.max(axis=0) - other.max(axis=0)
    gain = gain[np.isfinite(gain)]
    return float(gain.mean()) if gain.size else 0.0


def suspects(frame: Frame) -> list[Suspect]:
    """Every slowness of the window, the dearest first."""
    if not frame.ranks or int(frame.usable.sum()) < LEAST_JUDGED:
        return []
    data = _data(frame)
    found = [*data, *stalls(frame, _make), *_syncs(frame), *_work(frame), *_stages(frame), *_transfers(frame)]
    hosts = _hosts(frame)
    found += hosts
    covering = max((suspect.fraction for suspect in found if not suspect.located), default=0.0)
    ranks = [each for each in _ranks(frame, data=not data) if each.fraction >= _BESIDE * covering]
    found += [each for each in ranks if not any(_with_its_host(each, host) for host in hosts)]
    found += _job(frame, found)
    return sorted(found, key=lambda suspect: -suspect.ms_per_step)


def _with_its_host(rank: Suspect, host: Suspect) -> bool:
    """Whether a rank is slow because all of its host's are."""
    return rank.rows[0] in host.rows and rank.excess_ms <= _OVER_HOST * host.excess_ms and rank.overlaps(host)


def _hosts(frame: Frame) -> list[Suspect]:
    """Hosts all of whose ranks became slower together."""
    found = []
    for host in host_shifts(frame):
        rows = list(host.rows)
        relieved = frame.own_ms.copy()
        relieved[rows] -= host.shift.excess
        price = saved(frame, relieved, host.shift.mask)
        excess = {}
        for name, values in frame.parts.items():
            common = median(values[rows])
            if host.shift.from_start:
                # No past: against the other hosts.
                others = [row for row in range(frame.shape[0]) if row not in host.rows]
                before = middle(median(values[others])[host.shift.mask])
            else:
                before = middle(common[host.shift.baseline])
            excess[name] = float(np.nan_to_num(middle(common[host.shift.mask]) - before))
        suspect = _make(
            frame, Symptom.ONE_HOST_SLOW, host.rows, host.shift, excess, price, located=False, host=host.host
        )
        if suspect is not None:
            found.append(suspect)
    return found


def _stages(frame: Frame) -> list[Suspect]:
    """A pipeline stage that computes longer than the others: the others wait for it in every microbatch."""
    if frame.stages is None:
        return []
    count = int(frame.stages.max()) + 1
    rows_of = [tuple(int(row) for row in np.flatnonzero(frame.stages == stage)) for stage in range(count)]
    if count < 2 or any(len(rows) < 1 for rows in rows_of):
        return []
    # Every rank of it: one slow GPU does not make a stage.
    own = np.stack([frame.compute_ms[list(rows)].min(axis=0) for rows in rows_of])[:, frame.usable]
    usual = median(own, axis=1)
    worst = int(np.argmax(usual))
    second = float(np.max(np.delete(usual, worst)))
    price = float(usual[worst]) - second
    if price < _STAGE_SHARE * float(usual[worst]):
        return []
    mask = frame.usable.copy()
    shift = Shift(
        mask=mask,
        baseline=np.zeros_like(mask),
        excess=price,
        level=price,
        begin=int(np.flatnonzero(mask)[0]),
        needed=2 * LEAST_STEPS,
        from_start=True,
    )
    excess = {"forward": 0.4 * price, "backward": 0.6 * price}
    suspect = _make(frame, Symptom.ONE_STAGE_SLOW, rows_of[worst], shift, excess, price, located=False, stage=worst)
    return [suspect] if suspect is not None else []


def _transfers(frame: Frame) -> list[Suspect]:
    """Collectives take longer though all arrive together.

    Where the host's cores do the moving (no GPU's own clock), they are the reason, and it is told by what they wait.
    """
    if frame.identity(0).device_clock != "cuda":
        return []
    shift = transfer_shift(frame)
    if shift is None:
        return []
    rows = tuple(range(frame.shape[0]))
    suspect = _make(frame, Symptom.TRANSFER_SLOW, rows, shift, {"transfer": shift.excess}, shift.excess, located=False)
    return [suspect] if suspect is not None else []


def _make(
    frame: Frame,
    symptom: Symptom,
    rows: tuple[int, ...],
    shift: Shift,
    excess: dict[str, float],
    price: float,
    *,
    located: bool,
    host: int | None = None,
    stage: int | None = None,
) -> Suspect | None:
    length = mean(frame.job_ms[shift.mask])
    fraction = price / length if length > 0 else 0.0
    if fraction < (LEAST_PRICE if located and not shift.from_start else LEAST_FRACTION):
        return None
    confirmed = located and frame.timed is not None and bool(frame.timed.last(rows[0], shift.mask))
    return Suspect(
        symptom=symptom,
        rows=rows,
        located=located,
        mask=shift.mask,
        baseline=shift.baseline,
        excess=excess,
        ms_per_step=price,
        fraction=fraction,
        begin=shift.begin,
        needed=shift.needed,
        from_start=shift.from_start,
        basis=Basis.DEVICE_COLLECTIVE if confirmed else frame.basis,
        host=None if host is None else frame.identity(rows[0]).host,
        stage=stage,
        contaminated=not confirmed and _contaminated(frame, rows, excess),
    )


def _contaminated(frame: Frame, rows: tuple[int, ...], excess: Mapping[str, float]) -> bool:
    """Whether most of an excess is "own" computing that may hold waits for other ranks."""
    if frame.cleaned or not frame.contaminated[list(rows)].any():
        return False
    total = sum(value for value in excess.values() if value > 0)
    return sum(max(0.0, excess.get(name, 0.0)) for name in COMPUTE) > 0.5 * total


def _ranks(frame: Frame, *, data: bool) -> list[Suspect]:
    """Ranks that stand out, each with the phases its excess lies in."""
    found: dict[int, Suspect] = {}
    shifts = rank_shifts(frame, data=data)
    reference = {name: peers_median(values, frame.roles) for name, values in frame.parts.items()} if shifts else {}
    for rank in sorted(shifts, key=lambda each: -each.shift.excess):
        excess = _excess_by_phase(frame, rank.row, rank.shift, reference)
        relieved = frame.own_ms.copy()
        relieved[rank.row] -= rank.shift.excess
        price = saved(frame, relieved, rank.shift.mask)
        symptom = Symptom.DRIFT if rank.shift.drift else Symptom.ONE_RANK_SLOW
        suspect = _make(frame, symptom, (rank.row,), rank.shift, excess, price, located=True)
        if suspect is not None and (rank.row not in found or found[rank.row].ms_per_step < suspect.ms_per_step):
            found[rank.row] = suspect
    return list(found.values())


def _excess_by_phase(frame: Frame, row: int, shift: Shift, reference: Mapping[str, FloatArray]) -> dict[str, float]:
    excess = {}
    for name, values in frame.parts.items():
        centre = mean if name == "data_wait" else middle
        if frame.shape[0] > 1:
            # Where nobody has the same role, the own past is all there is to compare with.
            own = values[row] - np.nan_to_num(reference[name][row])
        else:
            own = values[row]
        before = centre(own[shift.baseline]) if shift.baseline.any() else 0.0
        level = centre(own[shift.mask]) - (before if np.isfinite(before) else 0.0)
        excess[name] = level if np.isfinite(level) else 0.0
    return excess


def _data(frame: Frame) -> list[Suspect]:
    """The job waits for data: on one rank, or on several."""
    shift = data_shift(frame)
    if shift is None:
        return []
    waited = np.nan_to_num(frame.parts["data_wait"])
    ideal = waited[:, shift.baseline].mean(axis=1, keepdims=True) if shift.baseline.any() else 0.0
    relieved = frame.own_ms - np.maximum(0.0, waited - ideal)
    price = saved(frame, relieved, shift.mask)
    carriers = data_carriers(frame, shift)
    if len(carriers) == 1 and frame.shape[0] > 1:
        # What else made that rank slow belongs to the same suspect, and is found with it.
        return []
    rows = tuple(carriers) or tuple(range(frame.shape[0]))
    suspect = _make(frame, Symptom.ALL_SLOW, rows, shift, {"data_wait": max(price, shift.excess)}, price, located=False)
    return [suspect] if suspect else []


def _syncs(frame: Frame) -> list[Suspect]:
    """The host waits for its device in the middle of a step, so that the device then waits for the host."""
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
        price = saved(frame, own - np.maximum(0.0, grown)[:, np.newaxis], shift.mask)
    elif frame.on_device:
        # No step without: the device's own idle time between steps is the least that it costs.
        idle = frame.sum_of(("data_wait", "other"))[list(rows)]
        price = mean(np.max(np.nan_to_num(idle[:, shift.mask]), axis=0))
    else:
        return []
    suspect = _make(frame, Symptom.ALL_SLOW, rows, shift, {"sync": price}, price, located=located)
    return [suspect] if suspect else []


def _work(frame: Frame) -> list[Suspect]:
    """Batches of different size: what the step loses to the largest of them, whichever rank has it."""
    work = frame.host("work")
    usual = median(work)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = work / usual
    uneven = np.isfinite(ratio) & (usual > 0)
    if frame.shape[0] < 2 or not uneven.any():
        return []
    ratio = np.where(uneven, np.clip(ratio, 0.1, 10.0), 1.0)
    relieved = frame.own_ms - frame.compute_ms * (1 - 1 / ratio)
    mask = frame.usable & (np.ptp(ratio, axis=0) > LEAST_FRACTION)
    if int(mask.sum()) < LEAST_STEPS:
        return []
    # The same rank every time is found as a rank; here the load wanders.
    heaviest = np.argmax(ratio[:, mask], axis=0)
    if np.bincount(heaviest).max() >= _CARRIED * len(heaviest):
        return []
    price = saved(frame, relieved, mask)
    first = int(np.flatnonzero(mask)[0])
    shift = Shift(mask, frame.usable & ~mask, price, price, first, LEAST_STEPS, from_start=True)
    rows = tuple(range(frame.shape[0]))
    suspect = _make(frame, Symptom.ALL_SLOW, rows, shift, {"work": price}, price, located=False)
    return [suspect] if suspect else []


def _job(frame: Frame, others: list[Suspect]) -> list[Suspect]:
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
        suspect = _make(frame, Symptom.ALL_SLOW, rows, shift, excess, rest, located=False)
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
