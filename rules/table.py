"""The evidence table (classes.toml), loaded and checked once: classes, priors by symptom, log-odds by family."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from rankscope.errors import ConfigurationError
from rankscope.finding import Side
from rankscope.rules.faults import FAULTS

TABLE = Path(__file__).with_name("classes.toml")
#: What a site may not change of a class.
_FIXED = ("side", "place", "sources")

_Member = TypeVar("_Member", bound=StrEnum)


class Symptom(StrEnum):
    """What is wrong as it shows, before any cause: priors are conditioned on it."""

    ONE_RANK_SLOW = "one-rank-slow"
    ONE_HOST_SLOW = "one-host-slow"
    ONE_STAGE_SLOW = "one-stage-slow"
    TRANSFER_SLOW = "transfer-slow"
    ALL_SLOW = "all-slow"
    PERIODIC = "periodic"
    DRIFT = "drift"
    CRASH = "crash"
    HANG = "hang"


class Place(StrEnum):
    """What a class is found on: decides which fields of `where` a finding fills."""

    GPU = "gpu"
    RANK = "rank"
    HOST = "host"
    STAGE = "stage"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class LogOdds:
    """What a family of evidence adds to a class, in nats, where it is there and where it is looked for and not."""

    present: float
    absent: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """One explanation among which the posterior is shared out."""

    slug: str
    priors: Mapping[Symptom, float]
    evidence: Mapping[str, LogOdds]


@dataclass(frozen=True, slots=True)
class FaultClass(Alternative):
    """An explanation that a finding can carry."""

    side: Side
    place: Place
    title: str
    #: What a person should do, and what would settle it while it is unsure.
    action: str
    settles: str
    runbook: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Everything classes.toml says."""

    threshold: float
    #: Families of evidence, with what each looks at.
    families: Mapping[str, str]
    #: Least share of the step that a symptom must cost.
    relevant: Mapping[Symptom, float]
    classes: Mapping[str, FaultClass]
    #: Nothing wrong: the normal variation that a symptom may be.
    normal: Alternative
    #: None of the above.
    unknown: FaultClass


def load(path: Path = TABLE, *, overrides: Path | None = None) -> Table:
    """Read and check the table; raises ConfigurationError that names the key.

    `overrides` is a site's own file of the same form, with only what differs: priors and log-odds one by one, texts,
    the threshold. Sides and places are not a site's to change, nor are classes to add: their evidence is code.
    """
    document = _document(path, "reinstall")
    if overrides is None:
        return _Reader(path).table(document)
    return _Reader(overrides).table(_overridden(document, _document(overrides, "name a readable file"), overrides))


def _document(path: Path, todo: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"cannot read ({error.strerror})", where=str(path), todo=todo) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"not TOML: {error}", where=str(path)) from error


