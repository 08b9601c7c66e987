"""The boundaries of a step: the clock is read, a phase ends, another begins; a step's record goes into the ring.

The reference of `_boundaries.c`, which does the same at a fraction of the cost: byte for byte, as a test shows. It is
what runs where that was not built, or RANKSCOPE_BOUNDARIES is "python".
"""

from __future__ import annotations

import importlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any, cast

from rankscope.records import MISSING, Phase, RecordKind, StepRecord
from rankscope.ring import HEADER_BYTES, SLOT_BYTES, STATUS_OFFSET

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

#: Environment variable: "python" keeps to this file.
CHOICE_VARIABLE = "RANKSCOPE_BOUNDARIES"


class Boundaries:
    """Where the time of the step under way went, in a ring that only the training thread writes.

    Numbers that are not known are MISSING. A step is closed by `write_step` and `next_step`.
    """

    def __init__(self, ring: mmap, slots: int, monotonic_ns: Callable[[], int] | None = None) -> None:
        """`ring` is the mapped file with so many slots; `monotonic_ns` stands in for the clock."""
        self._ring = ring
        self._slots = slots
        self._now = monotonic_ns or time.monotonic_ns
        #: Called with (phase ended, phase begun, now) at each boundary, where the device has a clock.
        self.timeline_mark: Callable[[int, int, int], object] | None = None
        self.step = self.depth = 0
        self.phase = _NONE
        #: Of the step under way.
        self.flags = self.sync_count = self.backward_count = self.microbatches = 0
        self.work = self.loader_ready = self.loader_workers = MISSING
        self.collate_ns = self.loader_cpu_ns = self.loader_io_ns = MISSING
        #: As last measured.
        self.cpu_ns = self.runqueue_ns = self.hook_ns = MISSING
        self.allocated_bytes = self.reserved_bytes = self.peak_bytes = self.alloc_retries = MISSING
        #: Whether the step under way is one of those that are looked at more closely, and what boundaries took in it.
        self.sampled, self.timed_ns = True, 0
        self.copies_watched = False
        self.last_step_ns = self.last_data_wait_ns = 0
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
        if self.timeline_mark is not None:
            self.timeline_mark(ended, phase, now)
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

    def write_step(
        self,
        sequence: int,
        end_ns: int,
        gc_ns: int,
        gc_count: int,
        compile_ns: int,
        recompiles: int,
        flags: int,
        collectives: int,
    ) -> None:
        """Write the step that ends at `end_ns` as the ring's record number `sequence`."""
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
            gc_ns,
            gc_count,
            compile_ns,
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
            recompiles,
            flags,
            self.microbatches,
            collectives,
        )
        start = HEADER_BYTES + (sequence - 1) % self._slots * SLOT_BYTES
        self._ring[start + _CRC.size : start + _CRC.size + len(body)] = body
        _CRC.pack_into(self._ring, start, zlib.crc32(body))

    def next_step(self, now_ns: int) -> None:
        """The next step begins, with nothing spent."""
        self.last_step_ns = now_ns - self.start_ns
        self.last_data_wait_ns = self._spent[_DATA_WAIT]
        self._spent[:] = _NOTHING
        self.start_ns = now_ns
        if self.collate_ns > 0:
            self.collate_ns = 0
        self.backward_count = self.microbatches = self.sync_count = self._wait_in_backward_ns = self.flags = 0
        self.step += 1

    def _set_status(self, now: int, phase: int) -> None:
        doing = self.step << 16 | self.depth << 8 | phase
        _STATUS.pack_into(self._ring, STATUS_OFFSET, now, doing, now ^ doing)


def fastest(environ: Mapping[str, str] = os.environ) -> type[Boundaries]:
    """The compiled boundaries where they were built and are not declined, else those of this file."""
    if environ.get(CHOICE_VARIABLE) == "python":
        return Boundaries
    try:
        compiled: Any = importlib.import_module("rankscope.torch_hooks._boundaries")
    except ImportError:
        return Boundaries
    # One left over from an older source tree writes another record.
    if getattr(compiled, "FIELDS", None) != StepRecord.layout.size // 8:
        return Boundaries
    return cast(type[Boundaries], compiled.Boundaries)


def name_of(kind: type[object]) -> str:
    """ "python" or "compiled", as recordings and `doctor` say it."""
    return "python" if issubclass(kind, Boundaries) else "compiled"
