"""Verdict, findings and their evidence, and the JSON they travel as (schema rankscope.verdict/1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from rankscope.reading import Severity

VERDICT_SCHEMA = "rankscope.verdict/1"


class Side(StrEnum):
    """Whose fault a class is. Every class has exactly one; UNKNOWN is for what was located but not explained."""

    HARDWARE = "hardware"
    ENVIRONMENT = "environment"
    CODE = "code"
    UNKNOWN = "unknown"


class Basis(StrEnum):
    """What a localisation rests on, strongest first."""

    DEVICE_COLLECTIVE = "device-collective"
    DEVICE_COMPUTE = "device-compute"
    HOST = "host"
    COUNTERS = "counters"


class Advice(StrEnum):
    """`act` needs recurrence or corroboration; `watch` does not."""

    WATCH = "watch"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Where:
    """The place. None for what does not apply, never a guess."""

    host: str | None = None
    rank: int | None = None
    local_rank: int | None = None
    gpu_uuid: str | None = None
    link: str | None = None
    device: str | None = None
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class Impact:
    """What the fault costs. None where it cannot be told."""

    ms_per_step: float | None = None
    fraction_of_step: float | None = None
    gpu_hours_per_day: float | None = None


class Pattern(StrEnum):
    """How a slowness lies across the ranks, whatever its cause."""

    #: One fixed rank or host works longest and waits least.
    FIXED_RANK = "A"
    #: All come together, and the transfer takes longer.
    TRANSFER = "B"
    #: All ranks are slow, without skew.
    ALL_RANKS = "C"
    #: The slow rank changes from step to step.
    WANDERING = "D"
    #: It follows the pipeline stage.
    STAGE = "E"
    #: Stopped: a rank is missing where the others wait.
    STOPPED = "F"


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """The finding's steps replayed with parts of the job ideal: the latest of them, so many."""

    steps: int
    #: Steps from which the ideal is taken: the job's own "past", or these themselves, so that "peers" are compared.
    ideal: str
    #: S: the step against the step in which everything takes what its kind takes there on average.
    slowdown: float
    #: Share of what is lost against that ideal that comes back with the slowest 3 % of ranks, or the last stage, ideal.
    #: None where nothing is lost, or there are no stages.
    m_w: float | None
    m_s: float | None
    #: ms a step that come back with one rank, host, stage, phase or the exchanges of one process group ideal, dearest
    #: first. What gives nothing back is left out.
    ranks: dict[str, float]
    hosts: dict[str, float]
    stages: dict[str, float]
    phases: dict[str, float]
    groups: dict[str, float]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of evidence. Pieces of one family are one event and count once."""

    family: str
    what: str
    value: float | str | None
    peers: float | str | None
    log_odds: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: what, where, how sure, what it costs, what to do."""

    class_slug: str
    side: Side
    confidence: float
    severity: Severity
    advice: Advice
    where: Where
    basis: Basis
    since_ns: int
    detected_step: int | None
    impact: Impact
    evidence: tuple[Evidence, ...]
    not_seen: tuple[str, ...]
    action: str
    runbook: str
    summary: str
    #: End of the time it was seen in; None while it goes on.
    until_ns: int | None = None
    #: None where no pattern fits, or nothing is slower.
    pattern: Pattern | None = None
    #: None where there is no step to replay.
    whatif: Counterfactual | None = None


@dataclass(frozen=True, slots=True)
class Overhead:
    """What watching cost. None where it was not measured."""

    agent_cpu_fraction: float | None = None
    agent_pss_bytes: int | None = None
    hook_ns_per_step: float | None = None


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """One launch of the job's ranks, and how it ended."""

    number: int
    begin_ns: int
    seconds: float
    ranks: int
    steps: int
    #: Work after its last checkpoint, which the next attempt had to do again. None where no checkpoint was seen.
    lost_seconds: float | None
    #: The first rank to fail; None where none did, or none stands out.
    root_rank: int | None
    #: How it ended, in words.
    ended: str


@dataclass(frozen=True, slots=True)
class Goodput:
    """Where the job's wall time went: what is not productive adds up with what is to the whole."""

    wall_seconds: float
    #: Steps that were not lost, without checkpoints, evaluations and warm-up.
    productive_seconds: float
    #: From launch to the first step, of every attempt.
    start_seconds: float
    #: First steps beyond what a step takes later.
    warm_up_seconds: float
    checkpoint_seconds: float
    evaluation_seconds: float
    #: Steps after the last checkpoint of an attempt that failed. None where no checkpoint was seen: then a part of
    #: the productive time may be lost too.
    rollback_seconds: float | None
    #: Between the end of an attempt and the first rank of the next.
    requeue_seconds: float
    #: From the last finished step to the end of its attempt: hanging, dying, cleaning up.
    stalled_seconds: float
    attempts: tuple[AttemptSummary, ...]

    @property
    def ratio(self) -> float | None:
        """Productive time over wall time; an upper bound where `rollback_seconds` is None and an attempt failed."""
        return self.productive_seconds / self.wall_seconds if self.wall_seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one job."""

    job: dict[str, Any]
    verdict: str
    findings: tuple[Finding, ...]
    not_seen: tuple[str, ...]
    overhead: Overhead
    #: One sentence for a person.
    summary: str
    #: What would settle an "unknown".
    would_settle: tuple[str, ...] = field(default=())
    #: Where the wall time went; None where no rank finished a step.
    goodput: Goodput | None = None


def finding_json(finding: Finding, since: str) -> dict[str, Any]:
    """A finding as the contract spells it; `since` is its begin as ISO 8601 wall time."""
    body = asdict(finding)
    body["class"] = body.pop("class_slug")
    del body["since_ns"], body["until_ns"]
    body["since"] = since
    order = (
        "class",
        "side",
        "confidence",
        "severity",
        "advice",
        "where",
        "basis",
        "since",
        "detected_step",
        "pattern",
        "impact",
        "whatif",
    )
    return {key: body[key] for key in order} | {key: value for key, value in body.items() if key not in order}
