"""The data behind the page's timeline: lanes of steps and GPU counters, small enough to draw and to send.

However many steps and ranks there are, at most LANES lanes, STEP_BUCKETS bars and SERIES_POINTS points go on a page:
about 2.5 MB. Bars are means over consecutive steps beside the shortest and the longest one; points likewise.
"""

from __future__ import annotations

from array import array
from statistics import median, quantiles
from typing import Any

from rankscope.exporters.lane import SERIES, phase_columns, reason_runs, series_points, step_bars, within
from rankscope.exporters.rank_summary import RankSummary, accused_ranks
from rankscope.exporters.time_axis import TimeAxis
from rankscope.exporters.wording import CLOCK_EVENT_REASONS, class_title, event_text, visible
from rankscope.finding import Finding, Verdict
from rankscope.reading import Severity
from rankscope.window import RankWindow, Series, SeriesKey, Window

LANES = 64
STEP_BUCKETS = 20_000
SERIES_POINTS = 36_000
#: Most bars in one lane: several for every pixel of a wide screen.
LANE_BUCKETS = 4_000
LANE_POINTS = 1_500
#: Events with a mark on the timeline.
EVENTS = 500
#: Findings with a band on the timeline.
FAULTS = 20


def timeline(verdict: Verdict, window: Window, summaries: list[RankSummary]) -> dict[str, Any]:
    """What the page's script draws; times are microseconds since the begin of the window."""
    axis = TimeAxis(window)
    chosen = choose_lanes(summaries)
    most = min(LANE_BUCKETS, STEP_BUCKETS // max(1, len(chosen)))
    points = min(LANE_POINTS, SERIES_POINTS // (len(SERIES) * max(1, len(chosen))))
    begin, end = _stretch(verdict, [window.ranks[summary.rank] for summary in chosen], axis)
    lanes = [_lane(summary, window, axis, (begin, end), most, points) for summary in chosen]
    faults = [_fault(verdict, finding, window, axis) for finding in _counted(verdict)]
    return {
        "begin_wall_ms": axis.begin_wall_ns // 1_000_000,
        "span_us": max(1, axis.span_ns // 1_000),
        # What is drawn of it.
        "from_us": begin,
        "to_us": end,
        "lanes": lanes,
        "top_us": _top(window, chosen),
        "scales": {name: _scale(lanes, name) for name in SERIES},
        "reasons": [[bit, name, fault] for bit, (name, fault) in CLOCK_EVENT_REASONS.items()],
        "faults": [fault | {"t1": min(fault["t1"], end)} for fault in faults],
        "events": _events(window, axis),
        "reduced": max((lane["per_bar"] for lane in lanes), default=1),
        "left_out": len(summaries) - len(chosen),
    }


def choose_lanes(summaries: list[RankSummary], limit: int = LANES) -> list[RankSummary]:
    """All ranks, or of too many: the accused, those that stopped, those with the most own compute; in rank order."""
    if len(summaries) <= limit:
        return summaries
    urgent = sorted(summaries, key=lambda rank: (not rank.accused, not rank.state, -(rank.own_ms or 0.0), rank.rank))
    return sorted(urgent[:limit], key=lambda rank: rank.rank)


def _lane(
    summary: RankSummary, window: Window, axis: TimeAxis, stretch: tuple[int, int], most: int, points: int
) -> dict[str, Any]:
    seen = window.ranks[summary.rank]
    host, uuid = seen.identity.host, seen.identity.gpu_uuid
    per_bar = max(1, -(-len(seen.steps) // most))

    def to_us(time_ns: float) -> int:
        return axis.at(host, time_ns) // 1_000

    lane: dict[str, Any] = {
        "rank": summary.rank,
        "host": summary.host,
        "gpu": summary.gpu,
        "accused": [visible(slug) for slug in summary.accused],
        "state": summary.state,
        "per_bar": per_bar,
        "steps": step_bars(seen.steps, phase_columns(seen), per_bar, to_us),
    }
    if uuid is None:
        return lane
    for name, metrics in SERIES.items():
        found = _first_series(window, host, uuid, metrics)
        if found is not None:
            lane[name] = series_points(within(found, *stretch, to_us), points, to_us)
    masks = _first_series(window, host, uuid, ("gpu.clock_event_reasons",))
    if masks is not None:
        lane["reasons"] = reason_runs(within(masks, *stretch, to_us), points, to_us)
    return lane


def _first_series(window: Window, host: str, uuid: str, metrics: tuple[str, ...]) -> Series | None:
    for metric in metrics:
        found = window.series.get(SeriesKey(host, metric, uuid))
        if found is not None and len(found.values):
            return found
    return None


def _top(window: Window, chosen: list[RankSummary]) -> int:
    """The step length that fills a lane's height: nearly all steps fit, a rare long one does not flatten them."""
    lengths: list[float] = []
    for summary in chosen:
        columns = window.ranks[summary.rank].steps.columns
        starts, ends = columns.get("start_ns", array("d")), columns.get("end_ns", array("d"))
        stride = max(1, len(starts) // 500)
        lengths += [end - start for start, end in zip(starts[::stride], ends[::stride], strict=True)]
    if not lengths:
        return 1
    high = quantiles(lengths, n=50)[-1] if len(lengths) > 1 else lengths[0]
    return max(1, int(min(high, 3 * median(lengths)) * 1.08 / 1_000))


def _scale(lanes: list[dict[str, Any]], name: str) -> list[float]:
    """One scale for a counter over all lanes, so that heights compare; wide enough for noise to look like noise."""
    seen = [lane[name] for lane in lanes if name in lane and lane[name]["v"]]
    low = [min(points.get("lo", points["v"])) for points in seen]
    high = [max(points.get("hi", points["v"])) for points in seen]
    return [min(*low, max(high) * 0.6), max(high)] if low else [0, 1]


def _counted(verdict: Verdict) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.severity is not Severity.INFO][:FAULTS]


def _stretch(verdict: Verdict, ranks: list[RankWindow], axis: TimeAxis) -> tuple[int, int]:
    """What to draw, in us: the steps, without the start of the job before them and the silence after them.

    The first step is part of the start where it took far longer than the rest. After a crash or in a hang the
    silence is the finding, so it is drawn.
    """
    span = max(1, axis.span_ns // 1_000)
    begins, ends = [], []
    for seen in ranks:
        starts, stops = (seen.steps.columns.get(name, array("d")) for name in ("start_ns", "end_ns"))
        if len(starts):
            lengths = [stop - start for start, stop in zip(starts[:100], stops, strict=False)]
            slow_first = len(lengths) > 10 and lengths[0] > 10 * median(lengths)
            begins.append(axis.at(seen.identity.host, starts[int(slow_first)]) // 1_000)
            ends.append(axis.at(seen.identity.host, stops[-1]) // 1_000)
    if not begins:
        return 0, span
    stopped = any(finding.impact.ms_per_step is None for finding in _counted(verdict))
    begin, end = min(begins), span if stopped else max(ends)
    margin = (end - begin) // 50
    return max(0, begin - margin), max(begin + 1, min(span, end + margin))


def _fault(verdict: Verdict, finding: Finding, window: Window, axis: TimeAxis) -> dict[str, Any]:
    host = finding.where.host
    end = axis.span_ns if finding.until_ns is None else axis.at(host, finding.until_ns)
    return {
        "t0": max(0, axis.at(host, finding.since_ns) // 1_000),
        "t1": min(axis.span_ns, end) // 1_000,
        "title": class_title(finding),
        # Below the threshold nobody is accused, not by a colour either.
        "side": "unknown" if verdict.verdict == "unknown" else str(finding.side),
        "step": finding.detected_step,
        # No rank: the finding is about the host or the whole job.
        "ranks": accused_ranks(finding, window),
    }


def _events(window: Window, axis: TimeAxis) -> list[dict[str, Any]]:
    """The gravest events first where there are too many, then in order of time."""
    order = {"critical": 0, "warning": 1, "info": 2}
    kept = sorted(window.events, key=lambda event: order[event.severity])[:EVENTS]
    owners = {seen.identity.gpu_uuid: rank for rank, seen in window.ranks.items() if seen.identity.gpu_uuid}
    return [
        {
            "t": max(0, axis.at(event.host, event.time_ns) // 1_000),
            "kind": visible(event.kind),
            "text": visible(event_text(event))[:300],
            "rank": event.rank if event.rank is not None else owners.get(event.device),
            "severity": str(event.severity),
        }
        for event in sorted(kept, key=lambda event: axis.at(event.host, event.time_ns))
    ]
