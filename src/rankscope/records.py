"""What a rank says of itself: fixed-size records, one dataclass a kind, integers only.

Every field is a signed 64-bit integer in the order below; None travels as the smallest one. Times are nanoseconds of
CLOCK_MONOTONIC or durations in nanoseconds unless the name says otherwise. docs/ring.md documents the bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar

#: How None travels in a 64-bit field. No counter or duration reaches it.
MISSING = -(2**63)


class Phase(IntEnum):
    """Where in a step the training thread is. The values are part of the ring format."""

    NONE = 0
    DATA_WAIT = 1
    FORWARD = 2
    BACKWARD = 3
    COLLECTIVE_WAIT = 4
    OPTIMIZER = 5
    CHECKPOINT = 6
    EVALUATION = 7
    OTHER = 8
    ENDED = 9


class RecordKind(IntEnum):
    """What a ring slot holds. The values are part of the ring format."""

    STEP = 1
    DEVICE = 2
    GROUP = 3
    PHASE = 4
    MARK = 5


class MarkKind(IntEnum):
    """Moments of a rank's life, told by the rank itself."""

    ATTACHED = 1
    PROCESS_GROUP = 2
    EXCEPTION = 3
    ENDED = 4
    DETACHED = 5
    DEGRADED = 6
    STEP_RULE = 7


class _Integers:
    """Packing shared by the records that are integers only."""

    __slots__ = ()
    kind: ClassVar[RecordKind]
    layout: ClassVar[struct.Struct]

    @classmethod
    def decode(cls, payload: bytes) -> Any:
        """The record in `payload`; raises struct.error where the length is another."""
        return cls(*(None if value == MISSING else value for value in cls.layout.unpack(payload)))


@dataclass(frozen=True, slots=True)
class StepRecord(_Integers):
    """One training step on the host's clock, written when the step ends.

    The phases data_wait, forward, backward, optimizer, checkpoint, evaluation and other sum to end - start.
    backward_own is the part of backward before the wait for other ranks; sync, gc and compile time lie inside phases.
    """

    kind: ClassVar[RecordKind] = RecordKind.STEP
    step: int
    start_ns: int
    end_ns: int
    data_wait_ns: int
    forward_ns: int
    backward_ns: int
    optimizer_ns: int
    checkpoint_ns: int
    evaluation_ns: int
    other_ns: int
    #: Host time from the begin of backward to the end of its own work (waiting for peers excluded).
    backward_own_ns: int | None = None
    #: Host time blocked in explicit device synchronisation (.item(), synchronize()).
    sync_ns: int | None = None
    sync_count: int | None = None
    gc_ns: int | None = None
    gc_count: int | None = None
    compile_ns: int | None = None
    #: CPU time of the training thread.
    cpu_ns: int | None = None
    #: Time the training thread was runnable but waited for a core.
    runqueue_ns: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_bytes: int | None = None
    alloc_retries: int | None = None
    #: Size of the batch in the loader's own units (first dimension of the first tensor).
    work: int | None = None
    #: Batches the loader's workers had ready when this one was asked for.
    loader_ready: int | None = None
    loader_workers: int | None = None
    #: Time the hooks themselves spent in this step.
    hook_ns: int | None = None
    #: Backward passes in this step (gradient accumulation).
    backward_count: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceRecord(_Integers):
    """One training step on the device's clock, written one or two steps later, when its events are done.

    Durations are between events on the compute stream. lead is how far the device ran behind the host at that
    boundary: near zero, the device was starved; large, the host ran ahead.
    """

    kind: ClassVar[RecordKind] = RecordKind.DEVICE
    step: int
    step_ns: int
    data_wait_ns: int | None
    forward_ns: int | None
    #: Backward up to the last of this rank's own kernels: what a slow GPU stretches.
    backward_own_ns: int | None
    #: From there to the end of backward: exposed communication, waiting for late ranks included.
    backward_wait_ns: int | None
    optimizer_ns: int | None
    other_ns: int | None
    lead_forward_ns: int | None = None
    lead_backward_ns: int | None = None
    lead_optimizer_ns: int | None = None
    lead_end_ns: int | None = None


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """Own time and wait of one process group in one step: the late rank is the one with the smallest wait."""

    kind: ClassVar[RecordKind] = RecordKind.GROUP
    layout: ClassVar[struct.Struct] = struct.Struct("<6q48s")
    step: int
    size: int
    count: int
    own_ns: int | None
    wait_ns: int | None
    #: 0 host clock, 1 device clock.
    on_device: int
    group: str

    @classmethod
    def decode(cls, payload: bytes) -> GroupRecord:
        step, size, count, own, wait, on_device, group = cls.layout.unpack(payload)
        return cls(
            step,
            size,
            count,
            None if own == MISSING else own,
            None if wait == MISSING else wait,
            on_device,
            text_field(group),
        )


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """A phase that the user named (`with scope.phase("name")`)."""

    kind: ClassVar[RecordKind] = RecordKind.PHASE
    layout: ClassVar[struct.Struct] = struct.Struct("<3q64s")
    step: int
    start_ns: int
    end_ns: int
    name: str

    @classmethod
    def decode(cls, payload: bytes) -> PhaseRecord:
        step, start, end, name = cls.layout.unpack(payload)
        return cls(step, start, end, text_field(name))


