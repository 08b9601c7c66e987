"""Where the training thread's time goes: the phases of a step, on the host's clock and the device's.

`StepClock.switch` is the hot path: everything the hooks see becomes "from now on, this phase". A step is closed at its
boundary, when its record goes into the ring.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from rankscope.device import DeviceClock
from rankscope.records import (
    MISSING,
    GroupRecord,
    MarkKind,
    MarkRecord,
    Phase,
    RecordKind,
    StepRecord,
    encode,
)
from rankscope.ring import RingWriter
from rankscope.torch_hooks.device_timeline import DeviceTimeline
from rankscope.torch_hooks.usage import CompileWatch, GcWatch, ThreadUsage

_PHASES = len(Phase)
_DEFAULT_GROUP = "default"


class StepClock:
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
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        coarse: bool = False,
    ) -> None:
        self.ring = ring
        self.step = 0
        self.phase = int(Phase.NONE)
        self.depth = 0
        self.thread = threading.get_ident()
        self.work: int | None = None
        self.loader_ready: int | None = None
        self.loader_workers: int | None = None
        self.backward_count = 0
        self.last_step_ns = 0
        self.last_data_wait_ns = 0
        #: Called at the end of each step.
        self.on_step: Callable[[], None] | None = None
        self._monotonic_ns = monotonic_ns
        self._device = device
        self._timeline = None if device.name == "host" else DeviceTimeline(device, ring, world_size, coarse=coarse)
        self._world_size = world_size
        self._gc = gc_watch
        self._usage = usage
        self._compile = CompileWatch()
        self._spent = [0] * _PHASES
        self._since = self._start = monotonic_ns()
        self._hook_ns = 0
        self._sync_ns = 0
        self._sync_count = 0
        usage.read()

    def switch(self, phase: int) -> int:
        """From now on the training thread is in `phase`; returns now."""
        now = self._monotonic_ns()
        ended = self.phase
        self._spent[ended] += now - self._since
        self._since = now
        self.phase = phase
        if self._timeline is not None:
            self._timeline.mark(ended, phase, now)
        self.ring.set_status(now, self.step, phase, self.depth)
        self._hook_ns += self._monotonic_ns() - now
        return now

    def synchronized(self, blocked_ns: int) -> None:
        """The host was blocked that long in an explicit synchronisation."""
        self._sync_ns += blocked_ns
        self._sync_count += 1

    def end_step(self, next_phase: int) -> None:
        """Close the step here; the next one begins in `next_phase`."""
        now = self.switch(next_phase)
        spent = self._spent
        if self._start != now:
            self._write(now, spent)
        if self._timeline is not None:
            self._timeline.end_step(self.step)
        self.last_step_ns = now - self._start
        self.last_data_wait_ns = spent[Phase.DATA_WAIT]
        self._spent = [0] * _PHASES
        self._start = now
        self._sync_ns = self._sync_count = 0
        self.backward_count = 0
        self.step += 1
        if "torch._dynamo" in sys.modules:
            self._compile.install()
        if self.on_step is not None:
            self.on_step()
        self._hook_ns = self._monotonic_ns() - now

    def _write(self, now: int, spent: list[int]) -> None:
        own, wait = spent[Phase.BACKWARD], spent[Phase.COLLECTIVE_WAIT]
        cpu_ns, runqueue_ns = self._usage.read()
        gc_ns, gc_count = self._gc.take()
        memory = self._device.memory() or (MISSING, MISSING, MISSING, MISSING)
        self.ring.append(
            RecordKind.STEP,
            StepRecord.layout.pack(
                self.step,
                self._start,
                now,
                spent[Phase.DATA_WAIT],
                spent[Phase.FORWARD],
                own + wait,
                spent[Phase.OPTIMIZER],
                spent[Phase.CHECKPOINT],
                spent[Phase.EVALUATION],
                spent[Phase.NONE] + spent[Phase.OTHER],
                own,
                self._sync_ns,
                self._sync_count,
                gc_ns,
                gc_count,
                self._compile.take(),
                cpu_ns,
                MISSING if runqueue_ns is None else runqueue_ns,
                *memory,
                MISSING if self.work is None else self.work,
                MISSING if self.loader_ready is None else self.loader_ready,
                MISSING if self.loader_workers is None else self.loader_workers,
                self._hook_ns,
                self.backward_count,
                *(MISSING,) * 11,
            ),
        )
        if self._timeline is None and self._world_size > 1 and self.backward_count:
            own_ns = spent[Phase.FORWARD] + own
            group = GroupRecord(self.step, self._world_size, self.backward_count, own_ns, wait, 0, _DEFAULT_GROUP)
            self.ring.append(RecordKind.GROUP, encode(group))

    def mark(self, kind: MarkKind, text: str = "") -> None:
        """Write a moment of the rank's life."""
        self.ring.append_record(MarkRecord(self._monotonic_ns(), self.step, kind, text))

    def close(self) -> None:
        """Take back what this clock registered elsewhere."""
        self._compile.remove()
