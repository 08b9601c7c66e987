"""The frozen list of fault classes (faults.toml), loaded and checked once: number, side, and how each can be known."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rankscope.errors import ConfigurationError
from rankscope.finding import Side

PATH = Path(__file__).with_name("faults.toml")
#: The list has no gaps: a class that is dropped, or added without a number, is noticed.
NUMBERS = range(1, 54)


class Seen(StrEnum):
    """How a class can be known by watching a job."""

    OBSERVABLE = "observable"
    PARSING = "parsing"
    NOT_OBSERVABLE = "not-observable"
    NORMAL = "normal"


@dataclass(frozen=True, slots=True)
class Fault:
    """One class of the list."""

    slug: str
    number: int
    side: Side
    seen: Seen
    what: str

    @property
    def told(self) -> bool:
        """Whether a finding can ever carry it."""
        return self.seen in (Seen.OBSERVABLE, Seen.PARSING)


def load(path: Path = PATH) -> Mapping[str, Fault]:
    """Read and check the list; raises ConfigurationError that names the entry."""
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"cannot read ({error.strerror})", where=str(path), todo="reinstall") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"not TOML: {error}", where=str(path)) from error
    entries = document.get("fault")
    if not isinstance(entries, dict) or set(document) != {"fault"}:
        raise ConfigurationError("holds [fault.SLUG] tables and nothing else", where=path.name)
    faults = {slug: _fault(slug, body, f"{path.name}: fault.{slug}") for slug, body in entries.items()}
    numbers = {fault.number for fault in faults.values()}
    if missing := sorted(set(NUMBERS) ^ numbers):
        raise ConfigurationError(
            f"number {missing[0]} is missing or unknown",
            where=path.name,
            todo=f"there are {NUMBERS[0]} to {NUMBERS[-1]}",
        )
    return faults


def _fault(slug: str, body: Any, where: str) -> Fault:
    if not isinstance(body, dict) or set(body) != {"number", "side", "seen", "what"}:
        raise ConfigurationError("needs number, side, seen and what, and nothing else", where=where)
    number, what = body["number"], body["what"]
    if type(number) is not int or not isinstance(what, str) or not what:
        raise ConfigurationError("number is a whole number, what a text", where=where)
    for name, kind in (("side", Side), ("seen", Seen)):
        if body[name] not in list(kind):
            raise ConfigurationError(f"unknown {name} {body[name]!r}", where=where, todo=f"one of {', '.join(kind)}")
    side, seen = Side(body["side"]), Seen(body["seen"])
    if side is Side.UNKNOWN and seen is not Seen.NOT_OBSERVABLE:
        raise ConfigurationError("only what cannot be known may have no side", where=where)
    return Fault(slug, number, side, seen, what)


FAULTS = load()
