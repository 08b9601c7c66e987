"""Step phases on the device's clock: pooled events at the boundaries, read when they are done, never waited for."""

from __future__ import annotations

from collections import deque
from typing import Any

from rankscope.device import DeviceClock
from rankscope.records import MISSING, DeviceRecord, GroupRecord, Phase, RecordKind, encode
from rankscope.ring import RingWriter

#: Steps whose events may be outstanding; a device further behind loses the oldest, counted.
MAX_PENDING_STEPS = 32
#: Steps over which the smallest distance between device and host clock is taken as "no lead" (drift is ppm).
_LEAD_BLOCK_STEPS = 128
#: In place of a phase: boundaries were passed without an event.
_UNKNOWN = -1


class DeviceTimeline:
    """Events of the steps under way. `coarse` keeps to step boundaries, where events in between would cost overlap."""

    def __init__(self, clock: DeviceClock, ring: RingWriter, world_size: int, *, coarse: bool = False) -> None:
        self._clock = clock
        self._ring = ring
        self._world_size = world_size
        self._coarse = coarse
        self._open: list[tuple[int, int, Any, int]] = []
        self._pending: deque[tuple[int, list[tuple[int, int, Any, int]]]] = deque()
        self._gap = False
        self._last: Any = None
        self._device_ns = 0
        self._nearest_ns: int | None = None
        self._nearest_before_ns: int | None = None
        self._block_steps = 0
        self.dropped_steps = 0

    def mark(self, ended: int, begun: int, host_ns: int) -> None:
        """The host passed from phase `ended` into `begun`: place an event there."""
        if self._coarse and ended not in (Phase.OTHER, Phase.NONE):
            return
        if self._clock.ready():
            self._open.append((_UNKNOWN if self._gap else ended, begun, self._clock.record(), host_ns))
            self._gap = False
        else:
            self._gap = True

    def end_step(self, step: int) -> None:
        """The step's events are all placed; write what older steps' events say by now."""
        if self._open:
            self._pending.append((step, self._open))
            self._open = []
        while self._pending and self._clock.done(self._pending[0][1][-1][2]):
            self._write(*self._pending.popleft())
        if len(self._pending) > MAX_PENDING_STEPS:
            self._pending.popleft()
            self.dropped_steps += 1
            self._last = None

    def _write(self, step: int, marks: list[tuple[int, int, Any, int]]) -> None:
        spent: dict[int, int] = {}
        leads: dict[int, int] = {}
        lead = MISSING
        whole = self._last is not None
        for ended, begun, event, host_ns in marks:
            if self._last is not None:
                passed = self._clock.elapsed_ns(self._last, event)
                self._device_ns += passed
                spent[ended] = spent.get(ended, 0) + passed
                self._clock.release(self._last)
            self._last = event
            lead = self._lead(host_ns)
            leads[begun] = lead
        self._age_lead()
        if not whole or _UNKNOWN in spent:
            return  # The first step has no event at its begin, one with a graph capture not at every boundary.

        def part(phase: int) -> int:
            return MISSING if self._coarse else spent.get(phase, 0)

        own, wait = part(Phase.BACKWARD), part(Phase.COLLECTIVE_WAIT)
        known = (Phase.DATA_WAIT, Phase.FORWARD, Phase.BACKWARD, Phase.COLLECTIVE_WAIT, Phase.OPTIMIZER)
        self._ring.append(
            RecordKind.DEVICE,
            DeviceRecord.layout.pack(
                step,
                sum(spent.values()),
                part(Phase.DATA_WAIT),
                part(Phase.FORWARD),
                own,
                wait,
                part(Phase.OPTIMIZER),
                MISSING if self._coarse else sum(time for phase, time in spent.items() if phase not in known),
                leads.get(Phase.FORWARD, MISSING),
                leads.get(Phase.BACKWARD, MISSING),
                leads.get(Phase.OPTIMIZER, MISSING),
                lead,
                *(MISSING,) * 8,
            ),
        )
        if self._world_size > 1 and not self._coarse and Phase.BACKWARD in spent:
            count = sum(1 for mark in marks if mark[0] == Phase.BACKWARD)
            group = GroupRecord(step, self._world_size, count, part(Phase.FORWARD) + own, wait, 1, "default")
            self._ring.append(RecordKind.GROUP, encode(group))

    def _lead(self, host_ns: int) -> int:
        """How far the device ran behind the host: distance of the clocks above the nearest they ever came."""
        distance = self._device_ns - host_ns
        if self._nearest_ns is None or distance < self._nearest_ns:
            self._nearest_ns = distance
        before = self._nearest_before_ns
        return distance - (self._nearest_ns if before is None else min(before, self._nearest_ns))

    def _age_lead(self) -> None:
        self._block_steps += 1
        if self._block_steps >= _LEAD_BLOCK_STEPS:
            self._block_steps = 0
            self._nearest_before_ns, self._nearest_ns = self._nearest_ns, None
