"""NVIDIA's catalogue of Xids (xids.toml), loaded and checked once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.errors import ConfigurationError

PATH = Path(__file__).with_name("xids.toml")
_FIELDS = frozenset({"mnemonic", "name", "means", "causes", "action", "investigate", "advice", "derivative", "source"})
_TEXTS = ("mnemonic", "name")
_OPTIONAL_TEXTS = ("action", "investigate", "advice", "source")
#: Weights are written with two digits.
_ROUNDING = 0.001


@dataclass(frozen=True, slots=True)
class Xid:
    """One number the driver reports: what it tells, where it can come from, and whether it only follows another."""

    number: int
    name: str
    #: What has happened: names of Catalogue.meanings.
    means: frozenset[str]
    derivative: bool
    #: NVIDIA's name for it in the driver's sources.
    mnemonic: str = ""
    #: Where it can come from (names of Catalogue.causes), with weights that add up to 1; empty where it only informs.
    causes: Mapping[str, float] = field(default_factory=dict)
    #: NVIDIA's bucket for getting the system back to work, and for finding out why; None where it names none.
    action: str | None = None
    investigate: str | None = None
    #: What NVIDIA's notes say to do where they name no bucket.
    advice: str | None = None
    #: Address of what it was taken from.
    source: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The whole file."""

    xids: Mapping[int, Xid]
    #: Kind of trouble -> what it is; cause -> what it is; NVIDIA's bucket -> what to do.
    meanings: Mapping[str, str]
    causes: Mapping[str, str]
    buckets: Mapping[str, str]
    #: Numbers that GPUs from Ampere on do not report -> mnemonic.
    retired: Mapping[int, str]
    source: str
    revision: str


def read(path: Path = PATH) -> Catalogue:
    """Read and check the catalogue; raises ConfigurationError that names the entry."""
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"cannot read ({error.strerror})", where=str(path), todo="reinstall") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"not TOML: {error}", where=str(path)) from error
    entries = document.get("xid")
    if not isinstance(entries, dict) or not entries:
        raise ConfigurationError("holds no Xid", where=str(path), todo="reinstall")
    tables = {name: _texts(document.get(name), f"{path.name}: {name}") for name in ("meanings", "causes", "buckets")}
    retired = _texts(document.get("retired", {}), f"{path.name}: retired")
    source, revision = document.get("source", ""), document.get("revision", "")
    if not isinstance(source, str) or not isinstance(revision, str):
        raise ConfigurationError("source and revision are texts", where=path.name)
    xids = {}
    for text, body in entries.items():
        where = f"{path.name}: xid.{text}"
        number = _number(text, where)
        if text in retired:
            raise ConfigurationError("is listed under [retired] too", where=where)
        xids[number] = _xid(number, body, tables, source, where)
    return Catalogue(
        xids,
        tables["meanings"],
        tables["causes"],
        tables["buckets"],
        {_number(text, f"{path.name}: retired.{text}"): name for text, name in retired.items()},
        source,
        revision,
    )


def load(path: Path = PATH) -> Mapping[int, Xid]:
    """The Xids by number; raises ConfigurationError."""
    return read(path).xids


def _texts(table: Any, where: str) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(text, str) and text for text in table.values()):
        raise ConfigurationError("needs to be a table of texts", where=where)
    return table


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise ConfigurationError("an Xid is a number", where=where)
    return int(text)


def _xid(number: int, body: Any, tables: Mapping[str, Mapping[str, str]], source: str, where: str) -> Xid:
    if not isinstance(body, dict):
        raise ConfigurationError("needs to be a table", where=where)
    if unknown := sorted(set(body) - _FIELDS):
        raise ConfigurationError(f"unknown field {unknown[0]!r}", where=where, todo=f"there are {sorted(_FIELDS)}")
    for name in _TEXTS:
        if not isinstance(body.get(name), str) or not body[name]:
            raise ConfigurationError(f"needs {name}, a text", where=where)
    for name in _OPTIONAL_TEXTS:
        if not isinstance(body.get(name, ""), str):
            raise ConfigurationError(f"{name} must be a text", where=where)
    means = body.get("means")
    if not isinstance(means, list) or not all(isinstance(m, str) and m in tables["meanings"] for m in means):
        raise ConfigurationError(f"means must be some of {sorted(tables['meanings'])}", where=where)
    derivative = body.get("derivative", False)
    if not isinstance(derivative, bool):
        raise ConfigurationError("derivative must be true or false", where=where)
    for name in ("action", "investigate"):
        if name in body and body[name] not in tables["buckets"]:
            raise ConfigurationError(f"{name} must be one of [buckets], not {body[name]!r}", where=where)
    return Xid(
        number,
        body["name"],
        frozenset(means),
        derivative,
        body["mnemonic"],
        _causes(body.get("causes"), tables["causes"], derivative, where),
        body.get("action"),
        body.get("investigate"),
        body.get("advice"),
        body.get("source", source),
    )


def _causes(causes: Any, known: Mapping[str, str], derivative: bool, where: str) -> dict[str, float]:
    if not isinstance(causes, dict) or not set(causes) <= set(known):
        raise ConfigurationError(f"causes must be a table over {sorted(known)}", where=where)
    weights = {}
    for name, weight in causes.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
            raise ConfigurationError(f"causes.{name} must be a weight above 0 and at most 1", where=where)
        weights[name] = float(weight)
    if not weights and not derivative:
        raise ConfigurationError("causes may be empty only where it is derivative", where=where)
    if weights and abs(sum(weights.values()) - 1) > _ROUNDING:
        raise ConfigurationError(f"causes add up to {sum(weights.values()):g}, not 1", where=where)
    return weights


CATALOGUE = read()
XIDS = CATALOGUE.xids
