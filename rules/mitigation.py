"""What can be done about a verdict and what it costs, in GPU-hours, by what this recording itself shows."""

from __future__ import annotations

import numpy as np

from rankscope.finding import Finding, Side, Verdict
from rankscope.handoff import Choice
from rankscope.reading import Severity
from rankscope.rules.frame import Frame
from rankscope.window import Window

_HOUR_MS = 3_600_000.0
_HOUR_NS = 3.6e12


def choices(verdict: Verdict, window: Window) -> list[Choice]:
    """Choices for the first finding that is more than something to watch; none for a healthy job."""
    first = next((finding for finding in verdict.findings if finding.severity is not Severity.INFO), None)
    if first is None:
        return []
    if _stopped(first):
        return _of_stopped(first, window)
    loss = first.impact.gpu_hours_per_day
    once, how = _restart_cost(window)
    payback = ""
    if once is not None and loss:
        minutes = once / loss * 24 * 60
        payback = f"; pays back after {max(1, round(minutes))} min of further training"
    found = [
        Choice("go on as it is", 0.0, loss, "what is lost while it lasts; right where the job ends soon"),
        Choice(_apart(first), once, 0.0, f"{how}{payback}"),
    ]
    if first.action:
        found.append(
            Choice(first.action, None, None, f"the class's own remedy ({first.runbook}); what it costs is yours")
        )
    # Of what nothing explains, the swap is the class's own remedy.
    if first.side is Side.HARDWARE and first.where.rank is not None:
        found.append(
            Choice(
                f"swap rank {first.where.rank} with a rank of another host at the next restart",
                once,
                loss,
                "settles it: if the slowness follows the GPU it is hardware, if it stays with the rank it is code",
            )
        )
    return found


def _stopped(finding: Finding) -> bool:
    return finding.impact.ms_per_step is None and finding.severity is Severity.CRITICAL


def _of_stopped(first: Finding, window: Window) -> list[Choice]:
    once, how = _restart_cost(window)
    per_day = 24.0 * window.world_size
    return [
        Choice("leave it stopped", 0.0, per_day, "every GPU of the job stands still"),
        Choice("restart as it was", once, None, f"{how}; it stops again where the cause is still there"),
        Choice(_apart(first), once, None, how),
        Choice(first.action, None, None, f"the class's own remedy ({first.runbook}); what it costs is yours"),
    ]


def _apart(first: Finding) -> str:
    """The restart that leaves the cause behind."""
    where = first.where
    if first.side is Side.CODE:
        return "restart from the last checkpoint with the code or its configuration mended"
    if where.host is not None and first.side in (Side.HARDWARE, Side.ENVIRONMENT):
        return f"restart from the last checkpoint without host {where.host}"
    if where.rank is not None:
        return f"restart from the last checkpoint with rank {where.rank} on other hardware"
    return "restart from the last checkpoint elsewhere"


def _restart_cost(window: Window) -> tuple[float | None, str]:
    """(GPU-hours, what they rest on): steps since the last checkpoint seen, and the start as this run had it."""
    frame = Frame(window)
    if not frame.ranks or not np.isfinite(frame.job_ms).any():
        return None, "no step was recorded, so what a restart repeats is not known"
    ranks = max(window.world_size, len(frame.ranks))
    saved = np.flatnonzero(np.nanmax(np.nan_to_num(frame.host("checkpoint_ns")), axis=0) > 0)
    repeated = frame.job_ms[int(saved[-1]) + 1 :] if saved.size else frame.job_ms
    again = float(np.nansum(repeated)) / _HOUR_MS
    start = _start_ns(window, frame) / _HOUR_NS
    since = (
        f"step {int(frame.steps[saved[-1]])}, the last checkpoint seen" if saved.size else "the begin: none was seen"
    )
    text = f"repeats {repeated.size} steps from {since}, and the start took {start * 3600:.0f} s"
    return (again + start) * ranks, text


def _start_ns(window: Window, frame: Frame) -> float:
    """From the first sign of the ranks to the end of the first step."""
    ends = frame.host("end_ns")[:, 0]
    signs = [event.time_ns for event in window.events if event.kind in ("agent-started", "rank-attached")]
    if not signs or not np.isfinite(ends).any():
        return 0.0
    return max(0.0, float(np.nanmax(ends)) - min(signs))
