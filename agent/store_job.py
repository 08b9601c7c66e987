"""A job in a metric store: whether it is there, when it ran, how often it was told of, how histograms are spelled."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rankscope.agent.store import Store
from rankscope.errors import StoreError

#: How much of a job's life is judged unless told otherwise.
LOOK_BACK_SECONDS = 3600.0
#: How far back an ended job is looked for.
_LIFE_SECONDS = 30 * 86400.0
#: What is told this long after a job's last step still belongs to it.
AFTERMATH_SECONDS = 300.0
#: Points of a range that every store gives: Prometheus refuses more than 11 000.
MOST_POINTS = 2000
STEPS = "rankscope_step_duration_seconds"


def quoted(text: str) -> str:
    """A string as PromQL writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What is known of a job before anything is fetched for a rank."""

    name: str
    #: Whether histograms are native ones (Prometheus) and not a sum and a count of their own (VictoriaMetrics).
    native: bool
    #: Whether the ranks' steps were told on a device's clock.
    on_device: bool
    world_size: int
    #: Ranks of which the store holds something in the window.
    ranks: int
    #: The window and its grid, in seconds since the epoch; `step_s` is the interval between two exports.
    begin_s: float
    end_s: float
    step_s: float
    #: Until when events and readings still belong to it: what ended the last step is told after it.
    until_s: float
    #: Matcher of the hosts that all queries are about; all hosts where empty.
    hosts: str = ""

    @property
    def back_s(self) -> float:
        """How old a sample may be to stand for a point of the grid."""
        return 1.5 * self.step_s

    @property
    def width(self) -> str:
        """The whole window as a range."""
        return f"{max(1, round(self.end_s - self.begin_s))}s"

    def select(self, more: str = "") -> str:
        """The matchers of the job, and more."""
        return "{" + ", ".join(filter(None, (f"rankscope_job={quoted(self.name)}", self.hosts, more))) + "}"

    def shifted(self, host: str, ahead_s: float) -> StoredJob:
        """The same as a host tells it whose clock is ahead."""
        begin_s, end_s, until_s = (each + ahead_s for each in (self.begin_s, self.end_s, self.until_s))
        hosts = f"host_name={quoted(host)}"
        return replace(self, begin_s=begin_s, end_s=end_s, until_s=until_s, hosts=hosts)

    def without(self, hosts: Sequence[str]) -> StoredJob:
        """The same as all others tell it."""
        return replace(self, hosts=", ".join(f"host_name!={quoted(host)}" for host in hosts))

    def sum_of(self, histogram: str, more: str = "") -> str:
        """Expression of a histogram's sum so far."""
        name = f"{histogram}{self.select(more)}"
        return f"histogram_sum({name})" if self.native else f"{histogram}_sum{self.select(more)}"

    def count_of(self, histogram: str, more: str = "") -> str:
        """Expression of a histogram's count so far."""
        name = f"{histogram}{self.select(more)}"
        return f"histogram_count({name})" if self.native else f"{histogram}_count{self.select(more)}"

    def grown(self, histogram: str, more: str, seconds: float) -> str:
        """Expression of how far a histogram's sum moved in the last seconds."""
        if self.native:
            return f"histogram_sum(increase({histogram}{self.select(more)}[{round(seconds)}s]))"
        return f"increase({histogram}_sum{self.select(more)}[{round(seconds)}s])"


