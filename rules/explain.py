"""From evidence to a class: prior of the symptom plus the log-odds of each family, as probabilities that sum to one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rankscope.finding import Evidence, Side
from rankscope.rules.evidence import Observation
from rankscope.rules.history import FAMILY
from rankscope.rules.table import Alternative, FaultClass, LogOdds, Symptom, Table

#: Evidence that moves a class by less is not worth showing.
_SHOWN = 0.05
#: Confidence that a cause must have without the record of past runs to be told with it.
_BY_ITSELF = 0.5
#: What remains of a confidence where own times may hold waits for other ranks.
CONTAMINATED = 0.85


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a suspect most likely is. `told` is the class that passed the threshold, None where none did."""

    posterior: Mapping[str, float]
    told: FaultClass | None
    normal: bool
    #: The likeliest class that names a cause, whether it passed or not.
    leading: FaultClass | None

    def confidence(self, of: FaultClass) -> float:
        """Posterior probability of a class."""
        return self.posterior.get(of.slug, 0.0)


def weight(odds: LogOdds, strength: float) -> float:
    """Log-odds of a family seen with a strength between 0 (looked for, not there) and 1."""
    return odds.absent + (odds.present - odds.absent) * strength


def score(alternative: Alternative, symptom: Symptom, seen: Mapping[str, Observation]) -> float:
    """Unnormalised log posterior; minus infinity where the class does not go with the symptom."""
    prior = alternative.priors.get(symptom)
    if prior is None:
        return -math.inf
    total = math.log(prior)
    for family, odds in alternative.evidence.items():
        observation = seen.get(family)
        if observation is not None and observation.strength is not None:
            total += weight(odds, observation.strength)
    return total


def explain(table: Table, symptom: Symptom, seen: Mapping[str, Observation]) -> Explanation:
    """Share the probability out among the classes, normal variation and the unknown."""
    alternatives: list[Alternative] = [*table.classes.values(), table.normal]
    scores = {alternative.slug: score(alternative, symptom, seen) for alternative in alternatives}
    top = max(scores.values())
    weights = {slug: math.exp(value - top) for slug, value in scores.items()}
    total = sum(weights.values())
    posterior = {slug: value / total for slug, value in weights.items()}
    best = max(posterior, key=lambda slug: posterior[slug])
    causes = [slug for slug in table.classes if slug != table.unknown.slug and posterior[slug] > 0]
    leading = max(causes, key=lambda slug: posterior[slug], default=None)
    told = None
    if best in causes and posterior[best] >= table.threshold:
        told = table.classes[best]
    return Explanation(
        posterior=posterior,
        told=told,
        normal=best == table.normal.slug,
        leading=None if leading is None else table.classes[leading],
    )


def weakened(table: Table, explanation: Explanation) -> Explanation:
    """What is left where the slowness may be a wait for somebody else: never a fault of hardware, and less sure."""
    told = explanation.told
    if told is None:
        return explanation
    posterior = {
        slug: value * (CONTAMINATED if slug == told.slug else 1) for slug, value in explanation.posterior.items()
    }
    if told.side is Side.HARDWARE or posterior[told.slug] < table.threshold:
        told = None
    return replace(explanation, posterior=posterior, told=told)


def with_record(
    table: Table, symptom: Symptom, seen: Mapping[str, Observation], record: Observation
) -> tuple[Explanation, Mapping[str, Observation]]:
    """(explanation, everything seen) with the record of past runs as one more family.

    The record moves every confidence, but tells no cause that this job does not hold more likely than not by itself.
    """
    alone = explain(table, symptom, seen)
    if record.strength is None:
        return alone, seen
    everything = {**seen, FAMILY: record}
    found = explain(table, symptom, everything)
    if found.told is not None and alone.confidence(found.told) < _BY_ITSELF:
        found = replace(found, told=None)
    return found, everything


def evidence_for(of: FaultClass, seen: Mapping[str, Observation]) -> tuple[Evidence, ...]:
    """What spoke for and against a class, the strongest first."""
    pieces = []
    for family, odds in of.evidence.items():
        observation = seen.get(family)
        if observation is None or observation.strength is None:
            continue
        moved = weight(odds, observation.strength)
        if abs(moved) >= _SHOWN:
            pieces.append(Evidence(family, observation.what, observation.value, observation.peers, round(moved, 2)))
    return tuple(sorted(pieces, key=lambda piece: -abs(piece.log_odds)))


def evidence_shown(table: Table, symptom: Symptom, seen: Mapping[str, Observation]) -> tuple[Evidence, ...]:
    """For what no class explains: what was seen, each piece with the most it did to any class of the symptom.

    Mostly these are refutations: what was looked for and is not there.
    """
    likely = [of for of in table.classes.values() if symptom in of.priors]
    pieces = []
    for family, observation in seen.items():
        if observation.strength is None:
            continue
        moved = [weight(of.evidence[family], observation.strength) for of in likely if family in of.evidence]
        most = max(moved, key=abs, default=0.0)
        if abs(most) >= _SHOWN:
            pieces.append(Evidence(family, observation.what, observation.value, observation.peers, round(most, 2)))
    return tuple(sorted(pieces, key=lambda piece: -abs(piece.log_odds)))


def not_seen(of: FaultClass, seen: Mapping[str, Observation]) -> tuple[str, ...]:
    """Families that could have spoken for or against a class and could not be seen."""
    return tuple(
        dict.fromkeys(
            f"{family}: {seen[family].what}"
            for family in of.evidence
            if family in seen and seen[family].strength is None
        )
    )
