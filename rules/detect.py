"""When and how the job or a rank changed: against the own past first, then against the peers.

A rank is judged by the distance of its own time from its peers', so that what all ranks share (a busy machine, a longer
batch) cancels out; a level it always had is an offset (silicon, placement), a level it came to have is a change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rankscope.rules.change import LEAST_STEPS, Shift, offset_of, shift_of
from rankscope.rules.expected import at_equal_work, job_at_equal_work
from rankscope.rules.frame import NS_PER_MS, BoolArray, FloatArray, Frame, mean, median, middle, peers_median

#: Changes below this share of the step are not looked for.
LEAST_FRACTION = 0.02
#: A wait for data that was there from the first step is normal below this share of the step: loaders that run in the
#: training thread always cost a little.
DATA_FRACTION = 0.1
#: A rank waits "as much" from this share of the longest wait.
DATA_SHARED = 0.4
#: Jobs up to this size have every rank looked at closely; of larger ones first in so many stretches of the run.
_FEW = 64
_STRETCHES = 24
#: Loaders stall in every n-th step, n being their workers: means over this many steps show the level.
DATA_SMOOTH = 6
#: Links that flap hold up single steps: means over this many show the level.
TRANSFER_SMOOTH = 12
#: What a held-up step is taken to cost at most, as a share of the usual step.
HELD_UP = 0.4
#: Timed collectives must cover this share of the steps before a change over time is looked for in them.
TIMED_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class RankShift:
    """The rank on `row` became, or always was, slower than its peers in `what`."""

    row: int
    what: str
    shift: Shift


def judged(frame: Frame, values: FloatArray) -> FloatArray:
    """A signal with the steps that may not be judged left out."""
    return np.where(frame.usable, values, np.nan)


def rank_shifts(frame: Frame, *, data: bool = True) -> list[RankShift]:
    """Ranks whose steady work, or wait for data, stands out from the peers'."""
    if frame.shape[0] < 2:
        return _alone(frame)
    least = LEAST_FRACTION * frame.typical_ms
    signals = [("work", at_equal_work(frame, frame.steady_ms), 1), ("copy", frame.parts["copy"], 1)]
    if data:
        signals.append(("data_wait", frame.parts["data_wait"], DATA_SMOOTH))
    found = []
    for what, own, smooth in signals:
        if not np.isfinite(own).any():
            continue
        distance = own - _reference(frame, own, smooth)
        for row in _standing_out(frame, distance, least):
            shift = _shift(judged(frame, distance[row]), own[row], least, smooth)
            if shift is not None:
                found.append(RankShift(row, what, shift))
    return found


