"""Where the training thread's time goes: the phases of a step, on the host's clock and the device's.

`switch`, of boundaries.py, is the hot path: everything the hooks see becomes "from now on, this phase". A step is
closed at its boundary, when its record goes into the ring. What costs a system call is read at most every
`READ_PERIOD_NS`: steps in between carry the mean of the last reading.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rankscope.device import DeviceClock
from rankscope.records import (
    MISSING,
    GroupRecord,
    MarkKind,
    MarkRecord,
    Phase,
    RecordKind,
    StepFlag,
)
from rankscope.ring import RingWriter
from rankscope.torch_hooks.boundaries import fastest
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
_NO_MEMORY = (MISSING, MISSING, MISSING, MISSING)
_WARM_UP = int(StepFlag.WARM_UP)
_H2D, _FORWARD, _BACKWARD = int(Phase.H2D), int(Phase.FORWARD), int(Phase.BACKWARD)

if TYPE_CHECKING:
    from rankscope.torch_hooks.boundaries import Boundaries as _Boundaries
else:
    _Boundaries = fastest()


class StepClock(_Boundaries):
    """Phases and steps of one training thread, written into its ring.

    Only the thread that made it may write; calls from other threads are ignored, except during backward, which the
    autograd engine may finish on a thread of its own while the training thread waits for it.
    """

    def __init__(
        self,
        ring: RingWriter,
        device: DeviceClock,
        *,
        world_size: int,
        gc_watch: GcWatch,
        usage: ThreadUsage,
        monotonic_ns: Callable[[], int] | None = None,
        coarse: bool = False,
    ) -> None:
        super().__init__(ring.mapped, ring.slots, monotonic_ns)
        self.ring = ring
        self.thread = threading.get_ident()
        #: Called at the end of each step, where profiler windows may be wanted.
        self.on_step: Callable[[], None] | None = None
        #: Called at the end of a step, where modules were imported since, or LOOK_PERIOD_NS have passed.
        self.on_look: Callable[[], None] | None = None
        #: Process groups whose operations are seen; None where there are none.
        self.groups: Groups | None = None
        self.now = monotonic_ns or time.monotonic_ns
        self._device = device
        self.timeline = None if device.name == "host" else DeviceTimeline(device, ring, world_size, coarse=coarse)
        self.timeline_mark = None if self.timeline is None else self.timeline.mark
        self._gc = gc_watch
        self._usage = usage
        self._compile = CompileWatch(self.mark)
        self._append_group = ring.appender(RecordKind.GROUP, GroupRecord.layout)
        self._unwatch_copies: Callable[[], None] | None = None
        self._boundaries_ns = 0
        self._read_ns = self._read_step = self._look_ns = self._modules = 0
        usage.read()

    def flag(self, flag: StepFlag) -> None:
        """The step under way is peculiar."""
        self.flags |= flag

    def end_step(self, next_phase: int) -> None:
        """Close the step here; the next one begins in `next_phase`."""
        now = self.switch(next_phase)
        if self.start_ns == now:
            return
        if now - self._read_ns > READ_PERIOD_NS:
            self._read(now)
        gc_watch, compiling, groups, step = self._gc, self._compile, self.groups, self.step
        flags, compile_ns = self.flags, compiling.spent_ns
        if compile_ns > 0:
            compiling.explain()
        if step < WARM_UP_STEPS or compile_ns > 0:
            flags |= _WARM_UP
        self.write_step(
            self.ring.take(),
            now,
            gc_watch.spent_ns,
            gc_watch.count,
            compile_ns,
            compiling.recompiles,
            flags,
            MISSING if groups is None else groups.count,
        )
        if self.timeline is not None:
            self.timeline.end_step(step, groups)
        if groups is not None:
            # The end of backward is the wait that began in it; what other phases waited for is theirs.
            own = self.spent_ns(_BACKWARD)
            forward = self.spent_ns(_FORWARD)
            groups.end_step(self._append_group, step, forward + own, self.end_wait_ns(), self.backward_count)
        self.next_step(now)
        if gc_watch.count:
            gc_watch.spent_ns = gc_watch.count = 0
        if compile_ns > 0:
            compiling.spent_ns = compiling.recompiles = 0
        sampled = self.sampled
        if sampled:
            self._boundaries_ns, self.timed_ns = self.timed_ns, 0
        if self.on_step is not None:
            self.on_step()
            self.hook_ns = self._boundaries_ns + self.now() - now
        elif sampled:
            self.hook_ns = self._boundaries_ns + self.now() - now
        self.sampled = (step + 1) % _HOOK_SAMPLE == 1
        self.copies_watched = False

    def watch_copies(self) -> None:
        """The batch is there: in one step of 16, see it go to the device. Other steps must not pay for the look."""
        if self.sampled and self._device.name != "host" and not self.copies_watched:
            self.copies_watched = True
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
        self.cpu_ns = cpu_ns // steps
        self.runqueue_ns = MISSING if runqueue_ns is None else runqueue_ns // steps
        memory = self._device.memory() or _NO_MEMORY
        self.allocated_bytes, self.reserved_bytes, self.peak_bytes, self.alloc_retries = memory
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
