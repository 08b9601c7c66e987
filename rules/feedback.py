"""A feedback loop, or two series that merely move together?

`cause` drives `effect` forwards, and the effect may come back into the cause on a return path. Two series that share a
daily cycle correlate as well, so correlation says nothing. What tells is a cut: in windows drawn by chance the return
path is taken away (features from a holdout, a throttle overridden, retries off). A cause that follows the effect only
where the path is open is driven by it; one that follows it in both is not.

    return:   cause[t]  = season + a * effect[t-d] + g * effect[t-d] * open[t] + noise      g: gain of the return path
    forward:  effect[t] = season + b * cause[t-e] + noise                                   b: gain of the forward path

Both are tested by redrawing the cuts (their order was chance, so this is exact), the largest statistic over all delays
at once. b is estimated with the cut as instrument, so that a common driver of both series drops out. The loop's gain
is g * b: what comes back of a change after one round of d + e.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rankscope.rules.switchback import Interval

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

#: Windows of each kind that it takes to say anything.
LEAST_WINDOWS = 6
_REDRAWS = 999
_RESAMPLES = 1_000


class LoopVerdict(StrEnum):
    """What the windows say."""

    LOOP = "loop"
    NO_RETURN = "no return path"
    ONE_WAY = "return path, forward path not shown"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Loop:
    """Gains, delays (samples) and intervals. `forward` and `gain` are None where the return path was not shown."""

    verdict: LoopVerdict
    samples: int
    open_windows: int
    cut_windows: int
    #: How strongly the series move together as they are, which says nothing by itself.
    correlation: float
    returned: Interval
    return_delay: int
    p_value: float
    forward: Interval | None = None
    forward_delay: int | None = None
    gain: Interval | None = None


def loop(
    cause: FloatArray,
    effect: FloatArray,
    cut: BoolArray,
    *,
    max_delay: int,
    period: int | None = None,
    alpha: float = 0.01,
    seed: int = 0,
) -> Loop | None:
    """Whether effect comes back into cause; None where there are too few windows of either kind to say.

    Samples are evenly spaced; `cut` marks those in which the return path was cut. `period` is the length of a cycle
    that both may share (24 for hours of a day): its mean is taken out by phase.
    """
    starts = window_starts(cut)
    open_windows, cut_windows = (int((cut[starts] == state).sum()) for state in (False, True))
    if min(open_windows, cut_windows) < LEAST_WINDOWS:
        return None
    draw = np.random.default_rng(seed)
    x, y = (_without_season(values, period) for values in (cause, effect))
    moves = min(x.std(), y.std()) > 0
    delays = range(1, max_delay + 1)
    scores = np.array([_return_path(x, y, cut, delay) for delay in delays])
    best = int(np.argmax(np.abs(scores[:, 1])))
    delay, slope = best + 1, float(scores[best, 0])
    redraws = [_redraw(cut, starts, draw) for _ in range(_REDRAWS)]

    def chance(score: float, strongest: Callable[[BoolArray], float]) -> float:
        return float((1 + sum(strongest(other) >= score for other in redraws)) / (_REDRAWS + 1))

    p_value = chance(
        abs(scores[best, 1]), lambda other: max(abs(_return_path(x, y, other, each)[1]) for each in delays)
    )
    samples = _resampled(len(x), starts, draw)
    returned = _interval(slope, [_return_path(x, y, cut, delay, rows)[0] for rows in samples], alpha)
    correlation = float(np.corrcoef(cause, effect)[0, 1]) if moves else 0.0
    shown = Loop(LoopVerdict.UNDECIDED, len(x), open_windows, cut_windows, correlation, returned, delay, p_value)
    if p_value >= alpha:
        verdict = LoopVerdict.NO_RETURN if _negligible(returned, x, y) else LoopVerdict.UNDECIDED
        return _with(shown, verdict)
    forwards = np.array([_forward_path(x, y, cut, delay, ahead) for ahead in delays])
    ahead = int(np.argmax(np.abs(forwards[:, 1]))) + 1
    # Where the forward path has no gain, the cut does not reach the effect, and redrawing it changes nothing.
    reached = chance(
        abs(forwards[ahead - 1, 1]),
        lambda other: max(abs(_forward_path(x, y, other, delay, each)[1]) for each in delays),
    )
    forward = _interval(
        float(forwards[ahead - 1, 0]), [_forward_path(x, y, cut, delay, ahead, rows)[0] for rows in samples], alpha
    )
    gain = _interval(
        slope * forward.value,
        [_return_path(x, y, cut, delay, rows)[0] * _forward_path(x, y, cut, delay, ahead, rows)[0] for rows in samples],
        alpha,
    )
    verdict = LoopVerdict.LOOP if reached < alpha else LoopVerdict.ONE_WAY
    return _with(shown, verdict, forward, ahead, gain)


def window_starts(cut: BoolArray) -> NDArray[np.int64]:
    """Where each window begins: at the start, and wherever the state changes."""
    return np.concatenate([[0], np.flatnonzero(cut[1:] != cut[:-1]) + 1]).astype(np.int64)


def schedule(windows: int, length: int, share: float, seed: int) -> BoolArray:
    """Cuts to make: that many windows of `length` samples, of which about `share` are cut, drawn by chance."""
    draw = np.random.default_rng(seed)
    chosen = np.zeros(windows, dtype=bool)
    chosen[draw.permutation(windows)[: max(1, round(windows * share))]] = True
    return np.repeat(chosen, length)


def _with(
    shown: Loop,
    verdict: LoopVerdict,
    forward: Interval | None = None,
    forward_delay: int | None = None,
    gain: Interval | None = None,
) -> Loop:
    return Loop(
        verdict,
        shown.samples,
        shown.open_windows,
        shown.cut_windows,
        shown.correlation,
        shown.returned,
        shown.return_delay,
        shown.p_value,
        forward,
        forward_delay,
        gain,
    )


def _without_season(values: FloatArray, period: int | None) -> FloatArray:
    """Deviations from the mean, phase by phase where there is a cycle, and from a slow straight trend."""
    time = np.arange(len(values), dtype=float)
    columns = [np.ones_like(time), time / len(time)]
    if period is not None and period > 1:
        phase = np.arange(len(values)) % period
        columns += [(phase == each).astype(float) for each in range(1, period)]
    return _residual(values, np.column_stack(columns))


def _residual(values: FloatArray, design: FloatArray) -> FloatArray:
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    rest: FloatArray = values - design @ solution
    return rest


def _return_path(
    x: FloatArray, y: FloatArray, cut: BoolArray, delay: int, rows: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """(gain, statistic) of effect[t-delay] on cause[t] where the return path is open, beyond where it is cut."""
    at = np.arange(delay, len(x)) if rows is None else rows[rows >= delay]
    past, is_open = y[at - delay], (~cut[at]).astype(float)
    design = np.column_stack([np.ones_like(past), past, is_open])
    interaction = _residual(past * is_open, design)
    outcome = _residual(x[at], design)
    scale = float(interaction @ interaction)
    if scale <= 1e-12 * max(float(past @ past), 1e-300):
        return 0.0, 0.0
    slope = float(interaction @ outcome) / scale
    rest = outcome - slope * interaction
    # Robust to noise that depends on the state (HC0): a cut path is often the quieter one.
    error = float(np.sqrt((interaction**2 * rest**2).sum())) / scale
    return slope, slope / error if error > 0 else 0.0


def _forward_path(
    x: FloatArray, y: FloatArray, cut: BoolArray, delay: int, ahead: int, rows: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """(gain of the forward path, statistic of the instrument): cause[t] on effect[t+ahead], moved by the cut alone."""
    at = np.arange(delay, len(x) - ahead) if rows is None else rows[(rows >= delay) & (rows < len(x) - ahead)]
    past, is_open = y[at - delay], (~cut[at]).astype(float)
    # What is common to cause and effect and known by t stays out: the effect up to t, and the state itself.
    design = np.column_stack([np.ones_like(past), past, is_open, y[at]])
    instrument = _residual(past * is_open, design)
    moved, outcome = float(instrument @ x[at]), float(instrument @ y[at + ahead])
    scale = float(instrument @ instrument)
    if abs(moved) <= 1e-12 * max(scale, 1e-300):
        return 0.0, 0.0
    rest = _residual(y[at + ahead], design)
    spread = float(np.sqrt((instrument**2 * rest**2).sum()))
    return outcome / moved, outcome / spread if spread > 0 else 0.0


def _redraw(cut: BoolArray, starts: NDArray[np.int64], draw: np.random.Generator) -> BoolArray:
    """The cuts as chance might have dealt them: windows keep their places and lengths, states are dealt anew."""
    lengths = np.diff(np.append(starts, len(cut)))
    unit = max(1, int(np.gcd.reduce(lengths)))
    return np.repeat(draw.permutation(cut[::unit]), unit)[: len(cut)]


def _resampled(count: int, starts: NDArray[np.int64], draw: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of windows drawn with replacement: neighbours stay together, since they are alike."""
    windows = [np.arange(a, b) for a, b in zip(starts, np.append(starts[1:], count), strict=True)]
    return [
        np.concatenate([windows[index] for index in draw.integers(0, len(windows), len(windows))])
        for _ in range(_RESAMPLES)
    ]


def _interval(value: float, resampled: Sequence[float], alpha: float) -> Interval:
    low, high = np.quantile(resampled, [alpha / 2, 1 - alpha / 2])
    return Interval(value, float(low), float(high))


def _negligible(returned: Interval, x: FloatArray, y: FloatArray) -> bool:
    """Whether even the end of the interval would explain next to nothing (5 %) of the cause's variance."""
    reach = max(abs(returned.low), abs(returned.high))
    return bool(reach * reach * y.var() < 0.05 * x.var())
