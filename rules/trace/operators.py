"""What the host spent its time in: each operator's own time, without the operators inside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankscope.rules.trace.events import IntArray, Trace, step_number

#: Traces with more operators than this have a device to look at, and their sweep would take seconds.
MOST_OPERATORS = 1_000_000


@dataclass(frozen=True, slots=True)
class Operator:
    """All calls of one operator or annotation. Times in ns, over all threads."""

    name: str
    count: int
    own_ns: int
    longest_ns: int


def operators(trace: Trace) -> list[Operator]:
    """Operators and annotations but for the steps, by their own time, the longest first."""
    table = trace.operators
    steps = [index for index, name in enumerate(trace.names) if step_number(name) is not None]
    rows = np.flatnonzero(~np.isin(table.name, steps))
    if len(rows) > MOST_OPERATORS:
        return []
    rows = rows[np.lexsort((-table.end_ns[rows], table.start_ns[rows], table.thread[rows]))]
    start, end = table.start_ns[rows], table.end_ns[rows]
    own = _own(start, end, table.thread[rows].astype(np.int64))
    names, places = np.unique(table.name[rows], return_inverse=True)
    total = np.bincount(places, weights=own, minlength=len(names))
    count = np.bincount(places, minlength=len(names))
    longest = np.zeros(len(names), np.int64)
    np.maximum.at(longest, places, end - start)
    order = np.argsort(-total, kind="stable")
    return [
        Operator(trace.names[int(names[each])][:160], int(count[each]), int(total[each]), int(longest[each]))
        for each in order
    ]


def _own(start: IntArray, end: IntArray, thread: IntArray) -> IntArray:
    """Durations without what lies inside; rows in order of thread and start, what encloses first."""
    own = (end - start).tolist()
    open_rows: list[int] = []
    starts, ends, threads = start.tolist(), end.tolist(), thread.tolist()
    for row, (begin, until, of) in enumerate(zip(starts, ends, threads, strict=True)):
        while open_rows and (threads[open_rows[-1]] != of or ends[open_rows[-1]] <= begin):
            open_rows.pop()
        if open_rows:
            own[open_rows[-1]] -= min(until, ends[open_rows[-1]]) - begin
        open_rows.append(row)
    return np.array(own, np.int64)
