"""The events of one rank's trace as columns: what ran on the device, who launched it, what the host was doing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
#: Columns of indices: a trace has millions of rows.
SmallArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]

#: In columns of rows, threads and streams: there is none.
NONE = -1
NS_PER_US = 1_000


class Kind(IntEnum):
    """What a device event is, by the category the profiler gave it."""

    KERNEL = 0
    COPY = 1
    SET = 2
    #: A wait for a stream or an event: the device does nothing.
    SYNC = 3


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length, one row an event. Times are ns since the trace's own zero."""

    start_ns: IntArray
    end_ns: IntArray
    #: Index into the trace's names.
    name: SmallArray

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass(frozen=True, slots=True)
class DeviceTable(Table):
    """Kernels, copies, sets and waits."""

    device: SmallArray
    #: CUDA has 4294967295 for a wait on all streams.
    stream: IntArray
    #: `Kind`.
    kind: NDArray[np.int8]
    correlation: IntArray
    #: Bytes copied or set; NONE where not said.
    bytes: IntArray
    #: Row of `Trace.messages` with what the profiler says of a collective; NONE where nothing.
    message: SmallArray


@dataclass(frozen=True, slots=True)
class HostTable(Table):
    """Runtime calls, operators and annotations, or Python frames."""

    thread: SmallArray
    message: SmallArray


@dataclass(frozen=True, slots=True)
class OperatorTable(HostTable):
    """Operators and annotations, with what links backward to forward."""

    #: Autograd's number: the same on a forward operator and on the node of the graph it made; NONE where not said.
    sequence: SmallArray


@dataclass(frozen=True, slots=True)
class CallTable(HostTable):
    """Calls of the runtime, with what links them to the device."""

    correlation: IntArray


@dataclass(frozen=True, slots=True)
class Message:
    """What the profiler says of a collective: its name, group, sizes in elements. Missing is None."""

    collective: str | None = None
    group: str | None = None
    description: str | None = None
    ranks: str | None = None
    size: int | None = None
    dtype: str | None = None
    elements_in: int | None = None
    elements_out: int | None = None
    sequence: int | None = None


@dataclass(frozen=True)
class Trace:
    """One rank's trace."""

    names: tuple[str, ...]
    device: DeviceTable
    #: Calls of the CUDA or HIP runtime and driver.
    calls: CallTable
    #: Operators and annotations of the host.
    operators: OperatorTable
    #: Python functions, where stacks were recorded.
    frames: HostTable
    messages: tuple[Message, ...] = ()
    #: Start of a `ProfilerStep#N` as the device saw it, where the profiler says; one a step.
    device_steps: Mapping[int, int] = field(default_factory=dict)
    rank: int = 0
    world_size: int | None = None
    #: The trace's own zero on the clock of its file, in whole us.
    zero_us: int = 0
    #: ns to add to this trace's times to get the clock other ranks of the host share; None where unknown.
    base_ns: int | None = None

    @cached_property
    def launch(self) -> SmallArray:
        """Row of the call that launched each device event; NONE where the trace has none."""
        return rows_of(self.calls.correlation, self.device.correlation)

    @cached_property
    def steps(self) -> list[tuple[int, int, int]]:
        """`ProfilerStep#N` of the host: number, start and end, in order of start."""
        numbers = {index: number for index, name in enumerate(self.names) if (number := step_number(name)) is not None}
        found = np.flatnonzero(np.isin(self.operators.name, list(numbers)))
        table = self.operators
        return sorted(
            ((numbers[int(table.name[row])], int(table.start_ns[row]), int(table.end_ns[row])) for row in found),
            key=lambda step: step[1],
        )


def step_number(name: str) -> int | None:
    """N of `ProfilerStep#N`, or None for any other name."""
    head, _, number = name.partition("#")
    number = number.strip()
    return int(number) if head.strip() == "ProfilerStep" and number.isascii() and number.isdigit() else None


def streams_of(table: DeviceTable) -> IntArray:
    """One number a stream of a device, whichever device it is."""
    return table.device.astype(np.int64) * 2**32 + table.stream


def rows_of(keys: IntArray, wanted: IntArray) -> SmallArray:
    """For each of `wanted` the row of `keys` that holds it (the first of several), or NONE; keys below 1 are none."""
    if not len(keys) or not len(wanted):
        return np.full(len(wanted), NONE, np.int32)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    found = (ordered[places] == wanted) & (wanted > 0)
    return np.where(found, order[places], NONE).astype(np.int32)
