"""Windows as somebody with less would have seen them: without a source, with fewer privileges, or earlier."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rankscope.reading import Event
from rankscope.window import Columns, RankWindow, Series, SeriesKey, Window

_GPU = ("gpu.", "gpu_process.", "nvlink.")
#: Of a host as a whole: not seen from inside a container that shares nothing but its GPUs.
_HOST_WIDE = ("host.", "disk.", "net.", "ib.", "nfs.", "lustre.", "fs.", "numa.", "edac.", "pcie.")
_HOST = (*_HOST_WIDE, "process.", "cgroup.")


@dataclass(frozen=True, slots=True)
class View:
    """What is left out."""

    what: str
    series: Callable[[SeriesKey], bool] = lambda _key: False
    events: Callable[[Event], bool] = lambda _event: False
    device_clock: bool = True

    def of(self, window: Window) -> Window:
        """The window without it."""
        ranks = window.ranks
        if not self.device_clock:
            ranks = {rank: replace(of, device=Columns({}), groups={}) for rank, of in ranks.items()}
        kept = {key: series for key, series in window.series.items() if not self.series(key)}
        return replace(
            window,
            ranks=ranks,
            series=kept,
            events=[event for event in window.events if not self.events(event)],
            not_seen=(*window.not_seen, f"{self.what}: left out"),
        )


def _from_kernel_log(event: Event) -> bool:
    return event.attributes.get("source") == "kernel-log" or event.kind in ("oom-kill", "hung-task", "storage-server")


def _from_nvml(event: Event) -> bool:
    return event.attributes.get("source") == "nvml" or event.kind in ("gpu-described", "probe-stalled")


#: One source after the other taken away.
SOURCES: Mapping[str, View] = {
    "no NVML": View("NVML", lambda key: key.metric.startswith(_GPU), _from_nvml),
    "no kernel log": View("kernel log", events=_from_kernel_log),
    "no device clock": View("device clock", device_clock=False),
    "no host probes": View("host probes", lambda key: key.metric.startswith(_HOST)),
}
#: What each way of running sees.
PROFILES: Mapping[str, View] = {
    "node agent": View("nothing"),
    "job agent": View("kernel log", events=_from_kernel_log),
    "job agent in a container": View(
        "kernel log, host-wide counters", lambda key: key.metric.startswith(_HOST_WIDE), _from_kernel_log
    ),
    "job agent without NVML": View(
        "kernel log, NVML",
        lambda key: key.metric.startswith(_GPU),
        lambda event: _from_kernel_log(event) or _from_nvml(event),
    ),
}


def until(window: Window, step: int) -> Window:
    """The window as it was when a step had ended on every rank: nothing later is in it."""
    ends = [_end_of(of, step) for of in window.ranks.values()]
    now = max((end for end in ends if end is not None), default=window.end_ns)
    return replace(
        window,
        ranks={rank: _cut(of, step) for rank, of in window.ranks.items()},
        series={key: _before(series, now) for key, series in window.series.items()},
        events=[event for event in window.events if event.time_ns <= now],
        end_ns=now,
        job_status=None,
    )


def _end_of(of: RankWindow, step: int) -> int | None:
    place = bisect.bisect_right(of.steps.columns["step"], step)
    return int(of.steps.columns["end_ns"][place - 1]) if place else None


def _cut(of: RankWindow, step: int) -> RankWindow:
    # The device's clock is read a step or two later.
    groups = {name: _first(columns, step - 2) for name, columns in of.groups.items()}
    return replace(of, steps=_first(of.steps, step), device=_first(of.device, step - 2), groups=groups)


def _first(columns: Columns, step: int) -> Columns:
    if not columns.columns:
        return columns
    count = bisect.bisect_right(columns.columns["step"], step)
    return Columns({name: values[:count] for name, values in columns.columns.items()})


def _before(series: Series, now: int) -> Series:
    count = bisect.bisect_right(series.times_ns, now)
    return Series(series.times_ns[:count], series.values[:count])


def seconds_between(window: Window, first: int, last: int) -> float | None:
    """Seconds from the begin of one step to the end of another, on the clock of the lowest rank."""
    steps = window.ranks[min(window.ranks)].steps.columns
    begin = bisect.bisect_left(steps["step"], first)
    end = bisect.bisect_right(steps["step"], last)
    if begin >= len(steps["step"]) or not end:
        return None
    return (steps["end_ns"][end - 1] - steps["start_ns"][begin]) / 1e9
