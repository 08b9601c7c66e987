"""Which ranks of a job are worth fetching: aggregates over all of them name the extremes, and a sample gives peers.

Every query here answers with a number of series that does not grow with the job: the store sorts, we read the top.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rankscope.agent.store import Sampled, Store
from rankscope.agent.store_job import StoredJob, quoted
from rankscope.exporters.prometheus_names import spellings
from rankscope.metrics import METRICS

#: Jobs up to this size are fetched whole; of larger ones this many ranks.
MOST_RANKS = 64
#: The window is searched in so many pieces, so that what lasted a while stands out, too.
_PIECES = 3
#: Of each phase, so many of the slowest.
_SLOWEST = 3
_BY_RANK = "rankscope_rank, host_name"
_PHASES = "rankscope_step_phase_duration_seconds"
#: Counters of which any growth makes a GPU worth a look.
_ERRORS = tuple(
    metric
    for metric in METRICS.values()
    if metric.counter
    and metric.name.startswith(("gpu.", "nvlink."))
    and ("ecc" in metric.name or "error" in metric.name)
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The ranks to fetch, in order of their number, and those among them that an aggregate named."""

    ranks: tuple[int, ...]
    suspects: frozenset[int]


def choose(store: Store, job: StoredJob, most: int = MOST_RANKS) -> Chosen:
    """All ranks of a small job; of one of more than `most` the suspects, a suspect host's, and peers evenly spread."""
    if job.world_size <= most:
        return Chosen(tuple(range(job.world_size)), frozenset())
    named: dict[int, None] = {}
    for expression in _expressions(job):
        for rank in _ranks(_pieces(store, job, expression)):
            named.setdefault(rank)
    for rank in _ranks([*store.instant(_erring_gpus(job), job.end_s), *store.instant(_told_gpus(job), job.until_s)]):
        named.setdefault(rank)
    for host in _slow_hosts(store, job):
        info = f"last_over_time(rankscope_rank_info{job.select(f'host_name={quoted(host)}')}[{job.width}])"
        for rank in _ranks(store.instant(info, job.end_s)):
            named.setdefault(rank)
    # Half of the places at least are peers, without which nothing is slow.
    suspects = frozenset(list(named)[: most // 2])
    chosen = set(suspects)
    spread = most - len(chosen)
    chosen |= {place * job.world_size // spread for place in range(spread)}
    return Chosen(tuple(sorted(chosen)), suspects)


def _clock(job: StoredJob) -> str:
    return f'rankscope_clock="{"device" if job.on_device else "host"}"'


def _expressions(job: StoredJob) -> Iterable[str]:
    """What the extremes of each are worth a look; `WIDTH` stands for the piece of the window."""
    seconds = (job.end_s - job.begin_s) / _PIECES
    phases = f"sum by ({_BY_RANK}, rankscope_phase) ({job.grown(_PHASES, _clock(job), seconds)})"
    yield f"topk by (rankscope_phase) ({_SLOWEST}, {phases})"
    waits = f'{_clock(job)}, rankscope_phase=~"backward_wait|inner_wait|bubble"'
    waited = f"sum by ({_BY_RANK}, rankscope_phase) ({job.grown(_PHASES, waits, seconds)})"
    yield f"bottomk by (rankscope_phase) ({_SLOWEST}, {waited})"
    stalls = job.grown("rankscope_step_stall_duration_seconds", "", seconds)
    yield f"topk by (rankscope_stall) (2, sum by ({_BY_RANK}, rankscope_stall) ({stalls}))"
    # Who became slower than it was: a rank that was fast is then no slower than the rest.
    own = f'{_clock(job)}, rankscope_phase=~"data_wait|forward|backward|backward_own|optimizer|other"'
    now = f"sum by ({_BY_RANK}) ({job.grown(_PHASES, own, seconds)})"
    selected = job.select(own)
    before = now.replace(f"{selected}[{round(seconds)}s]", f"{selected}[{round(seconds)}s] offset {round(seconds)}s")
    yield f"topk({_SLOWEST}, {now} - {before})"
    told = "rankscope_finding_confidence_ratio" + job.select('rankscope_rank!=""')
    yield f"topk(4, max by ({_BY_RANK}) ({told}))"


def _pieces(store: Store, job: StoredJob, expression: str) -> list[Sampled]:
    width = (job.end_s - job.begin_s) / _PIECES
    return store.over(expression, job.begin_s + width, job.end_s, width, max(job.back_s, width))


def _erring_gpus(job: StoredJob) -> str:
    """Ranks whose GPU counted errors in the window."""
    names = "|".join(name for metric in _ERRORS for name in spellings(metric))
    # By differences of what is there: a rate takes the names away, and series of two counters would be one.
    since = f"{max(1, round(job.end_s - job.begin_s - 2 * job.step_s))}s"
    now = job.select(f'__name__=~"{names}"')
    counted = f"sum by (hw_id, rankscope_job) ({now}) - sum by (hw_id, rankscope_job) ({now} offset {since})"
    return _of_ranks(job, f"({counted}) > 0")


def _told_gpus(job: StoredJob) -> str:
    """Ranks whose GPU had an Xid or was lost."""
    kinds = job.select('rankscope_event_kind=~"xid|gpu-lost|gpu-fallen-off"')
    return _of_ranks(job, f"sum by (hw_id, rankscope_job) (last_over_time(rankscope_events_total{kinds}[{job.width}]))")


def _of_ranks(job: StoredJob, of_gpus: str) -> str:
    """The ranks of the GPUs that an expression gives most for."""
    info = f"max by (hw_id, rankscope_job, {_BY_RANK}) (last_over_time(rankscope_rank_info{job.select()}[{job.width}]))"
    return f"{info} * on (hw_id, rankscope_job) group_left () topk(8, {of_gpus})"


def _slow_hosts(store: Store, job: StoredJob) -> list[str]:
    """The host of which all ranks together spent most in each phase, in each piece."""
    seconds = (job.end_s - job.begin_s) / _PIECES
    own = f'{_clock(job)}, rankscope_phase=~"data_wait|forward|backward|backward_own|optimizer|other"'
    grown = f"min by (host_name, rankscope_phase) ({job.grown(_PHASES, own, seconds)})"
    found = _pieces(store, job, f"topk by (rankscope_phase) (1, {grown})")
    counts: dict[str, int] = {}
    for series in found:
        host = series.metric.get("host_name", "")
        if host:
            counts[host] = counts.get(host, 0) + len(series.values)
    return sorted(counts, key=lambda host: -counts[host])[:2]


def _ranks(found: Iterable[Sampled]) -> list[int]:
    """Ranks that an answer names, those named oftenest first."""
    counts: dict[int, int] = {}
    for series in found:
        text = series.metric.get("rankscope_rank", "")
        if text.isdecimal():
            counts[int(text)] = counts.get(int(text), 0) + max(1, len(series.values))
    return sorted(counts, key=lambda rank: -counts[rank])
