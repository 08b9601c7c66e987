"""`rankscope doctor`: every source read once, and what else a run needs, each with what would change it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.agent.config import Settings, ring_root
from rankscope.agent.recording import state_directory
from rankscope.agent.sources import build_sources
from rankscope.clock import SystemClock
from rankscope.errors import PermissionDenied, ProbeError, Unsupported
from rankscope.reading import Outcome, Probe

if TYPE_CHECKING:
    from rich.console import Console

#: A helper process answers a little later than it is asked.
_ASK_FOR_SECONDS = 5.0
_TODO = {
    Outcome.OK: "",
    Outcome.NO_DATA: "nothing to do: there is nothing to read now",
    Outcome.UNSUPPORTED: "nothing to do on this machine",
    Outcome.NO_PERMISSION: "run as a user who may read it, or leave it out",
    Outcome.FAILED: "see the reason; it is tried again while a job runs",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One source or need, and how it stands."""

    name: str
    outcome: Outcome
    reason: str
    todo: str

    def document(self) -> dict[str, str]:
        """As plain values."""
        return {key: str(value) for key, value in asdict(self).items()}


def examine(settings: Settings) -> list[Found]:
    """Read every source once and look at what a run needs. Raises ConfigurationError."""
    sources = build_sources(settings, lambda: {0: os.getpid()})
    found = [line for probe in sources.probes for line in _ask(probe)]
    found.append(_directory("rings", ring_root(settings), "set RANKSCOPE_DIR to a directory in memory"))
    state = settings.recording.state_directory
    found.append(_directory("recordings", Path(state) if state else state_directory(), "set RANKSCOPE_STATE"))
    found.append(_torch())
    found.append(_pidfd())
    return found


def _ask(probe: Probe) -> Iterator[Found]:
    clock = SystemClock()
    reasons: dict[tuple[Outcome, str], None] = {}
    metrics: set[str] = set()
    deadline = time.monotonic() + _ASK_FOR_SECONDS
    for group in probe.groups:
        try:
            while True:
                result = probe.read(group.name, clock.monotonic_ns())
                metrics |= {reading.metric for reading in result.readings}
                for device, outcome, reason in result.outcomes:
                    if outcome is not Outcome.OK:
                        reasons[outcome, f"{device} {reason}".strip()] = None
                asynchronous = probe.name == "nvml" and not metrics and not reasons
                if not asynchronous or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        except Unsupported as error:
            reasons[Outcome.UNSUPPORTED, str(error)] = None
        except PermissionDenied as error:
            reasons[Outcome.NO_PERMISSION, str(error)] = None
        except ProbeError as error:
            reasons[Outcome.FAILED, str(error)] = None
    probe.close()
    if metrics or not reasons:
        yield Found(probe.name, Outcome.OK, f"{len(metrics)} metrics" if metrics else "listening", "")
    for outcome, reason in reasons:
        # A probe that knows what to do says so behind its reason.
        what, _, todo = reason.partition("; ")
        yield Found(probe.name, outcome, what, todo or _TODO[outcome])


def _directory(name: str, directory: Path, todo: str) -> Found:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 21)
    except OSError as error:
        return Found(name, Outcome.FAILED, f"{directory}: {error.strerror}", todo)
    return Found(name, Outcome.OK, str(directory), "")


def _torch() -> Found:
    if find_spec("torch") is None:
        todo = f"{sys.executable} -m pip install 'rankscope[torch]'"
        return Found("torch", Outcome.UNSUPPORTED, f"not installed beside {sys.executable}", todo)
    from importlib.metadata import version

    return Found("torch", Outcome.OK, version("torch"), "")


def _pidfd() -> Found:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Found("pidfd", Outcome.UNSUPPORTED, error.strerror or "", "Linux 5.3 tells at once when a rank dies")
    return Found("pidfd", Outcome.OK, "the kernel tells at once when a rank dies", "")


def print_examination(found: list[Found], console: Console) -> None:
    """The examination as a table."""
    from rich.table import Table

    colours = {Outcome.OK: "green", Outcome.NO_DATA: "default", Outcome.UNSUPPORTED: "yellow"}
    table = Table(box=None, pad_edge=False)
    for heading in ("source", "state", "what", "what would change it"):
        table.add_column(heading, overflow="fold")
    for line in found:
        style = colours.get(line.outcome, "red")
        table.add_row(line.name, f"[{style}]{line.outcome}[/]", line.reason, line.todo)
    console.print(table)
