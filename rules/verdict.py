"""The answer for one window: detect, locate, explain, rank; then one word, one sentence, and what was not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankscope.finding import Advice, Evidence, Finding, Overhead, Side, Verdict
from rankscope.reading import Severity
from rankscope.rules import gpu_trouble
from rankscope.rules.attempts import by_attempt
from rankscope.rules.evidence import Observation, observe
from rankscope.rules.evidence_gpu import held_by_heat
from rankscope.rules.explain import weakened, with_record
from rankscope.rules.families import ANYWHERE, SLOWNESS
from rankscope.rules.findings import broken, slowness, watched, worth_telling
from rankscope.rules.frame import NS_PER_MS, Frame
from rankscope.rules.goodput import goodput
from rankscope.rules.history import FAMILY, PastRun, record_of, sentence
from rankscope.rules.incident import incident
from rankscope.rules.locate import LEAST_JUDGED, suspects
from rankscope.rules.progress import progress
from rankscope.rules.table import Table, load
from rankscope.rules.telemetry import Telemetry
from rankscope.rules.whatif_price import Prices
from rankscope.window import Attempt, Window

TABLE = load()
#: Every class by slug.
CLASSES = TABLE.classes
#: Confidence from which on a finding decides the verdict.
THRESHOLD = TABLE.threshold
HEALTHY = "healthy"
UNKNOWN = "unknown"
#: What a GPU's own counters and log lines may tell of while nothing is slower for it, by class.
_WATCHED = {
    "gpu-off-bus": "off-bus",
    "gpu-ecc-uncorrectable": "ecc",
    "gpu-row-remap-failed": "remap-failed",
    "gpu-ecc-corrected-storm": "corrected",
    "gpu-row-remap-pending": "remap-pending",
    "gpu-board-error": "board",
}
#: A GPU that slows itself for heat in this share of the run is watched even where no step is slower for it.
_WATCHED_SHARE = 0.2


def diagnose(window: Window, table: Table = TABLE, past: Sequence[PastRun] = ()) -> tuple[Finding, ...]:
    """What is wrong with the job in this window, the most important first; nothing for a healthy one.

    `past` is how its GPUs fared in other jobs, and its ranks on other GPUs.
    """
    frame, telemetry = Frame(window), Telemetry(window)
    found: list[Finding] = []
    for attempt, part in reversed(by_attempt(window)):
        stopped = incident(part, frame, telemetry)
        if stopped is not None:
            record = record_of(part, stopped.rank, past)
            explanation, seen = with_record(table, stopped.symptom, stopped.seen, record)
            ended = _remembered(broken(table, part, replace(stopped, seen=seen), explanation), record)
            found.append(ended if part.job_status == window.job_status else _of_attempt(ended, attempt))
    prices = Prices(frame)
    for suspect in suspects(prices):
        seen = observe(SLOWNESS, frame, telemetry, suspect, ANYWHERE)
        record = record_of(window, frame.ranks[suspect.rows[0]] if suspect.located else None, past)
        explanation, seen = with_record(table, suspect.symptom, seen, record)
        if suspect.contaminated:
            explanation = weakened(table, explanation)
        if worth_telling(table, frame, suspect, explanation):
            found.append(_remembered(slowness(table, prices, suspect, explanation, seen), record))
    found = _once(found)
    found += _watches(table, window, frame, telemetry, found)
    return tuple(sorted(found, key=lambda finding: _importance(table, finding)))


def judge(window: Window, overhead: Overhead, table: Table = TABLE, past: Sequence[PastRun] = ()) -> Verdict:
    """The verdict on a window: the side of the first finding above the threshold, "unknown" or "healthy"."""
    found = diagnose(window, table, past)
    first = next((finding for finding in found if _counts(table, finding)), None)
    doubtful = next((finding for finding in found if finding.severity is not Severity.INFO), None)
    if first is not None:
        word, summary = str(first.side), first.summary
    elif doubtful is not None:
        word, summary = UNKNOWN, doubtful.summary
    else:
        word, summary = _without_finding(window, found)
    unsure = [
        finding
        for finding in found
        if finding.severity is not Severity.INFO
        and (finding.side is Side.UNKNOWN or finding.confidence < table.threshold)
    ]
    return Verdict(
        job=_job(window),
        verdict=word,
        findings=found,
        not_seen=tuple(dict.fromkeys(window.not_seen)),
        overhead=overhead,
        summary=summary,
        goodput=goodput(window),
        would_settle=tuple(dict.fromkeys(table.classes[finding.class_slug].settles for finding in unsure)),
    )


def _counts(table: Table, finding: Finding) -> bool:
    """Whether a finding decides the verdict: sure of its class, or sure that there is something of unknown cause."""
    return finding.side is Side.UNKNOWN or finding.confidence >= table.threshold


def _importance(table: Table, finding: Finding) -> tuple[bool, bool, float]:
    """Order of findings: what decides first, then what stopped the job, then GPU-hours at stake by confidence."""
    ended = finding.impact.ms_per_step is None
    hours = finding.impact.gpu_hours_per_day or 0.0
    return not _counts(table, finding), not ended, -hours * finding.confidence


def _remembered(finding: Finding, record: Observation) -> Finding:
    """A finding whose sentence says what past runs of its GPU tell, where that is evidence for or against it."""
    said = sentence(record) if any(piece.family == FAMILY for piece in finding.evidence) else None
    return finding if said is None else replace(finding, summary=f"{finding.summary} {said}.")


def _of_attempt(finding: Finding, attempt: Attempt | None) -> Finding:
    """The end of an attempt that another followed: over, and told as that attempt's."""
    if attempt is None:
        return finding
    summary = f"Attempt {attempt.number}, before a restart: {finding.summary[:1].lower()}{finding.summary[1:]}"
    return replace(finding, summary=summary, until_ns=attempt.end_ns)


