"""What past jobs add to a verdict: whether a fault follows the GPU or stays with the rank, as a likelihood ratio.

Two explanations are held against each other: the board is bad, or what is slow belongs to the rank - its code, its
data, its slot. A GPU that was found bad in other jobs, or under another rank after a restart, speaks for the board; a
rank that was found so on another GPU speaks against it. The ratio is one family of evidence among others (classes.toml
bounds it at a factor of 20 either way), and a cause that the job itself does not show first is never told for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rankscope.finding import Side
from rankscope.rules.evidence import Observation, unseen
from rankscope.window import Window

FAMILY = "history"
#: What a swap of placement would settle: found at a rank, and not told whether for its GPU.
_OPEN = frozenset({"slow-rank-unexplained", "gpu-engine-exception", "gpu-page-fault", "rank-exception"})
#: Chance that a bad board shows in a run, and that something of the kind is found at a place by chance. Judgement: a
#: bad board shows in most jobs; slow computing is found in 1.5 % of jobs (Greyhound), crashes at one rank oftener.
_SHOWS, _CHANCE = 0.7, 0.1
#: The same where another job had the same rank on the board: what is run again and again is placed alike.
_CHANCE_SAME_RANK = 0.35
#: Nats that the record may count either way, and that clean runs of other jobs may count against: boards go bad.
BOUND = 3.0
_CLEAN_BOUND = 0.5
#: From this on a sentence says so.
SAID = 1.5


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

    @property
    def bad(self) -> bool | None:
        """Whether something was found that a bad board would show; None where the cause lay elsewhere."""
        if self.class_slug is None:
            return False
        return True if self.side == Side.HARDWARE or self.class_slug in _OPEN else None


def record_of(window: Window, rank: int | None, past: Sequence[PastRun]) -> Observation:
    """The history of a rank's GPU as evidence; the strength is the likelihood ratio, even at one half."""
    of = window.ranks.get(rank) if rank is not None else None
    uuid = of.identity.gpu_uuid if of is not None else None
    if rank is None or uuid is None:
        return unseen("no GPU whose past could be looked up")
    others = [run for run in past if run.gpu_uuid == uuid and run.job != window.job and run.bad is not None]
    moved = [
        run
        for run in past
        if run.job == window.job and run.bad is not None and (run.gpu_uuid == uuid) != (run.rank == rank)
    ]
    if not others and not moved:
        return unseen("no past run of this GPU, and none of this job on other hardware")
    elsewhere = sum(_nats(runs, rank) for runs in _by_job(others).values())
    restarts = sum(_weight(bool(run.bad), _CHANCE) * (1 if run.gpu_uuid == uuid else -1) for run in moved)
    nats = max(-BOUND, min(BOUND, max(-_CLEAN_BOUND, elsewhere) + restarts))
    said = "; ".join([*_of_others(uuid, others), *_of_restarts(uuid, rank, moved)])
    return Observation(0.5 + nats / (2 * BOUND), f"{_lead(nats)}: {said}", round(math.exp(nats), 3), 1.0, rank)


def sentence(record: Observation) -> str | None:
    """What a summary says of a record; None where it hardly tells."""
    if record.strength is None or abs(record.strength - 0.5) * 2 * BOUND < SAID:
        return None
    return f"{record.what} (likelihood ratio {record.value})"


def _lead(nats: float) -> str:
    if abs(nats) < SAID:
        return "Past runs hardly tell GPU from rank"
    return "It follows the GPU" if nats > 0 else "It follows the rank, not the GPU"


def _weight(bad: bool, chance: float) -> float:
    """Log likelihood ratio of one run: a bad board against chance."""
    return math.log(_SHOWS / chance) if bad else math.log((1 - _SHOWS) / (1 - chance))


def _by_job(runs: Sequence[PastRun]) -> dict[str, list[PastRun]]:
    jobs: dict[str, list[PastRun]] = {}
    for run in runs:
        jobs.setdefault(run.job, []).append(run)
    return jobs


def _nats(runs: Sequence[PastRun], rank: int) -> float:
    """One job counts once, however often it was restarted."""
    bad = any(run.bad for run in runs)
    same = all(run.rank == rank for run in runs if run.bad == bad)
    return _weight(bad, _CHANCE_SAME_RANK if same else _CHANCE)


def _of_others(uuid: str, others: Sequence[PastRun]) -> list[str]:
    jobs = _by_job(others)
    bad = [job for job, runs in jobs.items() if any(run.bad for run in runs)]
    kinds = sorted({run.class_slug for run in others if run.bad and run.class_slug is not None})
    found = f" ({', '.join(kinds)})" if kinds else ""
    return [f"{uuid} was found bad in {len(bad)} of {len(jobs)} other jobs{found}"] if jobs else []


def _of_restarts(uuid: str, rank: int, moved: Sequence[PastRun]) -> list[str]:
    said = []
    for run in moved:
        how = "bad" if run.bad else "well"
        what = f"rank {run.rank} on it" if run.gpu_uuid == uuid else f"rank {rank} on {run.gpu_uuid}"
        said.append(f"in attempt {run.attempt} of this job {what} was {how}")
    return said[:3]