def _standing_out(frame: Frame, distance: FloatArray, least: float) -> list[int]:
    """Rows worth a closer look: of many, those that some stretch of the run lies above their peers in."""
    count = len(distance)
    if count <= _FEW:
        return list(range(count))
    usable = distance[:, frame.usable]
    size = max(LEAST_STEPS, usable.shape[1] // _STRETCHES)
    stretches = usable.shape[1] // size
    if stretches < 1:
        return list(range(count))
    shaped = np.nan_to_num(usable[:, : stretches * size]).reshape(count, stretches, size)
    # Half of what is looked for: a stretch may hold the begin of it, and rare stalls lie in its mean.
    high = np.maximum(np.median(shaped, axis=2), shaped.mean(axis=2)).max(axis=1)
    return [int(row) for row in np.flatnonzero(high >= 0.5 * least)]


def _reference(frame: Frame, own: FloatArray, smooth: int) -> FloatArray:
    if smooth == 1:
        reference = peers_median(own, frame.roles)
        alone = np.isnan(reference).all(axis=1)
        # Nobody has the same role: only the own past is left, so what it always was is no offset.
        if alone.any():
            reference = reference.copy()
            reference[alone] = median(own[alone][:, frame.usable], axis=1)[:, np.newaxis]
        return reference
    count = len(own)
    filled: FloatArray = np.nan_to_num(own)
    others: FloatArray = (filled.sum(axis=0, keepdims=True) - filled) / max(1, count - 1)
    return others


def _shift(distance: FloatArray, own: FloatArray, least: float, smooth: int) -> Shift | None:
    shift = shift_of(distance, least, smooth=smooth)
    if shift is not None and _moved_itself(own, shift, smooth):
        return shift
    return offset_of(distance, least, smooth=smooth)


def _moved_itself(own: FloatArray, shift: Shift, smooth: int) -> bool:
    """Whether the rank itself became slower, rather than its peers faster."""
    centre = mean if smooth > 1 else middle
    return centre(own[shift.mask]) - centre(own[shift.baseline]) >= 0.5 * shift.excess


def _alone(frame: Frame) -> list[RankShift]:
    """A single rank has only its own past."""
    found = []
    for row in range(frame.shape[0]):
        shift = shift_of(judged(frame, frame.steady_ms[row]), LEAST_FRACTION * frame.typical_ms)
        if shift is not None:
            found.append(RankShift(row, "work", shift))
    return found


def own_shift(frame: Frame) -> Shift | None:
    """All ranks came to work longer: the median over ranks of what each did itself."""
    steady = job_at_equal_work(frame, median(frame.steady_ms))
    return shift_of(judged(frame, steady), LEAST_FRACTION * frame.typical_ms)


def job_shift(frame: Frame) -> Shift | None:
    """The job's step became longer than it was."""
    return shift_of(judged(frame, job_at_equal_work(frame, frame.job_ms)), LEAST_FRACTION * frame.typical_ms)


@dataclass(frozen=True, slots=True)
class HostShift:
    """All ranks of a host became, or always were, slower than those of other hosts."""

    host: int
    rows: tuple[int, ...]
    shift: Shift


def host_shifts(frame: Frame) -> list[HostShift]:
    """Hosts whose ranks stand out together."""
    hosts = int(frame.hosts.max()) + 1 if frame.ranks else 0
    if hosts < 2 or frame.shape[0] < 2 * hosts:
        return []
    # Stages differ: each rank is compared with those of its own role first.
    usual = _role_medians(frame, frame.steady_ms)
    rows_of = [tuple(int(row) for row in np.flatnonzero(frame.hosts == host)) for host in range(hosts)]
    relative = frame.steady_ms / usual
    signals = np.stack([median(relative[list(rows)]) for rows in rows_of]) * middle(usual)
    lowest = np.stack([np.quantile(relative[list(rows)], 0.25, axis=0) for rows in rows_of])
    found = []
    for host in range(hosts):
        others = median(np.delete(signals, host, axis=0))
        distance = judged(frame, signals[host] - others)
        shift = _shift(distance, median(frame.steady_ms[list(rows_of[host])]), LEAST_FRACTION * frame.typical_ms, 1)
        if shift is None:
            continue
        # Most of its ranks, not one or two of them.
        usual_lowest = middle(lowest[host][shift.baseline]) if not shift.from_start else 1.0
        if middle(lowest[host][shift.mask]) - usual_lowest > 0.5 * LEAST_FRACTION:
            found.append(HostShift(host, rows_of[host], shift))
    return found


def _role_medians(frame: Frame, values: FloatArray) -> FloatArray:
    """For each row what its role usually takes, over all of the run's usable steps: one number a row."""
    usual = np.ones((frame.shape[0], 1))
    for role in range(int(frame.roles.max()) + 1):
        rows = np.flatnonzero(frame.roles == role)
        usual[rows] = max(middle(values[rows][:, frame.usable]), 1e-9)
    return usual


def transfer_shift(frame: Frame) -> Shift | None:
    """Collectives came to take longer for all, those who come last included: the least wait of each step."""
    if frame.shape[0] < 2:
        return None
    signals = [_least(frame.wait_ms)]
    inner = frame.device("inner_wait_ns") / NS_PER_MS
    if frame.inner is not None and np.isfinite(inner).any():
        # The slowest group: the others then wait for it elsewhere.
        groups = [_least(inner[frame.inner == group]) for group in range(int(frame.inner.max()) + 1)]
        signals.append(np.max(np.nan_to_num(np.stack(groups)), axis=0))
    if frame.timed is not None and frame.timed_share >= TIMED_SHARE:
        # Of all groups the one that came to take longest.
        signals.append(np.max(np.nan_to_num(frame.timed.transfer_ms), axis=0))
    found = []
    for signal in signals:
        values = judged(frame, signal)
        steady = shift_of(values, LEAST_FRACTION * frame.typical_ms)
        smooth = steady or shift_of(values, LEAST_FRACTION * frame.typical_ms, smooth=TRANSFER_SMOOTH)
        found.append(smooth or _recurring_holdups(frame, values))
    return max((shift for shift in found if shift is not None), key=lambda shift: shift.excess, default=None)


def _recurring_holdups(frame: Frame, values: FloatArray) -> Shift | None:
    """Single steps that are held up, again and again: how often, whatever each of them costs.

    What one takes differs by so much that means over steps drown in it; above the steps around it, and cut off at the
    same height, it does not.
    """
    above = np.clip(values - _around(values), 0.0, HELD_UP * frame.typical_ms)
    shift = shift_of(above, LEAST_FRACTION * frame.typical_ms, smooth=TRANSFER_SMOOTH)
    if shift is None:
        return None
    return replace(shift, excess=mean(values[shift.mask]) - mean(values[shift.baseline]))


def _around(values: FloatArray) -> FloatArray:
    """For each step the median of those around it, of which few are held up."""
    there = np.flatnonzero(np.isfinite(values))
    if there.size <= 2 * TRANSFER_SMOOTH:
        return np.full_like(values, middle(values))
    padded = np.pad(values[there], TRANSFER_SMOOTH, mode="reflect")
    usual = np.full_like(values, np.nan)
    usual[there] = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * TRANSFER_SMOOTH + 1), axis=1)
    return usual


