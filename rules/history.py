"""What past jobs add to a verdict: whether a fault follows the GPU or the rank.

A slowness that nothing explains stays unknown within one job. When the same GPU was slow in other jobs, or under
another rank after a restart, it follows the GPU; when the same rank was slow on another GPU, it follows the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankscope.finding import Evidence, Finding
from rankscope.window import Window

#: Classes that a swap of placement would settle, as the history can.
_OPEN = frozenset({"slow-rank-unexplained", "gpu-engine-exception", "gpu-page-fault", "rank-exception"})
#: Other jobs, or other attempts, in which it must have come.
_JOBS = 2
#: Of a GPU's past runs, the share that must have had it: one that is slow now and then in many is no pattern.
_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class PastRun:
    """How one GPU fared in one past run under one rank. `class_slug` is None where nothing was found at it."""

    gpu_uuid: str
    job: str
    attempt: int
    rank: int
    host: str
    ended_ns: int
    class_slug: str | None
    side: str | None
    fraction: float | None


def with_history(findings: Sequence[Finding], window: Window, past: Sequence[PastRun]) -> tuple[Finding, ...]:
    """The findings, those that a swap would settle with what past runs say. Sides stay: a person decides with it."""
    return tuple(_told(finding, window, past) for finding in findings)


def _told(finding: Finding, window: Window, past: Sequence[PastRun]) -> Finding:
    rank = finding.where.rank
    of = window.ranks.get(rank) if rank is not None else None
    if of is None or rank is None or finding.class_slug not in _OPEN:
        return finding
    said = follows_gpu(of.identity.gpu_uuid, rank, window.job, past) or follows_rank(
        of.identity.gpu_uuid, rank, window.job, past
    )
    if said is None:
        return finding
    piece = Evidence("history", said, None, None, 0.0)
    return replace(finding, evidence=(*finding.evidence, piece), summary=f"{finding.summary} {said}.")


def follows_gpu(uuid: str | None, rank: int, job: str, past: Sequence[PastRun]) -> str | None:
    """What says that it follows the GPU: the same board in other jobs, or under another rank of this one."""
    if uuid is None:
        return None
    runs = [run for run in past if run.gpu_uuid == uuid and (run.job != job or run.rank != rank)]
    slow = [run for run in runs if run.class_slug in _OPEN]
    jobs = {(run.job, run.attempt) for run in slow}
    if len(jobs) < _JOBS or len(slow) < _SHARE * len(runs):
        # One restart of the same job on other places is as good as another job.
        moved = [run for run in slow if run.job == job and run.rank != rank]
        if not moved:
            return None
        return f"It follows the GPU: rank {moved[0].rank} was slow on it in attempt {moved[0].attempt} of this job"
    return f"It follows the GPU: {uuid} was found so in {len(jobs)} other runs ({len(runs)} known)"


def follows_rank(uuid: str | None, rank: int, job: str, past: Sequence[PastRun]) -> str | None:
    """What says that it follows the rank: the same rank of the same job on another GPU."""
    runs = [run for run in past if run.job == job and run.rank == rank and run.gpu_uuid != uuid]
    slow = [run for run in runs if run.class_slug in _OPEN]
    if not slow:
        return None
    return f"It follows the rank, not the GPU: attempt {slow[0].attempt} was slow at it on {slow[0].gpu_uuid}"
