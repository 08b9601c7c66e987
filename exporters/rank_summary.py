"""One line a rank: what it did in the time that matters, for tables on every surface."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub
from statistics import median

from rankscope.exporters.wording import leading, short_uuid, visible
from rankscope.finding import Finding, Verdict
from rankscope.reading import Severity
from rankscope.window import Columns, RankWindow, Window

#: Steps that a median is taken of.
MEDIAN_OF = 2_000
#: Events that say why a rank did not go on.
_TELLING = frozenset({"rank-hung", "rank-exception", "rank-exited"})


@dataclass(frozen=True, slots=True)
class RankSummary:
    """Medians per step of one rank, in milliseconds; None where it was not seen."""

    rank: int
    host: str
    gpu: str
    steps: int
    last_step: int | None
    step_ms: float | None
    own_ms: float | None
    wait_ms: float | None
    data_ms: float | None
    #: Whether own compute and waits are the device's times (else the host's).
    on_device: bool
    #: Class slugs of the findings that name this rank or its GPU.
    accused: tuple[str, ...]
    #: What became of it, where it did not go on to the end.
    state: str


def accused_ranks(finding: Finding, window: Window) -> list[int]:
    """The ranks a finding names, by rank or by the GPU they are bound to; none where it is only something to watch."""
    where = finding.where
    if finding.severity is Severity.INFO:
        return []
    if where.rank is not None:
        return [where.rank] if where.rank in window.ranks else []
    if where.gpu_uuid is None:
        return []
    return [rank for rank, seen in sorted(window.ranks.items()) if seen.identity.gpu_uuid == where.gpu_uuid]


def summarise_ranks(verdict: Verdict, window: Window) -> list[RankSummary]:
    """Every rank, in order; medians over the time of the first finding, or over all of it where there is none."""
    since, until = _time_that_matters(verdict, window)
    accused: dict[int, list[str]] = {}
    for finding in verdict.findings:
        for rank in accused_ranks(finding, window):
            accused.setdefault(rank, []).append(finding.class_slug)
    states = _states(window)
    return [
        _summary(rank, seen, window, since, until, tuple(accused.get(rank, ())), states.get(rank, ""))
        for rank, seen in sorted(window.ranks.items())
    ]


def table_rows(ranks: Sequence[RankSummary], limit: int) -> list[RankSummary]:
    """All ranks of a small job; of a large one those accused or stopped, then the first others as their peers."""
    if len(ranks) <= limit:
        return list(ranks)
    # Thousands of ranks may say that a peer is gone: those that are accused come before them.
    kept = sorted((rank for rank in ranks if rank.accused or rank.state), key=lambda rank: not rank.accused)[:limit]
    rest = [rank for rank in ranks if not rank.accused and not rank.state]
    return sorted([*kept, *rest[: limit - len(kept)]], key=lambda rank: rank.rank)


def gpu_label(seen: RankWindow, window: Window) -> str:
    """A rank's GPU as its index on the host and a short UUID; "-" where it is not known."""
    uuid = seen.identity.gpu_uuid
    if uuid is None:
        return "-"
    known = list(window.gpus.get(seen.identity.host, ()))
    return f"{known.index(uuid)} {short_uuid(uuid)}" if uuid in known else short_uuid(uuid)


def _time_that_matters(verdict: Verdict, window: Window) -> tuple[float, float]:
    """Bounds of the leading finding where every rank has steps in it, else of all there is."""
    first = leading(verdict)
    if first is None:
        return -math.inf, math.inf
    until = math.inf if first.until_ns is None else first.until_ns
    seen_in = [slice_of(seen.steps, first.since_ns, until) for seen in window.ranks.values()]
    # With a clock for each host, the same bounds would cut out another time on each.
    if len(set(window.anchors.values())) > 1 or any(begin == end for begin, end in seen_in):
        return -math.inf, math.inf
    return first.since_ns, until


def slice_of(steps: Columns, since_ns: float, until_ns: float) -> tuple[int, int]:
    """Indices of the steps that began within the bounds."""
    starts = steps.columns.get("start_ns", array("d"))
    return bisect_left(starts, since_ns), bisect_right(starts, until_ns)


def _summary(
    rank: int, seen: RankWindow, window: Window, since: float, until: float, accused: tuple[str, ...], state: str
) -> RankSummary:
    steps = seen.steps
    rows = _evenly(*slice_of(steps, since, until))
    on_device = len(seen.device) > 0
    lengths = list(map(sub, _sums(steps, rows, "end_ns"), _sums(steps, rows, "start_ns")))
    if on_device and lengths:
        source, numbers = seen.device, steps.columns["step"]
        first, last = numbers[rows.start], numbers[rows[-1]]
        device_steps = source.columns["step"]
        rows = _evenly(bisect_left(device_steps, first), bisect_right(device_steps, last))
        wait = _sums(source, rows, "backward_wait_ns")
    else:
        source = steps
        wait = list(map(sub, _sums(steps, rows, "backward_ns"), _sums(steps, rows, "backward_own_ns")))
    return RankSummary(
        rank=rank,
        host=visible(seen.identity.host),
        gpu=gpu_label(seen, window),
        steps=len(steps),
        last_step=int(steps.columns["step"][-1]) if len(steps) else None,
        step_ms=_median_ms(lengths),
        own_ms=_median_ms(_sums(source, rows, "forward_ns", "backward_own_ns")),
        wait_ms=_median_ms(wait),
        # The host may wait for data while the device still computes: then nobody waited.
        data_ms=_median_ms(_sums(source, rows, "data_wait_ns")),
        on_device=on_device,
        accused=accused,
        state=state,
    )


def _evenly(begin: int, end: int) -> range:
    """At most twice MEDIAN_OF rows, evenly taken: more would not move a median."""
    return range(begin, end, max(1, (end - begin) // MEDIAN_OF))


def _sums(columns: Columns, rows: range, *names: str) -> list[float]:
    """Row by row, the sum of some columns."""
    missing = array("d", [math.nan]) * len(columns)
    parts = [columns.columns.get(name, missing)[rows.start : rows.stop : rows.step] for name in names]
    return list(parts[0]) if len(parts) == 1 else [sum(row) for row in zip(*parts, strict=True)]


def _median_ms(values: list[float]) -> float | None:
    seen = [value for value in values if not math.isnan(value)]
    return median(seen) / 1e6 if seen else None


def _states(window: Window) -> dict[int, str]:
    """What the first telling event of a rank says became of it: what follows is mostly the launcher ending the job."""
    states: dict[int, str] = {}
    for event in window.events:
        in_order = event.kind == "rank-exited" and event.attributes.get("clean") == 1
        shown = window.ranks.get(event.rank) if event.rank is not None else None
        pid = event.attributes.get("pid")
        if shown is not None and pid is not None and pid != shown.identity.pid:
            # Of a process of an earlier attempt.
            continue
        if event.rank is not None and event.kind in _TELLING and not in_order:
            states.setdefault(event.rank, visible(event.text))
    return states
