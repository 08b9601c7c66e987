"""What a knob does to the step: windows with it on and off, in random order, inside one run.

Windows come in blocks of two, one on and one off, in an order drawn by chance: what drifts slowly touches both alike.
A block gives one difference. The interval around their mean is a confidence sequence: it holds at every block at
once, so one may look after each and stop as soon as it is decided (Waudby-Smith et al., "Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 2024). Effects that outlast a window show as a
difference between windows that follow the same state and windows that follow the other, and are told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

#: Fewer blocks than this decide nothing: the spread of so few differences is not known well enough.
LEAST_BLOCKS = 8
#: Blocks at which the interval is as narrow as a sequence can be; wider before and after.
_TUNED_BLOCKS = 30
_RESAMPLES = 1_000


class Decision(StrEnum):
    """What the windows say so far."""

    EFFECT = "effect"
    NO_EFFECT = "no effect"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Stretch:
    """One window: the state of the knob and the steps in it, ms each, without those in which it settled."""

    block: int
    on: bool
    steps_ms: FloatArray


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Effect:
    """What the knob does: ms a step, on minus off."""

    decision: Decision
    blocks: int
    off_ms: float
    mean_ms: Interval
    #: Of the median and the 99th percentile of steps; bootstrap over blocks, to be read at the end only.
    p50_ms: Interval
    p99_ms: Interval
    #: What is left of the state before in the window after; None with too few blocks.
    carry_over_ms: Interval | None
    #: The effect with that taken out.
    adjusted_ms: Interval | None

    @property
    def fraction(self) -> Interval:
        """The effect as a share of the step with the knob off."""
        each = (self.mean_ms.value, self.mean_ms.low, self.mean_ms.high)
        return Interval(*(value / self.off_ms for value in each))


def effect(stretches: Sequence[Stretch], *, margin: float, alpha: float = 0.05, seed: int = 0) -> Effect | None:
    """The knob's effect, from all whole blocks so far; None before LEAST_BLOCKS of them.

    `margin` is the share of the step that does not matter: an interval within it decides for "no effect".
    """
    blocks = whole_blocks(stretches)
    if len(blocks) < LEAST_BLOCKS:
        return None
    means = np.array([[float(stretch.steps_ms.mean()) for stretch in block] for block in blocks])
    states = np.array([block[0].on for block in blocks])
    differences = np.where(states, means[:, 0] - means[:, 1], means[:, 1] - means[:, 0])
    off_ms = float(np.where(states, means[:, 1], means[:, 0]).mean())
    mean = sequence_interval(differences, alpha)
    carried, adjusted = _carry_over(means, states)
    decision = Decision.UNDECIDED
    if mean.excludes_zero():
        decision = Decision.EFFECT
    if -margin * off_ms < mean.low and mean.high < margin * off_ms:
        # What is within the margin does not matter, though it may be above zero.
        decision = Decision.NO_EFFECT
    p50, p99 = (_quantile_effect(blocks, q, seed) for q in (0.5, 0.99))
    return Effect(decision, len(blocks), off_ms, mean, p50, p99, carried, adjusted)


def whole_blocks(stretches: Sequence[Stretch]) -> list[tuple[Stretch, Stretch]]:
    """Blocks of which both windows hold steps, each in the order in which it ran."""
    found: dict[int, list[Stretch]] = {}
    for stretch in stretches:
        if len(stretch.steps_ms):
            found.setdefault(stretch.block, []).append(stretch)
    return [(pair[0], pair[1]) for _, pair in sorted(found.items()) if len(pair) == 2 and pair[0].on is not pair[1].on]


def sequence_interval(differences: FloatArray, alpha: float) -> Interval:
    """The mean of the differences with an interval that holds at every number of them at once."""
    count = len(differences)
    mean = float(differences.mean())
    # Student's factor: a spread that is itself an estimate from few differences is too small too often.
    spread = float(differences.std(ddof=1)) * math.sqrt((count + 1) / (count - 3)) if count > 3 else math.inf
    tuned = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / _TUNED_BLOCKS)
    grown = count * tuned * tuned + 1
    radius = spread * math.sqrt(2 * grown / (count * tuned) ** 2 * math.log(math.sqrt(grown) / alpha))
    return Interval(mean, mean - radius, mean + radius)


def _carry_over(means: FloatArray, states: NDArray[np.bool_]) -> tuple[Interval | None, Interval | None]:
    """(what the window before leaves in the one after, the effect without it), by least squares over blocks.

    First minus second window of a block is effect * (s1 - s2) + carried * (p1 - s1), where s is a window's state and p1
    the state before the block; the second window always follows the first.
    """
    first, before = states[1:].astype(float), (~states[:-1]).astype(float)
    design = np.column_stack([2 * first - 1, before - first])
    if len(first) < LEAST_BLOCKS or np.linalg.matrix_rank(design) < 2:
        return None, None
    outcome = means[1:, 0] - means[1:, 1]
    bread = np.linalg.inv(design.T @ design)
    solution = bread @ design.T @ outcome
    residuals = outcome - design @ solution
    # Heteroscedasticity-robust (HC1): a busy machine makes some blocks far noisier than others.
    meat = design.T @ (design * (residuals**2)[:, None]) * len(outcome) / (len(outcome) - 2)
    errors = np.sqrt(np.diag(bread @ meat @ bread))
    half = 1.96 + 2.5 / (len(outcome) - 2)  # close above Student's 97.5 % from six degrees of freedom on
    found = [
        Interval(float(v), float(v - half * e), float(v + half * e)) for v, e in zip(solution, errors, strict=True)
    ]
    return found[1], found[0]


def _quantile_effect(blocks: Sequence[tuple[Stretch, Stretch]], q: float, seed: int) -> Interval:
    draw = np.random.default_rng(seed)

    def difference(chosen: Sequence[tuple[Stretch, Stretch]]) -> float:
        on = np.concatenate([stretch.steps_ms for block in chosen for stretch in block if stretch.on])
        off = np.concatenate([stretch.steps_ms for block in chosen for stretch in block if not stretch.on])
        return float(np.quantile(on, q) - np.quantile(off, q))

    resampled = [
        difference([blocks[index] for index in draw.integers(0, len(blocks), len(blocks))]) for _ in range(_RESAMPLES)
    ]
    return Interval(difference(blocks), float(np.quantile(resampled, 0.025)), float(np.quantile(resampled, 0.975)))
