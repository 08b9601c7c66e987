"""Verdicts against what was injected: pure functions from one scenario and its verdict to a row, from rows to figures.

A finding matches an injected fault when class and place agree and it was not there before the fault began. Nothing
here is known to the rules.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankscope.finding import Finding, Side, Verdict
from rankscope.reading import Severity
from rankscope.simulator.scenario import Fault, Scenario

HEALTHY = "healthy"
UNEXPLAINED = "slow-rank-unexplained"
#: A level change is dated by robust statistics over neighbouring steps: a finding may begin this much early.
EARLY_STEPS = 10


@dataclass(frozen=True, slots=True)
class Truth:
    """What a right verdict says of a scenario. More than one answer is right where the evidence cannot tell."""

    #: Answers that are right, the best first: side of the first finding, or "healthy".
    sides: tuple[str, ...]
    #: Classes that the first finding may have; empty where there should be none.
    classes: tuple[str, ...]
    #: Rank (and GPU of the same number) it should be found on; None: everywhere or on the host.
    rank: int | None
    from_step: int
    #: Whether a finding of the side hardware is right.
    hardware: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One run and how its verdict compares with the truth."""

    scenario: str
    seed: int
    #: Class that was injected and can be told; "" where nothing is to be told.
    injected: str
    expected: str
    verdict: str
    #: Class of the first finding above threshold, else of one that made the verdict "unknown"; "" without.
    found: str
    side_right: bool
    #: Place of the matching finding among all, from 1; None where none matches.
    matched_at: int | None
    #: Whether the first finding names the right place; None where there is no place to name.
    located: bool | None
    abstained: bool
    hardware_injected: bool
    #: Hardware findings above threshold in a run without an injected hardware fault.
    false_alarms: int
    detect_steps: int | None
    #: (confidence - matches)^2 of each finding that names a cause.
    brier: tuple[float, ...]
    gpu_hours: float

    @property
    def right(self) -> bool:
        """Right class at the right place, or rightly silent; and no hardware accused without reason."""
        if self.injected and self.expected != Side.UNKNOWN:
            return self.matched_at == 1 and self.false_alarms == 0
        return self.side_right and self.located is not False and self.false_alarms == 0


def truth_of(scenario: Scenario) -> Truth:
    """What a right verdict says; the first fault counts where there are several."""
    if not scenario.faults:
        more = [odd for odd in scenario.confounders if odd.kind == "more-work"]
        if more:
            # More work on a rank is no fault of the machine: saying so, or that nothing is wrong, are both right.
            rank, step = more[0].rank, more[0].from_step
            return Truth((HEALTHY, Side.CODE), ("work-imbalance",), rank, step, hardware=False)
        return Truth((HEALTHY,), (), None, 0, hardware=False)
    fault = scenario.faults[0]
    rank = fault.rank if fault.rank is not None else fault.gpu
    if not fault.slowdown:
        return Truth((HEALTHY,), (), rank, fault.from_step, hardware=False)
    if not fault.counters:
        return _twin_without_counters(fault, rank)
    return Truth((fault.side,), (fault.class_slug,), rank, fault.from_step, hardware=fault.side is Side.HARDWARE)


def _twin_without_counters(fault: Fault, rank: int | None) -> Truth:
    """The place shows, the cause does not: unknown, or the class of what shows."""
    shows = {
        "gpu-off-bus": "rank-exception",
        "gpu-ecc-uncorrectable": "rank-exception",
        "slow-storage": "input-bound",
    }.get(fault.class_slug)
    sides: tuple[str, ...] = (Side.UNKNOWN, Side.CODE) if shows else (Side.UNKNOWN,)
    classes = (UNEXPLAINED, shows) if shows else (UNEXPLAINED,)
    return Truth(sides, classes, rank, fault.from_step, hardware=False)


