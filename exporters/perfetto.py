"""The run as a Chrome trace, which the Perfetto user interface and chrome://tracing open.

A process a rank: a thread of host steps and their phases, one of device steps, one of the phases that the user named,
and counters of the rank's GPU. Findings and pressure on the host have processes of their own. Format: the "JSON Array
with metadata" form of the Trace Event Format; times are microseconds since the begin of the window.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any, TextIO

from rankscope.errors import ExportError
from rankscope.exporters.lane import PHASES, phase_columns
from rankscope.exporters.rank_summary import accused_ranks, gpu_label
from rankscope.exporters.time_axis import TimeAxis
from rankscope.exporters.wording import class_title, event_text, visible
from rankscope.finding import Finding
from rankscope.metrics import METRICS
from rankscope.window import Columns, RankWindow, Series, Window

#: Threads of a rank's process.
HOST_THREAD, DEVICE_THREAD, NAMED_THREAD = 1, 2, 3
#: Processes that are no rank; rank k is process k + 1, for 0 is the kernel's idle task to the readers.
FINDINGS_PROCESS = 1_000_000
FIRST_HOST_PROCESS = 2_000_000
#: Counters shown: metric and title. Nanosecond counters are shown as the share of time they grew in.
COUNTERS = {
    "gpu.sm_clock_mhz": "SM clock (MHz)",
    "gpu.power_watts": "power (W)",
    "gpu.temperature_celsius": "temperature (C)",
    "gpu.utilization_ratio": "utilization",
    "gpu.clock_event_reasons": "clock event reasons (mask)",
    "gpu.throttle_sw_thermal_ns": "software thermal slowdown (share)",
    "gpu.throttle_hw_thermal_ns": "hardware thermal slowdown (share)",
    "gpu.throttle_sw_power_ns": "software power cap (share)",
    "gpu.throttle_hw_power_brake_ns": "power brake (share)",
    "host.pressure_cpu_some_ns": "CPU pressure (share)",
    "host.pressure_memory_some_ns": "memory pressure (share)",
    "host.pressure_io_some_ns": "I/O pressure (share)",
}

TraceEvent = dict[str, Any]


def write_trace(window: Window, path: Path, findings: Sequence[Finding] = ()) -> None:
    """Write the trace, compressed where the name ends in `.gz`, one event at a time.

    Raises ExportError where the file cannot be written or no host's clock is known.
    """
    events = trace_events(window, findings)
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as packed:
                _write(packed, events)
        else:
            with path.open("w", encoding="utf-8") as plain:
                _write(plain, events)
    except OSError as error:
        raise ExportError(f"cannot write the trace ({error.strerror or error})", where=str(path)) from error


def _write(out: TextIO, events: Iterator[TraceEvent]) -> None:
    out.write('{"displayTimeUnit":"ms","traceEvents":[\n')
    lines = (json.dumps(event, separators=(",", ":"), allow_nan=False) for event in events)
    out.writelines(f"{comma}{line}" for comma, line in zip(chain([""], repeat(",\n")), lines, strict=False))
    out.write("\n]}\n")


def trace_events(window: Window, findings: Sequence[Finding] = ()) -> Iterator[TraceEvent]:
    """The events of the trace. Slices of one thread nest: none overlaps another's end."""
    axis = TimeAxis(window)
    for rank, seen in sorted(window.ranks.items()):
        yield from _rank_events(rank, seen, window, axis)
    yield from _counter_events(window, axis)
    yield from _instants(window, axis)
    yield from _finding_events(findings, window, axis)


def _rank_events(rank: int, seen: RankWindow, window: Window, axis: TimeAxis) -> Iterator[TraceEvent]:
    process = rank + 1
    host = visible(seen.identity.host)
    yield _name("process_name", process, f"rank {rank} ({host}, GPU {gpu_label(seen, window)})")
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": rank}}
    yield _name("thread_name", process, "host steps", HOST_THREAD)
    yield from _host_steps(process, seen, axis)
    if len(seen.device):
        yield _name("thread_name", process, "device steps", DEVICE_THREAD)
        yield from _device_steps(process, seen, axis)
    if seen.phases:
        yield _name("thread_name", process, "named phases", NAMED_THREAD)
        yield from _named_phases(process, seen, axis)


