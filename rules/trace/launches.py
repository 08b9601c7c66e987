"""Launches: how many calls, how long until the device began, and how far the host ran ahead of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.rules.trace.events import NONE, IntArray, streams_of
from rankscope.rules.trace.scope import Scope

#: Events a CUDA stream takes before a launch blocks (hta/common/constants.py, CUDA_MAX_LAUNCH_QUEUE_PER_STREAM).
FULL_QUEUE = 1024
#: A kernel shorter than this costs the host about as long to launch as the device to run: 10 us a launch in eager mode.
SHORT_NS = 10_000


@dataclass(frozen=True, slots=True)
class Queue:
    """Events launched and not yet begun on one stream, over time."""

    device: int
    stream: int
    #: Weighted by how long it was so.
    mean: float
    most: int
    #: Share of the time with nothing queued: whatever comes next has to be launched first.
    empty: float
    #: Share of the time with `FULL_QUEUE` or more, where a launch blocks the host.
    full: float


@dataclass(frozen=True, slots=True)
class Launches:
    """Launch statistics of one trace. Times in ns; None where nothing was launched."""

    #: Name of the call, how many of them launched something, and the time they took.
    calls: tuple[tuple[str, int, int], ...]
    count: int
    #: Device events whose call is not in the trace.
    without_call: int
    #: Device events that began before their call: the clocks of host and device disagree.
    before_call: int
    delay_median_ns: int | None
    delay_p95_ns: int | None
    delay_max_ns: int | None
    #: Share of the launched events shorter than `SHORT_NS`.
    short: float | None
    queues: tuple[Queue, ...]


def launches(scope: Scope) -> Launches:
    """Over the events in scope."""
    trace, table = scope.trace, scope.table
    works = scope.works
    known = works & (scope.launch != NONE)
    delay = (table.start_ns - scope.launch_ns)[known]
    took = (table.end_ns - table.start_ns)[known]
    # One launch of a CUDA graph begins many events.
    calls = np.unique(scope.launch[known])
    counted = []
    for name in np.unique(trace.calls.name[calls]) if len(calls) else []:
        of = calls[trace.calls.name[calls] == name]
        spent = int((trace.calls.end_ns[of] - trace.calls.start_ns[of]).sum())
        counted.append((trace.names[int(name)][:96], len(of), spent))
    median, high, most = (
        (int(value) for value in np.percentile(np.maximum(delay, 0), (50, 95, 100)))
        if len(delay)
        else (None, None, None)
    )
    return Launches(
        calls=tuple(sorted(counted, key=lambda each: -each[1])),
        count=len(calls),
        without_call=int((works & (scope.launch == NONE)).sum()),
        before_call=int((delay < 0).sum()),
        delay_median_ns=median,
        delay_p95_ns=high,
        delay_max_ns=most,
        short=float((took < SHORT_NS).mean()) if len(took) else None,
        queues=tuple(_queues(scope, known)),
    )


def _queues(scope: Scope, known: np.typing.NDArray[np.bool_]) -> list[Queue]:
    table = scope.table
    key = streams_of(table)
    found = []
    for each in np.unique(key[known]):
        rows = np.flatnonzero(known & (key == each))
        launch = scope.launch_ns[rows]
        # Never before its launch, whatever the clocks say: a queue is never shorter than empty.
        begin = np.maximum(table.start_ns[rows], launch)
        times, lengths = _lengths(launch, begin)
        held = np.diff(times)
        total = int(held.sum())
        if not total:
            continue
        length = lengths[:-1]
        found.append(
            Queue(
                device=int(table.device[rows[0]]),
                stream=int(table.stream[rows[0]]),
                mean=float((length * held).sum() / total),
                most=int(lengths.max()),
                empty=float(held[length == 0].sum() / total),
                full=float(held[length >= FULL_QUEUE].sum() / total),
            )
        )
    return sorted(found, key=lambda queue: -queue.mean)


def _lengths(launch: IntArray, begin: IntArray) -> tuple[IntArray, IntArray]:
    times = np.concatenate((launch, begin))
    change = np.concatenate((np.ones(len(launch), np.int64), -np.ones(len(begin), np.int64)))
    # Where both happen at once the launch comes first.
    order = np.lexsort((-change, times))
    return times[order], np.cumsum(change[order])
