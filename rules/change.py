"""When a signal changed level, and whether the change is real: medians, MAD, no threshold in absolute units.

Binary segmentation finds where the means of a clipped signal differ most; the medians on both sides then have to differ
by more than the noise between neighbouring steps can do, autocorrelation counted in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.rules.frame import BoolArray, FloatArray

#: How many standard errors apart two levels must be. Some 160 places are tried, in tens of signals, on noise with
#: heavy tails, so this lies well above what one comparison would ask.
SIGMAS = 6.0
#: The same where the noise of each level is its own, together with what their ranks must show.
_OWN_SIGMAS = 3.0
_RANK_SIGMAS = 5.5
#: A level that lasted fewer steps is a spike, not a level.
LEAST_STEPS = 8
_BLOCKS = 160
_MANY = 40
_DEPTH = 5
#: Standard deviation of a normal distribution in units of its MAD, and standard error of a median in units of the
#: standard error of a mean.
_MAD_TO_SIGMA = 1.4826
_MEDIAN_ERROR = 1.2533
#: Three quarters of a normal distribution lie within this many standard deviations.
_QUARTER_TO_SIGMA = 1.1503


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch [begin, end) of indexes with one level."""

    begin: int
    end: int
    level: float


@dataclass(frozen=True, slots=True)
class Shift:
    """A signal above its own past in the steps of `mask`, by `excess`; `from_start` where it has no past."""

    mask: BoolArray
    baseline: BoolArray
    excess: float
    level: float
    #: Index at which it began, and how many steps of it sufficed to be sure.
    begin: int
    needed: int
    from_start: bool = False
    drift: bool = False

    @classmethod
    def without_past(cls, mask: BoolArray, excess: float) -> Shift:
        """What was there in all steps of `mask`, from the first one on: by comparison with others, not with a past."""
        begin = int(np.flatnonzero(mask)[0])
        return cls(mask.copy(), np.zeros_like(mask), excess, excess, begin, 2 * LEAST_STEPS, from_start=True)


def noise_of(residual: FloatArray) -> float:
    """Robust standard deviation of what is left around a level, widened where neighbours go together."""
    if residual.size < 3:
        return 0.0
    centred = residual - np.median(residual)
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(centred)))
    if sigma <= 0:
        # More than half of it is equal (a wait that is nothing in most steps): the next quarter tells.
        sigma = float(np.quantile(np.abs(centred), 0.75)) / _QUARTER_TO_SIGMA
    if sigma <= 0:
        return 0.0
    clipped = np.clip(centred, -3 * sigma, 3 * sigma)
    power = float(np.dot(clipped, clipped))
    together = float(np.dot(clipped[1:], clipped[:-1])) / power if power > 0 else 0.0
    # Few values cannot tell neighbours that go together from a ramp between two levels.
    together = min(0.9 if residual.size >= _MANY else 0.5, max(0.0, together))
    return sigma * float(np.sqrt((1 + together) / (1 - together)))


def distance(difference: float, sigma: float, left: int, right: int) -> float:
    """How many standard errors two medians over `left` and `right` values of one noise are apart."""
    error = _MEDIAN_ERROR * sigma * float(np.sqrt(1 / left + 1 / right))
    return abs(difference) / error if error > 0 else float("inf")


def _real(before: FloatArray, after: FloatArray) -> bool:
    """Whether two stretches lie on different levels.

    Either their medians are far apart for the noise of both together; or, where a quiet level meets a restless one
    (a thread that competes for its core), they are apart for the noise of each, and so are their ranks.
    """
    difference = float(np.median(after) - np.median(before))
    residual = np.concatenate((before - np.median(before), after - np.median(after)))
    if distance(difference, noise_of(residual), len(before), len(after)) >= SIGMAS:
        return True
    own = _MEDIAN_ERROR * np.hypot(noise_of(before) / np.sqrt(len(before)), noise_of(after) / np.sqrt(len(after)))
    return bool(abs(difference) >= _OWN_SIGMAS * own) and _ranks_apart(before, after) >= _RANK_SIGMAS


