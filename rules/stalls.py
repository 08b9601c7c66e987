"""Stalls that come back: checkpoints, garbage collection, recompilation, and pauses of the loop that nothing names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankscope.rules.change import LEAST_STEPS, Shift
from rankscope.rules.detect import LEAST_FRACTION, events_of, host_ms, stall_price
from rankscope.rules.frame import NS_PER_MS, WARM_UP_STEPS, BoolArray, FloatArray, Frame
from rankscope.rules.suspect import Suspect, suspect_of
from rankscope.rules.table import Symptom

#: Share of all stalls that one rank, or one host, must carry to be the place.
_CARRIED = 0.8
#: Stalls that came this often have recurred; pauses that many things cause must come oftener.
_RECURRED = 2
_OFTEN = 3
#: A first checkpoint is priced by the steps before it where those are as many at least, and told from this share of
#: the step on: twice what is asked of checkpoints whose period is known.
_LEAST_PERIOD = 40
_FIRST_FRACTION = 0.05
#: Ranks write one checkpoint within this many steps.
_ONE_EVENT = 2
#: A pause of the loop counts from this share of the step on.
_PAUSE_FRACTION = 0.15
#: Compiling in the first quarter of the steps is how runs begin.
_BEGINNING = 0.25


def stalls(frame: Frame) -> list[Suspect]:
    """Every kind of stall that recurs, priced by what the step loses where it comes."""
    least = LEAST_FRACTION * frame.typical_ms
    kinds = [
        ("checkpoint", host_ms(frame, "checkpoint_ns"), least, _RECURRED),
        ("gc", host_ms(frame, "gc_ns"), least, _OFTEN),
        ("pause", _pauses(frame), _PAUSE_FRACTION * frame.typical_ms, _OFTEN),
    ]
    found: list[Suspect | None] = []
    for name, stall, smallest, recurred in kinds:
        events = events_of(stall, smallest)
        if name == "checkpoint" and (first := _first(frame, stall, events)) is not None:
            found.append(first)
            continue
        # On one rank: one large collection on each of many ranks has not recurred.
        if int((stall >= smallest).sum(axis=1).max(initial=0)) < recurred:
            continue
        shift = recurring(frame, events)
        price = stall_price(frame, stall, events, shift.mask)
        found.append(_suspect(frame, name, stall, shift, price))
    found.append(_compiling(frame))
    return [suspect for suspect in found if suspect is not None]


def _suspect(frame: Frame, name: str, stall: FloatArray, shift: Shift, price: float) -> Suspect | None:
    rows, located, host = carriers(frame, stall)
    return suspect_of(frame, Symptom.PERIODIC, rows, shift, {name: price}, price, located=located, host=host)


def _first(frame: Frame, stall: FloatArray, events: BoolArray) -> Suspect | None:
    """The first checkpoint of a run, before it has come back: priced as if one came every so many steps as the run took
    to reach it, until more have passed without. None where it is not the first, or too early or cheap to tell, or the
    run is over: then it did not come back."""
    places = np.flatnonzero(events)
    if (
        frame.window.job_status is not None
        or not places.size
        or places[-1] - places[0] > _ONE_EVENT
        or frame.steps[0] > WARM_UP_STEPS
    ):
        return None
    period, length = int(places[0]), frame.shape[1] - int(places[0])
    if period < _LEAST_PERIOD:
        return None
    mask = frame.usable & (np.arange(frame.shape[1]) >= period) & (np.arange(frame.shape[1]) < 2 * period)
    before = frame.usable & (np.arange(frame.shape[1]) < period)
    if int(before.sum()) < LEAST_STEPS or not mask.any():
        return None
    lost = stall_price(frame, stall, events, mask) * int(mask.sum())
    price = lost / max(period, length)
    shift = Shift(mask=mask, baseline=before, excess=0.0, level=0.0, begin=period, needed=1)
    fraction = price / frame.typical_ms
    if fraction < _FIRST_FRACTION:
        return None
    suspect = _suspect(frame, "checkpoint", stall, shift, price)
    return None if suspect is None else replace(suspect, fraction=fraction)


def _pauses(frame: Frame) -> FloatArray:
    """Time outside all phases, where nothing that is known explains it: on the device's clock."""
    other = np.nan_to_num(frame.parts["other"])
    if not frame.on_device:
        return np.zeros_like(other)
    extra: FloatArray = np.where(frame.usable, np.maximum(0.0, other - np.median(other, axis=1, keepdims=True)), 0.0)
    known = np.zeros(frame.shape[1], dtype=bool)
    for field in ("gc_ns", "checkpoint_ns", "evaluation_ns", "sync_ns", "compile_ns"):
        most = np.max(np.nan_to_num(frame.host(field)), axis=0, initial=0.0) / NS_PER_MS
        known |= most >= LEAST_FRACTION * frame.typical_ms
    # The device feels its host a step or two later.
    for later in (1, 2):
        known[later:] |= known[:-later]
    extra[:, known] = 0.0
    return extra


def _compiling(frame: Frame) -> Suspect | None:
    """Compilation that goes on after the run has begun."""
    spent = np.nan_to_num(frame.host("compile_ns")) / NS_PER_MS
    events = events_of(spent, 0.05 * frame.typical_ms)
    late = events.copy()
    late[: int(_BEGINNING * len(late))] = False
    if int(late.sum()) < _OFTEN:
        return None
    places = np.flatnonzero(events)
    begin = int(places[0]) if places[0] > _BEGINNING * len(late) else int(np.flatnonzero(late)[0])
    mask = np.zeros(len(late), dtype=bool)
    mask[begin : int(places[-1]) + 1] = True
    before = np.zeros(len(late), dtype=bool)
    before[:begin] = True
    shift = Shift(
        mask=mask,
        baseline=before & frame.usable,
        excess=0.0,
        level=0.0,
        begin=begin,
        needed=int(np.flatnonzero(late)[_OFTEN - 1]) - begin + 1,
    )
    price = float(spent.max(axis=0)[mask].sum()) / int(mask.sum())
    return _suspect(frame, "compile", spent, shift, price)


def recurring(frame: Frame, events: BoolArray) -> Shift:
    """The steps over which events came back, and the calm ones before."""
    places = np.flatnonzero(events)
    period = int(np.median(np.diff(places))) if len(places) > 1 else 1
    end = min(len(events), int(places[-1]) + max(1, period))
    mask = np.zeros(len(events), dtype=bool)
    mask[places[0] : end] = True
    before = np.zeros(len(events), dtype=bool)
    before[: places[0]] = True
    return Shift(
        mask=mask & frame.usable,
        baseline=before & frame.usable,
        excess=0.0,
        level=0.0,
        begin=int(places[0]),
        needed=int(places[min(_RECURRED, len(places)) - 1] - places[0]) + 1,
        from_start=int(before[frame.usable].sum()) < LEAST_STEPS,
    )


def carriers(frame: Frame, stall: FloatArray) -> tuple[tuple[int, ...], bool, int | None]:
    """The rank, or the ranks of the host, that carry nearly all of it; else all ranks."""
    total = stall.sum(axis=1)
    everything = float(total.sum())
    top = int(np.argmax(total))
    if len(total) > 1 and total[top] >= _CARRIED * everything:
        return (top,), True, None
    hosts = np.bincount(frame.hosts, weights=total)
    if len(hosts) > 1 and hosts.max() >= _CARRIED * everything:
        host = int(np.argmax(hosts))
        return tuple(int(row) for row in np.flatnonzero(frame.hosts == host)), False, host
    return tuple(range(len(total))), False, None
