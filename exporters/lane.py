"""One rank's lane: columns of steps and series of counters made into bars, points and runs."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise
from operator import sub
from statistics import median
from typing import Any

from rankscope.window import Columns, RankWindow, Series

#: Phases in the order in which a step is drawn, with the names people read.
PHASES = {
    "data_wait": "data wait",
    "forward": "forward",
    "backward_own": "backward, own",
    "peer_wait": "wait for others",
    "optimizer": "optimizer",
    "checkpoint": "checkpoint",
    "evaluation": "evaluation",
    "other": "other",
}
#: Counters drawn beside the steps: by name, the metrics that serve, best first.
SERIES = {
    "clock": ("gpu.sm_clock_mhz",),
    "power": ("gpu.power_watts", "gpu.power_instant_watts"),
    "temperature": ("gpu.temperature_celsius",),
}
_DEVICE_PHASES = ("data_wait_ns", "forward_ns", "backward_own_ns", "backward_wait_ns", "optimizer_ns", "other_ns")
#: A silence longer than this many usual periods is drawn as a gap.
GAP_PERIODS = 4

ToMicroseconds = Callable[[float], int]


def phase_columns(seen: RankWindow) -> dict[str, array[float]]:
    """The phases of each host step, in ns; NaN where a phase was not timed.

    Where the rank has a device clock, forward, backward, wait and optimizer are the device's: the host's times say
    when work was enqueued, not when it was done.
    """
    host = seen.steps.columns
    rows = len(seen.steps)
    missing = _missing(rows)
    if not len(seen.device):
        own = host.get("backward_own_ns", missing)
        whole = host.get("backward_ns", missing)
        timed = any(not math.isnan(value) for value in own)
        return {
            "data_wait": host.get("data_wait_ns", missing),
            "forward": host.get("forward_ns", missing),
            "backward_own": own if timed else whole,
            "peer_wait": array("d", map(sub, whole, own)) if timed else missing,
            "optimizer": host.get("optimizer_ns", missing),
            "checkpoint": host.get("checkpoint_ns", missing),
            "evaluation": host.get("evaluation_ns", missing),
            "other": host.get("other_ns", missing),
        }
    device = {name: aligned(seen.device, name, host["step"]) for name in _DEVICE_PHASES}
    checkpoint = host.get("checkpoint_ns", missing)
    evaluation = host.get("evaluation_ns", missing)
    other = device["other_ns"]
    if any(checkpoint) or any(evaluation):
        # The device idles while the host writes a checkpoint or evaluates, and books that time as its own "other".
        told = zip(other, checkpoint, evaluation, strict=True)
        other = array("d", (max(0.0, rest - _or_zero(one) - _or_zero(two)) for rest, one, two in told))
    return {
        "data_wait": device["data_wait_ns"],
        "forward": device["forward_ns"],
        "backward_own": device["backward_own_ns"],
        "peer_wait": device["backward_wait_ns"],
        "optimizer": device["optimizer_ns"],
        "checkpoint": checkpoint,
        "evaluation": evaluation,
        "other": other,
    }


def aligned(device: Columns, name: str, steps: array[float]) -> array[float]:
    """A device column with one row for every host step, NaN where the device's record is missing."""
    numbers, column = device.columns["step"], device.columns[name]
    first = bisect_left(steps, numbers[0])
    last = first + len(numbers)
    if steps[first:last] == numbers:
        # Nearly always: records without a hole.
        return _missing(first) + column + _missing(len(steps) - last)
    place = dict(zip(numbers, column, strict=True))
    return array("d", (place.get(step, math.nan) for step in steps))


