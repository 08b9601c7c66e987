"""From a suspect or incident and its explanation to a finding: place, price, advice and a sentence for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rankscope.finding import Advice, Basis, Evidence, Finding, Impact, Pattern, Side, Where
from rankscope.reading import Severity
from rankscope.rules.counterfactual import counterfactual
from rankscope.rules.evidence import Observation
from rankscope.rules.evidence_gpu import SILICON_SPREAD
from rankscope.rules.explain import Explanation, evidence_for, evidence_shown, not_seen
from rankscope.rules.frame import COMPUTE, Frame, middle
from rankscope.rules.incident import Incident
from rankscope.rules.pattern import pattern_of
from rankscope.rules.suspect import Suspect
from rankscope.rules.table import FaultClass, Place, Symptom, Table
from rankscope.rules.whatif_price import Prices
from rankscope.window import RankWindow, Window

#: A slowness of all ranks that nothing explains, or that lies in the cores they share, is told only where it is
#: large: machines and batches drift.
LARGE_FRACTION = 0.25
#: The same where only the collective grew: on hosts whose cores do the reducing, any neighbour can do that.
LARGE_WAIT_FRACTION = 0.35
#: What nothing explains, and what cores that are shared explain, must last this many steps and this share of them.
LASTED_STEPS = 20
LASTED_SHARE = 0.15
#: Transfers that nothing explains are told where they are this much of the step: no core of a host does the moving.
LARGE_TRANSFER_FRACTION = 0.1
#: A family that weighs this much decides its class, and says where.
_DECIDES = 5.0
#: Steps over which a slowness must last before acting on it.
_ACT_STEPS = 30
#: Above this share of the step a slowness is critical.
_CRITICAL_FRACTION = 0.2
_HIDDEN = (
    "waits for other ranks inside own times (sharded or tensor-parallel layers, compiled graphs): collectives timed on "
    "the device would tell them"
)
#: The slowness is over where this many steps came after it.
_OVER_STEPS = 8


def worth_telling(table: Table, frame: Frame, suspect: Suspect, explanation: Explanation) -> bool:
    """Whether a suspect becomes a finding: large enough for its symptom, and not the ordinary spread of machines."""
    grown = suspect.fraction
    if suspect.located and not suspect.from_start and frame.typical_ms > 0:
        # Against its own past a rank is judged by how much it slowed: the job feels less while another is near.
        grown = max(grown, suspect.excess_ms / frame.typical_ms)
    if explanation.normal or grown < table.relevant.get(suspect.symptom, 0.0):
        return False
    of = explanation.told
    if suspect.symptom is Symptom.TRANSFER_SLOW and of is None:
        return suspect.fraction >= LARGE_TRANSFER_FRACTION and int(suspect.mask.sum()) >= LASTED_STEPS
    large = suspect.fraction >= (LARGE_WAIT_FRACTION if suspect.phase == "collective_wait" else LARGE_FRACTION)
    lasted = int(suspect.mask.sum()) >= max(LASTED_STEPS, LASTED_SHARE * int(frame.usable.sum()))
    if of is not None:
        # Ranks that share cores always wait a little, or for a while, for each other.
        if not (of.place is Place.RANK and of.side is Side.ENVIRONMENT):
            return True
        return lasted if suspect.located else large
    if suspect.host is not None and of is None:
        return lasted and not suspect.from_start
    if not suspect.located:
        # Where waits lie inside own times, a rank that became slow is hidden in all of them: no drift of machines.
        least = LARGE_TRANSFER_FRACTION if suspect.contaminated else LARGE_FRACTION
        return (large or suspect.fraction >= least) and not suspect.from_start
    if not suspect.from_start:
        return lasted
    # Slow from the first step and nothing says why: silicon alone differs by as much.
    others = [row for row in range(frame.shape[0]) if row not in suspect.rows]
    usual = middle(frame.compute_ms[others][:, suspect.mask]) if others else float("nan")
    extra = sum(max(0.0, suspect.excess.get(name, 0.0)) for name in COMPUTE)
    stalled = suspect.excess_ms - extra
    return stalled > extra or not np.isfinite(usual) or extra > SILICON_SPREAD * usual


def slowness(
    table: Table, prices: Prices, suspect: Suspect, explanation: Explanation, seen: Mapping[str, Observation]
) -> Finding:
    """The finding of a slowness."""
    frame = prices.frame
    of = explanation.told or table.unknown
    row = suspect.rows[0]
    where = _place(frame, suspect, of, seen)
    evidence = evidence_for(of, seen) if explanation.told else evidence_shown(table, suspect.symptom, seen)
    # Of what nothing explains it is the probability that none of the known causes is the one.
    confidence = explanation.confidence(of)
    places = np.flatnonzero(suspect.mask)
    last = int(places[-1])
    begin = suspect.begin
    lasted = int(suspect.mask.sum())
    after = int((frame.usable & (np.arange(len(frame.steps)) > last)).sum())
    over = after >= max(_OVER_STEPS, len(frame.steps) // 20)
    impact = Impact(
        ms_per_step=round(suspect.ms_per_step, 2),
        fraction_of_step=round(suspect.fraction, 4),
        gpu_hours_per_day=round(_gpu_hours(frame.window, suspect.fraction), 2),
    )
    summary = _slow_sentence(frame, suspect, of, where, explanation)
    told = _finding(
        of,
        table,
        confidence=confidence,
        severity=Severity.CRITICAL if suspect.fraction >= _CRITICAL_FRACTION else Severity.WARNING,
        lasting=lasted >= _ACT_STEPS and not over,
        where=where,
        basis=suspect.basis,
        since_ns=_time(frame, row, begin),
        until_ns=_time(frame, row, last) if over else None,
        detected_step=int(frame.steps[min(begin + suspect.needed, last)]),
        impact=impact,
        evidence=evidence,
        unseen=(_HIDDEN,) * suspect.contaminated + not_seen(explanation.leading or of, seen),
        summary=summary,
    )
    return replace(told, pattern=pattern_of(prices, suspect), whatif=counterfactual(prices, suspect))


def broken(table: Table, window: Window, found: Incident, explanation: Explanation) -> Finding:
    """The finding of a crash or hang. Below the threshold it keeps its likeliest class, and its low confidence."""
    of = explanation.told or explanation.leading or table.unknown
    where = _where(window, found.rank, of, found.phase)
    evidence = evidence_for(of, found.seen)
    who = _who(where)
    said = evidence[0].what if evidence else found.event.text
    verb = "The job died" if found.symptom is Symptom.CRASH else "The job hangs"
    step = f" in step {found.step}" if found.step is not None else ""
    sure = "" if explanation.told else "probably "
    summary = f"{verb}{step}: {sure}{_inner(of.title)} ({who}): {said}."
    if found.besides:
        summary += f" Its GPU reported {found.besides}"
    hours = 24.0 * window.world_size if found.symptom is Symptom.HANG else None
    told = _finding(
        of,
        table,
        confidence=explanation.confidence(of),
        severity=Severity.CRITICAL,
        lasting=True,
        where=where,
        basis=Basis.COUNTERS if of.place is Place.GPU else Basis.HOST,
        since_ns=found.event.time_ns,
        until_ns=None,
        detected_step=found.step,
        impact=Impact(fraction_of_step=1.0 if hours else None, gpu_hours_per_day=hours),
        evidence=evidence,
        unseen=not_seen(of, found.seen),
        summary=summary,
    )
    return replace(told, pattern=Pattern.STOPPED)


def watched(
    table: Table, of: FaultClass, window: Window, rank: int, evidence: Evidence, since_ns: int, *, slower: bool
) -> Finding:
    """Counters that speak without any slowness or death: worth an eye, never a verdict.

    `slower` says that the job is slow for a cause and at a place that could not be told: then it may be this one.
    """
    where = _where(window, rank, of, None)
    effect = "whether the job is slower for it cannot be told" if slower else "the job is not slower for it"
    summary = f"{_who(where)}: {evidence.what}; {effect}."
    return Finding(
        class_slug=of.slug,
        side=of.side,
        confidence=0.5 * table.threshold,
        severity=Severity.INFO,
        advice=Advice.WATCH,
        where=where,
        basis=Basis.COUNTERS,
        since_ns=since_ns,
        detected_step=None,
        impact=Impact(ms_per_step=0.0, fraction_of_step=0.0, gpu_hours_per_day=0.0),
        evidence=(evidence,),
        not_seen=(),
        action=of.action,
        runbook=of.runbook,
        summary=summary[0].upper() + summary[1:],
    )


def _finding(
    of: FaultClass,
    table: Table,
    *,
    confidence: float,
    severity: Severity,
    lasting: bool,
    where: Where,
    basis: Basis,
    since_ns: int,
    until_ns: int | None,
    detected_step: int | None,
    impact: Impact,
    evidence: tuple[Evidence, ...],
    unseen: tuple[str, ...],
    summary: str,
) -> Finding:
    sure = of is not table.unknown and confidence >= table.threshold
    return Finding(
        class_slug=of.slug,
        side=of.side,
        confidence=round(min(confidence, 0.999), 3),
        severity=severity,
        advice=Advice.ACT if sure and lasting else Advice.WATCH,
        where=where,
        basis=basis,
        since_ns=since_ns,
        detected_step=detected_step,
        impact=impact,
        evidence=evidence,
        not_seen=unseen,
        action=of.action,
        runbook=of.runbook,
        summary=summary,
        until_ns=until_ns,
    )


def _gpu_hours(window: Window, fraction: float) -> float:
    return window.world_size * 24.0 * fraction


def _phase(suspect: Suspect, of: FaultClass) -> str | None:
    if of.slug in ("host-sync", "gc-pause"):
        return None
    phase = suspect.phase
    return None if phase in ("sync", "gc", "work", "pause", "compile", "transfer") else phase


def _where(window: Window, rank: int | None, of: FaultClass, phase: str | None) -> Where:
    found: RankWindow | None = window.ranks.get(rank) if rank is not None else None
    if found is None:
        return Where(rank=rank, phase=phase)
    identity = found.identity
    return Where(
        host=identity.host,
        rank=identity.rank,
        local_rank=identity.local_rank,
        gpu_uuid=identity.gpu_uuid if of.place is Place.GPU else None,
        phase=phase,
    )


def _shared_host(frame: Frame, suspect: Suspect, where: Where) -> Where:
    hosts = {frame.identity(row).host for row in suspect.rows}
    return Where(host=hosts.pop(), phase=where.phase) if len(hosts) == 1 else where


def _place(frame: Frame, suspect: Suspect, of: FaultClass, seen: Mapping[str, Observation]) -> Where:
    """Where a slowness is: its rank, host or stage; of what is everywhere, where its class's evidence was seen."""
    phase = _phase(suspect, of)
    if suspect.located:
        return _where(frame.window, frame.ranks[suspect.rows[0]], of, phase)
    if suspect.stage is not None:
        return Where(device=f"stage:{suspect.stage}", phase=phase)
    if suspect.host is not None:
        return Where(host=suspect.host, phase=phase)
    hints = [seen[family] for family, odds in of.evidence.items() if odds.present >= _DECIDES and family in seen]
    hint = max(hints, key=lambda each: each.strength or 0.0, default=None)
    if hint is not None and hint.rank is not None and of.place is Place.GPU:
        return replace(_where(frame.window, hint.rank, of, phase), link=hint.device)
    if hint is not None and hint.link is not None:
        return Where(link=hint.link, phase=phase)
    if hint is not None and hint.host is not None:
        return Where(host=hint.host, device=hint.device, phase=phase)
    where = Where(phase=phase)
    return _shared_host(frame, suspect, where) if of.place is Place.HOST else where


