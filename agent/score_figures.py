"""From scored rows to the figures of a scoreboard."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from rankscope.agent.score import FaultScore, Row
from rankscope.agent.score_shares import bounded, calibration, calibration_error, share, wilson_upper
from rankscope.finding import Side
from rankscope.rules.faults import Seen

#: What a verdict can say.
ANSWERS = ("hardware", "environment", "code", "unknown", "healthy")
#: Factors on computing are put together within these bounds.
_FACTORS = (1.0, 1.08, 1.2, 1.5, 10.0)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a scoreboard, and the rows behind them. What has no runs is None."""
    return figures(rows) | {
        "by_seen": {str(seen): figures(_only(rows, seen)) for seen in (Seen.OBSERVABLE, Seen.PARSING)},
        "by_side": _by_side(rows),
        "by_twin": _by_twin(rows),
        "by_basis": _by_basis(rows),
        "by_class": _by_class(rows),
        "by_factor": _by_factor(rows),
        "baselines": _baselines(rows),
        "rows": [row.document() for row in rows],
    }


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures over some rows."""
    faults = [fault for row in rows for fault in row.faults]
    innocent = [row for row in rows if not row.hardware_injected]
    clean = [row for row in rows if row.clean]
    alarmed = sum(row.false_alarms > 0 for row in innocent)
    clean_alarmed = sum(row.false_alarms > 0 for row in clean)
    hours = sum(row.gpu_hours for row in rows)
    steps = sorted(fault.detect_steps for fault in faults if fault.detect_steps is not None)
    seconds = sorted(fault.detect_seconds for fault in faults if fault.detect_seconds is not None)
    told = [each for row in rows for each in row.told]
    brier = [value for row in rows for value in row.brier]
    return {
        "runs": len(rows),
        "right": sum(row.right for row in rows),
        **bounded("side_accuracy", (row.side_right for row in rows)),
        "class_macro_f1": macro_f1(rows),
        **bounded("top1", (fault.matched_at == 1 for fault in faults)),
        **bounded("top3", (fault.matched_at is not None and fault.matched_at <= 3 for fault in faults)),
        **bounded("localisation", (fault.located for fault in faults)),
        "hardware_false_accusation_rate": alarmed / len(innocent) if innocent else None,
        "hardware_false_accusation_upper_95": wilson_upper(alarmed, len(innocent)) if innocent else None,
        "clean_runs": len(clean),
        "clean_false_accusation_rate": clean_alarmed / len(clean) if clean else None,
        "clean_false_accusation_upper_95": wilson_upper(clean_alarmed, len(clean)) if clean else None,
        "clean_right": share(row.side_right for row in clean),
        "false_alarms_per_gpu_hour": sum(row.false_alarms for row in rows) / hours if hours else None,
        "detect_steps_median": statistics.median(steps) if steps else None,
        "detect_steps_p95": _quantile(steps, 0.95),
        "detect_seconds_median": statistics.median(seconds) if seconds else None,
        "detect_seconds_p95": _quantile(seconds, 0.95),
        "brier": statistics.fmean(brier) if brier else None,
        "calibration": calibration(told),
        "calibration_error": calibration_error(told),
        "abstention": share(row.abstained for row in rows if row.faults),
        **bounded("action_right", (row.action_right for row in rows)),
        "gpu_hours": hours,
    }


def _only(rows: Sequence[Row], seen: Seen) -> list[Row]:
    """Rows on classes known in one way; those without a fault belong to diagnosis."""
    return [
        row
        for row in rows
        if (row.faults and row.faults[0].seen == seen) or (not row.faults and seen is Seen.OBSERVABLE)
    ]


def _by_side(rows: Sequence[Row]) -> dict[str, Any]:
    """Runs with a fault that can be told, by the side of the first: what was answered, and how often it was right."""
    found = {}
    for side in (Side.HARDWARE, Side.ENVIRONMENT, Side.CODE):
        held = [row for row in rows if row.faults and row.faults[0].side == side]
        if held:
            answers = {answer: sum(row.verdict == answer for row in held) for answer in ANSWERS}
            found[str(side)] = {"runs": len(held), **bounded("right", (row.side_right for row in held)), **answers}
    return found


def _by_twin(rows: Sequence[Row]) -> dict[str, Any]:
    """Twins of faults - the slowness without its counters, the counters without the slowness - and whether the answer
    is another than the fault's own."""
    found = {}
    for kind in dict.fromkeys(row.twin for row in rows if row.twin):
        held = [row for row in rows if row.twin == kind]
        changed = bounded("changed", (row.twin_of not in row.claimed for row in held))
        found[kind] = {"runs": len(held), **changed, **bounded("right", (row.right for row in held))}
    return found


