"""Which device events count: those launched before the last profiled step began, as Holistic Trace Analysis has it.

The last step of a window is cut: its kernels are launched, and some of them are never seen to run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rankscope.rules.trace.events import NONE, BoolArray, DeviceTable, IntArray, Kind, SmallArray, Trace
from rankscope.rules.trace.names import event_type, hta_type

TypeArray = NDArray[np.int8]


@dataclass(frozen=True)
class Scope:
    """A trace and the device events of it that count."""

    trace: Trace
    #: Rows of the trace's device table, in order of start.
    rows: IntArray
    #: Why some were left out, or "".
    rule: str

    @cached_property
    def table(self) -> DeviceTable:
        """The device events that count, in order of start."""
        table = self.trace.device
        return DeviceTable(**{name: getattr(table, name)[self.rows] for name in _COLUMNS})

    @cached_property
    def launch(self) -> SmallArray:
        """For each of them the row of its call, or NONE."""
        return self.trace.launch[self.rows]

    @cached_property
    def launch_ns(self) -> IntArray:
        """For each of them when its call began; NONE where there is no call."""
        return starts_of(self.trace, self.launch)

    @cached_property
    def type(self) -> TypeArray:
        """For each of them its `Type`."""
        return self._typed(event_type)

    @cached_property
    def hta_type(self) -> TypeArray:
        """For each of them what Holistic Trace Analysis takes it for."""
        return self._typed(lambda name, _: hta_type(name))

    @cached_property
    def works(self) -> BoolArray:
        """Those that keep a device busy: kernels, copies and sets, not waits."""
        works: BoolArray = self.table.kind != Kind.SYNC
        return works

    def _typed(self, tell: Callable[[str, int], int]) -> TypeArray:
        # One look at each name, not at each event.
        key = self.table.name * len(Kind) + self.table.kind
        keys, places = np.unique(key, return_inverse=True)
        types = [tell(self.trace.names[int(each) // len(Kind)], int(each) % len(Kind)) for each in keys]
        return np.array(types, np.int8)[places] if len(keys) else np.zeros(0, np.int8)


_COLUMNS = ("start_ns", "end_ns", "name", "device", "stream", "kind", "correlation", "bytes", "message")


def starts_of(trace: Trace, calls: SmallArray) -> IntArray:
    """When each of the calls began; NONE where there is no call."""
    if not len(trace.calls):
        return np.full(len(calls), NONE, np.int64)
    return np.where(calls >= 0, trace.calls.start_ns[calls], NONE)


def scope_of(trace: Trace, *, all_steps: bool = False) -> Scope:
    """What counts of a trace: without steps, with one step or with `all_steps` everything."""
    device = trace.device
    order = np.argsort(device.start_ns, kind="stable")
    starts = {number: start for number, start, _ in trace.steps}
    for number, start in trace.device_steps.items():
        # Taken for a step of the host by Holistic Trace Analysis, and later than it.
        starts[number] = max(start, starts.get(number, start))
    if all_steps or len(starts) < 2:
        return Scope(trace, order, "")
    last = max(starts.values())
    # A call counts by when it began; an event without its call has nothing to be told by.
    launched = starts_of(trace, trace.launch)
    kept = (trace.launch >= 0) & (launched < last)
    if not kept.any():
        return Scope(trace, order, "")
    rows = order[kept[order]]
    return Scope(trace, rows, f"launched before the last of {len(starts)} profiled steps began")
