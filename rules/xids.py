"""The Xids that matter here (xids.toml), loaded and checked once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankscope.errors import ConfigurationError

CATALOGUE = Path(__file__).with_name("xids.toml")
#: What an Xid can come from.
MEANINGS = frozenset({"code", "ecc", "firmware", "link", "off-bus"})


@dataclass(frozen=True, slots=True)
class Xid:
    """One number the driver reports: the set of what it can come from, and whether it only follows another."""

    number: int
    name: str
    means: frozenset[str]
    derivative: bool


def load(path: Path = CATALOGUE) -> Mapping[int, Xid]:
    """Read and check the catalogue; raises ConfigurationError that names the entry."""
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"cannot read ({error.strerror})", where=str(path), todo="reinstall") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"not TOML: {error}", where=str(path)) from error
    found = {}
    for text, body in document.get("xid", {}).items():
        where = f"{path.name}: xid.{text}"
        if not text.isdigit():
            raise ConfigurationError("an Xid is a number", where=where)
        if set(body) - {"name", "means", "derivative"} or not isinstance(body.get("name"), str):
            raise ConfigurationError("needs name and means, may have derivative, nothing else", where=where)
        means = body.get("means")
        if not isinstance(means, list) or not set(means) <= MEANINGS:
            raise ConfigurationError(f"means must be some of {sorted(MEANINGS)}", where=where)
        found[int(text)] = Xid(int(text), body["name"], frozenset(means), body.get("derivative") is True)
    if not found:
        raise ConfigurationError("holds no Xid", where=str(path), todo="reinstall")
    return found


XIDS = load()