def _host_steps(process: int, seen: RankWindow, axis: TimeAxis) -> Iterator[TraceEvent]:
    host, columns = seen.identity.host, seen.steps.columns
    # Without its device records a rank's phases are the host's.
    phases = phase_columns(RankWindow(seen.identity, seen.steps, Columns({})))
    free = 0
    for row in range(len(seen.steps)):
        begin = max(free, axis.at(host, columns["start_ns"][row]))
        end = free = max(begin, axis.at(host, columns["end_ns"][row]))
        yield _slice(process, HOST_THREAD, _step_name(columns["step"][row]), begin, end, _told(columns, row))
        yield from _phase_slices(process, HOST_THREAD, phases, row, begin, end)


def _device_steps(process: int, seen: RankWindow, axis: TimeAxis) -> Iterator[TraceEvent]:
    """Device steps end where the host's end, later by the lead that the host had."""
    host, columns = seen.identity.host, seen.steps.columns
    device = seen.device.columns
    phases = phase_columns(seen)
    rows = {step: row for row, step in enumerate(columns.get("step", ()))}
    free = 0
    for place, step in enumerate(device["step"]):
        row = rows.get(step)
        if row is None or math.isnan(device["step_ns"][place]):
            continue
        lead = device["lead_end_ns"][place]
        end = axis.at(host, columns["end_ns"][row]) + (0 if math.isnan(lead) else int(lead))
        begin = max(free, end - int(device["step_ns"][place]))
        end = free = max(begin, end)
        yield _slice(process, DEVICE_THREAD, _step_name(step), begin, end)
        yield from _phase_slices(process, DEVICE_THREAD, phases, row, begin, end)


def _phase_slices(
    process: int, thread: int, phases: Mapping[str, Sequence[float]], row: int, begin: int, end: int
) -> Iterator[TraceEvent]:
    """The phases of a step one after the other, never beyond its end."""
    for slug, name in PHASES.items():
        length = phases[slug][row]
        if math.isnan(length) or length < 1:
            continue
        stop = min(end, begin + int(length))
        if stop > begin:
            yield _slice(process, thread, name, begin, stop)
        begin = stop


def _named_phases(process: int, seen: RankWindow, axis: TimeAxis) -> Iterator[TraceEvent]:
    host = seen.identity.host
    found = sorted(
        (axis.at(host, begin), -axis.at(host, end), name)
        for name, phase in seen.phases.items()
        for begin, end in zip(phase.columns["start_ns"], phase.columns["end_ns"], strict=True)
    )
    open_ends: list[int] = []
    for begin, negative_end, name in found:
        end = -negative_end
        while open_ends and open_ends[-1] <= begin:
            open_ends.pop()
        # Phases of one thread nest; what two threads overlapped is cut where the outer one ends.
        end = min(end, open_ends[-1]) if open_ends else end
        open_ends.append(end)
        yield _slice(process, NAMED_THREAD, visible(name), begin, end)


def _counter_events(window: Window, axis: TimeAxis) -> Iterator[TraceEvent]:
    owners = {seen.identity.gpu_uuid: rank + 1 for rank, seen in window.ranks.items() if seen.identity.gpu_uuid}
    hosts = {host: FIRST_HOST_PROCESS + number for number, host in enumerate(sorted(window.anchors))}
    for host, process in hosts.items():
        yield _name("process_name", process, f"host {visible(host)}")
    for key, series in window.series.items():
        place = owners.get(key.device) if key.device else hosts.get(key.host)
        if key.metric not in COUNTERS or place is None:
            continue
        title = COUNTERS[key.metric]
        points = _shares(series) if METRICS[key.metric].counter else zip(series.times_ns, series.values, strict=True)
        for time_ns, value in points:
            if math.isfinite(value):
                moment = _us(axis.at(key.host, time_ns))
                yield {"ph": "C", "name": title, "pid": place, "ts": moment, "args": {"value": value}}


