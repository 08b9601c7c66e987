"""How a slowness lies across the ranks: the six patterns that tell its kind before any counter is looked at."""

from __future__ import annotations

import numpy as np

from rankscope.finding import Pattern
from rankscope.rules.frame import BoolArray, Frame, median, middle
from rankscope.rules.suspect import Suspect
from rankscope.rules.table import Symptom
from rankscope.rules.whatif_price import Prices

#: Share of the price that comes back with every step's skew gone, from which on the skew is the price.
_SKEWED = 0.5
#: Share of the steps in which one rank may be the slowest before it counts as always the same.
_ONE_RANK = 0.8
#: A fixed rank may wait this much longer than its peers do, as a share of the step: clocks and phases are not exact.
_NO_LONGER = 0.02


def pattern_of(prices: Prices, suspect: Suspect) -> Pattern | None:
    """The pattern of a suspect; None where a rank works longer and nobody waits for it, or its own times may hold waits
    for others."""
    frame = prices.frame
    if suspect.contaminated:
        return None
    if suspect.symptom is Symptom.TRANSFER_SLOW:
        return Pattern.TRANSFER
    if suspect.symptom is Symptom.ONE_STAGE_SLOW:
        return Pattern.STAGE
    if suspect.located or suspect.host is not None:
        return Pattern.FIXED_RANK if _waits_least(frame, suspect) else None
    if frame.shape[0] < 2 or _skew_ms(prices, suspect) < _SKEWED * suspect.ms_per_step:
        return Pattern.ALL_RANKS
    slowest = np.argmax(np.nan_to_num(frame.own_ms[:, suspect.mask]), axis=0)
    fixed = int(np.bincount(slowest).max()) >= _ONE_RANK * len(slowest)
    return Pattern.FIXED_RANK if fixed else Pattern.WANDERING


def _waits_least(frame: Frame, suspect: Suspect) -> bool:
    """Whether its ranks wait no longer than the others of their role."""
    row = suspect.rows[0]
    outside = [each for each in range(frame.shape[0]) if each not in suspect.rows]
    others = [each for each in outside if frame.roles[each] == frame.roles[row]] or outside
    waits = frame.wait_ms[:, suspect.mask]
    own, usual = middle(waits[list(suspect.rows)]), middle(waits[others])
    if not others or not (np.isfinite(own) and np.isfinite(usual)):
        return True
    return own <= usual + _NO_LONGER * frame.typical_ms


def _skew_ms(prices: Prices, suspect: Suspect) -> float:
    """ms a step that come back if in each step all ranks of a role worked equally long; beyond what did before."""
    now = _levelled(prices, suspect.mask)
    return now - (_levelled(prices, suspect.baseline) if suspect.baseline.any() else 0.0)


def _levelled(prices: Prices, mask: BoolArray) -> float:
    frame = prices.frame
    own = frame.own_ms[:, mask]
    over = np.zeros_like(own)
    for role in range(int(frame.roles.max()) + 1):
        rows = np.flatnonzero(frame.roles == role)
        over[rows] = np.maximum(0.0, np.nan_to_num(own[rows] - median(own[rows])))
    return prices.returned_ms(mask, range(frame.shape[0]), rest_ms=over)