def _by_basis(rows: Sequence[Row]) -> dict[str, Any]:
    faults = [fault for row in rows for fault in row.faults if fault.basis]
    return {
        basis: {
            "faults": len(held),
            "top1": share(fault.matched_at == 1 for fault in held),
            "top3": share(fault.matched_at is not None and fault.matched_at <= 3 for fault in held),
            **bounded("localisation", (fault.located for fault in held)),
        }
        for basis in sorted({fault.basis for fault in faults})
        if (held := [fault for fault in faults if fault.basis == basis])
    }


def _by_class(rows: Sequence[Row]) -> dict[str, Any]:
    faults = [fault for row in rows for fault in row.faults]
    found = {}
    for slug in sorted({fault.injected for fault in faults}):
        held = [fault for fault in faults if fault.injected == slug]
        steps = [fault.detect_steps for fault in held if fault.detect_steps is not None]
        found[slug] = {
            "seen": held[0].seen,
            "faults": len(held),
            "f1": _f1(rows, slug),
            "top1": share(fault.matched_at == 1 for fault in held),
            "localisation": share(fault.located for fault in held),
            "detect_steps_median": statistics.median(steps) if steps else None,
        }
    return found


def _by_factor(rows: Sequence[Row]) -> dict[str, Any]:
    """Faults that make computing slower by a factor, by how much."""
    faults = [fault for row in rows for fault in row.faults if fault.factor is not None]
    found = {}
    for low, high in itertools.pairwise(_FACTORS):
        held = [fault for fault in faults if fault.factor is not None and low <= fault.factor < high]
        steps = sorted(fault.detect_steps for fault in held if fault.detect_steps is not None)
        if held:
            found[f"{low:g} to {high:g}"] = {
                "faults": len(held),
                "top1": share(fault.matched_at == 1 for fault in held),
                "localisation": share(fault.located for fault in held),
                "detect_steps_median": statistics.median(steps) if steps else None,
                "detect_steps_p95": _quantile(steps, 0.95),
            }
    return found


def _baselines(rows: Sequence[Row]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row.baselines)
    found = {}
    for name in names:
        answers = [(row, row.baselines[name]) for row in rows if name in row.baselines]
        innocent = [(row, answer) for row, answer in answers if not row.hardware_injected]
        found[name] = {
            "runs": len(answers),
            "side_accuracy": share(right for _, (right, _) in answers),
            "localisation": share(place for _, (_, place) in answers if place is not None),
            "hardware_false_accusation_rate": share(not right for row, (right, _) in innocent if row.clean),
        }
    return found


def _quantile(ordered: Sequence[float], quantile: float) -> float | None:
    return ordered[math.ceil(quantile * len(ordered)) - 1] if ordered else None


def macro_f1(rows: Sequence[Row]) -> float | None:
    """Mean F1 over the classes injected; an abstention misses its class and is held against no other."""
    scores = [_f1(rows, slug) for slug in sorted({fault.injected for row in rows for fault in row.faults})]
    return statistics.fmean(scores) if scores else None


def _f1(rows: Sequence[Row], slug: str) -> float:
    def hit(row: Row, fault: FaultScore) -> bool:
        return fault.matched_at is not None and fault.matched_at <= len(row.faults) + row.beside

    hits = sum(fault.injected == slug and hit(row, fault) for row in rows for fault in row.faults)
    claimed = sum(_claims(row).count(slug) for row in rows)
    there = sum(fault.injected == slug for row in rows for fault in row.faults)
    return 2 * hits / (claimed + there) if claimed + there else 0.0


def _claims(row: Row) -> tuple[str, ...]:
    """Classes a row is held to have claimed: where evidence cannot decide, what shows is no false claim."""
    if row.expected == Side.UNKNOWN and row.right:
        return tuple(fault.injected for fault in row.faults)
    return row.claimed
