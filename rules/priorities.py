"""Concurrent incidents in the order in which to take them up, by a matrix that a site defines, with the reasons."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

from rankscope.errors import ConfigurationError
from rankscope.rules.documents import parse_toml

MATRIX = Path(__file__).with_name("priorities.toml")

LOWEST = "P4"
_PRIORITIES = ("P1", "P2", "P3")
#: Weights are moved by this much to see whether the order rests on them.
SENSITIVITY = 0.2
#: Fields of an incident beside the criteria.
_TEXT_FIELDS = ("name", "what", "source")
_SCALED = {"customers": "customer_weight"}


@dataclass(frozen=True, slots=True)
class Criterion:
    """One column of the matrix."""

    name: str
    title: str
    weight: float
    points: tuple[tuple[float, float], ...]

    def score(self, value: float) -> float:
        """0 to 1, along straight lines between the points."""
        before = self.points[0]
        if value <= before[0]:
            return before[1]
        for point in self.points[1:]:
            if value <= point[0]:
                share = (value - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]


@dataclass(frozen=True, slots=True)
class Floor:
    """At least this priority where every value named is reached."""

    priority: str
    at_least: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Criteria and weights, thresholds, and what findings and jobs bring along."""

    criteria: tuple[Criterion, ...]
    thresholds: Mapping[str, float]
    floors: tuple[Floor, ...]
    sides: Mapping[str, Mapping[str, float]]
    classes: Mapping[str, Mapping[str, float]]
    jobs: Mapping[str, Mapping[str, float]]

    def of_finding(self, side: str, slug: str, job: str) -> dict[str, float]:
        """Values that a finding of this class in this job brings along."""
        values = {**self.sides.get(side, {}), **self.classes.get(slug, {})}
        for pattern, of_job in self.jobs.items():
            if fnmatchcase(job, pattern):
                values |= of_job
        return values


@dataclass(frozen=True, slots=True)
class Incident:
    """One thing that is wrong. A criterion that is not in `values` is not known."""

    name: str
    what: str
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Part:
    """What one criterion adds to a score."""

    criterion: str
    title: str
    value: float
    adds: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """An incident at its place."""

    place: int
    priority: str
    incident: Incident
    score: float
    #: The score if everything unknown were as bad as it can be.
    score_at_worst: float
    parts: tuple[Part, ...]
    unknown: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Flip:
    """A weight on which the order rests: moved by so much, two incidents change places, or one its priority."""

    criterion: str
    factor: float
    what: str


@dataclass(frozen=True, slots=True)
class Order:
    """The answer."""

    ranked: tuple[Ranked, ...]
    flips: tuple[Flip, ...] = field(default=())


def load_matrix(path: Path | None = None) -> Matrix:
    """The built-in matrix, with a site's tables over it. Raises ConfigurationError."""
    document = parse_toml(MATRIX)
    if path is not None:
        site = parse_toml(path)
        for section, value in site.items():
            if section not in document and section != "job":
                _unknown(section, [*document, "job"], str(path))
            if isinstance(value, dict):
                merged = dict(document.get(section, {}))
                for name, inner in value.items():
                    old = merged.get(name)
                    merged[name] = {**old, **inner} if isinstance(old, dict) and isinstance(inner, dict) else inner
                document[section] = merged
            else:
                document[section] = value
    return parse_matrix(document, str(path or MATRIX))


def parse_matrix(document: Mapping[str, Any], where: str) -> Matrix:
    """A matrix from its tables. Raises ConfigurationError with the table named."""
    criteria = tuple(
        _criterion(name, table, f"{where}: criterion.{name}") for name, table in document["criterion"].items()
    )
    names = [criterion.name for criterion in criteria]
    if not any(criterion.weight for criterion in criteria):
        raise ConfigurationError("every weight is zero, so nothing can be ranked", where=where)
    thresholds = document["priority"]
    levels = [thresholds.get(name) for name in _PRIORITIES]
    if not all(isinstance(level, (int, float)) for level in levels) or levels != sorted(levels, reverse=True):
        raise ConfigurationError("[priority] needs P1 >= P2 >= P3, each a number", where=where)
    floors = []
    for floor in document.get("floor", ()):
        if not isinstance(floor, dict) or floor.get("priority") not in _PRIORITIES:
            raise ConfigurationError("a [[floor]] needs priority = P1, P2 or P3, and at_least", where=where)
        floors.append(Floor(floor["priority"], _values(floor.get("at_least", {}), names, f"{where}: floor")))
    tables = {
        section: {
            key: _values(table, names, f"{where}: {section}.{key}") for key, table in document.get(section, {}).items()
        }
        for section in ("side", "class", "job")
    }
    return Matrix(criteria, thresholds, tuple(floors), tables["side"], tables["class"], tables["job"])


def _criterion(name: str, table: Any, where: str) -> Criterion:
    points = table.get("points") if isinstance(table, dict) else None
    weight = table.get("weight") if isinstance(table, dict) else None
    if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ConfigurationError("needs a weight that is not negative", where=where)
    try:
        pairs = tuple((float(value), float(score)) for value, score in points or ())
    except (TypeError, ValueError):
        pairs = ()
    rising = all(before[0] < after[0] for before, after in pairwise(pairs))
    if len(pairs) < 2 or not rising or not all(0 <= score <= 1 for _, score in pairs):
        raise ConfigurationError(
            "needs points = [[value, score], ...]: two or more, values rising, scores from 0 to 1", where=where
        )
    return Criterion(name, str(table.get("title", name)), float(weight), pairs)