def _once(found: Sequence[Finding]) -> list[Finding]:
    """One finding for one thing: of the same class at the same place, or at one rank and all, the dearest stays."""
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda each: -(each.impact.ms_per_step or float("inf"))):
        double = any(
            other.class_slug == finding.class_slug
            and (other.where.rank == finding.where.rank or None in (other.where.rank, finding.where.rank))
            for other in kept
        )
        if not double:
            kept.append(finding)
    return kept


def _watches(
    table: Table, window: Window, frame: Frame, telemetry: Telemetry, found: Sequence[Finding]
) -> list[Finding]:
    """GPUs whose counters speak though nothing is slower: for an eye, below any threshold."""
    told = {finding.where.rank for finding in found if finding.class_slug.startswith("gpu-")}
    slower = any(finding.side is Side.UNKNOWN and finding.where.rank is None for finding in found)
    watches = []
    for rank, of in sorted(window.ranks.items()):
        host, uuid = of.identity.host, of.identity.gpu_uuid
        if uuid is None or rank in told:
            continue
        for slug, seen in _counters(window, frame, telemetry, rank, host, uuid):
            if (seen.strength or 0.0) >= 0.5:
                piece = Evidence(slug.removeprefix("gpu-"), seen.what, seen.value, seen.peers, 0.0)
                watch = watched(table, table.classes[slug], window, rank, piece, window.begin_ns, slower=slower)
                watches.append(watch)
    return watches


def _counters(
    window: Window, frame: Frame, telemetry: Telemetry, rank: int, host: str, uuid: str
) -> list[tuple[str, Observation]]:
    seen = [(slug, gpu_trouble.LOOKS[family](window, telemetry, host, uuid)) for slug, family in _WATCHED.items()]
    words = {
        "gpu-power-brake": gpu_trouble.auxiliary_power(telemetry, uuid),
        "gpu-row-remap-failed": gpu_trouble.retirement_failed(telemetry, uuid),
    }
    seen += [(slug, word) for slug, word in words.items() if word is not None]
    if rank in frame.ranks:
        over = frame.intervals(frame.ranks.index(rank), np.ones(len(frame.steps), dtype=bool))
        held = held_by_heat(telemetry, host, uuid, over)
        if held is not None and held >= _WATCHED_SHARE:
            what = f"the GPU slowed itself for heat in {held:.0%} of the time"
            seen.append(("gpu-thermal-slowdown", Observation(1.0, what, round(held, 3))))
    return seen


def _without_finding(window: Window, found: Sequence[Finding]) -> tuple[str, str]:
    frame = Frame(window)
    judged = int(frame.usable.sum()) if frame.ranks else 0
    if window.job_status not in (0, None, 130, 143):
        return UNKNOWN, f"The job ended with status {window.job_status}, and nothing that was seen says why."
    if not frame.ranks:
        return UNKNOWN, "No rank recorded a step, so there is nothing to judge."
    if judged < LEAST_JUDGED:
        return UNKNOWN, f"Only {judged} steps after the warm-up: too few to judge."
    watch = sum(finding.advice is Advice.WATCH for finding in found)
    also = f"; {watch} thing{'s' if watch > 1 else ''} to watch" if watch else ""
    text = f"Healthy: {len(frame.ranks)} ranks, {judged} steps judged, {frame.typical_ms:.1f} ms a step{also}."
    stopped = [event.text for event in window.events if event.kind == "job-signalled"]
    if stopped and window.job_status:
        text += f" It did not end by itself: {stopped[0]}."
    return HEALTHY, text


def _job(window: Window) -> dict[str, object]:
    identities = [of.identity for of in window.ranks.values()]
    return (
        {
            "name": window.job,
            "attempt": max((identity.attempt for identity in identities), default=0),
            "world_size": window.world_size,
            "ranks_seen": len(identities),
            "hosts": sorted({identity.host for identity in identities}),
            "status": window.job_status,
        }
        | _clocks(window)
        | ({} if (found := progress(window)) is None else {"progress": found.document()})
    )


def _clocks(window: Window) -> dict[str, object]:
    """How the hosts' clocks were joined; nothing for one host."""
    clocks = [
        {
            "host": clock.host,
            "ahead_ms": clock.correction_ns / NS_PER_MS,
            "error_ms": None if clock.error_ns is None else clock.error_ns / NS_PER_MS,
            "bound_ms": None if clock.bound_ns is None else clock.bound_ns / NS_PER_MS,
            "source": clock.source,
            "operations": clock.operations,
        }
        for clock in window.clocks
    ]
    return {"clocks": clocks} if clocks else {}
