"""Signals to a watched job: who sent them is told, and a scheduler's are called that."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rankscope.agent.job_signals import JobSignal, process_name, signal_event
from rankscope.agent.load import load_window
from rankscope.agent.recording import Recording
from rankscope.agent.verdict import keep_events
from rankscope.clock import SystemClock


def received(number: int = signal.SIGTERM, *, keys: bool = False, pid: int = 4711) -> JobSignal:
    """A signal from slurmstepd."""
    return JobSignal(number, 5, pid, "slurmstepd" if pid else "", keys)


@pytest.mark.parametrize(
    ("signalled", "environ", "words", "scheduler"),
    [
        (received(), {"SLURM_JOB_ID": "812"}, "slurmstepd 4711 was passed on to the job; Slurm job 812", "slurm"),
        (received(signal.SIGUSR1), {"SLURM_JOB_ID": "8"}, "SIGUSR1 from slurmstepd", "slurm"),
        (received(pid=0), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "outside its namespace", "kubernetes"),
        (received(), {}, "SIGTERM from slurmstepd 4711 was passed on to the job", None),
        (received(signal.SIGINT, keys=True), {"SLURM_JOB_ID": "8"}, "a key on the terminal", None),
        (received(signal.SIGHUP), {"SLURM_JOB_ID": "8"}, "SIGHUP", None),
        (received(), {"SLURM_JOB_ID": "8\x1b[31m;rm"}, "Slurm job 8-31m-rm", "slurm"),
    ],
)
def test_who_sent_it(signalled: JobSignal, environ: dict[str, str], words: str, scheduler: str | None) -> None:
    """The event says the signal, its sender, and the scheduler whose signal it is."""
    event = signal_event(signalled, environ)
    assert words in event.text
    assert event.attributes["scheduler"] == scheduler
    assert (event.kind, event.time_ns) == ("job-signalled", 5)


def test_kept_in_the_recording(tmp_path: Path) -> None:
    """What only `run` saw stands in the recording beside what the agent saw."""
    path = tmp_path / "a.db"
    recording = Recording.create(path, job="j", host="h", max_bytes=10**7, reserve_bytes=10**6, clock=SystemClock())
    recording.close()
    keep_events(path, [signal_event(received(), {})])
    (event,) = [event for event in load_window([path]).events if event.kind == "job-signalled"]
    assert event.attributes["signal"] == signal.SIGTERM


def test_process_name() -> None:
    """A process that is gone has no name."""
    assert process_name(os.getpid())
    assert process_name(0) == process_name(2**22 + 1) == ""