def score_run(scenario: Scenario, verdict: Verdict, *, threshold: float, gpu_hours: float = 0.0) -> Row:
    """Compare one verdict with what was injected. `threshold` is the confidence at which a finding counts."""
    truth = truth_of(scenario)
    injected = truth.classes[0] if truth.classes and HEALTHY not in truth.sides else ""
    sure = [finding for finding in verdict.findings if counts(finding, threshold)]
    doubtful = (finding for finding in verdict.findings if finding.severity is not Severity.INFO)
    first = sure[0] if sure else next(doubtful, None)
    matched_at = next((place for place, finding in enumerate(verdict.findings, 1) if matches(finding, truth)), None)
    matched = verdict.findings[matched_at - 1] if matched_at else None
    accused = [finding for finding in sure if finding.side is Side.HARDWARE]
    begun = matched.detected_step if matched else None
    return Row(
        scenario=scenario.name,
        seed=scenario.seed,
        injected=injected,
        expected=str(truth.sides[0]),
        verdict=verdict.verdict,
        found=first.class_slug if first else "",
        side_right=verdict.verdict in truth.sides,
        matched_at=matched_at,
        located=_located(first, truth) if truth.classes and first else (False if injected else None),
        abstained=bool(injected) and Side.UNKNOWN not in truth.sides and verdict.verdict in (HEALTHY, "unknown"),
        hardware_injected=truth.hardware,
        false_alarms=0 if truth.hardware else len(accused),
        detect_steps=None if begun is None else max(0, begun - truth.from_step),
        brier=tuple(
            (finding.confidence - matches(finding, truth)) ** 2
            for finding in verdict.findings
            if finding.side is not Side.UNKNOWN
        ),
        gpu_hours=gpu_hours,
    )


def counts(finding: Finding, threshold: float) -> bool:
    """Whether a finding is above threshold; one of unknown cause is there because none was."""
    return finding.side is Side.UNKNOWN or finding.confidence >= threshold


def matches(finding: Finding, truth: Truth) -> bool:
    """Whether class and place agree, and it did not begin before the fault."""
    early = finding.detected_step is not None and finding.detected_step < truth.from_step - EARLY_STEPS
    return finding.class_slug in truth.classes and _located(finding, truth) and not early


def _located(finding: Finding, truth: Truth) -> bool:
    return finding.where.rank == truth.rank


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a scoreboard, and the rows behind them."""
    faults = [row for row in rows if row.injected]
    places = [row.located for row in faults if row.located is not None]
    innocent = [row for row in rows if not row.hardware_injected]
    alarmed = sum(row.false_alarms > 0 for row in rows)
    hours = sum(row.gpu_hours for row in rows)
    detected = sorted(row.detect_steps for row in faults if row.detect_steps is not None)
    brier = [value for row in rows for value in row.brier]
    return {
        "runs": len(rows),
        "right": sum(row.right for row in rows),
        "side_accuracy": _share(row.side_right for row in rows),
        "class_macro_f1": _macro_f1(rows),
        "top1": _share(row.matched_at == 1 for row in faults),
        "top3": _share(row.matched_at is not None and row.matched_at <= 3 for row in faults),
        "localisation": _share(places),
        "hardware_false_accusation_rate": alarmed / len(innocent) if innocent else None,
        "hardware_false_accusation_upper_95": wilson_upper(alarmed, len(innocent)) if innocent else None,
        "false_alarms_per_gpu_hour": sum(row.false_alarms for row in rows) / hours if hours else None,
        "detect_steps_median": statistics.median(detected) if detected else None,
        "detect_steps_p95": detected[math.ceil(0.95 * len(detected)) - 1] if detected else None,
        "brier": statistics.fmean(brier) if brier else None,
        "abstention": _share(row.abstained for row in faults),
        "gpu_hours": hours,
        "rows": [asdict(row) | {"right": row.right} for row in rows],
    }


def wilson_upper(hits: int, trials: int, z: float = 1.959964) -> float:
    """Upper end of the 95 % Wilson score interval of a proportion (Wilson 1927)."""
    share = hits / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return min(1.0, (centre + spread) / (1 + z * z / trials))


def _share(values: Any) -> float | None:
    told = list(values)
    return sum(told) / len(told) if told else None


def _macro_f1(rows: Sequence[Row]) -> float | None:
    """Mean F1 over the classes injected; an abstention misses its class and is held against no other."""
    scores = []
    for slug in sorted({row.injected for row in rows if row.injected}):
        hits = sum(row.injected == slug and row.matched_at == 1 for row in rows)
        claimed = sum(row.found == slug for row in rows)
        there = sum(row.injected == slug for row in rows)
        scores.append(2 * hits / (claimed + there) if claimed + there else 0.0)
    return statistics.fmean(scores) if scores else None