def _values(table: Any, names: Sequence[str], where: str) -> dict[str, float]:
    if not isinstance(table, dict):
        raise ConfigurationError("must be a table", where=where)
    found = {}
    for name, value in table.items():
        if name not in names:
            _unknown(name, names, where)
        found[name] = _number(value, name, where)
    return found


def parse_incident(table: Any, matrix: Matrix, where: str) -> Incident:
    """An incident of a file: name, what, and a value for each criterion that is known. Raises ConfigurationError."""
    if not isinstance(table, dict) or not str(table.get("name", "")).strip():
        raise ConfigurationError("an incident needs a name", where=where)
    names = [criterion.name for criterion in matrix.criteria]
    known = [*_TEXT_FIELDS, *names, *_SCALED.values()]
    values = {}
    where = f"{where}: {table['name']}"
    for name, value in table.items():
        if name not in known:
            _unknown(name, known, where)
        # An empty cell is what nobody knows.
        if name in names and value not in (None, ""):
            values[name] = _number(value, name, where)
    for name, factor in _SCALED.items():
        if name in values and table.get(factor) not in (None, ""):
            values[name] *= _number(table[factor], factor, where)
    return Incident(str(table["name"]), str(table.get("what", "")), str(table.get("source", where)), values)


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number) or number < 0:
        raise ConfigurationError(f"{name} must be a number that is not negative (or inf), not {value!r}", where=where)
    return number


def _unknown(name: str, known: Sequence[str], where: str) -> None:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise ConfigurationError(f"{name!r} is not known here", where=where, todo=hint)


def prioritise(incidents: Sequence[Incident], matrix: Matrix) -> Order:
    """Rank incidents, say why, and on which weights the order rests."""
    ranked = _rank(incidents, matrix)
    return Order(ranked, tuple(_flips(incidents, matrix, ranked)))


def _rank(incidents: Sequence[Incident], matrix: Matrix) -> tuple[Ranked, ...]:
    total = sum(criterion.weight for criterion in matrix.criteria)
    rows = []
    for incident in incidents:
        parts, unknown, worst = [], [], 0.0
        for criterion in matrix.criteria:
            share = criterion.weight / total
            if criterion.name in incident.values:
                value = incident.values[criterion.name]
                parts.append(Part(criterion.name, criterion.title, value, share * criterion.score(value)))
            elif criterion.weight:
                unknown.append(criterion.name)
                worst += share * max(score for _, score in criterion.points)
        parts.sort(key=lambda part: -part.adds)
        score = sum(part.adds for part in parts)
        row = Ranked(
            0, _priority(incident, score, matrix), incident, score, score + worst, tuple(parts), tuple(unknown), ""
        )
        rows.append(row)
    rows.sort(key=lambda row: (row.priority, -row.score, row.incident.name))
    return tuple(replace(row, place=place, reason=_reason(row, rows[place:])) for place, row in enumerate(rows, 1))


def _priority(incident: Incident, score: float, matrix: Matrix) -> str:
    reached = [name for name in _PRIORITIES if score >= matrix.thresholds[name]]
    reached += [
        floor.priority
        for floor in matrix.floors
        if all(incident.values.get(name, 0.0) >= least for name, least in floor.at_least.items())
    ]
    return min(reached, default=LOWEST)


def _reason(row: Ranked, after: Sequence[Ranked]) -> str:
    """What carries the score, and what puts it before the next."""
    carried = [part for part in row.parts if part.adds > 0][:3]
    said = ", ".join(f"{part.title} {part.value:g} (+{part.adds:.2f})" for part in carried)
    text = said or "nothing known weighs on any criterion"
    if after:
        other = {part.criterion: part.adds for part in after[0].parts}
        lead = max(row.parts, key=lambda part: part.adds - other.get(part.criterion, 0.0), default=None)
        if row.priority != after[0].priority and row.score <= after[0].score:
            text += f"; before {after[0].incident.name} by a floor of the matrix"
        elif lead is not None and lead.adds > other.get(lead.criterion, 0.0):
            text += f"; before {after[0].incident.name} most by {lead.title}"
    return text


def _flips(incidents: Sequence[Incident], matrix: Matrix, ranked: Sequence[Ranked]) -> list[Flip]:
    """Each weight moved by a fifth, alone: what changes."""
    found = []
    usual = [row.incident.name for row in ranked]
    level = {row.incident.name: row.priority for row in ranked}
    for place, criterion in enumerate(matrix.criteria):
        for factor in (1 - SENSITIVITY, 1 + SENSITIVITY):
            moved = list(matrix.criteria)
            moved[place] = replace(criterion, weight=criterion.weight * factor)
            again = _rank(incidents, replace(matrix, criteria=tuple(moved)))
            names = [row.incident.name for row in again]
            for first, second in pairwise(usual):
                if names.index(first) > names.index(second):
                    found.append(Flip(criterion.name, factor, f"{second} comes before {first}"))
            found += [
                Flip(criterion.name, factor, f"{row.incident.name} becomes {row.priority} instead of {before}")
                for row in again
                if row.priority != (before := level[row.incident.name])
            ]
    return found
