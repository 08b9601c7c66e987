"""Verdicts against what was injected: from one scenario and its verdict to a row. Nothing here is known to the rules.

A finding matches an injected fault when class and place agree and it was not there before the fault began.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from rankscope.agent.score_truth import HEALTHY, UNEXPLAINED, Expected, Truth, truth_of
from rankscope.finding import Advice, Finding, Side, Verdict
from rankscope.reading import Severity
from rankscope.rules.faults import Seen
from rankscope.simulator.scenario import Fault, Scenario

__all__ = ["HEALTHY", "UNEXPLAINED", "FaultScore", "Row", "counts", "score_run"]

#: Steps over which a slowness must have lasted before advice to act is asked for.
_ACT_STEPS = 40


@dataclass(frozen=True, slots=True)
class FaultScore:
    """One injected fault that is to be told, and the finding that tells it."""

    injected: str
    side: str
    #: Whether a right answer proves diagnosis or only that something was read.
    seen: str
    #: Place of the matching finding among all, from 1; None where none matches.
    matched_at: int | None
    #: Whether the finding held for it names the right place.
    located: bool
    detect_steps: int | None
    detect_seconds: float | None
    #: What the localisation rests on; "" where nothing was found.
    basis: str
    #: Factor on computing, of faults that are one.
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One run and how its verdict compares with the truth."""

    scenario: str
    seed: int
    expected: str
    verdict: str
    #: Class of the first finding above threshold, else of one that made the verdict "unknown"; "" without.
    found: str
    #: Classes claimed: as many of the first sure findings as faults were injected.
    claimed: tuple[str, ...]
    side_right: bool
    faults: tuple[FaultScore, ...]
    abstained: bool
    hardware_injected: bool
    #: Findings that may come before: oddities that may be told or left alone.
    beside: int
    #: Nothing was injected, nor a twin of anything.
    clean: bool
    #: Hardware findings above threshold in a run without an injected hardware fault.
    false_alarms: int
    #: Whether the advice is right: the injected class's own, to act where it lasted; none to act where nothing is.
    action_right: bool
    #: (confidence, right) of each finding that names a cause.
    told: tuple[tuple[float, bool], ...]
    gpu_hours: float
    #: Of a twin: "without counters" or "without slowness", and the class it is a twin of; else "".
    twin: str = ""
    twin_of: str = ""
    #: Answers of simple rules on the same run: name -> (right side, right place).
    baselines: dict[str, tuple[bool, bool | None]] = field(default_factory=dict)

    @property
    def injected(self) -> str:
        """Class of the first fault to be told; "" where nothing is."""
        return self.faults[0].injected if self.faults else ""

    @property
    def matched_at(self) -> int | None:
        """Place of the first fault's finding."""
        return self.faults[0].matched_at if self.faults else None

    @property
    def located(self) -> bool | None:
        """Whether the first fault's place is named; None where there is none to name."""
        return self.faults[0].located if self.faults else None

    @property
    def detect_steps(self) -> int | None:
        """Steps from the first fault to its detection."""
        return self.faults[0].detect_steps if self.faults else None

    @property
    def brier(self) -> tuple[float, ...]:
        """Squared error of each finding's confidence."""
        return tuple((confidence - right) ** 2 for confidence, right in self.told)

    @property
    def right(self) -> bool:
        """Every fault told at the right place before anything else, or rightly silent; no hardware accused wrongly."""
        if self.false_alarms:
            return False
        if self.faults and self.expected != Side.UNKNOWN:
            within = len(self.faults) + self.beside
            return all(each.matched_at is not None and each.matched_at <= within for each in self.faults)
        return self.side_right and self.located is not False

    def document(self) -> dict[str, Any]:
        """As JSON."""
        body = asdict(self) | {"right": self.right, "injected": self.injected, "matched_at": self.matched_at}
        return body | {"located": self.located, "detect_steps": self.detect_steps}


#: From a fault to the step at which it was first told, where that was measured rather than claimed.
Measured = Callable[[Expected], tuple[int | None, float | None]]


