"""Step phases on the device's clock: pooled events at the boundaries, read when they are done, never waited for.

The reference of `native/device_timeline.c`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from rankscope.device import DeviceClock
from rankscope.records import MISSING, DeviceRecord, GroupKind, GroupRecord, Phase, RecordKind
from rankscope.ring import RingWriter

if TYPE_CHECKING:
    from rankscope.torch_hooks.group_state import GroupState

#: Steps whose events may be outstanding; a device further behind loses the oldest, counted.
MAX_PENDING_STEPS = 32
#: Steps over which the smallest distance between device and host clock is taken as "no lead" (drift is ppm).
_LEAD_BLOCK_STEPS = 128
#: In place of a phase: boundaries were passed without an event.
_UNKNOWN = -1
#: In place of a phase: the compute stream waits for a collective in the middle of forward or backward.
_INNER_WAIT = len(Phase)
_PIPELINE = int(GroupKind.PIPELINE)
#: Boundaries at which it is asked whether the device had caught up already: where the host hands over most work.
_ASKED = frozenset((Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER))
#: Phases in which a wait for other ranks needs no events of its own.
_WAITING = frozenset((Phase.COLLECTIVE_WAIT, Phase.CHECKPOINT, Phase.EVALUATION))
#: Phases that have a field of their own in DeviceRecord beside "other".
_KNOWN = frozenset(
    (
        Phase.DATA_WAIT,
        Phase.H2D,
        Phase.FORWARD,
        Phase.BACKWARD,
        Phase.COLLECTIVE_WAIT,
        _INNER_WAIT,
        Phase.BUBBLE,
        Phase.OPTIMIZER,
    )
)


class _Mark(NamedTuple):
    ended: int
    begun: int
    event: Any
    host_ns: int
    group: GroupState | None


class _Step(NamedTuple):
    number: int
    marks: list[_Mark]
    #: Groups with operations issued in this step.
    used: tuple[GroupState, ...]
    drained: int


class DeviceTimeline:
    """Events of the steps under way. `coarse` keeps to step boundaries, where events in between would cost overlap."""

    def __init__(self, clock: DeviceClock, ring: RingWriter, world_size: int, *, coarse: bool = False) -> None:
        self._clock = clock
        self._append = ring.appender(RecordKind.DEVICE, DeviceRecord.layout)
        self._append_group = ring.appender(RecordKind.GROUP, GroupRecord.layout)
        self._world_size = world_size
        self._coarse = coarse
        self._open: list[_Mark] = []
        self._pending: deque[_Step] = deque()
        self._phase = self._resumed = int(Phase.NONE)
        self._waiting = False
        self._gap = False
        self._drained = 0
        self._last: Any = None
        self._device_ns = 0
        self._nearest_ns: int | None = None
        self._nearest_before_ns: int | None = None
        self._block_steps = 0
        self.dropped_steps = 0

    def mark(self, ended: int, begun: int, host_ns: int, group: GroupState | None = None) -> None:
        """The host passed from phase `ended` into `begun`: place an event there."""
        self._phase = begun
        if self._coarse and ended not in (Phase.OTHER, Phase.NONE):
            return
        if not self._clock.ready():
            self._gap = True
            return
        if begun in _ASKED and self._open and self._clock.done(self._open[-1].event):
            self._drained += 1
        self._open.append(_Mark(_UNKNOWN if self._gap else ended, begun, self._clock.record(), host_ns, group))
        self._gap = False

    def wait_begins(self, phase: int, host_ns: int) -> None:
        """The compute stream is about to wait for other ranks (`phase`: COLLECTIVE_WAIT or BUBBLE)."""
        if self._coarse or self._waiting or self._phase in _WAITING:
            return
        under_way = self._phase
        self.mark(under_way, _INNER_WAIT if phase == Phase.COLLECTIVE_WAIT else phase, host_ns)
        self._waiting, self._resumed = True, under_way

    def wait_ends(self, group: GroupState | None, host_ns: int) -> None:
        """The stream has been made to wait: what follows belongs to the phase that the wait interrupted."""
        if self._waiting:
            self._waiting = False
            self.mark(self._phase, self._resumed, host_ns, group)

    def end_step(self, step: int, states: list[GroupState] | None) -> None:
        """The step's events are all placed; write what older steps' events say by now.

        `states` are the process groups whose operations are seen, the whole job's first.
        """
        if self._open:
            used = tuple(state for state in states or () if state.count)
            self._pending.append(_Step(step, self._open, used, self._drained))
            self._open = []
        self._drained = 0
        self.flush(states)
        if len(self._pending) > MAX_PENDING_STEPS:
            self._pending.popleft()
            self.dropped_steps += 1
            self._last = None

    def flush(self, states: list[GroupState] | None) -> None:
        """Write the steps that the device has come to the end of."""
        while self._pending and self._clock.done(self._pending[0].marks[-1].event):
            self._write(self._pending.popleft(), states)

    def _write(self, step: _Step, states: list[GroupState] | None) -> None:
        spent: dict[int, int] = {}
        leads: dict[int, int] = {}
        waits: dict[GroupState | None, int] = {}
        lead = MISSING
        whole = self._last is not None
        for ended, begun, event, host_ns, group in step.marks:
            if self._last is not None:
                passed = self._clock.elapsed_ns(self._last, event)
                self._device_ns += passed
                spent[ended] = spent.get(ended, 0) + passed
                if ended in (_INNER_WAIT, Phase.BUBBLE):
                    waits[group] = waits.get(group, 0) + passed
                self._clock.release(self._last)
            self._last = event
            lead = self._lead(host_ns)
            leads.setdefault(begun, lead)
        self._age_lead()
        if not whole or _UNKNOWN in spent:
            return  # The first step has no event at its begin, one with a graph capture not at every boundary.
        # Operations whose waits were not seen were waited for somewhere in the "own" phases.
        unseen = [state for state in step.used if state not in waits and state.kind != _PIPELINE]

        def part(phase: int) -> int:
            return MISSING if self._coarse else spent.get(phase, 0)

        self._append(
            step.number,
            sum(spent.values()),
            part(Phase.DATA_WAIT),
            MISSING if self._coarse else spent.get(Phase.FORWARD, 0) + spent.get(Phase.H2D, 0),
            part(Phase.BACKWARD),
            part(Phase.COLLECTIVE_WAIT),
            part(Phase.OPTIMIZER),
            MISSING if self._coarse else sum(time for phase, time in spent.items() if phase not in _KNOWN),
            leads.get(Phase.FORWARD, MISSING),
            leads.get(Phase.BACKWARD, MISSING),
            leads.get(Phase.OPTIMIZER, MISSING),
            lead,
            part(Phase.H2D),
            part(_INNER_WAIT),
            part(Phase.BUBBLE),
            part(Phase.CHECKPOINT),
            part(Phase.EVALUATION),
            sum(1 for mark in step.marks if mark.begun in _ASKED),
            step.drained,
            bool(unseen),
        )
        if self._world_size > 1 and not self._coarse and states is not None:
            self._write_groups(step, spent, waits, states[0])

    def _write_groups(
        self, step: _Step, spent: dict[int, int], waits: dict[GroupState | None, int], default: GroupState
    ) -> None:
        own = spent.get(Phase.FORWARD, 0) + spent.get(Phase.BACKWARD, 0)
        backwards = sum(1 for mark in step.marks if mark.ended == Phase.BACKWARD and mark.begun != _INNER_WAIT)
        for state in (default, *(state for state in step.used if state is not default)):
            wait, count = waits.get(state, 0), sum(1 for mark in step.marks if mark.group is state)
            if state is default:
                wait += spent.get(Phase.COLLECTIVE_WAIT, 0) + waits.get(None, 0)
                count += backwards
            if not count and state not in step.used:
                continue
            unseen = state in step.used and state not in waits and state.kind != _PIPELINE
            head = (step.number, state.size, count, own, wait, 1, state.name, state.kind)
            self._append_group(*head, MISSING, MISSING, unseen, MISSING, MISSING, state.members)

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