@dataclass(frozen=True, slots=True)
class MarkRecord:
    """A moment in the rank's life, with up to 192 bytes of text."""

    kind: ClassVar[RecordKind] = RecordKind.MARK
    layout: ClassVar[struct.Struct] = struct.Struct("<3q192s")
    time_ns: int
    step: int
    mark: int
    text: str

    @classmethod
    def decode(cls, payload: bytes) -> MarkRecord:
        time_ns, step, mark, text = cls.layout.unpack(payload)
        return cls(time_ns, step, mark, text_field(text))


RingRecord = StepRecord | DeviceRecord | GroupRecord | PhaseRecord | MarkRecord


def text_field(raw: bytes) -> str:
    """Text of a zero-padded field: printable, never raising, whatever the bytes are."""
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def text_bytes(text: str, size: int) -> bytes:
    """UTF-8 of `text` cut to `size` bytes on a character boundary."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode()


def encode(record: RingRecord) -> bytes:
    """The payload bytes of a record."""
    if isinstance(record, (StepRecord, DeviceRecord)):
        values = (getattr(record, name) for name in field_names(type(record)))
        return record.layout.pack(*(MISSING if value is None else value for value in values))
    if isinstance(record, GroupRecord):
        own = MISSING if record.own_ns is None else record.own_ns
        wait = MISSING if record.wait_ns is None else record.wait_ns
        return record.layout.pack(
            record.step, record.size, record.count, own, wait, record.on_device, text_bytes(record.group, 48)
        )
    if isinstance(record, PhaseRecord):
        return record.layout.pack(record.step, record.start_ns, record.end_ns, text_bytes(record.name, 64))
    return record.layout.pack(record.time_ns, record.step, record.mark, text_bytes(record.text, 192))


def decode(kind: int, payload: bytes) -> RingRecord | None:
    """The record of a slot's payload, or None where the kind or length is not one of ours."""
    record = _KINDS.get(kind)
    if record is None or len(payload) != record.layout.size:
        return None
    decoded: RingRecord = record.decode(payload)
    return decoded


def field_names(record: type[StepRecord] | type[DeviceRecord]) -> tuple[str, ...]:
    """Fields in the order they travel."""
    return tuple(field.name for field in fields(record))


StepRecord.layout = struct.Struct(f"<{len(field_names(StepRecord))}q")
DeviceRecord.layout = struct.Struct(f"<{len(field_names(DeviceRecord))}q")

_KINDS: dict[int, Any] = {
    record.kind: record for record in (StepRecord, DeviceRecord, GroupRecord, PhaseRecord, MarkRecord)
}
