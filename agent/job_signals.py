"""Signals to the job that came through `rankscope run`: who sent them, and what a scheduler means by them."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankscope.agent.processes import signal_name
from rankscope.identity import safe_name
from rankscope.reading import Event, Severity

#: Signals by which schedulers announce an end: SIGTERM of Slurm and Kubernetes, SIGUSR1 and 2 of `sbatch --signal`.
_ANNOUNCING = frozenset({signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT})


@dataclass(frozen=True, slots=True)
class JobSignal:
    """A signal to the job that came through us."""

    number: int
    time_ns: int
    sender_pid: int
    #: Name of the process that sent it; "" where it is gone or in another namespace.
    sender: str
    #: A terminal's keys, not a process.
    keys: bool


def process_name(pid: int) -> str:
    """Name of a process; empty where it is gone."""
    try:
        text = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() if pid > 0 else ""
    except OSError:
        return ""
    return "".join(each for each in text if each.isprintable())[:32]


def signal_event(received: JobSignal, environ: Mapping[str, str]) -> Event:
    """The event of a signal that was passed on to the job, with who sent it as far as that can be told."""
    name = signal_name(received.number)
    scheduler, why = "", ""
    if not received.keys and received.number in _ANNOUNCING:
        if environ.get("SLURM_JOB_ID"):
            number = safe_name(environ["SLURM_JOB_ID"], 20)
            scheduler, why = "slurm", f"; Slurm job {number}: preempted, cancelled or at its time limit"
        elif environ.get("KUBERNETES_SERVICE_HOST"):
            scheduler, why = "kubernetes", "; a Kubernetes pod: evicted, preempted, deleted or drained"
    sender = f"{received.sender or 'process'} {received.sender_pid}" if received.sender_pid else "outside its namespace"
    who = "a key on the terminal" if received.keys else sender
    text = f"{name} from {who} was passed on to the job{why}"
    attributes: dict[str, str | int | float | None] = {
        "signal": received.number,
        "sender_pid": None if received.keys else received.sender_pid,
        "sender": received.sender or None,
        "scheduler": scheduler or None,
    }
    return Event("job-signalled", received.time_ns, text, Severity.WARNING, attributes=attributes)
