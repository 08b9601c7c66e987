"""Shares with their intervals, and confidences held against how often they were right."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

#: Confidences are compared with how often they were right within these bounds.
_BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.01)


def wilson_upper(hits: int, trials: int, z: float = 1.959964) -> float:
    """Upper end of the 95 % Wilson score interval of a proportion (Wilson 1927)."""
    proportion = hits / trials
    centre = proportion + z * z / (2 * trials)
    spread = z * math.sqrt(proportion * (1 - proportion) / trials + z * z / (4 * trials * trials))
    return min(1.0, (centre + spread) / (1 + z * z / trials))


def wilson_lower(hits: int, trials: int) -> float:
    """Lower end of the same interval."""
    return 1.0 - wilson_upper(trials - hits, trials)


def share(values: Iterable[bool]) -> float | None:
    """Share that is true; None of nothing."""
    told = list(values)
    return sum(told) / len(told) if told else None


def bounded(name: str, values: Iterable[bool]) -> dict[str, float | None]:
    """A share by its name, and the lower end of its interval; None of nothing."""
    told = list(values)
    return {name: share(told), f"{name}_lower_95": wilson_lower(sum(told), len(told)) if told else None}


def calibration(told: Sequence[tuple[float, bool]]) -> list[dict[str, Any]]:
    """How often findings of about one confidence were right, with its interval; bins without findings are left out.

    `within` says whether what was said lies in the interval: else it is off by more than so few findings explain.
    """
    found: list[dict[str, Any]] = []
    for low, high in itertools.pairwise(_BINS):
        held = [(confidence, right) for confidence, right in told if low <= confidence < high]
        if not held:
            continue
        said = statistics.fmean(confidence for confidence, _ in held)
        hits = sum(right for _, right in held)
        lower, upper = wilson_lower(hits, len(held)), wilson_upper(hits, len(held))
        found.append(
            {
                "findings": len(held),
                "confidence": round(said, 4),
                "right": round(hits / len(held), 4),
                "right_lower_95": round(lower, 4),
                "right_upper_95": round(upper, 4),
                "within": lower <= said <= upper,
            }
        )
    return found


def calibration_error(told: Sequence[tuple[float, bool]]) -> float | None:
    """Mean distance between said and right over the findings, bin by bin (expected calibration error)."""
    if not told:
        return None
    bins = calibration(told)
    return float(sum(each["findings"] * abs(each["confidence"] - each["right"]) for each in bins)) / len(told)
