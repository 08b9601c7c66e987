"""What a step should have taken for the work in it: expected time first, then what is left.

Batches and sequences of different size make steps differ though nothing is wrong. A polynomial of second degree (a
sequence costs its length, and attention its square) is fitted to time over size; what it explains is taken away.
"""

from __future__ import annotations

import numpy as np

from rankscope.rules.frame import FloatArray, Frame, median, middle

#: Sizes that wander by less than this are alike.
_WANDERS = 0.03
#: A fit that explains less than this of the time's variance says nothing.
_EXPLAINS = 0.3
_POINTS = 20_000
_CLIP = 4.0


def at_equal_work(frame: Frame, values: FloatArray) -> FloatArray:
    """Own times of ranks by steps as if every batch had its rank's and the job's usual size.

    Only where sizes wander from step to step between ranks: a rank that always has more to do keeps its time.
    """
    work = frame.host("work")
    usual = median(work)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = work / usual
    spread = [float(np.nanstd(row[frame.usable])) for row in ratio if np.isfinite(row[frame.usable]).any()]
    if not spread or float(np.median(spread)) < _WANDERS:
        return values
    same: FloatArray = values - _explained(frame, work, values)
    return same


def job_at_equal_work(frame: Frame, values: FloatArray) -> FloatArray:
    """The job's own signal, step by step, as if every step had the usual work."""
    usual = median(frame.host("work"))
    there = usual[frame.usable & np.isfinite(usual)]
    if there.size < 20 or float(there.std()) < _WANDERS * float(there.mean()):
        return values
    same: FloatArray = values - _explained(frame, usual[np.newaxis], values[np.newaxis])[0]
    return same


def _explained(frame: Frame, work: FloatArray, values: FloatArray) -> FloatArray:
    """For each value what its size adds to the usual; zeros where size explains nothing."""
    nothing: FloatArray = np.zeros_like(values)
    chosen = np.isfinite(work) & np.isfinite(values) & (work > 0) & frame.usable[np.newaxis]
    typical = middle(work[chosen])
    if not np.isfinite(typical) or int(chosen.sum()) < 20:
        return nothing
    sizes, times = (work[chosen] / typical).astype(np.float64), values[chosen].astype(np.float64)
    step = max(1, len(sizes) // _POINTS)
    sizes, times = sizes[::step], times[::step]
    kept = np.ones(len(sizes), dtype=bool)
    for _ in range(2):
        # Batches of two sizes have a line through them, and no curve.
        fit = np.polyfit(sizes[kept], times[kept], min(2, len(np.unique(sizes[kept])) - 1))
        left = times - np.polyval(fit, sizes)
        spread = float(np.median(np.abs(left - np.median(left))))
        kept = np.abs(left - np.median(left)) <= _CLIP * 1.4826 * spread if spread > 0 else kept
        if int(kept.sum()) < 20:
            return nothing
    if float(left[kept].var()) > (1 - _EXPLAINS) * float(times[kept].var()):
        return nothing
    added: FloatArray = np.polyval(fit, work / typical) - np.polyval(fit, 1.0)
    return np.where(np.isfinite(added), added, 0.0)
