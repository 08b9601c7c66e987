"""The longest idle gaps of a device: which kernel it waited for, and what the host was doing meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rankscope.rules.trace.events import NONE, HostTable, IntArray, SmallArray, Trace, step_number
from rankscope.rules.trace.idle import Cause, Gaps
from rankscope.rules.trace.names import short
from rankscope.rules.trace.scope import Scope

#: So many of the longest gaps are looked into, each with a pass over the events of its thread.
LOOKED_INTO = 300
#: Gaps shorter than this are not looked into: no host does anything worth a line in them.
LEAST_NS = 2_000


@dataclass(slots=True)
class Stall:
    """Gaps that ended with the same kernel, launched from the same place while the host did the same."""

    kernel: str
    cause: Cause
    #: Innermost operator around the launch, and the outermost but for the step; None where the trace has none.
    operator: str | None
    outer: str | None
    #: Innermost Python frame around the launch, or in backward around the forward operator: `file(line): function`.
    #: None without recorded stacks.
    source: str | None
    #: What the launching thread did longest in the gap; None where it did nothing that was traced.
    host_doing: str | None
    count: int = 0
    total_ns: int = 0
    longest_ns: int = 0
    at_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Thread:
    """What one thread did, in order of start; what encloses stands before what it encloses."""

    start_ns: IntArray
    end_ns: IntArray
    name: SmallArray
    #: The latest end so far: what lies before the first place where it passes a moment is over by then.
    reach_ns: IntArray


class Host:
    """What the threads of the host were doing, looked up by time."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._steps = {index for index, name in enumerate(trace.names) if step_number(name) is not None}
        self._threads: dict[tuple[int, int], _Thread] = {}

    def around(self, table: HostTable, thread: int, time_ns: int) -> list[str]:
        """Names of what encloses a moment, the outermost first; steps are left out."""
        of = self._of(table, thread)
        first = int(np.searchsorted(of.reach_ns, time_ns, side="right"))
        last = int(np.searchsorted(of.start_ns, time_ns, side="right"))
        found = of.name[first:last][of.end_ns[first:last] > time_ns]
        return [self._trace.names[int(name)] for name in found if int(name) not in self._steps]

    def forward_of(self, thread: int, time_ns: int) -> tuple[int, int] | None:
        """Thread and time of the forward operator whose backward runs at a moment, or None where nothing says."""
        table = self._trace.operators
        running = (
            (table.start_ns <= time_ns) & (table.end_ns > time_ns) & (table.thread == thread) & (table.sequence >= 0)
        )
        for number in table.sequence[running][::-1]:
            # Of the operators of this number the last that began before, elsewhere: its backward began with it.
            rows = np.flatnonzero((table.sequence == number) & (table.thread != thread) & (table.start_ns < time_ns))
            if len(rows):
                row = rows[np.argmax(table.start_ns[rows])]
                return int(table.thread[row]), int(table.start_ns[row])
        return None

    def longest_in(self, table: HostTable, thread: int, start_ns: int, end_ns: int) -> tuple[str, int] | None:
        """What lies most in a stretch of time and was not around all of it, and for how long."""
        of = self._of(table, thread)
        first = int(np.searchsorted(of.reach_ns, start_ns, side="right"))
        last = int(np.searchsorted(of.start_ns, end_ns))
        start, end, name = of.start_ns[first:last], of.end_ns[first:last], of.name[first:last]
        inside = np.minimum(end, end_ns) - np.maximum(start, start_ns)
        inside[((start <= start_ns) & (end >= end_ns)) | np.isin(name, list(self._steps))] = 0
        if not len(inside) or inside.max() <= 0:
            return None
        best = int(np.argmax(inside))
        return self._trace.names[int(name[best])], int(inside[best])

    def _of(self, table: HostTable, thread: int) -> _Thread:
        key = (id(table), thread)
        if key not in self._threads:
            rows = np.flatnonzero(table.thread == thread)
            rows = rows[np.lexsort((-table.end_ns[rows], table.start_ns[rows]))]
            end = table.end_ns[rows]
            self._threads[key] = _Thread(table.start_ns[rows], end, table.name[rows], np.maximum.accumulate(end))
        return self._threads[key]


def stalls(scope: Scope, gaps: list[Gaps]) -> list[Stall]:
    """The longest gaps of all devices, grouped by where they come from; the dearest first."""
    host = Host(scope.trace)
    found: dict[tuple[object, ...], Stall] = {}
    for each in gaps:
        took = each.end_ns - each.start_ns
        longest = np.argsort(-took, kind="stable")[:LOOKED_INTO]
        for place in longest[took[longest] >= LEAST_NS]:
            stall = _stall(scope, host, each, int(place))
            key = (stall.kernel, stall.cause, stall.operator, stall.source, stall.host_doing)
            known = found.setdefault(key, stall)
            known.count += 1
            known.total_ns += int(took[place])
            known.longest_ns = max(known.longest_ns, int(took[place]))
            known.at_ns.append(int(each.start_ns[place]))
    return sorted(found.values(), key=lambda stall: -stall.total_ns)


def _stall(scope: Scope, host: Host, gaps: Gaps, place: int) -> Stall:
    trace = scope.trace
    event = int(gaps.next[place])
    call = int(scope.launch[event])
    kernel = short(trace.names[int(scope.table.name[event])])
    cause = Cause(int(gaps.cause[place]))
    if call == NONE:
        return Stall(kernel, cause, None, None, None, None)
    thread, launched = int(trace.calls.thread[call]), int(trace.calls.start_ns[call])
    operators = host.around(trace.operators, thread, launched)
    frames = host.around(trace.frames, thread, launched)
    if not frames and len(trace.frames) and (forward := host.forward_of(thread, launched)) is not None:
        # Autograd's own thread runs no Python: the line is that of the forward pass.
        frames = host.around(trace.frames, *forward)
    frames = [name for name in frames if "(" in name]
    doing = None
    if cause == Cause.HOST_WAIT:
        begin = int(gaps.start_ns[place])
        half = (launched - begin) / 2
        # A call that blocks says more than the operator that made it; below half the gap neither explains it.
        for table in (trace.calls, trace.operators):
            most = host.longest_in(table, thread, begin, launched)
            if most is not None and most[1] >= half:
                doing = most[0][:160]
                break
    return Stall(
        kernel=kernel,
        cause=cause,
        operator=operators[-1][:160] if operators else None,
        outer=operators[0][:160] if len(operators) > 1 else None,
        source=_own(frames),
        host_doing=doing,
    )


def _own(frames: list[str]) -> str | None:
    """The innermost frame of the job's own code; of a library's where there is no other."""
    for name in reversed(frames):
        if not any(part in name for part in _LIBRARIES):
            return name[:200]
    return frames[-1][:200] if frames else None


#: Frames of these are torch's and Python's, not the job's.
_LIBRARIES = ("torch/", "site-packages/", "<built-in", "<frozen", "threading.py", "contextlib.py", "<string>")