def _least(waits: FloatArray) -> FloatArray:
    """The wait of whoever came last, step by step: nothing but transfer."""
    least = np.min(np.where(np.isfinite(waits), waits, np.inf), axis=0)
    return np.where(np.isfinite(least), least, np.nan)


def data_shift(frame: Frame) -> Shift | None:
    """The job waits for data: more than it did, or much from the first step on.

    By the longest wait of each step: the device of a rank whose batch comes late is idle, while those of the others
    wait in the collective and hide that their batches are late as well.
    """
    typical = frame.typical_ms
    longest = judged(frame, np.max(np.nan_to_num(frame.parts["data_wait"]), axis=0, initial=0.0))
    shift = shift_of(longest, LEAST_FRACTION * typical, smooth=DATA_SMOOTH)
    return shift or offset_of(longest, DATA_FRACTION * typical, smooth=DATA_SMOOTH)


def data_carriers(frame: Frame, shift: Shift) -> list[int]:
    """Rows of the ranks whose host waits for data about as much as any does, above its own past."""
    waited = host_ms(frame, "data_wait_ns")
    grown = waited[:, shift.mask].mean(axis=1)
    if shift.baseline.any():
        grown = grown - waited[:, shift.baseline].mean(axis=1)
    most = float(grown.max(initial=0.0))
    return [row for row in range(frame.shape[0]) if grown[row] >= DATA_SHARED * most] if most > 0 else []


def events_of(stall: FloatArray, least_ms: float) -> BoolArray:
    """Steps in which some rank stalled for at least `least_ms`."""
    worst: FloatArray = np.max(np.nan_to_num(stall), axis=0, initial=0.0)
    return worst >= least_ms


def stall_price(frame: Frame, stall: FloatArray, events: BoolArray, over: BoolArray) -> float:
    """ms a step that stalls cost in the steps of `over`: what the step grew by where they were, at most their length.

    A stall of one rank shows in its own step and, as a wait, in the peers' next ones. Where nearly every step has one
    there is nothing to compare with, and their length is taken.
    """
    worst: FloatArray = np.max(np.nan_to_num(stall), axis=0, initial=0.0)
    count = max(1, int(over.sum()))
    after = events.copy()
    for later in (1, 2):
        after[later:] |= events[:-later]
    calm = frame.usable & ~after
    if calm.sum() < LEAST_STEPS:
        return float(worst[over].sum()) / count
    usual = middle(frame.job_ms[calm])
    grown = np.nan_to_num(frame.job_ms - usual)
    cost = 0.0
    places = [int(place) for place in np.flatnonzero(events & over)]
    for place, following in zip(places, [*places[1:], len(grown)], strict=True):
        end = min(place + 3, following)
        cost += min(max(0.0, float(grown[place:end].sum())), float(worst[place]))
    return cost / count


def host_ms(frame: Frame, field: str) -> FloatArray:
    """A duration of StepRecord in ms, with nothing in steps that may not be judged."""
    values: FloatArray = np.where(frame.usable, np.nan_to_num(frame.host(field)) / NS_PER_MS, 0.0)
    return values
