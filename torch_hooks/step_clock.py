"""Where the training thread's time goes: the phases of a step, on the host's clock and the device's.

`switch` and `end_step`, of boundaries.py, are the hot path: everything the hooks see becomes "from now on, this phase",
and a step is closed at its boundary, when its records go into the ring.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from rankscope.device import DeviceClock
from rankscope.records import MarkKind, MarkRecord, Phase, StepFlag
from rankscope.ring import RingWriter
from rankscope.torch_hooks.hot import Boundaries, DeviceTimeline
from rankscope.torch_hooks.usage import CompileWatch, GcWatch, open_schedstat

_H2D, _FORWARD = int(Phase.H2D), int(Phase.FORWARD)


class StepClock(Boundaries):
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
        monotonic_ns: Callable[[], int] | None = None,
        coarse: bool = False,
    ) -> None:
        super().__init__(ring, monotonic_ns)
        self.ring = ring
        self.thread = threading.get_ident()
        #: Called at the end of a step, where modules were imported since, or a fifth of a second has passed.
        self.on_look: Callable[[], None] | None = None
        self.now = monotonic_ns or time.monotonic_ns
        self._device = device
        if device.name != "host":
            self.timeline = DeviceTimeline(device, ring, world_size, coarse=coarse)
            self.memory = device.memory
        self.gc_watch = GcWatch(self, self.now)
        self._compile = CompileWatch(self, self.mark, self.now)
        self._unwatch_copies: Callable[[], None] | None = None
        self.schedstat = open_schedstat()
        self.read_usage()

    def flag(self, flag: StepFlag) -> None:
        """The step under way is peculiar."""
        self.flags |= flag

    def explain(self) -> None:
        """Something was compiled in the step that ends: count what was compiled again, and say which guard failed."""
        self._compile.explain()

    def look(self) -> None:
        """What is looked after now and then, at the end of a step."""
        self._compile.look()
        if self.on_look is not None:
            self.on_look()

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

    def mark(self, kind: MarkKind, text: str = "") -> None:
        """Write a moment of the rank's life."""
        self.ring.append_record(MarkRecord(self.now(), self.step, kind, text))

    def flush(self) -> None:
        """Write what the device has come to by now."""
        if self.timeline is not None:
            self.timeline.flush(self.group_states)

    def close(self) -> None:
        """Take back what this clock registered elsewhere."""
        self.unwatch_copies()
        self._compile.remove()
        self.gc_watch.remove()
        descriptor, self.schedstat = self.schedstat, -1
        if descriptor >= 0:
            os.close(descriptor)
