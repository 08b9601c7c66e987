"""Where the training thread's time goes: the phases of a step, on the host's clock and the device's.

`StepClock.switch` is the hot path: everything the hooks see becomes "from now on, this phase". A step is closed at its
boundary, when its record goes into the ring. What costs a system call is read at most every `READ_PERIOD_NS`: steps in
between carry the mean of the last reading.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from rankscope.device import DeviceClock
from rankscope.records import (
    MISSING,
    GroupRecord,
    MarkKind,
    MarkRecord,
    Phase,
    RecordKind,
    StepFlag,
    StepRecord,
)
from rankscope.ring import RingWriter
from rankscope.torch_hooks.device_timeline import DeviceTimeline
from rankscope.torch_hooks.groups import Groups
from rankscope.torch_hooks.usage import CompileWatch, GcWatch, ThreadUsage

#: CPU time and run-queue wait are read no oftener: two system calls.
READ_PERIOD_NS = 10_000_000
#: Orders of the agent are looked for, and Dynamo's callbacks looked after, no oftener.
LOOK_PERIOD_NS = 200_000_000
#: Steps that are marked as warm-up: allocator, autotuning, lazily made process groups, rebuilt buckets.
WARM_UP_STEPS = 3
#: The hooks' own time is measured in one step of so many: two more clock readings a boundary.
_HOOK_SAMPLE = 16
_NOTHING = [0] * len(Phase)
_NO_MEMORY = (MISSING, MISSING, MISSING, MISSING)
_DATA_WAIT, _H2D, _FORWARD, _BACKWARD = int(Phase.DATA_WAIT), int(Phase.H2D), int(Phase.FORWARD), int(Phase.BACKWARD)
_COLLECTIVE_WAIT, _OPTIMIZER, _SYNC = int(Phase.COLLECTIVE_WAIT), int(Phase.OPTIMIZER), int(Phase.SYNC)
_CHECKPOINT, _EVALUATION, _BUBBLE = int(Phase.CHECKPOINT), int(Phase.EVALUATION), int(Phase.BUBBLE)
_NONE, _OTHER = int(Phase.NONE), int(Phase.OTHER)
#: Phases out of which a wait for the device or for other ranks is taken. What a checkpoint or an evaluation waits for
#: is theirs, and the end of backward is a wait already.
_CARVED = frozenset((_NONE, _H2D, _FORWARD, _BACKWARD, _OPTIMIZER, _OTHER, _DATA_WAIT))


class StepClock:
    """Phases and steps of one training thread, written into its ring.

    Only the thread that made it may write; calls from other threads are ignored, except during backward, which the
    autograd engine may finish on a thread of its own while the training thread waits for it.
    """

    __slots__ = (
        "_append",
        "_append_group",
        "_boundaries_ns",
        "_compile",
        "_copies_watched",
        "_cpu_ns",
        "_device",
        "_flags",
        "_gc",
        "_hook_ns",
        "_look_ns",
        "_memory",
        "_modules",
        "_read_ns",
        "_read_step",
        "_runqueue_ns",
        "_set_status",
        "_since",
        "_spent",
        "_start",
        "_sync_count",
        "_timed_ns",
        "_unwatch_copies",
        "_usage",
        "_wait_in_backward_ns",
        "_world_size",
        "backward_count",
        "collate_ns",
        "depth",
        "groups",
        "last_data_wait_ns",
        "last_step_ns",
        "loader_cpu_ns",
        "loader_io_ns",
        "loader_ready",
        "loader_workers",
        "microbatches",
        "now",
        "on_look",
        "on_step",
        "phase",
        "ring",
        "sampled",
        "step",
        "thread",
        "timeline",
        "work",
    )

    def __init__(
        self,
        ring: RingWriter,
        device: DeviceClock,
        *,
        world_size: int,
        gc_watch: GcWatch,
        usage: ThreadUsage,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        coarse: bool = False,
    ) -> None:
        self.ring = ring
        self.step = 0
        self.phase = _NONE
        self.depth = 0
        self.thread = threading.get_ident()
        #: Of the step under way; MISSING where not known.
        self.work = self.loader_ready = self.loader_workers = MISSING
        self.collate_ns = self.loader_cpu_ns = self.loader_io_ns = MISSING
        self.backward_count = self.microbatches = 0
        self.last_step_ns = self.last_data_wait_ns = 0
        #: Called at the end of each step, where profiler windows may be wanted.
        self.on_step: Callable[[], None] | None = None
        #: Called at the end of a step, where modules were imported since, or LOOK_PERIOD_NS have passed.
        self.on_look: Callable[[], None] | None = None
        #: Process groups whose operations are seen; None where there are none.
        self.groups: Groups | None = None
        self.now = monotonic_ns
        self._device = device
        self.timeline = None if device.name == "host" else DeviceTimeline(device, ring, world_size, coarse=coarse)
        self._world_size = world_size
        self._gc = gc_watch
        self._usage = usage
        self._compile = CompileWatch(self.mark)
        self._append = ring.appender(RecordKind.STEP, StepRecord.layout)
        self._append_group = ring.appender(RecordKind.GROUP, GroupRecord.layout)
        write, mapped, offset = ring.status_target()
        self._set_status = partial(write, mapped, offset)
        self._spent = _NOTHING.copy()
        self._since = self._start = monotonic_ns()
        self._copies_watched = False
        self._unwatch_copies: Callable[[], None] | None = None
        self._sync_count = self._wait_in_backward_ns = self._flags = 0
        #: Whether the step under way is one of those that are looked at more closely.
        self.sampled, self._timed_ns, self._hook_ns = True, 0, MISSING
        self._boundaries_ns = 0
        self._read_ns = self._read_step = self._look_ns = self._modules = 0
        self._cpu_ns, self._runqueue_ns = MISSING, MISSING
        self._memory = _NO_MEMORY
        usage.read()

    def switch(self, phase: int) -> int:
        """From now on the training thread is in `phase`; returns now."""
        now = self.now()
        ended = self.phase
        self._spent[ended] += now - self._since
        self._since = now
        self.phase = phase
        doing = self.step << 16 | self.depth << 8 | phase
        self._set_status(now, doing, now ^ doing)
        if self.timeline is not None:
            self.timeline.mark(ended, phase, now)
        if self.sampled:
            self._timed_ns += self.now() - now
        return now

    def synchronized(self, blocked_ns: int) -> None:
        """The host was blocked that long until the device had caught up."""
        self._sync_count += 1
        if self.phase in _CARVED:
            self._spent[_SYNC] += blocked_ns
            self._since += blocked_ns

    def wait_begins(self, phase: int) -> int:
        """The host begins to wait for other ranks inside the phase under way; returns now."""
        now = self.now()
        doing = self.step << 16 | self.depth << 8 | phase
        self._set_status(now, doing, now ^ doing)
        return now

    def wait_ends(self, began_ns: int, phase: int) -> int:
        """The wait is over: its time leaves the phase under way and goes to `phase`. Returns the ns waited."""
        now = self.now()
        waited = now - began_ns
        under_way = self.phase
        doing = self.step << 16 | self.depth << 8 | under_way
        self._set_status(now, doing, now ^ doing)
        if under_way in _CARVED:
            self._spent[phase] += waited
            self._since += waited
            if phase == _COLLECTIVE_WAIT and under_way != _BACKWARD:
                self._wait_in_backward_ns -= waited
        return waited

    def flag(self, flag: StepFlag) -> None:
        """The step under way is peculiar."""
        self._flags |= flag

    def end_step(self, next_phase: int) -> None:
        """Close the step here; the next one begins in `next_phase`."""
        now = self.switch(next_phase)
        spent, start = self._spent, self._start
        if start == now:
            return
        if now - self._read_ns > READ_PERIOD_NS:
            self._read(now)
        own, wait = spent[_BACKWARD], spent[_COLLECTIVE_WAIT]
        in_backward = wait + self._wait_in_backward_ns
        gc_watch, compiling, groups, collate_ns = self._gc, self._compile, self.groups, self.collate_ns
        if compiling.spent_ns > 0:
            compiling.explain()
        flags = self._flags
        if self.step < WARM_UP_STEPS or compiling.spent_ns > 0:
            flags |= StepFlag.WARM_UP
        self._append(
            self.step,
            start,
            now,
            spent[_DATA_WAIT],
            spent[_FORWARD] + spent[_H2D],
            own + in_backward,
            spent[_OPTIMIZER],
            spent[_CHECKPOINT],
            spent[_EVALUATION],
            spent[_NONE] + spent[_OTHER],
            own,
            spent[_SYNC],
            self._sync_count,
            gc_watch.spent_ns,
            gc_watch.count,
            compiling.spent_ns,
            self._cpu_ns,
            self._runqueue_ns,
            *self._memory,
            self.work,
            self.loader_ready,
            self.loader_workers,
            self._hook_ns,
            self.backward_count,
            spent[_H2D] if self._copies_watched else MISSING,
            wait,
            spent[_BUBBLE],
            collate_ns if collate_ns < 0 else spent[_DATA_WAIT] - collate_ns,
            collate_ns,
            self.loader_cpu_ns,
            self.loader_io_ns,
            compiling.recompiles,
            flags,
            self.microbatches,
            MISSING if groups is None else groups.count,
        )
        if self.timeline is not None:
            self.timeline.end_step(self.step, groups)
        if groups is not None:
            groups.end_step(self._append_group, self.step, spent[_FORWARD] + own, in_backward, self.backward_count)
        self._reset(now)

    def _reset(self, now: int) -> None:
        spent, gc_watch, compiling = self._spent, self._gc, self._compile
        self.last_step_ns = now - self._start
        self.last_data_wait_ns = spent[_DATA_WAIT]
        spent[:] = _NOTHING
        self._start = now
        if self.collate_ns > 0:
            self.collate_ns = 0
        self.backward_count = self.microbatches = self._sync_count = self._wait_in_backward_ns = self._flags = 0
        if gc_watch.count:
            gc_watch.spent_ns = gc_watch.count = 0
        if compiling.spent_ns > 0:
            compiling.spent_ns = compiling.recompiles = 0
        self.step = step = self.step + 1
        if self.sampled:
            self._boundaries_ns, self._timed_ns = self._timed_ns, 0
        if self.on_step is not None:
            self.on_step()
            self._hook_ns = self._boundaries_ns + self.now() - now
        elif self.sampled:
            self._hook_ns = self._boundaries_ns + self.now() - now
        self.sampled = step % _HOOK_SAMPLE == 1
        self._copies_watched = False

    def watch_copies(self) -> None:
        """The batch is there: in one step of 16, see it go to the device. Other steps must not pay for the look."""
        if self.sampled and self._device.name != "host" and not self._copies_watched:
            self._copies_watched = True
            self._unwatch_copies = self._device.watch_copies(self._copy_begins, self._copy_ends)

    def unwatch_copies(self) -> None:
        """Backward begins: no batch is copied any more."""
        if self._unwatch_copies is not None:
            self._unwatch_copies()
            self._unwatch_copies = None

    def _copy_begins(self) -> None:
        if threading.get_ident() == self.thread and self.phase == _FORWARD:
            self.switch(_H2D)

    def _copy_ends(self) -> None:
        if threading.get_ident() == self.thread and self.phase == _H2D:
            self.switch(_FORWARD)

    def _read(self, now: int) -> None:
        """Read what costs a system call, or more."""
        steps = self.step + 1 - self._read_step
        cpu_ns, runqueue_ns = self._usage.read()
        self._cpu_ns = cpu_ns // steps
        self._runqueue_ns = MISSING if runqueue_ns is None else runqueue_ns // steps
        self._memory = self._device.memory() or _NO_MEMORY
        self._read_ns, self._read_step = now, self.step + 1
        modules = len(sys.modules)
        if modules != self._modules or now - self._look_ns > LOOK_PERIOD_NS:
            self._modules, self._look_ns = modules, now
            self._compile.look()
            if self.on_look is not None:
                self.on_look()

    def mark(self, kind: MarkKind, text: str = "") -> None:
        """Write a moment of the rank's life."""
        self.ring.append_record(MarkRecord(self.now(), self.step, kind, text))

    def flush(self) -> None:
        """Write what the device has come to by now."""
        if self.timeline is not None:
            self.timeline.flush(self.groups)

    def close(self) -> None:
        """Take back what this clock registered elsewhere."""
        self.unwatch_copies()
        self._compile.remove()
