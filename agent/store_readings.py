"""Readings of hosts and events of a job, from a metric store."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence

import numpy as np

from rankscope.agent.store import Sampled, Store
from rankscope.agent.store_job import StoredJob
from rankscope.exporters.prometheus_names import device_of, metric_of
from rankscope.reading import Event, Severity
from rankscope.window import Series, SeriesKey

_SECOND_NS = 1_000_000_000
#: Series of ours that are no readings; finding and event series are read on their own.
_OTHERS = "rankscope_(step|phase|collective|rank|finding|events|agent_probe)_.*"
#: So many of the agents' own findings are told.
_MOST_FINDINGS = 5
#: What these events would have said of themselves.
_CRITICAL = frozenset({"gpu-lost", "gpu-fallen-off"})


def fetch_readings(store: Store, job: StoredJob, hosts: Sequence[str]) -> dict[SeriesKey, Series]:
    """Every reading of ours of these hosts, a point per export interval. A host at a time: an answer stays small."""
    found: dict[SeriesKey, Series] = {}
    for host in hosts:
        matchers = f'host_name=~"{re.escape(host)}", __name__!~"{_OTHERS}"'.replace("\\", "\\\\")
        for series in store.over(job.select(matchers), job.begin_s, job.until_s, job.step_s, job.back_s):
            metric = metric_of(series.metric.get("__name__", ""))
            device = None if metric is None else device_of(metric, series.metric)
            if metric is None or device is None:
                continue
            found[SeriesKey(host, metric.name, device)] = Series(
                array("q", (round((time_s - job.begin_s) * _SECOND_NS) for time_s, _ in series.values)),
                array("d", (float(text) for _, text in series.values)),
            )
    return found


def fetch_events(store: Store, job: StoredJob) -> list[Event]:
    """Events as their counters grew; of one that counted before the window it is known only that it did."""
    name = '__name__=~"rankscope_events(_total)?"'
    found = store.over(job.select(name), job.begin_s, job.until_s, job.step_s, job.back_s)
    events = [event for series in found for event in _events(job, series)]
    return sorted(events, key=lambda event: event.time_ns)


def agents_findings(store: Store, job: StoredJob) -> list[str]:
    """What the agents beside the job found, a line each: class, rank, host and how sure they were at most."""
    held = f"max_over_time(rankscope_finding_confidence_ratio{job.select()}[{job.width}])"
    by = "rankscope_class, rankscope_rank, host_name"
    lines = []
    for series in store.instant(f"topk({_MOST_FINDINGS}, max by ({by}) ({held}))", job.until_s):
        labels = series.metric
        rank = f" on rank {labels['rankscope_rank']}" if labels.get("rankscope_rank") else ""
        sure = f" ({float(series.value[1]):.0%})" if series.value else ""
        lines.append(f"{labels.get('rankscope_class', 'a finding')}{rank} of {labels.get('host_name', 'a host')}{sure}")
    return lines


def _events(job: StoredJob, series: Sampled) -> list[Event]:
    kind = series.metric.get("rankscope_event_kind", "")
    if not kind:
        return []
    events: list[Event] = []
    # A series that begins within the window counts from nothing.
    within = bool(series.values) and series.values[0][0] > job.begin_s + job.step_s / 2
    before = 0.0 if within else float(series.values[0][1]) if series.values else 0.0
    for time_s, text in series.values:
        now = float(text)
        if now != before and np.isfinite(now):
            more = now - before if now > before else now
            if more > 0:
                events.append(_event(job, series, kind, time_s, int(more)))
            before = now
    return events


def _event(job: StoredJob, series: Sampled, kind: str, time_s: float, more: int) -> Event:
    number = series.metric.get("rankscope_xid", "")
    attributes: dict[str, str | int | float | None] = {"source": "store"}
    text = kind
    if number.isdecimal():
        attributes["number"] = int(number)
        text = f"{'SXid' if kind == 'sxid' else 'Xid'} {number}"
    rank = series.metric.get("rankscope_rank", "")
    if rank.isdecimal():
        # No more than that: of ranks that end within one interval nothing says which was the first.
        attributes["rank"] = int(rank)
    if more > 1:
        attributes["repeated"] = more - 1
        text += f", {more} times"
    # It came within the interval that the counter grew in.
    at_s = max(job.begin_s, time_s - job.step_s)
    return Event(
        kind,
        round((at_s - job.begin_s) * _SECOND_NS),
        f"{text} (counted by the agent)",
        Severity.CRITICAL if kind in _CRITICAL else Severity.WARNING,
        device=series.metric.get("hw_id", ""),
        host=series.metric.get("host_name", ""),
        attributes=attributes,
    )
