"""Classes that were looked at and are not it, each with what speaks most against it."""

from __future__ import annotations

from collections.abc import Mapping

from rankscope.handoff import RuledOut
from rankscope.rules.evidence import Observation, observe
from rankscope.rules.explain import Explanation, explain, weight
from rankscope.rules.families import ANYWHERE, SLOWNESS
from rankscope.rules.frame import Frame
from rankscope.rules.incident import incident
from rankscope.rules.locate import suspects
from rankscope.rules.table import FaultClass, Symptom, Table
from rankscope.rules.telemetry import Telemetry
from rankscope.rules.verdict import TABLE
from rankscope.rules.whatif_price import Prices
from rankscope.window import Window

#: A class is ruled out below this probability, and only where a piece of evidence speaks against it this strongly.
_UNLIKELY = 0.02
_AGAINST = -1.0


def ruled_out(window: Window, table: Table = TABLE) -> tuple[list[RuledOut], list[tuple[str, float]]]:
    """(classes ruled out for everything that is wrong in this window, those neither told nor ruled out).

    A class that goes with a symptom seen is ruled out where it explains none of what was seen; the reason given is of
    the suspect that it came nearest to.
    """
    frame, telemetry = Frame(window), Telemetry(window)
    seen_by_symptom: list[tuple[Symptom, Mapping[str, Observation], Explanation]] = []
    stopped = incident(window, frame, telemetry)
    if stopped is not None:
        seen_by_symptom.append((stopped.symptom, stopped.seen, explain(table, stopped.symptom, stopped.seen)))
    for suspect in suspects(Prices(frame)):
        seen = observe(SLOWNESS, frame, telemetry, suspect, ANYWHERE)
        seen_by_symptom.append((suspect.symptom, seen, explain(table, suspect.symptom, seen)))
    gone: list[RuledOut] = []
    still_open: list[tuple[str, float]] = []
    for of in table.classes.values():
        if of.slug == table.unknown.slug:
            continue
        considered = [row for row in seen_by_symptom if row[0] in of.priors]
        if not considered:
            continue
        _, observed, explanation = max(considered, key=lambda row, of=of: row[2].confidence(of))  # type: ignore[misc]
        probability = explanation.confidence(of)
        against = _against(of, observed)
        if explanation.told is of:
            continue
        if probability < _UNLIKELY and against is not None:
            family, moved = against
            why = observed[family].what
            gone.append(RuledOut(of.slug, of.title, of.side, family, why, round(moved, 2), probability))
        else:
            still_open.append((of.title, probability))
    gone.sort(key=lambda each: each.log_odds)
    still_open.sort(key=lambda each: -each[1])
    return gone, [each for each in still_open if each[1] >= _UNLIKELY]


def _against(of: FaultClass, seen: Mapping[str, Observation]) -> tuple[str, float] | None:
    """(family, log-odds) of what speaks most against a class."""
    moved = {
        family: weight(odds, strength)
        for family, odds in of.evidence.items()
        if family in seen and (strength := seen[family].strength) is not None
    }
    family = min(moved, key=lambda name: moved[name], default=None)
    return (family, moved[family]) if family is not None and moved[family] <= _AGAINST else None
