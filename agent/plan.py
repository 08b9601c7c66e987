"""What an agent process is told when it starts: one small JSON file, gone with the run's ring directory."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rankscope.agent.config import Settings
from rankscope.errors import ConfigurationError


class Plan(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One job to watch."""

    job: str
    recording: str
    rings: str
    settings: Settings
    #: How often the agent of this run was started before.
    restart: int = 0
    #: End when standard input does: whoever started the agent holds its other end.
    follow_parent: bool = True


def write_plan(plan: Plan, path: Path) -> None:
    """Put a plan where the agent finds it."""
    path.write_bytes(msgspec.json.encode(plan))


def read_plan(path: Path) -> Plan:
    """Raises ConfigurationError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"cannot read the agent's plan ({error})", where=str(path)) from error
