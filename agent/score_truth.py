"""What a right verdict says of a scenario: sides, classes and places, more than one where evidence cannot decide."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.finding import Finding, Side
from rankscope.rules.faults import FAULTS, Seen
from rankscope.simulator.scenario import Fault, Scenario
from rankscope.simulator.scenario_classes import FAULT_CLASSES

HEALTHY = "healthy"
UNEXPLAINED = "slow-rank-unexplained"
#: A level change is dated by robust statistics over neighbouring steps: a finding may begin this much early.
EARLY_STEPS = 10
#: What shows of a fault whose counters are silent: it may be called by that, or unknown.
_SHOWS = {
    "gpu-off-bus": ("rank-exception",),
    "gpu-ecc-uncorrectable": ("rank-exception",),
    "slow-storage": ("input-bound",),
    "network-filesystem-slow": ("input-bound",),
    "page-cache-thrash": ("input-bound",),
    "cpu-frequency-low": ("launch-bound",),
    "numa-misbound": ("launch-bound",),
}
#: Faults of links that only their counters tell the place of.
_ANYWHERE = ("nvlink-degraded", "network-link-flap", "network-link-errors", "network-congestion")


@dataclass(frozen=True, slots=True)
class Expected:
    """One injected fault as a right verdict tells it."""

    #: Answers that are right, the best first: side of the first finding, or "healthy".
    sides: tuple[str, ...]
    #: Classes that its finding may have; empty where there should be none.
    classes: tuple[str, ...]
    #: Where it should be found. A GPU is its rank's; None: not on one rank, on no certain host, in no stage.
    rank: int | None
    host: str | None
    stage: int | None
    from_step: int
    to_step: int
    #: How its class can be known.
    seen: Seen = Seen.OBSERVABLE
    #: Factor on computing, of classes whose severity is one; else None.
    factor: float | None = None
    #: Whether the job has one rank.
    alone: bool = False

    @property
    def injected(self) -> str:
        """The class to be told; "" where nothing is."""
        return self.classes[0] if self.classes and HEALTHY not in self.sides else ""

    def located(self, finding: Finding) -> bool:
        """Whether a finding names the right place."""
        where = finding.where
        if self.stage is not None:
            return where.device == f"stage:{self.stage}"
        if self.alone:
            # One rank, one GPU, one host: they are the same place.
            return where.rank in (0, None)
        return where.rank == self.rank and (self.host is None or where.host == self.host)

    def matches(self, finding: Finding) -> bool:
        """Whether class and place agree, and it did not begin before the fault."""
        early = finding.detected_step is not None and finding.detected_step < self.from_step - EARLY_STEPS
        return finding.class_slug in self.classes and self.located(finding) and not early


@dataclass(frozen=True, slots=True)
class Truth:
    """What a right verdict says of a whole run."""

    expected: tuple[Expected, ...]
    #: Whether a finding of the side hardware is right.
    hardware: bool

    @property
    def sides(self) -> tuple[str, ...]:
        """Sides that the first finding may have."""
        told = [each for each in self.expected if each.injected or each.classes]
        return tuple(dict.fromkeys(side for each in told or self.expected for side in each.sides))


def truth_of(scenario: Scenario) -> Truth:
    """What a right verdict says."""
    if not scenario.faults:
        return Truth((_innocent(scenario),), hardware=False)
    expected = tuple(_expected(scenario, fault) for fault in scenario.faults)
    if any(odd.kind == "more-work" for odd in scenario.confounders):
        expected += (_innocent(scenario),)
    hardware = any(fault.side is Side.HARDWARE and fault.slowdown and fault.counters for fault in scenario.faults)
    return Truth(expected, hardware)


def _innocent(scenario: Scenario) -> Expected:
    steps = scenario.workload.steps
    for odd in scenario.confounders:
        if odd.kind == "more-work":
            # More work on a rank is no fault of the machine: saying so, or that nothing is wrong, are both right.
            return Expected((HEALTHY, Side.CODE), ("work-imbalance",), odd.rank, None, None, odd.from_step, steps)
    return Expected((HEALTHY,), (), None, None, None, 0, steps)


def _expected(scenario: Scenario, fault: Fault) -> Expected:
    rank = fault.rank if fault.rank is not None else fault.gpu
    several = scenario.workload.ranks > scenario.node.gpus
    host = f"node{fault.host:03d}" if fault.host is not None and several else None
    listed = FAULTS.get(fault.class_slug)
    seen = listed.seen if listed is not None else Seen.OBSERVABLE
    sides: tuple[str, ...] = (fault.side,)
    classes: tuple[str, ...] = (fault.class_slug,)
    if not fault.slowdown:
        sides, classes = (HEALTHY,), ()
    elif not fault.counters:
        shows = _SHOWS.get(fault.class_slug, ())
        if fault.class_slug in _ANYWHERE:
            # Everybody's transfers are longer, and nothing says whose link it is.
            rank = host = None
        sides = (Side.UNKNOWN, *((Side.CODE,) if shows else ()))
        classes = (UNEXPLAINED, *shows)
    elif seen is Seen.PARSING and not FAULT_CLASSES[fault.class_slug].fatal:
        # A counter alone, while nothing is slower for it: worth an eye, no verdict on the job.
        sides, classes = (HEALTHY, fault.side), (fault.class_slug,)
    alone = scenario.workload.ranks == 1
    slows = "compute work" in FAULT_CLASSES[fault.class_slug].severity
    factor = fault.severity if slows and fault.slowdown else None
    return Expected(sides, classes, rank, host, fault.stage, fault.from_step, fault.to_step, seen, factor, alone)