def _overridden(base: dict[str, Any], site: dict[str, Any], path: Path) -> dict[str, Any]:
    """The document with a site's values in place of its own; what is new or fixed is refused."""

    def refuse(key: str, what: str, known: Mapping[str, Any]) -> ConfigurationError:
        close = difflib.get_close_matches(key.rpartition(".")[2], list(known), n=1)
        todo = f"did you mean {close[0]}?" if close else "leave it out"
        return ConfigurationError(what, where=f"{path.name}: {key}", todo=todo)

    def merge(mine: dict[str, Any], theirs: dict[str, Any], key: str) -> dict[str, Any]:
        merged = dict(mine)
        for name, value in theirs.items():
            place = f"{key}.{name}" if key else name
            # Priors and evidence may name a symptom or family that the class did not look at so far.
            if name not in mine and not key.endswith((".priors", ".evidence")):
                raise refuse(place, "unknown key", mine)
            if name in _FIXED and key.startswith("class."):
                raise refuse(place, f"a class's {name} is not a site's to change", {})
            if isinstance(mine.get(name), dict) != isinstance(value, dict) and name in mine:
                raise refuse(place, "has another form", {})
            merged[name] = merge(mine[name], value, place) if isinstance(value, dict) else value
        return merged

    return merge(base, site, "")


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._families: Mapping[str, str] = {}

    def _wrong(self, key: str, what: str, todo: str = "") -> ConfigurationError:
        return ConfigurationError(what, where=f"{self._path.name}: {key}", todo=todo)

    def _keys(self, body: Any, key: str, required: set[str], optional: frozenset[str] = frozenset()) -> None:
        if not isinstance(body, dict):
            raise self._wrong(key, "must be a table")
        unknown = sorted(set(body) - required - optional)
        if unknown:
            raise self._wrong(f"{key}.{unknown[0]}", "unknown key", f"one of {sorted(required | optional)}")
        missing = sorted(required - set(body))
        if missing:
            raise self._wrong(f"{key}.{missing[0]}", "missing")

    def table(self, document: dict[str, Any]) -> Table:
        self._keys(document, "top", {"threshold", "families", "relevant", "normal", "class"})
        threshold = self._number(document["threshold"], "threshold", 0.5, 1.0)
        self._families = self._texts(document["families"], "families")
        relevant = {
            self._symptom(name, "relevant"): self._number(value, f"relevant.{name}", 0.0, 1.0)
            for name, value in document["relevant"].items()
        }
        classes = {slug: self._class(slug, body) for slug, body in document["class"].items()}
        unknown = [slug for slug, entry in classes.items() if entry.side is Side.UNKNOWN]
        if len(unknown) != 1:
            raise self._wrong("class", f"{len(unknown)} classes have the side unknown", "give it to exactly one")
        body = document["normal"]
        self._keys(body, "normal", {"priors", "evidence"})
        normal = Alternative(
            "normal", self._priors(body["priors"], "normal"), self._evidence(body["evidence"], "normal")
        )
        for symptom in Symptom:
            if classes[unknown[0]].priors.get(symptom, 0.0) <= 0:
                raise self._wrong(f"class.{unknown[0]}.priors.{symptom}", "the unknown needs a prior everywhere")
        self._agrees(classes)
        return Table(threshold, self._families, relevant, classes, normal, classes[unknown[0]])

    def _agrees(self, classes: Mapping[str, FaultClass]) -> None:
        """Whether sides are those of the frozen list; crashes and hangs of the job's own are not on it."""
        for slug, of in classes.items():
            fault = FAULTS.get(slug)
            if fault is not None and (fault.side is not of.side or not fault.told):
                raise self._wrong(f"class.{slug}.side", f"the list of faults says {fault.side}, {fault.seen}")

    def _class(self, slug: str, body: Any) -> FaultClass:
        key = f"class.{slug}"
        if not all(part.isalnum() and part == part.lower() for part in slug.split("-")):
            raise self._wrong(key, "a slug is lower-case words joined by hyphens")
        texts = {"side", "place", "title", "action", "settles", "runbook"}
        self._keys(body, key, texts | {"sources", "priors"}, frozenset({"evidence"}))
        told = {name: self._text(body[name], f"{key}.{name}") for name in sorted(texts)}
        if not isinstance(body["sources"], list) or not body["sources"]:
            raise self._wrong(f"{key}.sources", "must list at least one source")
        return FaultClass(
            slug=slug,
            priors=self._priors(body["priors"], key),
            evidence=self._evidence(body.get("evidence", {}), key),
            side=self._member(Side, told["side"], f"{key}.side"),
            place=self._member(Place, told["place"], f"{key}.place"),
            title=told["title"],
            action=told["action"],
            settles=told["settles"],
            runbook=told["runbook"],
            sources=tuple(self._text(source, f"{key}.sources") for source in body["sources"]),
        )

    def _priors(self, body: Any, key: str) -> Mapping[Symptom, float]:
        if not isinstance(body, dict) or not body:
            raise self._wrong(f"{key}.priors", "must give a prior for at least one symptom")
        return {
            self._symptom(name, f"{key}.priors"): self._number(value, f"{key}.priors.{name}", 1e-6, 1.0)
            for name, value in body.items()
        }

    def _evidence(self, body: Any, key: str) -> Mapping[str, LogOdds]:
        if not isinstance(body, dict):
            raise self._wrong(f"{key}.evidence", "must be a table")
        evidence = {}
        for family, pair in body.items():
            place = f"{key}.evidence.{family}"
            if family not in self._families:
                raise self._wrong(place, "unknown family", f"one of {sorted(self._families)}")
            if not isinstance(pair, list) or len(pair) != 2:
                raise self._wrong(place, "must be [log-odds if present, log-odds if absent]")
            present, absent = (self._number(value, place, -10.0, 10.0) for value in pair)
            if present * absent > 0:
                raise self._wrong(place, "present and absent cannot both speak the same way")
            evidence[family] = LogOdds(present, absent)
        return evidence

    def _symptom(self, name: str, key: str) -> Symptom:
        return self._member(Symptom, name, f"{key}.{name}")

    def _member(self, of: type[_Member], name: str, key: str) -> _Member:
        try:
            return of(name)
        except ValueError:
            raise self._wrong(key, f"unknown {of.__name__.lower()} {name!r}", "one of " + ", ".join(of)) from None

    def _number(self, value: Any, key: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "must be a number")
        if not low <= value <= high:
            raise self._wrong(key, f"{value} lies outside {low} to {high}")
        return float(value)

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "must be a text")
        return value.strip()

    def _texts(self, body: Any, key: str) -> Mapping[str, str]:
        if not isinstance(body, dict):
            raise self._wrong(key, "must be a table")
        return {name: self._text(value, f"{key}.{name}") for name, value in body.items()}
