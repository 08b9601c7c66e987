"""The boundaries of a step: the clock is read, a phase ends, another begins; a step's records go into the ring.

The reference of `native/boundaries.c`, which does the same at a fraction of the cost: byte for byte, as a test shows.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rankscope.records import MISSING, GroupRecord, Phase, RecordKind, StepFlag, StepRecord
from rankscope.ring import HEADER_BYTES, SLOT_BYTES, STATUS_OFFSET, RingWriter

if TYPE_CHECKING:
    from rankscope.torch_hooks.group_state import GroupState

#: CPU time and run-queue wait are read no oftener: two system calls.
READ_PERIOD_NS = 25_000_000
#: Orders of the agent are looked for, and Dynamo's callbacks looked after, no oftener.
LOOK_PERIOD_NS = 200_000_000
#: Steps that are marked as warm-up: allocator, autotuning, lazily made process groups, rebuilt buckets.
WARM_UP_STEPS = 3
#: The hooks' own time is measured in one step of so many: two more clock readings a boundary.
HOOK_SAMPLE = 16

_DATA_WAIT, _H2D, _FORWARD, _BACKWARD = int(Phase.DATA_WAIT), int(Phase.H2D), int(Phase.FORWARD), int(Phase.BACKWARD)
_COLLECTIVE_WAIT, _OPTIMIZER, _SYNC = int(Phase.COLLECTIVE_WAIT), int(Phase.OPTIMIZER), int(Phase.SYNC)
_CHECKPOINT, _EVALUATION, _BUBBLE = int(Phase.CHECKPOINT), int(Phase.EVALUATION), int(Phase.BUBBLE)
_NONE, _OTHER = int(Phase.NONE), int(Phase.OTHER)
_NOTHING = [0] * len(Phase)
#: Phases out of which a wait for the device or for other ranks is taken. What a checkpoint or an evaluation waits for
#: is theirs, and the end of backward is a wait already.
_CARVED = frozenset((_NONE, _H2D, _FORWARD, _BACKWARD, _OPTIMIZER, _OTHER, _DATA_WAIT))
_CRC, _STATUS = struct.Struct("<I"), struct.Struct("<QQQ")
_BODY = struct.Struct(f"<HHQ{StepRecord.layout.format.removeprefix('<')}")
_WARM_UP = int(StepFlag.WARM_UP)


class Boundaries:
    """Where the time of the step under way went, in a ring that only the training thread writes.

    Numbers that are not known are MISSING.
    """

    def __init__(self, ring: RingWriter, monotonic_ns: Callable[[], int] | None = None) -> None:
        """`monotonic_ns` stands in for the clock."""
        self._ring = ring.mapped
        self._slots = ring.slots
        self._take = ring.take
        self._append_group = ring.appender(RecordKind.GROUP, GroupRecord.layout)
        self._now = monotonic_ns or time.monotonic_ns
        #: A DeviceTimeline, where the device has a clock: told of each boundary, and of each step's end.
        self.timeline: Any = None
        #: Process groups whose operations are seen, the whole job's first; None where there are none.
        self.group_states: list[GroupState] | None = None
        #: Called at the end of each step, where profiler windows may be wanted.
        self.on_step: Callable[[], None] | None = None
        #: The device's memory: (allocated, reserved, peak bytes, retries), or None where it does not say.
        self.memory: Callable[[], tuple[int, int, int, int] | None] | None = None
        #: Descriptor of the training thread's /proc/.../schedstat, or -1.
        self.schedstat = -1
        self.step = self.depth = 0
        self.phase = _NONE
        #: Of the step under way.
        self.flags = self.sync_count = self.backward_count = self.microbatches = 0
        #: Operations on process groups issued from Python in the step under way.
        self.issued = 0
        #: Of the step under way: garbage collection, and Dynamo's compilations (MISSING where it does not tell).
        self.gc_ns = self.gc_count = self.compile_ns = self.recompiles = 0
        self.work = self.loader_ready = self.loader_workers = MISSING
        self.collate_ns = self.loader_cpu_ns = self.loader_io_ns = MISSING
        #: As last measured.
        self.cpu_ns = self.runqueue_ns = self.hook_ns = MISSING
        self.allocated_bytes = self.reserved_bytes = self.peak_bytes = self.alloc_retries = MISSING
        #: Whether the step under way is one of those that are looked at more closely, and what boundaries took in it.
        self.sampled, self.timed_ns = True, 0
        self.copies_watched = False
        self.last_step_ns = self.last_data_wait_ns = 0
        self._boundaries_ns = 0
        self._read_ns = self._read_step = self._look_ns = self._modules = self._cpu_total_ns = self._waited_total_ns = 0
        self._spent = _NOTHING.copy()
        self._wait_in_backward_ns = 0
        self._since = self.start_ns = self._now()

    def switch(self, phase: int) -> int:
        """From now on the training thread is in `phase`; returns now."""
        now = self._now()
        ended = self.phase
        self._spent[ended] += now - self._since
        self._since = now
        self.phase = phase
        self._set_status(now, phase)
        if self.timeline is not None:
            self.timeline.mark(ended, phase, now, None)
        if self.sampled:
            self.timed_ns += self._now() - now
        return now

    def synchronized(self, blocked_ns: int) -> None:
        """The host was blocked that long until the device had caught up."""
        self.sync_count += 1
        if self.phase in _CARVED:
            self._spent[_SYNC] += blocked_ns
            self._since += blocked_ns

    def wait_begins(self, phase: int) -> int:
        """The host begins to wait for other ranks inside the phase under way; returns now."""
        now = self._now()
        self._set_status(now, phase)
        return now

    def wait_ends(self, began_ns: int, phase: int) -> int:
        """The wait is over: its time leaves the phase under way and goes to `phase`. Returns the ns waited."""
        now = self._now()
        waited = now - began_ns
        under_way = self.phase
        self._set_status(now, under_way)
        if under_way in _CARVED:
            self._spent[phase] += waited
            self._since += waited
            if phase == _COLLECTIVE_WAIT and under_way != _BACKWARD:
                self._wait_in_backward_ns -= waited
        return waited

    def spent_ns(self, phase: int) -> int:
        """Time of the step under way in `phase`, up to the latest boundary."""
        return self._spent[phase]

    def end_wait_ns(self) -> int:
        """Of the step's waits for other ranks, those in backward: what its end waited for, mostly."""
        return self._spent[_COLLECTIVE_WAIT] + self._wait_in_backward_ns

    def explain(self) -> None:
        """Something was compiled in the step that ends: count what was compiled again."""

    def look(self) -> None:
        """Called at the end of a step where modules were imported since, or LOOK_PERIOD_NS have passed."""

    def read_usage(self) -> None:
        """Read the thread's CPU time and wait for a core: per step, means since they were last read."""
        steps = max(1, self.step + 1 - self._read_step)
        self._read_step = self.step + 1
        total = time.thread_time_ns()
        self.cpu_ns, self._cpu_total_ns = (total - self._cpu_total_ns) // steps, total
        if self.schedstat < 0:
            return
        try:
            # Second field of schedstat: time runnable but waiting, in ns (Documentation/scheduler/sched-stats).
            waited = int(os.pread(self.schedstat, 96, 0).split()[1])
        except (OSError, ValueError, IndexError):
            self.schedstat, self.runqueue_ns = -1, MISSING
            return
        self.runqueue_ns, self._waited_total_ns = max(0, waited - self._waited_total_ns) // steps, waited

    def end_step(self, next_phase: int) -> None:
        """Close the step here; the next one begins in `next_phase`."""
        now = self.switch(next_phase)
        if self.start_ns == now:
            return
        if now - self._read_ns > READ_PERIOD_NS:
            self._read(now)
        compile_ns, step = self.compile_ns, self.step
        if compile_ns > 0:
            self.explain()
        self._write_step(now, self.flags | (_WARM_UP if step < WARM_UP_STEPS or compile_ns > 0 else 0))
        if self.timeline is not None:
            self.timeline.end_step(step, self.group_states)
        if self.group_states is not None:
            self._write_groups(self.group_states)
        self._next_step(now)
        if self.compile_ns > 0:
            self.compile_ns = self.recompiles = 0
        sampled = self.sampled
        if sampled:
            self._boundaries_ns, self.timed_ns = self.timed_ns, 0
        if self.on_step is not None:
            self.on_step()
        if sampled or self.on_step is not None:
            self.hook_ns = self._boundaries_ns + self._now() - now
        self.sampled = self.step % HOOK_SAMPLE == 1

    def _read(self, now: int) -> None:
        """Read what costs a system call, or more."""
        self.read_usage()
        memory = None if self.memory is None else self.memory()
        if memory is not None:
            self.allocated_bytes, self.reserved_bytes, self.peak_bytes, self.alloc_retries = memory
        self._read_ns = now
        modules = len(sys.modules)
        if modules != self._modules or now - self._look_ns > LOOK_PERIOD_NS:
            self._modules, self._look_ns = modules, now
            self.look()

    def _write_step(self, end_ns: int, flags: int) -> None:
        sequence = self._take()
        spent, collate_ns = self._spent, self.collate_ns
        own, wait = spent[_BACKWARD], spent[_COLLECTIVE_WAIT]
        body = _BODY.pack(
            RecordKind.STEP,
            StepRecord.layout.size,
            sequence,
            self.step,
            self.start_ns,
            end_ns,
            spent[_DATA_WAIT],
            spent[_FORWARD] + spent[_H2D],
            own + self.end_wait_ns(),
            spent[_OPTIMIZER],
            spent[_CHECKPOINT],
            spent[_EVALUATION],
            spent[_NONE] + spent[_OTHER],
            own,
            spent[_SYNC],
            self.sync_count,
            self.gc_ns,
            self.gc_count,
            self.compile_ns,
            self.cpu_ns,
            self.runqueue_ns,
            self.allocated_bytes,
            self.reserved_bytes,
            self.peak_bytes,
            self.alloc_retries,
            self.work,
            self.loader_ready,
            self.loader_workers,
            self.hook_ns,
            self.backward_count,
            spent[_H2D] if self.copies_watched else MISSING,
            wait,
            spent[_BUBBLE],
            collate_ns if collate_ns < 0 else spent[_DATA_WAIT] - collate_ns,
            collate_ns,
            self.loader_cpu_ns,
            self.loader_io_ns,
            self.recompiles,
            flags,
            self.microbatches,
            MISSING if self.group_states is None else self.issued,
        )
        start = HEADER_BYTES + (sequence - 1) % self._slots * SLOT_BYTES
        self._ring[start + _CRC.size : start + _CRC.size + len(body)] = body
        _CRC.pack_into(self._ring, start, zlib.crc32(body))

    def _write_groups(self, states: list[GroupState]) -> None:
        """A record for each group that was used in the step; with a device clock the device's say the waits."""
        # The end of backward is the wait that began in it; what other phases waited for is theirs.
        own_ns = self._spent[_FORWARD] + self._spent[_BACKWARD]
        for state in states:
            count, waited = state.count, state.wait_ns
            if state is states[0]:
                # In the whole job's group DDP reduces gradients out of our sight.
                count += self.backward_count
                waited += self.end_wait_ns()
            if not count:
                continue
            # Torch is asked seldom: of what came since it was last asked.
            first, last = state.since_asked() if self.sampled else (MISSING, MISSING)
            if self.timeline is None:
                # Operations whose waits were not seen were waited for somewhere in the "own" phases.
                unseen = state.count > 0 and not state.wait_ns
                self._append_group(
                    self.step,
                    state.size,
                    count,
                    own_ns,
                    waited,
                    0,
                    state.name,
                    state.kind,
                    MISSING,
                    MISSING,
                    unseen,
                    first,
                    last,
                    state.members,
                )
            state.count = state.wait_ns = 0

    def _next_step(self, now_ns: int) -> None:
        self.last_step_ns = now_ns - self.start_ns
        self.last_data_wait_ns = self._spent[_DATA_WAIT]
        self._spent[:] = _NOTHING
        self.start_ns = now_ns
        if self.collate_ns > 0:
            self.collate_ns = 0
        self.backward_count = self.microbatches = self.sync_count = self._wait_in_backward_ns = self.flags = 0
        self.issued = self.gc_ns = self.gc_count = 0
        self.copies_watched = False
        self.step += 1

    def _set_status(self, now: int, phase: int) -> None:
        doing = self.step << 16 | self.depth << 8 | phase
        _STATUS.pack_into(self._ring, STATUS_OFFSET, now, doing, now ^ doing)