def _time(frame: Frame, row: int, place: int) -> int:
    begins = frame.host("start_ns")[row]
    known = np.flatnonzero(np.isfinite(begins))
    if not known.size:
        return frame.window.begin_ns
    return int(begins[known[min(int(np.searchsorted(known, place)), known.size - 1)]])


def _who(where: Where) -> str:
    if where.rank is None:
        if where.link and not where.host:
            return f"between {where.link.replace(' - ', ' and ')}"
        if where.device and where.host:
            return f"{where.device} of {where.host}"
        if where.device:
            return where.device.replace(":", " ")
        return f"host {where.host}" if where.host else "all ranks"
    if where.gpu_uuid:
        return f"rank {where.rank}, {where.gpu_uuid} on {where.host}"
    return f"rank {where.rank} on {where.host}"


def _inner(title: str) -> str:
    """A title inside a sentence: "GPU" stays as it is."""
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _slow_sentence(frame: Frame, suspect: Suspect, of: FaultClass, where: Where, explanation: Explanation) -> str:
    who = _who(where)
    when = "from the first step" if suspect.from_start else f"since step {int(frame.steps[suspect.begin])}"
    phase = f" in {where.phase.replace('_', ' ')}" if where.phase else ""
    if suspect.symptom is Symptom.TRANSFER_SLOW and suspect.located:
        phase = " in what it exchanges with each of its groups"
    price = f"{suspect.ms_per_step:.1f} ms a step ({suspect.fraction:.0%})"
    told = f"{of.title}: {who}; it costs {price}{phase} {when}."
    leading = explanation.leading
    if explanation.told is None and leading is not None and explanation.confidence(leading) >= 0.2:
        told += f" It may be: {_inner(leading.title)}."
    return told
