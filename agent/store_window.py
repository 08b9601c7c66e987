"""A window from a metric store: what rules judge, with a row per export interval that stands for its mean step.

Histograms are cumulative, so the steps between two exports are known by their number and their sum: a row's durations
are means over them. Times are seconds since the epoch as the store has them; a host's CLOCK_MONOTONIC is not known, so
the window has a clock of its own, which begins with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rankscope.agent.host_clocks import clock_lines
from rankscope.agent.store import Sampled, Store
from rankscope.agent.store_clocks import hosts_ahead
from rankscope.agent.store_columns import (
    FloatArray,
    Means,
    StoredGroup,
    device_columns,
    group_columns,
    step_columns,
)
from rankscope.agent.store_job import STEPS, StoredJob
from rankscope.agent.store_readings import agents_findings, fetch_events, fetch_readings
from rankscope.agent.store_suspects import Chosen
from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.reading import Event
from rankscope.records import GroupKind
from rankscope.window import HostClock, RankWindow, Series, SeriesKey, Window

_SECOND_NS = 1_000_000_000
_NAMES = {
    "phase": "rankscope_step_phase_duration_seconds",
    "stall": "rankscope_step_stall_duration_seconds",
    "own": "rankscope_collective_own_duration_seconds",
    "wait": "rankscope_collective_wait_duration_seconds",
    "lead": "rankscope_step_lead_duration_seconds",
}
#: What is no histogram: values as they are.
_VALUES = {
    "work": "rankscope_rank_work(_total)?",
    "alloc_retries": "rankscope_rank_allocation_retries(_total)?",
    "contaminated": "rankscope_rank_contaminated(_ratio)?",
}
_KINDS = {kind.name.lower(): kind for kind in GroupKind}


@dataclass(slots=True)
class _Told:
    """Cumulative values of one rank on the grid: (what, clock, name) -> a value a point, NaN where there was none."""

    sums: dict[tuple[str, str, str], FloatArray] = field(default_factory=dict)
    counts: dict[tuple[str, str, str], FloatArray] = field(default_factory=dict)


def fetch_window(store: Store, job: StoredJob, chosen: Chosen) -> Window:
    """The window of the chosen ranks, their hosts' readings and events. Raises StoreError.

    Hosts whose clocks are ahead are asked for their own time of it, and all of it is on one clock then.
    """
    those = "" if len(chosen.ranks) >= job.world_size else f'rankscope_rank=~"{"|".join(map(str, chosen.ranks))}"'
    apart = hosts_ahead(store, job)
    parts = [job.without([each.host for each in apart])] + [job.shifted(each.host, each.ahead_s) for each in apart]
    numbers = _numbers(store, parts[0], those, _grid(parts[0]))
    found = [_part(store, part, those, numbers, chosen) for part in parts]
    identities = {rank: of.identity for part in found for rank, of in part.ranks.items()}
    anchors = {
        identity.host: ClockAnchor(0, round(part.job.begin_s * _SECOND_NS))
        for part in found
        for identity in sorted((of.identity for of in part.ranks.values()), key=lambda each: each.host)
    }
    series = {key: each for part in found for key, each in part.series.items()}
    ranks = {rank: of for part in found for rank, of in part.ranks.items()}
    ends = [int(each.steps.columns["end_ns"][-1]) for each in ranks.values() if len(each.steps)]
    ends += [int(each.times_ns[-1]) for each in series.values() if len(each.times_ns)]
    clocks = [
        HostClock(
            each.host, round(each.ahead_s * _SECOND_NS), round(each.error_s * _SECOND_NS), None, "steps", each.steps
        )
        for each in apart
    ]
    events = sorted((event for part in found for event in part.events), key=lambda event: event.time_ns)
    return Window(
        job=job.name,
        ranks=dict(sorted(ranks.items())),
        series=series,
        events=[event for event in events if event.host in anchors],
        anchors=anchors,
        begin_ns=0,
        end_ns=max(ends, default=0),
        world_size=job.world_size,
        not_seen=[*clock_lines(clocks), *_not_seen(job, chosen, identities, agents_findings(store, job))],
        gpus={
            host: [each.gpu_uuid for each in identities.values() if each.host == host and each.gpu_uuid]
            for host in anchors
        },
        clocks=clocks,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """What the hosts of one clock told."""

    job: StoredJob
    ranks: Mapping[int, RankWindow]
    series: Mapping[SeriesKey, Series]
    events: Sequence[Event]


def _grid(job: StoredJob) -> FloatArray:
    return np.arange(job.begin_s, job.end_s + job.step_s / 2, job.step_s)


def _part(store: Store, job: StoredJob, those: str, numbers: FloatArray, chosen: Chosen) -> _Part:
    """Ranks, readings and events of the hosts of one clock, `numbers` being the steps at the points of the grid."""
    grid = _grid(job)[: len(numbers)]
    numbers = numbers[: len(grid)]
    identities = _identities(store, job, those)
    told = _told(store, job, those, grid, identities)
    groups = _groups(store, job, those, identities)
    ranks = {}
    for rank, identity in identities.items():
        of = told.get(rank, _Told())
        host, device = (Means(of.sums, of.counts, clock) for clock in ("host", "device"))
        at_ns = (grid - job.begin_s) * _SECOND_NS
        ranks[rank] = RankWindow(
            identity=identity if device.known else _on_host(identity),
            steps=step_columns(host, numbers, at_ns),
            device=device_columns(device, host, numbers),
            groups=group_columns(host, device, numbers, groups.get(rank, {})),
            members={name: each.members for name, each in groups.get(rank, {}).items() if each.members},
        )
    series = fetch_readings(store, job, _hosts_to_read(identities, chosen))
    return _Part(job, ranks, series, fetch_events(store, job))


def _not_seen(
    job: StoredJob, chosen: Chosen, identities: Mapping[int, RankIdentity], told: Sequence[str]
) -> Sequence[str]:
    lines = [
        f"single steps: the store has means over {job.step_s:g} s, in which a stall of one step does not stand out",
        "how the job ended, single batches and collectives: they are in the recordings only",
    ]
    if told:
        lines.append(f"what agents rest their own findings on: {'; '.join(told)}: see their recordings")
    if len(identities) < job.world_size and len(chosen.ranks) >= job.world_size:
        lines.append(f"{job.world_size - len(identities)} of {job.world_size} ranks: the store has nothing of them")
    elif len(identities) < job.world_size:
        lines.append(
            f"ranks but {len(identities)} of {job.world_size}: those that aggregates over all ranks named, and a sample"
        )
    return lines


def _hosts_to_read(identities: Mapping[int, RankIdentity], chosen: Chosen) -> list[str]:
    """Hosts whose readings are fetched: those of suspects and a few of their peers; of a small job, all."""
    if not chosen.suspects:
        return sorted({identity.host for identity in identities.values()})
    of_suspects = [identities[rank].host for rank in sorted(chosen.suspects) if rank in identities]
    others = [identity.host for rank, identity in sorted(identities.items()) if rank not in chosen.suspects]
    return list(dict.fromkeys([*dict.fromkeys(of_suspects), *others[:: max(1, len(others) // 4)]]))


def _identities(store: Store, job: StoredJob, those: str) -> dict[int, RankIdentity]:
    """Who the ranks are, in their last attempt."""
    found: dict[int, RankIdentity] = {}
    info = f"last_over_time(rankscope_rank_info{job.select(those)}[{job.width}])"
    # What was told last is what still holds: asked for first, and completed by what ended earlier.
    recent = store.instant(f"rankscope_rank_info{job.select(those)}", job.end_s)
    for series in [*recent, *store.instant(info, job.end_s)]:
        identity = _identity(job, series.metric)
        if identity is None:
            continue
        known = found.get(identity.rank)
        if known is None or identity.attempt > known.attempt:
            found[identity.rank] = identity
    return dict(sorted(found.items()))


def _identity(job: StoredJob, labels: Mapping[str, str]) -> RankIdentity | None:
    def number(name: str) -> int:
        text = labels.get(name, "")
        return int(text) if text.isdecimal() else 0

    if not labels.get("rankscope_rank", "").isdecimal():
        return None
    host = labels.get("host_name", "")
    return RankIdentity(
        job=job.name,
        attempt=number("rankscope_attempt"),
        rank=number("rankscope_rank"),
        world_size=number("rankscope_world_size") or job.world_size,
        local_rank=number("rankscope_local_rank"),
        host=host,
        pid=number("process_pid"),
        start_ticks=0,
        boot_id=host,
        gpu_uuid=labels.get("hw_id") or None,
        device_clock="cuda",
    )


def _on_host(identity: RankIdentity) -> RankIdentity:
    return replace(identity, device_clock="host")


def _groups(
    store: Store, job: StoredJob, those: str, identities: Mapping[int, RankIdentity]
) -> dict[int, dict[str, StoredGroup]]:
    """The process groups of each rank, as its host told them last."""
    found: dict[int, dict[str, StoredGroup]] = {}
    told = f"last_over_time(rankscope_rank_group{job.select(those)}[{job.width}])"
    # What was told last is what still holds.
    for series in [
        *store.instant(told, job.end_s),
        *store.instant(f"rankscope_rank_group{job.select(those)}", job.end_s),
    ]:
        labels = series.metric
        identity = _of(labels, identities)
        if identity is not None and series.value is not None:
            kind = _KINDS.get(labels.get("rankscope_group_kind", ""), GroupKind.UNKNOWN)
            group = StoredGroup(round(float(series.value[1])), kind, labels.get("rankscope_group_members", ""))
            found.setdefault(identity.rank, {})[labels.get("rankscope_group", "")] = group
    return found


def _of(labels: Mapping[str, str], identities: Mapping[int, RankIdentity]) -> RankIdentity | None:
    """The rank that a series is of; None where it is another host's, of another attempt."""
    rank = labels.get("rankscope_rank", "")
    identity = identities.get(int(rank)) if rank.isdecimal() else None
    return None if identity is None or labels.get("host_name", "") != identity.host else identity