def _shares(series: Series) -> Iterator[tuple[int, float]]:
    """A counter of nanoseconds as the share of time in which it grew, from one reading to the next."""
    readings = zip(series.times_ns, series.values, strict=True)
    for (before_ns, before), (time_ns, value) in pairwise(readings):
        # A counter that fell was reset with its driver: nothing is known of that stretch.
        if time_ns > before_ns and value >= before:
            yield before_ns, (value - before) / (time_ns - before_ns)


def _instants(window: Window, axis: TimeAxis) -> Iterator[TraceEvent]:
    owners = {seen.identity.gpu_uuid: rank for rank, seen in window.ranks.items() if seen.identity.gpu_uuid}
    for event in window.events:
        rank = event.rank if event.rank is not None else owners.get(event.device)
        yield {
            "ph": "i",
            "name": visible(event.kind),
            "pid": FINDINGS_PROCESS if rank is None else rank + 1,
            "tid": HOST_THREAD,
            "ts": _us(axis.at(event.host, event.time_ns)),
            "s": "g" if rank is None else "p",
            "args": {
                "text": visible(event.text if event.kind == "rank-stacks" else event_text(event)),
                "severity": str(event.severity),
            },
        }


def _finding_events(findings: Sequence[Finding], window: Window, axis: TimeAxis) -> Iterator[TraceEvent]:
    if not findings:
        return
    yield _name("process_name", FINDINGS_PROCESS, "findings")
    yield {"ph": "M", "name": "process_sort_index", "pid": FINDINGS_PROCESS, "args": {"sort_index": -1}}
    for place, finding in enumerate(findings, 1):
        host, title = finding.where.host, class_title(finding)
        begin = axis.at(host, finding.since_ns)
        end = axis.span_ns if finding.until_ns is None else axis.at(host, finding.until_ns)
        told = {"summary": visible(finding.summary), "side": str(finding.side), "confidence": finding.confidence}
        # Findings overlap, so each has a thread of its own.
        yield _name("thread_name", FINDINGS_PROCESS, title, place)
        yield _slice(FINDINGS_PROCESS, place, title, begin, max(begin, end), told)
        for rank in accused_ranks(finding, window):
            mark = {"ph": "i", "name": title, "pid": rank + 1, "tid": HOST_THREAD, "ts": _us(begin), "s": "p"}
            yield mark | {"args": told}


def _name(kind: str, process: int, name: str, thread: int | None = None) -> TraceEvent:
    event: TraceEvent = {"ph": "M", "name": kind, "pid": process, "args": {"name": name}}
    return event if thread is None else event | {"tid": thread}


def _slice(
    process: int, thread: int, name: str, begin: int, end: int, told: Mapping[str, Any] | None = None
) -> TraceEvent:
    event = {"ph": "X", "name": name, "pid": process, "tid": thread, "ts": _us(begin), "dur": _us(end - begin)}
    return event | {"args": dict(told)} if told else event


def _told(columns: Mapping[str, Sequence[float]], row: int) -> dict[str, float]:
    """What lies hidden inside the phases of a step, in milliseconds, as far as it was seen."""
    hidden = {name: columns[f"{name}_ns"][row] for name in ("sync", "gc", "runqueue") if f"{name}_ns" in columns}
    return {f"{name}_ms": value / 1e6 for name, value in hidden.items() if not math.isnan(value)}


def _step_name(step: float) -> str:
    return f"step {int(step)}"


def _us(nanoseconds: int) -> float:
    """Microseconds with three decimals: a double holds them exactly enough for a month."""
    return nanoseconds / 1_000