def _missing(rows: int) -> array[float]:
    return array("d", [math.nan]) * rows


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def step_bars(steps: Columns, phases: dict[str, array[float]], per_bar: int, to_us: ToMicroseconds) -> dict[str, Any]:
    """Bars of `per_bar` steps each: begin (as differences), length, first step, and the mean of every phase.

    `lo` and `hi` hold the shortest and longest step of a bar and are left out where a bar is one step.
    """
    bars: dict[str, Any] = {"t": [], "d": [], "s": [], "p": [[] for _ in PHASES]}
    if per_bar > 1:
        bars |= {"n": [], "lo": [], "hi": []}
    if not len(steps):
        return bars
    starts, ends, numbers = (steps.columns[name] for name in ("start_ns", "end_ns", "step"))
    before = 0
    for first in range(0, len(starts), per_bar):
        last = min(first + per_bar, len(starts)) - 1
        begin = to_us(starts[first])
        bars["t"].append(begin - before)
        bars["d"].append(max(1, to_us(ends[last]) - begin))
        bars["s"].append(int(numbers[first]))
        before = begin
        if per_bar > 1:
            lengths = list(map(sub, ends[first : last + 1], starts[first : last + 1]))
            bars["n"].append(len(lengths))
            bars["lo"].append(int(min(lengths) // 1_000))
            bars["hi"].append(int(max(lengths) // 1_000))
        for place, name in enumerate(PHASES):
            value = _mean(phases[name][first : last + 1])
            bars["p"][place].append(None if value is None else round(value / 1_000))
    return bars


def _mean(values: array[float]) -> float | None:
    """Mean of what was seen; None where nothing was."""
    total = sum(values)
    if not math.isnan(total):
        return total / len(values)
    seen = [value for value in values if not math.isnan(value)]
    return sum(seen) / len(seen) if seen else None


def within(series: Series, begin_us: int, end_us: int, to_us: ToMicroseconds) -> Series:
    """The part of a series in a stretch of time, with a reading more on each side."""
    first = max(0, bisect_left(series.times_ns, begin_us, key=to_us) - 1)
    last = bisect_right(series.times_ns, end_us, key=to_us) + 1
    return Series(series.times_ns[first:last], series.values[first:last])


def series_points(series: Series, most: int, to_us: ToMicroseconds) -> dict[str, Any]:
    """At most `most` points: time (as differences), mean, and the extremes where a point stands for several."""
    times, values = series.times_ns, series.values
    per_point = -(-len(values) // most)
    points: dict[str, Any] = {"t": [], "v": [], "gap": _gap_us(times) * per_point}
    if per_point > 1:
        points |= {"lo": [], "hi": []}
    before = 0
    for first in range(0, len(values), per_point):
        chunk = values[first : first + per_point]
        middle = to_us(times[min(first + per_point // 2, len(times) - 1)])
        points["t"].append(middle - before)
        before = middle
        points["v"].append(_short(sum(chunk) / len(chunk)))
        if per_point > 1:
            points["lo"].append(_short(min(chunk)))
            points["hi"].append(_short(max(chunk)))
    return points


def reason_runs(series: Series, most: int, to_us: ToMicroseconds) -> list[list[int]]:
    """Stretches of time with one mask of clock event reasons: begin, end, mask. Masks of 0 are left out.

    Where there would be more than `most`, neighbours are joined and their masks added: no reason gets lost.
    """
    gap = _gap_us(series.times_ns)
    times = [to_us(time_ns) for time_ns in series.times_ns]
    # A reading holds until the next one, but not across a silence.
    ends = [min(second, first + gap) for first, second in pairwise(times)] + [
        time + gap // GAP_PERIODS for time in times[-1:]
    ]
    runs: list[list[int]] = []
    for begin, end, value in zip(times, ends, series.values, strict=True):
        mask = int(value)
        if runs and runs[-1][2] == mask and begin <= runs[-1][1]:
            runs[-1][1] = end
        else:
            runs.append([begin, end, mask])
    runs = [run for run in runs if run[2]]
    size = -(-len(runs) // most)
    if size > 1:
        runs = [_joined(runs[first : first + size]) for first in range(0, len(runs), size)]
    return runs


def _joined(runs: list[list[int]]) -> list[int]:
    mask = 0
    for run in runs:
        mask |= run[2]
    return [runs[0][0], runs[-1][1], mask]


def _gap_us(times_ns: array[int]) -> int:
    """A silence that is longer than usual, in microseconds."""
    periods = sorted(second - first for first, second in pairwise(times_ns))
    if not periods:
        return 1_000_000
    # After a trigger a source is read more often than before: the slower of its two rates counts too.
    slow = periods[int(0.95 * (len(periods) - 1))]
    return int(max(GAP_PERIODS * median(periods), 2.5 * slow) / 1_000)


def _short(value: float) -> float:
    """Four digits are more than a pixel shows."""
    return round(value) if abs(value) >= 100 else round(value, 1)