def find_job(store: Store, name: str, *, since_s: float | None, until_s: float | None, now_s: float) -> StoredJob:
    """The job, over the time asked for: its last hour unless told. Raises StoreError where there is none."""
    steps = f"rankscope_rank_step{{rankscope_job={quoted(name)}}}"
    end_s = now_s if until_s is None else until_s
    begin_s = end_s - LOOK_BACK_SECONDS if since_s is None else since_s
    witness = _witness(store, steps, begin_s, end_s)
    if witness is None and until_s is None:
        last_s = _last_seen(store, steps, now_s)
        if last_s is not None and since_s is None:
            end_s, begin_s = last_s + AFTERMATH_SECONDS, last_s - LOOK_BACK_SECONDS
            witness = _witness(store, steps, begin_s, end_s)
    if witness is None:
        raise _no_such(store, name, begin_s, end_s)
    # One rank's own samples: raw, so that their times are those of the exports.
    told = store.instant(
        f"rankscope_rank_step{{rankscope_job={quoted(name)}, {witness}}}[{_span(begin_s, end_s)}]", end_s
    )
    times = sorted({time_s for series in told for time_s, _ in series.values})
    if len(times) < 3:
        raise StoreError(
            f"the store holds {len(times)} exports of {name} in this window, too few to judge",
            where=store.address,
            todo="wait, or give an earlier --since",
        )
    gaps = [after - before for before, after in pairwise(times)]
    step_s = max(_pace_s(statistics.median(gaps)), (times[-1] - times[0]) / MOST_POINTS)
    native, on_device = _spelling(store, name, begin_s, end_s)
    ranks, world = _size(store, name, begin_s, end_s)
    return StoredJob(
        name=name,
        native=native,
        on_device=on_device,
        world_size=max(world, ranks),
        ranks=ranks,
        begin_s=times[0],
        end_s=min(end_s, times[-1] + step_s),
        until_s=min(end_s, times[-1] + max(AFTERMATH_SECONDS, 2 * step_s)),
        step_s=step_s,
    )


def _pace_s(gap_s: float) -> float:
    """The interval between two exports, rounded: to whole seconds, or tenths below one."""
    return float(round(gap_s)) if gap_s >= 1 else max(0.2, round(gap_s, 1))


def _span(begin_s: float, end_s: float) -> str:
    return f"{max(1, round(end_s - begin_s))}s"


def _witness(store: Store, steps: str, begin_s: float, end_s: float) -> str | None:
    """Matcher of one rank that was told of in the window."""
    found = store.instant(f"topk(1, last_over_time({steps}[{_span(begin_s, end_s)}]))", end_s)
    if not found:
        return None
    return f"rankscope_rank={quoted(found[0].metric.get('rankscope_rank', ''))}"


def _last_seen(store: Store, steps: str, now_s: float) -> float | None:
    """About when an ended job was last told of."""
    pace_s = _LIFE_SECONDS / 720
    found = store.over(
        f"count(last_over_time({steps}[{round(pace_s)}s]))", now_s - _LIFE_SECONDS, now_s, pace_s, pace_s
    )
    return max((time_s for series in found for time_s, _ in series.values), default=None)


def _spelling(store: Store, name: str, begin_s: float, end_s: float) -> tuple[bool, bool]:
    """Whether histograms are native, and whether there are device times."""
    clocks: dict[str, set[str]] = {}
    for spelled in (STEPS, f"{STEPS}_count"):
        steps = f"last_over_time({spelled}{{rankscope_job={quoted(name)}}}[{_span(begin_s, end_s)}])"
        found = store.instant(f"count by (rankscope_clock) ({steps})", end_s)
        clocks[spelled] = {series.metric.get("rankscope_clock", "") for series in found}
    native = bool(clocks[STEPS]) and not clocks[f"{STEPS}_count"]
    return native, "device" in set().union(*clocks.values())


def _size(store: Store, name: str, begin_s: float, end_s: float) -> tuple[int, int]:
    """Ranks seen, and the job's world size."""
    info = f"last_over_time(rankscope_rank_info{{rankscope_job={quoted(name)}}}[{_span(begin_s, end_s)}])"
    counted = store.instant(f"count(count by (rankscope_rank) ({info}))", end_s)
    worlds = store.instant(f"group by (rankscope_world_size) ({info})", end_s)
    ranks = int(float(counted[0].value[1])) if counted and counted[0].value else 0
    sizes = [series.metric.get("rankscope_world_size", "") for series in worlds]
    return ranks, max((int(size) for size in sizes if size.isdecimal()), default=ranks)


def _no_such(store: Store, name: str, begin_s: float, end_s: float) -> StoreError:
    known = store.label_values("rankscope_job", end_s - _LIFE_SECONDS, end_s + _LIFE_SECONDS)
    if name in known:
        return StoreError(
            f"nothing of job {name} in this window of {round((end_s - begin_s) / 60)} minutes",
            where=store.address,
            todo="give --since and --until",
        )
    if not known:
        return StoreError(
            f"holds no series with the label rankscope_job within {round(_LIFE_SECONDS / 86400)} days",
            where=store.address,
            todo="have agents export to it (docs/otlp.md: it must promote rankscope.job, host.name), or give --until",
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)[:3]
    return StoreError(f"no job {name}", where=store.address, todo=f"there are {len(known)}, such as {', '.join(near)}")
