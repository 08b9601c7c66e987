"""How training itself gets on: throughput and MFU, loss and gradient norm that jump or break, memory that grows.

None of it is a fault's cause; it is told beside the findings, with the step and the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median as middle_of
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.records import NonFinite, SignalRecord
from rankscope.rules.frame import WARM_UP_STEPS
from rankscope.window import RankWindow, Window

FloatArray = NDArray[np.float64]

#: Values before one that it is compared to, and how many of them it takes to compare at all.
_PAST = 64
_LEAST_PAST = 16
#: A jump is this many robust standard deviations above the median of the nearest past, on a logarithmic scale, and at
#: least this factor. Eight, since losses of small batches have long tails: none in 10,000 lognormal values.
_JUMP_DEVIATIONS = 8.0
_JUMP_FACTOR = 1.5
#: Points of one rank's memory that the trend looks at; neighbours are alike, so more say no more.
_TREND_POINTS = 200
_LEAST_TREND_POINTS = 20
#: Two-sided 99 % of the normal distribution.
_Z = 2.576
#: Growth over the window below this share of what was allocated is not told.
_TOLD_GROWTH = 0.02
#: Jumps told of one signal: the first ones.
_TOLD_JUMPS = 8


@dataclass(frozen=True, slots=True)
class Jump:
    """A value far above its own past, or (value None) one that is NaN or infinite."""

    signal: str
    step: int
    rank: int
    value: float | None
    usual: float | None


@dataclass(frozen=True, slots=True)
class Growth:
    """Memory of one rank that grows with the steps: bytes a step, with the ends of its 99 % interval."""

    rank: int
    bytes_per_step: float
    low: float
    high: float
    #: Steps until the device is full, at this rate; None where its size is not known.
    steps_left: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """What the training loop said of itself; None where it said nothing."""

    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    #: Model operations a second over all ranks, and their share of what the devices can do at most.
    flops_per_second: float | None = None
    mfu: float | None = None
    last_loss: float | None = None
    jumps: tuple[Jump, ...] = ()
    growth: tuple[Growth, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON, in the verdict's `job.progress`."""
        return asdict(self)


def progress(window: Window) -> Progress | None:
    """How training got on in this window; None where there is nothing to tell."""
    ranks = window.ranks
    rates = {
        name: _total(_rate(of, name) for of in ranks.values()) for name in ("samples", "tokens", "flops", "peak_flops")
    }
    flops, peak = rates["flops"], _total(_peak(of) for of in ranks.values() if _rate(of, "flops") is not None)
    jumps = [jump for rank, of in sorted(ranks.items()) for jump in _jumps(rank, of.signals)]
    losses = [of.signals[-1].loss for of in ranks.values() if of.signals]
    known = [loss for loss in losses if loss is not None]
    found = Progress(
        samples_per_second=rates["samples"],
        tokens_per_second=rates["tokens"],
        flops_per_second=flops,
        mfu=flops / peak if flops is not None and peak else None,
        last_loss=middle_of(known) if known else None,
        jumps=tuple(sorted(jumps, key=lambda jump: (jump.step, jump.rank))[:_TOLD_JUMPS]),
        growth=tuple(growth for rank, of in sorted(ranks.items()) if (growth := _growth(window, rank, of)) is not None),
    )
    return None if found == Progress() else found


def _total(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) if there else None


def _rate(of: RankWindow, name: str) -> float | None:
    """Of what a rank did, how much a second: from its second record on, since a record tells what led up to it."""
    counted = [record for record in of.signals if getattr(record, name) is not None and record.step >= WARM_UP_STEPS]
    if len(counted) < 2 or counted[-1].time_ns <= counted[0].time_ns:
        return None
    done = sum(getattr(record, name) for record in counted[1:])
    return float(done * 1e9 / (counted[-1].time_ns - counted[0].time_ns))


def _peak(of: RankWindow) -> float | None:
    return next((float(record.peak_flops) for record in of.signals if record.peak_flops is not None), None)


def _jumps(rank: int, signals: Sequence[SignalRecord]) -> list[Jump]:
    found = []
    for name, bit in (("loss", NonFinite.LOSS), ("gradient_norm", NonFinite.GRADIENT_NORM)):
        broken = next((record for record in signals if record.nonfinite & bit), None)
        if broken is not None:
            # Whatever follows a NaN is one too: the first is what matters.
            found.append(Jump(name, broken.step, rank, None, None))
        values = [(record.step, getattr(record, name)) for record in signals if getattr(record, name) is not None]
        found += [Jump(name, step, rank, value, usual) for step, value, usual in _outliers(values)]
    return found


def _outliers(values: Sequence[tuple[int, float]]) -> list[tuple[int, float, float]]:
    """(step, value, median of the past) of positive values far above their past."""
    found: list[tuple[int, float, float]] = []
    past: list[float] = []
    for step, value in values:
        if value <= 0:
            continue
        log = math.log(value)
        if len(past) >= _LEAST_PAST:
            usual = middle_of(past[-_LEAST_PAST:])
            # From neighbours, so that a loss that falls is not taken for one that wavers (1.0484 = 1.4826 / sqrt 2).
            deviation = 1.0484 * middle_of([abs(after - before) for before, after in pairwise(past)])
            if log - usual > max(_JUMP_DEVIATIONS * deviation, math.log(_JUMP_FACTOR)):
                found.append((step, value, math.exp(usual)))
                continue  # an outlier is no past to compare to
        past = [*past[1 - _PAST :], log]
    return found


def _growth(window: Window, rank: int, of: RankWindow) -> Growth | None:
    """The Theil-Sen slope of allocated memory with Sen's interval, where it is above zero and worth telling."""
    columns = of.steps.columns
    if "allocated_bytes" not in columns:
        return None
    steps = np.asarray(columns["step"], dtype=np.float64)
    sizes = np.asarray(columns["allocated_bytes"], dtype=np.float64)
    usable = np.isfinite(sizes) & (steps >= WARM_UP_STEPS)
    steps, sizes = steps[usable], sizes[usable]
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _TREND_POINTS)).astype(int))
    if len(chosen) < _LEAST_TREND_POINTS:
        return None
    slope, low, high = _theil_sen(steps[chosen], sizes[chosen])
    if low <= 0 or slope * (steps[-1] - steps[0]) < _TOLD_GROWTH * sizes[-1]:
        return None
    room = _room(window, of, float(sizes[-1]))
    return Growth(rank, slope, low, high, None if room is None else int(room / slope))


def _theil_sen(steps: FloatArray, sizes: FloatArray) -> tuple[float, float, float]:
    """(slope, low, high): the median of all pairs' slopes, and the 99 % interval by Kendall's variance."""
    first, second = np.triu_indices(len(steps), 1)
    slopes = np.sort((sizes[second] - sizes[first]) / (steps[second] - steps[first]))
    count = len(steps)
    spread = _Z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(int((len(slopes) - spread) / 2), 0)
    high = min(int((len(slopes) + spread) / 2) + 1, len(slopes) - 1)
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])


def _room(window: Window, of: RankWindow, allocated: float) -> float | None:
    totals = [
        values.values[-1]
        for key, values in window.series.items()
        if key.metric == "gpu.memory_total_bytes" and key.device == of.identity.gpu_uuid and values.values
    ]
    return totals[0] - allocated if totals else None