def _ranks_apart(before: FloatArray, after: FloatArray) -> float:
    """How many standard errors the rank sum (Wilcoxon, Mann and Whitney) lies from that of one distribution."""
    below = np.searchsorted(np.sort(before), after, side="left").sum()
    upto = np.searchsorted(np.sort(before), after, side="right").sum()
    pairs = len(before) * len(after)
    share = (below + upto) / 2 / pairs
    return float(abs(share - 0.5) / np.sqrt((len(before) + len(after) + 1) / 12 / pairs))


def segments(values: FloatArray, least_shift: float, *, smooth: int = 1) -> list[Segment]:
    """Levels of a signal, in order, over the indexes where it is finite (given back as indexes of `values`).

    Neighbouring levels differ by at least `least_shift` and by more than the noise. `smooth` > 1 compares means over
    that many steps, for signals that stall in some steps only.
    """
    places = np.flatnonzero(np.isfinite(values))
    signal = values[places]
    count = len(signal)
    if count == 0:
        return []
    block = max(smooth, -(-count // _BLOCKS))
    blocks = count // block
    if blocks < 6 or count < 2 * LEAST_STEPS:
        return [Segment(int(places[0]), int(places[-1]) + 1, float(np.median(signal)))]
    shaped = signal[: blocks * block].reshape(blocks, block)
    levels = shaped.mean(axis=1) if smooth > 1 else np.median(shaped, axis=1)
    least = max(3, -(-LEAST_STEPS // block))
    cuts = _pruned(levels, sorted(set(_cuts(levels, 0, blocks, least, least_shift, _DEPTH))), least_shift)
    edges = [0, *(cut * block for cut in cuts), count]
    if block > 1 and smooth == 1:
        edges = [0, *(_refined(signal, edge, block) for edge in edges[1:-1]), count]
    bounds = [*(int(places[edge]) for edge in edges[:-1]), int(places[-1]) + 1]
    blocked = [0, *cuts, blocks]
    return [
        Segment(bounds[index], bounds[index + 1], float(np.median(levels[blocked[index] : blocked[index + 1]])))
        for index in range(len(bounds) - 1)
    ]


def _cuts(levels: FloatArray, low: int, high: int, least: int, least_shift: float, depth: int) -> list[int]:
    size = high - low
    if size < 2 * least or depth == 0:
        return []
    part = levels[low:high]
    centre = float(np.median(part))
    spread = float(np.median(np.abs(part - centre)))
    clipped = np.clip(part, centre - 6 * spread, centre + 6 * spread) if spread > 0 else part
    total = np.cumsum(clipped)
    left = np.arange(1, size)
    gap = np.abs(total[:-1] / left - (total[-1] - total[:-1]) / (size - left))
    score = gap * np.sqrt(left * (size - left) / size)
    cut = int(np.argmax(score[least - 1 : size - least])) + least
    before, after = part[:cut], part[cut:]
    difference = float(np.median(after) - np.median(before))
    middle = low + cut
    if abs(difference) < least_shift or not _real(before, after):
        # What rose may have fallen again further on, so that both sides' medians are alike: look into each.
        inner = [
            *_cuts(levels, low, middle, least, least_shift, depth - 1),
            *_cuts(levels, middle, high, least, least_shift, depth - 1),
        ]
        return [*inner, middle] if inner else []
    return [
        *_cuts(levels, low, middle, least, least_shift, depth - 1),
        middle,
        *_cuts(levels, middle, high, least, least_shift, depth - 1),
    ]


def _pruned(levels: FloatArray, cuts: list[int], least_shift: float) -> list[int]:
    """The cuts whose neighbouring stretches really differ; the weakest goes first, and what it parted becomes one."""
    kept = list(cuts)
    while kept:
        edges = [0, *kept, len(levels)]
        gaps = []
        for place in range(len(kept)):
            before, after = (levels[edges[place + side] : edges[place + side + 1]] for side in (0, 1))
            gap = abs(float(np.median(after) - np.median(before)))
            gaps.append(gap if gap >= least_shift and _real(before, after) else gap - 1e12)
        weakest = int(np.argmin(gaps))
        if gaps[weakest] >= 0:
            return kept
        del kept[weakest]
    return kept


def _refined(signal: FloatArray, edge: int, block: int) -> int:
    """The index within a block of `edge` that parts the two levels best."""
    low, high = max(0, edge - block), min(len(signal), edge + block)
    before = float(np.median(signal[max(0, low - 4 * block) : low + 1]))
    after = float(np.median(signal[high - 1 : high + 4 * block]))
    here = signal[low:high]
    cost = np.concatenate(([0.0], np.cumsum(np.abs(here - before) - np.abs(here - after))))
    return low + int(np.argmin(cost))


def shift_of(values: FloatArray, least_shift: float, *, smooth: int = 1) -> Shift | None:
    """Where a signal lies above the lowest level it kept: the job's own past (or what came after)."""
    found = segments(values, least_shift, smooth=smooth)
    if len(found) < 2:
        return None
    finite = np.isfinite(values)
    base = min(found, key=lambda segment: segment.level)
    raised = [segment for segment in found if segment.level >= base.level + least_shift]
    if raised and raised[0].begin == found[0].begin and base.begin > found[0].begin:
        # Slow at the begin and fast after: cold caches, unless it lasted.
        early = raised[0]
        if early.end - early.begin < (found[-1].end - found[0].begin) / 3:
            raised = raised[1:]
    if not raised:
        return None
    mask = np.zeros(len(values), dtype=bool)
    for segment in raised:
        mask[segment.begin : segment.end] = True
    baseline = np.zeros(len(values), dtype=bool)
    for segment in found:
        if segment.level < base.level + least_shift:
            baseline[segment.begin : segment.end] = True
    mask &= finite
    baseline &= finite
    inner, outer = values[mask], values[baseline]
    level = float(inner.mean() if smooth > 1 else np.median(inner))
    past = float(outer.mean() if smooth > 1 else np.median(outer))
    residual = np.concatenate((inner - np.median(inner), outer - np.median(outer)))
    rising = [segment.level for segment in raised]
    return Shift(
        mask=mask,
        baseline=baseline,
        excess=level - past,
        level=level,
        begin=raised[0].begin,
        needed=_needed(level - past, noise_of(residual), int(baseline.sum()), smooth),
        drift=len(rising) > 2 and rising == sorted(rising),
    )


def offset_of(values: FloatArray, least_shift: float, *, smooth: int = 1) -> Shift | None:
    """A signal that lies above zero all along: no own past, so the comparison is with the peers it was taken from."""
    mask = np.isfinite(values)
    count = int(mask.sum())
    if count < 2 * LEAST_STEPS:
        return None
    inner = values[mask]
    level = float(inner.mean() if smooth > 1 else np.median(inner))
    sigma = noise_of(inner)
    if level < least_shift or distance(level, sigma, count, count) < SIGMAS:
        return None
    return Shift(
        mask=mask,
        baseline=np.zeros(len(values), dtype=bool),
        excess=level,
        level=level,
        begin=int(np.flatnonzero(mask)[0]),
        needed=_needed(level, sigma, count, smooth),
        from_start=True,
    )


def _needed(difference: float, sigma: float, past: int, smooth: int) -> int:
    """Steps of the new level after which it stood SIGMAS standard errors from `past` steps of the old one."""
    for steps in range(LEAST_STEPS, 100_000, 2):
        if distance(difference, sigma, max(past, 1), steps) >= SIGMAS:
            return max(steps, 2 * smooth)
        if steps > past > 0 and distance(difference, sigma, past, 10**9) < SIGMAS:
            break
    return LEAST_STEPS