def score_run(
    scenario: Scenario,
    verdict: Verdict,
    *,
    threshold: float,
    gpu_hours: float = 0.0,
    measured: Measured | None = None,
) -> Row:
    """Compare one verdict with what was injected. `threshold` is the confidence at which a finding counts."""
    truth = truth_of(scenario)
    sure = [finding for finding in verdict.findings if counts(finding, threshold)]
    doubtful = (finding for finding in verdict.findings if finding.severity is not Severity.INFO)
    first = sure[0] if sure else next(doubtful, None)
    told = [each for each in truth.expected if each.injected]
    twin = next((fault for fault in scenario.faults if not (fault.counters and fault.slowdown)), None)
    faults = tuple(_fault(each, verdict, first, measured) for each in told)
    accused = [finding for finding in sure if finding.side is Side.HARDWARE]
    return Row(
        scenario=scenario.name,
        seed=scenario.seed,
        expected=str(truth.sides[0]),
        verdict=verdict.verdict,
        found=first.class_slug if first else "",
        claimed=tuple(finding.class_slug for finding in sure[: max(1, len(told))]),
        side_right=verdict.verdict in truth.sides,
        faults=faults,
        abstained=bool(told) and Side.UNKNOWN not in truth.sides and verdict.verdict in (HEALTHY, "unknown"),
        hardware_injected=truth.hardware,
        beside=sum(bool(each.classes) and not each.injected for each in truth.expected) if told else 0,
        clean=not scenario.faults,
        false_alarms=0 if truth.hardware else len(accused),
        action_right=_action_right(truth, told, sure),
        told=tuple(
            (finding.confidence, any(each.matches(finding) for each in truth.expected))
            for finding in verdict.findings
            if finding.side is not Side.UNKNOWN and finding.severity is not Severity.INFO
        ),
        gpu_hours=gpu_hours,
        twin=_twin(twin) if twin is not None else "",
        twin_of=twin.class_slug if twin is not None else "",
    )


def _twin(fault: Fault) -> str:
    return "without counters" if fault.slowdown else "without slowness"


def counts(finding: Finding, threshold: float) -> bool:
    """Whether a finding is above threshold; one of unknown cause is there because none was."""
    return finding.side is Side.UNKNOWN or finding.confidence >= threshold


def _fault(each: Expected, verdict: Verdict, first: Finding | None, measured: Measured | None) -> FaultScore:
    matched_at = next((place for place, finding in enumerate(verdict.findings, 1) if each.matches(finding)), None)
    # A finding of its class is held to its place; where there is none, whatever is said first.
    same = [finding for finding in verdict.findings if finding.class_slug in each.classes]
    held = verdict.findings[matched_at - 1] if matched_at else (same[0] if same else first)
    steps: int | None
    steps, seconds = None, None
    if measured is not None:
        steps, seconds = measured(each)
    elif matched_at is not None and held is not None and held.detected_step is not None:
        steps = max(0, held.detected_step - each.from_step)
    return FaultScore(
        injected=each.injected,
        side=each.sides[0],
        seen=str(each.seen),
        matched_at=matched_at,
        located=held is not None and each.located(held),
        detect_steps=steps,
        detect_seconds=seconds,
        basis="" if held is None else str(held.basis),
        factor=each.factor,
    )


def _action_right(truth: Truth, told: list[Expected], sure: list[Finding]) -> bool:
    act = [finding for finding in sure if finding.advice is Advice.ACT]
    causes = [each for each in told if each.sides[0] != Side.UNKNOWN]
    if not causes:
        # Nothing that could be acted on: whoever is told to act is sent the wrong way.
        return all(any(each.matches(finding) for each in truth.expected) for finding in act)
    wrong = [finding for finding in act if not any(each.matches(finding) for each in truth.expected)]
    right = all(any(each.matches(finding) for finding in (act if _asks(each) else sure)) for each in causes)
    return right and not wrong


def _asks(each: Expected) -> bool:
    """Whether it lasted long enough to be acted on."""
    return each.seen is Seen.OBSERVABLE and each.to_step - each.from_step >= _ACT_STEPS