def _told(
    store: Store, job: StoredJob, those: str, grid: FloatArray, identities: Mapping[int, RankIdentity]
) -> dict[int, _Told]:
    """Sums of all histograms, and counts of steps and stalls, a rank."""
    told: dict[int, _Told] = {}
    asked = [(job.sum_of(STEPS, those), "step", True), (job.count_of(STEPS, those), "step", False)]
    asked += [(job.sum_of(name, those), what, True) for what, name in _NAMES.items()]
    asked.append((job.count_of(_NAMES["stall"], those), "stall", False))
    for what, name in _VALUES.items():
        matchers = f'__name__=~"{name}"' + (f", {those}" if those else "")
        asked.append((job.select(matchers), what, True))
    for expression, what, is_sum in asked:
        for series in store.over(expression, float(grid[0]), float(grid[-1]), job.step_s, job.back_s):
            labels = series.metric
            identity = _of(labels, identities)
            if identity is None:
                continue
            of = told.setdefault(identity.rank, _Told())
            name = next(
                (labels[f"rankscope_{each}"] for each in ("phase", "stall", "group") if f"rankscope_{each}" in labels),
                "",
            )
            clock = "" if what in ("lead", *_VALUES) else labels.get("rankscope_clock", "host")
            key = (what, clock, name)
            (of.sums if is_sum else of.counts)[key] = on_grid(series, grid, job.step_s)
    return told


def on_grid(series: Sampled, grid: FloatArray, step_s: float) -> FloatArray:
    """The values of a series at the points of a grid; NaN where there is none."""
    values = np.full(len(grid), np.nan)
    for time_s, text in series.values:
        place = round((time_s - float(grid[0])) / step_s)
        if 0 <= place < len(values):
            values[place] = float(text)
    return values


def _numbers(store: Store, job: StoredJob, those: str, grid: FloatArray) -> FloatArray:
    """The job's step at each point: NaN where it did not move on, and before the last restart from a checkpoint."""
    found = store.over(
        f"max(rankscope_rank_step{job.select(those)})", float(grid[0]), float(grid[-1]), job.step_s, job.back_s
    )
    numbers = on_grid(found[0], grid, job.step_s) if found else np.full(len(grid), np.nan)
    falls = np.flatnonzero(np.diff(numbers) < 0)
    if len(falls):
        numbers[: falls[-1] + 1] = np.nan
    highest = -1.0
    for place, number in enumerate(numbers):
        if number > highest:
            highest = number
        else:
            numbers[place] = np.nan
    return numbers
