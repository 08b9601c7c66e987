"""An environment variable as a knob: what it is in either kind of window, and whether it got to the ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankscope.agent.processes import PROC
from rankscope.errors import ConfigurationError
from rankscope.identity import RankIdentity

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What the experiment sets itself, to see the ranks.
_OURS = frozenset({"RANKSCOPE_ATTACH", "RANKSCOPE_DIR", "RANKSCOPE_JOB"})
_FORM = "give --env NAME=OFF,ON, or --env NAME=OFF --env NAME=ON where a value holds a comma"


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable with its two values; an empty one leaves it unset."""

    name: str
    off: str
    on: str

    def told(self, on: bool) -> str:
        """NAME=VALUE, or "NAME unset"."""
        value = self.on if on else self.off
        return f"{self.name}={value}" if value else f"{self.name} unset"

    def applied(self, environ: Mapping[str, str], on: bool) -> dict[str, str]:
        """`environ` with the value of that kind of window."""
        value = self.on if on else self.off
        return {key: each for key, each in environ.items() if key != self.name} | ({self.name: value} if value else {})

    def astray(self, on: bool, rank: RankIdentity, proc: Path = PROC) -> str:
        """What a rank was started with instead; empty where it is right, or cannot be read.

        A script may still set it itself once it runs: the kernel tells only what a process was started with.
        """
        try:
            entries = (proc / str(rank.pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            return ""
        mark = f"{self.name}=".encode()
        value = next((entry[len(mark) :].decode(errors="replace") for entry in entries if entry.startswith(mark)), "")
        if not any(entries) or value == (self.on if on else self.off):
            return ""
        has = f"{self.name}={value}" if value else f"no {self.name}"
        return f"rank {rank.rank} (process {rank.pid}) was started with {has}"


def parse_variable(words: Sequence[str]) -> Variable:
    """The values of `--env`: NAME=OFF,ON, or NAME=OFF and NAME=ON. Raises ConfigurationError."""
    names, values = [], []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigurationError(f'"{word}" gives no value', where="--env", todo=_FORM)
        names.append(name)
        values.append(value)
    if len(set(names)) > 1:
        todo = "one at a time; for several together, a script in front of the job that sets them by one"
        raise ConfigurationError(f"{len(set(names))} variables, {' and '.join(names)}", where="--env", todo=todo)
    if len(words) == 1:
        values = values[0].split(",")
    if len(values) != 2:
        raise ConfigurationError(f"{len(values)} values of {names[0]}, and it takes two", where="--env", todo=_FORM)
    if not _NAME.fullmatch(names[0]):
        raise ConfigurationError(f'"{names[0]}" is no name of a variable', where="--env", todo=_FORM)
    if names[0] in _OURS:
        raise ConfigurationError(f"{names[0]} is what the experiment sets itself", where="--env")
    if values[0] == values[1]:
        raise ConfigurationError(f'both values of {names[0]} are "{values[0]}"', where="--env", todo="give two")
    return Variable(names[0], *values)
